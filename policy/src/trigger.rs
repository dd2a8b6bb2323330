//! `PodSnapshotManualTrigger`: this pod, now.

use std::path::PathBuf;

use crate::{Error, Metadata, field::Field, metadata::resource_name};

/// Somebody asks for a snapshot of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSnapshotManualTrigger {
    /// Its name; its namespace is the pod's.
    pub metadata: Metadata,
    /// The file that says so.
    pub file: PathBuf,
    /// The pod's name.
    pub target_pod: String,
}

impl PodSnapshotManualTrigger {
    pub(crate) fn read(metadata: Metadata, spec: &Field<'_>) -> Result<Self, Error> {
        let mut fields = spec.map()?;
        let target_pod = resource_name(&fields.require("targetPod")?)?;
        fields.end()?;
        Ok(Self {
            metadata,
            file: spec.file().to_owned(),
            target_pod,
        })
    }
}
