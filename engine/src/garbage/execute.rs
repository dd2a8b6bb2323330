//! Carrying a plan out. Leases that have run out go first, for good: each is swapped for nobody's in the version that was seen, so from then on
//! its holder, should it wake up, cannot commit. If one has come back, or is not there any more, everything stays.

use std::collections::HashSet;

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use podsnap_format::SnapshotId;
use tokio_util::sync::CancellationToken;

use super::{
    CollectStats, CollectionPlan, FailedDeletion, Garbage, Survey, record::Seen, survey::promises,
};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    lease::{self, LeaseRecord},
    names, save,
    store::Version,
};

/// Deletions under way at once.
const AT_ONCE: usize = 16;

impl Store {
    /// Carries a plan out. It may be old: what has changed since stays. What cannot be deleted is said in the statistics, and keeps nothing else
    /// from going but what depends on it; a store that fails ends it, as does `cancel`, as soon as the deletions that are under way have ended. What is left
    /// then goes with the next plan, and has not to wait again.
    pub async fn collect(
        &self,
        plan: CollectionPlan,
        cancel: &CancellationToken,
    ) -> Result<CollectStats> {
        let backend = &**self.backend();
        let mut stats = CollectStats {
            kept_objects: (plan.keep.len() + plan.delete.len()) as u64,
            kept_bytes: plan.keep_bytes() + plan.delete_bytes(),
            ..CollectStats::default()
        };
        let noted = match plan.seen.write(backend, plan.seen_version.as_ref()).await {
            Err(e) if e.kind() == ErrorKind::Conflict => {
                stats.stopped = Some("another collector is at work in this store".to_owned());
                return Ok(stats);
            }
            noted => noted?,
        };
        let noted_objects = plan.seen.garbage.len();
        let mut collection = Collection {
            store: self,
            cancel,
            stats,
            seen: plan.seen,
        };
        let (leases, rest): (Vec<_>, Vec<_>) = plan
            .delete
            .into_iter()
            .map(|garbage| (plan.dead_leases.get(&garbage.object).cloned(), garbage))
            .partition(|(lease, _)| lease.is_some());
        collection.move_heads(plan.heads).await;
        let leases = leases.into_iter().filter_map(|(lease, garbage)| {
            let (id, record) = lease?;
            let committed = plan.committed.contains(&id);
            Some((id, record, committed, garbage))
        });
        let leases: Vec<_> = leases.collect();
        let mut rest: Vec<_> = rest.into_iter().map(|(_, garbage)| garbage).collect();
        if !leases.is_empty() {
            collection.end_leases(leases).await;
            collection.keep_what_is_needed(&mut rest).await;
        }
        collection.delete(rest).await;
        let Collection { seen, stats, .. } = collection;
        if seen.garbage.len() < noted_objects {
            match seen.write(backend, noted.as_ref()).await {
                // Another collector's pass has begun, and has looked for itself. To others a name too many says nothing.
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(error) => {
                    tracing::warn!(%error, "what was deleted is still noted; the next pass mends that");
                }
                Ok(_) => {}
            }
        }
        crate::metrics::collected(&stats);
        Ok(stats)
    }

    /// Ends a save that is dead. A conflict says that it is not, or that somebody else was at it.
    async fn end_dead(
        &self,
        id: &SnapshotId,
        record: &LeaseRecord,
        version: &Version,
        committed: bool,
    ) -> Result<()> {
        if committed {
            // Killed between its commit and its end: its group does not know of it yet.
            match save::end_for_the_dead(self, id).await {
                // Removed since.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                ended => ended?,
            }
            let lease = names::object(id, names::LEASE);
            return self.delete_exactly(&lease, version).await;
        }
        lease::end(self, id, record, version).await?;
        // Its holder may have committed after the plan was made, before its lease went.
        let manifest = names::object(id, names::MANIFEST);
        match self.backend().head(&manifest).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Err(Error::new(ErrorKind::Conflict, "it is committed")),
        }
    }

    /// Deletes an object in the version that was seen.
    pub(crate) async fn delete_exactly(&self, name: &str, version: &Version) -> Result<()> {
        use crate::host::Safeguard::Generation;
        let version = (!self.host().lacks(Generation)).then_some(version);
        self.backend().delete(name, version).await
    }
}

/// A plan that is being carried out.
struct Collection<'a> {
    store: &'a Store,
    cancel: &'a CancellationToken,
    stats: CollectStats,
    /// What was noted and is not deleted yet.
    seen: Seen,
}

impl Collection<'_> {
    async fn move_heads(&mut self, heads: Vec<(String, SnapshotId)>) {
        for (group, gone) in heads {
            if self.has_stopped() {
                return;
            }
            match self.store.move_head_away(&group, &gone).await {
                Ok(moved) => self.stats.moved_heads += u64::from(moved),
                Err(e) => self.failed(names::head(&group), &e),
            }
        }
    }

    async fn end_leases(&mut self, leases: Vec<(SnapshotId, LeaseRecord, bool, Garbage)>) {
        if self.has_stopped() {
            return;
        }
        let store = self.store;
        let ending = leases.into_iter().map(|(id, record, committed, garbage)| {
            let ending = async move {
                let version = &garbage.version;
                let ended = store.end_dead(&id, &record, version, committed).await;
                (ended, (id, record, garbage))
            };
            ending.boxed()
        });
        at_once(ending, self.cancel, |(ended, (id, record, garbage))| {
            match ended {
                Ok(()) => self.deleted(&garbage),
                Err(e) if e.kind() == ErrorKind::Conflict => {
                    self.stats.stopped = Some(format!(
                        "the save of {id}, which was taken for dead, has come back, or somebody else has ended it"
                    ));
                    // What it has come to need, and may lose again, has not been garbage all the time.
                    let promised: HashSet<&str> = promises(&id, &record).collect();
                    self.seen.garbage.retain(|name, _| {
                        name.split_once('/').is_none_or(|(id, _)| !promised.contains(id))
                    });
                }
                Err(e) => self.failed(garbage.object, &e),
            }
            self.stats.stopped.is_none()
        })
        .await;
    }

    /// Keeps the packs that leases which could not be ended still promise, and those that have come to be needed since the plan. The holder of a lease
    /// that was ended may have committed before, somebody have borrowed from its snapshot, and the holder have taken that back: only
    /// who looks once the lease is gone sees who borrows.
    async fn keep_what_is_needed(&mut self, garbage: &mut Vec<Garbage>) {
        if self.has_stopped() {
            return;
        }
        let survey = match Survey::of(self.store).await {
            Ok(survey) => survey,
            Err(e) => {
                self.stats.stopped = Some(e.to_string());
                return;
            }
        };
        if let Some(e) = survey.unreadable.values().next() {
            self.stats.stopped = Some(e.to_string());
            return;
        }
        let needed = survey.manifests.values().flatten();
        let needed: HashSet<&str> = needed.map(String::as_str).collect();
        let leases = survey.leases.iter();
        let promised: HashSet<&str> = leases
            .flat_map(|(id, (record, _))| promises(id, record))
            .collect();
        garbage.retain(|garbage| {
            let name = garbage.object.as_str();
            let id = name.split_once('/').map(|(id, _)| id);
            !needed.contains(name) && id.is_none_or(|id| !promised.contains(id))
        });
    }

    async fn delete(&mut self, garbage: Vec<Garbage>) {
        if self.has_stopped() {
            return;
        }
        let store = self.store;
        let deleting = garbage.into_iter().map(|garbage| {
            let deleting = async move {
                let (name, version) = (&garbage.object, &garbage.version);
                let deleted = store.delete_exactly(name, version).await;
                (deleted, garbage)
            };
            deleting.boxed()
        });
        at_once(deleting, self.cancel, |(deleted, garbage)| {
            match deleted {
                Ok(()) => self.deleted(&garbage),
                // Another object by now; a later pass looks at it.
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => self.failed(garbage.object, &e),
            }
            self.stats.stopped.is_none()
        })
        .await;
        // For the statistics, if it was cancelled meanwhile.
        self.has_stopped();
    }

    fn deleted(&mut self, garbage: &Garbage) {
        self.seen.garbage.remove(&garbage.object);
        self.stats.deleted_objects += 1;
        self.stats.deleted_bytes += garbage.bytes;
        self.stats.kept_objects -= 1;
        self.stats.kept_bytes -= garbage.bytes;
    }

    fn failed(&mut self, object: String, e: &Error) {
        // Nothing is about one object only where the store fails.
        if matches!(e.kind(), ErrorKind::Store | ErrorKind::Interrupted) {
            self.stats.stopped = Some("the store failed".to_owned());
        }
        self.stats.failed.push(FailedDeletion {
            object,
            reason: e.to_string(),
            kind: e.kind(),
        });
    }

    fn has_stopped(&mut self) -> bool {
        if self.cancel.is_cancelled() && self.stats.stopped.is_none() {
            self.stats.stopped = Some("interrupted".to_owned());
        }
        self.stats.stopped.is_some()
    }
}

/// Does several things at once and tells of each, until that says that it is enough, or until it is cancelled; what is under way then comes to its end.
async fn at_once<'a, T>(
    mut doing: impl Iterator<Item = BoxFuture<'a, T>>,
    cancel: &CancellationToken,
    mut tell: impl FnMut(T) -> bool,
) {
    let mut under_way = FuturesUnordered::new();
    let mut go_on = true;
    loop {
        while go_on && under_way.len() < AT_ONCE && !cancel.is_cancelled() {
            match doing.next() {
                Some(one) => under_way.push(one),
                None => go_on = false,
            }
        }
        match under_way.next().await {
            Some(one) => go_on &= tell(one),
            None => return,
        }
    }
}
