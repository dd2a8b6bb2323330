//! Encoding: carries out what [`super::estimate`] plans, compares what came of it, and falls back to raw.

use super::estimate::{PlaneKind, PlanesPlan, Whole, plan};
use super::planes::{plane_len, split};
use super::zstd::Compressor;
use super::{Codec, Dtype, PlaneCodec, Policy};

/// The level at which [`Policy::Auto`] runs zstd.
const AUTO_LEVEL: i32 = 1;

/// A chunk that does not shrink by one part in this many is stored raw under [`Policy::Auto`]: raw decodes at the speed of memory.
const LEAST_GAIN: usize = 100;

/// Encodes chunks. Keeps its contexts and buffers, so use one for many chunks.
#[derive(Debug)]
pub struct Encoder {
    policy: Policy,
    level: Compressor,
    huffman: Compressor,
    planes: Vec<u8>,
}

impl Encoder {
    /// An encoder that follows `policy`.
    pub fn new(policy: Policy) -> Encoder {
        let level = match policy {
            Policy::Zstd(level) => level,
            Policy::Auto | Policy::None => AUTO_LEVEL,
        };
        Encoder {
            policy,
            level: Compressor::at_level(level),
            huffman: Compressor::huffman(),
            planes: Vec::new(),
        }
    }

    /// Appends the payload for `raw` to `out`, never more than `raw.len()` bytes, and returns the codec it is in.
    ///
    /// `hint` is what the caller knows of the elements in `raw`; they need not begin at its first byte.
    pub fn encode(&mut self, raw: &[u8], hint: Option<Dtype>, out: &mut Vec<u8>) -> Codec {
        let codec = match self.policy {
            Policy::None => None,
            Policy::Zstd(_) => {
                append_smaller(self.level.compress(raw), raw.len().saturating_sub(1), out)
            }
            Policy::Auto => self.encode_planned(raw, hint, out),
        };
        codec.unwrap_or_else(|| {
            out.extend_from_slice(raw);
            Codec::Raw
        })
    }

    /// Appends the smallest encoding of those planned; None and nothing if that is not worth it.
    fn encode_planned(
        &mut self,
        raw: &[u8],
        hint: Option<Dtype>,
        out: &mut Vec<u8>,
    ) -> Option<Codec> {
        let plan = plan(raw, hint);
        let limit = raw.len().checked_sub(raw.len() / LEAST_GAIN + 1)?;
        let whole = match plan.whole {
            Whole::No => None,
            Whole::Huffman => self.huffman.compress(raw),
            Whole::Zstd => self.level.compress(raw),
        };
        let Some(planes) = plan.planes else {
            return append_smaller(whole, limit, out);
        };
        let limit_for_planes =
            whole.map_or(limit, |frame| limit.min(frame.len().saturating_sub(1)));
        if planes.expected_len > limit_for_planes {
            return append_smaller(whole, limit, out);
        }
        let start = out.len();
        // Borrowed apart: when zstd coded the whole, its frame must outlive the coding of the planes.
        let frame = whole.map(<[u8]>::to_vec);
        self.append_planes(raw, &planes, out);
        if out.len() - start <= limit_for_planes {
            return Some(Codec::Planes(planes.width));
        }
        out.truncate(start);
        append_smaller(frame.as_deref(), limit, out)
    }

    fn append_planes(&mut self, raw: &[u8], plan: &PlanesPlan, out: &mut Vec<u8>) {
        if self.planes.len() < raw.len() {
            self.planes.resize(raw.len(), 0);
        }
        let buffer = &mut self.planes[..raw.len()];
        split(raw, plan.width, buffer);
        let table = out.len();
        let count = plan.width.bytes();
        out.resize(table + count * PlaneCodec::ENTRY_LEN, 0);
        let mut rest: &[u8] = buffer;
        for (index, kind) in plan.kinds[..count].iter().enumerate() {
            let (plane, tail) = rest.split_at(plane_len(raw.len(), plan.width, index));
            rest = tail;
            let start = out.len();
            let codec = append_plane(plane, *kind, &mut self.level, &mut self.huffman, out);
            let [a, b, c, _] = ((out.len() - start) as u32).to_le_bytes();
            let entry = table + index * PlaneCodec::ENTRY_LEN;
            out[entry..entry + PlaneCodec::ENTRY_LEN].copy_from_slice(&[codec.tag(), a, b, c]);
        }
    }
}

fn append_plane(
    plane: &[u8],
    kind: PlaneKind,
    level: &mut Compressor,
    huffman: &mut Compressor,
    out: &mut Vec<u8>,
) -> PlaneCodec {
    let frame = match kind {
        PlaneKind::Noise => None,
        PlaneKind::Skewed => huffman.compress(plane),
        PlaneKind::Sparse => match plane {
            [first, others @ ..] if others.iter().all(|byte| byte == first) => {
                out.push(*first);
                return PlaneCodec::Constant;
            }
            _ => level.compress(plane),
        },
    };
    match frame {
        Some(frame) if frame.len() < plane.len() => {
            out.extend_from_slice(frame);
            PlaneCodec::Zstd
        }
        _ => {
            out.extend_from_slice(plane);
            PlaneCodec::Raw
        }
    }
}

/// Appends a zstd frame if there is one of at most `limit` bytes.
fn append_smaller(frame: Option<&[u8]>, limit: usize, out: &mut Vec<u8>) -> Option<Codec> {
    let frame = frame.filter(|frame| frame.len() <= limit)?;
    out.extend_from_slice(frame);
    Some(Codec::Zstd)
}
