//! Restoring: the sections of a snapshot are the files that the sentry reads.
//!
//! What is wrong with the store or the snapshot is said when `checkpoint.img` is opened, which the sentry does first: it takes any error about
//! the other files to mean that there are none.

mod bytes;
mod file;
mod pace;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use podsnap_engine::{
    CancellationToken, Error, ErrorKind, Recording, Snapshot, SnapshotId, Store, gvisor::RawImage,
};
use tokio::runtime::Handle;

use self::{bytes::FileBytes, file::ReadFile, pace::Pace};
use crate::{
    image::{self, Kind},
    request::{Limits, Mode},
    serve::Backing,
    server::Files,
};

/// For the memory. A page that a thread waits for may be in what the sentry has asked for already, among all that is under way: so that this is soon
/// there, it is no more than keeps a fast link busy.
const PAGES_LIMITS: Limits = Limits {
    max_io_bytes: 1 << 20,
    // Every page may go to a place of its own.
    max_ranges: 256,
    max_parallel: 32,
};

/// For the other files, which the sentry reads through a buffer of 8 MiB.
const OTHER_LIMITS: Limits = Limits {
    max_io_bytes: 1 << 20,
    max_ranges: 1,
    max_parallel: 8,
};

/// How long filling gives way to what an earlier restore waited for.
const HEAD_START: Duration = Duration::from_secs(1);

/// Most time that keeping what was learned may take once the sandbox needs nothing more.
const LEARNING_TIME: Duration = Duration::from_secs(20);

/// A snapshot that is being restored.
pub struct Restoring {
    runtime: Handle,
    store: Store,
    snapshot: SnapshotId,
    kind: Kind,
    cancel: CancellationToken,
    pace: Arc<Pace>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` until the first file is opened.
    opened: Option<Result<Opened, String>>,
    /// What went wrong with a read.
    failed: Option<String>,
    /// A thread of the sandbox has waited for a page.
    faulted: bool,
}

/// What is restored.
#[derive(Clone)]
enum Opened {
    /// What is read of it urgently is recorded.
    Snapshot(Arc<Recording>),
    /// Files as Google's gofer left them.
    Raw(RawImage),
}

impl Restoring {
    /// Nothing is done before the sandbox opens the first file. When `cancel` is cancelled, reads end.
    pub fn new(
        runtime: Handle,
        store: Store,
        snapshot: SnapshotId,
        kind: Kind,
        cancel: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            store,
            snapshot,
            kind,
            cancel,
            pace: Arc::default(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong, if anything did.
    pub fn failed(&self) -> Option<String> {
        self.state().failed.clone()
    }

    fn opened(&self) -> Result<Opened, String> {
        let mut state = self.state();
        let opened = state.opened.get_or_insert_with(|| {
            let opened = self.runtime.block_on(self.open_image());
            opened.map_err(|error| {
                tracing::error!(snapshot = %self.snapshot, %error, "it cannot be restored");
                error.to_string()
            })
        });
        opened.clone()
    }

    async fn open_image(&self) -> Result<Opened, Error> {
        let snapshot = match self.store.snapshot(&self.snapshot).await {
            Ok(snapshot) => snapshot,
            // Forbidden may be how the store says that there is none.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Forbidden) => {
                return match RawImage::open(&self.store, &self.snapshot).await {
                    Ok(raw) if raw.file(self.kind.first()).is_some() => {
                        tracing::info!(snapshot = %self.snapshot, "restoring raw files");
                        Ok(Opened::Raw(raw))
                    }
                    _ => Err(e),
                };
            }
            Err(e) => return Err(e),
        };
        let (role, name) = image::section(self.kind.first());
        snapshot.find_section(role, name).map_err(|e| {
            let what = match self.kind {
                Kind::Sandbox => "is no checkpoint of a gVisor sandbox",
                Kind::FileSystem => "is no checkpoint of a gVisor sandbox's file systems",
            };
            Error::new(ErrorKind::InvalidInput, format!("{} {what}", self.snapshot)).because(e)
        })?;
        tracing::info!(snapshot = %self.snapshot, digest = %snapshot.digest(), "restoring");
        self.replay(snapshot.clone());
        Ok(Opened::Snapshot(Arc::new(snapshot.record())))
    }

    /// Fetches ahead what an earlier restore waited for, at first as if somebody waited for it again.
    fn replay(&self, snapshot: Snapshot) {
        let (cancel, pace) = (self.cancel.clone(), self.pace.clone());
        self.runtime.spawn(async move {
            let replayed = async {
                let Some(learned) = snapshot.working_set().await? else {
                    return Ok(());
                };
                let replay = learned.prefetch(&[]);
                tokio::pin!(replay);
                let urgent = pace.hurry();
                if let Ok(replayed) = tokio::time::timeout(HEAD_START, &mut replay).await {
                    return replayed;
                }
                drop(urgent);
                replay.await
            };
            tokio::select! {
                () = cancel.cancelled() => {}
                replayed = replayed => if let Err(error) = replayed {
                    tracing::warn!(%error, "what an earlier restore learned is of no use");
                },
            }
        });
    }

    /// Keeps what the sandbox waited for, for the next restore, if it waited at all. Nothing else depends on it.
    pub fn learn(&self) {
        let (opened, faulted) = {
            let state = self.state();
            (state.opened.clone(), state.faulted)
        };
        let Some(Ok(Opened::Snapshot(recording))) = opened.filter(|_| faulted) else {
            return;
        };
        let _entered = self.runtime.enter();
        let storing = tokio::time::timeout(LEARNING_TIME, recording.store(false));
        match self.runtime.block_on(storing) {
            Ok(Ok(stored)) => tracing::debug!(stored, "learned what the sandbox waited for"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what the sandbox waited for cannot be kept for the next restore");
            }
            Err(_) => tracing::warn!("keeping what the sandbox waited for takes too long"),
        }
    }

    fn bytes(&self, name: &'static str) -> Result<FileBytes, String> {
        match self.opened()? {
            Opened::Snapshot(recording) => {
                let snapshot = recording.snapshot();
                let (role, section) = image::section(name);
                let number = snapshot.find_section(role, section);
                let number = number.map_err(|e| e.to_string())?;
                Ok(FileBytes::of_section(snapshot.reader(number)))
            }
            Opened::Raw(raw) => match raw.file(name) {
                Some(file) => Ok(FileBytes::Raw(file.clone())),
                None => Err(format!("{} has no {name}", self.snapshot)),
            },
        }
    }

    /// Remembers the first error of a read.
    fn fail(&self, name: &str, error: &dyn std::fmt::Display) {
        tracing::error!(snapshot = %self.snapshot, file = name, %error, "it cannot be read");
        let mut state = self.state();
        state
            .failed
            .get_or_insert_with(|| format!("{name} cannot be read: {error}"));
    }
}

impl Files for Arc<Restoring> {
    fn open(&self, name: &str, mode: Mode) -> Result<(Limits, Box<dyn Backing>), String> {
        let name = self.kind.file(name)?;
        if mode != Mode::Read {
            return Err("this gofer was started for reading a checkpoint".to_owned());
        }
        let bytes = self.bytes(name)?;
        let limits = match name {
            image::PAGES => PAGES_LIMITS,
            _ => OTHER_LIMITS,
        };
        Ok((limits, Box::new(ReadFile::new(self.clone(), name, bytes))))
    }

    fn failure(&self, _name: &str) -> Option<String> {
        self.failed()
    }
}
