//! The entries of one of two trees, and what their files hold.

use std::cell::RefCell;

use podsnap_format::tree::{Entry, EntryKind, TreeTable};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    report::EntryState,
    stream::{content_at, extent_at},
};
use crate::{
    SectionReader,
    base::{BaseSection, Content, PlacedExtent},
    error::{Error, Result},
    printable,
};

/// A tree, the extents of its section, and its data if that may be read.
#[derive(Clone, Copy)]
pub(super) struct Tree<'a> {
    pub(super) table: &'a TreeTable,
    pub(super) section: &'a BaseSection,
    pub(super) data: Option<&'a Data>,
}

/// The bytes of a section. The last run that was read is kept: neighbours are in one chunk.
pub(super) struct Data {
    reader: SectionReader,
    runtime: Handle,
    cancel: CancellationToken,
    kept: RefCell<(u64, Vec<u8>)>,
}

impl Data {
    /// Must be used on a thread that may wait.
    pub(super) fn new(reader: SectionReader, runtime: Handle, cancel: CancellationToken) -> Self {
        Self {
            reader,
            runtime,
            cancel,
            kept: RefCell::default(),
        }
    }

    /// Shows `show` the bytes of an extent.
    fn with_extent<T>(&self, extent: &PlacedExtent, show: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let mut kept = self.kept.borrow_mut();
        let (offset, bytes) = &mut *kept;
        if *offset != extent.offset || bytes.len() as u64 != extent.len {
            bytes.clear();
            bytes.resize(extent.len as usize, 0);
            let read = self.reader.read_at(bytes, extent.offset);
            let read = self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.cancel.cancelled() => Err(Error::interrupted()),
                    read = read => read,
                }
            });
            if let Err(e) = read {
                bytes.clear();
                return Err(e);
            }
            *offset = extent.offset;
        }
        Ok(show(bytes))
    }
}

impl<'a> Tree<'a> {
    pub(super) fn entry(&self, index: u32) -> &'a Entry {
        &self.table.entries()[index as usize]
    }

    /// The file that an entry is a name of, or the entry itself.
    pub(super) fn resolved(&self, index: u32) -> u32 {
        match self.entry(index).kind {
            EntryKind::HardLink { target } => target,
            _ => index,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.table.entries().len() as u32
    }

    /// How deep each entry is.
    pub(super) fn depths(&self) -> Vec<u16> {
        let mut depths: Vec<u16> = Vec::with_capacity(self.table.entries().len());
        for (index, entry) in self.table.entries().iter().enumerate() {
            // Tables deeper than MAX_DEPTH were refused.
            depths.push(match index {
                0 => 0,
                _ => depths[entry.parent as usize] + 1,
            });
        }
        depths
    }

    /// Reads a part of a file, none of which reaches beyond an extent or a hole; `false` if nothing may be read.
    pub(super) fn read(&self, index: u32, offset: u64, buf: &mut [u8]) -> Result<bool> {
        let (Some(data), EntryKind::Regular { ranges, .. }) = (self.data, &self.entry(index).kind)
        else {
            return Ok(false);
        };
        let after = ranges.partition_point(|range| range.file_offset <= offset);
        let range = ranges[..after].last();
        let in_stream = range
            .filter(|range| offset - range.file_offset < range.length)
            .map(|range| range.stream_offset + (offset - range.file_offset));
        let extent = in_stream.and_then(|at| Some((at, extent_at(&self.section.extents, at)?)));
        match extent {
            Some((at, extent)) if extent.content != Content::Zero => {
                let skipped = (at - extent.offset) as usize;
                data.with_extent(extent, |bytes| {
                    buf.copy_from_slice(&bytes[skipped..skipped + buf.len()]);
                })?;
            }
            _ => buf.fill(0),
        }
        Ok(true)
    }

    /// What a file has at `offset`, and for how many bytes; holes are zeros.
    pub(super) fn content_at(&self, index: u32, offset: u64) -> Option<(Content, u64)> {
        let EntryKind::Regular { size, ranges } = &self.entry(index).kind else {
            return None;
        };
        if offset >= *size {
            return None;
        }
        let after = ranges.partition_point(|range| range.file_offset <= offset);
        if let Some(range) = ranges[..after].last()
            && offset - range.file_offset < range.length
        {
            let skipped = offset - range.file_offset;
            let (content, left) = content_at(&self.section.extents, range.stream_offset + skipped)?;
            return Some((content, left.min(range.length - skipped)));
        }
        let end = ranges.get(after).map_or(*size, |next| next.file_offset);
        Some((Content::Zero, end - offset))
    }

    pub(super) fn state(&self, path_of: u32, index: u32) -> EntryState {
        let entry = self.entry(index);
        let attributes = &entry.attributes;
        EntryState {
            path: printable(self.table.path(path_of)),
            kind: kind_name(&entry.kind),
            size: size(&entry.kind),
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime_seconds: attributes.mtime.seconds,
            mtime_nanos: attributes.mtime.nanos,
        }
    }
}

fn kind_name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::Directory => "directory",
        EntryKind::Regular { .. } => "file",
        EntryKind::Symlink { .. } => "symlink",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
        EntryKind::CharDevice { .. } => "character device",
        EntryKind::BlockDevice { .. } => "block device",
        EntryKind::HardLink { .. } => "hard link",
    }
}

/// Length of a file; nothing else has one.
pub(super) fn size(kind: &EntryKind) -> u64 {
    match kind {
        EntryKind::Regular { size, .. } => *size,
        _ => 0,
    }
}
