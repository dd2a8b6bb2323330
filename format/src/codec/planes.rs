//! Byte planes: plane `i` of width `w` holds the bytes `i, i + w, i + 2w, ...` of a chunk.
//!
//! This module takes chunks apart into planes and puts them together again. It knows nothing of how a plane is then encoded,
//! nor of when planes are worth it. Words are halved and joined step by step (8 bytes to 4, to 2, to 1) in short blocks on
//! the stack: each step is a loop over plain integers, which compilers turn into vector code on the oldest x86-64 as well.

use super::Width;

/// Words split at a time: a plane's share of them fills one vector register.
const GROUP: usize = 16;

/// Words handled at a time where there are steps between; what lies between two steps must stay in the first-level cache.
const BLOCK: usize = 512;

/// The number of bytes in plane `index` of a chunk of `raw_len` bytes.
pub(super) fn plane_len(raw_len: usize, width: Width, index: usize) -> usize {
    (raw_len + width.bytes() - 1 - index) / width.bytes()
}

/// Splits `raw` into its planes, which `planes` (exactly as long as `raw`) then holds one after another.
pub(super) fn split(raw: &[u8], width: Width, planes: &mut [u8]) {
    assert_eq!(raw.len(), planes.len());
    match width {
        Width::Two => split_with(raw, carve(planes, width), split2),
        Width::Four => split_with(raw, carve(planes, width), split4),
        Width::Eight => split_with(
            raw,
            carve(planes, width),
            |words, [a, b, c, d, e, f, g, h]| {
                let (mut low, mut high) = ([[0; 4]; BLOCK], [[0; 4]; BLOCK]);
                let words = words.as_chunks::<8>().0;
                for (low, word) in low.iter_mut().zip(words) {
                    low.copy_from_slice(&word[..4]);
                }
                for (high, word) in high.iter_mut().zip(words) {
                    high.copy_from_slice(&word[4..]);
                }
                split4(low[..words.len()].as_flattened(), [a, b, c, d]);
                split4(high[..words.len()].as_flattened(), [e, f, g, h]);
            },
        ),
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
            for ((word, low), high) in words.as_chunks_mut::<4>().0.iter_mut().zip(&low).zip(&high)
            {
                *word = (u32::from(*low) | u32::from(*high) << 16).to_le_bytes();
            }
        }),
        Width::Eight => merge_with(planes, raw, |[a, b, c, d, e, f, g, h], words| {
            let low = join4(&join2(a, b), &join2(c, d));
            let high = join4(&join2(e, f), &join2(g, h));
            for ((word, low), high) in words.as_chunks_mut::<8>().0.iter_mut().zip(&low).zip(&high)
            {
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
        let (plane, tail) =
            std::mem::take(&mut rest).split_at_mut(plane_len(raw_len, width, index));
        rest = tail;
        plane
    })
}

/// Gives `block` the whole words of `raw` block by block, with the part of each plane they belong in; then sees to the rest.
fn split_with<const W: usize>(
    raw: &[u8],
    mut planes: [&mut [u8]; W],
    block: impl Fn(&[u8], [&mut [u8]; W]),
) {
    let words = raw.len() / W;
    for start in (0..words).step_by(BLOCK) {
        let end = words.min(start + BLOCK);
        block(
            &raw[start * W..end * W],
            planes.each_mut().map(|plane| &mut plane[start..end]),
        );
    }
    for (plane, byte) in planes.iter_mut().zip(&raw[words * W..]) {
        plane[words] = *byte;
    }
}

/// The reverse of [`split_with`].
fn merge_with<const W: usize>(
    planes: &[&[u8]],
    raw: &mut [u8],
    block: impl Fn([&[u8]; W], &mut [u8]),
) {
    let words = raw.len() / W;
    for start in (0..words).step_by(BLOCK) {
        let end = words.min(start + BLOCK);
        block(
            std::array::from_fn(|index| &planes[index][start..end]),
            &mut raw[start * W..end * W],
        );
    }
    for (plane, byte) in planes.iter().zip(&mut raw[words * W..]) {
        *byte = plane[words];
    }
}

/// Splits words of two bytes into two planes.
fn split2(words: &[u8], [a, b]: [&mut [u8]; 2]) {
    let (words, (a, a_rest), (b, b_rest)) = (
        words.as_chunks::<2>().0,
        a.as_chunks_mut(),
        b.as_chunks_mut(),
    );
    let (groups, rest) = words.as_chunks::<GROUP>();
    for ((group, a), b) in groups.iter().zip(a).zip(b) {
        let words = group.map(u16::from_le_bytes);
        *a = words.map(|word| word as u8);
        *b = words.map(|word| (word >> 8) as u8);
    }
    for ((word, a), b) in rest.iter().zip(a_rest).zip(b_rest) {
        [*a, *b] = *word;
    }
}

/// Splits words of four bytes into four planes.
fn split4(words: &[u8], [a, b, c, d]: [&mut [u8]; 4]) {
    let words = words.as_chunks::<4>().0;
    let (groups, rest) = words.as_chunks::<GROUP>();
    let (a, a_rest) = a.as_chunks_mut();
    let (b, b_rest) = b.as_chunks_mut();
    let (c, c_rest) = c.as_chunks_mut();
    let (d, d_rest) = d.as_chunks_mut();
    for ((((group, a), b), c), d) in groups.iter().zip(a).zip(b).zip(c).zip(d) {
        let words = group.map(u32::from_le_bytes);
        *a = words.map(|word| word as u8);
        *b = words.map(|word| (word >> 8) as u8);
        *c = words.map(|word| (word >> 16) as u8);
        *d = words.map(|word| (word >> 24) as u8);
    }
    for ((((word, a), b), c), d) in rest.iter().zip(a_rest).zip(b_rest).zip(c_rest).zip(d_rest) {
        [*a, *b, *c, *d] = *word;
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn planes_hold_every_wth_byte_and_merge_back(
            raw in prop_oneof![prop::collection::vec(any::<u8>(), 0..70), prop::collection::vec(any::<u8>(), 4000..12_000)],
            width in prop::sample::select(vec![Width::Two, Width::Four, Width::Eight]),
        ) {
            let mut buffer = vec![0; raw.len()];
            split(&raw, width, &mut buffer);
            let mut planes: Vec<&[u8]> = Vec::new();
            let mut rest = &buffer[..];
            for index in 0..width.bytes() {
                let expected: Vec<u8> = raw.iter().copied().skip(index).step_by(width.bytes()).collect();
                let (plane, tail) = rest.split_at(plane_len(raw.len(), width, index));
                prop_assert_eq!(plane, &expected[..]);
                planes.push(plane);
                rest = tail;
            }
            let mut merged = vec![0; raw.len()];
            merge(&planes, width, &mut merged);
            prop_assert_eq!(merged, raw);
        }
    }
}
