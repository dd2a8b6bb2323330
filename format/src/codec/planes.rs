//! Byte planes: plane `i` of width `w` holds the bytes `i, i + w, i + 2w, ...` of a chunk.
//!
//! This module takes chunks apart into planes and puts them together again. It knows nothing of how a plane is then encoded,
//! nor of when planes are worth it. Words are halved and joined step by step (8 bytes to 4, to 2, to 1) in short blocks on
//! the stack: each step is a loop over plain integers, which compilers turn into vector code on the oldest x86-64 as well.

use super::Width;

/// Words split at a time: a plane's share of them fills one vector register.
const GROUP: usize = 16;

/// Words joined at a time; what lies between two steps must stay in the first-level cache.
const BLOCK: usize = 512;

/// The number of bytes in plane `index` of a chunk of `raw_len` bytes.
pub(super) fn plane_len(raw_len: usize, width: Width, index: usize) -> usize {
    (raw_len + width.bytes() - 1 - index) / width.bytes()
}

/// Splits `raw` into its planes, which `planes` (exactly as long as `raw`) then holds one after another.
pub(super) fn split(raw: &[u8], width: Width, planes: &mut [u8]) {
    assert_eq!(raw.len(), planes.len());
    match width {
        Width::Two => split_with(raw, carve(planes, width), |words, planes| {
            let words = words.as_chunks::<2>().0;
            split2(std::array::from_fn(|at| u16::from_le_bytes(words[at])), planes);
        }),
        Width::Four => split_with(raw, carve(planes, width), |words, planes| {
            let words = words.as_chunks::<4>().0;
            split4(std::array::from_fn(|at| u32::from_le_bytes(words[at])), planes);
        }),
        Width::Eight => split_with(raw, carve(planes, width), |words, [a, b, c, d, e, f, g, h]| {
            let words = words.as_chunks::<8>().0;
            let words: [u64; GROUP] = std::array::from_fn(|at| u64::from_le_bytes(words[at]));
            split4(words.map(|word| word as u32), [a, b, c, d]);
            split4(words.map(|word| (word >> 32) as u32), [e, f, g, h]);
        }),
    }
}

/// Interleaves `planes` into `raw`. There must be as many planes as the width says, each of the length [`plane_len`] says.
pub(super) fn merge(planes: &[&[u8]], width: Width, raw: &mut [u8]) {
    assert_eq!(planes.len(), width.bytes());
    for (index, plane) in planes.iter().enumerate() {
        assert_eq!(plane.len(), plane_len(raw.len(), width, index));
    }
    match width {
        Width::Two => merge_with(planes, raw, |[a, b], words| {
            for ((word, a), b) in words.as_chunks_mut::<2>().0.iter_mut().zip(a).zip(b) {
                *word = [*a, *b];
            }
        }),
        Width::Four => merge_with(planes, raw, |[a, b, c, d], words| {
            let (low, high) = (join2(a, b), join2(c, d));
            for ((word, low), high) in words.as_chunks_mut::<4>().0.iter_mut().zip(&low).zip(&high) {
                *word = (u32::from(*low) | u32::from(*high) << 16).to_le_bytes();
            }
        }),
        Width::Eight => merge_with(planes, raw, |[a, b, c, d, e, f, g, h], words| {
            let low = join4(&join2(a, b), &join2(c, d));
            let high = join4(&join2(e, f), &join2(g, h));
            for ((word, low), high) in words.as_chunks_mut::<8>().0.iter_mut().zip(&low).zip(&high) {
                *word = (u64::from(*low) | u64::from(*high) << 32).to_le_bytes();
            }
        }),
    }
}

/// Cuts a buffer as long as a chunk into the chunk's planes.
fn carve<const W: usize>(buffer: &mut [u8], width: Width) -> [&mut [u8]; W] {
    let raw_len = buffer.len();
    let mut rest = buffer;
    std::array::from_fn(|index| {
        let (plane, tail) = std::mem::take(&mut rest).split_at_mut(plane_len(raw_len, width, index));
        rest = tail;
        plane
    })
}

/// Gives `group` the whole groups of `raw`, each with the places in the planes it belongs in; then sees to the rest byte by byte.
fn split_with<const W: usize>(raw: &[u8], mut planes: [&mut [u8]; W], group: impl Fn(&[u8], [&mut [u8; GROUP]; W])) {
    for (index, words) in raw.chunks_exact(W * GROUP).enumerate() {
        group(words, planes.each_mut().map(|plane| &mut plane.as_chunks_mut::<GROUP>().0[index]));
    }
    let done = raw.len() - raw.len() % (W * GROUP);
    for (at, byte) in raw.iter().enumerate().skip(done) {
        planes[at % W][at / W] = *byte;
    }
}

/// The reverse of [`split_with`].
fn merge_with<const W: usize>(planes: &[&[u8]], raw: &mut [u8], block: impl Fn([&[u8]; W], &mut [u8])) {
    let words = raw.len() / W;
    for start in (0..words).step_by(BLOCK) {
        let end = words.min(start + BLOCK);
        block(std::array::from_fn(|index| &planes[index][start..end]), &mut raw[start * W..end * W]);
    }
    for (plane, byte) in planes.iter().zip(&mut raw[words * W..]) {
        *byte = plane[words];
    }
}

/// Splits words of four bytes into four planes.
#[inline(always)]
fn split4(words: [u32; GROUP], [a, b, c, d]: [&mut [u8; GROUP]; 4]) {
    split2(words.map(|word| word as u16), [a, b]);
    split2(words.map(|word| (word >> 16) as u16), [c, d]);
}

/// Splits words of two bytes into two planes.
#[inline(always)]
fn split2(words: [u16; GROUP], [low, high]: [&mut [u8; GROUP]; 2]) {
    *low = words.map(|word| word as u8);
    *high = words.map(|word| (word >> 8) as u8);
}

/// Joins two planes of at most [`BLOCK`] bytes into words; those beyond the planes' end are zero.
fn join2(low: &[u8], high: &[u8]) -> [u16; BLOCK] {
    let mut words = [0; BLOCK];
    for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
        *word = u16::from(*low) | u16::from(*high) << 8;
    }
    words
}

/// Joins halves of words.
fn join4(low: &[u16; BLOCK], high: &[u16; BLOCK]) -> [u32; BLOCK] {
    let mut words = [0; BLOCK];
    for ((word, low), high) in words.iter_mut().zip(low).zip(high) {
        *word = u32::from(*low) | u32::from(*high) << 16;
    }
    words
}
