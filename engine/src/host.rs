//! What a store takes from the machine it runs on: the time, chance, and the identity of its process. All of it goes through here, so
//! that a simulation can run many machines, with clocks of their own, in one test.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::holder::Holder;

/// A time that much ahead of this machine's clock is no other clock's, it is nonsense.
const NONSENSE_MS: u64 = 24 * 3_600_000;

/// Whether a time that was found in a store is too far in the future to be believed.
pub(crate) fn is_nonsense(unix_ms: u64, now: u64) -> bool {
    unix_ms > now.saturating_add(NONSENSE_MS)
}

/// The machine under a store.
pub(crate) trait Host: fmt::Debug + Send + Sync {
    /// Milliseconds since 1970.
    fn now_unix_ms(&self) -> u64;

    /// A number that nobody else draws.
    fn draw(&self) -> u64;

    /// The process, as leases name it, where that can be told.
    fn process(&self) -> Option<Holder>;

    /// Whether a safeguard is left out: for simulations, to see that they notice.
    fn lacks(&self, _: Safeguard) -> bool {
        false
    }
}

/// What keeps data from being lost, and can be left out in a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Safeguard {
    /// A save looks at its lease before and after it commits.
    LeaseCheck,
    /// A collector deletes only what was garbage some time before.
    SecondPass,
    /// Deletions name the version that is meant.
    Generation,
    /// Retention looks whether a snapshot is used when it has marked it.
    UseCheck,
    /// Retention removes the version that it judged.
    JudgedVersion,
}

/// The machine that this process runs on.
#[derive(Debug)]
pub(crate) struct System;

impl Host for System {
    fn now_unix_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64)
    }

    fn draw(&self) -> u64 {
        uuid::Uuid::new_v4().as_u64_pair().0
    }

    fn process(&self) -> Option<Holder> {
        Holder::this_process()
    }
}
