//! Growing duplicates past the borders of their chunks.
//!
//! Content-defined cuts meet again only at the first border inside a duplicate, so the chunks at its two ends are stored
//! though most of their bytes are known. Here the known neighbours of a duplicate are compared byte by byte with the bytes beside it;
//! what agrees becomes a range inside the neighbours' chunks, and only the rest becomes a chunk. Neighbours are looked for where the
//! duplicate stands in this save, or else in the base.

use std::sync::Arc;

use podsnap_format::Key;

use super::{
    index::{Place, SaveIndex},
    proof::Proofs,
};
use crate::base::{Content, covering};

/// Fewest bytes worth an extent of their own: a restore decodes one more chunk for each.
const MIN_GROWTH: usize = 1024;

/// A range inside a known chunk that equals bytes of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grown {
    pub(super) chunk: GrownChunk,
    pub(super) start: u32,
    pub(super) len: usize,
}

/// Which chunk a range was grown into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GrownChunk {
    /// One that this save refers to already.
    Saved(u32),
    /// One of the base, proven to stand whole at a place of this save.
    Base { chunk: u32, whole_at: Place },
}

/// Sum of the lengths in bytes.
pub(super) fn total(grown: &[Grown]) -> usize {
    grown.iter().map(|g| g.len).sum()
}

fn worthwhile(grown: Vec<Grown>) -> Vec<Grown> {
    if total(&grown) < MIN_GROWTH {
        Vec::new()
    } else {
        grown
    }
}

/// Where bytes that are known already stand.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    /// In this save.
    Saved(Place),
    /// In the base, at that offset of that section. Their chunks are looked for in this save's section where they would stand if all
    /// around them had moved as the neighbour has: that is how a chunk that crosses the border of two segments is found again.
    Base { section: usize, offset: u64 },
}

impl Known {
    fn offset(&self) -> u64 {
        match self {
            Self::Saved(place) => place.offset,
            Self::Base { offset, .. } => *offset,
        }
    }

    /// The place `len` bytes further on.
    pub(super) fn after(self, len: u64) -> Self {
        self.at(self.offset() + len)
    }

    /// The place `len` bytes before this one.
    fn before(self, len: u64) -> Self {
        self.at(self.offset() - len)
    }

    fn at(self, offset: u64) -> Self {
        match self {
            Self::Saved(place) => Self::Saved(Place { offset, ..place }),
            Self::Base { section, .. } => Self::Base { section, offset },
        }
    }
}

/// What growing looks things up in.
pub(super) struct Grower<'a> {
    pub(super) index: &'a SaveIndex,
    pub(super) proofs: &'a mut Proofs,
    pub(super) key: Option<&'a Key>,
}

/// An extent whose chunk was proven.
struct Shown {
    chunk: GrownChunk,
    /// First byte of the extent, where the walk goes.
    offset: u64,
    /// Where the extent's bytes begin in the chunk.
    start: usize,
    /// Length of the extent in bytes.
    len: usize,
    bytes: Arc<Vec<u8>>,
}

impl Grower<'_> {
    /// The extent around `known`, its chunk proven. `here` is the place of this save whose bytes are compared with it.
    fn show(&mut self, known: Known, here: Place) -> Option<Shown> {
        let (extent, chunk, id, raw_len, whole_at) = match known {
            Known::Saved(place) => {
                let extent = self.index.sections[place.section as usize].covering(place.offset)?;
                let Content::Chunk { chunk, .. } = extent.content else {
                    return None;
                };
                let known = &self.index.chunks[chunk as usize];
                let chunk = GrownChunk::Saved(chunk);
                (extent, chunk, known.id, known.raw_len, known.whole_at)
            }
            Known::Base { section, offset } => {
                let base = &self.index.base;
                let extent = covering(&base.sections[section].extents, offset)?;
                let Content::Chunk { chunk, .. } = extent.content else {
                    return None;
                };
                let (whole_section, whole) = base.whole_at(chunk)?;
                if whole_section != section {
                    return None;
                }
                let moved = here.offset.wrapping_sub(offset);
                let whole = base.sections[section].extents[whole].offset;
                let whole_at = Place {
                    offset: whole.wrapping_add(moved),
                    ..here
                };
                let known = &base.chunks[chunk as usize];
                let chunk = GrownChunk::Base { chunk, whole_at };
                (extent, chunk, known.id, known.raw_len, whole_at)
            }
        };
        let Content::Chunk { start, .. } = extent.content else {
            return None;
        };
        let source = self.index.sections[whole_at.section as usize]
            .source
            .as_deref()?;
        let bytes = self
            .proofs
            .chunk(&id, raw_len, source, whole_at.offset, self.key)?;
        Some(Shown {
            chunk,
            offset: extent.offset,
            start: start as usize,
            len: extent.len as usize,
            bytes,
        })
    }

    /// How far `bytes`, which stand at `here`, agree with what stands at `known`.
    pub(super) fn forward(&mut self, bytes: &[u8], known: Known, here: Place) -> Vec<Grown> {
        let mut grown = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let at = known.after(done as u64);
            let Some(shown) = self.show(at, here.after(done as u64)) else {
                break;
            };
            let first = shown.start + (at.offset() - shown.offset) as usize;
            let known = &shown.bytes[first..shown.start + shown.len];
            let same = common_prefix(known, &bytes[done..]);
            if same > 0 {
                grown.push(Grown {
                    chunk: shown.chunk,
                    start: first as u32,
                    len: same,
                });
            }
            done += same;
            if same < known.len() {
                break;
            }
        }
        worthwhile(grown)
    }

    /// How far `bytes`, which end at `here`, agree from their end with what ends at `known`; in the order of the bytes.
    pub(super) fn backward(&mut self, bytes: &[u8], known: Known, here: Place) -> Vec<Grown> {
        let mut grown = Vec::new();
        let mut left = bytes.len();
        while left > 0 {
            let done = (bytes.len() - left) as u64;
            // One byte back: the extent that ends here is wanted.
            if known.offset() <= done {
                break;
            }
            let last = known.before(done + 1);
            let Some(shown) = self.show(last, here.before(done + 1)) else {
                break;
            };
            let end = shown.start + (last.offset() + 1 - shown.offset) as usize;
            let known = &shown.bytes[shown.start..end];
            let same = common_suffix(known, &bytes[..left]);
            if same > 0 {
                grown.push(Grown {
                    chunk: shown.chunk,
                    start: (end - same) as u32,
                    len: same,
                });
            }
            left -= same;
            if same < known.len() {
                break;
            }
        }
        grown.reverse();
        worthwhile(grown)
    }
}

/// Bytes compared at once before the place of a difference is looked for.
const STRIDE: usize = 256;

/// Number of bytes at their start that `a` and `b` have in common.
fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let strides = a
        .chunks_exact(STRIDE)
        .zip(b.chunks_exact(STRIDE))
        .take_while(|(a, b)| a == b)
        .count();
    let same = strides * STRIDE;
    same + a[same..]
        .iter()
        .zip(&b[same..])
        .take_while(|(a, b)| a == b)
        .count()
}

/// Number of bytes at their end that `a` and `b` have in common.
fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let strides = a
        .rchunks_exact(STRIDE)
        .zip(b.rchunks_exact(STRIDE))
        .take_while(|(a, b)| a == b)
        .count();
    let same = strides * STRIDE;
    let (a, b) = (&a[..a.len() - same], &b[..b.len() - same]);
    same + a
        .iter()
        .rev()
        .zip(b.iter().rev())
        .take_while(|(a, b)| a == b)
        .count()
}
