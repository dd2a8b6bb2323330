//! Reading a segment. Nothing in it is believed before it is compared with the bytes left, the pack table, or the
//! length that the directory states.

use std::collections::BTreeMap;

use super::{
    Chunk, Extent, FIRST_USES, Location, MAX_SEGMENT_EXTENTS, Segment, WHAT, WHOLE_CHUNK, ZEROS,
};
use crate::codec::Codec;
use crate::frame::check_lengths;
use crate::manifest::PackInfo;
use crate::varint::Reader;
use crate::{ChunkId, FormatError, HEADER_LEN, MAX_CHUNK_LEN};

impl Segment {
    /// Reads a segment that maps `section_len` bytes; `packs` is the directory's pack table.
    ///
    /// Refuses whatever does not add up: unknown codecs, chunks beyond the end of their pack, extents beyond their
    /// chunk, another total length, bytes left over. Whether the bytes hash to what the directory says is not
    /// checked: see [`SegmentInfo::open`](crate::SegmentInfo::open).
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
