//! The working set of a snapshot: which pages of its sections a restore touched, in the order in which it touched them
//! first. It is a hint for the next restore and nothing more; it names the snapshot's digest, so that one that was
//! learned from another snapshot of the same id is noticed. How touches come to be known, and what is made of them, is
//! not this module's business.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use crate::manifest::{Directory, MAX_SECTIONS};
use crate::varint::{Reader, put_varint, put_zigzag};
use crate::{Digest, Footer, FormatError, HEADER_LEN, Header, Kind};

/// Most ranges in a working set.
pub const MAX_TOUCHES: usize = 1 << 18;

/// Longest trailer of a working set, in bytes: what a reader may have to hold.
pub const MAX_WORKING_SET_LEN: u64 = 16 << 20;

/// Lengths of pages, as powers of two.
const PAGE_SHIFTS: Range<u8> = 12..48;

/// End of the offsets of a section.
const SECTION_LEN_END: u64 = 1 << 62;

/// Latest time of a touch, in microseconds.
const MAX_MICROS: u64 = 1 << 53;

/// Least bytes that a range takes.
const LEAST_TOUCH_LEN: usize = 1 + 1 + 1 + 1;

const WHAT: &str = "working set";

/// A range that was touched as a whole, or page by page one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// Number of the section in the snapshot's directory.
    pub section: u32,
    /// Its bytes in the section: whole pages, of which the last may reach beyond the section's end.
    pub range: Range<u64>,
    /// When its first page was touched, counted from the start of the recording; whole microseconds.
    pub at: Duration,
}

/// What a restore touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    /// The header: that of the snapshot's manifest, but for the kind.
    pub header: Header,
    /// The digest of the snapshot.
    pub digest: Digest,
    /// Length of a page in bytes: a power of two, at least 4096. Nothing smaller is told apart.
    pub page_len: u64,
    /// The ranges, in the order of their times. Those of a section do not overlap.
    pub touches: Vec<Touch>,
}

impl WorkingSet {
    /// An empty one of the snapshot whose manifest has this directory.
    pub fn new(directory: &Directory, page_len: u64) -> WorkingSet {
        WorkingSet {
            header: Header {
                kind: Kind::WorkingSet,
                ..directory.header.clone()
            },
            digest: directory.digest,
            page_len,
            touches: Vec::new(),
        }
    }

    /// Reads the working set that `footer` was found behind: `bytes` must be exactly the trailer that it describes.
    ///
    /// Refuses a wrong hash (damage) first, then whatever does not add up. Whether it is of the snapshot at hand is for
    /// [`is_of`](WorkingSet::is_of) to say.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<WorkingSet, FormatError> {
        let wrong_kind = |found| FormatError::WrongKind {
            what: WHAT,
            expected: "working-set",
            found,
        };
        if footer.kind != Kind::WorkingSet {
            return Err(wrong_kind(footer.kind));
        }
        footer.check_trailer(WHAT, bytes)?;
        let mut reader = Reader::new(WHAT, bytes);
        if footer.trailer_offset != HEADER_LEN as u64 {
            let expected = "192: nothing is between header and trailer";
            return Err(reader.bad("trailer offset", 0, footer.trailer_offset, expected));
        }
        let header = Header::parse(reader.take(HEADER_LEN)?)?;
        if header.kind != Kind::WorkingSet {
            return Err(wrong_kind(header.kind));
        }
        let digest = Digest(reader.array()?);
        let at = reader.position();
        let shift = reader.u8()?;
        if !PAGE_SHIFTS.contains(&shift) {
            return Err(reader.bad("page length", at, shift.into(), "an exponent from 12 to 47"));
        }
        let at = reader.position();
        let count = reader.count("range count", LEAST_TOUCH_LEN)?;
        if count > MAX_TOUCHES {
            return Err(reader.bad("range count", at, count as u64, "at most 262,144"));
        }
        let touches = parse_touches(&mut reader, count, shift)?;
        reader.finish()?;
        Ok(WorkingSet {
            header,
            digest,
            page_len: 1 << shift,
            touches,
        })
    }

    /// Whether it was learned from the snapshot whose manifest has this directory, and all its ranges are of it.
    pub fn is_of(&self, directory: &Directory) -> bool {
        let within = |touch: &Touch| {
            let section = directory.sections.get(touch.section as usize);
            section.is_some_and(|section| {
                touch.range.start < section.length
                    && touch.range.end - self.page_len < section.length
            })
        };
        self.header.snapshot == directory.header.snapshot
            && self.digest == directory.digest
            && self.touches.iter().all(within)
    }

    /// The bytes of the object. An error if there is anything that a reader would refuse: it is read back before it is handed out.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let unwritable = |field, found, expected| FormatError::Unwritable {
            what: WHAT,
            field,
            found,
            expected,
        };
        if !self.page_len.is_power_of_two() {
            return Err(unwritable("page length", self.page_len, "a power of two"));
        }
        let shift = self.page_len.trailing_zeros();
        let header = self.header.encode();
        let mut trailer = header.to_vec();
        trailer.extend_from_slice(&self.digest.0);
        trailer.push(shift as u8);
        put_varint(&mut trailer, self.touches.len() as u64);
        let mut ends = HashMap::new();
        let mut last_micros = 0;
        for touch in &self.touches {
            let (start, end) = (touch.range.start, touch.range.end);
            if (start | end) & (self.page_len - 1) != 0 || end <= start {
                return Err(unwritable("range", start, "whole pages, at least one"));
            }
            let micros = u64::try_from(touch.at.as_micros()).unwrap_or(u64::MAX);
            if micros < last_micros {
                return Err(unwritable("time", micros, "no earlier than the one before"));
            }
            let end_before: &mut u64 = ends.entry(touch.section).or_default();
            put_varint(&mut trailer, touch.section.into());
            put_zigzag(
                &mut trailer,
                (start >> shift) as i64 - (*end_before >> shift) as i64,
            );
            put_varint(&mut trailer, (end - start) >> shift);
            put_varint(&mut trailer, micros - last_micros);
            *end_before = end;
            last_micros = micros;
        }
        let at = HEADER_LEN as u64;
        let footer = Footer::of(Kind::WorkingSet, at, at, &trailer)?;
        if WorkingSet::parse(&footer, &trailer)? != *self {
            return Err(unwritable("time", last_micros, "whole microseconds"));
        }
        Ok([&header[..], &trailer, &footer.encode()].concat())
    }
}

fn parse_touches(
    reader: &mut Reader<'_>,
    count: usize,
    shift: u8,
) -> Result<Vec<Touch>, FormatError> {
    let pages_end = SECTION_LEN_END >> shift;
    let mut touches = Vec::with_capacity(count);
    let mut ends: HashMap<u32, u64> = HashMap::new();
    let mut micros = 0;
    for _ in 0..count {
        let last = MAX_SECTIONS as u64 - 1;
        let section = reader.bounded("section", 0, last, "less than 4,096")? as u32;
        let end_before = ends.entry(section).or_default();
        let at = reader.position();
        let distance = reader.zigzag("distance")?;
        let first = end_before
            .checked_add_signed(distance)
            .filter(|first| *first < pages_end);
        let Some(first) = first else {
            return Err(reader.bad("distance", at, distance as u64, "a page of the section"));
        };
        let pages = reader.bounded("pages", 1, pages_end - first, "1 to the section's end")?;
        let most = MAX_MICROS - micros;
        micros += reader.bounded("time", 0, most, "at most 2^53 microseconds in all")?;
        *end_before = first + pages;
        touches.push(Touch {
            section,
            range: first << shift..(first + pages) << shift,
            at: Duration::from_micros(micros),
        });
    }
    check_disjoint(reader, &touches)?;
    Ok(touches)
}

/// Refuses a section's ranges that overlap.
fn check_disjoint(reader: &Reader<'_>, touches: &[Touch]) -> Result<(), FormatError> {
    let mut sorted: Vec<(u32, u64, u64)> = touches
        .iter()
        .map(|touch| (touch.section, touch.range.start, touch.range.end))
        .collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        let ((section, _, end), (next_section, start, _)) = (pair[0], pair[1]);
        if section == next_section && start < end {
            let expected = "ranges that do not overlap";
            return Err(reader.bad("range", reader.position(), start, expected));
        }
    }
    Ok(())
}
