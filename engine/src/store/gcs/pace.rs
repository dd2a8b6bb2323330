//! How many downloads may be under way at once: all that the caller has memory for, and fewer while the store throttles. A short one counts as
//! part of a download: many pages that are waited for take turns of their own, not each that of a large range.
//!
//! A throttling answer halves their number, once for all that were under way when it came; each round of downloads that go well adds one.
//! Nothing else is measured: a link that is full is shared by many streams as well as by few.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::sync::Notify;

/// Parts that a download counts as, if it is not a short one.
const PARTS: usize = 16;

/// Turns to download.
#[derive(Debug)]
pub(super) struct Pace {
    /// The bound where nothing is throttled.
    most: f64,
    /// Length in bytes of a download that counts as a whole one.
    whole_len: u64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Downloads that may be under way; at least one.
    bound: f64,
    /// Parts of downloads that are.
    under_way: usize,
    halved: Option<Instant>,
}

/// The right to download until it is dropped.
pub(super) struct Turn {
    pace: Arc<Pace>,
    parts: usize,
    began: Instant,
}

impl Pace {
    pub(super) fn new(most: usize, whole_len: u64) -> Self {
        let most = most.max(1) as f64;
        Self {
            most,
            whole_len: whole_len.max(1),
            state: Mutex::new(State {
                bound: most,
                under_way: 0,
                halved: None,
            }),
            changed: Notify::new(),
        }
    }

    /// Waits until one more, of so many bytes, may be under way.
    pub(super) async fn turn(self: &Arc<Self>, len: u64) -> Turn {
        let parts = (len.saturating_mul(PARTS as u64) / self.whole_len).clamp(1, PARTS as u64);
        loop {
            let changed = self.changed.notified();
            if let Some(turn) = self.try_turn(parts as usize) {
                return turn;
            }
            changed.await;
        }
    }

    fn try_turn(self: &Arc<Self>, parts: usize) -> Option<Turn> {
        let mut state = self.state.lock().expect("no panic while held");
        let free = state.free();
        if free < parts && state.under_way > 0 {
            return None;
        }
        state.under_way += parts;
        if free > parts {
            // A whole one that has ended makes room for several short ones.
            self.changed.notify_one();
        }
        Some(Turn {
            pace: self.clone(),
            parts,
            began: Instant::now(),
        })
    }
}

impl State {
    /// Parts that may still come under way.
    fn free(&self) -> usize {
        (self.bound as usize * PARTS).saturating_sub(self.under_way)
    }
}

impl Turn {
    /// The store bears what it was asked for, and may bear more.
    pub(super) fn went_well(self) {
        let mut state = self.pace.state.lock().expect("no panic while held");
        let share = self.parts as f64 / PARTS as f64;
        state.bound = (state.bound + share / state.bound).min(self.pace.most);
    }

    /// The store wants to be asked for less. One that was begun before the last halving says nothing of what came of it.
    pub(super) fn was_throttled(self) {
        let mut state = self.pace.state.lock().expect("no panic while held");
        if state.halved.is_none_or(|halved| self.began > halved) {
            state.bound = (state.bound / 2.0).max(1.0);
            state.halved = Some(Instant::now());
            tracing::debug!(
                bound = state.bound as usize,
                "the store throttles downloads"
            );
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.pace.state.lock().expect("no panic while held");
        state.under_way -= self.parts;
        let free = state.free();
        drop(state);
        // Two where a bound has grown.
        for _ in 0..free.min(2) {
            self.pace.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All turns that can be had at once.
    fn turns(pace: &Arc<Pace>) -> Vec<Turn> {
        std::iter::from_fn(|| pace.try_turn(PARTS)).collect()
    }

    #[tokio::test]
    async fn short_ones_take_part_of_a_turn() {
        let pace = Arc::new(Pace::new(2, 8 << 20));
        let large = pace.turn(8 << 20).await;
        let mut short = Vec::new();
        for _ in 0..PARTS {
            short.push(pace.turn(64 << 10).await);
        }
        assert!(pace.try_turn(1).is_none());
        let waiting: Vec<_> = (0..PARTS)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move { pace.turn(4096).await })
            })
            .collect();
        tokio::task::yield_now().await;
        // One that ends makes room for all of them.
        drop(large);
        for turn in waiting {
            short.push(turn.await.unwrap());
        }
        assert!(pace.try_turn(1).is_none());
    }

    #[test]
    fn one_round_of_throttling_halves_once_and_good_rounds_recover() {
        let pace = Arc::new(Pace::new(16, 1));
        let round = turns(&pace);
        assert_eq!(round.len(), 16);
        round.into_iter().for_each(Turn::was_throttled);
        let round = turns(&pace);
        assert_eq!(round.len(), 8);
        round.into_iter().for_each(Turn::went_well);
        assert!(matches!(turns(&pace).len(), 8 | 9));
        for _ in 0..12 {
            turns(&pace).into_iter().for_each(Turn::went_well);
        }
        assert_eq!(turns(&pace).len(), 16, "it is back, and goes no further");
    }

    #[test]
    fn one_is_always_allowed() {
        let pace = Arc::new(Pace::new(4, 1));
        for _ in 0..10 {
            turns(&pace).into_iter().for_each(Turn::was_throttled);
        }
        assert_eq!(turns(&pace).len(), 1);
    }

    #[tokio::test]
    async fn who_waits_gets_the_turn_that_another_gives_back() {
        let pace = Arc::new(Pace::new(2, 1));
        let held = turns(&pace);
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move { pace.turn(1).await.went_well() })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            task.await.unwrap();
        }
    }
}
