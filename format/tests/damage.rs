//! Whatever is done to an object is an error, or harmless; never a panic, never a silent difference, and never memory
//! for things that are not there.

mod sample;

use podsnap_format::header::PackName;
use podsnap_format::manifest::PackInfo;
use podsnap_format::{
    Directory, Footer, FormatError, HEADER_LEN, Header, Key, Kind, PackIndex, Segment, SegmentInfo,
    VERSION, WorkingSet,
};
use proptest::prelude::*;
use sample::KEY;

/// Reads an object of the sample as what it is.
fn read(which: usize, object: &[u8]) -> Result<(), FormatError> {
    match which {
        0 => sample::read_pack(object, Some(&Key::new(KEY))).map(drop),
        3 => sample::read_working_set(object).map(drop),
        _ => sample::read_manifest(object).map(drop),
    }
}

fn objects() -> &'static [Vec<u8>; 4] {
    static OBJECTS: std::sync::OnceLock<[Vec<u8>; 4]> = std::sync::OnceLock::new();
    OBJECTS.get_or_init(|| {
        let sample = sample::sample();
        [
            sample.packs.into_iter().next().unwrap(),
            sample.manifest,
            sample.export,
            sample.working_set,
        ]
    })
}

/// Where to do damage: anywhere, or near an end, where most of the structure is.
fn place() -> impl Strategy<Value = (u8, prop::sample::Index)> {
    (0..3u8, any::<prop::sample::Index>())
}

fn resolve((near, index): (u8, prop::sample::Index), len: usize) -> usize {
    match near {
        0 => index.index(len),
        1 => index.index(len.min(HEADER_LEN + 64)),
        _ => len - 1 - index.index(len.min(1200)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_changed_byte_is_noticed(which in 0..4usize, place in place(), flip in 1..=255u8) {
        let mut object = objects()[which].clone();
        let at = resolve(place, object.len());
        object[at] ^= flip;
        prop_assert!(read(which, &object).is_err());
    }

    #[test]
    fn a_missing_or_repeated_piece_is_noticed(
        which in 0..4usize,
        place in place(),
        len in 1..600usize,
        repeat in any::<bool>(),
    ) {
        let mut object = objects()[which].clone();
        let at = resolve(place, object.len());
        let end = (at + len).min(object.len());
        let piece = if repeat { object[at..end].repeat(2) } else { vec![] };
        object.splice(at..end, piece);
        prop_assert!(read(which, &object).is_err());
    }

    #[test]
    fn an_object_cut_short_is_noticed(which in 0..4usize, place in place()) {
        let object = &objects()[which];
        prop_assert!(read(which, &object[..resolve(place, object.len())]).is_err());
    }

    /// With checksums made right again, what is left is to stay calm: any answer but a panic.
    #[test]
    fn a_changed_trailer_with_right_hashes_does_no_harm(
        which in 0..4usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let object = &objects()[which];
        let mut footer = Footer::parse(object).unwrap();
        let mut trailer = footer.trailer_in(object).unwrap().to_vec();
        for (index, byte) in changes {
            let at = HEADER_LEN + index.index(trailer.len() - HEADER_LEN);
            trailer[at] = byte;
        }
        footer.trailer_hash = *blake3::hash(&trailer).as_bytes();
        if let Ok(index) = PackIndex::parse(&footer, &trailer) {
            prop_assert!(index.entries.iter().all(|entry| entry.offset + entry.frame_len() <= footer.frames_end));
        }
        if let Ok(directory) = Directory::parse(&footer, &trailer) {
            for section in &directory.sections {
                let len: u64 = section.segments.iter().map(|segment| segment.section_len).sum();
                prop_assert_eq!(len, section.length);
            }
        }
        if let Ok(set) = WorkingSet::parse(&footer, &trailer) {
            // What a reader accepts, a writer can write.
            let again = set.encode().unwrap();
            prop_assert_eq!(sample::read_working_set(&again).unwrap(), set);
        }
    }

    #[test]
    fn a_changed_segment_maps_what_it_should_or_is_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let object = &objects()[1];
        let (directory, _) = sample::read_manifest(object).unwrap();
        for info in directory.sections.iter().flat_map(|section| &section.segments) {
            let start = info.object_offset as usize;
            let mut bytes = object[start..start + info.object_len as usize].to_vec();
            for (index, byte) in &changes {
                let at = index.index(bytes.len());
                bytes[at] = *byte;
            }
            if let Ok(segment) = Segment::parse(&bytes, info.section_len, &directory.packs) {
                prop_assert_eq!(segment.len(), info.section_len);
                for chunk in &segment.chunks {
                    let pack = &directory.packs[chunk.location.pack as usize];
                    prop_assert!(chunk.location.offset + chunk.location.frame_len() <= pack.length);
                }
                // What a reader accepts, a writer can write.
                let again = segment.encode().unwrap();
                prop_assert_eq!(Segment::parse(&again, info.section_len, &directory.packs).unwrap(), segment);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_segment_that_does_not_add_up(
        bytes in prop::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..200),
        section_len in any::<u64>(),
    ) {
        let pack = PackInfo {
            snapshot: "s".parse().unwrap(),
            name: PackName { attempt: 0, number: 0 }.to_string(),
            version: String::new(),
            length: 1 << 40,
            crc32c: 0,
        };
        if let Ok(segment) = Segment::parse(&bytes, section_len, &[pack.clone(), pack]) {
            prop_assert_eq!(segment.len(), section_len);
        }
    }
}

/// A header with some bytes replaced and its CRC made right again.
fn patched_header(at: usize, bytes: &[u8]) -> [u8; HEADER_LEN] {
    let mut header = Header::new(Kind::Manifest, "s".parse().unwrap(), 1).encode();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&header[..188]);
    header[188..].copy_from_slice(&crc.to_le_bytes());
    header
}

#[test]
fn an_unknown_version_is_refused_by_number_and_is_not_damage() {
    let error = Header::parse(&patched_header(8, &[2, 0])).unwrap_err();
    assert_eq!(
        error,
        FormatError::Version {
            what: "header",
            found: VERSION + 1
        }
    );
    assert!(error.is_unsupported());
}

#[test]
fn unknown_incompatible_features_are_refused_by_name_and_others_are_not() {
    let error = Header::parse(&patched_header(16, &[0b101, 0, 0x80])).unwrap_err();
    assert_eq!(error, FormatError::Features { bits: 0x80_0004 });
    assert!(error.to_string().contains("bit 2, bit 23"), "{error}");
    assert!(error.is_unsupported());
    assert_eq!(
        Header::parse(&patched_header(24, &[4]))
            .unwrap()
            .read_only_compatible,
        4
    );
    assert_eq!(
        Header::parse(&patched_header(32, &[4])).unwrap().compatible,
        4
    );
}

#[test]
fn what_must_be_zero_in_a_header_is() {
    // Pack number of a manifest, key check without a key, padding of the id, reserved.
    for at in [12, 48, 63, 67, 184, 185, 187] {
        let error = Header::parse(&patched_header(at, &[1])).unwrap_err();
        assert!(
            matches!(error, FormatError::Field { .. }),
            "offset {at}: {error}"
        );
        assert!(!error.is_unsupported());
    }
    for (at, bytes) in [
        (10, [0, 0]),
        (10, [5, 0]),
        (64, [0, 0]),
        (64, [121, b's']),
        (65, [b'/', 0]),
    ] {
        assert!(
            Header::parse(&patched_header(at, &bytes)).is_err(),
            "offset {at}"
        );
    }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A trailer that ends right after a huge count, with a footer that vouches for it.
fn trailer(kind: Kind, body: &[u8]) -> (Footer, Vec<u8>) {
    let header = Header::new(kind, "s".parse().unwrap(), 1).encode();
    let trailer = [&header[..], body].concat();
    let start = HEADER_LEN as u64;
    let footer = Footer {
        kind,
        trailer_offset: start,
        trailer_len: trailer.len() as u64,
        total_len: start + trailer.len() as u64 + 80,
        trailer_hash: *blake3::hash(&trailer).as_bytes(),
        frames_end: start,
    };
    (footer, trailer)
}

/// If memory were reserved for any of these counts, the test would abort.
#[test]
fn a_count_of_things_that_are_not_there_reserves_nothing() {
    for count in [1 << 60, 1 << 44, u64::MAX] {
        let count = varint(count);
        let rest = [1; 400];
        let (footer, bytes) = trailer(Kind::Pack, &[&count[..], &rest].concat());
        assert!(PackIndex::parse(&footer, &bytes).is_err());

        let section = [1, 1, 0, 0, 0, 1, 1];
        let before: [&[u8]; 5] = [
            &[],                                        // length of the metadata
            &[0],                                       // packs
            &[0, 0],                                    // sections
            &[&[0, 0, 1], &section[..]].concat(),       // address ranges
            &[&[0, 0, 1], &section[..], &[0]].concat(), // segments
        ];
        for before in before {
            let (footer, bytes) = trailer(Kind::Manifest, &[before, &count, &rest].concat());
            assert!(Directory::parse(&footer, &bytes).is_err());
        }

        let body = [&[0; 32][..], &[12], &count, &rest].concat();
        let (footer, bytes) = trailer(Kind::WorkingSet, &body);
        assert!(WorkingSet::parse(&footer, &bytes).is_err());

        let before: [&[u8]; 2] = [&[], &[0]]; // chunks, operations
        for before in before {
            assert!(Segment::parse(&[before, &count, &rest].concat(), 1 << 30, &[]).is_err());
        }
    }
}

/// The positions that the test above assumes: the same bytes with small counts are a directory.
#[test]
fn the_counts_of_the_test_above_are_where_it_thinks() {
    let (footer, bytes) = trailer(Kind::Manifest, &[0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0]);
    assert_eq!(Directory::parse(&footer, &bytes).unwrap().sections.len(), 1);
    assert!(Segment::parse(&[0, 0], 0, &[]).unwrap().is_empty());
    let body = [&[0; 32][..], &[12, 1], &[0, 0, 1, 0]].concat();
    let (footer, bytes) = trailer(Kind::WorkingSet, &body);
    assert_eq!(WorkingSet::parse(&footer, &bytes).unwrap().touches.len(), 1);
}

#[test]
fn a_segment_in_the_place_of_another_is_noticed() {
    let object = &objects()[1];
    let (directory, _) = sample::read_manifest(object).unwrap();
    let [first, second] = &directory.sections[0].segments[..] else {
        panic!("two segments")
    };
    let bytes = |info: &SegmentInfo| {
        let start = info.object_offset as usize;
        &object[start..start + info.object_len as usize]
    };
    assert!(first.open(bytes(first), &directory.packs).is_ok());
    assert_eq!(
        first.open(bytes(second), &directory.packs),
        Err(FormatError::Hash { what: "segment" })
    );
}
