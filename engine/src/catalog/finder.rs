//! Finding a snapshot to restore, and noting what becomes of it. Nothing here lists.

use std::time::Duration;

use podsnap_format::SnapshotId;

use super::{
    Requirements,
    notes::{self, Failed, Pinned, Used},
};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::unreadable,
    names,
    snapshot::Snapshot,
};

/// How exactly it is known when a snapshot was last used. What thousands of pods restore is noted six times an hour.
pub(super) const USE_RESOLUTION: Duration = Duration::from_secs(600);

/// What who runs pods asks a store: which snapshot a pod is restored from, that it is used, that it stays.
///
/// A catalog costs nothing and keeps nothing: everything is in the store, where any number of agents and controllers share it.
/// Nothing here needs the right to list, but [retention](Catalog::plan_retention).
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Catalog, Requirements, SaveOptions, Store};
/// # let store = Store::open("memory://catalog")?;
/// let catalog = Catalog::new(&store);
/// let spec = serde_json::json!({ "containers": [{ "image": "python" }] });
/// let here = Requirements::of_this_node(&spec, "release-20260905");
/// let group = here.group("default", "my-policy");
/// assert!(catalog.newest(&group).await?.is_none()); // the pod starts anew
///
/// let options = SaveOptions {
///     group: Some(group.clone()),
///     labels: here.labels(),
///     ..SaveOptions::default()
/// };
/// store.save(&"web-1".parse()?, options).await?.finish().await?;
///
/// let snapshot = catalog.newest(&group).await?.expect("it is there now");
/// let snapshot = catalog.begin_restore(snapshot.id()).await?;
/// assert!(here.differences(snapshot.metadata()).is_empty());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Catalog {
    pub(super) store: Store,
}

impl Catalog {
    /// The catalog of a store.
    pub fn new(store: &Store) -> Self {
        Self {
            store: store.clone(),
        }
    }

    /// The newest snapshot of a group; nothing if the group has none. That the group's head makes no sense, or names a snapshot that is not there,
    /// is an error that says so: who runs pods then starts them anew, and a [collector](Store::collect) mends the head.
    pub async fn newest(&self, group: &str) -> Result<Option<Snapshot>> {
        let Some(head) = self.store.head(group).await? else {
            return Ok(None);
        };
        let dangling = |what: &str| {
            let (head_object, id) = (names::head(group), &head.snapshot);
            let url = self.store.url();
            Error::new(
                ErrorKind::NotFound,
                format!("{head_object} in {url} names the snapshot {id}, which {what}"),
            )
            .hint("podsnap gc moves the head to the newest snapshot that is there")
        };
        let snapshot = match self.store.snapshot(&head.snapshot).await {
            Err(e) if e.is_absence() => return Err(dangling("is not there")),
            opened => opened?,
        };
        if snapshot.metadata().group.as_deref() != Some(group) {
            return Err(dangling("is of another group"));
        }
        match self.is_deleting(&snapshot).await? {
            true => Err(dangling("is being removed")),
            false => Ok(Some(snapshot)),
        }
    }

    /// A certain snapshot, for a pod that needs `here`. One that was saved elsewhere is refused, with what differs.
    pub async fn pinned(&self, id: &SnapshotId, here: &Requirements) -> Result<Snapshot> {
        let snapshot = self.store.snapshot(id).await?;
        let differences = here.differences(snapshot.metadata());
        match differences.is_empty() {
            true => Ok(snapshot),
            false => Err(Error::invalid(format!(
                "{id} cannot be restored for this pod on this node: {}",
                differences.join("; ")
            ))),
        }
    }

    /// Notes that a snapshot is about to be restored, and opens it. From here on retention leaves it alone for long enough. Fails with
    /// [`ErrorKind::NotFound`] if it is gone, or about to go.
    ///
    /// An agent that may not write restores all the same; that the snapshot is used is then not known to others.
    pub async fn begin_restore(&self, id: &SnapshotId) -> Result<Snapshot> {
        let snapshot = self.store.snapshot(id).await?;
        // First the note, then the look: who removes does it the other way round, so one of the two sees the other.
        self.note_use(id).await?;
        if self.is_deleting(&snapshot).await? || !snapshot.still_there().await? {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("{id} is being removed from {}", self.store.url()),
            ));
        }
        crate::metrics::restore_begun();
        Ok(snapshot)
    }

    async fn note_use(&self, id: &SnapshotId) -> Result<()> {
        let backend = &**self.store.backend();
        let now = self.store.host().now_unix_ms();
        let used = Used { unix_ms: now };
        let noted = match notes::read::<Used>(backend, id).await {
            Ok(None) => notes::write(backend, id, &used, None).await,
            Ok(Some((last, version))) => {
                // Another clock may be ahead of this one: its note protects for longer.
                if notes::is_within(last.unix_ms, now, USE_RESOLUTION) {
                    return Ok(());
                }
                notes::write(backend, id, &used, Some(version)).await
            }
            Err(e) if unreadable(&e) => notes::replace(backend, id, &used).await,
            Err(e) => return Err(e),
        };
        match noted {
            Ok(_) => Ok(()),
            // Somebody else has noted it just now.
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(()),
            Err(error) if error.kind() == ErrorKind::Forbidden => {
                tracing::warn!(snapshot = %id, %error, "that the snapshot is used cannot be noted");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    async fn is_deleting(&self, snapshot: &Snapshot) -> Result<bool> {
        self.store
            .is_marked(snapshot.id(), snapshot.version())
            .await
    }

    /// Keeps a snapshot from retention, for a reason that others will read.
    pub async fn pin(&self, id: &SnapshotId, reason: &str) -> Result<()> {
        let pinned = Pinned {
            reason: notes::reason(reason),
            unix_ms: self.store.host().now_unix_ms(),
        };
        let snapshot = self.store.snapshot(id).await?;
        let backend = &**self.store.backend();
        let version = notes::replace(backend, id, &pinned).await?;
        if !self.is_deleting(&snapshot).await? && snapshot.still_there().await? {
            return Ok(());
        }
        // Else the next snapshot of that id would be pinned.
        notes::lift::<Pinned>(backend, id, &version).await;
        Err(Error::new(
            ErrorKind::Conflict,
            format!("{id} is being removed from {}", self.store.url()),
        ))
    }

    /// Gives a snapshot that was kept back to retention.
    pub async fn unpin(&self, id: &SnapshotId) -> Result<()> {
        notes::remove::<Pinned>(&**self.store.backend(), id).await
    }

    /// Notes why a snapshot was not saved, for those who look for it. It is forgotten with what the save left, when that is collected.
    pub async fn note_failure(
        &self,
        id: &SnapshotId,
        namespace: &str,
        policy: &str,
        reason: &str,
    ) -> Result<()> {
        let failed = Failed {
            reason: notes::reason(reason),
            policy: Some(policy.to_owned()),
            namespace: Some(namespace.to_owned()),
            unix_ms: self.store.host().now_unix_ms(),
        };
        notes::replace(&**self.store.backend(), id, &failed).await?;
        Ok(())
    }
}
