//! The node: its runsc and the gofer, and the directories that the agent works in.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use podsnap::policy::Pod;

use crate::Args;

pub struct Node {
    runsc: PathBuf,
    gofer: PathBuf,
    run: PathBuf,
    tokens: Option<PathBuf>,
    /// Address of the statsd server that gofers send their metrics to.
    pub statsd: Option<String>,
    /// What runsc says of itself; snapshots are restored by the same only.
    pub runsc_version: String,
    /// Held as long as the agent lives: a second one would run every pod once more.
    _lock: File,
}

impl Node {
    pub fn new(args: &Args) -> Result<Self, String> {
        let run = &args.run;
        for dir in ["state", "pods"] {
            let dir = run.join(dir);
            fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        let lock = run.join("lock");
        let locked = File::create(&lock).map_err(|e| e.to_string());
        let locked = locked.and_then(|lock| match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(e) => Err(format!("another agent works there: {e}")),
        });
        // runsc does not say when its own gofer takes the place of one that is missing.
        let program = args.gofer.join("checkpointgofer");
        fs::metadata(&program).map_err(|e| format!("{}: {e}", program.display()))?;
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| e.to_string());
        Ok(Self {
            runsc_version: version(&args.runsc)?,
            runsc: args.runsc.clone(),
            gofer: absolute(&args.gofer)?,
            run: absolute(run)?,
            tokens: args.tokens.clone(),
            statsd: args.statsd.clone(),
            _lock: locked.map_err(|e| format!("{}: {e}", lock.display()))?,
        })
    }

    /// Ends what an agent that was killed has left behind.
    pub async fn clear(&self) -> Result<(), String> {
        let listed = self.runsc(&self.run, &["list", "-quiet"]).await?;
        if !listed.status.success() {
            let why = String::from_utf8_lossy(&listed.stderr);
            return Err(format!("runsc cannot list its sandboxes: {}", why.trim()));
        }
        for id in String::from_utf8_lossy(&listed.stdout).lines() {
            eprintln!("agent: the sandbox {id}, which nobody watched, is ended");
            self.runsc(&self.run, &["delete", "-force", id]).await?;
        }
        let pods = self.run.join("pods");
        let cleared = fs::remove_dir_all(&pods).and_then(|()| fs::create_dir(&pods));
        cleared.map_err(|e| format!("{}: {e}", pods.display()))
    }

    /// The token of a pod's service account. Nothing if tokens come from elsewhere; a pod never gets the node's own in place of one that is missing.
    pub fn token(&self, pod: &Pod) -> Result<Option<String>, String> {
        let Some(dir) = &self.tokens else {
            return Ok(None);
        };
        // Neither name is a path, which was checked when they were read.
        let file = dir.join(&pod.metadata.namespace).join(&pod.service_account);
        match fs::read_to_string(&file) {
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(e) => Err(format!("{}: {e}", file.display())),
        }
    }

    /// A new directory for one sandbox.
    pub fn sandbox_dir(&self, id: &str) -> Result<PathBuf, String> {
        let dir = self.run.join("pods").join(id);
        fs::create_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        Ok(dir)
    }

    /// Where a pod prints to. A restored one goes on at its old place in its new file, so the front is empty.
    pub fn pod_log(&self, pod: &Pod) -> Result<File, String> {
        // No name has a `_`, so that no two pods have one log.
        let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
        let path = self.run.join(format!("{namespace}_{name}.log"));
        let mut options = OpenOptions::new();
        let opened = options.create(true).write(true).truncate(true).open(&path);
        opened.map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Starts a sandbox, which goes on by itself: `runsc ARGS... ID`. runsc and its gofer log into `dir`.
    pub fn start(
        &self,
        dir: &Path,
        id: &str,
        args: &[&str],
        stdout: File,
    ) -> Result<Child, String> {
        let errors = File::create(dir.join("stderr")).map_err(|e| e.to_string())?;
        // The mount that runsc makes in its state directory is not seen elsewhere.
        let mut command = Command::new("unshare");
        command.arg("--mount").arg(&self.runsc);
        self.arguments(&mut command, dir);
        command.args(args).arg(id).stdout(stdout).stderr(errors);
        let started = command.stdin(Stdio::null()).spawn();
        started.map_err(|e| format!("runsc cannot be started: {e}"))
    }

    /// Runs a command about sandboxes to its end.
    pub async fn runsc(&self, dir: &Path, args: &[&str]) -> Result<Output, String> {
        let mut command = Command::new(&self.runsc);
        self.arguments(&mut command, dir);
        command.args(args).stdin(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.output()).await;
        let ended = ended.map_err(|e| e.to_string())?;
        ended.map_err(|e| format!("runsc cannot be run: {e}"))
    }

    /// Ends a sandbox, whatever it does, and removes what is left of it.
    pub async fn delete(&self, dir: &Path, id: &str) {
        let _ = self.runsc(dir, &["delete", "-force", id]).await;
        if let Err(e) = fs::remove_dir_all(dir) {
            eprintln!("agent: {}: {e}", dir.display());
        }
    }

    fn arguments(&self, command: &mut Command, dir: &Path) {
        command
            .env("GVISOR_SIDECAR_BINARIES_DIR", &self.gofer)
            .arg("--root")
            .arg(self.run.join("state"))
            .arg("--log")
            .arg(dir.join("runsc.log"))
            .args([
                "--log-format=text",
                "--platform=systrap",
                "--network=none",
                "--ignore-cgroups",
                "--overlay2=root:memory",
            ]);
    }
}

fn version(runsc: &Path) -> Result<String, String> {
    let shown = runsc.display();
    let said = Command::new(runsc).arg("--version").output();
    let said = said.map_err(|e| format!("{shown} cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let first = said.lines().next().unwrap_or_default();
    match first.strip_prefix("runsc version ") {
        Some(version) => Ok(version.to_owned()),
        None => Err(format!("{shown} says {first:?} for its version")),
    }
}
