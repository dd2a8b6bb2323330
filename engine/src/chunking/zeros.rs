//! Finding the runs of zero bytes that become extents without a chunk.
//!
//! Zeros are looked for in blocks of 4 KiB on the grid of the section, because holes, pages and file-system blocks
//! all lie on it; shorter or unaligned zeros are left to the codecs, which is cheaper than an extent for each.

/// Length and alignment, in bytes, of a block of zeros.
pub const ZERO_BLOCK: usize = 4096;

/// Fewest bytes that become a zero run; shorter ones stay in the chunk around them.
pub const MIN_ZERO_RUN: usize = 4 * ZERO_BLOCK;

/// A stretch of a buffer: all zeros, or to be cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub start: usize,
    /// Byte behind the last.
    pub end: usize,
    /// Whether all its bytes are zero.
    pub zero: bool,
}

pub(crate) fn is_zero(block: &[u8]) -> bool {
    // The first word decides for nearly every block with data in it.
    block.first_chunk::<8>().is_none_or(|word| *word == [0; 8])
        && block
            .chunks(64)
            .all(|line| line.iter().fold(0, |acc, byte| acc | byte) == 0)
}

/// Splits `bytes`, which start on the section's 4 KiB grid, into alternating zero and data runs that cover all of it.
pub fn runs(bytes: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut push = |start, end, zero| match runs.last_mut() {
        Some(last) if last.zero == zero => last.end = end,
        _ if start == end => {}
        _ => runs.push(Run { start, end, zero }),
    };
    let mut zero_start = None;
    for (i, block) in bytes.chunks(ZERO_BLOCK).enumerate() {
        let start = i * ZERO_BLOCK;
        if is_zero(block) {
            zero_start.get_or_insert(start);
            continue;
        }
        if let Some(from) = zero_start.take() {
            push(from, start, start - from >= MIN_ZERO_RUN);
        }
        push(start, start + block.len(), false);
    }
    if let Some(from) = zero_start {
        // Zeros at the end are a run even when short: what is all zero shall not need a chunk at all.
        push(from, bytes.len(), true);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(bytes: &[u8]) -> Vec<(usize, bool)> {
        runs(bytes)
            .iter()
            .map(|r| (r.end - r.start, r.zero))
            .collect()
    }

    #[test]
    fn short_zero_runs_stay_in_the_data_and_long_ones_are_cut_out() {
        let mut bytes = vec![0u8; 64 * 4096];
        bytes[0] = 1;
        bytes[4 * 4096] = 1; // three zero blocks between: too short
        bytes[40 * 4096 + 4095] = 1;
        assert_eq!(
            shape(&bytes),
            [
                (5 * 4096, false),
                (35 * 4096, true),
                (4096, false),
                (23 * 4096, true)
            ]
        );
    }

    #[test]
    fn a_last_partial_block_counts() {
        assert_eq!(shape(&[0; 5000]), [(5000, true)]);
        let mut bytes = [0u8; 5000];
        bytes[4999] = 9;
        assert_eq!(shape(&bytes), [(5000, false)]);
        assert_eq!(shape(&[]), []);
    }
}
