//! Where a section is cut into chunks: zero runs are taken out first, the rest is cut by content or into fixed pieces.
//!
//! This module knows bytes and lengths only. It does not hash, does not look anything up and does no I/O; the
//! rules, the parameters and the gear table are fixed in SPEC.md ("Chunking"): readers need none of it, but changing them changes
//! what deduplicates against existing snapshots.

mod fastcdc;
pub(crate) mod zeros;

pub use fastcdc::{FastCdc, GEAR};
pub use podsnap_format::manifest::ChunkingParams;
pub use zeros::{Run, ZERO_BLOCK, runs};

/// Length of a section, in bytes, from which on it is cut into chunks of 256 KiB on average by default; shorter ones into 64 KiB.
pub const LARGE_SECTION: u64 = 16 << 30;

/// Bytes of a section that are read and cut as one task, from multiples of this length on: runs and chunks end there. Smaller than the
/// 64 MiB of the first design: what was read is still in the cache when it is cut and encoded, all cores end together, and a
/// save needs little memory. A duplicate that crosses a border is grown over it, so little is lost there.
pub const SEGMENT_LEN: usize = 4 << 20;

/// Content-defined chunking with an average of some `2^avg_log2` bytes: at least half of it, at most four times it.
pub fn content_defined(avg_log2: u32) -> ChunkingParams {
    ChunkingParams::Cdc {
        min: 1 << (avg_log2 - 1),
        avg: 1 << avg_log2,
        max: 1 << (avg_log2 + 2),
    }
}

/// Fixed chunks of `len` bytes, cut at multiples of `len` from the start of the section.
pub fn fixed(len: u32) -> ChunkingParams {
    ChunkingParams::Fixed { size: len }
}

/// The default for a section of `len` bytes (`None` if it is not known yet, as for a pipe).
pub fn default_for(len: Option<u64>) -> ChunkingParams {
    content_defined(if len.is_some_and(|len| len >= LARGE_SECTION) {
        18
    } else {
        16
    })
}

/// Cuts runs of non-zero bytes by one section's parameters.
#[derive(Debug, Clone)]
pub enum Chunker {
    /// Cuts by content.
    ContentDefined(FastCdc),
    /// Cuts at multiples of this length, in bytes, from the start of the section.
    Fixed(u32),
}

impl Chunker {
    /// The chunker for `params`; `None` if the parameters are outside what this version can cut.
    pub fn new(params: &ChunkingParams) -> Option<Self> {
        match *params {
            ChunkingParams::Cdc { min, avg, max } => {
                FastCdc::new(min, avg, max).map(Self::ContentDefined)
            }
            ChunkingParams::Fixed { size } => (512..=podsnap_format::MAX_CHUNK_LEN as u32)
                .contains(&size)
                .then_some(Self::Fixed(size)),
        }
    }

    /// Length of the first chunk of `bytes`, which start at `offset` in the section; at least 1 if there are bytes.
    pub fn cut(&self, bytes: &[u8], offset: u64) -> usize {
        match self {
            Self::ContentDefined(cdc) => cdc.cut(bytes),
            Self::Fixed(len) => {
                let to_border = u64::from(*len) - offset % u64::from(*len);
                bytes.len().min(to_border as usize)
            }
        }
    }
}
