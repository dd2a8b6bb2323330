//! Standard output as the place where bytes go: a section, a tar, an export.
//!
//! Whoever reads the pipe may be slow or asleep, so writing happens on a thread of its own that an interrupt does not wait for.

use std::{
    future::Future,
    io::{self, IsTerminal},
    time::Duration,
};

use podsnap::{Error, Shape, Snapshot, tree};
use tokio::{runtime::Handle, task};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// Time a writer gets to notice that it was cancelled.
const GRACE: Duration = Duration::from_millis(500);

/// Writes one section to standard output: a blob as it is, a tree as a tar.
pub async fn section(
    snapshot: Snapshot,
    section: usize,
    cancel: &CancellationToken,
) -> Result<(), Failure> {
    refuse_terminal()?;
    match snapshot.sections()[section].shape {
        Shape::Blob => {
            let token = cancel.clone();
            let write = async move {
                snapshot
                    .restore_stream(section, &mut io::stdout(), &token)
                    .await
            };
            apart(write, cancel).await??;
        }
        Shape::Tree => {
            let token = cancel.clone();
            apart(write_tar(snapshot, section, token), cancel).await??;
        }
    }
    Ok(())
}

/// Runs `write`, which may block, on a thread of its own.
pub async fn apart<T: Send + 'static>(
    write: impl Future<Output = T> + Send + 'static,
    cancel: &CancellationToken,
) -> Result<T, Failure> {
    let runtime = Handle::current();
    let mut writing = task::spawn_blocking(move || runtime.block_on(write));
    let died = |_| Failure::other("the writing thread died");
    tokio::select! {
        done = &mut writing => done.map_err(died),
        () = cancel.cancelled() => match tokio::time::timeout(GRACE, writing).await {
            Ok(done) => done.map_err(died),
            Err(_) => Err(Failure::interrupted()),
        },
    }
}

async fn write_tar(
    snapshot: Snapshot,
    section: usize,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let table = snapshot.tree_table(section).await?;
    let reader = snapshot.reader(section);
    let runtime = Handle::current();
    let contents = |offset: u64, buf: &mut [u8]| {
        if cancel.is_cancelled() {
            return Err(io::Error::other("interrupted"));
        }
        task::block_in_place(|| runtime.block_on(reader.read_at(buf, offset)))
            .map_err(io::Error::other)
    };
    let out = io::BufWriter::with_capacity(1 << 20, io::stdout());
    tree::write_tar(&table, &contents, out).map_err(|e| tar_failure(e, &cancel))?;
    Ok(())
}

/// The reason inside an error of the tar writer: damage stays damage.
fn tar_failure(e: tree::Error, cancel: &CancellationToken) -> Failure {
    if cancel.is_cancelled() {
        return Failure::interrupted();
    }
    match e {
        tree::Error::Io {
            source,
            path,
            action,
        } => match source.downcast::<Error>() {
            Ok(inner) => inner.into(),
            Err(e) => Failure::other(format!("cannot {action} {}: {e}", path.display())),
        },
        e => Failure::other(e.to_string()),
    }
}

/// Bytes on a terminal help nobody.
pub fn refuse_terminal() -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return Err(Failure::usage("standard output is a terminal")
            .hint("redirect it to a file or a program"));
    }
    Ok(())
}
