//! FastCDC with a gear hash, as fixed in SPEC.md: a cut depends only on the bytes since the last cut.
//!
//! The hash rolls over the last 64 bytes. Cutting starts only after half the average, which both narrows the
//! distribution and halves the bytes the hash has to look at. Up to the average a harder mask is used, behind it an easier one
//! ("normalised chunking", Xia et al., USENIX ATC 2016 and IEEE TPDS 2020).

/// The gear table: outputs of SplitMix64 started from the state 0x706f64736e617031 ("podsnap1").
pub const GEAR: [u64; 256] = gear();

/// [`GEAR`] shifted left by one, for hashing two bytes a step.
const GEAR_SHIFTED: [u64; 256] = {
    let mut table = GEAR;
    let mut i = 0;
    while i < 256 {
        table[i] <<= 1;
        i += 1;
    }
    table
};

const fn gear() -> [u64; 256] {
    let mut state: u64 = 0x706f_6473_6e61_7031;
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
}

/// A content-defined chunker for one set of parameters.
#[derive(Debug, Clone)]
pub struct FastCdc {
    min: usize,
    avg: usize,
    max: usize,
    hard_mask: u64,
    easy_mask: u64,
}

/// `bits` ones below the topmost bit, which is left free so that the mask can be shifted once.
const fn mask(bits: u32) -> u64 {
    ((1 << bits) - 1) << (63 - bits)
}

impl FastCdc {
    /// `None` unless `avg` is a power of two between 4 KiB and 1 MiB, `min` half of it and `max` four times it.
    pub fn new(min: u32, avg: u32, max: u32) -> Option<Self> {
        let sound = avg.is_power_of_two()
            && (4 << 10..=1 << 20).contains(&avg)
            && min == avg / 2
            && max == avg * 4;
        let avg = avg as usize;
        sound.then(|| {
            let bits = avg.trailing_zeros();
            Self {
                min: avg / 2,
                avg,
                max: avg * 4,
                hard_mask: mask(bits + 1),
                easy_mask: mask(bits - 2),
            }
        })
    }

    /// Length of the first chunk of `bytes`; all of them if no cut is found before they end.
    pub fn cut(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= self.min {
            return bytes.len();
        }
        let end = bytes.len().min(self.max);
        let normal = end.min(self.avg);
        let mut hash = 0u64;
        // The hash is warmed up over the 64 bytes before the first place where a cut is allowed.
        for &byte in &bytes[self.min - 64..self.min] {
            hash = (hash << 1u64).wrapping_add(GEAR[byte as usize]);
        }
        if let Some(cut) = roll(&bytes[self.min..normal], &mut hash, self.hard_mask) {
            return self.min + cut;
        }
        if let Some(cut) = roll(&bytes[normal..end], &mut hash, self.easy_mask) {
            return normal + cut;
        }
        end
    }
}

/// Rolls `hash` over `bytes`; the number of bytes up to and with the first whose hash has no bit of `mask` set.
#[inline]
fn roll(bytes: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let mut h = *hash;
    let shifted_mask = mask << 1;
    let mut pairs = bytes.chunks_exact(2);
    for (i, pair) in pairs.by_ref().enumerate() {
        // One byte's hash, shifted left by one, then the second byte's: the same sums as a byte at a time.
        h = (h << 2).wrapping_add(GEAR_SHIFTED[pair[0] as usize]);
        if h & shifted_mask == 0 {
            return Some(2 * i + 1);
        }
        h = h.wrapping_add(GEAR[pair[1] as usize]);
        if h & mask == 0 {
            return Some(2 * i + 2);
        }
    }
    if let [last] = pairs.remainder() {
        h = (h << 1).wrapping_add(GEAR[*last as usize]);
        if h & mask == 0 {
            return Some(bytes.len());
        }
    }
    *hash = h;
    None
}
