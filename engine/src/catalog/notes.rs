//! Notes: small JSON objects beside a snapshot's manifest, each about one thing, so that nobody has to change what somebody else wrote.
//!
//! They go when the snapshot goes, and a collector takes those without a snapshot. None of them is needed to restore. One that cannot be read
//! is an error that names it: whoever decides over data then decides as if it said "keep".

use std::time::Duration;

use podsnap_format::SnapshotId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, ErrorKind, Result},
    host::is_nonsense,
    names,
    store::{Backend, Condition, ReadRange, Version},
};

/// A longer note is not one of ours, in bytes.
const MAX_NOTE_LEN: u64 = 64 << 10;

/// Longest reason that is kept, in bytes.
const MAX_REASON_LEN: usize = 2000;

/// What is noted.
pub(crate) trait Note: Serialize + DeserializeOwned {
    /// The object's name.
    const NAME: &str;
}

/// When a snapshot was last used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub(crate) unix_ms: u64,
}

/// That a snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pinned {
    pub(crate) reason: String,
    pub(crate) unix_ms: u64,
}

/// Why a snapshot was not saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) reason: String,
    #[serde(default)]
    pub(crate) policy: Option<String>,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    pub(crate) unix_ms: u64,
}

/// That a snapshot is about to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deleting {
    /// The version of its manifest: another snapshot under the same id is not meant.
    pub(crate) manifest: String,
    pub(crate) reason: String,
    pub(crate) unix_ms: u64,
}

impl Note for Used {
    const NAME: &str = names::USED;
}

impl Note for Pinned {
    const NAME: &str = names::PINNED;
}

impl Note for Failed {
    const NAME: &str = names::FAILED;
}

impl Note for Deleting {
    const NAME: &str = names::DELETING;
}

/// A note and its version, if there is one. What looks forbidden may be absent; notes are hints to those who may not know.
pub(crate) async fn read<N: Note>(
    backend: &dyn Backend,
    id: &SnapshotId,
) -> Result<Option<(N, Version)>> {
    let name = names::object(id, N::NAME);
    let range = ReadRange::Suffix(MAX_NOTE_LEN);
    let read = match backend.read(&name, range, None).await {
        Err(e) if e.is_absence() => return Ok(None),
        read => read?,
    };
    let note = serde_json::from_slice(&read.bytes).map_err(|e| {
        Error::damaged(&name, e.to_string())
            .hint("somebody else wrote or changed it: delete the object")
    })?;
    Ok(Some((note, read.meta.version)))
}

/// Writes a note in the place of the one that was read.
pub(crate) async fn write<N: Note>(
    backend: &dyn Backend,
    id: &SnapshotId,
    note: &N,
    replaced: Option<Version>,
) -> Result<Version> {
    let bytes = serde_json::to_vec(note).expect("a note is plain data");
    let condition = replaced.map_or(Condition::Absent, Condition::Matches);
    let name = names::object(id, N::NAME);
    let written = backend.put(&name, bytes.into(), condition).await?;
    Ok(written.version)
}

/// Writes a note whatever is there, even if that makes no sense.
pub(crate) async fn replace<N: Note>(
    backend: &dyn Backend,
    id: &SnapshotId,
    note: &N,
) -> Result<Version> {
    let replaced = match backend.head(&names::object(id, N::NAME)).await {
        Ok(meta) => Some(meta.version),
        Err(e) if e.is_absence() => None,
        Err(e) => return Err(e),
    };
    write(backend, id, note, replaced).await
}

/// Removes a note. That there is none is no error.
pub(crate) async fn remove<N: Note>(backend: &dyn Backend, id: &SnapshotId) -> Result<()> {
    match backend.delete(&names::object(id, N::NAME), None).await {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        deleted => deleted,
    }
}

/// Takes back a note that was written, unless another one is in its place by now. A note that cannot be taken back is a nuisance and no more.
pub(crate) async fn lift<N: Note>(backend: &dyn Backend, id: &SnapshotId, written: &Version) {
    let name = names::object(id, N::NAME);
    match backend.delete(&name, Some(written)).await {
        Err(e) if e.kind() == ErrorKind::Conflict => {}
        Err(error) => tracing::warn!(%name, %error, "the note stays"),
        Ok(()) => {}
    }
}

/// Whether something happened less than that long before `now`, or after it, by another clock.
pub(crate) fn is_within(unix_ms: u64, now: u64, time: Duration) -> bool {
    let since = Duration::from_millis(now.saturating_sub(unix_ms));
    since < time && !is_nonsense(unix_ms, now)
}

/// A reason, as long as one is kept.
pub(crate) fn reason(text: &str) -> String {
    let mut end = text.len().min(MAX_REASON_LEN);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
