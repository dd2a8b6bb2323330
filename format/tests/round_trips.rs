//! Whatever is written is read back the same.

use std::time::Duration;

use podsnap_format::codec::{Codec, Decoder, Encoder, Policy, Width};
use podsnap_format::frame::{append_frame, decode_frame};
use podsnap_format::header::PackName;
use podsnap_format::manifest::{
    AddressRange, Chunk, ChunkingParams, Extent, Location, MAX_SEGMENT_LEN, PackInfo,
    SectionBuilder,
};
use podsnap_format::{
    ChunkId, Digest, Directory, Footer, HEADER_LEN, Header, Kind, MAX_CHUNK_LEN,
    MAX_SEGMENT_EXTENTS, ManifestBuilder, PackIndex, PackIndexBuilder, PackIndexEntry, Role,
    SectionInfo, Segment, Shape, SnapshotId, WorkingSet,
    working_set::{MAX_TOUCHES, MAX_WORKING_SET_LEN, Touch},
};
use proptest::collection::vec;
use proptest::prelude::*;

fn snapshot_id() -> impl Strategy<Value = SnapshotId> {
    "[A-Za-z0-9_-][A-Za-z0-9._-]{0,119}".prop_map(|id| id.parse().unwrap())
}

fn header(kind: Kind) -> impl Strategy<Value = Header> {
    (
        any::<u32>(),
        any::<u64>(),
        snapshot_id(),
        any::<Option<[u8; 16]>>(),
        any::<u64>(),
        any::<u64>(),
    )
        .prop_map(
            move |(number, attempt, snapshot, key_check, read_only_compatible, compatible)| {
                Header {
                    kind,
                    pack_number: if kind == Kind::Pack { number } else { 0 },
                    attempt,
                    snapshot,
                    key_check,
                    read_only_compatible,
                    compatible,
                }
            },
        )
}

fn any_header() -> impl Strategy<Value = Header> {
    prop_oneof![
        header(Kind::Pack),
        header(Kind::Manifest),
        header(Kind::Export),
        header(Kind::WorkingSet)
    ]
}

/// A codec with a raw and an encoded length.
fn lengths() -> impl Strategy<Value = (Codec, u32, u32)> {
    let codec = prop::sample::select(vec![
        Codec::Raw,
        Codec::Zstd,
        Codec::Planes(Width::Two),
        Codec::Planes(Width::Four),
        Codec::Planes(Width::Eight),
    ]);
    (
        codec,
        1..=MAX_CHUNK_LEN as u32,
        any::<prop::sample::Index>(),
    )
        .prop_map(|(codec, raw_len, index)| {
            let encoded_len = if codec == Codec::Raw {
                raw_len
            } else {
                1 + index.index(raw_len as usize) as u32
            };
            (codec, raw_len, encoded_len)
        })
}

const PACKS: u32 = 4;

/// Chunks that mostly continue where the one before ended in the same pack, with a step now and then.
fn chunks(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Chunk>> {
    let step = prop_oneof![4 => Just(None), 1 => (HEADER_LEN as u64..1 << 40).prop_map(Some)];
    let pack = prop_oneof![4 => Just(None), 1 => (0..PACKS).prop_map(Some)];
    vec((any::<[u8; 32]>(), lengths(), pack, step), count).prop_map(|specs| {
        let mut ends = [HEADER_LEN as u64; PACKS as usize];
        let mut pack = 0;
        let chunk = |(id, (codec, raw_len, encoded_len), other_pack, step): (
            _,
            _,
            Option<u32>,
            Option<u64>,
        )| {
            pack = other_pack.unwrap_or(pack);
            let end = &mut ends[pack as usize];
            let location = Location {
                pack,
                offset: step.unwrap_or(*end),
                encoded_len,
            };
            *end = location.offset + location.frame_len();
            Chunk {
                id: ChunkId(id),
                raw_len,
                codec,
                location,
            }
        };
        specs.into_iter().map(chunk).collect()
    })
}

/// A segment of any extents over any chunks, used in any order.
fn segment() -> impl Strategy<Value = Segment> {
    let extent = (
        0..4u8,
        any::<prop::sample::Index>(),
        any::<u32>(),
        any::<u32>(),
        1..1u64 << 40,
    );
    (chunks(0..40), vec(extent, 1..80)).prop_map(|(chunks, specs)| {
        let mut fresh = 0;
        let extents = specs.into_iter().map(|(kind, index, start, len, zeros)| {
            if kind == 0 || chunks.is_empty() {
                return Extent::Zero { len: zeros };
            }
            if kind == 1 && fresh < chunks.len() {
                fresh += 1;
                return Extent::Chunk {
                    chunk: fresh as u32 - 1,
                    start: 0,
                    len: chunks[fresh - 1].raw_len,
                };
            }
            let chunk = index.index(chunks.len());
            let raw_len = chunks[chunk].raw_len;
            let (start, len) = match kind {
                3 => (start % raw_len, 1 + len % (raw_len - start % raw_len)),
                _ => (0, raw_len),
            };
            Extent::Chunk {
                chunk: chunk as u32,
                start,
                len,
            }
        });
        let extents = extents.collect();
        Segment { chunks, extents }
    })
}

fn pack_table() -> Vec<PackInfo> {
    let pack = |number| PackInfo {
        snapshot: "s".parse().unwrap(),
        name: PackName { attempt: 1, number }.to_string(),
        version: String::new(),
        length: 1 << 50,
        crc32c: number,
    };
    (0..PACKS).map(pack).collect()
}

fn section() -> impl Strategy<Value = (SectionInfo, Vec<Segment>)> {
    let role = prop::sample::select(Role::ALL.to_vec());
    let chunking = prop_oneof![
        (1..=MAX_CHUNK_LEN as u32).prop_map(|size| ChunkingParams::Fixed { size }),
        [
            1..=MAX_CHUNK_LEN as u32,
            1..=MAX_CHUNK_LEN as u32,
            1..=MAX_CHUNK_LEN as u32
        ]
        .prop_map(|mut lens| {
            lens.sort();
            ChunkingParams::Cdc {
                min: lens[0],
                avg: lens[1],
                max: lens[2],
            }
        }),
    ];
    let ranges = vec(
        (
            any::<u64>(),
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
        ),
        0..4,
    );
    (
        role,
        "\\PC{0,40}",
        any::<bool>(),
        chunking,
        vec(segment(), 0..4),
        ranges,
    )
        .prop_map(|(role, name, tree, chunking, segments, ranges)| {
            let shape = if tree { Shape::Tree } else { Shape::Blob };
            let mut info = SectionInfo::new(role, name, shape, chunking);
            let length: u64 = segments.iter().map(Segment::len).sum();
            if length > 0 {
                info.table_length = if tree { length / 3 } else { 0 };
                let range = |(start, a, b): (u64, prop::sample::Index, prop::sample::Index)| {
                    let length_of =
                        |index: prop::sample::Index, max: u64| index.index(max as usize) as u64;
                    let section_offset = length_of(a, length);
                    let length =
                        (1 + length_of(b, length - section_offset)).min((u64::MAX - start).max(1));
                    AddressRange {
                        start,
                        length,
                        section_offset,
                    }
                };
                info.address_ranges = ranges.into_iter().map(range).collect();
            }
            (info, segments)
        })
}

proptest! {
    #[test]
    fn a_header_comes_back(header in any_header()) {
        prop_assert_eq!(Header::parse(&header.encode()).unwrap(), header);
    }

    #[test]
    fn a_pack_name_comes_back(attempt in any::<u64>(), number in any::<u32>()) {
        let name = PackName { attempt, number };
        prop_assert_eq!(name.to_string().parse::<PackName>().unwrap(), name);
    }

    #[test]
    fn a_footer_comes_back(
        hash in any::<[u8; 32]>(),
        frames in 0..1u64 << 60,
        segments in 0..1u64 << 60,
        trailer_len in 0..1u64 << 26,
    ) {
        let start = HEADER_LEN as u64;
        for (kind, frames, segments) in
            [(Kind::Pack, frames, 0), (Kind::Manifest, 0, segments), (Kind::Export, frames, segments)]
        {
            let footer = Footer {
                kind,
                trailer_offset: start + frames + segments,
                trailer_len,
                total_len: start + frames + segments + trailer_len + 80,
                trailer_hash: hash,
                frames_end: start + frames,
            };
            prop_assert_eq!(Footer::parse(&footer.encode()).unwrap(), footer);
        }
    }

    #[test]
    fn a_frame_comes_back(
        raw in prop_oneof![vec(any::<u8>(), 1..3000), vec(prop::sample::select(vec![0u8, 1, 63]), 1..3000)],
        policy in prop::sample::select(vec![Policy::Auto, Policy::None, Policy::Zstd(1)]),
        stale in vec(any::<u8>(), 0..4000),
    ) {
        let mut frame = Vec::new();
        let codec = append_frame(&mut frame, &raw, &mut Encoder::new(policy), None);
        prop_assert!(frame.len() <= 12 + raw.len());
        let mut out = stale;
        prop_assert_eq!(decode_frame(&frame, &mut Decoder::new(), &mut out).unwrap(), codec);
        prop_assert_eq!(out, raw);
    }

    #[test]
    fn a_pack_index_comes_back(header in header(Kind::Pack), frames in vec((any::<[u8; 32]>(), lengths()), 0..50)) {
        let mut builder = PackIndexBuilder::new(header.clone());
        let mut offset = HEADER_LEN as u64;
        let mut entries = Vec::new();
        for (id, (codec, raw_len, encoded_len)) in frames {
            let id = ChunkId(id);
            builder.push(&id, codec, raw_len, encoded_len);
            entries.push(PackIndexEntry { codec, raw_len, encoded_len, id_prefix: id.prefix(), offset });
            offset += 12 + u64::from(encoded_len);
        }
        let bytes = builder.finish(offset).unwrap();
        let footer = Footer::parse(&bytes).unwrap();
        let index = PackIndex::parse(&footer, footer.trailer_in(&bytes).unwrap()).unwrap();
        for entry in &entries {
            prop_assert_eq!(index.at_offset(entry.offset), Some(entry));
            prop_assert_eq!(index.at_offset(entry.offset + 1), None);
        }
        prop_assert_eq!(index, PackIndex { header, entries });
    }

    #[test]
    fn a_segment_comes_back(segment in segment()) {
        let bytes = segment.encode().unwrap();
        prop_assert_eq!(Segment::parse(&bytes, segment.len(), &pack_table()).unwrap(), segment);
    }

    #[test]
    fn an_offset_finds_its_extent(segment in segment(), index in any::<prop::sample::Index>()) {
        let offset = index.index(segment.len() as usize) as u64;
        let (found, start) = segment.extent_at(offset).unwrap();
        prop_assert_eq!(start, segment.extents[..found].iter().map(Extent::len).sum::<u64>());
        prop_assert!((start..start + segment.extents[found].len()).contains(&offset));
        prop_assert_eq!(segment.extent_at(segment.len()), None);
    }

    #[test]
    fn a_working_set_comes_back(set in working_set()) {
        let object = set.encode().unwrap();
        prop_assert_eq!(Header::parse(&object).unwrap(), set.header.clone());
        let footer = Footer::parse(&object).unwrap();
        prop_assert_eq!(footer.total_len, object.len() as u64);
        let trailer = footer.trailer_in(&object).unwrap();
        prop_assert_eq!(WorkingSet::parse(&footer, trailer).unwrap(), set);
    }

    #[test]
    fn a_working_set_that_contradicts_itself_is_not_written(
        set in working_set(),
        index in any::<prop::sample::Index>(),
    ) {
        let touches = &set.touches;
        prop_assume!(!touches.is_empty());
        let one = &touches[index.index(touches.len())];
        let with = |touch: Touch| {
            let touches = [&touches[..], &[touch]].concat();
            WorkingSet { touches, ..set.clone() }.encode()
        };
        let last = touches.last().unwrap();
        let free = Touch { section: 4095, at: last.at, range: 0..set.page_len };
        prop_assert!(with(free.clone()).is_ok());
        let again = Touch { at: last.at, ..one.clone() };
        prop_assert!(with(again).is_err(), "overlaps");
        prop_assert!(with(Touch { section: 4096, ..free.clone() }).is_err(), "no section");
        prop_assert!(with(Touch { range: 0..0, ..free.clone() }).is_err(), "nothing");
        prop_assert!(with(Touch { range: 0..set.page_len + 1, ..free.clone() }).is_err(), "part of a page");
        prop_assert!(with(Touch { at: last.at + Duration::from_nanos(1), ..free.clone() }).is_err(), "part of a microsecond");
        prop_assert!(with(Touch { range: 1 << 62..(1 << 62) + set.page_len, ..free.clone() }).is_err(), "beyond any section");
        if let Some(at) = last.at.checked_sub(Duration::from_micros(1)) {
            prop_assert!(with(Touch { at, ..free }).is_err(), "goes back in time");
        }
    }

    #[test]
    fn a_directory_comes_back(
        header in header(Kind::Manifest),
        metadata in "\\PC{0,200}",
        sections in vec(section(), 0..4),
    ) {
        let mut builder = ManifestBuilder::new(header.clone(), HEADER_LEN as u64);
        let mut written = Vec::new();
        for (number, (mut info, segments)) in sections.into_iter().enumerate() {
            info.name.push_str(&number.to_string());
            let mut section = SectionBuilder::new();
            segments.iter().try_for_each(|segment| section.push(segment)).unwrap();
            builder.section(info.clone(), section);
            written.push((info, segments));
        }
        let encoded = builder.finish(&metadata, &pack_table()).unwrap();
        let object = [&header.encode()[..], &encoded.bytes].concat();

        let footer = Footer::parse(&object).unwrap();
        prop_assert_eq!(footer.total_len, object.len() as u64);
        let directory = Directory::parse(&footer, footer.trailer_in(&object).unwrap()).unwrap();
        prop_assert_eq!(&directory.header, &header);
        prop_assert_eq!(&directory.metadata, &metadata);
        prop_assert_eq!(&directory.packs, &pack_table());
        prop_assert_eq!(directory.digest, encoded.digest);
        prop_assert_eq!(directory.sections.len(), written.len());
        for (section, (info, segments)) in directory.sections.iter().zip(written) {
            for (found, segment) in section.segments.iter().zip(&segments) {
                let start = found.object_offset as usize;
                let bytes = &object[start..start + found.object_len as usize];
                prop_assert_eq!(&found.open(bytes, &directory.packs).unwrap(), segment);
                prop_assert_eq!(section.segment_at(found.section_offset + segment.len() - 1), Some(found));
            }
            prop_assert_eq!(section.segment_at(section.length), None);
            prop_assert_eq!(section.segments.len(), segments.len());
            let length = segments.iter().map(Segment::len).sum();
            prop_assert_eq!(section, &SectionInfo { length, segments: section.segments.clone(), ..info });
        }
    }
}

/// Ranges of some sections that do not overlap, in an order and at times of their own.
fn working_set() -> impl Strategy<Value = WorkingSet> {
    let ranges = vec((0..4u32, 0..5u64, 1..5u64, 0..1u64 << 40), 0..40);
    (
        header(Kind::WorkingSet),
        any::<[u8; 32]>(),
        12..48u32,
        ranges.prop_shuffle(),
        any::<u64>(),
    )
        .prop_map(|(header, digest, shift, ranges, seed)| {
            let mut ends = [0; 4];
            let mut touches: Vec<Touch> = ranges
                .into_iter()
                .map(|(section, gap, pages, _)| {
                    let end = &mut ends[section as usize];
                    let start = *end + gap;
                    *end = start + pages;
                    Touch {
                        section,
                        range: start << shift..*end << shift,
                        at: Duration::ZERO,
                    }
                })
                .collect();
            touches.sort_by_key(|touch| {
                (touch.range.start ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            });
            for (number, touch) in touches.iter_mut().enumerate() {
                touch.at = Duration::from_micros(number as u64 * (seed >> 20));
            }
            WorkingSet {
                header,
                digest: Digest(digest),
                page_len: 1 << shift,
                touches,
            }
        })
}

/// As many ranges as there may be, each as long as it can be.
#[test]
fn the_largest_working_set_is_within_the_limit() {
    let far = (1 << 62) - (MAX_TOUCHES as u64) * 8192;
    let touch = |i: usize| {
        // Turn about from one end of the section to the other.
        let half = i as u64 / 2 * 8192;
        let start = if i.is_multiple_of(2) {
            half
        } else {
            far + half
        };
        Touch {
            section: 4095,
            range: start..start + 4096,
            at: Duration::from_micros(i as u64 * ((1 << 53) / MAX_TOUCHES as u64)),
        }
    };
    let mut set = WorkingSet {
        header: Header::new(Kind::WorkingSet, "s".parse().unwrap(), 1),
        digest: Digest([7; 32]),
        page_len: 4096,
        touches: (0..MAX_TOUCHES).map(touch).collect(),
    };
    let len = set.encode().unwrap().len() as u64;
    assert!(
        (MAX_WORKING_SET_LEN / 4..MAX_WORKING_SET_LEN).contains(&len),
        "{len} bytes"
    );
    set.touches.push(Touch {
        section: 0,
        ..touch(MAX_TOUCHES)
    });
    assert!(set.encode().is_err());
}

/// As many chunks and extents as a segment may have, each as costly as it can be.
#[test]
fn the_largest_segment_is_within_the_limit() {
    let chunk = |i: usize| Chunk {
        id: ChunkId([i as u8; 32]),
        raw_len: MAX_CHUNK_LEN as u32,
        codec: if i.is_multiple_of(2) {
            Codec::Zstd
        } else {
            Codec::Planes(Width::Two)
        },
        location: Location {
            pack: (1 << 16) - 2 + i as u32 % 2,
            offset: if i % 4 < 2 { 1 << 62 } else { 192 },
            encoded_len: 1,
        },
    };
    let chunks: Vec<Chunk> = (0..MAX_SEGMENT_EXTENTS).map(chunk).collect();
    let extent = |i: usize| {
        let chunk = if i.is_multiple_of(2) {
            i / 2
        } else {
            MAX_SEGMENT_EXTENTS - 1 - i / 2
        } as u32;
        Extent::Chunk {
            chunk,
            start: (MAX_CHUNK_LEN / 2) as u32,
            len: (MAX_CHUNK_LEN / 2) as u32,
        }
    };
    let segment = Segment {
        chunks,
        extents: (0..MAX_SEGMENT_EXTENTS).map(extent).collect(),
    };
    let len = segment.encode().unwrap().len() as u64;
    assert!(
        (MAX_SEGMENT_LEN / 4..MAX_SEGMENT_LEN).contains(&len),
        "{len} bytes"
    );
}

/// The budget of the format: at 64 KiB chunks, an extent map takes at most 0.1 % of what it maps.
#[test]
fn a_dense_segment_is_less_than_a_thousandth_of_what_it_maps() {
    let mut offset = HEADER_LEN as u64;
    let mut chunk = |i: u32| {
        let (raw_len, encoded_len) = (49_152 + i * 7919 % 32_768, 30_000 + i * 104_729 % 19_000);
        let location = Location {
            pack: 0,
            offset,
            encoded_len,
        };
        offset += location.frame_len();
        Chunk {
            id: ChunkId([i as u8; 32]),
            raw_len,
            codec: Codec::Zstd,
            location,
        }
    };
    let chunks: Vec<Chunk> = (0..2048).map(&mut chunk).collect();
    let whole = |(i, chunk): (usize, &Chunk)| Extent::Chunk {
        chunk: i as u32,
        start: 0,
        len: chunk.raw_len,
    };
    let segment = Segment {
        extents: chunks.iter().enumerate().map(whole).collect(),
        chunks,
    };
    assert!(segment.encode().unwrap().len() as u64 * 1600 < segment.len());
}
