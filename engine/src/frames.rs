//! Turning frames back into chunks that are known to be right, and telling damage in the store from damage on the way.

use std::future::Future;

use podsnap_format::{ChunkId, Key, codec::Decoder, frame, manifest::Chunk};

use crate::error::{ErrorKind, Result};

/// Times that what does not check out is read again before it is called damaged.
pub(crate) const REREADS: u32 = 3;

/// Does again what met damage: a store may be whole and the way to it not.
pub(crate) async fn reread<T, F: Future<Output = Result<T>>>(read: impl Fn() -> F) -> Result<T> {
    for _ in 0..REREADS {
        match read().await {
            Err(e) if e.kind() == ErrorKind::Damaged => {}
            done => return done,
        }
    }
    read().await
}

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
