//! How much of the memory is filled at once: as much as a fast link carries as long as nobody waits for a page, little when somebody does.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{self, Notify};

/// Reads that fill and that may be under way at once, each with a buffer of its own.
const MOST: usize = 32;

/// As many while pages are waited for. What is under way already holds them up, but not by more than a round trip on a link that is worth it; and pages
/// that will be waited for next are often among what is filled by then.
const LEAST: usize = 16;

/// Lets reads begin.
#[derive(Debug)]
pub(super) struct Pace {
    /// Held by the one that begins next, so that they begin in the order in which they came: somebody may wait for a page that one of them fills.
    turn: sync::Mutex<()>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    filling: usize,
    most: usize,
    urgent: usize,
}

/// A read that fills and is under way.
pub(super) struct Filling<'a>(&'a Pace);

/// A read that somebody waits for.
pub(super) struct Urgent<'a>(&'a Pace);

impl Default for Pace {
    fn default() -> Self {
        Self {
            turn: sync::Mutex::default(),
            state: Mutex::new(State {
                filling: 0,
                most: MOST,
                urgent: 0,
            }),
            changed: Notify::new(),
        }
    }
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a read that fills.
    pub(super) async fn fill(&self) -> Filling<'_> {
        let _turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state().begin_filling() {
                return Filling(self);
            }
            changed.await;
        }
    }

    /// A read begins that somebody waits for.
    pub(super) fn hurry(&self) -> Urgent<'_> {
        let mut state = self.state();
        state.urgent += 1;
        state.most = LEAST;
        Urgent(self)
    }
}

impl State {
    fn begin_filling(&mut self) -> bool {
        // Some go on always, or a sandbox that always waits for something would never be filled.
        let begins = self.filling < self.most;
        self.filling += usize::from(begins);
        begins
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.filling -= 1;
        if state.urgent == 0 {
            state.most = (state.most + 1).min(MOST);
        }
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.state().urgent -= 1;
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begins(pace: &Pace) -> Vec<Filling<'_>> {
        let mut filling = Vec::new();
        while pace.state().begin_filling() {
            filling.push(Filling(pace));
        }
        filling
    }

    #[test]
    fn filling_gives_way_and_grows_again() {
        let pace = Pace::default();
        assert_eq!(begins(&pace).len(), MOST);
        let urgent = pace.hurry();
        let mut filling = begins(&pace);
        assert_eq!(filling.len(), LEAST, "some go on");
        filling.truncate(LEAST / 2);
        filling.append(&mut begins(&pace));
        assert_eq!(filling.len(), LEAST, "and no more");
        drop(urgent);
        assert_eq!(begins(&pace).len(), 0);
        drop(filling);
        let grown: Vec<_> = (0..2).map(|_| begins(&pace).len()).collect();
        assert_eq!(grown, [MOST, MOST]);
    }

    #[tokio::test]
    async fn who_waits_for_a_turn_gets_it() {
        let pace = Pace::default();
        let urgent = pace.hurry();
        let first = begins(&pace);
        let second = async {
            let _turn = pace.fill().await;
        };
        let end = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        tokio::join!(second, end);
        drop(urgent);
    }
}
