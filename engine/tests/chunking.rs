//! Where sections are cut: golden vectors, the algorithm of SPEC.md word by word, resynchronisation, zero runs.

use podsnap_engine::chunking::{self, Chunker, ChunkingParams, FastCdc, GEAR, ZERO_BLOCK};
use proptest::prelude::*;

struct SplitMix64(u64);

impl Iterator for SplitMix64 {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    SplitMix64(seed)
        .flat_map(u64::to_le_bytes)
        .take(len)
        .collect()
}

fn cdc(avg: usize) -> FastCdc {
    let avg = avg as u32;
    FastCdc::new(avg / 2, avg, avg * 4).expect("parameters of this version")
}

fn cut_all(cdc: &FastCdc, bytes: &[u8]) -> Vec<usize> {
    let mut lens = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        lens.push(cdc.cut(rest));
        rest = &rest[*lens.last().expect("just pushed")..];
    }
    lens
}

/// The first chunk of `bytes`, in the words of SPEC.md.
fn specified_cut(bytes: &[u8], avg: usize) -> usize {
    let mask = |bits: u32| ((1u64 << bits) - 1) << (63 - bits);
    let power = avg.trailing_zeros();
    let (hard, easy) = (mask(power + 1), mask(power - 2));
    if bytes.len() <= avg / 2 {
        return bytes.len();
    }
    let end = bytes.len().min(4 * avg);
    let normal = end.min(avg);
    let take_in = |hash: u64, byte: u8| (hash << 1).wrapping_add(GEAR[usize::from(byte)]);
    let mut hash = bytes[avg / 2 - 64..avg / 2]
        .iter()
        .fold(0, |hash, byte| take_in(hash, *byte));
    for (at, byte) in bytes.iter().enumerate().take(end).skip(avg / 2) {
        hash = take_in(hash, *byte);
        if hash & if at < normal { hard } else { easy } == 0 {
            return at + 1;
        }
    }
    end
}

/// An input as `cuts.txt` names it.
fn input(name: &str) -> Vec<u8> {
    let [kind, arg, len] = name.split(':').collect::<Vec<_>>()[..] else {
        panic!("bad input {name}")
    };
    let len = len.parse().expect("a length");
    match kind {
        "splitmix" => random(arg.parse().expect("a seed"), len),
        "byte" => vec![arg.parse().expect("a byte"); len],
        "counter" => {
            let width: usize = arg.parse().expect("a width");
            (0u64..)
                .flat_map(|i| i.to_le_bytes().into_iter().take(width))
                .take(len)
                .collect()
        }
        "text" => arg.bytes().cycle().take(len).collect(),
        _ => panic!("bad input {name}"),
    }
}

#[test]
fn cuts_are_where_the_golden_vectors_say() {
    let golden = include_str!("chunking/cuts.txt");
    for line in golden.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let name = words.next().expect("an input");
        let numbers: Vec<usize> = words.map(|word| word.parse().expect("a number")).collect();
        let (avg, expected) = numbers.split_first().expect("an average");
        assert_eq!(
            cut_all(&cdc(*avg), &input(name)),
            expected,
            "{name} at {avg}"
        );
    }
    assert_eq!(
        &GEAR[..3],
        &[
            0x6160_8d54_71fe_58e9,
            0x1a97_4fbe_eeb7_5fbc,
            0x18c8_1e32_562d_124a
        ]
    );
}

/// Stretches of noise, of one byte, and of a short period, so that hard, easy and missing cuts all occur.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let stretch = (any::<u64>(), 1..60_000usize, 0..4u8).prop_map(|(seed, len, kind)| match kind {
        0 | 1 => random(seed, len),
        2 => vec![seed as u8; len],
        _ => random(seed, 2 + seed as usize % 300)
            .into_iter()
            .cycle()
            .take(len)
            .collect(),
    });
    prop::collection::vec(stretch, 0..5).prop_map(|stretches| stretches.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn cuts_are_those_of_the_specification(bytes in bytes(), power in 12..17u32) {
        let avg = 1usize << power;
        let cdc = cdc(avg);
        let mut at = 0;
        while at < bytes.len() {
            let len = cdc.cut(&bytes[at..]);
            prop_assert_eq!(len, specified_cut(&bytes[at..], avg));
            let last = at + len == bytes.len();
            prop_assert!(len <= 4 * avg && (len > avg / 2 || last));
            at += len;
        }
        prop_assert_eq!(at, bytes.len());
    }

    #[test]
    fn fixed_chunks_end_at_multiples_of_their_length(
        size in 512..100_000u32,
        start in 0..1u64 << 40,
        len in 1..300_000usize,
    ) {
        let chunker = Chunker::new(&chunking::fixed(size)).expect("a length of this version");
        let bytes = vec![1; len];
        let mut at = 0;
        while at < len {
            let cut = chunker.cut(&bytes[at..], start + at as u64);
            prop_assert!(cut > 0 && cut <= size as usize);
            at += cut;
            prop_assert!(at == len || (start + at as u64).is_multiple_of(size.into()));
        }
    }

    #[test]
    fn zero_runs_are_those_of_the_specification(
        // Lengths of alternating stretches in blocks; 0 in a data block's place makes neighbours join.
        stretches in prop::collection::vec((0..9usize, 0..6usize), 0..8),
        tail in 0..ZERO_BLOCK,
        tail_is_zero: bool,
        place in 0..ZERO_BLOCK,
    ) {
        let mut bytes = Vec::new();
        let mut block_is_zero = Vec::new();
        for (zeros, data) in stretches {
            bytes.resize(bytes.len() + zeros * ZERO_BLOCK, 0);
            block_is_zero.resize(block_is_zero.len() + zeros, true);
            for _ in 0..data {
                bytes.resize(bytes.len() + ZERO_BLOCK, 0);
                let at = bytes.len() - ZERO_BLOCK + place;
                bytes[at] = 1;
            }
            block_is_zero.resize(block_is_zero.len() + data, false);
        }
        if tail > 0 {
            bytes.resize(bytes.len() + tail, u8::from(!tail_is_zero));
            block_is_zero.push(tail_is_zero);
        }
        // Every block as it must be: zeros count where they reach the end or are 16 KiB.
        let mut expected = vec![false; block_is_zero.len()];
        let mut at = 0;
        while at < expected.len() {
            let zeros = block_is_zero[at..].iter().take_while(|zero| **zero).count();
            if zeros >= 4 || at + zeros == expected.len() {
                expected[at..at + zeros].fill(true);
            }
            at += zeros.max(1);
        }
        let runs = chunking::runs(&bytes);
        let mut at = 0;
        let mut previous = None;
        for run in &runs {
            prop_assert_eq!(run.start, at);
            prop_assert!(run.end > run.start && run.start.is_multiple_of(ZERO_BLOCK));
            prop_assert_ne!(previous, Some(run.zero), "runs alternate");
            let blocks = run.start / ZERO_BLOCK..run.end.div_ceil(ZERO_BLOCK);
            prop_assert!(expected[blocks].iter().all(|zero| *zero == run.zero));
            previous = Some(run.zero);
            at = run.end;
        }
        prop_assert_eq!(at, bytes.len());
    }
}

#[test]
fn chunks_behind_an_insertion_are_the_same_again() {
    let old = random(7, 1 << 20);
    let cdc = cdc(4096);
    let chunks = |bytes: &[u8]| {
        let mut at = 0;
        let mut chunks = Vec::new();
        for len in cut_all(&cdc, bytes) {
            chunks.push(bytes[at..at + len].to_vec());
            at += len;
        }
        chunks
    };
    let known: std::collections::HashSet<_> = chunks(&old).into_iter().collect();
    for step in 0..32 {
        let at = step * 31_337;
        let mut new = old.clone();
        new.splice(at..at, random(step as u64, 1 + step * 5));
        let strangers = chunks(&new)
            .iter()
            .filter(|chunk| !known.contains(*chunk))
            .count();
        // Of some 240. That many because two different grids of cuts meet by chance only.
        assert!(
            (1..=20).contains(&strangers),
            "{strangers} chunks changed by an insertion at {at}"
        );
    }
}

#[test]
fn parameters_that_this_version_cannot_cut_are_refused() {
    for (min, avg, max) in [
        (16 << 10, 64 << 10, 256 << 10),
        (32 << 10, 64 << 10, 512 << 10),
        (24_000, 48_000, 192_000),
        (1024, 2048, 8192),
        (1 << 20, 2 << 20, 8 << 20),
        (0, 0, 0),
    ] {
        assert!(
            Chunker::new(&ChunkingParams::Cdc { min, avg, max }).is_none(),
            "{min} {avg} {max}"
        );
    }
    for size in [0, 511, (4 << 20) + 1] {
        assert!(Chunker::new(&chunking::fixed(size)).is_none(), "{size}");
    }
}

#[test]
fn large_sections_have_larger_chunks() {
    let average = |len| match chunking::default_for(len) {
        ChunkingParams::Cdc { avg, .. } => avg,
        ChunkingParams::Fixed { .. } => panic!("not the default"),
    };
    assert_eq!(average(None), 64 << 10);
    assert_eq!(average(Some((16 << 30) - 1)), 64 << 10);
    assert_eq!(average(Some(16 << 30)), 256 << 10);
}
