//! Which pages have been installed: one bit for each.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// A set of page numbers that any thread may add to.
#[derive(Debug)]
pub(super) struct Present(Vec<AtomicU64>);

impl Present {
    pub fn new(pages: u64) -> Self {
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// The same pages, on their own.
    pub fn copy(&self) -> Self {
        let words = self.0.iter().map(|word| word.load(SeqCst).into());
        Self(words.collect())
    }

    pub fn has(&self, page: u64) -> bool {
        let word = self.0[(page / 64) as usize].load(SeqCst);
        word >> (page % 64) & 1 == 1
    }

    /// Adds pages; returns how many of them are new.
    pub fn add(&self, pages: std::ops::Range<u64>) -> u64 {
        let mut added = 0;
        let mut at = pages.start;
        while at < pages.end {
            let end = pages.end.min((at / 64 + 1) * 64);
            let mask = u64::MAX >> (64 - (end - at)) << (at % 64);
            let before = self.0[(at / 64) as usize].fetch_or(mask, SeqCst);
            added += u64::from((mask & !before).count_ones());
            at = end;
        }
        added
    }

    /// The first page from `at` to `end` that is in the set, or not in it, as `wanted` says; `end` if there is none.
    pub fn find(&self, wanted: bool, mut at: u64, end: u64) -> u64 {
        while at < end {
            let word = self.0[(at / 64) as usize].load(SeqCst);
            let word = (if wanted { word } else { !word }) >> (at % 64);
            if word != 0 {
                return end.min(at + u64::from(word.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_counts_and_finds_over_words() {
        let set = Present::new(300);
        assert_eq!(set.add(60..200), 140);
        assert_eq!(set.add(0..64), 60);
        assert_eq!(set.add(100..120), 0);
        assert_eq!(set.find(false, 0, 300), 200);
        assert_eq!(set.find(true, 200, 300), 300);
        assert_eq!(set.add(256..257), 1);
        assert_eq!(set.find(true, 200, 300), 256);
        assert_eq!(set.find(true, 200, 256), 256);
        assert!(set.has(199) && !set.has(200) && !set.has(299));
        let copy = set.copy();
        set.add(299..300);
        assert!(!copy.has(299) && copy.has(60));
    }
}
