//! Finding frames without an index.

mod sample;

use std::ops::Range;
use std::time::{Duration, Instant};

use podsnap_format::codec::{Encoder, Policy};
use podsnap_format::frame::append_frame;
use podsnap_format::scan::Scanned;
use podsnap_format::{FrameScanner, HEADER_LEN, Header, Kind, PackIndexBuilder};
use proptest::prelude::*;
use sample::Noise;

/// Frames of incompressible bytes one after another, and where each ends.
fn frames(lens: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let mut noise = Noise(9);
    let mut bytes = Vec::new();
    let mut ends = Vec::new();
    for &len in lens {
        let raw: Vec<u8> = (0..len).map(|_| noise.byte()).collect();
        append_frame(&mut bytes, &raw, &mut Encoder::new(Policy::None), None);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

/// What a scan in windows of `window` bytes finds: the frames' ranges, and whether the damage between them is reported
/// without gaps.
fn scan(bytes: &[u8], window: usize) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    let mut size = window;
    while at < bytes.len() {
        let end = (at + size).min(bytes.len());
        let mut scanner = FrameScanner::new(&bytes[at..end], at as u64, end == bytes.len());
        let mut expected = at as u64;
        for scanned in scanner.by_ref() {
            match scanned {
                Scanned::Frame { offset, header } => {
                    assert_eq!(offset, expected);
                    expected += header.frame_len() as u64;
                    found.push((offset as usize, expected as usize));
                }
                Scanned::Damaged { offset, len } => {
                    assert_eq!(offset, expected);
                    assert!(len > 0);
                    expected += len;
                }
            }
        }
        assert_eq!(scanner.reached(), expected);
        // A window that was too small for what stands at its start grows.
        size = if expected as usize == at {
            size + window
        } else {
            window
        };
        at = expected as usize;
    }
    found
}

proptest! {
    /// Exactly the undamaged frames are found, whatever the windows.
    #[test]
    fn the_undamaged_rest_is_found(
        lens in prop::collection::vec(1..3000usize, 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 0..4),
        window in 12..6000usize,
    ) {
        let (mut bytes, ends) = frames(&lens);
        let mut damaged = vec![];
        for (index, flip) in damage {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
            damaged.push(at);
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let (clean, _) = frames(&lens);
        let intact: Vec<_> = starts.zip(ends.iter().copied()).filter(|&(a, b)| bytes[a..b] == clean[a..b]).collect();
        prop_assert_eq!(scan(&bytes, bytes.len()), &intact[..]);
        prop_assert_eq!(scan(&bytes, window), intact);
    }

    /// What is left of a frame after a cut still says where it would end. Unless another frame (or the end of all) stands right
    /// there, by a chance that the scan cannot tell from damage in place, every untouched frame is found.
    #[test]
    fn a_missing_piece_costs_the_frames_it_touches(
        lens in prop::collection::vec(20..3000usize, 3..8),
        start in any::<prop::sample::Index>(),
        len in 1..4000usize,
    ) {
        let (bytes, ends) = frames(&lens);
        let start = start.index(bytes.len());
        let end = (start + len).min(bytes.len());
        prop_assert_eq!(found_without(&bytes, start..end), expected_without(&ends, start..end));
    }
}

/// How many frames a scan finds in `bytes` without the range `cut`.
fn found_without(bytes: &[u8], cut: Range<usize>) -> usize {
    let left = [&bytes[..cut.start], &bytes[cut.end..]].concat();
    scan(&left, left.len()).len()
}

/// How many it must find in frames that end at `ends`.
fn expected_without(ends: &[usize], cut: Range<usize>) -> usize {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let all: Vec<_> = starts.zip(ends.iter().copied()).collect();
    let headed = all
        .iter()
        .find(|&&(a, b)| (a + HEADED..b).contains(&cut.start));
    let swallowed = headed.map_or(cut.end, |&(_, claimed)| {
        // Where, before the cut, that stood which stands now at the claimed end.
        let there = claimed + cut.len();
        if ends.contains(&there) {
            there
        } else {
            cut.end
        }
    });
    all.iter()
        .filter(|&&(a, b)| b <= cut.start || a >= swallowed)
        .count()
}

/// Bytes of a frame's header that its CRC covers, which is all that tells where it ends.
const HEADED: usize = 8;

#[test]
fn a_cut_frame_that_seems_to_end_at_another_hides_those_between() {
    let (bytes, ends) = frames(&[701, 2137, 1994, 308, 235]);
    let start = ends[0] + HEADED;
    // Without exactly the third frame's length, the second seems to end where the fourth begins.
    let cut = start..start + (ends[2] - ends[1]);
    assert_eq!(expected_without(&ends, cut.clone()), 3);
    assert_eq!(found_without(&bytes, cut.clone()), 3);
    assert_eq!(found_without(&bytes, cut.start..cut.end + 1), 4);
}

/// A pack whose last frame holds another pack.
#[test]
fn frames_within_a_damaged_payload_are_not_reported() {
    let (inner, _) = frames(&[100, 200, 300]);
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(Policy::None);
    append_frame(&mut bytes, &inner, &mut encoder, None);
    let end = bytes.len();
    append_frame(&mut bytes, b"next", &mut encoder, None);
    bytes[end - 1] ^= 1;
    assert_eq!(scan(&bytes, bytes.len()), [(end, bytes.len())]);
    bytes.truncate(end);
    assert_eq!(scan(&bytes, bytes.len()), []);
}

#[test]
fn the_trailer_ends_the_scan() {
    let header = Header::new(Kind::Pack, "s".parse().unwrap(), 1);
    let (bytes, ends) = frames(&[50, 60]);
    let mut index = PackIndexBuilder::new(header);
    for &len in &[50, 60] {
        let id = podsnap_format::ChunkId([0; 32]);
        index.push(&id, podsnap_format::codec::Codec::Raw, len, len);
    }
    let frames_end = (HEADER_LEN + bytes.len()) as u64;
    let object = [&bytes[..], &index.finish(frames_end).unwrap()].concat();
    let mut scanner = FrameScanner::new(&object, HEADER_LEN as u64, true);
    assert_eq!(scanner.by_ref().count(), ends.len());
    assert!(scanner.trailer_found());
    assert_eq!(scanner.reached(), frames_end);

    // A window that ends within the copy of the header leaves the question to the next one.
    let mut scanner = FrameScanner::new(&object[..bytes.len() + 100], HEADER_LEN as u64, false);
    assert_eq!(scanner.by_ref().count(), ends.len());
    assert!(!scanner.trailer_found());
    assert_eq!(scanner.reached(), frames_end);
}

/// Without a bound, the CRCs of these would cover some 7 TB.
#[test]
fn made_up_headers_do_not_cost_much() {
    let long = [0xa5, 0, 0, 0, 0x40, 0, 0, 0x40, 1, 2, 3, 4];
    let bytes = long.repeat(16 << 20 >> 4);
    let (tiny, _) = frames(&[1]);
    let mixed = [&tiny[..], &long].concat().repeat(16 << 20 >> 5);
    let start = Instant::now();
    assert_eq!(scan(&bytes, bytes.len()), []);
    assert!(scan(&mixed, mixed.len()).len() >= 16 << 20 >> 5);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}
