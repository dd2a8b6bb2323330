//! Which process holds a lease, and whether it still lives, as far as this machine can tell.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process, told apart from all others at all times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of the machine, for people.
    pub host: String,
    /// Random id of the machine's current boot.
    pub boot: String,
    /// The namespace that `pid` counts in.
    pub pid_namespace: String,
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub started: u64,
}

impl Holder {
    pub(crate) fn this_process() -> Option<Self> {
        let read = |path: &str| {
            fs::read_to_string(path)
                .ok()
                .map(|text| text.trim().to_owned())
        };
        let pid = std::process::id();
        Some(Self {
            host: read("/proc/sys/kernel/hostname")?,
            boot: read("/proc/sys/kernel/random/boot_id")?,
            pid_namespace: fs::read_link("/proc/self/ns/pid")
                .ok()?
                .to_str()?
                .to_owned(),
            pid,
            started: parse_started(&read("/proc/self/stat")?)?,
        })
    }

    /// Whether the process is certainly gone. Of other machines and namespaces nothing is certain.
    pub(crate) fn is_dead(&self) -> bool {
        Self::this_process().is_some_and(|this| {
            this.boot == self.boot
                && this.pid_namespace == self.pid_namespace
                && match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
                    Ok(stat) => parse_started(&stat) != Some(self.started),
                    // /proc may hide the processes of others (hidepid, see proc(5)).
                    Err(_) => no_process(self.pid),
                }
        })
    }
}

fn no_process(pid: u32) -> bool {
    // Larger numbers than the kernel knows are no process's.
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// When a living process started (proc_pid_stat(5), field 22); zombies do not live.
fn parse_started(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z" && state != "X")
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_gone_when_there_is_none_and_not_when_it_is_somebody_elses() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(no_process(child.id()));
        assert!(no_process(u32::MAX));
        for lives in [1, std::process::id()] {
            assert!(!no_process(lives), "{lives}");
        }
    }
}
