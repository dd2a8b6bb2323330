//! A plain process as the pod: stopped while it is saved, and continued from what was restored by another one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use podsnap::{
    Role, Snapshot,
    source::{ProcessMemory, Source},
};
use rustix::process::{Signal, kill_process};
use tokio_util::sync::CancellationToken;

use super::{
    compare::Comparison,
    log::Log,
    running::{Running, until},
};
use crate::{args::SectionName, exit::Failure, source::SourceArg};

/// Time a process gets to do what takes it milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pod and its files.
pub struct Process {
    child: Running,
    files: PathBuf,
    log: Log,
    /// Why its memory cannot be read, if it cannot.
    pub no_memory: Option<String>,
    cancel: CancellationToken,
}

impl Process {
    /// Starts the pod with new files and stops it once it serves.
    pub async fn start(scratch: &Path, cancel: &CancellationToken) -> Result<Self, Failure> {
        let files = scratch.join("files");
        fs::create_dir(&files).map_err(|e| cannot("make the pod's files", e))?;
        let log = Log::new(scratch.join("pod.log"));
        let child = spawn(&files, &log, &[])?;
        let mut this = Self {
            child,
            files,
            log,
            no_memory: None,
            cancel: cancel.clone(),
        };
        this.serves(5).await?;
        this.stop().await?;
        this.no_memory = this.try_memory().err().map(|e| e.to_string());
        Ok(this)
    }

    /// Lets it count until it has counted so far.
    async fn serves(&mut self, count: u64) -> Result<(), Failure> {
        let (child, log) = (&mut self.child, &self.log);
        let mut ended = false;
        let ready = || {
            ended = child.ended().is_some();
            ended || log.count() >= count
        };
        if until(ready, PATIENCE, &self.cancel).await? && !ended {
            return Ok(());
        }
        let why = self
            .log
            .complaint()
            .unwrap_or_else(|| "it does not serve".to_owned());
        Err(Failure::other(format!("the demo's pod failed: {why}")))
    }

    /// Whether the system lets us read its memory: some let nobody, others only debuggers.
    fn try_memory(&self) -> podsnap::Result<()> {
        self.memory()?.read_at(&mut [0; 4096], 0)
    }

    fn memory(&self) -> podsnap::Result<ProcessMemory> {
        ProcessMemory::open(self.pid())
    }

    fn pid(&self) -> u32 {
        self.child.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Stops it where it is; it has no say in it.
    pub async fn stop(&mut self) -> Result<(), Failure> {
        kill_process(self.child.pid(), Signal::STOP).map_err(|e| cannot("stop the pod", e))?;
        let stat = format!("/proc/{}/stat", self.pid());
        let stopped = || {
            let stat = fs::read_to_string(&stat).unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        match until(stopped, PATIENCE, &self.cancel).await? {
            true => Ok(()),
            false => Err(Failure::other("the demo's pod cannot be stopped")),
        }
    }

    /// Lets it go on.
    pub fn go_on(&self) -> Result<(), Failure> {
        kill_process(self.child.pid(), Signal::CONT).map_err(|e| cannot("continue the pod", e))
    }

    /// The number it has counted to.
    pub fn count(&self) -> u64 {
        self.log.count()
    }

    /// What is saved while it is stopped.
    pub fn sources(&self) -> Vec<SourceArg> {
        let section = |role| SectionName {
            role,
            name: String::new(),
        };
        let files = SourceArg::Path(section(Role::Tmpfs), self.files.clone());
        match self.no_memory {
            None => vec![SourceArg::Process(section(Role::Memory), self.pid()), files],
            Some(_) => vec![files],
        }
    }

    /// Compares what was restored with what the stopped process still has.
    pub fn compare(&self, restored: &Path) -> Result<Comparison, Failure> {
        let mut comparison = Comparison::new(&self.cancel);
        if self.no_memory.is_none() {
            comparison.source("memory", &self.memory()?, &restored.join("memory"))?;
        }
        comparison.tree(&self.files, &restored.join("tmpfs"))?;
        Ok(comparison)
    }

    /// Ends the process and lets another one take over what was restored. Returns the numbers it counts then.
    pub async fn revive(
        &mut self,
        snapshot: &Snapshot,
        restored: &Path,
    ) -> Result<Vec<u64>, Failure> {
        let state = self.log.state();
        let mut args = Vec::new();
        if self.no_memory.is_none() {
            let at = state.and_then(|(address, length)| find(snapshot, address, length));
            let at = at.ok_or_else(|| {
                Failure::other("the snapshot does not say where the pod's state is")
            })?;
            args = vec![
                "--memory".into(),
                restored.join("memory"),
                "--at".into(),
                at.to_string().into(),
            ];
        }
        self.files = restored.join("tmpfs");
        self.log = Log::new(self.log.out.with_file_name("restored.log"));
        self.child = spawn(&self.files, &self.log, &args)?;
        self.serves(1).await?;
        let log = &self.log;
        until(|| log.counts().len() >= 3, PATIENCE, &self.cancel).await?;
        Ok(self.log.counts())
    }
}

/// Runs this program as the pod. The thread that does so is the main thread: the pod dies with it.
fn spawn(files: &Path, log: &Log, args: &[PathBuf]) -> Result<Running, Failure> {
    // Even if the program's file was replaced meanwhile, this is what runs here.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("demo-pod")
        .arg(files)
        .args(["--parent", &std::process::id().to_string()])
        .args(args);
    Running::start(&mut command, log).map_err(|e| cannot("start a process", e))
}

/// Where in the memory section the bytes of an address are.
fn find(snapshot: &Snapshot, address: u64, length: u64) -> Option<u64> {
    let section = snapshot.find_section(Role::Memory, "").ok()?;
    let ranges = &snapshot.sections()[section].address_ranges;
    let range = ranges
        .iter()
        .find(|r| r.start <= address && address + length <= r.start + r.length)?;
    Some(range.section_offset + (address - range.start))
}

fn cannot(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::other(format!("the demo cannot {what}: {e}"))
}
