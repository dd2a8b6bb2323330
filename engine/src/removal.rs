//! Removing a snapshot: for readers it is gone at once, with its manifest; its packs go when nobody needs them.
//!
//! Packs that nobody needs before the manifest goes and after it are removed with it, in the same breath. All others wait for a collector
//! (see [`crate::garbage`]), which takes its time, as do packs under the snapshot's name that it does not need itself. Whatever cannot be read, and
//! whoever may only be asleep, counts as needing them.

use podsnap_format::SnapshotId;

use crate::{
    Store,
    catalog::own_objects,
    error::{Error, ErrorKind, Result},
    garbage::{Part, Survey, place_of, unreadable},
    heads,
    lease::{self, LeaseRecord},
    names, save,
    store::ObjectMeta,
};

/// How a snapshot is removed.
#[derive(Debug, Clone, Default)]
pub struct RemoveOptions {
    /// Leave the packs to a collector even if nobody needs them, so that restores that are under way can end. Then what an earlier removal left
    /// is left, too.
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
    /// [`collect`](Store::collect) finds them to be garbage. What an earlier removal or a save that died left under the id is removed if the snapshot itself is
    /// not there (any more) and the process of that save is known to be dead. Fails with [`ErrorKind::Conflict`] while a save writes the snapshot.
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
        let backend = &**self.backend();
        let manifest = match backend.head(&names::object(id, names::MANIFEST)).await {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound && !options.leave_packs => {
                return self.remove_leftovers(id).await;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(self.no_such_snapshot(id)),
            Err(e) => return Err(e),
        };
        self.end_save(id).await?;
        // Who needs its packs is looked for twice, before the manifest goes and after it, as a save that relies on it may begin, and
        // one that borrows through another snapshot may lose that one, while somebody looks.
        let before = self.look(id).await?;
        let group = self.group_of(id).await?;
        if let Some(group) = &group {
            self.leave_head(group, id, before.is_some()).await?;
        }
        self.delete_exactly(&manifest.name, &manifest.version)
            .await?;
        // Once more: another removal may have made this snapshot the head in between.
        if let Some(group) = &group {
            self.leave_head(group, id, before.is_some()).await?;
        }
        let mut stats = RemoveStats {
            snapshot: id.to_string(),
            objects: 1,
            bytes: manifest.len,
            kept_objects: 0,
            kept_bytes: 0,
            needed_by: Vec::new(),
        };
        // Without the right to list, a collector must do the rest.
        let Some(before) = before else {
            return Ok(stats);
        };
        let mut needed_by = before.users_of(id);
        // Only what was there before is removed, as what is there now may be of a new save of this id, and only packs that the manifest names,
        // as the rest may be of a save that is asleep. Leases are gone already; one that is back is not for us.
        let named = before.manifests.get(id);
        let (own, others): (Vec<&ObjectMeta>, Vec<_>) = own_objects(&before.objects, id)
            .filter(|object| object.name != manifest.name && !object.name.ends_with(names::LEASE))
            .partition(|object| {
                let is_pack = place_of(object).is_some_and(|(_, part)| part == Part::Pack);
                !is_pack || named.is_none_or(|named| named.contains(&object.name))
            });
        stats.kept(&others);
        if needed_by.is_empty() && !options.leave_packs {
            let after = Survey::of(self).await?;
            needed_by = after.users_of(id);
            if after.leases.contains_key(id) || after.manifests.contains_key(id) {
                needed_by.push(format!("perhaps a new save of {id}"));
            }
        }
        if options.leave_packs || !needed_by.is_empty() {
            stats.kept(&own);
            stats.needed_by = needed_by;
            return Ok(stats);
        }
        self.remove_all(own.into_iter(), &mut stats).await?;
        Ok(stats)
    }

    /// Removes what is under the name of a snapshot that is not there.
    async fn remove_leftovers(&self, id: &SnapshotId) -> Result<RemoveStats> {
        let survey = Survey::of(self).await?;
        if own_objects(&survey.objects, id).next().is_none() {
            return Err(self.no_such_snapshot(id));
        }
        if let Some((record, _)) = survey.leases.get(id) {
            self.refuse_if_live(id, record)?;
            if !record.is_abandoned() {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the lease of the save of {id} has run out, but its process may only be asleep"),
                )
                .hint("podsnap gc removes what it left in its second pass; saving under the id goes at once"));
            }
        }
        let users = survey.users_of(id);
        if !users.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{id} is gone, but what is left of it is needed by {}",
                    users.join(", ")
                ),
            )
            .hint("podsnap gc removes it when nobody needs it any more"));
        }
        let mut stats = RemoveStats {
            snapshot: id.to_string(),
            objects: 0,
            bytes: 0,
            kept_objects: 0,
            kept_bytes: 0,
            needed_by: Vec::new(),
        };
        // The lease first: if its holder comes back, it cannot commit.
        let (leases, rest): (Vec<_>, Vec<_>) = own_objects(&survey.objects, id)
            .partition(|object| object.name.ends_with(names::LEASE));
        for lease in leases {
            self.delete_exactly(&lease.name, &lease.version).await?;
            stats.objects += 1;
            stats.bytes += lease.len;
        }
        match self
            .backend()
            .head(&names::object(id, names::MANIFEST))
            .await
        {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(_) => {
                return Err(
                    Error::new(ErrorKind::Conflict, format!("{id} was saved just now"))
                        .hint("remove it again if that is what you want"),
                );
            }
        }
        self.remove_all(rest.into_iter(), &mut stats).await?;
        Ok(stats)
    }

    fn no_such_snapshot(&self, id: &SnapshotId) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no snapshot {id} in {}", self.url()),
        )
    }

    /// An error while somebody writes the snapshot. One who died after the commit leaves a lease, which must not outlive the manifest: who
    /// takes it over would believe that its packs were never committed, and that nobody can have borrowed them.
    async fn end_save(&self, id: &SnapshotId) -> Result<()> {
        // The manifest beside it was read just now.
        let found = lease::read_where_allowed(&**self.backend(), id).await?;
        let Some((record, version)) = found else {
            return Ok(());
        };
        self.refuse_if_live(id, &record)?;
        match save::end_for_the_dead(self, id).await {
            // Its manifest cannot be read, or went since: then nobody knows what the save was.
            Err(e) if unreadable(&e) || e.kind() == ErrorKind::NotFound => {
                let name = names::object(id, names::LEASE);
                self.delete_exactly(&name, &version).await
            }
            ended => ended,
        }
    }

    fn refuse_if_live(&self, id: &SnapshotId, record: &LeaseRecord) -> Result<()> {
        match record.is_live(self.host()) {
            true => Err(Error::new(
                ErrorKind::Conflict,
                format!("{id} is needed by the save of {id} that is under way"),
            )
            .hint("remove it when that has ended")),
            false => Ok(()),
        }
    }

    /// Looks at the whole store, unless the caller may not.
    async fn look(&self, id: &SnapshotId) -> Result<Option<Survey>> {
        match Survey::of(self).await {
            Ok(survey) => Ok(Some(survey)),
            Err(e) if e.kind() == ErrorKind::Forbidden => {
                tracing::info!(snapshot = %id, error = %e, "its packs stay until somebody collects who may list");
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Sees to it that the head of the group does not name `id`.
    async fn leave_head(&self, group: &str, id: &SnapshotId, may_list: bool) -> Result<()> {
        if may_list {
            return self.move_head_away(group, id).await;
        }
        let head = heads::read(&**self.backend(), group).await?;
        let Some((_, version)) = head.filter(|(head, _)| head.snapshot == *id) else {
            return Ok(());
        };
        match self.delete_exactly(&names::head(group), &version).await {
            // A save moved it just now.
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(()),
            deleted => deleted,
        }
    }

    async fn remove_all(
        &self,
        objects: impl Iterator<Item = &ObjectMeta>,
        stats: &mut RemoveStats,
    ) -> Result<()> {
        for object in objects {
            match self.delete_exactly(&object.name, &object.version).await {
                // Somebody has put another one in its place.
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                deleted => deleted?,
            }
            stats.objects += 1;
            stats.bytes += object.len;
        }
        Ok(())
    }
}

impl RemoveStats {
    fn kept(&mut self, objects: &[&ObjectMeta]) {
        for object in objects {
            self.kept_objects += 1;
            self.kept_bytes += object.len;
        }
    }
}
