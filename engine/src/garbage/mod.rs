//! Collecting garbage: planned, shown, executed; what nobody needs any more goes in a second pass.
//!
//! Garbage is what has a name of ours and is needed by no manifest and promised by no lease: packs of snapshots that were removed while
//! others borrowed from them, what killed saves left, leases that ran out, working sets without a snapshot. A pass notes what it finds
//! in the store itself; what is still there in the same version when a later pass looks, after a time of grace, is deleted. Nothing
//! with another name is ever touched, and whatever cannot be read keeps everything.

mod execute;
mod plan;
mod record;
mod survey;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

pub(crate) use survey::{Part, Survey, place_of, snapshot_of, unreadable};

use crate::{
    error::ErrorKind,
    lease::LeaseRecord,
    store::{ObjectMeta, Version},
};
use podsnap_format::SnapshotId;

/// How garbage is collected.
///
/// ```
/// # use podsnap_engine as podsnap;
/// let options = podsnap::CollectOptions::default();
/// assert_eq!(options.grace.as_secs(), 24 * 3600);
/// ```
#[derive(Debug, Clone)]
pub struct CollectOptions {
    /// How long garbage stays after a pass has first seen it. It must be longer than any restore takes, than any writer sleeps and than
    /// clocks differ. Nothing but a store that nobody else uses can do with less than an hour.
    pub grace: Duration,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 3600),
        }
    }
}

/// An object that nobody needs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Garbage {
    /// Its name below the store's path.
    pub object: String,
    /// Its length.
    pub bytes: u64,
    /// Milliseconds since 1970 when a pass first saw it to be garbage; nothing if that is this one.
    pub first_seen_unix_ms: Option<u64>,
    #[serde(skip)]
    version: Version,
}

/// What a collection will do; [`Store::plan_collection`](crate::Store::plan_collection) makes one, [`Store::collect`](crate::Store::collect) carries it out.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct CollectionPlan {
    /// Garbage that was seen by an earlier pass, long enough ago: it will be deleted.
    pub delete: Vec<Garbage>,
    /// Garbage that will be noted, or is, and stays for now.
    pub keep: Vec<Garbage>,
    /// Groups whose head names a snapshot that is gone, or of another group: their newest that is there takes its place.
    pub stale_heads: Vec<String>,
    /// Why nothing is deleted, if something in the store cannot be read: it may need anything.
    pub blocked_by: Vec<String>,
    /// Objects whose names are none of ours. They stay.
    pub foreign_objects: u64,
    /// The leases among what is to be deleted, by their names.
    #[serde(skip)]
    dead_leases: BTreeMap<String, (SnapshotId, LeaseRecord)>,
    /// Committed snapshots, as the plan knows them.
    #[serde(skip)]
    committed: BTreeSet<SnapshotId>,
    /// The heads that are stale, and the snapshots they name.
    #[serde(skip)]
    heads: Vec<(String, SnapshotId)>,
    #[serde(skip)]
    seen: record::Seen,
    #[serde(skip)]
    seen_version: Option<Version>,
}

impl CollectionPlan {
    /// Bytes that will be deleted.
    pub fn delete_bytes(&self) -> u64 {
        self.delete.iter().map(|garbage| garbage.bytes).sum()
    }

    /// Bytes that wait for a later pass.
    pub fn keep_bytes(&self) -> u64 {
        self.keep.iter().map(|garbage| garbage.bytes).sum()
    }

    /// Whether the store holds nothing that nobody needs.
    pub fn is_clean(&self) -> bool {
        self.delete.is_empty() && self.keep.is_empty() && self.stale_heads.is_empty()
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct CollectStats {
    /// Objects deleted.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that wait for a later pass.
    pub kept_objects: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Heads that were moved to a snapshot that is there, or removed.
    pub moved_heads: u64,
    /// What could not be deleted or moved. All else has gone, but what depends on it.
    pub failed: Vec<FailedDeletion>,
    /// Why the collection stopped early or noted nothing, if it did: somebody changed what it had planned with, it was cancelled, or the store
    /// failed. A new plan finds out.
    pub stopped: Option<String>,
}

/// An object that could not be deleted, or a head that could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FailedDeletion {
    /// Its name below the store's path.
    pub object: String,
    /// Why, and what to do about it.
    pub reason: String,
    /// What kind of error that is.
    #[serde(skip)]
    pub kind: ErrorKind,
}

fn garbage(object: &ObjectMeta, first_seen_unix_ms: Option<u64>) -> Garbage {
    Garbage {
        object: object.name.clone(),
        bytes: object.len,
        first_seen_unix_ms,
        version: object.version.clone(),
    }
}
