//! The header: the first 192 bytes of every object. It says which format, version and features the object needs,
//! what kind it is and where it belongs, so that an object of another snapshot, attempt or number in its place is
//! noticed. What follows the header depends on the kind and is the business of other modules.

use std::fmt;
use std::str::FromStr;

use crate::id::MAX_SNAPSHOT_ID_LEN;
use crate::{FormatError, SnapshotId};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 192;

/// The format version that this code writes, and the only one it reads.
pub const VERSION: u16 = 1;

/// The first bytes of every object: not ASCII, so that no text file has them; the line ends catch text-mode transfers.
pub const HEADER_MAGIC: [u8; 8] = [0x89, b'P', b'S', b'N', 0x0d, 0x0a, 0x1a, 0x0a];

// Where each field begins: the end of the one before it.
const VERSION_AT: usize = HEADER_MAGIC.len();
const KIND_AT: usize = VERSION_AT + 2;
const PACK_NUMBER_AT: usize = KIND_AT + 2;
const INCOMPATIBLE_AT: usize = PACK_NUMBER_AT + 4;
const READ_ONLY_AT: usize = INCOMPATIBLE_AT + 8;
const COMPATIBLE_AT: usize = READ_ONLY_AT + 8;
const ATTEMPT_AT: usize = COMPATIBLE_AT + 8;
const KEY_CHECK_AT: usize = ATTEMPT_AT + 8;
const ID_LEN_AT: usize = KEY_CHECK_AT + 16;
const ID_AT: usize = ID_LEN_AT + 1;
const RESERVED_AT: usize = ID_AT + MAX_SNAPSHOT_ID_LEN;
const CRC_AT: usize = RESERVED_AT + 3;
const _: () = assert!(CRC_AT + 4 == HEADER_LEN);

/// Incompatible feature: chunk ids are keyed BLAKE3.
const KEYED: u64 = 1;

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Frames with an index.
    Pack = 1,
    /// What a snapshot consists of.
    Manifest = 2,
    /// A whole snapshot in one object.
    Export = 3,
    /// What a restore touched, in order.
    WorkingSet = 4,
}

impl Kind {
    /// The kind that a number in a header or footer stands for.
    pub fn from_number(number: u16) -> Option<Kind> {
        [Kind::Pack, Kind::Manifest, Kind::Export, Kind::WorkingSet]
            .into_iter()
            .find(|&kind| kind as u16 == number)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Pack => "pack",
            Kind::Manifest => "manifest",
            Kind::Export => "export",
            Kind::WorkingSet => "working-set",
        })
    }
}

/// The header of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the object is.
    pub kind: Kind,
    /// The number of the pack within its attempt; 0 for other kinds.
    pub pack_number: u32,
    /// Random per attempt of a save, so that no attempt ever reuses the name of an object.
    pub attempt: u64,
    /// The snapshot that the object belongs to.
    pub snapshot: SnapshotId,
    /// [`Key::key_check`](crate::Key::key_check) if chunk ids are keyed.
    pub key_check: Option<[u8; 16]>,
    /// Features whose absence from a reader does not matter, but which forbid it to change or borrow from the
    /// snapshot. None is defined: written as 0, but a reader may meet some.
    pub read_only_compatible: u64,
    /// Features that a reader may ignore. None is defined: written as 0, but a reader may meet some.
    pub compatible: u64,
}

impl Header {
    /// A header of an object of `snapshot`: pack number 0, unkeyed, no features.
    pub fn new(kind: Kind, snapshot: SnapshotId, attempt: u64) -> Header {
        Header {
            kind,
            pack_number: 0,
            attempt,
            snapshot,
            key_check: None,
            read_only_compatible: 0,
            compatible: 0,
        }
    }

    /// The header of pack number `number` of the same attempt.
    pub fn pack(&self, number: u32) -> Header {
        Header {
            kind: Kind::Pack,
            pack_number: number,
            ..self.clone()
        }
    }

    /// The name of the pack that this is the header of (the last component of the object's name).
    pub fn pack_name(&self) -> PackName {
        PackName {
            attempt: self.attempt,
            number: self.pack_number,
        }
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &HEADER_MAGIC);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(KIND_AT, &(self.kind as u16).to_le_bytes());
        put(PACK_NUMBER_AT, &self.pack_number.to_le_bytes());
        put(
            INCOMPATIBLE_AT,
            &if self.key_check.is_some() { KEYED } else { 0 }.to_le_bytes(),
        );
        put(READ_ONLY_AT, &self.read_only_compatible.to_le_bytes());
        put(COMPATIBLE_AT, &self.compatible.to_le_bytes());
        put(ATTEMPT_AT, &self.attempt.to_le_bytes());
        put(KEY_CHECK_AT, &self.key_check.unwrap_or_default());
        put(ID_LEN_AT, &[self.snapshot.as_str().len() as u8]);
        put(ID_AT, self.snapshot.as_str().as_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `bytes`; what follows it is not looked at.
    ///
    /// Refuses, in this order: too few bytes, another magic, a wrong CRC (damage), another version, unknown
    /// incompatible features, and fields that hold what they may not.
    pub fn parse(bytes: &[u8]) -> Result<Header, FormatError> {
        const WHAT: &str = "header";
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            let (needed, available) = (HEADER_LEN as u64, bytes.len() as u64);
            return Err(FormatError::Truncated {
                what: WHAT,
                offset: 0,
                needed,
                available,
            });
        };
        if bytes[..VERSION_AT] != HEADER_MAGIC {
            return Err(FormatError::Magic {
                what: WHAT,
                found: field(bytes, 0),
            });
        }
        let (expected, found) = (
            u32::from_le_bytes(field(bytes, CRC_AT)),
            crc32fast::hash(&bytes[..CRC_AT]),
        );
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
        let incompatible = u64::from_le_bytes(field(bytes, INCOMPATIBLE_AT));
        if incompatible & !KEYED != 0 {
            return Err(FormatError::Features {
                bits: incompatible & !KEYED,
            });
        }

        let bad = |field, offset: usize, found: u64, expected| FormatError::Field {
            what: WHAT,
            field,
            offset: offset as u64,
            found,
            expected,
        };
        let kind_number = u16::from_le_bytes(field(bytes, KIND_AT));
        let kind = Kind::from_number(kind_number)
            .ok_or_else(|| bad("kind", KIND_AT, kind_number.into(), "a kind from 1 to 4"))?;
        let pack_number = u32::from_le_bytes(field(bytes, PACK_NUMBER_AT));
        if kind != Kind::Pack && pack_number != 0 {
            return Err(bad(
                "pack number",
                PACK_NUMBER_AT,
                pack_number.into(),
                "0, as this is no pack",
            ));
        }
        let key_check: [u8; 16] = field(bytes, KEY_CHECK_AT);
        let keyed = incompatible & KEYED != 0;
        if !keyed && let Some(&byte) = key_check.iter().find(|&&byte| byte != 0) {
            return Err(bad(
                "key check",
                KEY_CHECK_AT,
                byte.into(),
                "zeros, as chunk ids are not keyed",
            ));
        }
        let id_len = usize::from(bytes[ID_LEN_AT]);
        if id_len > MAX_SNAPSHOT_ID_LEN {
            return Err(bad(
                "length of snapshot id",
                ID_LEN_AT,
                id_len as u64,
                "1 to 120",
            ));
        }
        let (id, padding) = bytes[ID_AT..RESERVED_AT].split_at(id_len);
        if let Some(&byte) = padding.iter().find(|&&byte| byte != 0) {
            return Err(bad(
                "padding of snapshot id",
                ID_AT + id_len,
                byte.into(),
                "zeros",
            ));
        }
        if let Some(&byte) = bytes[RESERVED_AT..CRC_AT].iter().find(|&&byte| byte != 0) {
            return Err(bad("reserved", RESERVED_AT, byte.into(), "zeros"));
        }
        Ok(Header {
            kind,
            pack_number,
            attempt: u64::from_le_bytes(field(bytes, ATTEMPT_AT)),
            snapshot: String::from_utf8_lossy(id).parse()?,
            key_check: keyed.then_some(key_check),
            read_only_compatible: u64::from_le_bytes(field(bytes, READ_ONLY_AT)),
            compatible: u64::from_le_bytes(field(bytes, COMPATIBLE_AT)),
        })
    }
}

/// The `N` bytes at offset `at`.
fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("the slice is N bytes long")
}

/// The name of a pack within its snapshot: `pack-<attempt, 16 hexadecimal digits>-<number, decimal>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackName {
    /// The attempt that wrote the pack.
    pub attempt: u64,
    /// The pack's number within the attempt.
    pub number: u32,
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pack-{:016x}-{}", self.attempt, self.number)
    }
}

impl FromStr for PackName {
    type Err = FormatError;

    /// Reads exactly what [`Display`](fmt::Display) writes: one pack has one name.
    fn from_str(text: &str) -> Result<PackName, FormatError> {
        let parts = || {
            let (attempt, number) = text.strip_prefix("pack-")?.split_once('-')?;
            Some(PackName {
                attempt: u64::from_str_radix(attempt, 16).ok()?,
                number: number.parse().ok()?,
            })
        };
        parts()
            .filter(|name| name.to_string() == text)
            .ok_or_else(|| {
                FormatError::text(
                    "pack name",
                    "text",
                    text,
                    "pack-, 16 lowercase hexadecimal digits, -, a number",
                )
            })
    }
}
