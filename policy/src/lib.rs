//! What a cluster wants of snapshots, as GKE's users write it: the YAML of `PodSnapshotStorageConfig`, `PodSnapshotPolicy` and
//! `PodSnapshotManualTrigger`, read verbatim, and of the pods that they are about.
//!
//! The crate reads files and decides which policy is a pod's. It knows no store and no runtime; what is done about a policy is done by those
//! who have one. Files come from people and from whoever can write into a directory: they are read with bounds, and what makes no sense is
//! an [`Error`] that names file, line and field.
//!
//! ```
//! use podsnap_policy::{Resources, TriggerType};
//!
//! let resources = Resources::parse("policy.yaml".as_ref(), "
//! apiVersion: podsnapshot.gke.io/v1
//! kind: PodSnapshotPolicy
//! metadata:
//!   name: example
//! spec:
//!   storageConfigName: bucket
//!   selector:
//!     matchLabels:
//!       app: my-app
//!   triggerConfig:
//!     type: workload
//! ")?;
//! assert_eq!(resources.policies[0].trigger, TriggerType::Workload);
//! # Ok::<(), podsnap_policy::Error>(())
//! ```
#![forbid(unsafe_code)]

mod error;
mod field;
mod metadata;
mod pod;
mod resources;
mod retention;
mod selector;
mod snapshot_policy;
mod storage_config;
mod trigger;
mod yaml;

pub use error::Error;
pub use metadata::Metadata;
pub use pod::{Container, Pod};
pub use resources::Resources;
pub use retention::Retention;
pub use selector::{Requirement, Selector};
pub use snapshot_policy::{AfterCheckpoint, PodSnapshotPolicy, TriggerType};
pub use storage_config::{PodSnapshotStorageConfig, TokenSource};
pub use trigger::PodSnapshotManualTrigger;

/// The group of the resources that say what is to be snapshotted.
pub const API_GROUP: &str = "podsnapshot.gke.io";

/// The annotation by which a pod asks for one certain snapshot.
pub const PINNED_SNAPSHOT: &str = "podsnapshot.gke.io/ps-name";
