//! The directory: what a snapshot consists of, down to its segments. Its hash is the snapshot's digest, as it holds
//! the hash of every segment, and each segment the ids of its chunks.

use std::collections::HashSet;

use super::{
    AddressRange, ChunkingParams, MAX_SECTION_NAME_LEN, MAX_SEGMENT_LEN, PackInfo, Role,
    SectionInfo, SegmentInfo, Shape,
};
use crate::header::PackName;
use crate::id::MAX_SNAPSHOT_ID_LEN;
use crate::varint::{Reader, put_text, put_varint};
use crate::{
    Digest, FOOTER_LEN, Footer, FormatError, HEADER_LEN, Header, Kind, MAX_CHUNK_LEN, SnapshotId,
};

/// Longest metadata, in bytes.
pub const MAX_METADATA_LEN: usize = 16 << 20;

/// Most packs that a snapshot may need.
pub const MAX_PACKS: usize = 1 << 16;

/// Most sections of a snapshot.
pub const MAX_SECTIONS: usize = 1 << 12;

/// Most address ranges, and most segments, of all sections together.
const MAX_PARTS: usize = 1 << 20;

/// Longest version of a pack, in bytes.
const MAX_PACK_VERSION_LEN: usize = 1024;

/// Longest section, in bytes, less one.
const SECTION_LEN_END: u64 = 1 << 62;

const CDC: u8 = 0;
const FIXED: u8 = 1;

const WHAT: &str = "directory";

/// What a snapshot consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The copy of the object's header.
    pub header: Header,
    /// JSON, which this crate does not look into.
    pub metadata: String,
    /// The packs that hold its chunks.
    pub packs: Vec<PackInfo>,
    /// Its sections.
    pub sections: Vec<SectionInfo>,
    /// The digest of the snapshot.
    pub digest: Digest,
}

/// The bytes of a directory. Whether they make sense is for [`Directory::parse`] to say.
pub(super) fn encode(
    header: &Header,
    metadata: &str,
    packs: &[PackInfo],
    sections: &[SectionInfo],
) -> Vec<u8> {
    let mut out = header.encode().to_vec();
    put_text(&mut out, metadata);
    put_varint(&mut out, packs.len() as u64);
    for pack in packs {
        put_text(&mut out, pack.snapshot.as_str());
        put_text(&mut out, &pack.name);
        put_text(&mut out, &pack.version);
        put_varint(&mut out, pack.length);
        out.extend_from_slice(&pack.crc32c.to_le_bytes());
    }
    put_varint(&mut out, sections.len() as u64);
    for section in sections {
        encode_section(&mut out, section);
    }
    out
}

fn encode_section(out: &mut Vec<u8>, section: &SectionInfo) {
    out.push(section.role as u8);
    out.push(section.shape as u8);
    put_text(out, &section.name);
    put_varint(out, section.length);
    put_varint(out, section.table_length);
    match section.chunking {
        ChunkingParams::Cdc { min, avg, max } => {
            out.push(CDC);
            [min, avg, max]
                .into_iter()
                .for_each(|len| put_varint(out, len.into()));
        }
        ChunkingParams::Fixed { size } => {
            out.push(FIXED);
            put_varint(out, size.into());
        }
    }
    put_varint(out, section.address_ranges.len() as u64);
    for range in &section.address_ranges {
        put_varint(out, range.start);
        put_varint(out, range.length);
        put_varint(out, range.section_offset);
    }
    put_varint(out, section.segments.len() as u64);
    for segment in &section.segments {
        put_varint(out, segment.section_len);
        put_varint(out, segment.object_len);
        out.extend_from_slice(&segment.hash);
    }
}

impl Directory {
    /// Reads the directory of a manifest or export that `footer` was found behind: `bytes` must be exactly the
    /// trailer that it describes.
    ///
    /// Refuses a wrong hash (damage) first, then whatever does not add up: segments that do not fill the object up to
    /// the directory, or not their section, names that cannot be names, ranges beyond their section.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<Directory, FormatError> {
        let wrong_kind = |found| FormatError::WrongKind {
            what: WHAT,
            expected: "manifest or export",
            found,
        };
        if !matches!(footer.kind, Kind::Manifest | Kind::Export) {
            return Err(wrong_kind(footer.kind));
        }
        footer.check_trailer(WHAT, bytes)?;
        let mut reader = Reader::new(WHAT, bytes);
        let header = Header::parse(reader.take(HEADER_LEN)?)?;
        if header.kind != footer.kind {
            return Err(wrong_kind(header.kind));
        }
        let metadata = reader.text("metadata", MAX_METADATA_LEN, "at most 16 MiB")?;
        let packs = parse_packs(&mut reader, &header, footer)?;
        let sections = parse_sections(&mut reader, footer)?;
        reader.finish()?;
        let digest = Digest(footer.trailer_hash);
        Ok(Directory {
            header,
            metadata: metadata.to_owned(),
            packs,
            sections,
            digest,
        })
    }

    /// The section of this role and name.
    pub fn section(&self, role: Role, name: &str) -> Option<&SectionInfo> {
        self.sections
            .iter()
            .find(|section| section.role == role && section.name == name)
    }
}

/// A count of at most `max` things, of at least `min_len` bytes each.
fn count(
    reader: &mut Reader<'_>,
    field: &'static str,
    min_len: usize,
    max: usize,
) -> Result<usize, FormatError> {
    let at = reader.position();
    let count = reader.count(field, min_len)?;
    match count <= max {
        true => Ok(count),
        false => Err(reader.bad(
            field,
            at,
            count as u64,
            "a count within the limits of version 1",
        )),
    }
}

fn parse_packs(
    reader: &mut Reader<'_>,
    header: &Header,
    footer: &Footer,
) -> Result<Vec<PackInfo>, FormatError> {
    let at = reader.position();
    let count = count(reader, "pack count", 1 + 1 + 1 + 1 + 1 + 4, MAX_PACKS)?;
    let export = header.kind == Kind::Export;
    if export && count != 1 {
        return Err(reader.bad("pack count", at, count as u64, "1, as this is an export"));
    }
    let mut packs = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    for _ in 0..count {
        let at = reader.position();
        let snapshot: SnapshotId = reader
            .text("snapshot id of a pack", MAX_SNAPSHOT_ID_LEN, "at most 120")?
            .parse()?;
        let name = reader.text("name of a pack", 64, "at most 64")?;
        let version = reader.text("version of a pack", MAX_PACK_VERSION_LEN, "at most 1024")?;
        let length_at = reader.position();
        let length = reader.varint("length of a pack")?;
        let crc32c = reader.u32()?;
        if export {
            if !name.is_empty() || snapshot != header.snapshot {
                return Err(reader.bad(
                    "pack",
                    at,
                    0,
                    "the export itself: its own snapshot and no name",
                ));
            }
            if length != footer.frames_end {
                return Err(reader.bad(
                    "length of a pack",
                    length_at,
                    length,
                    "the end of the export's frames",
                ));
            }
        } else {
            name.parse::<PackName>()?;
            if length < (HEADER_LEN + FOOTER_LEN) as u64 || length > i64::MAX as u64 {
                return Err(reader.bad(
                    "length of a pack",
                    length_at,
                    length,
                    "at least 272, less than 2^63",
                ));
            }
        }
        let pack = PackInfo {
            snapshot,
            name: name.to_owned(),
            version: version.to_owned(),
            length,
            crc32c,
        };
        if !seen.insert((pack.snapshot.clone(), pack.name.clone())) {
            return Err(reader.bad("pack", at, packs.len() as u64, "a pack not named before"));
        }
        packs.push(pack);
    }
    Ok(packs)
}

fn parse_sections(
    reader: &mut Reader<'_>,
    footer: &Footer,
) -> Result<Vec<SectionInfo>, FormatError> {
    let count = count(
        reader,
        "section count",
        1 + 1 + 1 + 1 + 1 + 2 + 1 + 1,
        MAX_SECTIONS,
    )?;
    let mut sections = Vec::with_capacity(count);
    let mut seen = HashSet::with_capacity(count);
    let mut object_offset = footer.frames_end;
    let mut parts_left = MAX_PARTS;
    for _ in 0..count {
        let at = reader.position();
        let section = parse_section(reader, &mut object_offset, &mut parts_left)?;
        if !seen.insert((section.role, section.name.clone())) {
            return Err(reader.bad(
                "section",
                at,
                sections.len() as u64,
                "a role and name not used before",
            ));
        }
        sections.push(section);
    }
    match object_offset == footer.trailer_offset {
        true => Ok(sections),
        false => {
            let at = reader.position();
            Err(reader.bad(
                "end of the segments",
                at,
                object_offset,
                "the offset of the directory",
            ))
        }
    }
}

fn parse_section(
    reader: &mut Reader<'_>,
    object_offset: &mut u64,
    parts_left: &mut usize,
) -> Result<SectionInfo, FormatError> {
    let at = reader.position();
    let role = reader.u8()?;
    let role = Role::ALL
        .into_iter()
        .find(|known| *known as u8 == role)
        .ok_or_else(|| reader.bad("role", at, role.into(), "1 to 6"))?;
    let shape = match reader.u8()? {
        1 => Shape::Blob,
        2 => Shape::Tree,
        other => return Err(reader.bad("shape", at + 1, other.into(), "1 or 2")),
    };
    let name = reader.text("name of a section", MAX_SECTION_NAME_LEN, "at most 255")?;
    if name.chars().any(char::is_control) {
        return Err(FormatError::text(
            WHAT,
            "name of a section",
            name,
            "no control characters",
        ));
    }
    let length = reader.bounded(
        "length of a section",
        0,
        SECTION_LEN_END - 1,
        "less than 2^62",
    )?;
    let longest_table = if shape == Shape::Tree { length } else { 0 };
    let table_length = reader.bounded(
        "table length",
        0,
        longest_table,
        "0 for a blob, at most its length for a tree",
    )?;
    let chunking = parse_chunking(reader)?;
    let address_ranges = parse_address_ranges(reader, length, parts_left)?;

    let segments_at = reader.position();
    let count = count(reader, "segment count", 1 + 1 + 32, *parts_left)?;
    *parts_left -= count;
    let mut segments = Vec::with_capacity(count);
    let mut section_offset = 0;
    for _ in 0..count {
        let left = length - section_offset;
        let section_len = reader.bounded(
            "section length of a segment",
            1,
            left,
            "1 to what is left to map",
        )?;
        let object_len = reader.bounded(
            "object length of a segment",
            1,
            MAX_SEGMENT_LEN,
            "1 to 256 KiB",
        )?;
        let hash = reader.array()?;
        segments.push(SegmentInfo {
            section_offset,
            section_len,
            object_offset: *object_offset,
            object_len,
            hash,
        });
        section_offset += section_len;
        *object_offset = object_offset.saturating_add(object_len);
    }
    if section_offset != length {
        return Err(reader.bad(
            "segments",
            segments_at,
            section_offset,
            "to map the whole section",
        ));
    }
    let name = name.to_owned();
    Ok(SectionInfo {
        role,
        name,
        shape,
        length,
        table_length,
        chunking,
        address_ranges,
        segments,
    })
}

fn parse_chunking(reader: &mut Reader<'_>) -> Result<ChunkingParams, FormatError> {
    let at = reader.position();
    let kind = reader.u8()?;
    let mut len = |min: u32| {
        let expected = "in order, and at most 4 MiB";
        Ok::<u32, FormatError>(reader.bounded(
            "chunk length",
            min.into(),
            MAX_CHUNK_LEN as u64,
            expected,
        )? as u32)
    };
    match kind {
        CDC => {
            let min = len(1)?;
            let avg = len(min)?;
            let max = len(avg)?;
            Ok(ChunkingParams::Cdc { min, avg, max })
        }
        FIXED => Ok(ChunkingParams::Fixed { size: len(1)? }),
        other => Err(reader.bad("chunking", at, other.into(), "0 or 1")),
    }
}

fn parse_address_ranges(
    reader: &mut Reader<'_>,
    section_len: u64,
    parts_left: &mut usize,
) -> Result<Vec<AddressRange>, FormatError> {
    let count = count(reader, "address range count", 1 + 1 + 1, *parts_left)?;
    *parts_left -= count;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let at = reader.position();
        let start = reader.varint("start of an address range")?;
        let length = reader.bounded(
            "length of an address range",
            1,
            section_len,
            "1 to the section's length",
        )?;
        let section_offset = reader.bounded(
            "offset of an address range",
            0,
            section_len - length,
            "a range within the section",
        )?;
        // The last address may be 2^64 - 1.
        if start.checked_add(length - 1).is_none() {
            return Err(reader.bad("address range", at, start, "to end within 64 bits"));
        }
        ranges.push(AddressRange {
            start,
            length,
            section_offset,
        });
    }
    Ok(ranges)
}
