//! One pod, from its start to its end: started anew or from a snapshot, watched while it saves itself, deleted.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::Arc,
    time::Duration,
};

use podsnap::{
    CancellationToken, SnapshotId, Status,
    policy::{Pod, Resources},
};
use serde_json::json;
use tokio::sync::{mpsc, watch};

use crate::{
    TICK, bundle,
    events::{Events, SNAPSHOTTING},
    node::Node,
    snapshots::Snapshotted,
};

/// What the gofer logs of a snapshot when it stands, and when it never will.
const COMMITTED: &str = "the checkpoint is committed";
const NOT_SAVED: [&str; 3] = ["cannot be saved", "is given up", "it ends with an error"];

/// How long a pod that ends may take to say what became of its save.
const LAST_WORDS: Duration = Duration::from_secs(10);

pub struct Sandbox {
    node: Arc<Node>,
    events: Arc<Events>,
    pod: Pod,
    snapshotted: Option<Snapshotted>,
    /// Nothing before it begins, and when it has ended.
    running: Option<Running>,
}

struct Running {
    id: String,
    dir: PathBuf,
    child: Child,
    /// Where it saves itself to, until it has.
    saving: Option<SnapshotId>,
    /// What it is being restored from, until it runs.
    restoring: Option<SnapshotId>,
    /// How far runsc's log was read.
    log_read: u64,
}

impl Sandbox {
    pub fn new(node: Arc<Node>, events: Arc<Events>, pod: Pod) -> Self {
        Self {
            node,
            events,
            pod,
            snapshotted: None,
            running: None,
        }
    }

    /// Runs the pod until `stop`, saving it when that is `asked` for.
    pub async fn run(
        mut self,
        resources: watch::Receiver<Resources>,
        asked: mpsc::UnboundedReceiver<()>,
        stop: CancellationToken,
    ) {
        stop.run_until_cancelled(self.live(resources, asked)).await;
        self.end().await;
        self.events.normal(&self.pod, "Killing", "Stopped the pod");
    }

    async fn live(
        &mut self,
        resources: watch::Receiver<Resources>,
        mut asked: mpsc::UnboundedReceiver<()>,
    ) {
        let now = resources.borrow().clone();
        self.start(&now).await;
        let mut ticks = tokio::time::interval(TICK);
        let mut wanted = false;
        loop {
            tokio::select! {
                Some(()) = asked.recv() => wanted = true,
                _ = ticks.tick() => {}
            }
            self.watch().await;
            // What only begins to run cannot be saved yet.
            if wanted && !self.is_starting().await {
                wanted = false;
                let now = resources.borrow().clone();
                self.checkpoint(&now).await;
            }
        }
    }

    /// Starts it, from a snapshot if there is one that fits. Whatever is wrong with snapshots, the pod starts.
    async fn start(&mut self, resources: &Resources) {
        match Snapshotted::of(&self.node, resources, &self.pod) {
            Ok(snapshotted) => self.snapshotted = snapshotted,
            Err(why) => self.warn(&format!("The pod is neither saved nor restored: {why}")),
        }
        let mut from = None;
        if let Some(snapshotted) = &self.snapshotted {
            match snapshotted.find().await {
                Ok(found) => from = found.map(|snapshot| snapshot.id().clone()),
                Err(why) => self.warn(&format!(
                    "No PodSnapshot is restored, the pod starts anew: {why}"
                )),
            }
        }
        self.launch(from).await;
    }

    async fn launch(&mut self, from: Option<SnapshotId>) {
        let verb = match from {
            Some(_) => "Restoring the pod",
            None => "Started the pod",
        };
        // runsc makes paths of it that must be short, so it is no name.
        let id = uuid::Uuid::new_v4().simple().to_string();
        let launched = match self.node.sandbox_dir(&id) {
            Err(why) => Err(why),
            Ok(dir) => match self.try_launch(&id, dir.clone(), from) {
                Ok(running) => Ok(running),
                Err(why) => {
                    self.node.delete(&dir, &id).await;
                    Err(why)
                }
            },
        };
        match launched {
            Ok(running) => {
                self.running = Some(running);
                self.events.normal(&self.pod, "Started", verb);
            }
            Err(why) => {
                let what = format!("The pod cannot be started: {why}");
                self.events.warning(&self.pod, "Failed", &what);
            }
        }
    }

    fn try_launch(
        &self,
        id: &str,
        dir: PathBuf,
        from: Option<SnapshotId>,
    ) -> Result<Running, String> {
        let mut annotations = json!({});
        let mut saving = None;
        if let Some(snapshotted) = &self.snapshotted
            && snapshotted.saves_itself()
        {
            let next = new_id();
            let image = snapshotted.image_of_its_own(&dir, &next)?;
            annotations = snapshotted.annotations(&image);
            saving = Some(next);
        }
        bundle::write(&dir, &self.pod, &annotations)?;
        let bundle = dir.to_string_lossy().into_owned();
        let stdout = self.node.pod_log(&self.pod)?;
        let child = match (&from, &self.snapshotted) {
            (Some(snapshot), Some(snapshotted)) => {
                let image = snapshotted.image(&dir, "restore", snapshot)?;
                let image = image.to_string_lossy().into_owned();
                let args = ["restore", "--background", "--image-path", &image];
                let args = [&args[..], &["-bundle", &bundle]].concat();
                self.node.start(&dir, id, &args, stdout)?
            }
            _ => self
                .node
                .start(&dir, id, &["run", "-bundle", &bundle], stdout)?,
        };
        Ok(Running {
            id: id.to_owned(),
            dir,
            child,
            saving,
            restoring: from,
            log_read: 0,
        })
    }

    /// Looks what has become of it.
    async fn watch(&mut self) {
        self.watch_saving().await;
        let Some(running) = &mut self.running else {
            return;
        };
        if let Ok(Some(status)) = running.child.try_wait() {
            // What it still had to say about its snapshot.
            self.watch_saving().await;
            self.ended(status).await;
        } else if running.restoring.is_some() && self.is_running().await {
            self.restored();
        }
    }

    async fn ended(&mut self, status: ExitStatus) {
        let Some(running) = &self.running else {
            return;
        };
        let why = running.last_error();
        match &running.restoring {
            // A job may be restored and end at once. If it failed at once, it is taken for one that was not restored.
            Some(_) if status.success() => self.restored(),
            Some(snapshot) => {
                let name = self.snapshot_name(snapshot);
                self.warn(&format!(
                    "Failed to restore the pod from PodSnapshot {name}, falling back to a cold start: {why}"
                ));
                self.clear().await;
                return self.launch(None).await;
            }
            None => {}
        }
        let how = format!("The pod has ended: {status}");
        match status.success() {
            true => self.events.normal(&self.pod, "Completed", &how),
            false => self.events.warning(&self.pod, "Failed", &how),
        }
        self.clear().await;
    }

    fn restored(&mut self) {
        let restoring = self.running.as_mut().and_then(|r| r.restoring.take());
        if let Some(snapshot) = restoring {
            let name = self.snapshot_name(&snapshot);
            let what = format!("Successfully restored the pod from PodSnapshot {name}");
            self.events.normal(&self.pod, SNAPSHOTTING, &what);
        }
    }

    /// Reads what the gofer logs about the snapshot that the pod saves itself into.
    async fn watch_saving(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let new = running.new_log();
        let Some(snapshot) = running.saving.clone() else {
            return;
        };
        // Gofers of other saves, and of the restore, log into the same file.
        let mut about = new.lines().filter(|line| line.contains(snapshot.as_str()));
        let how = about.find_map(|line| {
            let failed = NOT_SAVED.iter().any(|word| line.contains(word));
            match line.contains(COMMITTED) {
                true => Some(None),
                false => failed.then(|| Some(line.to_owned())),
            }
        });
        if let Some(failed) = how {
            running.saving = None;
            self.tell(&snapshot, failed).await;
        }
    }

    /// Says how a save ended, as the store knows it.
    async fn tell(&self, snapshot: &SnapshotId, failed: Option<String>) {
        let Some(snapshotted) = &self.snapshotted else {
            return;
        };
        let name = self.snapshot_name(snapshot);
        let why = match (failed, snapshotted.state(snapshot).await) {
            (_, Ok(Some(state))) if state.status == Status::Available => {
                let what = format!("Successfully checkpointed the pod to PodSnapshot {name}");
                return self.events.normal(&self.pod, SNAPSHOTTING, &what);
            }
            (Some(why), _) => why,
            (None, Ok(state)) => {
                let reason = state.and_then(|state| state.reason);
                reason.unwrap_or_else(|| "it is not in the store".to_owned())
            }
            (None, Err(why)) => why,
        };
        self.warn(&format!(
            "Failed to checkpoint the pod to PodSnapshot {name}: {why}"
        ));
        snapshotted.note_failure(snapshot, &why).await;
    }

    /// Saves it now, because somebody asks for it.
    async fn checkpoint(&mut self, resources: &Resources) {
        // The policy may be newer than the pod.
        if self.snapshotted.is_none() {
            match Snapshotted::of(&self.node, resources, &self.pod) {
                Ok(snapshotted) => self.snapshotted = snapshotted,
                Err(why) => return self.warn(&format!("The pod is not saved: {why}")),
            }
        }
        let Some(snapshotted) = &self.snapshotted else {
            return self.warn("No policy is for this pod: it is not saved");
        };
        let Some(Running { id, dir, .. }) = &self.running else {
            return self.warn("The pod does not run: it is not saved");
        };
        let snapshot = new_id();
        let image = match snapshotted.image(dir, snapshot.as_str(), &snapshot) {
            Ok(image) => image.to_string_lossy().into_owned(),
            Err(why) => return self.warn(&format!("The pod is not saved: {why}")),
        };
        let mut args = vec!["checkpoint", "-exclude-committed-zero-pages"];
        if snapshotted.resumes() {
            args.push("-leave-running");
        }
        args.extend(["--image-path", &image, id]);
        let failed = match self.node.runsc(dir, &args).await {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(why) => Some(why),
        };
        self.tell(&snapshot, failed).await;
    }

    /// Ends it, whatever it does.
    async fn end(&mut self) {
        let Some(Running { id, dir, child, .. }) = &mut self.running else {
            return;
        };
        let _ = self.node.runsc(dir, &["delete", "-force", id]).await;
        let _ = child.kill();
        let _ = child.wait();
        let _ = tokio::time::timeout(LAST_WORDS, self.watch_saving()).await;
        self.clear().await;
    }

    /// Removes what is left of it.
    async fn clear(&mut self) {
        if let Some(running) = self.running.take() {
            self.node.delete(&running.dir, &running.id).await;
        }
    }

    /// Whether it was started, and does not run yet.
    async fn is_starting(&self) -> bool {
        self.running.is_some() && !self.is_running().await
    }

    async fn is_running(&self) -> bool {
        let Some(running) = &self.running else {
            return false;
        };
        let args = ["state", &running.id];
        let state = self.node.runsc(&running.dir, &args).await;
        state.is_ok_and(|output| {
            let state: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_default();
            state["status"] == "running"
        })
    }

    fn snapshot_name(&self, snapshot: &SnapshotId) -> String {
        format!("{}/{snapshot}", self.pod.metadata.namespace)
    }

    fn warn(&self, message: &str) {
        self.events.warning(&self.pod, SNAPSHOTTING, message);
    }
}

impl Running {
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
