//! Events, as a cluster has them: printed for people, and appended to a file for programs.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use podsnap::policy::Pod;
use serde_json::json;

/// The reason of everything about snapshots.
pub const SNAPSHOTTING: &str = "GKEPodSnapshotting";

pub struct Events(File);

impl Events {
    pub fn open(path: &Path) -> Result<Self, String> {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened
            .map(Self)
            .map_err(|e| format!("{}: {e}", path.display()))
    }

    pub fn normal(&self, pod: &Pod, reason: &str, message: &str) {
        self.record("Normal", pod, reason, message);
    }

    pub fn warning(&self, pod: &Pod, reason: &str, message: &str) {
        self.record("Warning", pod, reason, message);
    }

    fn record(&self, kind: &str, pod: &Pod, reason: &str, message: &str) {
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        // Nobody may be there to read it.
        let _ = writeln!(
            std::io::stdout(),
            "{namespace}  {kind:<7}  {reason:<18}  pod/{name}  {message}"
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let event = json!({
            "unix_ms": now.map_or(0, |d| d.as_millis() as u64),
            "type": kind,
            "reason": reason,
            "namespace": namespace,
            "object": format!("pod/{name}"),
            "message": message,
        });
        // In one piece, so that whoever reads along sees whole lines.
        let line = format!("{event}\n");
        if let Err(e) = (&self.0).write_all(line.as_bytes()) {
            eprintln!("agent: an event cannot be recorded: {e}");
        }
    }
}
