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

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

pub use finder::Catalog;
pub use group::Requirements;
pub use retention::{Retained, RetentionPlan, RetentionRules, RetentionStats, Verdict};
pub use status::{State, Status};

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::{Part, place_of, unreadable},
    heads, names,
    store::{Condition, ObjectMeta},
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
        let rank = |l: &Listed| {
            let newest_first = std::cmp::Reverse(l.created_unix_ms);
            (l.status != Status::Saving, newest_first)
        };
        listed.sort_by(|a, b| {
            let by_id = || b.snapshot.cmp(&a.snapshot);
            rank(a).cmp(&rank(b)).then_with(by_id)
        });
        Ok(listed)
    }

    /// The group of a snapshot. A manifest that cannot be read says none; then no head is moved, and a save finds out by itself.
    pub(crate) async fn group_of(&self, id: &SnapshotId) -> Result<Option<String>> {
        match self.snapshot(id).await {
            Ok(snapshot) => Ok(snapshot.metadata().group.clone()),
            Err(e) if unreadable(&e) || e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) async fn list_objects(&self) -> Result<Vec<ObjectMeta>> {
        self.backend().list("").await.map_err(|e| match e.kind() {
            ErrorKind::Forbidden => {
                e.hint("listing snapshots and collecting garbage need the right to list the store's objects (storage.objects.list on Google Cloud Storage), unlike saving and restoring")
            }
            _ => e,
        })
    }

    /// If `id` is the head of its group, the newest other snapshot of the group takes its place, or nothing does.
    pub(crate) async fn move_head_away(&self, group: &str, id: &SnapshotId) -> Result<()> {
        let backend = &**self.backend();
        let mut moved = false;
        for _ in 0..MAX_TRIES {
            let head = heads::read(backend, group).await?;
            if !moved && head.as_ref().is_none_or(|(head, _)| head.snapshot != *id) {
                return Ok(());
            }
            // Once it was moved, it is compared again with what is there now: the snapshot it was moved to may itself be gone, and a
            // save that ended meanwhile left the head alone if it named a newer one.
            let next = self.newest_but(group, id).await?;
            let done = match (head, &next) {
                (None, None) => return Ok(()),
                (None, Some(next)) => {
                    let (snapshot, created) = (&next.snapshot, next.created_unix_ms);
                    heads::advance(self, group, snapshot, created).await
                }
                (Some((head, _)), Some(next)) if head == *next => return Ok(()),
                (Some((head, _)), _)
                    if head.snapshot != *id && self.is_newest(&head, &next).await? =>
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
                Err(e) => {
                    return Err(e.hint(format!(
                        "the head of {group} could not be moved away from {id}"
                    )));
                }
                Ok(()) => {}
            }
            moved = true;
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("the head of {group} kept moving"),
        )
        .hint("remove the snapshot again when fewer others save and remove"))
    }

    /// Whether a head that others set is right: its snapshot is there, and as new as any.
    async fn is_newest(&self, head: &heads::Head, listed: &Option<heads::Head>) -> Result<bool> {
        let newest = listed
            .as_ref()
            .is_none_or(|listed| head.created_unix_ms >= listed.created_unix_ms);
        let manifest = names::object(&head.snapshot, names::MANIFEST);
        match self.backend().head(&manifest).await {
            Ok(_) => Ok(newest),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The newest snapshot of the group other than `id`.
    async fn newest_but(&self, group: &str, id: &SnapshotId) -> Result<Option<heads::Head>> {
        let listed = self.list().await?;
        let of_group = |s: &&Listed| {
            s.group.as_deref() == Some(group)
                && s.status == Status::Available
                && s.snapshot != id.as_str()
        };
        Ok(listed.iter().find(of_group).and_then(|s| {
            Some(heads::Head {
                snapshot: s.snapshot.parse().ok()?,
                created_unix_ms: s.created_unix_ms,
            })
        }))
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
