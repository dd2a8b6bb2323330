//! Chunks as snapshots hold them, made from a seed: weights in the common types, noise, and what a heap looks like.

/// Pseudo-random numbers (splitmix64): the same on every machine and in every release.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// A weight: normally distributed around zero, deviation 0.05.
    fn weight(&mut self) -> f64 {
        0.05 * (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

pub fn fp64(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 8)
        .flat_map(|_| random.weight().to_le_bytes())
        .collect()
}

pub fn fp32(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 4)
        .flat_map(|_| (random.weight() as f32).to_le_bytes())
        .collect()
}

/// FP32 rounded to the nearest BF16, ties to even.
pub fn bf16(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len / 2)
        .flat_map(|_| {
            let bits = (random.weight() as f32).to_bits();
            (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
        })
        .collect()
}

pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .take(len)
        .collect()
}

/// Objects of a heap: a reference count, a pointer to one of a few types, a length, a pointer to another object, some text.
pub fn heap(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let words = [
        "name", "value", "__init__", "self", "return ", "import", "None", "0x7f",
    ];
    let mut heap = Vec::with_capacity(len + 64);
    while heap.len() < len {
        let pick = random.next();
        heap.extend_from_slice(&(1 + pick % 3).to_le_bytes());
        heap.extend_from_slice(&(0x7f3a_1234_0000 + (pick >> 8) % 12 * 416).to_le_bytes());
        heap.extend_from_slice(&((pick >> 16) % 40).to_le_bytes());
        heap.extend_from_slice(&(0x7f3a_2000_0000 + (pick >> 24) % 50_000 * 16).to_le_bytes());
        for at in 0..4 {
            let word = words[(pick >> (40 + 3 * at)) as usize % words.len()];
            heap.extend_from_slice(word.as_bytes());
        }
        heap.resize(heap.len().next_multiple_of(16), 0);
    }
    heap.truncate(len);
    heap
}
