//! The names of objects below a store's path, as SPEC.md lays them out.

use podsnap_format::{SnapshotId, header::PackName};

use crate::store::gcs::PART_SUFFIX;

/// Name of a snapshot's commit.
pub(crate) const MANIFEST: &str = "manifest";

/// Name of the promise that somebody is writing a snapshot.
pub(crate) const LEASE: &str = "lease";

/// Name of what was learned about the order of a snapshot's pages.
pub(crate) const WORKING_SET: &str = "working-set";

/// When a snapshot was last used.
pub(crate) const USED: &str = "used";

/// That a snapshot stays, whatever its policy says.
pub(crate) const PINNED: &str = "pinned";

/// Why a snapshot was not saved.
pub(crate) const FAILED: &str = "failed";

/// That a snapshot is about to be removed.
pub(crate) const DELETING: &str = "deleting";

/// Directory of the newest snapshots of all groups; no snapshot may be called so.
pub(crate) const HEADS: &str = "heads";

/// What collectors have seen to be garbage. Snapshots cannot be called like its directory.
pub(crate) const GARBAGE: &str = ".garbage/seen";

/// Whether this is a pack, or a part of one (`PACK.N.part`, see SPEC.md).
pub(crate) fn is_of_pack(name: &str) -> bool {
    let pack = match name.split_once('.') {
        Some((pack, rest)) if rest.ends_with(PART_SUFFIX) => pack,
        Some(_) => return false,
        None => name,
    };
    pack.parse::<PackName>().is_ok()
}

/// An object of a snapshot.
pub(crate) fn object(snapshot: &SnapshotId, name: &str) -> String {
    format!("{snapshot}/{name}")
}

/// The head of a group.
pub(crate) fn head(group: &str) -> String {
    format!("{HEADS}/{group}")
}
