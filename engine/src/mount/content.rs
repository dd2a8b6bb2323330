//! The bytes of files: a blob's are its section's, a tree's file has runs of its section's stream and holes between them.

use futures::future::try_join_all;
use podsnap_format::tree::{DataRange, EntryKind};

use super::nodes::{Node, Nodes};
use crate::{SectionReader, error::Result};

/// Where a read finds its bytes: the section, and which of its bytes go where.
pub(super) struct Read {
    pub(super) section: usize,
    len: usize,
    pieces: Vec<Piece>,
}

/// Bytes of a section and where they go in the answer.
struct Piece {
    at: usize,
    len: usize,
    section_offset: u64,
}

impl Read {
    /// What a read of `size` bytes at `offset` gives: less at the end of the file.
    pub(super) fn plan(node: Node<'_>, offset: u64, size: u32) -> Option<Self> {
        match node {
            Node::Top => None,
            Node::Blob { top, len } => {
                let end = offset.saturating_add(size.into()).min(len);
                let len = end.saturating_sub(offset) as usize;
                let piece = Piece {
                    at: 0,
                    len,
                    section_offset: offset,
                };
                Some(Self {
                    section: top.section,
                    len,
                    pieces: if len == 0 { vec![] } else { vec![piece] },
                })
            }
            Node::Entry { top, .. } => {
                let EntryKind::Regular { size: len, ranges } = &node.entry()?.kind else {
                    return None;
                };
                let end = offset.saturating_add(size.into()).min(*len);
                Some(Self {
                    section: top.section,
                    len: end.saturating_sub(offset) as usize,
                    pieces: pieces(ranges, offset, end),
                })
            }
        }
    }

    /// Reads it. Holes are zeros; everything else was checked, or the whole read fails.
    pub(super) async fn run(&self, reader: &SectionReader) -> Result<Vec<u8>> {
        let mut buf = vec![0; self.len];
        let (mut rest, mut at) = (&mut buf[..], 0);
        let mut reads = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let (target, behind) = rest[piece.at - at..].split_at_mut(piece.len);
            reads.push(reader.read_at(target, piece.section_offset));
            (rest, at) = (behind, piece.at + piece.len);
        }
        try_join_all(reads).await?;
        Ok(buf)
    }

    /// The first byte of the section that is read.
    pub(super) fn section_offset(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.section_offset)
    }
}

fn pieces(ranges: &[DataRange], offset: u64, end: u64) -> Vec<Piece> {
    let first = ranges.partition_point(|range| range.file_offset + range.length <= offset);
    ranges[first..]
        .iter()
        .take_while(|range| range.file_offset < end)
        .map(|range| {
            let from = range.file_offset.max(offset);
            let to = (range.file_offset + range.length).min(end);
            Piece {
                at: (from - offset) as usize,
                len: (to - from) as usize,
                section_offset: range.stream_offset + (from - range.file_offset),
            }
        })
        .collect()
}

/// Where the next data, or the next hole, begins at or behind `offset`; `None` if there is none before the end.
pub(super) fn seek(node: Node<'_>, offset: u64, hole: bool) -> Option<u64> {
    let whole;
    let (len, ranges) = match (node, node.entry().map(|entry| &entry.kind)) {
        (_, Some(EntryKind::Regular { size, ranges })) => (*size, ranges.as_slice()),
        (Node::Blob { len, .. }, _) => {
            whole = [DataRange {
                file_offset: 0,
                length: len,
                stream_offset: 0,
            }];
            (len, &whole[..])
        }
        _ => return None,
    };
    if offset >= len {
        return None;
    }
    let mut at = offset;
    let first = ranges.partition_point(|range| range.file_offset + range.length <= offset);
    for range in &ranges[first..] {
        if !hole {
            return Some(at.max(range.file_offset));
        }
        if at < range.file_offset {
            return Some(at);
        }
        at = range.file_offset + range.length;
    }
    if hole { Some(at.min(len)) } else { None }
}

/// The readers of the sections that are shown.
pub(super) struct Readers(Vec<Option<SectionReader>>);

impl Readers {
    pub(super) fn new(snapshot: &crate::Snapshot, nodes: &Nodes) -> Self {
        let mut readers: Vec<_> = snapshot.sections().iter().map(|_| None).collect();
        for section in nodes.sections() {
            readers[section] = Some(snapshot.reader(section));
        }
        Self(readers)
    }

    pub(super) fn get(&self, section: usize) -> Option<SectionReader> {
        self.0.get(section)?.clone()
    }
}
