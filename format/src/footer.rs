//! The footer: the last 80 bytes of every object. It says where the trailer (the index of a pack, the directory of
//! the others) lies and what it hashes to, so that an object can be read from its end, and one that was cut short is
//! noticed. What the trailer holds is the business of [`crate::pack`] and [`crate::manifest`].

use crate::FormatError;
use crate::header::{HEADER_LEN, Kind, VERSION};

/// Length of the footer, in bytes.
pub const FOOTER_LEN: usize = 80;

/// Longest trailer, in bytes: what a reader may have to hold in memory at once.
pub const MAX_TRAILER_LEN: u64 = 64 << 20;

/// The last bytes of every object: the header's magic, backwards.
pub const FOOTER_MAGIC: [u8; 8] = [0x0a, 0x1a, 0x0a, 0x0d, b'N', b'S', b'P', 0x89];

// Where each field begins: the end of the one before it.
const TRAILER_OFFSET_AT: usize = 0;
const TRAILER_LEN_AT: usize = TRAILER_OFFSET_AT + 8;
const TOTAL_LEN_AT: usize = TRAILER_LEN_AT + 8;
const HASH_AT: usize = TOTAL_LEN_AT + 8;
const FRAMES_END_AT: usize = HASH_AT + 32;
const VERSION_AT: usize = FRAMES_END_AT + 8;
const KIND_AT: usize = VERSION_AT + 2;
const CRC_AT: usize = KIND_AT + 2;
const MAGIC_AT: usize = CRC_AT + 4;
const _: () = assert!(MAGIC_AT + FOOTER_MAGIC.len() == FOOTER_LEN);

const WHAT: &str = "footer";

/// The footer of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// What the object is.
    pub kind: Kind,
    /// Offset of the trailer within the object.
    pub trailer_offset: u64,
    /// Length of the trailer in bytes, at most [`MAX_TRAILER_LEN`].
    pub trailer_len: u64,
    /// Length of the whole object in bytes.
    pub total_len: u64,
    /// BLAKE3-256 of the trailer's bytes.
    pub trailer_hash: [u8; 32],
    /// Offset of the end of the frames, which begin at [`HEADER_LEN`]: of the index in a pack, of the first segment
    /// in an export, and [`HEADER_LEN`] in a manifest, which has no frames.
    pub frames_end: u64,
}

impl Footer {
    /// The footer of an object of `kind` whose `trailer` lies at `trailer_offset`.
    pub(crate) fn of(
        kind: Kind,
        frames_end: u64,
        trailer_offset: u64,
        trailer: &[u8],
    ) -> Result<Footer, FormatError> {
        let trailer_len = trailer.len() as u64;
        let footer = Footer {
            kind,
            trailer_offset,
            trailer_len,
            total_len: trailer_offset + trailer_len + FOOTER_LEN as u64,
            trailer_hash: *blake3::hash(trailer).as_bytes(),
            frames_end,
        };
        footer.check()?;
        Ok(footer)
    }

    /// The bytes of the footer.
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(TRAILER_OFFSET_AT, &self.trailer_offset.to_le_bytes());
        put(TRAILER_LEN_AT, &self.trailer_len.to_le_bytes());
        put(TOTAL_LEN_AT, &self.total_len.to_le_bytes());
        put(HASH_AT, &self.trailer_hash);
        put(FRAMES_END_AT, &self.frames_end.to_le_bytes());
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(KIND_AT, &(self.kind as u16).to_le_bytes());
        put(MAGIC_AT, &FOOTER_MAGIC);
        let crc = crc(&bytes);
        bytes[CRC_AT..MAGIC_AT].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the footer at the END of `tail`, the last bytes of an object; what precedes it is not looked at.
    ///
    /// Refuses, in this order: too few bytes, another magic, a wrong CRC (damage), another version, and fields that
    /// contradict each other. Whether the object is as long as [`total_len`](Footer::total_len) says is for the
    /// caller to check, who knows it.
    pub fn parse(tail: &[u8]) -> Result<Footer, FormatError> {
        let Some(bytes) = tail.last_chunk::<FOOTER_LEN>() else {
            let (needed, available) = (FOOTER_LEN as u64, tail.len() as u64);
            return Err(FormatError::Truncated {
                what: WHAT,
                offset: 0,
                needed,
                available,
            });
        };
        if bytes[MAGIC_AT..] != FOOTER_MAGIC {
            return Err(FormatError::Magic {
                what: WHAT,
                found: field(bytes, MAGIC_AT),
            });
        }
        let (expected, found) = (u32::from_le_bytes(field(bytes, CRC_AT)), crc(bytes));
        if expected != found {
            return Err(FormatError::Crc {
                what: WHAT,
                offset: 0,
                expected,
                found,
            });
        }
        let version = u16::from_le_bytes(field(bytes, VERSION_AT));
        if version != VERSION {
            return Err(FormatError::Version {
                what: WHAT,
                found: version,
            });
        }
        let kind_number = u16::from_le_bytes(field(bytes, KIND_AT));
        let kind = Kind::from_number(kind_number)
            .ok_or_else(|| bad("kind", KIND_AT, kind_number.into(), "a kind from 1 to 4"))?;
        let footer = Footer {
            kind,
            trailer_offset: u64::from_le_bytes(field(bytes, TRAILER_OFFSET_AT)),
            trailer_len: u64::from_le_bytes(field(bytes, TRAILER_LEN_AT)),
            total_len: u64::from_le_bytes(field(bytes, TOTAL_LEN_AT)),
            trailer_hash: field(bytes, HASH_AT),
            frames_end: u64::from_le_bytes(field(bytes, FRAMES_END_AT)),
        };
        footer.check()?;
        Ok(footer)
    }

    /// The trailer, out of the last bytes of the object: `None` if `tail` does not reach back far enough.
    pub fn trailer_in<'a>(&self, tail: &'a [u8]) -> Option<&'a [u8]> {
        let end = tail.len().checked_sub(FOOTER_LEN)?;
        let start = end.checked_sub(usize::try_from(self.trailer_len).ok()?)?;
        Some(&tail[start..end])
    }

    /// Whether `trailer` has the length and the hash that the footer states.
    pub(crate) fn check_trailer(
        &self,
        what: &'static str,
        trailer: &[u8],
    ) -> Result<(), FormatError> {
        let len = trailer.len() as u64;
        if len < self.trailer_len {
            let (needed, available) = (self.trailer_len, len);
            return Err(FormatError::Truncated {
                what,
                offset: 0,
                needed,
                available,
            });
        }
        if len > self.trailer_len {
            let (offset, count) = (self.trailer_len, len - self.trailer_len);
            return Err(FormatError::LeftOver {
                what,
                offset,
                count,
            });
        }
        match blake3::hash(trailer) == self.trailer_hash {
            true => Ok(()),
            false => Err(FormatError::Hash { what }),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.trailer_len > MAX_TRAILER_LEN {
            return Err(bad(
                "trailer length",
                TRAILER_LEN_AT,
                self.trailer_len,
                "at most 64 MiB",
            ));
        }
        let end = self
            .trailer_offset
            .checked_add(self.trailer_len + FOOTER_LEN as u64);
        if end != Some(self.total_len) {
            return Err(bad(
                "total length",
                TOTAL_LEN_AT,
                self.total_len,
                "the end of the trailer and the footer",
            ));
        }
        let frames_end_fits = match self.kind {
            Kind::Pack => {
                self.frames_end == self.trailer_offset && self.frames_end >= HEADER_LEN as u64
            }
            Kind::Export => (HEADER_LEN as u64..=self.trailer_offset).contains(&self.frames_end),
            Kind::Manifest | Kind::WorkingSet => {
                self.frames_end == HEADER_LEN as u64 && self.trailer_offset >= self.frames_end
            }
        };
        match frames_end_fits {
            true => Ok(()),
            false => Err(bad(
                "end of frames",
                FRAMES_END_AT,
                self.frames_end,
                "between header and trailer: at the trailer in a pack, at 192 in a manifest",
            )),
        }
    }
}

/// CRC-32 of everything but the CRC itself.
fn crc(bytes: &[u8; FOOTER_LEN]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC_AT]);
    hasher.update(&bytes[MAGIC_AT..]);
    hasher.finalize()
}

/// The `N` bytes at offset `at`.
fn field<const N: usize>(bytes: &[u8; FOOTER_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the slice is N bytes long")
}

fn bad(field: &'static str, offset: usize, found: u64, expected: &'static str) -> FormatError {
    FormatError::Field {
        what: WHAT,
        field,
        offset: offset as u64,
        found,
        expected,
    }
}
