//! Ending the saves of others that have committed and died: what they had still to do is done for them.

use podsnap_format::SnapshotId;

use crate::{
    Store,
    error::Result,
    heads,
    lease::{self, LeaseRecord},
    names,
    snapshot::Snapshot,
    store::Version,
};

/// A save killed between its commit and its end leaves its lease, and perhaps its group's head where it was: ends it.
pub(crate) async fn end_for_the_dead(store: &Store, snapshot: &SnapshotId) -> Result<()> {
    // Its manifest was read just now, or listed.
    let found = lease::read_where_allowed(&**store.backend(), snapshot).await?;
    match found {
        Some((record, version)) if !record.is_live(store.host()) => {
            let committed = Snapshot::open(store, snapshot).await?;
            end_lease(store, &committed, &record, &version).await
        }
        _ => Ok(()),
    }
}

/// Ends a lease that was found beside a committed snapshot, and not live. A conflict if its holder has come back since.
pub(crate) async fn end_lease(
    store: &Store,
    committed: &Snapshot,
    record: &LeaseRecord,
    version: &Version,
) -> Result<()> {
    let (backend, snapshot) = (&**store.backend(), committed.id());
    if let Some(group) = &committed.metadata().group {
        heads::advance(store, group, snapshot, committed.metadata().created_unix_ms).await?;
    }
    // Only what nobody writes any more: one that is asleep could commit over what is gone, when this snapshot has been removed.
    let dead = record.is_abandoned().then_some(&record.attempt);
    let ours = committed.directory().header.attempt;
    for attempt in record.previous.iter().chain(dead) {
        match u64::from_str_radix(attempt, 16) {
            Ok(attempt) if attempt != ours => {
                lease::remove_packs(backend, snapshot, attempt).await?;
            }
            _ => {}
        }
    }
    backend
        .delete(&names::object(snapshot, names::LEASE), Some(version))
        .await
}
