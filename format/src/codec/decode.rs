//! Decoding. Input is hostile: lengths must add up to the byte, nothing is allocated by what the input states, and damage is an
//! error, never a panic. (That the bytes are the right ones is for the frame's checksum and the chunk's id to say.)

use super::planes::{merge, plane_len};
use super::zstd::Decompressor;
use super::{Codec, CodecError, PlaneCodec, Width};

/// Decodes payloads. Keeps its buffers, so use one for many chunks.
#[derive(Debug)]
pub struct Decoder {
    /// Made when it is first needed: it is large.
    decompressor: Option<Decompressor>,
    planes: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder.
    pub fn new() -> Decoder {
        Decoder {
            decompressor: None,
            planes: Vec::new(),
        }
    }

    /// Decodes `payload` so that it fills `out` exactly; what is in `out` after an error is undefined. Apart from `out` this needs
    /// as much memory again, once.
    pub fn decode(
        &mut self,
        codec: Codec,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        match codec {
            Codec::Raw => {
                check_len("a raw payload", payload.len(), out.len())?;
                out.copy_from_slice(payload);
                Ok(())
            }
            Codec::Zstd => self
                .decompressor
                .get_or_insert_with(Decompressor::new)
                .decompress(payload, out),
            Codec::Planes(width) => self.decode_planes(width, payload, out),
        }
    }

    fn decode_planes(
        &mut self,
        width: Width,
        payload: &[u8],
        out: &mut [u8],
    ) -> Result<(), CodecError> {
        let count = width.bytes();
        let Some((table, mut rest)) = payload.split_at_checked(count * PlaneCodec::ENTRY_LEN)
        else {
            let expected = count * PlaneCodec::ENTRY_LEN;
            return Err(CodecError::Length {
                what: "a table of planes",
                found: payload.len(),
                expected,
            });
        };
        if self.planes.len() < out.len() {
            self.planes.resize(out.len(), 0);
        }
        let mut decoded = &mut self.planes[..out.len()];
        let mut planes: [&[u8]; 8] = [&[]; 8];
        for (index, entry) in table
            .as_chunks::<{ PlaneCodec::ENTRY_LEN }>()
            .0
            .iter()
            .enumerate()
        {
            let [tag, a, b, c] = *entry;
            let codec =
                PlaneCodec::from_tag(tag).ok_or(CodecError::PlaneCodec { plane: index, tag })?;
            let encoded_len = u32::from_le_bytes([a, b, c, 0]) as usize;
            let Some((encoded, tail)) = rest.split_at_checked(encoded_len) else {
                return Err(CodecError::Length {
                    what: "what is left for a plane",
                    found: rest.len(),
                    expected: encoded_len,
                });
            };
            rest = tail;
            let (plane, free) =
                std::mem::take(&mut decoded).split_at_mut(plane_len(out.len(), width, index));
            decoded = free;
            planes[index] = match codec {
                PlaneCodec::Raw => {
                    check_len("a raw plane", encoded_len, plane.len())?;
                    encoded
                }
                PlaneCodec::Zstd => {
                    self.decompressor
                        .get_or_insert_with(Decompressor::new)
                        .decompress(encoded, plane)?;
                    plane
                }
                PlaneCodec::Constant => {
                    check_len("a constant plane", encoded_len, 1)?;
                    plane.fill(encoded[0]);
                    plane
                }
            };
        }
        check_len("what follows the planes", rest.len(), 0)?;
        merge(&planes[..count], width, out);
        Ok(())
    }
}

fn check_len(what: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found != expected {
        return Err(CodecError::Length {
            what,
            found,
            expected,
        });
    }
    Ok(())
}
