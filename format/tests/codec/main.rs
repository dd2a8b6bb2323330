//! What codecs promise: every chunk comes back, weights shrink, nothing grows, and a decoder survives whatever it is fed.

mod samples;

use podsnap_format::codec::{Codec, CodecError, Decoder, Dtype, Encoder, Policy, Width};
use proptest::prelude::*;

const CHUNK: usize = 64 << 10;

fn encode(raw: &[u8], policy: Policy, hint: Option<Dtype>) -> (Codec, Vec<u8>) {
    let mut payload = Vec::new();
    let codec = Encoder::new(policy).encode(raw, hint, &mut payload);
    (codec, payload)
}

fn decode(codec: Codec, payload: &[u8], raw_len: usize) -> Result<Vec<u8>, CodecError> {
    let mut raw = vec![0xEE; raw_len];
    Decoder::new()
        .decode(codec, payload, &mut raw)
        .map(|()| raw)
}

/// Encoded length over raw length, of a few chunks.
fn ratio(make: fn(u64, usize) -> Vec<u8>, hint: Option<Dtype>) -> f64 {
    let encoded: usize = (0..8)
        .map(|seed| encode(&make(seed, CHUNK), Policy::Auto, hint).1.len())
        .sum();
    encoded as f64 / (8 * CHUNK) as f64
}

#[test]
fn weights_reach_the_sizes_that_planes_are_for() {
    assert!(
        ratio(samples::bf16, None) <= 0.70,
        "BF16: {}",
        ratio(samples::bf16, None)
    );
    assert!(
        ratio(samples::fp32, None) <= 0.86,
        "FP32: {}",
        ratio(samples::fp32, None)
    );
    assert!(
        ratio(samples::fp64, None) <= 0.92,
        "FP64: {}",
        ratio(samples::fp64, None)
    );
}

#[test]
fn the_width_is_found_wherever_the_chunk_begins() {
    for (make, width) in [
        (samples::bf16 as fn(u64, usize) -> Vec<u8>, Width::Two),
        (samples::fp32, Width::Four),
        (samples::fp64, Width::Eight),
    ] {
        for start in 0..8 {
            let raw = &make(7, CHUNK)[start..];
            assert_eq!(
                encode(raw, Policy::Auto, None).0,
                Codec::Planes(width),
                "start {start}"
            );
        }
    }
}

#[test]
fn a_hint_overrides_the_width() {
    let raw = samples::bf16(3, CHUNK);
    assert_eq!(
        encode(&raw, Policy::Auto, Some(Dtype::F32)).0,
        Codec::Planes(Width::Four)
    );
}

#[test]
fn a_heap_takes_no_more_than_zstd_alone() {
    for seed in 0..4 {
        let raw = samples::heap(seed, CHUNK);
        let auto = encode(&raw, Policy::Auto, None).1.len();
        let zstd = encode(&raw, Policy::Zstd(1), None).1.len();
        assert!(auto <= zstd && zstd < CHUNK / 2, "{auto} against {zstd}");
    }
}

#[test]
fn repeated_noise_is_not_taken_for_incompressible() {
    let page = samples::noise(1, 4096);
    let (codec, payload) = encode(&page.repeat(16), Policy::Auto, None);
    assert_eq!(codec, Codec::Zstd);
    assert!(payload.len() < 5000);
}

#[test]
fn what_does_not_shrink_is_stored_raw() {
    let raw = samples::noise(1, CHUNK);
    for policy in [Policy::Auto, Policy::None, Policy::Zstd(3)] {
        assert_eq!(
            encode(&raw, policy, Some(Dtype::Bf16)),
            (Codec::Raw, raw.clone())
        );
    }
    assert_eq!(
        encode(&samples::heap(1, CHUNK), Policy::None, None).0,
        Codec::Raw
    );
}

#[test]
fn what_was_encoded_before_changes_nothing() {
    let chunks = [
        samples::bf16(1, CHUNK),
        samples::heap(2, 3 * CHUNK),
        samples::fp32(3, CHUNK),
        samples::heap(4, CHUNK),
    ];
    let mut used = Encoder::new(Policy::Auto);
    for _ in 0..2 {
        for chunk in &chunks {
            let mut payload = b"before".to_vec();
            let codec = used.encode(chunk, None, &mut payload);
            assert_eq!(
                (codec, payload[6..].to_vec()),
                encode(chunk, Policy::Auto, None)
            );
            assert_eq!(&payload[..6], b"before");
        }
    }
}

#[test]
fn planes_are_laid_out_as_specified() {
    // Width 2, five bytes: plane 0 is raw 1 2 3, plane 1 is the constant 9.
    let payload = [0, 3, 0, 0, 2, 1, 0, 0, 1, 2, 3, 9];
    assert_eq!(
        decode(Codec::Planes(Width::Two), &payload, 5),
        Ok(vec![1, 9, 2, 9, 3])
    );
    // A chunk shorter than the width has empty planes.
    let payload = [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3];
    assert_eq!(
        decode(Codec::Planes(Width::Four), &payload, 3),
        Ok(vec![1, 2, 3])
    );
}

#[test]
fn planes_that_do_not_add_up_are_refused() {
    let planes = Codec::Planes(Width::Two);
    let good = [0, 3, 0, 0, 2, 1, 0, 0, 1, 2, 3, 9];
    let refused = |payload: &[u8], raw_len| match decode(planes, payload, raw_len) {
        Err(CodecError::Length { .. }) => (),
        other => panic!("{payload:?}: {other:?}"),
    };
    refused(&good, 4);
    refused(&good, 6 + 1);
    refused(&good[..11], 5);
    refused(&good[..7], 5);
    refused(&[&good[..], &[0]].concat(), 5);
    refused(&[0, 3, 0, 0, 2, 2, 0, 0, 1, 2, 3, 9, 9], 5);
    refused(&[0, 255, 255, 255, 2, 1, 0, 0, 1, 2, 3, 9], 5);
    assert_eq!(
        decode(planes, &[0, 3, 0, 0, 3, 1, 0, 0, 1, 2, 3, 9], 5),
        Err(CodecError::PlaneCodec { plane: 1, tag: 3 })
    );
}

#[test]
fn only_one_zstd_frame_of_the_right_content_is_taken() {
    let raw = samples::heap(1, CHUNK);
    let (codec, frame) = encode(&raw, Policy::Zstd(1), None);
    assert_eq!(codec, Codec::Zstd);
    for raw_len in [CHUNK - 1, CHUNK + 1, 2 * CHUNK] {
        assert!(matches!(
            decode(codec, &frame, raw_len),
            Err(CodecError::Length { .. })
        ));
    }
    let skippable = [0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0];
    for bad in [
        frame.repeat(2),
        [&frame[..], &skippable].concat(),
        [&skippable, &frame[..]].concat(),
        vec![],
    ] {
        assert_eq!(decode(codec, &bad, CHUNK), Err(CodecError::NotOneFrame));
        assert_eq!(decode(codec, &bad, 2 * CHUNK), Err(CodecError::NotOneFrame));
    }
    // An empty frame that does not state its content size (raw last block of 1 byte, window descriptor instead).
    let unstated = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x58, 0x09, 0x00, 0x00, 0x41];
    assert_eq!(decode(codec, &unstated, 1), Err(CodecError::NotOneFrame));
}

#[test]
fn tags_and_policies_are_read_as_they_are_written() {
    for tag in 0..=u8::MAX {
        assert!(Codec::from_tag(tag).is_none_or(|codec| codec.tag() == tag));
    }
    let known: Vec<u8> = (0..=u8::MAX)
        .filter(|tag| Codec::from_tag(*tag).is_some())
        .collect();
    assert_eq!(known, [0x00, 0x01, 0x12, 0x14, 0x18]);
    for policy in [
        Policy::Auto,
        Policy::None,
        Policy::Zstd(19),
        Policy::Zstd(-5),
    ] {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    for text in ["", "zstd", "zstd:", "zstd:23", "zstd:x", "Auto", "none "] {
        assert!(text.parse::<Policy>().is_err(), "{text:?}");
    }
}

fn hint() -> impl Strategy<Value = Option<Dtype>> {
    prop_oneof![
        3 => Just(None),
        5 => prop::sample::select(vec![Dtype::Byte, Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64]).prop_map(Some),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![6 => Just(Policy::Auto), 1 => Just(Policy::None), 1 => (-7..4).prop_map(Policy::Zstd)]
}

/// Elements of a width whose bytes are each drawn from an alphabet of their own, so that all plane codecs come up, with a ragged end.
fn records() -> impl Strategy<Value = Vec<u8>> {
    let alphabets = prop::collection::vec(prop::sample::select(vec![1u64, 2, 3, 16, 256]), 1..=8);
    (
        alphabets,
        any::<u64>(),
        prop_oneof![0..40usize, 0..5000usize, 0..90_000usize],
    )
        .prop_map(|(alphabets, seed, len)| {
            let mut random = samples::Random(seed);
            (0..len)
                .map(|at| (random.next() % alphabets[at % alphabets.len()]) as u8)
                .collect()
        })
}

/// Payloads that are nearly right.
fn damaged() -> impl Strategy<Value = (Codec, Vec<u8>, usize)> {
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (records(), hint(), damage, -2..3isize).prop_map(|(raw, hint, damage, longer)| {
        let (codec, mut payload) = encode(&raw, Policy::Auto, hint);
        for (at, byte) in damage {
            if !payload.is_empty() {
                // Most of what can go wrong is in the first bytes: tables of planes, headers of frames.
                let at = at.index(payload.len());
                let at = if byte % 4 == 0 {
                    at
                } else {
                    at % 48.min(payload.len())
                };
                payload[at] ^= byte;
            }
        }
        let len = payload.len().saturating_add_signed(longer);
        payload.resize(len, 0);
        (codec, payload, raw.len())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_chunk_comes_back(raw in records(), policy in policy(), hint in hint()) {
        let (codec, payload) = encode(&raw, policy, hint);
        prop_assert!(payload.len() <= raw.len());
        prop_assert_eq!(decode(codec, &payload, raw.len()), Ok(raw));
    }

    #[test]
    fn damage_never_panics((codec, payload, raw_len) in damaged()) {
        let _ = decode(codec, &payload, raw_len);
    }

    #[test]
    fn arbitrary_payloads_never_panic(tag in prop::sample::select(vec![0u8, 1, 0x12, 0x14, 0x18]), payload in any::<Vec<u8>>(), raw_len in 0..300usize) {
        let _ = decode(Codec::from_tag(tag).unwrap(), &payload, raw_len);
    }
}
