//! Codecs: arbitrary payloads are decoded, and arbitrary chunks come back from a frame. The data is a codec tag, a raw
//! length (u24), then the payload or chunk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsnap_format::MAX_CHUNK_LEN;
use podsnap_format::codec::{Codec, Decoder, Dtype, Encoder, Policy};
use podsnap_format::frame::{append_frame, decode_frame};

fuzz_target!(|data: &[u8]| {
    let Some((&[tag, a, b, c], payload)) = data.split_first_chunk::<4>() else {
        return;
    };
    let raw_len = u32::from_le_bytes([a, b, c, 0]) as usize % (MAX_CHUNK_LEN + 1);
    let mut decoder = Decoder::new();
    if let Some(codec) = Codec::from_tag(tag) {
        let _ = decoder.decode(codec, payload, &mut vec![0; raw_len]);
    }
    if payload.is_empty() || payload.len() > MAX_CHUNK_LEN {
        return;
    }
    let policy = [
        Policy::Auto,
        Policy::None,
        Policy::Zstd(1),
        Policy::Zstd(-5),
    ][usize::from(tag & 3)];
    let hint =
        [None, Some(Dtype::Bf16), Some(Dtype::F32), Some(Dtype::F64)][usize::from(tag >> 2 & 3)];
    let mut frame = Vec::new();
    let codec = append_frame(&mut frame, payload, &mut Encoder::new(policy), hint);
    assert!(frame.len() <= 12 + payload.len());
    let mut raw = Vec::new();
    assert_eq!(decode_frame(&frame, &mut decoder, &mut raw), Ok(codec));
    assert_eq!(raw, payload);
});
