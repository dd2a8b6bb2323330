//! A segment: the extent map of a piece of one section. It stands alone, so that the first page of a large section
//! needs one segment and not the whole map. Its columns are delta, run-length and varint coded.

use std::collections::BTreeMap;

use super::PackInfo;
use crate::codec::Codec;
use crate::frame::{FRAME_HEADER_LEN, check_lengths};
use crate::varint::{Reader, put_varint, put_zigzag};
use crate::{ChunkId, FormatError, HEADER_LEN, MAX_CHUNK_LEN};

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

    /// Reads a segment that maps `section_len` bytes; `packs` is the directory's pack table.
    ///
    /// Refuses whatever does not add up: unknown codecs, chunks beyond the end of their pack, extents beyond their
    /// chunk, another total length, bytes left over. Whether the bytes hash to what the directory says is not
    /// checked: see [`SegmentInfo::open`](super::SegmentInfo::open).
    pub fn parse(
        bytes: &[u8],
        section_len: u64,
        packs: &[PackInfo],
    ) -> Result<Segment, FormatError> {
        let mut reader = Reader::new(WHAT, bytes);
        let mut chunks = parse_chunks(&mut reader)?;
        parse_codecs(&mut reader, &mut chunks)?;
        parse_packs(&mut reader, &mut chunks, packs)?;
        parse_offsets(&mut reader, &mut chunks, packs)?;
        let extents = parse_extents(&mut reader, &chunks, section_len)?;
        reader.finish()?;
        Ok(Segment { chunks, extents })
    }
}

/// Reads the columns of ids and lengths; codec and pack stay to be filled in.
fn parse_chunks(reader: &mut Reader<'_>) -> Result<Vec<Chunk>, FormatError> {
    let at = reader.position();
    // An id and two varints each; the other columns are run-length coded.
    let count = reader.count("chunk count", 32 + 1 + 1)?;
    if count > MAX_SEGMENT_EXTENTS {
        return Err(reader.bad("chunk count", at, count as u64, "at most 2048"));
    }
    let ids = reader.take(count * 32)?;
    let mut chunks = Vec::with_capacity(count);
    for id in ids.chunks_exact(32) {
        let raw_len = reader.bounded("raw length", 1, MAX_CHUNK_LEN as u64, "1 to 4 MiB")? as u32;
        chunks.push(Chunk {
            id: ChunkId(id.try_into().expect("a piece of 32 bytes")),
            raw_len,
            codec: Codec::Raw,
            location: Location {
                pack: 0,
                offset: 0,
                encoded_len: 0,
            },
        });
    }
    for chunk in &mut chunks {
        let saving = reader.bounded(
            "saving",
            0,
            u64::from(chunk.raw_len) - 1,
            "less than the raw length",
        )?;
        chunk.location.encoded_len = chunk.raw_len - saving as u32;
    }
    Ok(chunks)
}

/// Reads the length of a run that begins at chunk `done` of `chunks`.
fn run_end(
    reader: &mut Reader<'_>,
    field: &'static str,
    done: usize,
    chunks: &[Chunk],
) -> Result<usize, FormatError> {
    let left = (chunks.len() - done) as u64;
    Ok(done + reader.bounded(field, 1, left, "1 to the number of chunks left")? as usize)
}

fn parse_codecs(reader: &mut Reader<'_>, chunks: &mut [Chunk]) -> Result<(), FormatError> {
    let mut done = 0;
    while done < chunks.len() {
        let at = reader.position();
        let tag = reader.u8()?;
        let codec = Codec::from_tag(tag)
            .ok_or_else(|| reader.bad("codec", at, tag.into(), "a codec of version 1"))?;
        let end = run_end(reader, "run of a codec", done, chunks)?;
        for chunk in &mut chunks[done..end] {
            chunk.codec = codec;
            check_lengths(codec, chunk.raw_len, chunk.location.encoded_len).map_err(|misfit| {
                reader.bad(misfit.field, at, misfit.found.into(), misfit.expected)
            })?;
        }
        done = end;
    }
    Ok(())
}

fn parse_packs(
    reader: &mut Reader<'_>,
    chunks: &mut [Chunk],
    packs: &[PackInfo],
) -> Result<(), FormatError> {
    let mut done = 0;
    while done < chunks.len() {
        let at = reader.position();
        let pack = reader.varint("pack")?;
        if pack >= packs.len() as u64 {
            return Err(reader.bad("pack", at, pack, "an index into the pack table"));
        }
        let end = run_end(reader, "run of a pack", done, chunks)?;
        for chunk in &mut chunks[done..end] {
            chunk.location.pack = pack as u32;
        }
        done = end;
    }
    Ok(())
}

fn parse_offsets(
    reader: &mut Reader<'_>,
    chunks: &mut [Chunk],
    packs: &[PackInfo],
) -> Result<(), FormatError> {
    let mut ends = BTreeMap::new();
    let mut left = chunks.len();
    // How many chunks continue before the next one with a step of its own.
    let mut continuing = None;
    for run in chunks.chunk_by_mut(|a, b| a.location.pack == b.location.pack) {
        let pack = run[0].location.pack;
        let pack_len = packs[pack as usize].length;
        let end = ends.entry(pack).or_insert(HEADER_LEN as u64);
        for Chunk { location, .. } in run {
            let at = reader.position();
            let run_left = match continuing {
                Some(run_left) => run_left,
                None => reader.bounded(
                    "run of offsets",
                    0,
                    left as u64,
                    "at most the number of chunks left",
                )?,
            };
            location.offset = if run_left > 0 {
                // A run that takes in the last chunk ends the column; after any other, a step follows.
                continuing = Some(run_left - 1);
                *end
            } else {
                continuing = None;
                let step = reader.zigzag("step of an offset")?;
                end.checked_add_signed(step)
                    .filter(|offset| *offset >= HEADER_LEN as u64)
                    .ok_or_else(|| {
                        reader.bad(
                            "step of an offset",
                            at,
                            step as u64,
                            "an offset after the header",
                        )
                    })?
            };
            left -= 1;
            *end = location
                .offset
                .checked_add(location.frame_len())
                .filter(|end| *end <= pack_len)
                .ok_or_else(|| {
                    reader.bad("offset", at, location.offset, "a frame within its pack")
                })?;
        }
    }
    Ok(())
}

fn parse_extents(
    reader: &mut Reader<'_>,
    chunks: &[Chunk],
    section_len: u64,
) -> Result<Vec<Extent>, FormatError> {
    let ops = reader.bounded(
        "operation count",
        0,
        MAX_SEGMENT_EXTENTS as u64,
        "at most 2048",
    )? as usize;
    let mut extents = Vec::with_capacity(chunks.len().max(ops));
    let mut mapped = 0u64;
    let mut next = 0usize;
    let mut previous = 0usize;
    for _ in 0..ops {
        let at = reader.position();
        let op = reader.varint("operation")?;
        let (n, kind) = (op >> 2, op & 3);
        let mut added = 0;
        if kind == FIRST_USES {
            if n == 0 || n > (chunks.len() - next) as u64 {
                return Err(reader.bad(
                    "first uses",
                    at,
                    n,
                    "1 to the number of chunks not yet used",
                ));
            }
            let end = next + n as usize;
            for (chunk, used) in (next as u32..).zip(&chunks[next..end]) {
                extents.push(Extent::Chunk {
                    chunk,
                    start: 0,
                    len: used.raw_len,
                });
                added += u64::from(used.raw_len);
            }
            (previous, next) = (end - 1, end);
        } else if kind == ZEROS {
            if n == 0 {
                return Err(reader.bad("zeros", at, n, "not 0 bytes"));
            }
            extents.push(Extent::Zero { len: n });
            added = n;
        } else {
            let step = reader.zigzag("step of a chunk index")?;
            let index = (previous as i64)
                .checked_add(step)
                .and_then(|index| usize::try_from(index).ok());
            let Some((index, chunk)) = index.and_then(|index| Some((index, chunks.get(index)?)))
            else {
                return Err(reader.bad(
                    "step of a chunk index",
                    at,
                    step as u64,
                    "the index of a chunk",
                ));
            };
            let (start, len) = if kind == WHOLE_CHUNK {
                if n != 0 {
                    return Err(reader.bad("whole chunk", at, n, "0 in the bits above the kind"));
                }
                (0, u64::from(chunk.raw_len))
            } else {
                (reader.varint("start of a range")?, n)
            };
            let raw_len = u64::from(chunk.raw_len);
            if len == 0 || start.checked_add(len).is_none_or(|end| end > raw_len) {
                return Err(reader.bad("range", at, start, "a range within its chunk, not empty"));
            }
            extents.push(Extent::Chunk {
                chunk: index as u32,
                start: start as u32,
                len: len as u32,
            });
            added = len;
            (previous, next) = (index, next.max(index + 1));
        }
        if extents.len() > MAX_SEGMENT_EXTENTS {
            return Err(reader.bad("extents", at, extents.len() as u64, "at most 2048"));
        }
        mapped = mapped
            .checked_add(added)
            .filter(|mapped| *mapped <= section_len)
            .ok_or_else(|| {
                reader.bad(
                    "extents",
                    at,
                    added,
                    "to map no more than the segment's length",
                )
            })?;
    }
    match mapped == section_len {
        true => Ok(extents),
        false => Err(reader.bad(
            "extents",
            reader.position(),
            mapped,
            "to map the segment's whole length",
        )),
    }
}
