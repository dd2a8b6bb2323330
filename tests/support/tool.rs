//! The command line under test: the built program, run in a scratch directory with a store and a home of its own.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user who owns nothing.
const NOBODY: u32 = 65534;

/// A scratch directory in which `podsnap` runs, with the store `store` and the home `home`.
pub struct Tool {
    scratch: TempDir,
}

impl Tool {
    pub fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        set_mode(scratch.path(), 0o755);
        fs::create_dir(scratch.path().join("home")).unwrap();
        Self { scratch }
    }

    /// The directory it runs in.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Makes a file in the directory.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Makes a FIFO in the directory.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        make_fifo(&path);
        path
    }

    /// `podsnap` with these arguments, and nothing of the tester's environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podsnap"));
        self.prepare(&mut command, args);
        command
    }

    fn prepare(&self, command: &mut Command, args: &[&str]) {
        command
            .args(args)
            .current_dir(self.dir())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("PODSNAP_STORE", self.path("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// The same as a user who may do nothing that the modes of files forbid.
    pub fn command_as_nobody(&self, args: &[&str]) -> Command {
        if !rustix::process::geteuid().is_root() {
            return self.command(args);
        }
        // The program itself may lie where only root comes.
        let program = self.path("podsnap");
        if !program.exists() {
            fs::copy(env!("CARGO_BIN_EXE_podsnap"), &program).unwrap();
        }
        let mut command = Command::new(program);
        self.prepare(&mut command, args);
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    /// Runs `podsnap` to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        finish(self.command(args))
    }

    /// Runs `podsnap` with these bytes as its standard input.
    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(args);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A program that refuses its arguments reads nothing.
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let outcome = Outcome::of(&command, child.wait_with_output().unwrap());
        writer.join().unwrap();
        outcome
    }

    /// Runs `podsnap --json`, which must succeed: the document that it prints.
    pub fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["--json"]].concat()).ok().json()
    }

    /// Saves, which must succeed, without waiting for the disk.
    pub fn save(&self, snapshot: &str, sources: &[&str]) -> Value {
        self.json(&[&["save", "--no-sync", snapshot], sources].concat())
    }

    /// Restores into a new directory, which must succeed: where it is.
    pub fn restore(&self, snapshot: &str, dir: &str) -> PathBuf {
        self.run(&["restore", snapshot, dir]).ok();
        self.path(dir)
    }

    /// Panics unless the snapshot verifies whole.
    #[track_caller]
    pub fn assert_sound(&self, snapshot: &str) {
        let report = self.json(&["verify", snapshot]);
        assert_eq!(report["sound"], true, "{report}");
    }

    /// The ids of snapshots that `ls` calls available, newest first.
    pub fn listed(&self) -> Vec<String> {
        let listed = self.json(&["ls"]);
        let ids = listed.as_array().expect("a list").iter();
        ids.filter(|s| s["status"] == "available")
            .map(|s| s["snapshot"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Every file in the store, by its path there.
    pub fn store_files(&self) -> Vec<String> {
        files(&self.path("store"))
    }

    /// The one pack of a snapshot.
    pub fn pack(&self, snapshot: &str) -> PathBuf {
        let dir = self.path("store").join(snapshot);
        let packs: Vec<_> = files(&dir)
            .into_iter()
            .filter(|f| f.starts_with("pack-"))
            .collect();
        assert_eq!(packs.len(), 1, "{packs:?}");
        dir.join(&packs[0])
    }

    /// Starts `podsnap` and leaves it running.
    pub fn start(&self, args: &[&str]) -> Running {
        Running::start(self.command(args))
    }
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Outcome {
    let output = command.output().unwrap();
    Outcome::of(&command, output)
}

/// What a run of `podsnap` came to.
pub struct Outcome {
    command: String,
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    fn of(command: &Command, output: Output) -> Self {
        Self::new(format!("{command:?}"), output)
    }

    fn new(command: String, output: Output) -> Self {
        Self {
            command,
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("messages are text"),
        }
    }

    /// Panics unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.ends_with(0)
    }

    /// Panics unless it ended with this code, and without a panic of its own.
    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.describe());
        assert!(!self.stderr.contains("panicked"), "{}", self.describe());
        self
    }

    /// Panics unless standard error has all these words.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?}: {}",
                self.describe()
            );
        }
        self
    }

    /// Standard output as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("no JSON document: {e}: {}", self.describe()))
    }

    /// The error as the one JSON document on standard error; nothing on standard output.
    #[track_caller]
    pub fn json_error(&self) -> Value {
        assert!(self.stdout.is_empty(), "{}", self.describe());
        let document: Value = serde_json::from_str(&self.stderr)
            .unwrap_or_else(|e| panic!("no JSON document: {e}: {}", self.describe()));
        document["error"].clone()
    }

    fn describe(&self) -> String {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(2000)]);
        format!(
            "{}\ncode {:?}\nstdout: {stdout}\nstderr: {}",
            self.command, self.code, self.stderr
        )
    }
}

/// A `podsnap` that runs; killed when it is dropped.
pub struct Running {
    child: Option<Child>,
    command: String,
    /// Kept open, so that the program's standard input stays silent.
    stdin: Option<ChildStdin>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            stdin: child.stdin.take(),
            child: Some(child),
            command: format!("{command:?}"),
        }
    }

    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("it runs")
    }

    pub fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_child(self.child());
        kill_process(pid, signal).unwrap();
    }

    /// Waits until `reached`; panics if the program ends first.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, mut reached: impl FnMut() -> bool) {
        let started = Instant::now();
        while !reached() {
            if self.child().try_wait().unwrap().is_some() {
                panic!("it ended before {what}: {}", self.take().describe());
            }
            assert!(started.elapsed() < PATIENCE, "{what} never came");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end; panics if it does not come.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let started = Instant::now();
        // What it prints fits into the pipes: progress is for terminals only.
        while self.child().try_wait().unwrap().is_none() {
            assert!(
                started.elapsed() < PATIENCE,
                "it does not end: {}",
                self.command
            );
            thread::sleep(Duration::from_millis(2));
        }
        self.take()
    }

    fn take(&mut self) -> Outcome {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        Outcome::new(self.command.clone(), output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Every file below `dir`, by its path there, sorted; empty directories too.
pub fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let below = files(&entry.path());
            if below.is_empty() {
                found.push(format!("{name}/"));
            }
            found.extend(below.iter().map(|below| format!("{name}/{below}")));
        } else {
            found.push(name);
        }
    }
    found.sort();
    found
}

pub fn make_fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(fs::metadata(path).unwrap().file_type().is_fifo());
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Turns one bit of a file over.
pub fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Whether the long tests were asked for; says so if not.
pub fn long_tests(what: &str) -> bool {
    let wanted = std::env::var_os("PODSNAP_LONG_TESTS").is_some_and(|v| v == "1");
    if !wanted {
        super::skipped(&format!("{what}: set PODSNAP_LONG_TESTS=1 to run it"));
    }
    wanted
}

/// A small file system of its own; unmounted when it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// A tmpfs of `size` bytes at `dir`, which is made; `None`, having said why, where nothing can be mounted.
    pub fn tmpfs(dir: &Path, size: u64) -> Option<Self> {
        fs::create_dir_all(dir).unwrap();
        let done = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=755"),
                "tmpfs",
            ])
            .arg(dir)
            .output();
        match done {
            Ok(output) if output.status.success() => Some(Self(dir.to_owned())),
            _ => {
                super::skipped("a file system of its own: mounting needs root");
                None
            }
        }
    }

    pub fn make_read_only(&self) {
        let done = Command::new("mount")
            .args(["-o", "remount,ro"])
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
