//! What the demo measured, as its JSON document.

use std::path::PathBuf;

use podsnap::{RestoreStats, SaveStats, VerifyReport, inspect::InspectReport};
use serde::Serialize;

use super::compare::Comparison;

/// What the pod was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// A gVisor sandbox with all its state.
    Gvisor,
    /// A plain process: its memory and its files.
    Process,
    /// A plain process whose memory cannot be read here: its files.
    Files,
}

/// Everything, in the order in which it happened.
#[derive(Debug, Serialize)]
pub struct Figures {
    pub way: Way,
    /// Why it was not a better way.
    pub limits: Vec<String>,
    pub weights_bytes: u64,
    pub first: Moment,
    pub second: Moment,
    /// What the second save stored, as a share of what the first one did.
    pub second_share: f64,
    pub verify: Verified,
    pub restore: RestoreStats,
    pub compare: Comparison,
    pub alive: Alive,
    /// Where the store was kept, if it was.
    pub store: Option<PathBuf>,
}

impl Figures {
    /// Whether everything was as it must be.
    pub fn all_is_well(&self) -> bool {
        self.verify.sound && self.compare.identical && self.alive.goes_on
    }
}

/// The pod at one moment, and its snapshot.
#[derive(Debug, Serialize)]
pub struct Moment {
    /// What the pod had counted to.
    pub count: u64,
    pub stored_bytes: u64,
    #[serde(flatten)]
    pub stats: SaveStats,
    pub inspect: InspectReport,
}

#[derive(Debug, Serialize)]
pub struct Verified {
    pub sound: bool,
    #[serde(flatten)]
    pub report: VerifyReport,
}

/// What the restored pod did.
#[derive(Debug, Serialize)]
pub struct Alive {
    /// Whether it went on where the snapshot was taken.
    pub goes_on: bool,
    /// The numbers it counted.
    pub counted: Vec<u64>,
}
