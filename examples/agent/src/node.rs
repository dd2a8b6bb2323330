//! The node: its runsc and the gofer, and the directories that the agent works in.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

pub struct Node {
    runsc: PathBuf,
    gofer: PathBuf,
    run: PathBuf,
    tokens: Option<PathBuf>,
    /// Address of the statsd server that gofers send their metrics to.
    pub statsd: Option<String>,
    /// What runsc says of itself; snapshots are restored by the same only.
    pub runsc_version: String,
}

impl Node {
    pub fn new(
        runsc: &Path,
        gofer: &Path,
        run: &Path,
        tokens: Option<PathBuf>,
        statsd: Option<String>,
    ) -> Result<Self, String> {
        for dir in ["state", "pods"] {
            let dir = run.join(dir);
            fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        }
        // runsc does not say when its own gofer takes the place of one that is missing.
        let program = gofer.join("checkpointgofer");
        fs::metadata(&program).map_err(|e| format!("{}: {e}", program.display()))?;
        let shown = runsc.display();
        let said = Command::new(runsc).arg("--version").output();
        let said = said.map_err(|e| format!("{shown} cannot be run: {e}"))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.lines().next().unwrap_or_default();
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| e.to_string());
        Ok(Self {
            runsc: runsc.to_owned(),
            gofer: absolute(gofer)?,
            run: absolute(run)?,
            tokens,
            statsd,
            runsc_version: version.trim_start_matches("runsc version ").to_owned(),
        })
    }

    /// The token of a service account, if the node has one. Its name was checked: it is no path.
    pub fn token(&self, service_account: &str) -> Result<Option<String>, String> {
        let Some(dir) = &self.tokens else {
            return Ok(None);
        };
        let file = dir.join(service_account);
        match fs::read_to_string(&file) {
            Ok(token) => Ok(Some(token.trim().to_owned())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
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
    pub fn pod_log(&self, pod: &str) -> Result<File, String> {
        let path = self.run.join(format!("{pod}.log"));
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

    /// A command about a sandbox, which ends by itself.
    pub fn command(&self, dir: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runsc);
        self.arguments(&mut command, dir);
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn runsc(&self, dir: &Path, args: &[&str]) -> Result<Output, String> {
        let output = self.command(dir, args).output();
        output.map_err(|e| format!("runsc cannot be run: {e}"))
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
