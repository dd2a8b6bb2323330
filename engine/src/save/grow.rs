//! Growing duplicates past the borders of their chunks.
//!
//! Content-defined cuts meet again only at the first border inside a duplicate, so the chunks at its two ends are stored
//! though most of their bytes are known. Here the known neighbours of a duplicate are compared byte by byte with the bytes beside it;
//! what agrees becomes a range inside the neighbours' chunks, and only the rest becomes a chunk.

use std::sync::Arc;

use podsnap_format::Key;

use super::{
    index::{Place, SaveIndex},
    proof::Proofs,
};
use crate::base::{Content, PlacedExtent};

/// Fewest bytes worth an extent of their own: a restore decodes one more chunk for each.
const MIN_GROWTH: usize = 1024;

/// A range inside a known chunk that equals bytes of the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Grown {
    pub(super) chunk: u32,
    pub(super) start: u32,
    pub(super) len: usize,
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

/// An extent of this save whose chunk was proven.
struct Shown {
    chunk: u32,
    /// Where the extent's bytes begin in the chunk.
    start: usize,
    bytes: Arc<Vec<u8>>,
}

/// Proves the chunk under `extent`.
fn show(
    index: &SaveIndex,
    extent: &PlacedExtent,
    proofs: &mut Proofs,
    key: Option<&Key>,
) -> Option<Shown> {
    let Content::Chunk { chunk, start } = extent.content else {
        return None;
    };
    let known = index.chunks[chunk as usize];
    let source = index.sections[known.whole_at.section as usize]
        .source
        .as_deref()?;
    let bytes = proofs.chunk(&known.id, known.raw_len, source, known.whole_at.offset, key)?;
    Some(Shown {
        chunk,
        start: start as usize,
        bytes,
    })
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

/// How far `bytes`, which stand at `here`, agree with what follows `known_end` in this save.
pub(super) fn forward(
    index: &SaveIndex,
    bytes: &[u8],
    known_end: Place,
    here: Place,
    proofs: &mut Proofs,
    key: Option<&Key>,
) -> Vec<Grown> {
    let mut grown = Vec::new();
    let mut done = 0;
    while done < bytes.len() && known_end != here {
        let at = known_end.offset + done as u64;
        let Some(extent) = index.sections[known_end.section as usize].covering(at) else {
            break;
        };
        let Some(shown) = show(index, &extent, proofs, key) else {
            break;
        };
        let first = shown.start + (at - extent.offset) as usize;
        let known = &shown.bytes[first..shown.start + extent.len as usize];
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

/// How far `bytes` agree, from their end, with what precedes `known_start` in this save; in the order of the bytes.
pub(super) fn backward(
    index: &SaveIndex,
    bytes: &[u8],
    known_start: Place,
    proofs: &mut Proofs,
    key: Option<&Key>,
) -> Vec<Grown> {
    let mut grown = Vec::new();
    let mut left = bytes.len();
    let mut at = known_start.offset;
    while left > 0 && at > 0 {
        let Some(extent) = index.sections[known_start.section as usize].covering(at - 1) else {
            break;
        };
        let Some(shown) = show(index, &extent, proofs, key) else {
            break;
        };
        let end = shown.start + (at - extent.offset) as usize;
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
        at -= same as u64;
        if same < known.len() {
            break;
        }
    }
    grown.reverse();
    worthwhile(grown)
}
