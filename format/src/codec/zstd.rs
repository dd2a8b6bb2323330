//! Our two uses of the zstd library, with contexts that are made once and used for many chunks.
//!
//! A [`Compressor`] is either zstd at a level, or zstd as a mere Huffman coder: no search for matches, so that every block is
//! literals, coded by their frequency. On a plane of exponents the latter is three times as fast as level 1, and smaller, because
//! the chance matches that level 1 finds there cost more than the literals they replace. Any zstd decoder reads both.

use std::fmt;

use zstd_safe::{CCtx, CParameter, DCtx, ParamSwitch, Strategy, zstd_sys};

use super::{CodecError, Policy};

/// Compresses one buffer at a time into one frame.
pub(super) struct Compressor {
    context: CCtx<'static>,
    frame: Vec<u8>,
}

impl Compressor {
    /// zstd at `level`, or at the nearest level there is.
    pub(super) fn at_level(level: i32) -> Compressor {
        let levels = Policy::zstd_levels();
        let level = level.clamp(*levels.start(), *levels.end());
        Compressor::new(&[CParameter::CompressionLevel(level)])
    }

    /// zstd as a Huffman coder.
    pub(super) fn huffman() -> Compressor {
        Compressor::new(&[
            CParameter::CompressionLevel(1),
            CParameter::Strategy(Strategy::ZSTD_fast),
            // With this strategy the target length is the distance between places tried: the next one lies past the block's end.
            CParameter::TargetLength(zstd_sys::ZSTD_BLOCKSIZE_MAX),
            CParameter::LiteralCompressionMode(ParamSwitch::Enable),
            // The table of a search that never happens: as small as it may be, because it is cleared for each frame.
            CParameter::HashLog(zstd_sys::ZSTD_HASHLOG_MIN),
        ])
    }

    fn new(parameters: &[CParameter]) -> Compressor {
        let mut context = CCtx::create();
        for parameter in parameters {
            context
                .set_parameter(*parameter)
                .expect("the parameter is within zstd's bounds");
        }
        Compressor {
            context,
            frame: Vec::new(),
        }
    }

    /// Compresses `raw` into a frame that states its content size. None if zstd fails, which it does for lack of memory only.
    pub(super) fn compress(&mut self, raw: &[u8]) -> Option<&[u8]> {
        // Room for the worst case, or zstd would run its slower loops that check for space.
        let bound = zstd_safe::compress_bound(raw.len());
        if self.frame.len() < bound {
            self.frame.resize(bound, 0);
        }
        let len = self.context.compress2(&mut self.frame[..], raw).ok()?;
        Some(&self.frame[..len])
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// Decompresses frames of a known content size.
pub(super) struct Decompressor {
    context: DCtx<'static>,
}

impl Decompressor {
    pub(super) fn new() -> Decompressor {
        Decompressor {
            context: DCtx::create(),
        }
    }

    /// Decompresses `frame`, which must be one zstd frame to its last byte, so that it fills `out` exactly.
    pub(super) fn decompress(&mut self, frame: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
        // The library would also take frames of old formats, skippable frames, and several frames in a row.
        if !frame.starts_with(&zstd_sys::ZSTD_MAGICNUMBER.to_le_bytes())
            || zstd_safe::find_frame_compressed_size(frame) != Ok(frame.len())
        {
            return Err(CodecError::NotOneFrame);
        }
        let stated = zstd_safe::get_frame_content_size(frame)
            .ok()
            .flatten()
            .ok_or(CodecError::NotOneFrame)?;
        check_content(stated, out.len())?;
        let written = self
            .context
            .decompress(out, frame)
            .map_err(|code| CodecError::Zstd(zstd_safe::get_error_name(code)))?;
        check_content(written as u64, out.len())
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

fn check_content(found: u64, expected: usize) -> Result<(), CodecError> {
    if found != expected as u64 {
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        return Err(CodecError::Length {
            what: "the content of a zstd frame",
            found,
            expected,
        });
    }
    Ok(())
}
