//! Bytes that nothing compresses. The gofer's tests share this file.

/// A generator of bytes that nothing compresses (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end as u64) as usize
    }
}

/// `len` bytes of noise.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&noise.word().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
