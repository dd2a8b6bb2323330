//! The human-readable part of a manifest: who made the snapshot, when, of what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a manifest says about its snapshot, as JSON. Fields that this version does not know are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Milliseconds since 1970 when the save began.
    #[serde(default)]
    pub created_unix_ms: u64,
    /// Program and version that wrote it.
    #[serde(default)]
    pub writer: String,
    /// Group whose head the snapshot became.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Snapshots whose chunks it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<String>,
    /// Whatever the owner wants to remember.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The image's own description, if the snapshot is a gVisor checkpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gvisor: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}
