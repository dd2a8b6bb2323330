//! Looking at a whole store to find out what is still needed: which packs manifests name, and what leases promise.
//!
//! A listing is not one moment: while it runs, a save may commit and drop its lease, and be missed as both. So leases are listed first
//! and manifests in a second listing, begun when the first has ended: whoever had a lease before the survey began is seen with the
//! one or the other. What comes into need after that comes from a manifest that was there when it did, see `docs/decisions/`.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    lease::{self, LeaseRecord},
    names,
    snapshot::Snapshot,
    store::{ObjectMeta, Version},
};

/// Manifests and leases read at once.
const READS_AT_ONCE: usize = 16;

/// What there is in a store, and what is needed of it.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// Everything in the store, as the second listing found it.
    pub(crate) objects: Vec<ObjectMeta>,
    /// Leases that are there, live or not.
    pub(crate) leases: BTreeMap<SnapshotId, (LeaseRecord, Version)>,
    /// Committed snapshots, and the names of the packs that each needs.
    pub(crate) manifests: BTreeMap<SnapshotId, HashSet<String>>,
    /// The groups of those that are of one.
    pub(crate) groups: BTreeMap<SnapshotId, String>,
    /// Snapshots whose manifest or lease cannot be read, and why. They may need anything.
    pub(crate) unreadable: BTreeMap<SnapshotId, Error>,
}

impl Survey {
    /// Looks at everything. An error of the store is an error; an object that makes no sense is [`unreadable`](Survey::unreadable).
    pub(crate) async fn of(store: &Store) -> Result<Self> {
        let before = store.list_objects().await?;
        let objects = store.list_objects().await?;
        let both = || before.iter().chain(&objects);
        let leased: BTreeSet<SnapshotId> = both()
            .filter_map(|o| snapshot_of(o, names::LEASE))
            .collect();
        let mut survey = Self::default();
        let mut leases = stream::iter(leased.clone())
            .map(|id| async move { (lease::read(&**store.backend(), &id).await, id) })
            .buffer_unordered(READS_AT_ONCE);
        while let Some((read, id)) = leases.next().await {
            match read {
                Ok(Some(found)) => drop(survey.leases.insert(id, found)),
                // Dropped since: its save has ended, and is looked for among the manifests.
                Ok(None) => {}
                Err(e) if unreadable(&e) => drop(survey.unreadable.insert(id, e)),
                Err(e) => return Err(e),
            }
        }
        drop(leases);
        let committed = both().filter_map(|o| snapshot_of(o, names::MANIFEST));
        let committed: BTreeSet<SnapshotId> = committed.chain(leased).collect();
        let manifests: Vec<(SnapshotId, Result<_>)> = stream::iter(committed)
            .map(|id| async move {
                match store.snapshot(&id).await {
                    Ok(snapshot) => {
                        let group = snapshot.metadata().group.clone();
                        Ok(Some((id, Ok((needs(&snapshot), group)))))
                    }
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) if unreadable(&e) => Ok(Some((id, Err(e)))),
                    Err(e) => Err(e),
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await?;
        for (id, found) in manifests {
            match found {
                Ok((needs, group)) => {
                    survey.groups.extend(group.map(|group| (id.clone(), group)));
                    survey.manifests.insert(id, needs);
                }
                Err(e) => drop(survey.unreadable.insert(id, e)),
            }
        }
        survey.objects = objects;
        Ok(survey)
    }

    /// Who needs the packs of `id`, itself left out: snapshots that borrow from it, saves that rely on it, and whatever cannot be read. A lease
    /// that has run out counts as well: its holder may only be asleep.
    pub(crate) fn users_of(&self, id: &SnapshotId) -> Vec<String> {
        let prefix = format!("{id}/");
        let borrowers = self
            .manifests
            .iter()
            .filter(|(other, needs)| {
                *other != id && needs.iter().any(|pack| pack.starts_with(&prefix))
            })
            .map(|(other, _)| format!("snapshot {other}"));
        let savers = self
            .leases
            .iter()
            .filter(|(other, (record, _))| *other != id && relies_on(record, id))
            .map(|(other, _)| format!("the save of {other} that is under way"));
        let unknown = self
            .unreadable
            .iter()
            .filter(|(other, _)| *other != id)
            .map(|(other, e)| format!("perhaps {other}, which cannot be read: {e}"));
        borrowers.chain(savers).chain(unknown).collect()
    }
}

/// Ids whose packs the lease of the save of `holder` promises to stay: its own, and those of what it relies on.
pub(crate) fn promises<'a>(
    holder: &'a SnapshotId,
    record: &'a LeaseRecord,
) -> impl Iterator<Item = &'a str> {
    let bases = record.bases.iter().map(String::as_str);
    bases.chain([holder.as_str()])
}

/// Whether the lease promises that packs of `id` stay.
pub(crate) fn relies_on(record: &LeaseRecord, id: &SnapshotId) -> bool {
    record.bases.iter().any(|base| base == id.as_str())
}

/// Names of the packs that a snapshot needs.
fn needs(snapshot: &Snapshot) -> HashSet<String> {
    let packs = snapshot.directory().packs.iter();
    packs.map(|pack| snapshot.pack_object(pack)).collect()
}

/// Errors that are about one object, and not about the store.
pub(crate) fn unreadable(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Damaged | ErrorKind::Missing | ErrorKind::Unsupported | ErrorKind::InvalidInput
    )
}

/// The snapshot whose `last` component this object is.
pub(crate) fn snapshot_of(object: &ObjectMeta, last: &str) -> Option<SnapshotId> {
    let (id, name) = object.name.split_once('/')?;
    (name == last && id != names::HEADS).then(|| id.parse().ok())?
}

/// What an object with a name of ours is to its snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Manifest,
    Lease,
    WorkingSet,
    /// What the catalog has noted about it.
    Note,
    /// A pack, or a piece of one.
    Pack,
}

/// The snapshot that an object belongs to, and as what. Anything whose name is none of ours is nobody's business.
pub(crate) fn place_of(object: &ObjectMeta) -> Option<(SnapshotId, Part)> {
    let (id, name) = object.name.split_once('/')?;
    let part = match name {
        names::MANIFEST => Part::Manifest,
        names::LEASE => Part::Lease,
        names::WORKING_SET => Part::WorkingSet,
        names::USED | names::PINNED | names::FAILED | names::DELETING => Part::Note,
        name if names::is_of_pack(name) => Part::Pack,
        _ => return None,
    };
    (id != names::HEADS).then(|| id.parse().ok().map(|id| (id, part)))?
}
