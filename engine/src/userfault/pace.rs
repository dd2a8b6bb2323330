//! How fast memory is filled in the background: slowly while somebody faults, in large steps when nobody does.

use std::{
    sync::atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Relaxed, SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// The smallest step in bytes: what a fault is held up by at most.
const LEAST_STEP: u64 = 64 << 10;

/// The largest step in bytes.
const MOST_STEP: u64 = 8 << 20;

/// Longest that a step waits for faults: then it is taken nevertheless, or a process that always faults somewhere were never filled.
const PATIENCE: Duration = Duration::from_millis(20);

/// The faults that a filling gives way to.
#[derive(Debug, Default)]
pub(super) struct Pace {
    faults: AtomicU64,
    waiting: AtomicUsize,
}

/// The steps of one filling.
#[derive(Debug)]
pub(super) struct Steps {
    len: u64,
    seen: u64,
}

impl Pace {
    pub fn count(&self, faults: usize) {
        self.faults.fetch_add(faults as u64, Relaxed);
    }

    pub fn faults(&self) -> u64 {
        self.faults.load(Relaxed)
    }

    /// A fault that waits for bytes as long as this is kept.
    pub fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, SeqCst);
        Waiting(self)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    pub fn steps(&self) -> Steps {
        Steps {
            len: LEAST_STEP,
            seen: self.faults(),
        }
    }
}

/// A fault that waits.
pub(super) struct Waiting<'a>(&'a Pace);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
    }
}

impl Steps {
    /// Waits while faults wait, then says how many bytes the next step has.
    pub fn next(&mut self, pace: &Pace) -> u64 {
        let started = Instant::now();
        while pace.waiting() > 0 && started.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        let faults = pace.faults();
        self.len = match faults == self.seen {
            true => (2 * self.len).min(MOST_STEP),
            false => LEAST_STEP,
        };
        self.seen = faults;
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_in_quiet_and_backs_off_at_a_fault() {
        let pace = Pace::default();
        let mut steps = pace.steps();
        let mut last = 0;
        for _ in 0..10 {
            last = steps.next(&pace);
        }
        assert_eq!(last, MOST_STEP);
        pace.count(1);
        assert_eq!(steps.next(&pace), LEAST_STEP);
        assert_eq!(steps.next(&pace), 2 * LEAST_STEP);
    }

    #[test]
    fn waits_for_faults_but_not_for_ever() {
        let pace = Pace::default();
        let mut steps = pace.steps();
        let fault = pace.wait();
        let started = Instant::now();
        pace.count(1);
        assert_eq!(steps.next(&pace), LEAST_STEP);
        assert!(started.elapsed() >= PATIENCE);
        drop(fault);
        assert_eq!(pace.waiting(), 0);
    }
}
