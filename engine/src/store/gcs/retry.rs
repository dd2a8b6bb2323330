//! When a request is repeated: exponential backoff with jitter, within a time that the caller knows.

use std::time::Duration;

use tokio::time::Instant;

/// How patient the engine is with a bucket. A request that is not answered at all ends in an error after `give_up_after`, and some
/// `answer_timeout` at most.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Time from the first try of a request after which no other is made.
    pub give_up_after: Duration,
    /// Time that a bucket has to begin to answer, besides what an upload takes.
    pub answer_timeout: Duration,
    /// Time for which a body that is being received may rest before the rest of it is asked for anew.
    pub stall_timeout: Duration,
    /// Longest wait before the first repetition; it doubles with each.
    pub first_backoff: Duration,
    /// Longest wait between two tries.
    pub longest_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            give_up_after: Duration::from_secs(120),
            answer_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(3),
            first_backoff: Duration::from_millis(200),
            longest_backoff: Duration::from_secs(8),
        }
    }
}

/// The slowest pace at which an upload is still called alive, in bytes per second: a body may take so much longer to be answered.
const SLOWEST_UPLOAD: u64 = 1 << 20;

impl RetryPolicy {
    /// Time for one try that sends a body of `len` bytes.
    pub(super) fn try_timeout(&self, len: u64) -> Duration {
        self.answer_timeout + Duration::from_secs(len / SLOWEST_UPLOAD)
    }
}

/// The tries of one request.
pub(super) struct Tries<'a> {
    policy: &'a RetryPolicy,
    until: Instant,
    backoff: Duration,
    count: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(policy: &'a RetryPolicy) -> Self {
        Self {
            policy,
            until: Instant::now() + policy.give_up_after,
            backoff: policy.first_backoff,
            count: 1,
        }
    }

    /// Tries so far, the one under way included.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Waits before another try, at least for as long as the server asked for; false when it is time to give up.
    pub(super) async fn another(&mut self, asked_for: Option<Duration>) -> bool {
        // Between half and all of it: never at once, and no two clients in step.
        let random = (uuid::Uuid::new_v4().as_u64_pair().0 >> 32) as f64 / f64::from(u32::MAX);
        let wait = self.backoff.mul_f64(0.5 + random / 2.0);
        let wait = wait.max(
            asked_for
                .unwrap_or_default()
                .min(self.policy.longest_backoff),
        );
        if Instant::now() + wait >= self.until {
            return false;
        }
        tokio::time::sleep(wait).await;
        self.backoff = (self.backoff * 2).min(self.policy.longest_backoff);
        self.count += 1;
        true
    }

    /// Something came of the last try: the next wait is a short one again.
    pub(super) fn progressed(&mut self) {
        self.backoff = self.policy.first_backoff;
        self.until = Instant::now() + self.policy.give_up_after;
    }
}
