//! Two sections as streams of bytes: what is the same at the same offset, what moved, what is new.

use std::{cmp::Reverse, collections::BTreeMap};

use tokio_util::sync::CancellationToken;

use super::report::ChangedRange;
use crate::{
    base::{BaseIndex, BaseSection, Content, PlacedExtent},
    coverage::{Coverage, Part},
    error::{Error, Result},
};

/// Pieces gone through between two looks at the cancellation.
const PIECES_AT_ONCE: u64 = 1024;

/// Which bytes of each chunk A has, and in which section first.
pub(super) struct Had(Vec<Coverage<u32>>);

impl Had {
    /// What the first `sections` of the index have.
    pub(super) fn new(
        index: &BaseIndex,
        sections: usize,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let mut had = vec![Coverage::default(); index.chunks.len()];
        let mut parts = Vec::new();
        for (number, section) in (0..).zip(&index.sections[..sections]) {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            for extent in &section.extents {
                let Content::Chunk { chunk, start } = extent.content else {
                    continue;
                };
                let coverage = &mut had[chunk as usize];
                coverage.divide(start..start + extent.len as u32, &mut parts);
                for part in parts.iter().filter(|part| part.value.is_none()) {
                    coverage.cover(part.range.clone(), number);
                }
            }
        }
        Ok(Self(had))
    }
}

/// The extent that holds the byte at `offset`.
pub(super) fn extent_at(extents: &[PlacedExtent], offset: u64) -> Option<&PlacedExtent> {
    let behind = extents.partition_point(|e| e.offset <= offset);
    let extent = extents.get(behind.checked_sub(1)?)?;
    (offset - extent.offset < extent.len).then_some(extent)
}

/// What stands at `offset` of a section, and for how many bytes.
pub(super) fn content_at(extents: &[PlacedExtent], offset: u64) -> Option<(Content, u64)> {
    let extent = extent_at(extents, offset)?;
    let skipped = offset - extent.offset;
    let content = match extent.content {
        Content::Zero => Content::Zero,
        Content::Chunk { chunk, start } => Content::Chunk {
            chunk,
            start: start + skipped as u32,
        },
    };
    Some((content, extent.len - skipped))
}

/// What became of the bytes of one section.
#[derive(Default)]
pub(super) struct StreamDiff {
    pub(super) equal: u64,
    pub(super) zeroed: u64,
    pub(super) moved: u64,
    /// By section of A.
    pub(super) moved_from: BTreeMap<u32, u64>,
    pub(super) new: u64,
    pub(super) ranges: Vec<ChangedRange>,
}

impl StreamDiff {
    /// Compares a section of B, of `len` bytes, with the one of A, if there is one.
    pub(super) fn of(
        a: Option<&BaseSection>,
        b: &BaseSection,
        len: u64,
        had: &Had,
        cancel: &CancellationToken,
    ) -> Result<Self> {
        let mut diff = Self::default();
        let mut parts = Vec::new();
        let (mut at, mut pieces) = (0, 0);
        while at < len {
            pieces += 1;
            if pieces % PIECES_AT_ONCE == 0 && cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let (content, left) = content_at(&b.extents, at).expect("extents map the section");
            let in_a = a.and_then(|a| content_at(&a.extents, at));
            let piece = in_a.map_or(left, |(_, left_in_a)| left.min(left_in_a));
            if in_a.is_some_and(|(in_a, _)| in_a == content) {
                diff.equal += piece;
            } else {
                diff.differs(at, piece, content, had, &mut parts);
            }
            at += piece;
        }
        Ok(diff)
    }

    fn differs(
        &mut self,
        offset: u64,
        len: u64,
        content: Content,
        had: &Had,
        parts: &mut Vec<Part<u32>>,
    ) {
        let mut range = match self.ranges.pop() {
            Some(last) if last.offset + last.len == offset => last,
            last => {
                self.ranges.extend(last);
                ChangedRange {
                    offset,
                    ..ChangedRange::default()
                }
            }
        };
        range.len += len;
        match content {
            Content::Zero => {
                self.zeroed += len;
                range.zeroed_bytes += len;
            }
            Content::Chunk { chunk, start } => {
                had.0[chunk as usize].divide(start..start + len as u32, parts);
                for part in &*parts {
                    let len = u64::from(part.range.end - part.range.start);
                    match part.value {
                        Some(section) => {
                            self.moved += len;
                            range.moved_bytes += len;
                            *self.moved_from.entry(section).or_default() += len;
                        }
                        None => {
                            self.new += len;
                            range.new_bytes += len;
                        }
                    }
                }
            }
        }
        self.ranges.push(range);
    }

    /// The longest ranges, in order.
    pub(super) fn longest(mut self, top: usize) -> Vec<ChangedRange> {
        self.ranges
            .sort_unstable_by_key(|range| (Reverse(range.len), range.offset));
        self.ranges.truncate(top);
        self.ranges.sort_unstable_by_key(|range| range.offset);
        self.ranges
    }
}
