//! How fast extent maps and indexes are written, read and searched, for 100,000 chunks (6 GiB at 64 KiB each).

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use podsnap_format::codec::{Codec, Decoder, Encoder, Policy};
use podsnap_format::frame::{append_frame, decode_frame};
use podsnap_format::header::PackName;
use podsnap_format::manifest::{Chunk, ChunkingParams, Extent, Location, PackInfo, SectionBuilder};
use podsnap_format::{
    ChunkId, Directory, Footer, HEADER_LEN, Header, Kind, MAX_SEGMENT_EXTENTS, ManifestBuilder,
    PackIndex, PackIndexBuilder, Role, SectionInfo, Segment, Shape,
};

const CHUNKS: u32 = 100_000;

/// Chunks of varying lengths. Every 50th lies in the second pack, as after a save against a base.
fn chunks() -> Vec<Chunk> {
    let mut ends = [HEADER_LEN as u64; 2];
    let chunk = |i: u32| {
        let raw_len = 32_768 + i.wrapping_mul(2_654_435_761) % 65_536;
        let pack = u32::from(i.is_multiple_of(50));
        let location = Location {
            pack,
            offset: ends[pack as usize],
            encoded_len: raw_len / 2 + i % 1000,
        };
        ends[pack as usize] += location.frame_len();
        let id = ChunkId::of(&i.to_le_bytes(), None);
        Chunk {
            id,
            raw_len,
            codec: if i.is_multiple_of(7) {
                Codec::Raw
            } else {
                Codec::Zstd
            },
            location,
        }
    };
    let mut chunks: Vec<Chunk> = (0..CHUNKS).map(chunk).collect();
    for chunk in chunks.iter_mut().filter(|chunk| chunk.codec == Codec::Raw) {
        chunk.raw_len = chunk.location.encoded_len;
    }
    chunks
}

fn segments(chunks: &[Chunk]) -> Vec<Segment> {
    let segment = |chunks: &[Chunk]| Segment {
        extents: (0..)
            .zip(chunks)
            .map(|(chunk, c)| Extent::Chunk {
                chunk,
                start: 0,
                len: c.raw_len,
            })
            .collect(),
        chunks: chunks.to_vec(),
    };
    chunks.chunks(MAX_SEGMENT_EXTENTS).map(segment).collect()
}

fn packs() -> Vec<PackInfo> {
    let pack = |number| PackInfo {
        snapshot: "bench".parse().expect("an id"),
        name: PackName { attempt: 1, number }.to_string(),
        version: String::new(),
        length: 1 << 40,
        crc32c: 0,
    };
    vec![pack(0), pack(1)]
}

fn bench_segments(c: &mut Criterion) {
    let segments = segments(&chunks());
    let packs = packs();
    let encoded: Vec<Vec<u8>> = segments
        .iter()
        .map(|segment| segment.encode().expect("valid"))
        .collect();
    let mut group = c.benchmark_group("segments");
    group.throughput(Throughput::Elements(CHUNKS.into()));
    group.bench_function("encode", |b| {
        b.iter(|| {
            segments
                .iter()
                .map(|segment| segment.encode().expect("valid").len())
                .sum::<usize>()
        });
    });
    group.bench_function("parse", |b| {
        let parse = |(bytes, segment): (&Vec<u8>, &Segment)| {
            Segment::parse(bytes, segment.len(), &packs)
                .expect("valid")
                .chunks
                .len()
        };
        b.iter(|| encoded.iter().zip(&segments).map(parse).sum::<usize>());
    });
    group.finish();
}

fn bench_lookup(c: &mut Criterion) {
    let segments = segments(&chunks());
    let mut section = SectionBuilder::new();
    segments
        .iter()
        .for_each(|segment| section.push(segment).expect("valid"));
    let length = section.len();
    let header = Header::new(Kind::Manifest, "bench".parse().expect("an id"), 1);
    let mut builder = ManifestBuilder::new(header, HEADER_LEN as u64);
    let chunking = ChunkingParams::Fixed { size: 65_536 };
    builder.section(
        SectionInfo::new(Role::Memory, "", Shape::Blob, chunking),
        section,
    );
    let bytes = builder.finish("{}", &packs()).expect("valid").bytes;
    let footer = Footer::parse(&bytes).expect("a footer");
    let trailer = footer.trailer_in(&bytes).expect("a directory");
    c.bench_function("directory/parse", |b| {
        b.iter(|| Directory::parse(&footer, black_box(trailer)).expect("valid"))
    });

    let directory = Directory::parse(&footer, trailer).expect("valid");
    let section = &directory.sections[0];
    let by_offset: HashMap<u64, &Segment> = section
        .segments
        .iter()
        .map(|info| info.section_offset)
        .zip(&segments)
        .collect();
    let mut offset = 0u64;
    c.bench_function("lookup/section offset to chunk", |b| {
        b.iter(|| {
            offset = (offset + 0x9e37_79b9_7f4a) % length;
            let info = section.segment_at(offset).expect("a segment");
            let segment = &by_offset[&info.section_offset];
            segment.extent_at(offset - info.section_offset)
        });
    });
}

fn bench_pack_index(c: &mut Criterion) {
    let header = Header::new(Kind::Pack, "bench".parse().expect("an id"), 1);
    let mut builder = PackIndexBuilder::new(header);
    let mut end = HEADER_LEN as u64;
    for chunk in chunks() {
        builder.push(
            &chunk.id,
            chunk.codec,
            chunk.raw_len,
            chunk.location.encoded_len,
        );
        end += chunk.location.frame_len();
    }
    let bytes = builder.finish(end).expect("valid");
    let footer = Footer::parse(&bytes).expect("a footer");
    let trailer = footer.trailer_in(&bytes).expect("an index");
    let mut group = c.benchmark_group("pack index");
    group.throughput(Throughput::Elements(CHUNKS.into()));
    group.bench_function("parse", |b| {
        b.iter(|| PackIndex::parse(&footer, black_box(trailer)).expect("valid"))
    });
    group.finish();

    let index = PackIndex::parse(&footer, trailer).expect("valid");
    let mut i = 0;
    c.bench_function("lookup/frame by offset", |b| {
        b.iter(|| {
            i = (i + 61_803) % index.entries.len();
            index.at_offset(black_box(index.entries[i].offset))
        });
    });
}

/// What a frame costs beside its codec.
fn bench_raw_frames(c: &mut Criterion) {
    let raw: Vec<u8> = (0..65_536u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let mut group = c.benchmark_group("raw frame of 64 KiB");
    group.throughput(Throughput::Bytes(raw.len() as u64));
    let mut encoder = Encoder::new(Policy::None);
    let mut frame = Vec::new();
    group.bench_function("append", |b| {
        b.iter(|| {
            frame.clear();
            append_frame(&mut frame, black_box(&raw), &mut encoder, None)
        });
    });
    let mut out = Vec::new();
    let mut decoder = Decoder::new();
    group.bench_function("decode", |b| {
        b.iter(|| decode_frame(black_box(&frame), &mut decoder, &mut out))
    });
    group.finish();
}

criterion_group!(
    benches,
    bench_segments,
    bench_lookup,
    bench_pack_index,
    bench_raw_frames
);
criterion_main!(benches);
