//! A segment: the extent map of a piece of one section. It stands alone, so that the first page of a large section
//! needs one segment and not the whole map. Here are its parts and how to find one; the bytes are in `encode` and
//! `parse`.

mod encode;
mod parse;

use crate::ChunkId;
use crate::codec::Codec;
use crate::frame::FRAME_HEADER_LEN;

/// Most extents, and most chunks, in a segment.
pub const MAX_SEGMENT_EXTENTS: usize = 2048;

/// Longest segment in bytes. None of [`MAX_SEGMENT_EXTENTS`] extents comes near.
pub const MAX_SEGMENT_LEN: u64 = 256 << 10;

pub(super) const WHAT: &str = "segment";

/// Where a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// Index into the directory's pack table.
    pub pack: u32,
    /// Offset of the frame in the pack.
    pub offset: u64,
    /// Length of the frame's payload in bytes.
    pub encoded_len: u32,
}

impl Location {
    /// Length of the frame in bytes.
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.encoded_len)
    }
}

/// A chunk that a segment refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Its id.
    pub id: ChunkId,
    /// Its length in bytes.
    pub raw_len: u32,
    /// How it is encoded.
    pub codec: Codec,
    /// Where it is stored.
    pub location: Location,
}

/// A run of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Zeros.
    Zero {
        /// How many bytes.
        len: u64,
    },
    /// A range of a chunk.
    Chunk {
        /// Index into the segment's chunks.
        chunk: u32,
        /// Where the range begins in the chunk.
        start: u32,
        /// Its length in bytes.
        len: u32,
    },
}

impl Extent {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match *self {
            Extent::Zero { len } => len,
            Extent::Chunk { len, .. } => len.into(),
        }
    }

    /// Whether it is of no length, which no extent of a valid segment is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The extent map of a piece of a section.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// The chunks that the extents refer to, each once. Smallest when ordered by first use.
    pub chunks: Vec<Chunk>,
    /// The extents, one behind the other.
    pub extents: Vec<Extent>,
}

// Kinds of extent operations, in the low two bits of their varint.
const FIRST_USES: u64 = 0;
const ZEROS: u64 = 1;
const WHOLE_CHUNK: u64 = 2;
const CHUNK_RANGE: u64 = 3;

impl Segment {
    /// How many bytes of the section the extents map.
    pub fn len(&self) -> u64 {
        self.extents
            .iter()
            .fold(0, |sum, extent| sum.saturating_add(extent.len()))
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// The extent that holds the byte at `offset` of the segment's piece: its index, and where it begins in the piece.
    pub fn extent_at(&self, offset: u64) -> Option<(usize, u64)> {
        let mut start = 0;
        self.extents.iter().enumerate().find_map(|(i, extent)| {
            let found = offset - start < extent.len();
            if !found {
                start += extent.len();
            }
            found.then_some((i, start))
        })
    }
}
