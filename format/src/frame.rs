//! A frame: one stored chunk, with a header of its own that lets it be checked and found again without any index.
//! This module writes frames and reads one that the caller has located; [`crate::scan`] looks for frames where no
//! index says where they are, and [`crate::codec`] knows what a payload is.

use crate::FormatError;
use crate::codec::{Codec, Decoder, Dtype, Encoder};

/// Length of a frame's header, in bytes.
pub const FRAME_HEADER_LEN: usize = 12;

/// Longest chunk, uncompressed, in bytes.
pub const MAX_CHUNK_LEN: usize = 4 << 20;

/// First byte of every frame.
pub(crate) const SYNC: u8 = 0xa5;

const WHAT: &str = "frame";

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload is encoded.
    pub codec: Codec,
    /// Length of the chunk in bytes: 1 to [`MAX_CHUNK_LEN`].
    pub raw_len: u32,
    /// Length of the payload in bytes: 1 to `raw_len`.
    pub encoded_len: u32,
    /// CRC-32 of the first 8 bytes of the header and of the payload.
    pub crc: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`; what follows it is not looked at, nor is the CRC checked.
    pub fn parse(bytes: &[u8]) -> Result<FrameHeader, FormatError> {
        let Some(bytes) = bytes.first_chunk::<FRAME_HEADER_LEN>() else {
            return Err(truncated(0, FRAME_HEADER_LEN, bytes.len()));
        };
        let bad = |field, offset, found: u32, expected| FormatError::Field {
            what: WHAT,
            field,
            offset,
            found: found.into(),
            expected,
        };
        if bytes[0] != SYNC {
            return Err(bad("sync byte", 0, bytes[0].into(), "165"));
        }
        let codec = Codec::from_tag(bytes[1])
            .ok_or_else(|| bad("codec", 1, bytes[1].into(), "a codec of version 1"))?;
        let raw_len = u32::from_le_bytes([bytes[2], bytes[3], bytes[4], 0]);
        let encoded_len = u32::from_le_bytes([bytes[5], bytes[6], bytes[7], 0]);
        if let Err(Misfit {
            field,
            found,
            expected,
        }) = check_lengths(codec, raw_len, encoded_len)
        {
            return Err(bad(
                field,
                if field == RAW_LEN { 2 } else { 5 },
                found,
                expected,
            ));
        }
        let crc = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        Ok(FrameHeader {
            codec,
            raw_len,
            encoded_len,
            crc,
        })
    }

    /// Length of the whole frame in bytes.
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.encoded_len as usize
    }
}

pub(crate) const RAW_LEN: &str = "raw length";
pub(crate) const ENCODED_LEN: &str = "encoded length";

/// A length that a frame cannot have.
#[derive(Debug)]
pub(crate) struct Misfit {
    pub(crate) field: &'static str,
    pub(crate) found: u32,
    pub(crate) expected: &'static str,
}

/// Whether a frame may have these lengths: what holds in a frame's header, a pack's index and a segment alike.
#[inline]
pub(crate) fn check_lengths(codec: Codec, raw_len: u32, encoded_len: u32) -> Result<(), Misfit> {
    if raw_len == 0 || raw_len > MAX_CHUNK_LEN as u32 {
        return Err(Misfit {
            field: RAW_LEN,
            found: raw_len,
            expected: "1 to 4 MiB",
        });
    }
    let fits = match codec {
        Codec::Raw => encoded_len == raw_len,
        _ => encoded_len != 0 && encoded_len <= raw_len,
    };
    match fits {
        true => Ok(()),
        false => Err(Misfit {
            field: ENCODED_LEN,
            found: encoded_len,
            expected: "1 to the raw length, and equal to it if the codec is raw",
        }),
    }
}

/// Appends the frame of the chunk `raw` to `out`, with the codec that `encoder` chooses.
///
/// # Panics
/// If `raw` is empty or longer than [`MAX_CHUNK_LEN`]: no chunker may cut such a chunk.
pub fn append_frame(
    out: &mut Vec<u8>,
    raw: &[u8],
    encoder: &mut Encoder,
    hint: Option<Dtype>,
) -> Codec {
    assert!(
        (1..=MAX_CHUNK_LEN).contains(&raw.len()),
        "a chunk of {} bytes",
        raw.len()
    );
    out.reserve(FRAME_HEADER_LEN + raw.len());
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER_LEN]);
    let codec = encoder.encode(raw, hint, out);
    let (header, payload) = out[start..].split_at_mut(FRAME_HEADER_LEN);
    debug_assert!(check_lengths(codec, raw.len() as u32, payload.len() as u32).is_ok());
    header[0] = SYNC;
    header[1] = codec.tag();
    header[2..5].copy_from_slice(&(raw.len() as u32).to_le_bytes()[..3]);
    header[5..8].copy_from_slice(&(payload.len() as u32).to_le_bytes()[..3]);
    let crc = crc(header, payload);
    header[8..].copy_from_slice(&crc.to_le_bytes());
    codec
}

/// Takes a frame apart and checks its CRC; the payload is not decoded. `frame` must be exactly one frame.
pub fn parse_frame(frame: &[u8]) -> Result<(FrameHeader, &[u8]), FormatError> {
    let header = FrameHeader::parse(frame)?;
    let payload = &frame[FRAME_HEADER_LEN..];
    let encoded_len = header.encoded_len as usize;
    if payload.len() < encoded_len {
        return Err(truncated(FRAME_HEADER_LEN, encoded_len, payload.len()));
    }
    if payload.len() > encoded_len {
        let count = (payload.len() - encoded_len) as u64;
        return Err(FormatError::LeftOver {
            what: WHAT,
            offset: header.frame_len() as u64,
            count,
        });
    }
    let found = crc(frame, payload);
    match found == header.crc {
        true => Ok((header, payload)),
        false => Err(FormatError::Crc {
            what: WHAT,
            offset: 0,
            expected: header.crc,
            found,
        }),
    }
}

/// Decodes a frame into `out`, which then holds exactly the chunk, or nothing if there is an error.
///
/// Checks all that [`parse_frame`] checks, and that the payload decodes to the stated length. Whether it is the chunk
/// that was meant is for the caller to check, who knows the [`ChunkId`](crate::ChunkId). An `out` that is used again
/// and again is neither reallocated nor zeroed.
pub fn decode_frame(
    frame: &[u8],
    decoder: &mut Decoder,
    out: &mut Vec<u8>,
) -> Result<Codec, FormatError> {
    let decoded = parse_frame(frame).and_then(|(header, payload)| {
        out.resize(header.raw_len as usize, 0);
        decoder.decode(header.codec, payload, out)?;
        Ok(header.codec)
    });
    if decoded.is_err() {
        out.clear();
    }
    decoded
}

/// The CRC-32 of a frame: of its header but for the CRC, and its payload.
pub(crate) fn crc(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..8]);
    hasher.update(payload);
    hasher.finalize()
}

fn truncated(offset: usize, needed: usize, available: usize) -> FormatError {
    FormatError::Truncated {
        what: WHAT,
        offset: offset as u64,
        needed: needed as u64,
        available: available as u64,
    }
}
