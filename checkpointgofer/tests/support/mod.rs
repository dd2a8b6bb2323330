//! A node with a real runsc that starts our gofer: pods of it are started, checkpointed and restored.
#![allow(dead_code)]

#[path = "../../../tests/support/noise.rs"]
pub mod noise;
#[path = "../../../tests/support/provisioned.rs"]
mod provisioned;
pub mod sentry;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use provisioned::skipped;
use provisioned::{cache, provisioned};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

const GOFER: &str = env!("CARGO_BIN_EXE_checkpointgofer");

/// The bundle of a reference pod, if it is there; says so if not.
pub fn bundle(pod: &str) -> Option<PathBuf> {
    let config = provisioned(&format!("pod/{pod}/config.json"))?;
    config.parent().map(Path::to_owned)
}

/// Waits until something is so, or fails.
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "it never came to {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A directory with images, sandboxes' state and logs, and what sandboxes are started with.
pub struct Node {
    dir: TempDir,
    runsc: PathBuf,
    /// The directory where runsc looks for its sidecars.
    sidecars: &'static str,
    /// Where changes of the root file system go.
    overlay: String,
    env: Vec<(String, String)>,
}

impl Node {
    /// `None`, having said why, where no sandbox can run.
    pub fn new() -> Option<Self> {
        let runsc = cache().join("bin/runsc");
        let why = if !rustix::process::geteuid().is_root() {
            "runsc needs root"
        } else if !runsc.exists() || !cache().join("pod/small/config.json").exists() {
            "tests/provision.sh has made no runsc or no pod"
        } else {
            let dir = tempfile::tempdir().expect("a directory");
            for name in ["state", "gofer", "none"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            std::os::unix::fs::symlink(GOFER, dir.path().join("gofer/checkpointgofer")).unwrap();
            return Some(Self {
                dir,
                runsc,
                sidecars: "gofer",
                overlay: "root:memory".to_owned(),
                env: Vec::new(),
            });
        };
        skipped(&format!("checkpoints of a pod: {why}"));
        None
    }

    /// From now on runsc starts the gofer that Google wrote, which is built into it, or ours again.
    pub fn use_gofer_of_google(&mut self, google: bool) {
        self.sidecars = if google { "none" } else { "gofer" };
    }

    /// From now on changes of root file systems go to files on disk, not to memory.
    pub fn keep_changes_on_disk(&mut self) {
        fs::create_dir(self.path("overlay")).unwrap();
        self.overlay = format!("root:dir={}", self.text("overlay"));
    }

    /// Makes a bundle whose container runs a Python program, with annotations.
    pub fn bundle(&self, name: &str, program: &str, annotations: &Value) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        let path = dir.join("program.py");
        fs::write(&path, program).unwrap();
        let like = fs::read(cache().join("pod/small/config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&like).unwrap();
        let last = config["process"]["args"].as_array_mut().unwrap();
        *last.last_mut().unwrap() = path.to_str().unwrap().into();
        config["root"]["readonly"] = false.into();
        config["annotations"] = annotations.clone();
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    }

    /// Sandboxes and gofers have this in their environment.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file system path as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// Makes an image path that holds these options and nothing else.
    pub fn image(&self, name: &str, options: &Value) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("gcs_opts.json"), options.to_string()).unwrap();
        dir
    }

    /// Kills the gofer that is running for this node, as soon as it is.
    #[track_caller]
    pub fn kill_gofer(&self) {
        let mut found = None;
        wait_until("a gofer", || {
            found = self.gofers().pop();
            found.is_some()
        });
        kill_process(found.expect("waited for"), Signal::KILL).unwrap();
    }

    /// The gofers that are running for this node.
    pub fn gofers(&self) -> Vec<Pid> {
        let program = fs::canonicalize(GOFER).unwrap();
        let mine = format!("GVISOR_SIDECAR_BINARIES_DIR={}", self.text("gofer"));
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let dir = entry.ok()?.path();
            let pid: i32 = dir.file_name()?.to_str()?.parse().ok()?;
            let environ = fs::read(dir.join("environ")).ok()?;
            let is_mine = environ.split(|b| *b == 0).any(|v| v == mine.as_bytes());
            (fs::read_link(dir.join("exe")).ok()? == program && is_mine).then_some(pid)
        });
        pids.filter_map(Pid::from_raw).collect()
    }

    /// The gofers' log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("gofer.log")).unwrap_or_default()
    }

    /// Flags that all commands about a sandbox must share.
    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = [
            "--platform=systrap",
            "--network=none",
            "--ignore-cgroups",
            // What runsc says goes to the same file as what the gofer does.
            "--log-format=text",
        ]
        .map(str::to_owned)
        .into();
        flags.push(format!("--overlay2={}", self.overlay));
        flags.push(format!("--log={}", self.text("gofer.log")));
        flags.push(format!("--root={}", self.text("state")));
        flags
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("GVISOR_SIDECAR_BINARIES_DIR", self.path(self.sidecars))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
    }

    /// Runs a command about a sandbox to its end, which comes.
    pub fn runsc(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", "60"])
            .arg(&self.runsc)
            .args(self.flags())
            .args(args);
        self.prepare(&mut command);
        command.output().expect("timeout runs")
    }

    /// Runs it, and it must succeed.
    #[track_caller]
    pub fn runsc_ok(&self, args: &[&str]) {
        let output = self.runsc(args);
        assert!(
            output.status.success(),
            "{args:?}: {:?}\n{}",
            output,
            self.log()
        );
    }

    /// Starts a sandbox that goes on in the background: `runsc ARGS... ID`.
    pub fn start(&self, id: &str, args: &[&str]) -> Pod<'_> {
        self.start_bundle(id, &cache().join("pod/small"), args)
    }

    /// The same with another bundle.
    pub fn start_bundle(&self, id: &str, bundle: &Path, args: &[&str]) -> Pod<'_> {
        let log = self.path(&format!("{id}.log"));
        let file = |path: &Path| File::create(path).unwrap();
        let errors = self.path(&format!("{id}.err"));
        // The mount that runsc makes in its state directory must not be seen elsewhere, and the sandbox must not outlive the test.
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "setpriv", "--pdeathsig", "KILL"])
            .arg(&self.runsc)
            .args(self.flags())
            .arg(args[0])
            .arg("-bundle")
            .arg(bundle)
            .args(&args[1..])
            .arg(id)
            .stdout(file(&log))
            .stderr(file(&errors));
        self.prepare(&mut command);
        let child = command.stdin(Stdio::null()).spawn().expect("unshare runs");
        Pod {
            node: self,
            id: id.to_owned(),
            log,
            errors,
            child,
        }
    }
}

/// A sandbox, which ends with this.
pub struct Pod<'a> {
    node: &'a Node,
    id: String,
    log: PathBuf,
    errors: PathBuf,
    child: Child,
}

impl Pod<'_> {
    /// What the pod printed. A restored one goes on at its old offset, so the front may be a hole.
    pub fn printed(&self) -> String {
        let bytes = fs::read(&self.log).unwrap();
        let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What runsc said, and the gofers.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.errors).unwrap() + &self.node.log()
    }

    /// The numbers that it has counted.
    pub fn counts(&self) -> Vec<u64> {
        let printed = self.printed();
        let numbers = printed
            .lines()
            .filter_map(|line| line.strip_prefix("count "));
        numbers.filter_map(|number| number.parse().ok()).collect()
    }

    /// The last of them, or 0.
    pub fn count(&self) -> u64 {
        self.counts().last().copied().unwrap_or_default()
    }

    /// Waits until it has counted so far.
    #[track_caller]
    pub fn wait_for_count(&mut self, least: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.count() < least {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the pod ended: {}", self.said());
            assert!(
                Instant::now() < deadline,
                "the pod stays at {}: {}",
                self.count(),
                self.said()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the sandbox has ended, and says whether it ended well.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> bool {
        let mut ended = None;
        wait_until("the sandbox's end", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        });
        ended.unwrap().success()
    }

    /// Panics unless it goes on from `reached`, one by one.
    #[track_caller]
    pub fn assert_resumed_after(&mut self, reached: u64) {
        self.wait_for_count(reached + 3);
        let printed = self.printed();
        assert!(!printed.contains("started"), "it started anew: {printed}");
        let counts = self.counts();
        assert!(counts[0] > reached, "{counts:?} after {reached}");
        let expected: Vec<u64> = (counts[0]..).take(counts.len()).collect();
        assert_eq!(counts, expected);
    }

    /// `runsc checkpoint FLAGS... --image-path IMAGE`.
    pub fn checkpoint(&self, image: &Path, flags: &[&str]) -> Output {
        let image = image.to_str().expect("UTF-8");
        let mut args = vec!["checkpoint", "-exclude-committed-zero-pages"];
        args.extend_from_slice(flags);
        args.extend_from_slice(&["--image-path", image, &self.id]);
        self.node.runsc(&args)
    }

    /// The same, which must succeed.
    #[track_caller]
    pub fn checkpoint_ok(&self, image: &Path, flags: &[&str]) {
        let output = self.checkpoint(image, flags);
        assert!(output.status.success(), "{output:?}\n{}", self.said());
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let _ = self.node.runsc(&["delete", "-force", &self.id]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
