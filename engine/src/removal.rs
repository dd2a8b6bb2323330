//! Removing a snapshot: for readers it is gone at once, with its manifest; its packs go when nobody needs them.
//!
//! Packs that nobody needs before the manifest goes and after it are removed with it, in the same breath. All others wait for a collector
//! (see [`crate::garbage`]), which takes its time, as do packs under the snapshot's name that it does not need itself. Whatever cannot be read, and
//! whoever may only be asleep, counts as needing them.

use std::collections::HashSet;

use podsnap_format::SnapshotId;

use crate::{
    Store,
    catalog::own_objects,
    error::{Error, ErrorKind, Result},
    garbage::{Part, Survey, place_of, unreadable},
    heads,
    lease::{self, LeaseRecord},
    names, save,
    snapshot::Snapshot,
    store::ObjectMeta,
};

/// How a snapshot is removed.
#[derive(Debug, Clone, Default)]
pub struct RemoveOptions {
    /// Leave the packs to a collector even if nobody needs them, so that restores that are under way can end. Then what an earlier removal left
    /// is left, too, and nobody else's packs are looked at.
    pub leave_packs: bool,
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
    /// Objects of the snapshot that stay until [`Store::collect`] finds that nobody needs them.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Who needs them, as far as that was looked for.
    pub needed_by: Vec<String>,
}

impl Store {
    /// Removes a snapshot. Nobody can open it afterwards. Packs that other snapshots borrow, or that a save relies on, stay until
    /// [`collect`](Store::collect) finds them to be garbage. Where the snapshot is not there (any more), what a save left is removed whose process is known to be
    /// dead, and notes of earlier ones. Fails with [`ErrorKind::Conflict`] while a save writes the snapshot.
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
    /// let removed = store.remove(&"first".parse()?).await?;
    /// assert_eq!(removed.needed_by, ["snapshot second"]); // so its packs stay
    /// let gone = store.snapshot(&"first".parse()?).await.unwrap_err();
    /// assert_eq!(gone.kind(), ErrorKind::NotFound);
    /// let mut page = [0; 4096];
    /// store.snapshot(&"second".parse()?).await?.reader(0).read_at(&mut page, 0).await?;
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, id: &SnapshotId) -> Result<RemoveStats> {
        self.remove_with(id, &RemoveOptions::default()).await
    }

    /// Removes a snapshot, with options.
    pub async fn remove_with(
        &self,
        id: &SnapshotId,
        options: &RemoveOptions,
    ) -> Result<RemoveStats> {
        let begun = async {
            let manifest = names::object(id, names::MANIFEST);
            let manifest = self.backend().head(&manifest).await?;
            Removal::begin(self, id, manifest, options.leave_packs).await
        };
        match begun.await {
            Ok(removal) => removal.finish().await,
            Err(e) if e.kind() == ErrorKind::NotFound && !options.leave_packs => {
                self.remove_leftovers(id).await
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Err(self.no_such_snapshot(id)),
            Err(e) => Err(e),
        }
    }

    /// Removes what is under the name of a snapshot that is not there.
    async fn remove_leftovers(&self, id: &SnapshotId) -> Result<RemoveStats> {
        let mut before = Survey::of(self).await?;
        if own_objects(&before.objects, id).next().is_none() {
            return Err(self.no_such_snapshot(id));
        }
        refuse_if_unreadable(&mut before, id)?;
        refuse_if_needed(&before, id)?;
        let lease = before.leases.get(id);
        if let Some((record, _)) = lease {
            refuse_if_live(self, id, record)?;
            if !record.is_abandoned() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the lease of the save of {id} has run out, but its process may only be asleep"),
                )
                .hint("podsnap gc removes what it left in its second pass; saving under the id goes at once"));
            }
        }
        let mut stats = RemoveStats::of(id);
        // The lease first: if its holder comes back, it cannot commit.
        if let Some((_, version)) = lease {
            let name = names::object(id, names::LEASE);
            self.delete_exactly(&name, version).await?;
        }
        // What was seen may be of a save that took its lease while the store was listed. Whoever had written any of it by then holds its lease now, has
        // committed, or has gone; and who borrows from one that committed and went is seen as well.
        let mut after = Survey::of(self).await?;
        refuse_if_unreadable(&mut after, id)?;
        if after.leases.contains_key(id) || after.manifests.contains_key(id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("somebody saves {id} again, or did just now"),
            )
            .hint("remove it again if that is what you want"));
        }
        refuse_if_needed(&after, id)?;
        // Whoever wrote the other packs, or is about to, may have sent a manifest that has not arrived yet.
        let (packs, rest): (Vec<&ObjectMeta>, Vec<_>) = own_objects(&before.objects, id)
            .partition(|object| place_of(object).is_some_and(|(_, part)| part == Part::Pack));
        let dead = lease.map(|(record, _)| record.attempts(id));
        let (mut gone, others): (Vec<&ObjectMeta>, Vec<_>) = packs.into_iter().partition(|pack| {
            let mut dead = dead.iter().flatten();
            dead.any(|attempt| pack.name.starts_with(attempt))
        });
        let (leases, notes): (Vec<_>, Vec<_>) = rest
            .into_iter()
            .partition(|object| object.name.ends_with(names::LEASE));
        if gone.is_empty() && leases.is_empty() && notes.is_empty() {
            return Err(self
                .no_such_snapshot(id)
                .hint("podsnap gc removes what is left of it, in its second pass"));
        }
        for lease in leases {
            stats.removed(lease);
        }
        gone.extend(notes);
        self.remove_all(&gone, &mut stats).await?;
        stats.kept(&others);
        Ok(stats)
    }

    fn no_such_snapshot(&self, id: &SnapshotId) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no snapshot {id} in {}", self.url()),
        )
    }

    async fn remove_all(&self, objects: &[&ObjectMeta], stats: &mut RemoveStats) -> Result<()> {
        for object in objects {
            match self.delete_exactly(&object.name, &object.version).await {
                // Somebody has put another one in its place.
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                deleted => deleted?,
            }
            stats.removed(object);
        }
        Ok(())
    }
}

/// The removal of one version of a snapshot, up to the moment at which it goes: until then it can be called off.
pub(crate) struct Removal {
    store: Store,
    id: SnapshotId,
    manifest: ObjectMeta,
    /// Nothing if the manifest cannot be read.
    snapshot: Option<Snapshot>,
    leave_packs: bool,
    /// What lies under the snapshot's name, as far as the caller may look.
    own: Vec<ObjectMeta>,
    may_list: bool,
    /// Who needs its packs, as far as that was looked for.
    needed_by: Vec<String>,
    /// Whether its group's head named it.
    was_head: bool,
}

impl Removal {
    /// Gets a snapshot ready to go, in that version of its manifest and no other.
    pub(crate) async fn begin(
        store: &Store,
        id: &SnapshotId,
        manifest: ObjectMeta,
        leave_packs: bool,
    ) -> Result<Self> {
        let snapshot = match store.snapshot(id).await {
            Ok(snapshot) if *snapshot.version() == manifest.version => Some(snapshot),
            Ok(_) => return Err(saved_again(id)),
            Err(e) if unreadable(&e) => None,
            Err(e) => return Err(e),
        };
        let mut removal = Self {
            store: store.clone(),
            id: id.clone(),
            manifest,
            snapshot,
            leave_packs,
            own: Vec::new(),
            may_list: true,
            needed_by: Vec::new(),
            was_head: false,
        };
        removal.end_save().await?;
        removal.look().await?;
        removal.was_head = removal.leave_head().await?;
        Ok(removal)
    }

    /// Leaves the snapshot where it is.
    pub(crate) async fn call_off(self) {
        let Some(group) = self.group().filter(|_| self.was_head && self.may_list) else {
            return;
        };
        if let Err(error) = self.store.settle_head(group, None).await {
            let snapshot = &self.id;
            tracing::warn!(%snapshot, %error, "its removal was called off, but it is not the head of its group any more");
        }
    }

    /// Removes the snapshot. An error before it is gone leaves it where it is.
    pub(crate) async fn finish(self) -> Result<RemoveStats> {
        let (store, id, manifest) = (&self.store, &self.id, &self.manifest);
        if let Err(e) = store
            .delete_exactly(&manifest.name, &manifest.version)
            .await
        {
            let e = match e.kind() {
                ErrorKind::Conflict => saved_again(id),
                // The request may arrive yet, so it is not called off.
                ErrorKind::Store => return Err(e),
                _ => e,
            };
            self.call_off().await;
            return Err(e);
        }
        let mut stats = RemoveStats::of(id);
        stats.removed(manifest);
        // Once more: another removal may have made this snapshot the head in between.
        if let Err(error) = self.leave_head().await {
            tracing::warn!(snapshot = %id, %error, "it is removed, but perhaps still the head of its group until podsnap gc mends that");
        }
        // The mark of a removal stays with the packs, to tell what they wait for. No other note may be found by the next snapshot of this id.
        let deleting = names::object(id, names::DELETING);
        let (waiting, notes): (Vec<&ObjectMeta>, Vec<_>) = self.own.iter().partition(|object| {
            object.name == deleting || place_of(object).is_some_and(|(_, part)| part == Part::Pack)
        });
        if let Err(error) = store.remove_all(&notes, &mut stats).await {
            tracing::warn!(snapshot = %id, %error, "it is removed, but notes about it stay until podsnap gc takes them");
        }
        if !self.may_list {
            self.count_packs(&mut stats);
            return Ok(stats);
        }
        // Only what was there before is removed, as what is there now may be of a new save of this id, and only packs that the manifest names,
        // as the rest may be of a save that is asleep.
        let named = self.named();
        let (own, others): (Vec<&ObjectMeta>, Vec<_>) = waiting.into_iter().partition(|object| {
            named
                .as_ref()
                .is_none_or(|named| object.name == deleting || named.contains(&object.name))
        });
        stats.kept(&others);
        stats.needed_by = self.needed_by.clone();
        // Who needs its packs is looked for twice, before the manifest goes and after it, as a save that relies on it may begin, and
        // one that borrows through another snapshot may lose that one, while somebody looks.
        if stats.needed_by.is_empty() && !self.leave_packs {
            let after = Survey::of(store).await?;
            stats.needed_by = after.users_of(id);
            if after.leases.contains_key(id)
                || after.manifests.contains_key(id)
                || after.unreadable.contains_key(id)
            {
                stats.needed_by.push(format!("perhaps a new save of {id}"));
            }
        }
        match self.leave_packs || !stats.needed_by.is_empty() {
            true => stats.kept(&own),
            false => store.remove_all(&own, &mut stats).await?,
        }
        Ok(stats)
    }

    /// Its group; nothing if the manifest says none, or none that could have a head.
    fn group(&self) -> Option<&str> {
        let group = self.snapshot.as_ref()?.metadata().group.as_deref();
        group.filter(|group| heads::check_name(group).is_ok())
    }

    /// The packs that the manifest names; nothing if it cannot be read.
    fn named(&self) -> Option<HashSet<String>> {
        let snapshot = self.snapshot.as_ref()?;
        let packs = snapshot.directory().packs.iter();
        Some(packs.map(|pack| snapshot.pack_object(pack)).collect())
    }

    /// An error while somebody writes the snapshot. One who died after the commit leaves a lease, which must not outlive the manifest: who
    /// takes it over would believe that its packs were never committed, and that nobody can have borrowed them.
    async fn end_save(&self) -> Result<()> {
        let (store, id) = (&self.store, &self.id);
        // The manifest beside it was read just now.
        let found = lease::read_where_allowed(&**store.backend(), id).await?;
        let Some((record, version)) = found else {
            return Ok(());
        };
        refuse_if_live(store, id, &record)?;
        let name = names::object(id, names::LEASE);
        let ended = match &self.snapshot {
            Some(snapshot) => save::end_lease(store, snapshot, &record, &version).await,
            // Then nobody knows what the save was.
            None => store.delete_exactly(&name, &version).await,
        };
        match ended {
            // Its holder has woken up.
            Err(e) if e.kind() == ErrorKind::Conflict => Err(under_way(id)),
            // The head of its group makes no sense; what its dead left is a collector's.
            Err(e) if unreadable(&e) => store.delete_exactly(&name, &version).await,
            ended => ended,
        }
    }

    /// Looks for what is under the snapshot's name, and for who needs it unless it stays anyhow. Without the right to list, a collector must do the rest.
    async fn look(&mut self) -> Result<()> {
        let (store, id) = (&self.store, &self.id);
        let looked = match self.leave_packs {
            true => store.backend().list(id.as_str()).await,
            false => Survey::of(store).await.map(|survey| {
                self.needed_by = survey.users_of(id);
                survey.objects
            }),
        };
        match looked {
            Ok(objects) => {
                // Leases are gone already; one that is back is not for us.
                let lease = names::object(id, names::LEASE);
                let own = own_objects(&objects, id);
                let own = own.filter(|o| o.name != self.manifest.name && o.name != lease);
                self.own = own.cloned().collect();
            }
            Err(e) if e.kind() == ErrorKind::Forbidden => {
                tracing::info!(snapshot = %id, error = %e, "its packs stay until somebody collects who may list");
                self.may_list = false;
                for name in [
                    names::USED,
                    names::PINNED,
                    names::FAILED,
                    names::WORKING_SET,
                ] {
                    match store.backend().head(&names::object(id, name)).await {
                        Ok(meta) => self.own.push(meta),
                        Err(e) if e.is_absence() => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Sees to it that the head of the group does not name the snapshot. Returns whether it did.
    async fn leave_head(&self) -> Result<bool> {
        let Some(group) = self.group() else {
            return Ok(false);
        };
        if self.may_list {
            return self.store.move_head_away(group, &self.id).await;
        }
        let head = heads::read(&**self.store.backend(), group).await?;
        let Some((_, version)) = head.filter(|(head, _)| head.snapshot == self.id) else {
            return Ok(false);
        };
        match self
            .store
            .delete_exactly(&names::head(group), &version)
            .await
        {
            // A save moved it just now.
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(false),
            deleted => deleted.map(|()| true),
        }
    }

    /// Counts the packs that stay as the manifest tells of them.
    fn count_packs(&self, stats: &mut RemoveStats) {
        let packs = self.snapshot.iter().flat_map(|s| &s.directory().packs);
        for pack in packs.filter(|pack| pack.snapshot == self.id) {
            stats.kept_objects += 1;
            stats.kept_bytes += pack.length;
        }
    }
}

fn refuse_if_live(store: &Store, id: &SnapshotId, record: &LeaseRecord) -> Result<()> {
    match record.is_live(store.host()) {
        true => Err(under_way(id)),
        false => Ok(()),
    }
}

/// A lease or a manifest that cannot be read may be of somebody who is alive.
fn refuse_if_unreadable(survey: &mut Survey, id: &SnapshotId) -> Result<()> {
    survey.unreadable.remove(id).map_or(Ok(()), Err)
}

fn refuse_if_needed(survey: &Survey, id: &SnapshotId) -> Result<()> {
    let users = survey.users_of(id);
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    Err(Error::new(
        ErrorKind::Conflict,
        format!("{id} is gone, but what is left of it is needed by {users}"),
    )
    .hint("podsnap gc removes it when nobody needs it any more"))
}

fn under_way(id: &SnapshotId) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{id} is needed by the save of {id} that is under way"),
    )
    .hint("remove it when that has ended")
}

fn saved_again(id: &SnapshotId) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{id} was removed and saved again just now"),
    )
    .hint("remove it again if that is what you want")
}

impl RemoveStats {
    /// Nothing is done yet.
    fn of(id: &SnapshotId) -> Self {
        Self {
            snapshot: id.to_string(),
            objects: 0,
            bytes: 0,
            kept_objects: 0,
            kept_bytes: 0,
            needed_by: Vec::new(),
        }
    }

    fn removed(&mut self, object: &ObjectMeta) {
        self.objects += 1;
        self.bytes += object.len;
    }

    fn kept(&mut self, objects: &[&ObjectMeta]) {
        for object in objects {
            self.kept_objects += 1;
            self.kept_bytes += object.len;
        }
    }
}
