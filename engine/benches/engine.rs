//! Rates of the engine's stages on one core, and of whole saves and restores in memory on all of them.

#[allow(dead_code, reason = "shared with the tests of codecs")]
#[path = "../../format/tests/codec/samples.rs"]
mod samples;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use podsnap_engine::{
    Input, NewSection, Result, Role, SaveOptions, SnapshotId, Store,
    chunking::{Chunker, SEGMENT_LEN, content_defined, runs},
    format::ChunkId,
    restore::{RestoreOptions, Target},
};

const MIB: usize = 1 << 20;

fn cutting(criterion: &mut Criterion) {
    let inputs = [
        ("weights", samples::fp32(1, SEGMENT_LEN)),
        ("noise", samples::noise(2, SEGMENT_LEN)),
        ("zeros", vec![0; SEGMENT_LEN]),
    ];
    let mut group = criterion.benchmark_group("cut");
    group
        .throughput(Throughput::Bytes(SEGMENT_LEN as u64))
        .sample_size(10);
    for (name, input) in &inputs {
        for avg_log2 in [16, 18] {
            let chunker = Chunker::new(&content_defined(avg_log2)).expect("sound parameters");
            let id = BenchmarkId::new(*name, format!("{} KiB", 1 << (avg_log2 - 10)));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let mut rest = black_box(input.as_slice());
                    while !rest.is_empty() {
                        rest = &rest[chunker.cut(rest, 0)..];
                    }
                })
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("zero runs");
    group
        .throughput(Throughput::Bytes(SEGMENT_LEN as u64))
        .sample_size(10);
    for (name, input) in &inputs {
        group.bench_function(*name, |bencher| bencher.iter(|| runs(black_box(input))));
    }
    group.finish();
}

fn hashing(criterion: &mut Criterion) {
    let input = samples::noise(3, 8 * MIB);
    let mut group = criterion.benchmark_group("blake3");
    group
        .throughput(Throughput::Bytes(input.len() as u64))
        .sample_size(10);
    for kib in [4, 16, 64, 256] {
        group.bench_function(format!("{kib} KiB"), |bencher| {
            bencher.iter(|| {
                for chunk in input.chunks(kib << 10) {
                    black_box(ChunkId::of(chunk, None));
                }
            })
        });
    }
    group.finish();
}

/// A section of everything that occurs: weights twice, heap, noise, zeros.
fn mixed() -> Vec<u8> {
    let weights = samples::fp32(4, 16 * MIB);
    [
        &weights,
        &samples::heap(5, 8 * MIB),
        &vec![0; 12 * MIB],
        &samples::noise(6, 12 * MIB - 999),
        &weights,
        &vec![7; 999],
    ]
    .map(Vec::as_slice)
    .concat()
}

/// A source in memory.
struct Bytes(Vec<u8>);

impl podsnap_engine::source::Source for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// Copies every byte somewhere, as a restore into memory does.
struct Sink;

impl Target for Sink {
    fn write_at(&self, bytes: &[u8], _offset: u64) -> Result<()> {
        black_box(bytes.to_vec());
        Ok(())
    }
}

async fn save(store: &Store, id: &str, source: &Arc<Bytes>, base: Option<&str>) -> Result<()> {
    let options = SaveOptions {
        bases: base.into_iter().map(parse).collect(),
        ..SaveOptions::default()
    };
    let mut writer = store.save(&parse(id), options).await?;
    writer
        .add(NewSection::blob(
            Role::Memory,
            "",
            Input::Source(source.clone()),
        ))
        .await?;
    writer.finish().await.map(drop)
}

fn parse(id: &str) -> SnapshotId {
    id.parse().expect("an id")
}

fn whole(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("the system can start threads");
    let store = Store::open("memory://bench").expect("a store in memory");
    let source = Arc::new(Bytes(mixed()));
    let mut group = criterion.benchmark_group("64 MiB in memory");
    group
        .throughput(Throughput::Bytes(source.0.len() as u64))
        .sample_size(10);
    runtime
        .block_on(save(&store, "base", &source, None))
        .expect("saved");
    // The second one is what a look-up in the base costs beside hashing: nothing is cut, encoded or stored.
    for (name, base) in [("save", None), ("save against itself", Some("base"))] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    let start = Instant::now();
                    runtime
                        .block_on(save(&store, "next", &source, base))
                        .expect("saved");
                    spent += start.elapsed();
                    runtime
                        .block_on(store.remove(&parse("next")))
                        .expect("removed");
                }
                spent
            })
        });
    }
    group.bench_function("restore", |bencher| {
        bencher.iter(|| {
            let restored = runtime.block_on(async {
                let snapshot = store.snapshot(&parse("base")).await?;
                let targets: Vec<(usize, Arc<dyn Target>)> = vec![(0, Arc::new(Sink))];
                snapshot
                    .restore_to(&store, targets, &RestoreOptions::default())
                    .await
            });
            restored.expect("restored")
        })
    });
    group.finish();
}

criterion_group!(benches, cutting, hashing, whole);
criterion_main!(benches);
