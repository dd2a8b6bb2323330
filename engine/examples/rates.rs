//! How fast one core does each stage of a save and of a restore on a file: `rates FILE` prints one JSON object.
//!
//! `memcpy`, `blake3`, `crc32`, `chunking`, `encode`, `decode` and `zstd1` are in GB/s, the best of three runs; `unique_bytes` is what
//! deduplication inside the file leaves. Chunking (zero runs included) and BLAKE3 are per byte of the file, zeros included,
//! though these are not hashed; encoding, decoding and `zstd1` (zstd at level 1 on each chunk, for comparison) are per byte of
//! unique chunks; CRC-32 is per byte of frames, memcpy per byte copied. `benches/peers/run` makes a floor of them: see
//! docs/performance.md. The file is read into memory whole.

use std::{collections::HashSet, error::Error, hint::black_box, ops::Range, time::Instant};

use podsnap_engine::{
    Policy,
    chunking::{Chunker, SEGMENT_LEN, default_for, runs},
    format::{
        ChunkId,
        codec::{Decoder, Encoder},
        frame::{append_frame, decode_frame, parse_frame},
    },
};

const RUNS: usize = 3;

/// GB/s of `len` bytes, by the fastest of some runs.
fn rate(len: usize, mut work: impl FnMut()) -> f64 {
    let mut seconds = || {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let best = (0..RUNS).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    len as f64 / best / 1e9
}

fn cut(bytes: &[u8], chunker: &Chunker) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    for (number, segment) in bytes.chunks(SEGMENT_LEN).enumerate() {
        let offset = number * SEGMENT_LEN;
        for run in runs(segment).into_iter().filter(|run| !run.zero) {
            let mut at = run.start;
            while at < run.end {
                let len = chunker.cut(&segment[at..run.end], (offset + at) as u64);
                chunks.push(offset + at..offset + at + len);
                at += len;
            }
        }
    }
    chunks
}

fn encode(chunks: &[&[u8]], policy: Policy) -> Vec<u8> {
    let mut encoder = Encoder::new(policy);
    let mut frames = Vec::new();
    for chunk in chunks {
        append_frame(&mut frames, chunk, &mut encoder, None);
    }
    frames
}

/// Calls `each` with every frame.
fn for_each(mut frames: &[u8], mut each: impl FnMut(&[u8])) {
    while !frames.is_empty() {
        let header = podsnap_engine::format::FrameHeader::parse(frames).expect("just written");
        let (frame, rest) = frames.split_at(header.frame_len());
        each(frame);
        frames = rest;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: rates FILE")?;
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let chunker =
        Chunker::new(&default_for(Some(bytes.len() as u64))).expect("the defaults are sound");

    let mut copy = vec![0; SEGMENT_LEN.min(bytes.len())];
    let memcpy = rate(bytes.len(), || {
        for part in bytes.chunks(SEGMENT_LEN) {
            copy[..part.len()].copy_from_slice(black_box(part));
        }
    });
    let chunking = rate(bytes.len(), || drop(black_box(cut(&bytes, &chunker))));
    let chunks = cut(&bytes, &chunker);
    let blake3 = rate(bytes.len(), || {
        for chunk in &chunks {
            black_box(ChunkId::of(&bytes[chunk.clone()], None));
        }
    });
    let mut seen = HashSet::new();
    let unique: Vec<&[u8]> = chunks
        .into_iter()
        .map(|chunk| &bytes[chunk])
        .filter(|chunk| seen.insert(ChunkId::of(chunk, None)))
        .collect();
    let unique_bytes = unique.iter().map(|chunk| chunk.len()).sum();

    let encode_rate = rate(unique_bytes, || {
        drop(black_box(encode(&unique, Policy::Auto)))
    });
    let zstd1 = rate(unique_bytes, || {
        drop(black_box(encode(&unique, Policy::Zstd(1))))
    });
    let frames = encode(&unique, Policy::Auto);
    let crc32 = rate(frames.len(), || {
        for_each(&frames, |frame| {
            black_box(parse_frame(frame)).expect("just written");
        });
    });
    let (mut decoder, mut raw) = (Decoder::new(), Vec::new());
    let decode = rate(unique_bytes, || {
        for_each(&frames, |frame| {
            decode_frame(frame, &mut decoder, &mut raw).expect("just written");
            black_box(&raw);
        });
    });
    let rates = serde_json::json!({
        "memcpy": memcpy,
        "blake3": blake3,
        "crc32": crc32,
        "chunking": chunking,
        "encode": encode_rate,
        "decode": decode,
        "zstd1": zstd1,
        "unique_bytes": unique_bytes,
    });
    println!("{rates}");
    Ok(())
}
