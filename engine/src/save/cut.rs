//! Cutting a segment into pieces and naming them: zero runs, chunks with their ids, ranges of the base's chunks.
//!
//! Runs on any thread, for many segments at once, and knows nothing of what the save has stored so far. Where the base
//! has the section, the next cut is guessed from it: if the bytes of the guessed length hash to the base's id, the cut is
//! proven and the chunker never runs. The same is done with what followed a chunk earlier in this save.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use podsnap_format::{ChunkId, Key};

use super::proof::Proofs;
use crate::{
    base::{BaseIndex, Content},
    chunking::{Chunker, runs},
    source::Source,
};

/// A stretch of a segment and what it was found to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// First byte, in the segment.
    pub(super) start: usize,
    /// Length in bytes.
    pub(super) len: usize,
    pub(super) kind: PieceKind,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum PieceKind {
    Zero,
    /// A chunk of its own.
    Chunk(ChunkId),
    /// Bytes from `start` of a chunk of the base, proven equal by the whole chunk that stands at `whole_at` of the section.
    BaseRange {
        chunk: u32,
        start: u32,
        whole_at: u64,
    },
}

/// What all segments of a section are cut by.
pub(super) struct Cutter {
    pub(super) chunker: Chunker,
    pub(super) key: Option<Key>,
    pub(super) base: Arc<BaseIndex>,
    /// The base's section of the same role and name.
    pub(super) base_section: Option<usize>,
    /// The section's source, where it can be read again.
    pub(super) source: Option<Arc<dyn Source>>,
    pub(super) successors: Arc<Successors>,
}

/// Which chunk was seen to follow which, in this save: the second copy of a duplicate is cut like the first without running the
/// chunker. Only a guess is taken from here, and only guesses that hash to what they should be are used, so it does
/// not matter which of the threads got here first.
#[derive(Default)]
pub(super) struct Successors(Mutex<HashMap<IdPrefix, (IdPrefix, u32)>>);

/// The start of a chunk's id: enough for a guess.
type IdPrefix = [u8; 8];

impl Successors {
    fn record(&self, previous: &ChunkId, next: &ChunkId, len: usize) {
        let mut known = self.0.lock().expect("no panic while held");
        known.insert(previous.prefix(), (next.prefix(), len as u32));
    }

    /// The start of the id, and the length in bytes, of the chunk that followed `previous`.
    fn after(&self, previous: &ChunkId) -> Option<(IdPrefix, usize)> {
        let known = self.0.lock().expect("no panic while held");
        known
            .get(&previous.prefix())
            .map(|(prefix, len)| (*prefix, *len as usize))
    }
}

/// Where in the base the next bytes are expected.
#[derive(Clone, Copy)]
struct Cursor {
    section: usize,
    extent: usize,
}

impl Cutter {
    /// Cuts `bytes`, which start at `offset` of the section.
    pub(super) fn cut(&self, bytes: &[u8], offset: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut proofs = Proofs::default();
        for run in runs(bytes) {
            if run.zero {
                pieces.push(Piece {
                    start: run.start,
                    len: run.end - run.start,
                    kind: PieceKind::Zero,
                });
                continue;
            }
            let mut at = run.start;
            let mut cursor = self.expect_at(offset + at as u64);
            let mut previous = None;
            while at < run.end {
                let rest = &bytes[at..run.end];
                let here = offset + at as u64;
                let (len, kind, next) = match self.predicted(rest, here, cursor, &mut proofs) {
                    Some((len, kind, next)) => (len, kind, Some(next)),
                    None => self.chunked(rest, here, cursor, previous),
                };
                pieces.push(Piece {
                    start: at,
                    len,
                    kind,
                });
                cursor = next;
                at += len;
                previous = match kind {
                    PieceKind::Chunk(id) => {
                        if let Some(previous) = previous {
                            self.successors.record(&previous, &id, len);
                        }
                        Some(id)
                    }
                    _ => None,
                };
            }
        }
        pieces
    }

    fn expect_at(&self, offset: u64) -> Option<Cursor> {
        let section = self.base_section?;
        let extent = self.base.sections[section].extent_at(offset)?;
        Some(Cursor { section, extent })
    }

    /// The next piece, if it is what the base has at the cursor.
    fn predicted(
        &self,
        rest: &[u8],
        here: u64,
        cursor: Option<Cursor>,
        proofs: &mut Proofs,
    ) -> Option<(usize, PieceKind, Cursor)> {
        let cursor = cursor?;
        let section = &self.base.sections[cursor.section];
        let extent = section.extents.get(cursor.extent)?;
        let Content::Chunk { chunk, start } = extent.content else {
            return None;
        };
        let len = usize::try_from(extent.len)
            .ok()
            .filter(|len| *len <= rest.len())?;
        let known = &self.base.chunks[chunk as usize];
        let next = Cursor {
            extent: cursor.extent + 1,
            ..cursor
        };
        if start == 0 && len == known.raw_len as usize {
            let id = ChunkId::of(&rest[..len], self.key.as_ref());
            return (id == known.id).then_some((len, PieceKind::Chunk(id), next));
        }
        // A range inside a chunk: the whole chunk must stand where the base had it, moved as this extent has moved.
        let (whole_section, whole) = self.base.whole_at(chunk)?;
        if whole_section != cursor.section {
            return None;
        }
        let moved = here.wrapping_sub(extent.offset);
        let expected = section.extents[whole].offset.wrapping_add(moved);
        let bytes = proofs.chunk(
            &known.id,
            known.raw_len,
            self.source.as_deref()?,
            expected,
            self.key.as_ref(),
        )?;
        let kind = PieceKind::BaseRange {
            chunk,
            start,
            whole_at: expected,
        };
        (bytes[start as usize..][..len] == rest[..len]).then_some((len, kind, next))
    }

    /// The next piece by what followed `previous` before or else by the chunker, and where in the base to go on.
    fn chunked(
        &self,
        rest: &[u8],
        here: u64,
        cursor: Option<Cursor>,
        previous: Option<ChunkId>,
    ) -> (usize, PieceKind, Option<Cursor>) {
        let hash = |len: usize| ChunkId::of(&rest[..len], self.key.as_ref());
        let followed = previous.and_then(|previous| self.successors.after(&previous));
        let guessed = followed
            .filter(|(_, len)| *len <= rest.len())
            .map(|(prefix, len)| (len, hash(len), prefix));
        let (len, id) = match guessed {
            Some((len, id, prefix)) if id.prefix() == prefix => (len, id),
            guessed => {
                let len = self.chunker.cut(rest, here);
                match guessed {
                    Some((hashed, id, _)) if hashed == len => (len, id),
                    _ => (len, hash(len)),
                }
            }
        };
        let next = match self
            .base
            .find(&id)
            .and_then(|chunk| self.base.whole_at(chunk))
        {
            Some((section, extent)) => Some(Cursor {
                section,
                extent: extent + 1,
            }),
            // A changed chunk whose borders stayed: what follows it may be the base's again.
            None => cursor.and_then(|c| {
                let section = &self.base.sections[c.section];
                let expected = section.extents.get(c.extent)?.offset + len as u64;
                section
                    .extent_at(expected)
                    .map(|extent| Cursor { extent, ..c })
            }),
        };
        (len, PieceKind::Chunk(id), next)
    }
}
