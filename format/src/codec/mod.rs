//! How the bytes of a chunk are encoded into the payload of a frame, and back.
//!
//! Three codecs: raw, one zstd frame, and byte planes, which suit numbers: the planes of a model's weights that hold exponents
//! shrink to a third, while those that hold mantissas are noise and stay as they are. An [`Encoder`] chooses for every chunk on its
//! own, from a sample (`estimate`); its choice depends on the chunk, the policy and the hint, never on what came before.
//! A [`Decoder`] trusts nothing it is given. Frames, their checksums and chunk ids are not this module's business.

mod decode;
mod encode;
mod estimate;
mod planes;
mod zstd;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

pub use decode::Decoder;
pub use encode::Encoder;

/// The width of an element whose bytes are split into planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// 2 bytes (BF16, F16).
    Two,
    /// 4 bytes (F32).
    Four,
    /// 8 bytes (F64, pointers).
    Eight,
}

impl Width {
    /// The width in bytes, which is also the number of planes.
    pub fn bytes(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
            Width::Eight => 8,
        }
    }
}

/// How a frame's payload is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Stored as it is.
    Raw,
    /// One zstd frame.
    Zstd,
    /// Byte planes, each with its own plane codec.
    Planes(Width),
}

impl Codec {
    /// The byte that stands for the codec in frames, indexes and segments.
    pub fn tag(self) -> u8 {
        match self {
            Codec::Raw => 0x00,
            Codec::Zstd => 0x01,
            Codec::Planes(Width::Two) => 0x12,
            Codec::Planes(Width::Four) => 0x14,
            Codec::Planes(Width::Eight) => 0x18,
        }
    }

    /// The codec that a tag stands for, if any.
    pub fn from_tag(tag: u8) -> Option<Codec> {
        Some(match tag {
            0x00 => Codec::Raw,
            0x01 => Codec::Zstd,
            0x12 => Codec::Planes(Width::Two),
            0x14 => Codec::Planes(Width::Four),
            0x18 => Codec::Planes(Width::Eight),
            _ => return None,
        })
    }
}

/// Which codecs an encoder may choose. Written `auto`, `none` or `zstd:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Estimate, then choose.
    #[default]
    Auto,
    /// Always raw: for links that are faster than any codec.
    None,
    /// zstd at this level, or raw where that is not smaller. Levels that zstd does not have become the nearest one it has.
    Zstd(i32),
}

impl Policy {
    /// The levels that `zstd:N` may name.
    pub fn zstd_levels() -> RangeInclusive<i32> {
        zstd_safe::min_c_level()..=zstd_safe::max_c_level()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Auto => f.write_str("auto"),
            Policy::None => f.write_str("none"),
            Policy::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Policy {
    type Err = CodecError;

    /// Fails with [`CodecError::Policy`].
    fn from_str(text: &str) -> Result<Self, CodecError> {
        let policy = match text {
            "auto" => Some(Policy::Auto),
            "none" => Some(Policy::None),
            _ => text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .filter(|level| Policy::zstd_levels().contains(level))
                .map(Policy::Zstd),
        };
        policy.ok_or_else(|| CodecError::Policy(text.to_owned()))
    }
}

/// What the caller knows about the type of the elements in a chunk. A hint that is wrong costs size or time, nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// Single bytes: FP8 of any kind, 8-bit integers.
    Byte,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

/// Why a payload could not be decoded, or a policy not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// A raw payload, or a table of planes with what follows it, has not the length it must have.
    #[error("{what} is {found} bytes long, expected {expected}")]
    Length {
        /// What has the wrong length.
        what: &'static str,
        /// The length it has, in bytes.
        found: usize,
        /// The length it must have, in bytes.
        expected: usize,
    },
    /// A plane's codec is none that is known.
    #[error("plane {plane} has the unknown codec {tag:#04x}")]
    PlaneCodec {
        /// Index of the plane.
        plane: usize,
        /// The codec's tag.
        tag: u8,
    },
    /// What should be one zstd frame is something else, less or more.
    #[error("not a single zstd frame that states its content size")]
    NotOneFrame,
    /// zstd found a frame damaged.
    #[error("zstd: {0}")]
    Zstd(&'static str),
    /// A policy that is not `auto`, `none` or `zstd:N`.
    #[error("no such codec policy: {0:?}; expected auto, none or zstd:N with N from {min} to {max}", min = Policy::zstd_levels().start(), max = Policy::zstd_levels().end())]
    Policy(String),
}

/// How one plane is encoded inside a planes payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlaneCodec {
    /// Stored as it is.
    Raw,
    /// One zstd frame.
    Zstd,
    /// All bytes equal: the one byte.
    Constant,
}

impl PlaneCodec {
    /// Bytes of a plane's entry in the table that opens a planes payload: codec tag, then length as u24.
    const ENTRY_LEN: usize = 4;

    fn tag(self) -> u8 {
        match self {
            PlaneCodec::Raw => 0,
            PlaneCodec::Zstd => 1,
            PlaneCodec::Constant => 2,
        }
    }

    fn from_tag(tag: u8) -> Option<PlaneCodec> {
        Some(match tag {
            0 => PlaneCodec::Raw,
            1 => PlaneCodec::Zstd,
            2 => PlaneCodec::Constant,
            _ => return None,
        })
    }
}
