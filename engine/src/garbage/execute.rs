//! Carrying a plan out. Dead leases go first and in the version that was seen: from then on their holders, should they wake up, cannot
//! commit; if one has, or has come back, everything stays.

use podsnap_format::SnapshotId;

use super::{CollectStats, CollectionPlan};
use crate::{
    Store,
    error::{ErrorKind, Result},
    names, save,
    store::Version,
};

impl Store {
    /// Carries a plan out. It may be old: what has changed since stays. An error of the store ends it; what was not deleted by then is found again by
    /// the next plan.
    pub async fn collect(&self, plan: CollectionPlan) -> Result<CollectStats> {
        let mut stats = CollectStats {
            kept_objects: plan.keep.len() as u64,
            kept_bytes: plan.keep_bytes(),
            ..CollectStats::default()
        };
        if let Err(e) = plan
            .seen
            .write(&**self.backend(), plan.seen_version.as_ref())
            .await
        {
            if e.kind() != ErrorKind::Conflict {
                return Err(e);
            }
            stats.stopped = Some("another collector is at work in this store".to_owned());
            return Ok(stats);
        }
        for (group, gone) in &plan.heads {
            self.move_head_away(group, gone).await?;
            stats.moved_heads += 1;
        }
        if let Some(why) = self.end_leases(&plan).await? {
            stats.stopped = Some(why);
            return Ok(stats);
        }
        for garbage in &plan.delete {
            if let Some((_, names::LEASE)) = garbage.object.split_once('/') {
                stats.deleted_objects += 1;
                stats.deleted_bytes += garbage.bytes;
                continue;
            }
            match self.delete_exactly(&garbage.object, &garbage.version).await {
                // Another object by now; a later pass looks at it.
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                deleted => deleted?,
            }
            stats.deleted_objects += 1;
            stats.deleted_bytes += garbage.bytes;
        }
        crate::metrics::collected(&stats);
        Ok(stats)
    }

    /// Deletes the leases that are dead. Returns why nothing else may be deleted, if one of them turned out not to be.
    async fn end_leases(&self, plan: &CollectionPlan) -> Result<Option<String>> {
        for (snapshot, version) in &plan.dead_leases {
            if plan.committed.contains(snapshot) {
                // Killed between its commit and its end: its group does not know of it yet.
                match save::end_for_the_dead(self, snapshot).await {
                    // Removed since.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) if e.kind() == ErrorKind::Conflict => {
                        return Ok(Some(came_back(snapshot)));
                    }
                    ended => ended?,
                }
            }
            let lease = names::object(snapshot, names::LEASE);
            match self.delete_exactly(&lease, version).await {
                Err(e) if e.kind() == ErrorKind::Conflict => return Ok(Some(came_back(snapshot))),
                deleted => deleted?,
            }
        }
        for (snapshot, _) in &plan.dead_leases {
            if plan.committed.contains(snapshot) {
                continue;
            }
            // Its holder may have committed after the plan was made, before its lease went.
            let manifest = names::object(snapshot, names::MANIFEST);
            match self.backend().head(&manifest).await {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
                Ok(_) => return Ok(Some(came_back(snapshot))),
            }
        }
        Ok(None)
    }

    /// Deletes an object in the version that was seen.
    pub(crate) async fn delete_exactly(&self, name: &str, version: &Version) -> Result<()> {
        use crate::host::Safeguard::Generation;
        let version = (!self.host().lacks(Generation)).then_some(version);
        self.backend().delete(name, version).await
    }
}

fn came_back(snapshot: &SnapshotId) -> String {
    format!("the save of {snapshot}, which was taken for dead, has come back")
}
