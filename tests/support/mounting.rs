//! `podsnap mount` under test: started, waited for, and taken away whatever becomes of the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;

use super::tool::{Outcome, Running, Tool};

/// Whether file systems of our own can be mounted here; says so if not.
pub fn can_mount() -> bool {
    let can = Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !can {
        super::skipped("mounting snapshots: needs root and /dev/fuse");
    }
    can
}

pub fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == dir.to_str())
}

/// A `podsnap mount` that is ready; taken away when it is dropped.
pub struct Mounting {
    dir: PathBuf,
    running: Option<Running>,
}

impl Mounting {
    pub fn start(tool: &Tool, snapshot: &str, more: &[&str]) -> Self {
        Self::of(
            tool,
            tool.command(&[&["mount", snapshot, "mnt"], more].concat()),
        )
    }

    /// Of a command that mounts on `mnt`.
    pub fn of(tool: &Tool, command: Command) -> Self {
        Self::on(&tool.path("mnt"), command)
    }

    /// Of a command that mounts on `dir`, which is made.
    pub fn on(dir: &Path, command: Command) -> Self {
        let dir = dir.to_owned();
        fs::create_dir_all(&dir).unwrap();
        let mut running = Running::start(command);
        running.wait_until("the mount", || is_mounted(&dir));
        Self {
            dir,
            running: Some(running),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills it, and leaves the mount that nobody serves any more.
    pub fn kill(&mut self) {
        let running = self.running.as_mut().unwrap();
        running.signal(Signal::KILL);
        running.child().wait().unwrap();
    }

    /// Ends it by a signal.
    pub fn end(mut self, signal: Signal) -> Outcome {
        let mut running = self.running.take().unwrap();
        running.signal(signal);
        running.finish()
    }

    /// Ends it by unmounting.
    pub fn umount(mut self) -> Outcome {
        let done = Command::new("umount").arg(&self.dir).status().unwrap();
        assert!(done.success());
        self.running.take().unwrap().finish()
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        if is_mounted(&self.dir) {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
    }
}
