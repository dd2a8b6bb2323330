//! What a store holds: listing snapshots, and removing one that nobody relies on.
//!
//! Both need LIST. Removing is careful: whoever borrows from the snapshot, or is saving against it, keeps it; what cannot be read
//! keeps it too. The manifest goes before the packs, and these only if nobody has come to rely on them meanwhile.

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    heads, lease, names,
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

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RemoveStats {
    /// The snapshot.
    pub snapshot: String,
    /// Objects removed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
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

    /// Removes a snapshot that no other borrows from and no save relies on; otherwise refuses and says who does. What an
    /// earlier removal or a save that died left under the id is removed as well, if the snapshot itself is not there (any more).
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use podsnap::{Input, NewSection, Role};
    /// use podsnap::{ErrorKind, SaveOptions, Store};
    ///
    /// let store = Store::open("memory://remove")?;
    /// # let bytes: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(n | 0x9e37_79b9).to_le_bytes()).collect();
    /// for (id, base) in [("first", None), ("second", Some("first"))] {
    ///     let options = SaveOptions {
    ///         bases: base.into_iter().map(str::parse).collect::<Result<_, _>>()?,
    ///         ..SaveOptions::default()
    ///     };
    ///     let mut writer = store.save(&id.parse()?, options).await?;
    /// #   let input = Input::stream(std::io::Cursor::new(bytes.clone()), "bytes");
    ///     writer.add(NewSection::blob(Role::Memory, "", input)).await?;
    ///     writer.finish().await?;
    /// }
    /// let refused = store.remove(&"first".parse()?).await.unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::Conflict); // second borrows from it
    /// store.remove(&"second".parse()?).await?;
    /// store.remove(&"first".parse()?).await?;
    /// assert!(store.list().await?.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, id: &SnapshotId) -> Result<RemoveStats> {
        let backend = &**self.backend();
        let name = names::object(id, names::MANIFEST);
        let manifest = match backend.head(&name).await {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        let refuse_used = |users: Vec<String>| match users.is_empty() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Conflict,
                format!("{id} is needed by {}", users.join(", ")),
            )
            .hint("remove those first, or export them and import them again")),
        };
        let mut stats = RemoveStats {
            snapshot: id.to_string(),
            objects: 0,
            bytes: 0,
        };
        if let Some(manifest) = &manifest {
            refuse_used(self.users_of(id).await?)?;
            // The head goes first: a removal that is cut short after it can be repeated as a whole. And once more when this
            // snapshot is gone, as another removal may have made it the head in between.
            let group = self.group_of(id).await?;
            if let Some(group) = &group {
                self.move_head_away(group, id).await?;
            }
            backend.delete(&name, Some(&manifest.version)).await?;
            if let Some(group) = &group {
                self.move_head_away(group, id).await?;
            }
            stats.objects += 1;
            stats.bytes += manifest.len;
        }
        // Only what is there now is removed below: a save of this id that begins behind the check is not touched.
        let objects = self.list_objects().await?;
        if manifest.is_none() && own_objects(&objects, id).next().is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no snapshot {id} in {}", self.url()),
            ));
        }
        // A save that took its lease before the manifest went may rely on the packs.
        let users = self.users_of(id).await?;
        if manifest.is_some() && !users.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{id} is gone, but its packs stay: meanwhile {} came to need them",
                    users.join(", ")
                ),
            )
            .hint("remove it once more when that has ended"));
        }
        refuse_used(users)?;
        for object in own_objects(&objects, id) {
            match backend.delete(&object.name, Some(&object.version)).await {
                // A lease that a new save has taken over.
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                deleted => deleted?,
            }
            stats.objects += 1;
            stats.bytes += object.len;
        }
        Ok(stats)
    }

    /// The group of a snapshot. A manifest that cannot be read says none; then no head is moved, and a save finds out by itself.
    async fn group_of(&self, id: &SnapshotId) -> Result<Option<String>> {
        match self.snapshot(id).await {
            Ok(snapshot) => Ok(snapshot.metadata().group.clone()),
            Err(e) if unreadable(&e) || e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn list_objects(&self) -> Result<Vec<ObjectMeta>> {
        self.backend().list("").await.map_err(|e| match e.kind() {
            ErrorKind::Forbidden => {
                e.hint("listing and removing need the right to list the store's objects")
            }
            _ => e,
        })
    }

    /// Snapshots that borrow from `id` and saves that rely on it. Whatever cannot be read is taken to.
    async fn users_of(&self, id: &SnapshotId) -> Result<Vec<String>> {
        let objects = self.list_objects().await?;
        let mut users = Vec::new();
        for object in &objects {
            if let Some(other) = snapshot_of(object, names::MANIFEST).filter(|other| other != id) {
                match self.snapshot(&other).await {
                    Ok(snapshot)
                        if snapshot.directory().packs.iter().any(|p| p.snapshot == *id) =>
                    {
                        users.push(format!("snapshot {other}"));
                    }
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) if unreadable(&e) => {
                        users.push(format!("perhaps snapshot {other}, which cannot be read"))
                    }
                    Err(e) => return Err(e),
                }
            }
            if let Some(other) = snapshot_of(object, names::LEASE) {
                match lease::read(&**self.backend(), &other).await {
                    Ok(Some((record, _))) if record.is_live() => {
                        if other == *id || record.bases.iter().any(|base| base == id.as_str()) {
                            users.push(format!("the save of {other} that is under way"));
                        }
                    }
                    Ok(_) => {}
                    Err(e) if unreadable(&e) => users.push(format!(
                        "perhaps a save of {other}, whose lease cannot be read"
                    )),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(users)
    }

    /// If `id` is the head of its group, the newest other snapshot of the group takes its place, or nothing does.
    async fn move_head_away(&self, group: &str, id: &SnapshotId) -> Result<()> {
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
                    heads::advance(backend, group, snapshot, created).await
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

/// Errors that are about one object, and not about the store.
fn unreadable(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Damaged | ErrorKind::Missing | ErrorKind::Unsupported | ErrorKind::InvalidInput
    )
}

/// The snapshot whose `last` component this object is.
fn snapshot_of(object: &ObjectMeta, last: &str) -> Option<SnapshotId> {
    let (id, name) = object.name.split_once('/')?;
    (name == last && id != names::HEADS).then(|| id.parse().ok())?
}

/// The objects that belong to `id` alone. Anything whose name is none of ours is left alone.
fn own_objects<'a>(
    objects: &'a [ObjectMeta],
    id: &SnapshotId,
) -> impl Iterator<Item = &'a ObjectMeta> {
    objects.iter().filter(move |object| {
        object.name.split_once('/').is_some_and(|(dir, name)| {
            dir == id.as_str()
                && (names::is_of_pack(name)
                    || [names::MANIFEST, names::LEASE, names::WORKING_SET].contains(&name))
        })
    })
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
