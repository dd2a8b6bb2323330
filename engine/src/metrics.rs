//! What the library counts through the crate `metrics`, for whoever installs a recorder in its process, as
//! [`Statsd`](crate::Statsd) does; nothing is done where nobody does.
//!
//! The names are an interface: `docs/operations.md` says what each is good for.

use metrics::{counter, gauge, histogram};

use crate::{RestoreStats, RetentionStats, SaveStats, garbage::CollectStats};

/// A snapshot is committed.
pub(crate) fn saved(stats: &SaveStats) {
    let deduplicated = stats.deduplicated_own_bytes + stats.deduplicated_base_bytes;
    counter!("podsnap_saved_snapshots_total").increment(1);
    counter!("podsnap_save_raw_bytes_total").increment(stats.raw_bytes);
    counter!("podsnap_save_zero_bytes_total").increment(stats.zero_bytes);
    counter!("podsnap_save_deduplicated_bytes_total").increment(deduplicated);
    counter!("podsnap_save_stored_bytes_total").increment(stats.stored_bytes());
    histogram!("podsnap_save_seconds").record(stats.elapsed_ms as f64 / 1e3);
}

/// A save comes to nothing, or cannot begin.
pub(crate) fn save_failed() {
    counter!("podsnap_failed_saves_total").increment(1);
}

/// A request to a bucket of Google's is sent again.
pub(crate) fn retried() {
    counter!("podsnap_store_retries_total").increment(1);
}

/// So many frames were found on the node's disk.
pub(crate) fn node_cache_hits(frames: usize) {
    counter!("podsnap_node_cache_hits_total").increment(frames as u64);
}

/// A frame came from the store that was not on the node's disk.
pub(crate) fn node_cache_miss() {
    counter!("podsnap_node_cache_misses_total").increment(1);
}

/// A process waits for so many pages that [`crate::userfault`] serves.
pub(crate) fn faults(count: usize) {
    if count > 0 {
        counter!("podsnap_faults_total").increment(count as u64);
    }
}

/// Sections are restored.
pub(crate) fn restored(stats: &RestoreStats) {
    counter!("podsnap_restored_bytes_total").increment(stats.raw_bytes);
    histogram!("podsnap_restore_seconds").record(stats.elapsed_ms as f64 / 1e3);
}

/// Somebody begins to restore a snapshot.
pub(crate) fn restore_begun() {
    counter!("podsnap_restores_begun_total").increment(1);
}

/// A plan of retention was carried out.
pub(crate) fn retained(stats: &RetentionStats) {
    counter!("podsnap_retention_removed_total").increment(stats.removed.len() as u64);
    counter!("podsnap_retention_retained_total").increment(stats.retained.len() as u64);
}

/// Garbage was collected.
pub(crate) fn collected(stats: &CollectStats) {
    counter!("podsnap_collected_objects_total").increment(stats.deleted_objects);
    counter!("podsnap_collected_bytes_total").increment(stats.deleted_bytes);
    gauge!("podsnap_garbage_waiting_bytes").set(stats.kept_bytes as f64);
}
