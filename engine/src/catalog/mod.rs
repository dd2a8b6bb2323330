//! What a store holds, and what is known about it: snapshots by group, their status, when they were last used, and which may go.
//!
//! Here are the listing, and moving a group's head when its snapshot goes. Both need the right to list.
//!
//! - [`finder`]: what who runs pods needs, without the right to list: the newest snapshot of a group, a certain one, that one is used, is to
//!   stay, or could not be saved.
//! - [`group`]: what must agree between a pod that was saved and one that is restored.
//! - [`status`]: how far a snapshot is.
//! - [`retention`]: which snapshots have had their time: planned, then executed.
//! - [`notes`]: the small objects beside a snapshot's manifest in which all this is kept.

mod finder;
mod group;
mod notes;
mod retention;
mod status;

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

pub use finder::Catalog;
pub use group::Requirements;
pub use retention::{Retained, RetentionPlan, RetentionRules, RetentionStats, Verdict};
pub use status::{State, Status};

use self::notes::Deleting;
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::{Part, place_of, snapshot_of, unreadable},
    heads, names,
    snapshot::Snapshot,
    store::{Condition, ObjectMeta, Version},
};

/// Manifests read at once.
const READS_AT_ONCE: usize = 16;

/// Times a head is tried to be moved against savers and other removers.
const MAX_TRIES: u32 = 32;

/// The label of a snapshot that names the policy it was saved for.
pub const POLICY_LABEL: &str = "policy";

/// The label of a snapshot that names the namespace of its policy and its pod.
pub const NAMESPACE_LABEL: &str = "namespace";

/// A snapshot in a listing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Its id.
    pub snapshot: String,
    /// How far it is.
    pub status: Status,
    /// More about the status: who saves it, why it failed or goes, why it cannot be read.
    pub reason: Option<String>,
    /// The policy it was saved for.
    pub policy: Option<String>,
    /// The namespace of that policy.
    pub namespace: Option<String>,
    /// Milliseconds since 1970 when its save began; 0 if that is not known.
    pub created_unix_ms: u64,
    /// Milliseconds since 1970 when somebody last began to restore it, give or take ten minutes.
    pub last_used_unix_ms: Option<u64>,
    /// Why it stays whatever its policy says, if it does.
    pub pinned: Option<String>,
    /// The group it was saved into.
    pub group: Option<String>,
    /// What its owner labelled it with.
    pub labels: BTreeMap<String, String>,
    /// Bytes of its sections.
    pub raw_bytes: u64,
    /// Bytes of the objects under its own name.
    pub stored_bytes: u64,
    /// Other snapshots that hold packs it needs.
    pub borrows_from: Vec<String>,
    /// The version of its manifest, if that could be read.
    #[serde(skip)]
    pub(crate) version: Option<Version>,
}

impl Store {
    /// All snapshots, newest first: those that can be restored, and those that are being saved, that could not be saved, or that are about to go.
    /// One whose manifest cannot be read is listed as [failed](Status::Failed), with the reason.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{SaveOptions, Status, Store};
    ///
    /// let store = Store::open("memory://list")?;
    /// assert!(store.list().await?.is_empty());
    /// let writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
    /// assert_eq!(store.list().await?[0].status, Status::Saving);
    /// writer.finish().await?;
    /// let listed = store.list().await?;
    /// assert_eq!(listed[0].snapshot, "web-1");
    /// assert_eq!(listed[0].status, Status::Available);
    /// # Ok(()) }
    /// ```
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let objects = self.list_objects().await?;
        let mut parts: BTreeMap<SnapshotId, Parts> = BTreeMap::new();
        for object in &objects {
            if let Some((id, part)) = place_of(object) {
                parts.entry(id).or_default().add(part, object);
            }
        }
        let mut listed: Vec<Listed> = stream::iter(parts)
            .map(|(id, parts)| async move { self.describe(&id, &parts).await })
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|listed| async move { Ok(listed) })
            .try_collect()
            .await?;
        let now = self.host().now_unix_ms();
        let rank = |l: &Listed| {
            let newest_first = std::cmp::Reverse(heads::rank(l.created_unix_ms, now));
            (l.status != Status::Saving, newest_first)
        };
        listed.sort_by(|a, b| {
            let by_id = || b.snapshot.cmp(&a.snapshot);
            rank(a).cmp(&rank(b)).then_with(by_id)
        });
        Ok(listed)
    }

    pub(crate) async fn list_objects(&self) -> Result<Vec<ObjectMeta>> {
        self.backend().list("").await.map_err(|e| match e.advice() {
            None if e.kind() == ErrorKind::Forbidden => {
                e.hint("listing snapshots and collecting garbage need the right to list the store's objects (storage.objects.list on Google Cloud Storage), unlike saving and restoring")
            }
            _ => e,
        })
    }

    /// If `id` is the head of its group, the newest other snapshot of the group takes its place, or nothing does. Returns whether it was.
    pub(crate) async fn move_head_away(&self, group: &str, id: &SnapshotId) -> Result<bool> {
        let head = heads::read(&**self.backend(), group).await?;
        if head.is_none_or(|(head, _)| head.snapshot != *id) {
            return Ok(false);
        }
        self.settle_head(group, Some(id)).await.map_err(|e| {
            e.hint(format!(
                "the head of {group} could not be moved away from {id}"
            ))
        })?;
        Ok(true)
    }

    /// Makes the newest snapshot of the group its head, `but` that one. The head is compared again with what is there until nothing has changed: the
    /// snapshot it was moved to may itself be gone, and a save that ended meanwhile left the head alone if it named a newer one.
    pub(crate) async fn settle_head(&self, group: &str, but: Option<&SnapshotId>) -> Result<()> {
        let backend = &**self.backend();
        let mut known = BTreeMap::new();
        for _ in 0..MAX_TRIES {
            let head = heads::read(backend, group).await?;
            let next = self.newest_of(group, but, &mut known).await?;
            let done = match (head, &next) {
                (None, None) => return Ok(()),
                (None, Some(next)) => {
                    let (snapshot, created) = (&next.snapshot, next.created_unix_ms);
                    heads::advance(self, group, snapshot, created).await
                }
                (Some((head, _)), Some(next)) if head == *next => return Ok(()),
                (Some((head, _)), _)
                    if Some(&head.snapshot) != but
                        && self.is_newest(group, &head, &next).await? =>
                {
                    return Ok(());
                }
                (Some((_, version)), Some(next)) => {
                    let condition = Condition::Matches(version);
                    let name = names::head(group);
                    let put = backend.put(&name, heads::encode(next), condition);
                    put.await.map(drop)
                }
                (Some((_, version)), None) => {
                    backend.delete(&names::head(group), Some(&version)).await
                }
            };
            match done {
                // A save, or another removal, moved it just now.
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                done => done?,
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the head of {group} kept moving"),
        )
        .hint("try again when fewer others save and remove"))
    }

    /// Whether a head that others set is right: its snapshot is there, of the group, and as new as any.
    async fn is_newest(
        &self,
        group: &str,
        head: &heads::Head,
        listed: &Option<heads::Head>,
    ) -> Result<bool> {
        let now = self.host().now_unix_ms();
        let newest = listed.as_ref().is_none_or(|listed| {
            heads::rank(head.created_unix_ms, now) >= heads::rank(listed.created_unix_ms, now)
        });
        match self.snapshot(&head.snapshot).await {
            Ok(snapshot) => Ok(newest && snapshot.metadata().group.as_deref() == Some(group)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) if unreadable(&e) => Ok(newest),
            Err(e) => Err(e),
        }
    }

    /// The newest snapshot of the group that can be restored, other than `but`. Every manifest must be read to know its group; those that were `known` are
    /// not read again.
    async fn newest_of(
        &self,
        group: &str,
        but: Option<&SnapshotId>,
        known: &mut BTreeMap<SnapshotId, Known>,
    ) -> Result<Option<heads::Head>> {
        let objects = self.list_objects().await?;
        let mut listed: BTreeMap<SnapshotId, &Version> = BTreeMap::new();
        let mut marked: BTreeSet<SnapshotId> = BTreeSet::new();
        for object in &objects {
            if let Some(id) = snapshot_of(object, names::MANIFEST).filter(|id| Some(id) != but) {
                listed.insert(id, &object.version);
            } else if let Some(id) = snapshot_of(object, names::DELETING) {
                marked.insert(id);
            }
        }
        known.retain(|id, known| listed.get(id).is_some_and(|v| **v == known.version));
        let unread = listed.into_keys().filter(|id| !known.contains_key(id));
        let unread: Vec<SnapshotId> = unread.collect();
        let read: Vec<(SnapshotId, Known)> = stream::iter(unread)
            .map(|id| async move {
                match self.snapshot(&id).await {
                    Ok(snapshot) => Ok(Some((id, Known::of(&snapshot, group)))),
                    Err(e) if unreadable(&e) || e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|read| async move { Ok(read) })
            .try_collect()
            .await?;
        known.extend(read);
        let now = self.host().now_unix_ms();
        let mut of_group: Vec<(&SnapshotId, &Known, u64)> = known
            .iter()
            .filter_map(|(id, known)| Some((id, known, known.created_unix_ms?)))
            .collect();
        of_group
            .sort_by_key(|(id, _, created)| std::cmp::Reverse((heads::rank(*created, now), *id)));
        for (id, known, created_unix_ms) in of_group {
            if marked.contains(id) && self.is_marked(id, &known.version).await? {
                continue;
            }
            let snapshot = id.clone();
            return Ok(Some(heads::Head {
                snapshot,
                created_unix_ms,
            }));
        }
        Ok(None)
    }

    /// Whether that version of a snapshot is marked to be removed. A mark that makes no sense is none: whoever wants to remove it writes another one first.
    pub(crate) async fn is_marked(&self, id: &SnapshotId, manifest: &Version) -> Result<bool> {
        match notes::read::<Deleting>(&**self.backend(), id).await {
            Ok(found) => Ok(found.is_some_and(|(note, _)| note.manifest == manifest.0)),
            Err(e) if unreadable(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// What a manifest says about its group.
struct Known {
    version: Version,
    /// When its save began, if it is of the group that was asked for.
    created_unix_ms: Option<u64>,
}

impl Known {
    fn of(snapshot: &Snapshot, group: &str) -> Self {
        let metadata = snapshot.metadata();
        let is_of_group = metadata.group.as_deref() == Some(group);
        Self {
            version: snapshot.version().clone(),
            created_unix_ms: is_of_group.then_some(metadata.created_unix_ms),
        }
    }
}

/// The objects that belong to `id` alone. Anything whose name is none of ours is left alone.
pub(crate) fn own_objects<'a>(
    objects: &'a [ObjectMeta],
    id: &SnapshotId,
) -> impl Iterator<Item = &'a ObjectMeta> {
    let own = move |object: &&ObjectMeta| place_of(object).is_some_and(|(owner, _)| owner == *id);
    objects.iter().filter(own)
}

/// The objects that a listing found under the name of one snapshot.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    bytes: u64,
    manifest: bool,
    lease: bool,
    /// Names of notes.
    notes: Vec<String>,
}

impl Parts {
    fn add(&mut self, part: Part, object: &ObjectMeta) {
        self.bytes += object.len;
        match part {
            Part::Manifest => self.manifest = true,
            Part::Lease => self.lease = true,
            Part::Note => {
                let name = object.name.rsplit('/').next().unwrap_or_default();
                self.notes.push(name.to_owned());
            }
            Part::Pack | Part::WorkingSet => {}
        }
    }

    fn has(&self, note: &str) -> bool {
        self.notes.iter().any(|name| name == note)
    }
}
