//! How many downloads may be under way at once: all that the caller has memory for, and fewer while the store throttles.
//!
//! A throttling answer halves their number, once for all that were under way when it came; each round of downloads that go well adds one.
//! Nothing else is measured: a link that is full is shared by many streams as well as by few.

use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use tokio::sync::Notify;

/// Turns to download.
#[derive(Debug)]
pub(super) struct Pace {
    /// The bound where nothing is throttled.
    most: f64,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Downloads that may be under way; at least one.
    bound: f64,
    under_way: usize,
    halved: Option<Instant>,
}

/// The right to download until it is dropped.
pub(super) struct Turn {
    pace: Arc<Pace>,
    began: Instant,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1) as f64;
        Self {
            most,
            state: Mutex::new(State {
                bound: most,
                under_way: 0,
                halved: None,
            }),
            changed: Notify::new(),
        }
    }

    /// Waits until one more may be under way.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn {
        loop {
            let changed = self.changed.notified();
            if let Some(turn) = self.try_turn() {
                return turn;
            }
            changed.await;
        }
    }

    fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let mut state = self.state.lock().expect("no panic while held");
        let free = state.under_way < state.bound as usize;
        free.then(|| {
            state.under_way += 1;
            Turn {
                pace: self.clone(),
                began: Instant::now(),
            }
        })
    }
}

impl Turn {
    /// The store bears what it was asked for, and may bear more.
    pub(super) fn went_well(self) {
        let mut state = self.pace.state.lock().expect("no panic while held");
        state.bound = (state.bound + 1.0 / state.bound).min(self.pace.most);
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
        state.under_way -= 1;
        let free = (state.bound as usize).saturating_sub(state.under_way);
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
        std::iter::from_fn(|| pace.try_turn()).collect()
    }

    #[test]
    fn one_round_of_throttling_halves_once_and_good_rounds_recover() {
        let pace = Arc::new(Pace::new(16));
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
        let pace = Arc::new(Pace::new(4));
        for _ in 0..10 {
            turns(&pace).into_iter().for_each(Turn::was_throttled);
        }
        assert_eq!(turns(&pace).len(), 1);
    }

    #[tokio::test]
    async fn who_waits_gets_the_turn_that_another_gives_back() {
        let pace = Arc::new(Pace::new(2));
        let held = turns(&pace);
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let pace = pace.clone();
                tokio::spawn(async move { pace.turn().await.went_well() })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for task in waiting {
            task.await.unwrap();
        }
    }
}
