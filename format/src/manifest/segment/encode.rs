//! Writing a segment: columns, delta, run-length and varint coded, after a check that a reader will accept it.

use std::collections::BTreeMap;

use super::{
    CHUNK_RANGE, Chunk, Extent, FIRST_USES, MAX_SEGMENT_EXTENTS, Segment, WHAT, WHOLE_CHUNK, ZEROS,
};
use crate::frame::check_lengths;
use crate::varint::{put_varint, put_zigzag};
use crate::{FormatError, HEADER_LEN};

impl Segment {
    /// The bytes of the segment; an error if no reader would accept them.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = Vec::with_capacity(32 + 42 * self.chunks.len() + 4 * self.extents.len());
        put_varint(&mut out, self.chunks.len() as u64);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.id.0);
        }
        for chunk in &self.chunks {
            put_varint(&mut out, chunk.raw_len.into());
        }
        for chunk in &self.chunks {
            put_varint(
                &mut out,
                (chunk.raw_len - chunk.location.encoded_len).into(),
            );
        }
        for run in self.chunks.chunk_by(|a, b| a.codec == b.codec) {
            out.push(run[0].codec.tag());
            put_varint(&mut out, run.len() as u64);
        }
        for run in self
            .chunks
            .chunk_by(|a, b| a.location.pack == b.location.pack)
        {
            put_varint(&mut out, run[0].location.pack.into());
            put_varint(&mut out, run.len() as u64);
        }
        self.encode_offsets(&mut out);
        self.encode_extents(&mut out);
        Ok(out)
    }

    fn encode_offsets(&self, out: &mut Vec<u8>) {
        let mut ends = BTreeMap::new();
        let mut continuing = 0;
        for run in self
            .chunks
            .chunk_by(|a, b| a.location.pack == b.location.pack)
        {
            let end = ends
                .entry(run[0].location.pack)
                .or_insert(HEADER_LEN as u64);
            for Chunk { location, .. } in run {
                if location.offset == *end {
                    continuing += 1;
                } else {
                    put_varint(out, continuing);
                    put_zigzag(out, location.offset as i64 - *end as i64);
                    continuing = 0;
                }
                *end = location.offset + location.frame_len();
            }
        }
        if continuing > 0 {
            put_varint(out, continuing);
        }
    }

    fn encode_extents(&self, out: &mut Vec<u8>) {
        let mut ops = Vec::with_capacity(4 * self.extents.len());
        let mut count = 0;
        let mut first_uses = 0;
        let mut next = 0;
        let mut previous = 0;
        for extent in &self.extents {
            let whole = match *extent {
                Extent::Chunk { chunk, start, len } => {
                    start == 0 && len == self.chunks[chunk as usize].raw_len
                }
                Extent::Zero { .. } => false,
            };
            if let Extent::Chunk { chunk, .. } = *extent
                && whole
                && chunk == next
            {
                first_uses += 1;
                (previous, next) = (chunk, chunk + 1);
                continue;
            }
            if first_uses > 0 {
                put_varint(&mut ops, first_uses << 2 | FIRST_USES);
                (count, first_uses) = (count + 1, 0);
            }
            count += 1;
            match *extent {
                Extent::Zero { len } => put_varint(&mut ops, len << 2 | ZEROS),
                Extent::Chunk { chunk, start, len } => {
                    let step = i64::from(chunk) - i64::from(previous);
                    if whole {
                        put_varint(&mut ops, WHOLE_CHUNK);
                        put_zigzag(&mut ops, step);
                    } else {
                        put_varint(&mut ops, u64::from(len) << 2 | CHUNK_RANGE);
                        put_zigzag(&mut ops, step);
                        put_varint(&mut ops, start.into());
                    }
                    (previous, next) = (chunk, next.max(chunk + 1));
                }
            }
        }
        if first_uses > 0 {
            put_varint(&mut ops, first_uses << 2 | FIRST_USES);
            count += 1;
        }
        put_varint(out, count);
        out.extend_from_slice(&ops);
    }

    /// Whether a reader would accept the segment, as far as this can be told without the pack table.
    fn check(&self) -> Result<(), FormatError> {
        let refuse = |field, found, expected| {
            Err(FormatError::Unwritable {
                what: WHAT,
                field,
                found,
                expected,
            })
        };
        if self.chunks.len() > MAX_SEGMENT_EXTENTS {
            return refuse("chunks", self.chunks.len() as u64, "at most 2048");
        }
        if self.extents.len() > MAX_SEGMENT_EXTENTS {
            return refuse("extents", self.extents.len() as u64, "at most 2048");
        }
        for Chunk {
            raw_len,
            codec,
            location,
            ..
        } in &self.chunks
        {
            if let Err(misfit) = check_lengths(*codec, *raw_len, location.encoded_len) {
                return refuse(misfit.field, misfit.found.into(), misfit.expected);
            }
            if location.offset < HEADER_LEN as u64 || location.offset > i64::MAX as u64 - (8 << 20)
            {
                return refuse(
                    "offset of a frame",
                    location.offset,
                    "between the header and 2^63",
                );
            }
        }
        let mut mapped = 0u64;
        for extent in &self.extents {
            mapped = match mapped.checked_add(extent.len()) {
                Some(mapped) if !extent.is_empty() && mapped < 1 << 62 => mapped,
                _ => {
                    return refuse(
                        "length of an extent",
                        extent.len(),
                        "not zero, and less than 2^62 together",
                    );
                }
            };
            if let Extent::Chunk { chunk, start, len } = *extent {
                let Some(raw_len) = self.chunks.get(chunk as usize).map(|chunk| chunk.raw_len)
                else {
                    return refuse(
                        "chunk of an extent",
                        chunk.into(),
                        "an index into the segment's chunks",
                    );
                };
                if start.checked_add(len).is_none_or(|end| end > raw_len) {
                    return refuse("start of a range", start.into(), "a range within its chunk");
                }
            }
        }
        Ok(())
    }
}
