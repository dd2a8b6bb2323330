//! What to try on a chunk, decided from a sample of it at a small fraction of the cost of trying.
//!
//! Some hundreds of 8-byte words, spread evenly, are looked at. The frequencies of bytes by their position in the word give the entropy
//! of each plane at each width, and words seen before hint at repetitions, which only zstd can use. From this follows a [`Plan`];
//! this module compresses nothing and gives no promise about sizes.

use super::{Dtype, Width};

/// Bytes of the words that are sampled; all widths divide it.
const WORD: usize = 8;

/// At most one word is sampled out of this many bytes: a line of the cache.
const STRIDE: usize = 64;

/// At most this many words are sampled; from longer chunks, one word of every second stride, every fourth, and so on.
const MAX_WORDS: usize = 768;

/// Words seen are remembered in a table of this many bits' size, far larger than their number, so that few drive others out.
const SEEN_BITS: u32 = 11;

/// Chunks with fewer words in their sample are not worth an estimate: trying is cheap.
const MIN_WORDS: usize = 64;

/// A plane with more bits of entropy per byte than this is noise. Coding it would win less than 5 % of it and cost decoding speed.
const NOISE_BITS: f32 = 7.6;

/// A chunk whose bytes, taken together, have more bits of entropy than this is noise if it shows no planes either. A higher bound than
/// that for planes: there may be a compressible part between others that are not.
const WHOLE_NOISE_BITS: f32 = 7.9;

/// A plane with fewer bits per byte than this is worth a search for matches: a Huffman code cannot go below one bit.
const SPARSE_BITS: f32 = 1.2;

/// A wider split must promise this much of the cost of a narrower one.
const WIDER_GAIN: f32 = 0.97;

/// A chunk in which one sampled word in this many was seen before may hold repetitions worth zstd's search.
const REPEATS: usize = 32;

/// What to try on a chunk.
#[derive(Debug)]
pub(super) struct Plan {
    /// What to try on the chunk as a whole.
    pub(super) whole: Whole,
    /// How to try planes, if they promise anything.
    pub(super) planes: Option<PlanesPlan>,
}

/// What to try on a chunk as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    No,
    Huffman,
    Zstd,
}

/// How to split a chunk, and what to do with each plane.
#[derive(Debug)]
pub(super) struct PlanesPlan {
    pub(super) width: Width,
    /// The first `width` of these count.
    pub(super) kinds: [PlaneKind; 8],
    /// About how long the payload will be, in bytes.
    pub(super) expected_len: usize,
}

/// What a plane's bytes look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaneKind {
    /// Random: store as they are.
    Noise,
    /// Some much more frequent than others: a Huffman code is as good as anything.
    Skewed,
    /// Nearly all the same: look for runs.
    Sparse,
}

/// Decides what to try on `raw`.
pub(super) fn plan(raw: &[u8], hint: Option<Dtype>) -> Plan {
    let widths: &[Width] = match hint {
        Some(Dtype::Byte) => &[],
        Some(Dtype::Bf16 | Dtype::F16) => &[Width::Two],
        Some(Dtype::F32) => &[Width::Four],
        Some(Dtype::F64) => &[Width::Eight],
        None => &[Width::Two, Width::Four, Width::Eight],
    };
    let sample = Sample::of(raw);
    if sample.words < MIN_WORDS {
        let planes = hint.and(widths.first()).map(|width| PlanesPlan {
            width: *width,
            kinds: [PlaneKind::Skewed; 8],
            expected_len: 0,
        });
        return Plan {
            whole: Whole::Zstd,
            planes,
        };
    }

    let by_width = sample.entropies();
    let mut best: Option<(f32, PlanesPlan)> = None;
    for width in widths {
        let entropies = by_width.of_planes(*width);
        let mut kinds = [PlaneKind::Noise; 8];
        let mut bits = 0.0;
        for (entropy, kind) in entropies.iter().zip(&mut kinds) {
            *kind = match *entropy {
                entropy if entropy > NOISE_BITS => PlaneKind::Noise,
                entropy if entropy > SPARSE_BITS => PlaneKind::Skewed,
                _ => PlaneKind::Sparse,
            };
            bits += if *kind == PlaneKind::Noise {
                8.0
            } else {
                *entropy
            };
        }
        let cost = bits / (8 * width.bytes()) as f32;
        if best
            .as_ref()
            .is_none_or(|(least, _)| cost < least * WIDER_GAIN)
        {
            let expected_len = (cost * raw.len() as f32) as usize;
            best = Some((
                cost,
                PlanesPlan {
                    width: *width,
                    kinds,
                    expected_len,
                },
            ));
        }
    }
    let planes = best
        .filter(|(cost, _)| *cost < by_width.order0 / 8.0 * WIDER_GAIN)
        .map(|(_, plan)| plan);

    let repeats = sample.repeats * REPEATS > sample.words;
    let noisy = match &planes {
        // Tables of pointers have a noisy plane as well, between constant ones, and zstd is often better at those.
        Some(plan) if plan.width == Width::Eight && plan.expected_len < raw.len() / 4 * 3 => false,
        Some(plan) => plan.kinds[..plan.width.bytes()].contains(&PlaneKind::Noise),
        None => by_width.order0 > WHOLE_NOISE_BITS,
    };
    let whole = match hint {
        _ if repeats => Whole::Zstd,
        // Noise in it, and no word twice: numbers, or something already compressed. A search would find nothing.
        _ if noisy => Whole::No,
        Some(Dtype::Byte) => Whole::Huffman,
        _ => Whole::Zstd,
    };
    Plan { whole, planes }
}

/// Frequencies of byte values.
type Histogram = [u16; 256];

/// What was seen of a chunk.
struct Sample {
    /// Words looked at.
    words: usize,
    /// Those of them that had been seen before.
    repeats: usize,
    /// Frequencies at each position in a word.
    histograms: [Histogram; WORD],
}

impl Sample {
    fn of(raw: &[u8]) -> Sample {
        let mut sample = Sample {
            words: 0,
            repeats: 0,
            histograms: [[0; 256]; WORD],
        };
        let mut seen = [0u32; 1 << SEEN_BITS];
        // A power of two, so that the sample shows the same words of equal pages.
        let step = raw.len().div_ceil(STRIDE * MAX_WORDS).next_power_of_two();
        let (strides, _) = raw.as_chunks::<STRIDE>();
        for (index, stride) in strides.iter().step_by(step).enumerate() {
            // Another word each time, so that records of 64 bytes show all their fields.
            let word = stride.as_chunks::<WORD>().0[index * 3 % WORD];
            for (histogram, byte) in sample.histograms.iter_mut().zip(word) {
                histogram[usize::from(byte)] += 1;
            }
            let hash = u64::from_le_bytes(word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let slot = &mut seen[(hash >> (64 - SEEN_BITS)) as usize];
            let tag = (hash >> 16) as u32;
            sample.repeats += usize::from(*slot == tag);
            *slot = tag;
            sample.words += 1;
        }
        sample
    }

    fn entropies(&self) -> Entropies {
        let eight = &self.histograms;
        let four: [Histogram; 4] =
            std::array::from_fn(|plane| sum(&eight[plane], &eight[plane + 4]));
        let two: [Histogram; 2] = std::array::from_fn(|plane| sum(&four[plane], &four[plane + 2]));
        let one = sum(&two[0], &two[1]);
        Entropies {
            order0: entropy(&one, 8 * self.words),
            two: two.map(|histogram| entropy(&histogram, 4 * self.words)),
            four: four.map(|histogram| entropy(&histogram, 2 * self.words)),
            eight: eight.map(|histogram| entropy(&histogram, self.words)),
        }
    }
}

/// Bits per byte of a chunk as a whole, and of its planes at each width.
struct Entropies {
    order0: f32,
    two: [f32; 2],
    four: [f32; 4],
    eight: [f32; 8],
}

impl Entropies {
    fn of_planes(&self, width: Width) -> &[f32] {
        match width {
            Width::Two => &self.two,
            Width::Four => &self.four,
            Width::Eight => &self.eight,
        }
    }
}

fn sum(a: &Histogram, b: &Histogram) -> Histogram {
    std::array::from_fn(|value| a[value] + b[value])
}

/// Entropy in bits per byte of what a sample of `total` bytes was drawn from. A sample has less entropy than its source, above all if
/// it is small; Miller and Madow's correction makes up for it.
fn entropy(histogram: &Histogram, total: usize) -> f32 {
    // Eight sums side by side: one would be a chain of additions, which may not be reordered.
    let mut sums = [0.0; 8];
    let mut distinct = [0u16; 8];
    for counts in histogram.as_chunks::<8>().0 {
        for lane in 0..8 {
            let count = f32::from(counts[lane]);
            sums[lane] += count * log2(count);
            distinct[lane] += u16::from(counts[lane] != 0);
        }
    }
    let total = total as f32;
    let distinct: u16 = distinct.iter().sum();
    let correction = (f32::from(distinct) - 1.0) / (2.0 * std::f32::consts::LN_2 * total);
    log2(total) - sums.iter().sum::<f32>() / total + correction
}

/// Binary logarithm of a positive, normal number to about three decimals, without a branch or a call; some finite number for zero.
fn log2(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let m = f32::from_bits(bits & 0x007F_FFFF | 0x3F80_0000);
    let log_m = -1.741_793_9
        + (2.821_202_6 + (-1.469_956_8 + (0.447_179_55 - 0.056_570_85 * m) * m) * m) * m;
    exponent as f32 + log_m
}
