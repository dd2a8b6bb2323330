//! What was sent to a bucket: counted, so that retries and hedges are never silent.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one store's requests so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcsStats {
    /// Requests sent, repetitions and hedges included.
    pub requests: u64,
    /// Of these, repetitions of a request that failed or was not answered.
    pub retries: u64,
    /// Of these, downloads that went on in the middle of a range.
    pub resumed: u64,
    /// Of these, second requests for a range whose first byte was late.
    pub hedges: u64,
    /// Bytes of objects received.
    pub received_bytes: u64,
    /// Bytes of objects sent, repetitions included.
    pub sent_bytes: u64,
}

/// The counters behind [`GcsStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) requests: AtomicU64,
    retries: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

/// What a request that is dropped unread may have cost, in bytes: what a connection holds in its buffers.
const HEDGE_COST: u64 = 256 << 10;

/// Most of all bytes received that hedges may cost: one part in so many.
const HEDGE_SHARE: u64 = 20;

impl Counters {
    pub(super) fn snapshot(&self) -> GcsStats {
        GcsStats {
            requests: self.requests.load(Relaxed),
            retries: self.retries.load(Relaxed),
            resumed: self.resumed.load(Relaxed),
            hedges: self.hedges.load(Relaxed),
            received_bytes: self.received.load(Relaxed),
            sent_bytes: self.sent.load(Relaxed),
        }
    }

    pub(super) fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
        crate::metrics::retried();
    }

    /// Whether one more hedge keeps within the share of the traffic that hedges may have; counts it if so.
    pub(super) fn take_hedge(&self) -> bool {
        let allowed = self.received.load(Relaxed) / HEDGE_SHARE / HEDGE_COST;
        self.hedges
            .fetch_update(Relaxed, Relaxed, |taken| {
                (taken < allowed).then_some(taken + 1)
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedges_stay_within_a_twentieth_of_the_bytes() {
        let counters = Counters::default();
        assert!(!counters.take_hedge(), "nothing was received yet");
        counters.received.store(100 << 20, Relaxed);
        let taken = (0..1000).filter(|_| counters.take_hedge()).count() as u64;
        assert_eq!(taken, 20);
        assert!(taken * HEDGE_COST * HEDGE_SHARE <= 100 << 20);
    }
}
