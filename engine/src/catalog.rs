//! What a store holds: listing its snapshots, and finding a group's newest when its head goes. Both need the right to list.

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::{place_of, snapshot_of, unreadable},
    heads, names,
    snapshot::Snapshot,
    store::{Condition, ObjectMeta},
};

/// Manifests read at once.
const READS_AT_ONCE: usize = 16;

/// Times a head is tried to be moved against savers and other removers.
const MAX_TRIES: u32 = 32;

/// A snapshot in a listing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// Its id.
    pub snapshot: String,
    /// Milliseconds since 1970 when its save began.
    pub created_unix_ms: u64,
    /// The group it was saved into.
    pub group: Option<String>,
    /// Bytes of its sections.
    pub raw_bytes: u64,
    /// Bytes of the objects under its own name.
    pub stored_bytes: u64,
    /// Other snapshots that hold packs it needs.
    pub borrows_from: Vec<String>,
    /// Why its manifest cannot be read, if it cannot.
    pub problem: Option<String>,
}

impl Store {
    /// All snapshots, newest first. One whose manifest cannot be read is listed with its [problem](Listed::problem).
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{SaveOptions, Store};
    ///
    /// let store = Store::open("memory://list")?;
    /// assert!(store.list().await?.is_empty());
    /// store.save(&"web-1".parse()?, SaveOptions::default()).await?.finish().await?;
    /// let listed = store.list().await?;
    /// assert_eq!(listed[0].snapshot, "web-1");
    /// # Ok(()) }
    /// ```
    pub async fn list(&self) -> Result<Vec<Listed>> {
        let objects = self.list_objects().await?;
        let ids: Vec<SnapshotId> = objects
            .iter()
            .filter_map(|o| snapshot_of(o, names::MANIFEST))
            .collect();
        let mut listed: Vec<Listed> = stream::iter(ids)
            .map(|id| {
                let stored_bytes = own_objects(&objects, &id).map(|o| o.len).sum();
                async move {
                    let opened = self.snapshot(&id).await;
                    match opened {
                        Ok(snapshot) => Ok(Some(describe(&snapshot, stored_bytes))),
                        // Removed since the listing.
                        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                        Err(e) if unreadable(&e) => Ok(Some(Listed {
                            snapshot: id.to_string(),
                            created_unix_ms: 0,
                            group: None,
                            raw_bytes: 0,
                            stored_bytes,
                            borrows_from: Vec::new(),
                            problem: Some(e.to_string()),
                        })),
                        Err(e) => Err(e),
                    }
                }
            })
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(|listed| async move { Ok(listed) })
            .try_collect()
            .await?;
        listed.sort_by(|a, b| {
            (b.created_unix_ms, &b.snapshot).cmp(&(a.created_unix_ms, &a.snapshot))
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
            s.group.as_deref() == Some(group) && s.problem.is_none() && s.snapshot != id.as_str()
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

fn describe(snapshot: &Snapshot, stored_bytes: u64) -> Listed {
    let mut borrows_from: Vec<String> = snapshot
        .directory()
        .packs
        .iter()
        .filter(|p| p.snapshot != *snapshot.id())
        .map(|p| p.snapshot.to_string())
        .collect();
    borrows_from.sort();
    borrows_from.dedup();
    Listed {
        snapshot: snapshot.id().to_string(),
        created_unix_ms: snapshot.metadata().created_unix_ms,
        group: snapshot.metadata().group.clone(),
        raw_bytes: snapshot.sections().iter().map(|s| s.length).sum(),
        stored_bytes,
        borrows_from,
        problem: None,
    }
}
