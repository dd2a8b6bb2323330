//! Signals: the first one asks the command to clean up and end, the second one ends it.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::{Failure, INTERRUPTED};

/// Cancels `token` at the first SIGINT, SIGTERM or SIGHUP; exits at the second.
pub fn listen(token: CancellationToken) -> Result<(), Failure> {
    let failed = |e| Failure::other(format!("cannot listen for signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(INTERRUPTED.into());
            }
            token.cancel();
        }
    });
    Ok(())
}
