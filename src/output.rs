//! Standard output as the place where bytes go: a section, a tar, an export.
//!
//! Whoever reads the pipe may be slow or asleep, so writing happens on a thread of its own that an interrupt does not wait for.

use std::{
    future::Future,
    io::{self, IsTerminal},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use podsnap::{Error, Shape, Snapshot, tree};
use tokio::{runtime::Handle, task};
use tokio_util::sync::CancellationToken;

use crate::exit::{self, Failure};

/// Time a writer gets to notice that it was cancelled.
const GRACE: Duration = Duration::from_millis(500);

/// Standard output, which remembers if whoever reads it went away.
#[derive(Clone, Default)]
pub struct Output {
    closed: Arc<AtomicBool>,
}

impl Output {
    /// The exit code of a command that has written everything, or had to stop because nobody reads any more; that is no failure
    /// to complain about.
    pub fn exit_code(&self, written: Result<(), Failure>) -> Result<u8, Failure> {
        match written {
            Err(_) if self.closed.load(Ordering::SeqCst) => Ok(exit::CLOSED_PIPE),
            written => written.map(|()| 0),
        }
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(e) = &result
            && e.kind() == io::ErrorKind::BrokenPipe
        {
            self.closed.store(true, Ordering::SeqCst);
        }
        result
    }
}

impl io::Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.note(io::stdout().write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.note(io::stdout().flush())
    }
}

/// Writes one section to standard output: a blob as it is, a tree as a tar. Returns the exit code.
pub async fn section(
    snapshot: Snapshot,
    section: usize,
    cancel: &CancellationToken,
) -> Result<u8, Failure> {
    refuse_terminal()?;
    let output = Output::default();
    let (mut out, token) = (output.clone(), cancel.clone());
    let written = match snapshot.sections()[section].shape {
        Shape::Blob => {
            let write = async move {
                snapshot.restore_stream(section, &mut out, &token).await?;
                Ok(())
            };
            apart(write, cancel).await?
        }
        Shape::Tree => apart(write_tar(snapshot, section, out, token), cancel).await?,
    };
    output.exit_code(written)
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
    out: Output,
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
    let out = io::BufWriter::with_capacity(1 << 20, out);
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
