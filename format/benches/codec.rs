//! Rates of encoding and decoding, for one core, in chunks of 64 KiB. `PODSNAP_BENCH_INPUT=FILE` adds the chunks of a real file.

#[path = "../tests/codec/samples.rs"]
mod samples;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use podsnap_format::codec::{Codec, Decoder, Encoder, Policy};

const CHUNK: usize = 64 << 10;

/// Enough chunks that they come from memory, as they do in a save.
const LEN: usize = 8 << 20;

fn codecs(criterion: &mut Criterion) {
    let mut inputs = vec![
        ("fp32".to_owned(), samples::fp32(1, LEN)),
        ("bf16".to_owned(), samples::bf16(2, LEN)),
        ("fp64".to_owned(), samples::fp64(5, LEN)),
        ("heap".to_owned(), samples::heap(3, LEN)),
        ("noise".to_owned(), samples::noise(4, LEN)),
    ];
    if let Ok(path) = std::env::var("PODSNAP_BENCH_INPUT") {
        let bytes =
            std::fs::read(&path).expect("PODSNAP_BENCH_INPUT names a file that can be read");
        inputs.push((path, bytes));
    }
    for (name, input) in inputs {
        for policy in [Policy::Auto, Policy::Zstd(1)] {
            let mut encoder = Encoder::new(policy);
            let mut encode = |chunk: &[u8]| {
                let mut payload = Vec::new();
                let codec = encoder.encode(chunk, None, &mut payload);
                (codec, payload, chunk.len())
            };
            let payloads: Vec<(Codec, Vec<u8>, usize)> =
                input.chunks(CHUNK).map(&mut encode).collect();
            let encoded: usize = payloads.iter().map(|(_, payload, _)| payload.len()).sum();
            eprintln!(
                "{name} {policy}: {:.2} % of its size",
                100.0 * encoded as f64 / input.len() as f64
            );

            let mut group = criterion.benchmark_group(format!("{name}/{policy}"));
            group
                .throughput(Throughput::Bytes(input.len() as u64))
                .sample_size(10);
            let mut payload = Vec::with_capacity(2 * CHUNK);
            group.bench_function("encode", |bencher| {
                bencher.iter(|| {
                    for chunk in input.chunks(CHUNK) {
                        payload.clear();
                        black_box(encoder.encode(chunk, None, &mut payload));
                    }
                });
            });
            let mut decoder = Decoder::new();
            let mut raw = vec![0; CHUNK];
            group.bench_function("decode", |bencher| {
                bencher.iter(|| {
                    for (codec, payload, len) in &payloads {
                        decoder
                            .decode(*codec, payload, &mut raw[..*len])
                            .expect("what was encoded decodes");
                    }
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, codecs);
criterion_main!(benches);
