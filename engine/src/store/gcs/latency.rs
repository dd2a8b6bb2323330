//! How long first bytes take in this bucket, and so from when on one is late.

use std::{collections::VecDeque, sync::Mutex, time::Duration};

/// Latencies remembered.
const KEPT: usize = 256;

/// Latencies before which the usual is not known.
const ENOUGH: usize = 24;

/// When a first byte is late as long as the usual is not known (google-cloud-cpp's choice).
const UNKNOWN: Duration = Duration::from_millis(500);

/// A first byte is never called late earlier than this: twice the usual 20 ms of Google's, and some for our own threads.
const EARLIEST: Duration = Duration::from_millis(100);

/// A first byte is always called late from here on.
const LATEST: Duration = Duration::from_secs(2);

/// The latest first-byte latencies.
#[derive(Debug, Default)]
pub(super) struct Latencies(Mutex<VecDeque<Duration>>);

impl Latencies {
    pub(super) fn record(&self, latency: Duration) {
        let mut kept = self.0.lock().expect("no panic while held");
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(latency);
    }

    /// When a first byte that has not come is late: beyond twice the moving 95th percentile. The 99th itself would be the very stalls that
    /// hedging is for, as soon as one request in a hundred stalls.
    pub(super) fn late(&self) -> Duration {
        let mut sorted: Vec<Duration> = {
            let kept = self.0.lock().expect("no panic while held");
            if kept.len() < ENOUGH {
                return UNKNOWN;
            }
            kept.iter().copied().collect()
        };
        let at = sorted.len() * 95 / 100;
        let (_, percentile, _) = sorted.select_nth_unstable(at);
        (*percentile * 2).clamp(EARLIEST, LATEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_do_not_make_themselves_usual() {
        let latencies = Latencies::default();
        assert_eq!(latencies.late(), UNKNOWN);
        for number in 0..1000 {
            let stalled = number % 50 == 0;
            latencies.record(Duration::from_millis(if stalled { 5000 } else { 80 }));
        }
        assert_eq!(latencies.late(), Duration::from_millis(160));
    }
}
