//! How the payload of a frame is encoded. For now every chunk is stored raw.

use std::fmt;
use std::str::FromStr;

/// The width of an element whose bytes are split into planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Width {
    /// 2 bytes (BF16, F16).
    Two,
    /// 4 bytes (F32).
    Four,
    /// 8 bytes (F64).
    Eight,
}

/// How a frame's payload is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Stored as it is.
    Raw,
    /// One zstd frame.
    Zstd,
    /// Byte planes, each with its own codec.
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

/// Which codecs an encoder may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Estimate, then choose.
    #[default]
    Auto,
    /// Always raw.
    None,
    /// Always zstd at this level.
    Zstd(i32),
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

    fn from_str(text: &str) -> Result<Self, CodecError> {
        match text {
            "auto" => Ok(Policy::Auto),
            "none" => Ok(Policy::None),
            _ => text
                .strip_prefix("zstd:")
                .and_then(|level| level.parse().ok())
                .map(Policy::Zstd)
                .ok_or(CodecError::Unsupported),
        }
    }
}

/// What the caller knows about the type of the elements in a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

/// Why a payload could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The payload does not decode to the length that its header states.
    #[error("payload does not decode to the stated length")]
    Length,
    /// Not supported.
    #[error("codec not supported")]
    Unsupported,
}

/// Encodes chunks.
#[derive(Debug)]
pub struct Encoder {}

impl Encoder {
    /// An encoder that follows `policy`.
    pub fn new(_policy: Policy) -> Encoder {
        Encoder {}
    }

    /// Appends the payload for `raw` to `out`; never more than `raw.len()` bytes.
    pub fn encode(&mut self, raw: &[u8], _hint: Option<Dtype>, out: &mut Vec<u8>) -> Codec {
        out.extend_from_slice(raw);
        Codec::Raw
    }
}

/// Decodes payloads.
#[derive(Debug, Default)]
pub struct Decoder {}

impl Decoder {
    /// A decoder.
    pub fn new() -> Decoder {
        Decoder {}
    }

    /// Decodes `payload` so that it fills `out` exactly.
    pub fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        if codec != Codec::Raw {
            return Err(CodecError::Unsupported);
        }
        if payload.len() != out.len() {
            return Err(CodecError::Length);
        }
        out.copy_from_slice(payload);
        Ok(())
    }
}
