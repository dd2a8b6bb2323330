//! Heads: the newest snapshot of each group, moved by compare-and-swap so that concurrent savers cannot lose each other's.

use std::time::Duration;

use podsnap_format::SnapshotId;
use serde::{Deserialize, Serialize};

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    host::is_nonsense,
    names,
    store::{Backend, Condition, ReadRange, Version},
};

/// A head longer than this, in bytes, is not one of ours.
const MAX_HEAD_LEN: u64 = 64 << 10;

/// Times a head is tried to be moved against other savers before the save reports it.
const MAX_TRIES: u32 = 64;

/// Longest wait between two tries, in milliseconds.
const MAX_WAIT_MS: u64 = 500;

/// The newest snapshot of a group; [`Store::head`] finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The newest snapshot.
    pub snapshot: SnapshotId,
    /// When its save began, in milliseconds since 1970.
    pub created_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct HeadRecord {
    snapshot: String,
    created_unix_ms: u64,
}

impl Store {
    /// The newest snapshot of a group, or `None` if the group has none. Needs no right to list.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{SaveOptions, Store};
    ///
    /// let store = Store::open("memory://head")?;
    /// assert_eq!(store.head("web").await?, None);
    /// let options = SaveOptions {
    ///     group: Some("web".to_owned()),
    ///     ..SaveOptions::default()
    /// };
    /// store.save(&"web-1".parse()?, options).await?.finish().await?;
    /// let head = store.head("web").await?.expect("there is one now");
    /// let snapshot = store.snapshot(&head.snapshot).await?;
    /// assert_eq!(snapshot.metadata().group.as_deref(), Some("web"));
    /// # Ok(()) }
    /// ```
    pub async fn head(&self, group: &str) -> Result<Option<Head>> {
        Ok(read(&**self.backend(), group).await?.map(|(head, _)| head))
    }
}

/// By which the newest of several snapshots is told, the greatest. Times to come that are nonsense are older than all others: else nothing would ever be newer.
pub(crate) fn rank(created_unix_ms: u64, now: u64) -> (bool, u64) {
    (!is_nonsense(created_unix_ms, now), created_unix_ms)
}

/// Group names obey the rules of snapshot ids.
pub(crate) fn check_name(group: &str) -> Result<()> {
    group
        .parse::<SnapshotId>()
        .map(drop)
        .map_err(|e| Error::invalid(format!("bad group name {group:?}")).because(e))
}

/// The head of a group, if it has one.
pub(crate) async fn read(backend: &dyn Backend, group: &str) -> Result<Option<(Head, Version)>> {
    check_name(group)?;
    let name = names::head(group);
    let read = match backend
        .read(&name, ReadRange::Suffix(MAX_HEAD_LEN), None)
        .await
    {
        Err(e) if e.is_absence() => return Ok(None),
        read => read?,
    };
    let damaged = |why: String| {
        Error::damaged(&name, why)
            .hint("delete the object; the next save of the group makes it anew")
    };
    let record: HeadRecord =
        serde_json::from_slice(&read.bytes).map_err(|e| damaged(e.to_string()))?;
    let snapshot = record
        .snapshot
        .parse()
        .map_err(|e: podsnap_format::FormatError| damaged(e.to_string()))?;
    Ok(Some((
        Head {
            snapshot,
            created_unix_ms: record.created_unix_ms,
        },
        read.meta.version,
    )))
}

/// A head as it is stored.
pub(crate) fn encode(head: &Head) -> bytes::Bytes {
    let record = HeadRecord {
        snapshot: head.snapshot.to_string(),
        created_unix_ms: head.created_unix_ms,
    };
    serde_json::to_vec(&record)
        .expect("a head is plain data")
        .into()
}

/// Makes `snapshot` the head of `group`, unless the head is newer already.
pub(crate) async fn advance(
    store: &Store,
    group: &str,
    snapshot: &SnapshotId,
    created_unix_ms: u64,
) -> Result<()> {
    let backend = &**store.backend();
    let now = store.host().now_unix_ms();
    let bytes = encode(&Head {
        snapshot: snapshot.clone(),
        created_unix_ms,
    });
    for tried in 0..MAX_TRIES {
        if tried > 0 {
            // A random wait, so that many savers who end at once do not stay in step.
            let longest = MAX_WAIT_MS.min(1 << tried.min(16));
            let wait = store.host().draw() % longest;
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let condition = match read(backend, group).await? {
            Some((head, _)) if rank(head.created_unix_ms, now) > rank(created_unix_ms, now) => {
                return Ok(());
            }
            Some((_, version)) => Condition::Matches(version),
            None => Condition::Absent,
        };
        match backend
            .put(&names::head(group), bytes.clone(), condition)
            .await
        {
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
            Err(e) => {
                // The answer may be lost though the head was moved.
                let now = read(backend, group).await;
                return match now {
                    Ok(Some((head, _))) if head.snapshot == *snapshot => Ok(()),
                    _ => Err(e),
                };
            }
            Ok(_) => return Ok(()),
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("the head of {group} kept moving"),
    ))
}
