//! A gVisor sandbox as the pod: checkpointed by `runsc` while it runs, and restored by `runsc` from what came out of the store.
//!
//! The sandbox has the host's root file system, read-only, and a tmpfs for the pod's files. It needs no network and no cgroup.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    compare::Comparison,
    log::Log,
    running::{Running, until},
};
use crate::{exit::Failure, source::SourceArg};

/// Time any one thing may take that takes gVisor a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time the sandbox gets to end in good order.
const GRACE: Duration = Duration::from_secs(20);

const FLAGS: [&str; 4] = [
    "--platform=systrap",
    "--network=none",
    "--ignore-cgroups",
    "--overlay2=root:memory",
];

/// The files of an image directory.
const IMAGE: [&str; 3] = ["checkpoint.img", "pages_meta.img", "pages.img"];

/// Ends sandboxes when their `runsc` ends, that when we do, and keeps their mounts to themselves: even if we are killed nothing is left.
const LEASH: [&str; 5] = ["unshare", "--mount", "setpriv", "--pdeathsig", "KILL"];

/// The pod and its sandbox.
pub struct Sandbox {
    runsc: PathBuf,
    scratch: PathBuf,
    id: String,
    log: Log,
    child: Option<Running>,
    /// The first number that the pod can have been frozen at, and the last.
    frozen: (u64, u64),
    cancel: CancellationToken,
}

/// The `runsc` to use, or why there can be no sandbox.
pub fn find_runsc() -> Result<PathBuf, String> {
    let on_path = env::var_os("PATH").map(|path| {
        env::split_paths(&path)
            .map(|dir| dir.join("runsc"))
            .collect()
    });
    let mut places: Vec<PathBuf> = on_path.unwrap_or_default();
    places.extend(cache().map(|dir| dir.join("bin/runsc")));
    let found = places.into_iter().find(|path| path.is_file());
    match found {
        None => Err("runsc is not installed".to_owned()),
        Some(_) if !rustix::process::geteuid().is_root() => Err("runsc needs root".to_owned()),
        Some(runsc) => Ok(runsc),
    }
}

/// Where the tests' programs are.
fn cache() -> Option<PathBuf> {
    let dir = |name| {
        env::var_os(name)
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
    };
    dir("PODSNAP_CACHE")
        .or_else(|| dir("XDG_CACHE_HOME").map(|dir| dir.join("podsnap")))
        .or_else(|| dir("HOME").map(|dir| dir.join(".cache/podsnap")))
}

impl Sandbox {
    /// Starts the pod, waits until it serves, and checkpoints it once. Any failure but an interrupt means: not on this machine.
    pub async fn start(
        runsc: PathBuf,
        scratch: &Path,
        cancel: &CancellationToken,
    ) -> Result<Self, Failure> {
        let pod = env::current_exe().map_err(|e| cannot("find its own program", e))?;
        write_bundle(&scratch.join("bundle"), &pod).map_err(|e| cannot("make a bundle", e))?;
        fs::create_dir(scratch.join("state")).map_err(|e| cannot("make a directory", e))?;
        let mut this = Self {
            runsc,
            scratch: scratch.to_owned(),
            id: format!("podsnap-demo-{}", std::process::id()),
            log: Log::new(scratch.join("pod.log")),
            child: None,
            frozen: (0, 0),
            cancel: cancel.clone(),
        };
        match this.serve_and_checkpoint().await {
            Ok(()) => Ok(this),
            Err(e) => {
                this.end().await;
                Err(e)
            }
        }
    }

    async fn serve_and_checkpoint(&mut self) -> Result<(), Failure> {
        self.launch(&["run"])?;
        self.serves(5).await?;
        self.checkpoint("first").await
    }

    /// Begins `runsc run` or `runsc restore`.
    fn launch(&mut self, args: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(LEASH[0]);
        command.args(&LEASH[1..]).arg(&self.runsc).args(FLAGS);
        command
            .arg("--root")
            .arg(self.scratch.join("state"))
            .args(args);
        command
            .arg("-bundle")
            .arg(self.scratch.join("bundle"))
            .arg(&self.id);
        self.child = Some(
            Running::start(&mut command, &self.log).map_err(|e| cannot("start a sandbox", e))?,
        );
        Ok(())
    }

    /// Runs a short `runsc` command to its end.
    async fn runsc(
        &self,
        args: &[&str],
        timeout: Duration,
        cancel: &CancellationToken,
    ) -> Result<(), Failure> {
        let log = Log::new(self.scratch.join(format!("runsc-{}.log", args[0])));
        let mut command = Command::new(&self.runsc);
        command
            .args(FLAGS)
            .arg("--root")
            .arg(self.scratch.join("state"))
            .args(args)
            .arg(&self.id);
        let mut running =
            Running::start(&mut command, &log).map_err(|e| cannot("start runsc", e))?;
        let mut status = None;
        let ended = || {
            status = running.ended();
            status.is_some()
        };
        until(ended, timeout, cancel).await?;
        match status {
            Some(status) if status.success() => Ok(()),
            _ => {
                let why = log
                    .complaint()
                    .unwrap_or_else(|| "it gives no reason".to_owned());
                Err(Failure::other(format!("runsc {} failed: {why}", args[0])))
            }
        }
    }

    async fn serves(&mut self, count: u64) -> Result<(), Failure> {
        let (child, log) = (&mut self.child, &self.log);
        let mut ended = false;
        let ready = || {
            ended = child.as_mut().is_none_or(|child| child.ended().is_some());
            ended || log.count() >= count
        };
        if until(ready, PATIENCE, &self.cancel).await? && !ended {
            return Ok(());
        }
        let why = self
            .log
            .complaint()
            .unwrap_or_else(|| "the pod in it does not serve".to_owned());
        Err(Failure::other(format!("the sandbox failed: {why}")))
    }

    /// Writes the pod's state to an image directory; the pod runs on.
    pub async fn checkpoint(&mut self, image: &str) -> Result<(), Failure> {
        let dir = self.scratch.join(image);
        fs::create_dir(&dir).map_err(|e| cannot("make an image directory", e))?;
        let before = self.count();
        let path = dir.display().to_string();
        let args = [
            "checkpoint",
            "-leave-running",
            "-compression=none",
            "-image-path",
            &path,
        ];
        self.runsc(&args, PATIENCE, &self.cancel).await?;
        self.frozen = (before, self.count());
        Ok(())
    }

    /// The number it has counted to.
    pub fn count(&self) -> u64 {
        self.log.count()
    }

    /// The least it had counted to when it was checkpointed.
    pub fn frozen_at(&self) -> u64 {
        self.frozen.0
    }

    /// What is saved of a checkpoint.
    pub fn sources(&self, image: &str) -> Vec<SourceArg> {
        vec![SourceArg::Image(self.scratch.join(image))]
    }

    /// Compares a restored image directory with the one that runsc wrote.
    pub fn compare(&self, image: &str, restored: &Path) -> Result<Comparison, Failure> {
        let mut comparison = Comparison::new(&self.cancel);
        for file in IMAGE {
            comparison.file(&self.scratch.join(image).join(file), &restored.join(file))?;
        }
        Ok(comparison)
    }

    /// Ends the sandbox and has runsc make a new one of what was restored. Returns the numbers the pod counts in it.
    pub async fn revive(&mut self, restored: &Path) -> Result<Vec<u64>, Failure> {
        self.end().await;
        self.id.push_str("-restored");
        self.log = Log::new(self.log.out.with_file_name("restored.log"));
        self.launch(&["restore", "-image-path", &restored.display().to_string()])?;
        self.serves(1).await?;
        let log = &self.log;
        until(|| log.counts().len() >= 3, PATIENCE, &self.cancel).await?;
        Ok(self.log.counts())
    }

    /// Whether this is the number that follows the one at which the pod was frozen.
    pub fn follows(&self, count: u64) -> bool {
        (self.frozen.0 + 1..=self.frozen.1 + 1).contains(&count)
    }

    /// Ends the sandbox, also after an interrupt.
    pub async fn end(&mut self) {
        if self.child.is_some() {
            // An error changes nothing: without its runsc the sandbox ends anyway.
            let _ = self
                .runsc(&["delete", "-force"], GRACE, &CancellationToken::new())
                .await;
            self.child = None;
        }
    }
}

fn write_bundle(dir: &Path, pod: &Path) -> std::io::Result<()> {
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let config = json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": [pod, "demo-pod", "/dev/shm"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
        },
        "root": { "path": "/", "readonly": true },
        "hostname": "podsnap-demo",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"],
            },
        ],
        "linux": {
            "namespaces": namespaces,
        },
    });
    fs::create_dir(dir)?;
    fs::write(dir.join("config.json"), config.to_string())
}

fn cannot(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::other(format!("the demo cannot {what}: {e}"))
}
