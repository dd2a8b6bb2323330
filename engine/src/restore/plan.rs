//! What a restore must read and where each chunk goes: chunks in the order in which the packs hold them, read in long ranges.

use std::{collections::HashMap, ops::Range};

use podsnap_format::{
    FRAME_HEADER_LEN,
    manifest::{Chunk, Extent, Segment},
};

/// Unneeded bytes between two frames that are read along rather than paid for with another request.
const MAX_GAP: u64 = 128 << 10;

/// A range of a chunk and where in the target it belongs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placement {
    /// Number of the section among the planned ones.
    pub(crate) target: u32,
    /// First byte in the section.
    pub(crate) offset: u64,
    /// First byte in the chunk.
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// A chunk and everywhere it belongs.
#[derive(Debug)]
pub(crate) struct PlannedChunk {
    pub(crate) chunk: Chunk,
    pub(crate) placements: Vec<Placement>,
}

impl PlannedChunk {
    /// The bytes of the pack that hold its frame.
    pub(crate) fn frame(&self) -> Range<u64> {
        let location = &self.chunk.location;
        location.offset..location.offset + FRAME_HEADER_LEN as u64 + u64::from(location.encoded_len)
    }
}

/// One read from a pack and the chunks in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedRead {
    pub(crate) pack: u32,
    pub(crate) range: Range<u64>,
    /// Chunks of the plan.
    pub(crate) chunks: Range<usize>,
}

/// Chunks and the reads that fetch them.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) chunks: Vec<PlannedChunk>,
    by_location: HashMap<(u32, u64), usize>,
}

impl Plan {
    /// Adds a section's extent map. Returns the bytes of its zero runs.
    pub(crate) fn add(&mut self, target: u32, segments: &[Segment]) -> u64 {
        let (mut offset, mut zeros) = (0, 0);
        for segment in segments {
            zeros += self.add_segment(target, offset, segment);
            offset += segment.len();
        }
        zeros
    }

    /// Adds a segment of a section's extent map that begins at `offset`. Returns the bytes of its zero runs.
    pub(crate) fn add_segment(&mut self, target: u32, mut offset: u64, segment: &Segment) -> u64 {
        let mut zeros = 0;
        for extent in &segment.extents {
            match *extent {
                Extent::Zero { len } => zeros += len,
                Extent::Chunk { chunk, start, len } => {
                    let number = self.number_of(&segment.chunks[chunk as usize]);
                    self.chunks[number].placements.push(Placement {
                        target,
                        offset,
                        start,
                        len,
                    });
                }
            }
            offset += extent.len();
        }
        zeros
    }

    fn number_of(&mut self, chunk: &Chunk) -> usize {
        let next = self.chunks.len();
        let place = (chunk.location.pack, chunk.location.offset);
        let number = *self.by_location.entry(place).or_insert(next);
        // Only a made-up extent map has two chunks in one place. Each is then checked for itself: at most one of them is there.
        if number != next && self.chunks[number].chunk == *chunk {
            return number;
        }
        self.chunks.push(PlannedChunk {
            chunk: *chunk,
            placements: Vec::with_capacity(1),
        });
        next
    }

    /// Keeps a random share of the chunks, between 0 and 1.
    pub(crate) fn sample(&mut self, share: f64) {
        // Ids are random, but not to whoever damaged the store on purpose: so is the seed.
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        self.chunks.retain(|planned| {
            let id = u64::from_le_bytes(planned.chunk.id.prefix()) ^ seed;
            (id as f64) < share * u64::MAX as f64
        });
        self.by_location.clear();
    }

    /// Puts the chunks into the order of the packs and groups them into reads of some `read_len` bytes.
    pub(crate) fn into_reads(mut self, read_len: u64) -> (Vec<PlannedChunk>, Vec<PlannedRead>) {
        self.chunks
            .sort_unstable_by_key(|c| (c.chunk.location.pack, c.chunk.location.offset));
        let mut reads: Vec<PlannedRead> = Vec::new();
        for (number, planned) in self.chunks.iter().enumerate() {
            let (pack, frame) = (planned.chunk.location.pack, planned.frame());
            match reads.last_mut() {
                Some(read)
                    if read.pack == pack
                        && frame.start <= read.range.end + MAX_GAP
                        && frame.end <= read.range.start + read_len.max(1) =>
                {
                    read.range.end = read.range.end.max(frame.end);
                    read.chunks.end = number + 1;
                }
                _ => reads.push(PlannedRead {
                    pack,
                    range: frame,
                    chunks: number..number + 1,
                }),
            }
        }
        (self.chunks, reads)
    }
}
