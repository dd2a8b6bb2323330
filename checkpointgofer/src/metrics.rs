//! What the gofer counts beside what the library does, sent where the operator's [`statsd`](crate::options::Options::statsd) is.
//!
//! The names are an interface: `docs/operations.md` says what each is good for.

use std::time::Duration;

use metrics::{counter, histogram};

/// The sandbox stood still for so long to be saved.
pub(crate) fn frozen(time: Duration) {
    histogram!("podsnap_freeze_seconds").record(time);
}

/// A thread of the sandbox waits for pages. The library counts those that it serves under the same name.
pub(crate) fn fault() {
    counter!("podsnap_faults_total").increment(1);
}

/// The sandbox got so many bytes. The library counts those that it restores under the same name.
pub(crate) fn restored(len: u32) {
    if len > 0 {
        counter!("podsnap_restored_bytes_total").increment(u64::from(len));
    }
}
