//! Processes that the demo starts, none of which may outlive it, and waiting for what they do.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Pid;
use tokio_util::sync::CancellationToken;

use super::log::Log;
use crate::exit::Failure;

/// Between two looks at what is waited for.
const TICK: Duration = Duration::from_millis(10);

/// A child that is killed, and waited for, when this is dropped.
pub struct Running(Child);

impl Running {
    /// Starts a command that writes to `log`. An interrupt at the terminal does not reach it: the demo ends it in good order.
    pub fn start(command: &mut Command, log: &Log) -> io::Result<Self> {
        let (out, err) = log.create()?;
        command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map(Self)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until `ready`; returns whether that came before `timeout`.
pub async fn until(
    mut ready: impl FnMut() -> bool,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<bool, Failure> {
    let deadline = Instant::now() + timeout;
    while !ready() {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        pause(TICK, cancel).await?;
    }
    Ok(true)
}

/// Lets time pass.
pub async fn pause(time: Duration, cancel: &CancellationToken) -> Result<(), Failure> {
    tokio::select! {
        () = cancel.cancelled() => Err(Failure::interrupted()),
        () = tokio::time::sleep(time) => Ok(()),
    }
}
