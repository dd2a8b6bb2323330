//! Turning frames back into chunks that are known to be right.

use podsnap_format::{ChunkId, Key, codec::Decoder, frame, manifest::Chunk};

/// How a frame's place is written in errors.
pub(crate) fn place(object: &str, offset: u64) -> String {
    format!("{object} (frame at byte {offset})")
}

/// Decodes `bytes` into `raw` and checks that it is `chunk`; otherwise says what is wrong, without saying where.
pub(crate) fn decode_checked(
    bytes: &[u8],
    chunk: &Chunk,
    key: Option<&Key>,
    decoder: &mut Decoder,
    raw: &mut Vec<u8>,
) -> Result<(), String> {
    frame::decode_frame(bytes, decoder, raw).map_err(|e| e.to_string())?;
    if raw.len() != chunk.raw_len as usize {
        return Err(format!(
            "its chunk has {} bytes, the manifest says {}",
            raw.len(),
            chunk.raw_len
        ));
    }
    let id = ChunkId::of(raw, key);
    if id != chunk.id {
        return Err(format!("its chunk is {id}, the manifest says {}", chunk.id));
    }
    Ok(())
}
