//! One pod, from its start to its end: started anew or from a snapshot, watched while it saves itself, deleted.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::Child,
};

use podsnap::{
    SnapshotId, Status,
    policy::{Pod, Resources},
};
use serde_json::json;

use crate::{
    bundle,
    events::{Events, SNAPSHOTTING},
    node::Node,
    snapshots::Snapshotted,
};

/// What the gofer logs when a snapshot stands, and when it never will.
const COMMITTED: &str = "the checkpoint is committed";
const NOT_SAVED: [&str; 3] = ["cannot be saved", "is given up", "it ends with an error"];

pub struct Sandbox {
    pod: Pod,
    id: String,
    dir: PathBuf,
    /// Nothing when it has ended, or never began.
    child: Option<Child>,
    snapshotted: Option<Snapshotted>,
    /// Where it saves itself to, until it has.
    saving: Option<SnapshotId>,
    /// What it is being restored from, until it runs.
    restoring: Option<SnapshotId>,
    /// How far runsc's log was read.
    log_read: u64,
}

impl Sandbox {
    /// Starts a pod, from a snapshot if there is one that fits. Whatever is wrong with snapshots, the pod starts.
    pub async fn start(node: &Node, resources: &Resources, pod: Pod, events: &mut Events) -> Self {
        let snapshotted = Snapshotted::of(node, resources, &pod).unwrap_or_else(|why| {
            events.warning(
                &pod,
                &format!("The pod is neither saved nor restored: {why}"),
            );
            None
        });
        let mut sandbox = Self {
            pod,
            id: String::new(),
            dir: PathBuf::new(),
            child: None,
            snapshotted,
            saving: None,
            restoring: None,
            log_read: 0,
        };
        let mut from = None;
        if let Some(snapshotted) = &sandbox.snapshotted {
            match snapshotted.find(&sandbox.pod).await {
                Ok(found) => from = found.map(|snapshot| snapshot.id().clone()),
                Err(e) => events.warning(
                    &sandbox.pod,
                    &format!("No PodSnapshot is restored, the pod starts anew: {e}"),
                ),
            }
        }
        sandbox.launch(node, from, events);
        sandbox
    }

    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    fn launch(&mut self, node: &Node, from: Option<SnapshotId>, events: &mut Events) {
        let verb = match from {
            Some(_) => "Restoring the pod",
            None => "Started the pod",
        };
        match self.try_launch(node, from) {
            Ok(()) => events.normal(&self.pod, "Started", verb),
            Err(why) => events.warning(&self.pod, &format!("The pod cannot be started: {why}")),
        }
    }

    fn try_launch(&mut self, node: &Node, from: Option<SnapshotId>) -> Result<(), String> {
        let name = &self.pod.metadata;
        let unique = uuid::Uuid::new_v4();
        self.id = format!("{}-{}-{}", name.namespace, name.name, unique.simple());
        self.dir = node.sandbox_dir(&self.id)?;
        self.log_read = 0;
        self.saving = None;
        let mut annotations = json!({});
        if let Some(snapshotted) = &self.snapshotted
            && snapshotted.saves_itself()
        {
            let next = new_id();
            let image = snapshotted.image_of_its_own(&self.dir, &next)?;
            annotations = snapshotted.annotations(&image);
            self.saving = Some(next);
        }
        bundle::write(&self.dir, &self.pod, &annotations)?;
        let bundle = self.dir.to_string_lossy().into_owned();
        let stdout = node.pod_log(&name.name)?;
        let child = match (&from, &self.snapshotted) {
            (Some(snapshot), Some(snapshotted)) => {
                let image = snapshotted.image(&self.dir, "restore", snapshot)?;
                let image = image.to_string_lossy().into_owned();
                let args = ["restore", "--background", "--image-path", &image];
                let args = [&args[..], &["-bundle", &bundle]].concat();
                node.start(&self.dir, &self.id, &args, stdout)?
            }
            _ => node.start(&self.dir, &self.id, &["run", "-bundle", &bundle], stdout)?,
        };
        self.child = Some(child);
        self.restoring = from;
        Ok(())
    }

    /// Looks what has become of it.
    pub async fn watch(&mut self, node: &Node, events: &mut Events) {
        self.watch_saving(events).await;
        let Some(child) = &mut self.child else { return };
        let ended = child.try_wait().ok().flatten();
        if let Some(status) = ended {
            self.child = None;
            // What it still had to say about its snapshot.
            self.watch_saving(events).await;
            match self.restoring.take() {
                Some(snapshot) => {
                    let name = self.snapshot_name(&snapshot);
                    let why = self.last_error();
                    let what = format!(
                        "Failed to restore the pod from PodSnapshot {name}, falling back to a cold start: {why}"
                    );
                    events.warning(&self.pod, &what);
                    let _ = node.runsc(&self.dir, &["delete", "-force", &self.id]);
                    self.launch(node, None, events);
                }
                None => {
                    let how = format!("The pod has ended: {status}");
                    events.normal(&self.pod, "Completed", &how);
                }
            }
            return;
        }
        if let Some(snapshot) = &self.restoring
            && self.is_running(node)
        {
            let name = self.snapshot_name(snapshot);
            let what = format!("Successfully restored the pod from PodSnapshot {name}");
            events.normal(&self.pod, SNAPSHOTTING, &what);
            self.restoring = None;
        }
    }

    /// Reads what the gofer logs about the snapshot that the pod saves itself into.
    async fn watch_saving(&mut self, events: &mut Events) {
        let new = self.new_log();
        let Some(snapshot) = self.saving.clone() else {
            return;
        };
        // The gofer that restores logs into the same file.
        let about = |line: &&str| line.contains(snapshot.as_str()) || !line.contains("restor");
        if new.contains(COMMITTED) {
            self.saving = None;
            self.tell(&snapshot, None, events).await;
        } else if let Some(line) = new
            .lines()
            .filter(about)
            .find(|line| NOT_SAVED.iter().any(|word| line.contains(word)))
        {
            self.saving = None;
            let why = line.to_owned();
            self.tell(&snapshot, Some(why), events).await;
        }
    }

    /// Says how a save ended, as the store knows it.
    async fn tell(&self, snapshot: &SnapshotId, failed: Option<String>, events: &mut Events) {
        let Some(snapshotted) = &self.snapshotted else {
            return;
        };
        let name = self.snapshot_name(snapshot);
        let why = match (failed, snapshotted.state(snapshot).await) {
            (_, Ok(Some(state))) if state.status == Status::Available => {
                let what = format!("Successfully checkpointed the pod to PodSnapshot {name}");
                return events.normal(&self.pod, SNAPSHOTTING, &what);
            }
            (Some(why), _) => why,
            (None, Ok(state)) => {
                let reason = state.and_then(|state| state.reason);
                reason.unwrap_or_else(|| "it is not in the store".to_owned())
            }
            (None, Err(e)) => e.to_string(),
        };
        let what = format!("Failed to checkpoint the pod to PodSnapshot {name}: {why}");
        events.warning(&self.pod, &what);
        snapshotted.note_failure(snapshot, &why).await;
    }

    /// Saves it now, because somebody asks for it.
    pub async fn checkpoint(&mut self, node: &Node, resources: &Resources, events: &mut Events) {
        // The policy may be newer than the pod.
        if self.snapshotted.is_none() {
            self.snapshotted = Snapshotted::of(node, resources, &self.pod).unwrap_or_default();
        }
        let Some(snapshotted) = &self.snapshotted else {
            return events.warning(&self.pod, "No policy is for this pod: it is not saved");
        };
        let snapshot = new_id();
        let image = match snapshotted.image(&self.dir, snapshot.as_str(), &snapshot) {
            Ok(image) => image.to_string_lossy().into_owned(),
            Err(why) => return events.warning(&self.pod, &why),
        };
        let mut args = vec!["checkpoint", "-exclude-committed-zero-pages"];
        if snapshotted.resumes() {
            args.push("-leave-running");
        }
        args.extend(["--image-path", &image, &self.id]);
        let mut command = node.command(&self.dir, &args);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let failed = match output {
            Ok(Ok(output)) if output.status.success() => None,
            Ok(Ok(output)) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Ok(Err(e)) => Some(e.to_string()),
            Err(e) => Some(e.to_string()),
        };
        self.tell(&snapshot, failed, events).await;
    }

    /// Ends it, whatever it does.
    pub fn delete(&mut self, node: &Node) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = node.runsc(&self.dir, &["delete", "-force", &self.id]);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Whether it was started, and does not run yet.
    pub fn is_starting(&self, node: &Node) -> bool {
        self.child.is_some() && !self.is_running(node)
    }

    fn is_running(&self, node: &Node) -> bool {
        let state = node.runsc(&self.dir, &["state", &self.id]);
        state.is_ok_and(|output| {
            let state: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_default();
            state["status"] == "running"
        })
    }

    fn snapshot_name(&self, snapshot: &SnapshotId) -> String {
        format!("{}/{snapshot}", self.pod.metadata.namespace)
    }

    /// What runsc and its gofers have logged since the last look.
    fn new_log(&mut self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.dir.join("runsc.log"))
            && file.seek(SeekFrom::Start(self.log_read)).is_ok()
        {
            let _ = file.take(1 << 20).read_to_end(&mut bytes);
        }
        // Half a line waits for its other half.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |at| at + 1));
        self.log_read += bytes.len() as u64;
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last thing that went wrong, as far as runsc says.
    fn last_error(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let said = read("runsc.log") + &read("stderr");
        let mut lines = said.lines().rev();
        let line = lines.find(|line| line.to_lowercase().contains("error"));
        line.unwrap_or("runsc ended").trim().to_owned()
    }
}

/// A snapshot's name, as GKE makes them.
fn new_id() -> SnapshotId {
    let id = uuid::Uuid::new_v4().to_string();
    id.parse().expect("a UUID is an id")
}
