//! The one error of this crate. Every variant says what was refused, at which offset of the bytes given (or of the
//! object, where the parser knows it), and what was expected. No variant carries I/O: that is the caller's.

use crate::codec::CodecError;
use crate::header::Kind;

/// Why bytes were refused, or why a structure cannot be written.
///
/// Offsets count from the start of the structure that `what` names (header, footer, index, directory, segment, frame).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes end before the structure does.
    #[error("{what}: {needed} bytes needed at offset {offset}, {available} there")]
    Truncated {
        /// The structure or field.
        what: &'static str,
        /// Where the missing bytes should begin.
        offset: u64,
        /// Bytes needed from there.
        needed: u64,
        /// Bytes there.
        available: u64,
    },
    /// The magic is not ours: not a podsnap object, or one mangled at its very start or end.
    #[error("{what}: no podsnap magic, found {found:02x?}")]
    Magic {
        /// Header or footer.
        what: &'static str,
        /// The bytes that stand where the magic belongs.
        found: [u8; 8],
    },
    /// A format version that this code does not know.
    #[error("{what}: format version {found} is not supported, only version {supported}", supported = crate::VERSION)]
    Version {
        /// Header or footer.
        what: &'static str,
        /// The version found.
        found: u16,
    },
    /// Incompatible features that this code does not know.
    #[error("header: incompatible features not supported: {}", bit_names(*.bits))]
    Features {
        /// The unknown bits of the incompatible feature word.
        bits: u64,
    },
    /// An object of another kind than was asked for.
    #[error("{what}: the object is a {found}, expected a {expected}")]
    WrongKind {
        /// The structure that was to be read.
        what: &'static str,
        /// What was asked for.
        expected: &'static str,
        /// What was found.
        found: Kind,
    },
    /// A CRC-32 does not match: the bytes are damaged.
    #[error("{what}: CRC-32 of offset {offset} on is {found:08x}, expected {expected:08x}")]
    Crc {
        /// The structure.
        what: &'static str,
        /// Where the covered bytes begin.
        offset: u64,
        /// The CRC stored with the bytes.
        expected: u32,
        /// The CRC of the bytes.
        found: u32,
    },
    /// A BLAKE3 hash does not match: the bytes are damaged or are not the ones meant.
    #[error("{what}: its BLAKE3 hash is not the one expected")]
    Hash {
        /// The structure.
        what: &'static str,
    },
    /// A field holds what it may not hold.
    #[error("{what}: {field} at offset {offset}: found {found}, expected {expected}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The field of it.
        field: &'static str,
        /// Where it is.
        offset: u64,
        /// The value found (for longer things, their length or the first differing byte).
        found: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// Bytes are left over after the end of a structure.
    #[error("{what}: {count} bytes left over at offset {offset}")]
    LeftOver {
        /// The structure.
        what: &'static str,
        /// Where they begin.
        offset: u64,
        /// How many.
        count: u64,
    },
    /// A text field is not what it must be.
    #[error("{what}: {field} {text:?}: expected {expected}")]
    Text {
        /// The structure.
        what: &'static str,
        /// The field of it.
        field: &'static str,
        /// The text, cut to a bounded length.
        text: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A structure that cannot be written, as no reader would accept it.
    #[error("{what} cannot be written: {field}: {found}, expected {expected}")]
    Unwritable {
        /// The structure.
        what: &'static str,
        /// The part of it.
        field: &'static str,
        /// The value found.
        found: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// The payload of a frame does not decode.
    #[error("frame: the payload does not decode")]
    Codec(#[from] CodecError),
}

impl FormatError {
    /// Whether the object may be whole, but is of a version or has a feature that this code does not know.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            FormatError::Version { .. } | FormatError::Features { .. }
        )
    }

    /// A [`FormatError::Text`] whose text is cut to 64 characters.
    pub(crate) fn text(
        what: &'static str,
        field: &'static str,
        text: &str,
        expected: &'static str,
    ) -> Self {
        FormatError::Text {
            what,
            field,
            text: text.chars().take(64).collect(),
            expected,
        }
    }
}

fn bit_names(bits: u64) -> String {
    let names: Vec<String> = (0..64)
        .filter(|bit| bits >> bit & 1 == 1)
        .map(|bit| format!("bit {bit}"))
        .collect();
    names.join(", ")
}
