//! How far a snapshot is, found out from the objects under its name.

use podsnap_format::SnapshotId;

use super::{
    Listed, NAMESPACE_LABEL, POLICY_LABEL, Parts,
    notes::{self, Deleting, Failed, Note, Pinned, Used},
};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::unreadable,
    lease::{self, LeaseRecord},
    snapshot::Snapshot,
    store::{Backend, Version},
};

/// How far a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Somebody writes it.
    Saving,
    /// It can be restored.
    Available,
    /// It could not be saved, or cannot be read.
    Failed,
    /// It is being removed, or was and its data waits for a collector. It is not restored any more.
    Deleting,
}

/// How far a snapshot is, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct State {
    /// How far.
    pub status: Status,
    /// Who saves it, why it failed or goes.
    pub reason: Option<String>,
}

impl Store {
    /// How far a snapshot is; nothing if nobody ever heard of it. Needs no right to list.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{SaveOptions, Status, Store};
    ///
    /// let store = Store::open("memory://state")?;
    /// let id = "web-1".parse()?;
    /// assert_eq!(store.state(&id).await?, None);
    /// store.save(&id, SaveOptions::default()).await?.finish().await?;
    /// let state = store.state(&id).await?.expect("it is there");
    /// assert_eq!(state.status, Status::Available);
    /// # Ok(()) }
    /// ```
    pub async fn state(&self, id: &SnapshotId) -> Result<Option<State>> {
        // The lease goes behind the manifest, so it is looked at first.
        let saving = lease::look(&**self.backend(), id).await?;
        let state = match self.snapshot(id).await {
            Ok(snapshot) => self.state_of_committed(&snapshot).await?,
            Err(e) if e.is_absence() => return self.state_without_manifest(id, saving).await,
            Err(e) if unreadable(&e) => State::failed(e.to_string()),
            Err(e) => return Err(e),
        };
        Ok(Some(state))
    }

    async fn state_of_committed(&self, snapshot: &Snapshot) -> Result<State> {
        // One that makes no sense counts as none: whoever wants to remove the snapshot writes another one first.
        let deleting = hint::<Deleting>(&**self.backend(), snapshot.id()).await?;
        Ok(match deleting {
            Some(note) if note.is_about(snapshot) => State::deleting(note.reason),
            _ => State::available(),
        })
    }

    async fn state_without_manifest(
        &self,
        id: &SnapshotId,
        saving: Result<Option<(LeaseRecord, Version)>>,
    ) -> Result<Option<State>> {
        let saving = match saving {
            Ok(saving) => saving,
            Err(e) => return Ok(Some(State::failed(e.to_string()))),
        };
        if let Some((record, _)) = &saving
            && record.is_live(self.host())
        {
            return Ok(Some(State {
                status: Status::Saving,
                reason: Some(format!("written by {}", holder(record))),
            }));
        }
        let backend = &**self.backend();
        if let Some(note) = hint::<Failed>(backend, id).await? {
            return Ok(Some(State::failed(note.reason)));
        }
        if let Some((record, _)) = saving {
            let who = holder(&record);
            return Ok(Some(State::failed(format!(
                "its save ended without a word: {who}"
            ))));
        }
        let deleting = hint::<Deleting>(backend, id).await?;
        Ok(deleting.map(|note| State::deleting(note.reason)))
    }

    /// A line of the listing; nothing for what is neither a snapshot nor was to become one.
    pub(super) async fn describe(&self, id: &SnapshotId, parts: &Parts) -> Result<Option<Listed>> {
        let backend = &**self.backend();
        let mut listed = Listed {
            snapshot: id.to_string(),
            status: Status::Available,
            reason: None,
            policy: None,
            namespace: None,
            created_unix_ms: 0,
            last_used_unix_ms: None,
            pinned: None,
            group: None,
            labels: Default::default(),
            raw_bytes: 0,
            stored_bytes: parts.bytes,
            borrows_from: Vec::new(),
            version: None,
        };
        let mut opened = match parts.manifest {
            true => self.snapshot(id).await,
            false => Err(Error::new(ErrorKind::NotFound, "there is no manifest")),
        };
        let is_gone =
            |opened: &Result<Snapshot>| matches!(opened, Err(e) if e.kind() == ErrorKind::NotFound);
        let mut saving = Ok(None);
        if is_gone(&opened) && parts.lease {
            saving = lease::look(backend, id).await?;
            // It may have been committed since it was listed: the lease goes behind the manifest.
            if let Ok(None) = saving {
                opened = self.snapshot(id).await;
            }
        }
        match opened {
            Ok(snapshot) => {
                listed.fill(&snapshot);
                if parts.has(names_of::<Deleting>()) {
                    let state = self.state_of_committed(&snapshot).await?;
                    (listed.status, listed.reason) = (state.status, state.reason);
                }
                if parts.has(names_of::<Used>()) {
                    let used = hint::<Used>(backend, id).await?;
                    listed.last_used_unix_ms = used.map(|note| note.unix_ms);
                }
                if parts.has(names_of::<Pinned>()) {
                    let pinned = hint::<Pinned>(backend, id).await?;
                    // That somebody pinned it is certain, whatever else the note says.
                    let reason = pinned.map(|note| note.reason);
                    listed.pinned = Some(reason.unwrap_or_else(|| "?".to_owned()));
                }
            }
            // Removed since, or never committed.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if !parts.lease && parts.notes.is_empty() {
                    return Ok(None);
                }
                if let Ok(Some((record, _))) = &saving {
                    listed.created_unix_ms = record.begun_unix_ms;
                    listed.policy = record.policy.clone();
                    listed.namespace = record.namespace.clone();
                }
                let Some(state) = self.state_without_manifest(id, saving).await? else {
                    return Ok(None);
                };
                (listed.status, listed.reason) = (state.status, state.reason);
                if let Some(note) = hint::<Failed>(backend, id).await? {
                    listed.created_unix_ms = note.unix_ms;
                    listed.policy = note.policy;
                    listed.namespace = note.namespace;
                }
            }
            Err(e) if unreadable(&e) => {
                listed.status = Status::Failed;
                listed.reason = Some(e.to_string());
            }
            Err(e) => return Err(e),
        }
        Ok(Some(listed))
    }
}

impl State {
    fn available() -> Self {
        Self {
            status: Status::Available,
            reason: None,
        }
    }

    fn deleting(reason: String) -> Self {
        Self {
            status: Status::Deleting,
            reason: Some(reason),
        }
    }

    fn failed(reason: String) -> Self {
        Self {
            status: Status::Failed,
            reason: Some(reason),
        }
    }
}

impl Deleting {
    /// Whether this snapshot is meant, and not an earlier one of the same id.
    pub(super) fn is_about(&self, snapshot: &Snapshot) -> bool {
        self.manifest == snapshot.version().0
    }
}

impl Listed {
    fn fill(&mut self, snapshot: &Snapshot) {
        let metadata = snapshot.metadata();
        let mut borrows_from: Vec<String> = snapshot
            .directory()
            .packs
            .iter()
            .filter(|p| p.snapshot != *snapshot.id())
            .map(|p| p.snapshot.to_string())
            .collect();
        borrows_from.sort();
        borrows_from.dedup();
        self.borrows_from = borrows_from;
        self.version = Some(snapshot.version().clone());
        self.created_unix_ms = metadata.created_unix_ms;
        self.group = metadata.group.clone();
        self.labels = metadata.labels.clone();
        self.policy = self.labels.get(POLICY_LABEL).cloned();
        self.namespace = self.labels.get(NAMESPACE_LABEL).cloned();
        // Lengths are what the manifest says, which somebody else may have written.
        let lengths = snapshot.sections().iter().map(|s| s.length);
        self.raw_bytes = lengths.fold(0, u64::saturating_add);
    }
}

fn names_of<N: Note>() -> &'static str {
    N::NAME
}

/// A note that is only shown: one that makes no sense counts as none, with a warning.
async fn hint<N: Note>(backend: &dyn Backend, id: &SnapshotId) -> Result<Option<N>> {
    match notes::read::<N>(backend, id).await {
        Err(error) if unreadable(&error) => {
            tracing::warn!(%error, "a note makes no sense");
            Ok(None)
        }
        read => Ok(read?.map(|(note, _)| note)),
    }
}

/// Who holds a lease, for people.
fn holder(record: &LeaseRecord) -> String {
    match &record.holder {
        Some(holder) => format!("process {} on {}", holder.pid, holder.host),
        None => "somebody".to_owned(),
    }
}
