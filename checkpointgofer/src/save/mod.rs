//! Saving: the files of a checkpoint, as the sentry writes them side by side, become the sections of one snapshot.
//!
//! One file is saved as it comes: the memory, or the only file where gVisor compresses everything into that. The others are small, are kept
//! aside meanwhile, and saved once it has ended. The sentry learns that the checkpoint stands from the last file that it declares whole: that answer
//! comes when the snapshot is committed, all earlier ones at once, for the sentry waits for some of them before it goes on with others.
//! A file that is closed before it is whole, or a socket that is closed before the commit, gives the save up.
//!
//! If the sandbox is not to wait for the store, the last answer comes as soon as everything is [captured](capture), and the snapshot is committed
//! behind it, whether the sandbox is still there or not.

mod buffers;
mod capture;
mod file;
mod head;
mod stream;

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use podsnap_engine::{
    Committed, Error, ErrorKind, Input, NewSection, Result, SaveOptions, SaveStats, SnapshotId,
    SnapshotWriter, Store, gvisor,
};
use rustix::io::Errno;
use tokio::{runtime::Handle, task::JoinHandle};

pub use self::capture::CaptureOptions;
use self::{
    buffers::Buffers,
    capture::Capture,
    file::{Content, WrittenFile},
    stream::{GuestStream, StreamEnds},
};
use crate::{
    errors,
    image::{self, Kind},
    metrics,
    request::{Limits, Mode},
    serve::{Backing, Refusal},
    server::Files,
};

/// For the memory: submissions as long as what the save cuts at once, enough of them to keep every core busy.
const PAGES_LIMITS: Limits = Limits {
    max_io_bytes: 4 << 20,
    // Every page may be a range of its own.
    max_ranges: 1024,
    max_parallel: 32,
};

/// For the other files, which the sentry writes from one buffer of 8 MiB.
pub(crate) const OTHER_LIMITS: Limits = Limits {
    max_io_bytes: 2 << 20,
    max_ranges: 1,
    max_parallel: 4,
};

/// A checkpoint that is being saved.
pub struct Saving(Arc<Shared>);

struct Shared {
    runtime: Handle,
    store: Store,
    snapshot: SnapshotId,
    kind: Kind,
    options: SaveOptions,
    /// Set if the sandbox is not to wait for the store.
    capture: Option<CaptureOptions>,
    refusal: Refusal,
    buffers: Arc<Buffers>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    writing: Option<Writing>,
    files: Contents,
    /// Why nothing can be committed any more.
    failed: Option<(Errno, String)>,
    committed: Option<Committed>,
    /// When the last file was opened: the sandbox stops then.
    opened_at: Option<Instant>,
}

/// How far the files are, by their names.
type Contents = BTreeMap<&'static str, Progress>;

enum Writing {
    Idle(Box<SnapshotWriter>),
    /// One file is being saved as it comes.
    Streaming(JoinHandle<Result<Box<SnapshotWriter>>>),
    /// The sandbox was told that all is well, and nothing gives the save up any more.
    Committing(JoinHandle<Result<(), Errno>>),
}

enum Progress {
    Open,
    /// Some of it was written.
    Begun,
    Whole(Content),
}

impl State {
    /// The sandbox gets the answer with which it goes on.
    fn thaw(&self) {
        if let Some(opened_at) = self.opened_at {
            metrics::frozen(opened_at.elapsed());
        }
    }
}

impl Saving {
    /// Nothing is asked of the store before the sandbox opens the first file. With `capture` the sandbox waits until everything is captured, without until it is committed.
    pub fn new(
        runtime: Handle,
        store: Store,
        snapshot: SnapshotId,
        kind: Kind,
        options: SaveOptions,
        capture: Option<CaptureOptions>,
        refusal: Refusal,
    ) -> Self {
        let buffers = Arc::new(Buffers::default());
        if let Some(capture) = &capture {
            buffers.prepare(capture.max_memory_len);
        }
        Self(Arc::new(Shared {
            runtime,
            store,
            snapshot,
            kind,
            options,
            capture,
            refusal,
            buffers,
            state: Mutex::default(),
        }))
    }

    /// The sandbox is gone: gives up what it still had to do something for.
    pub fn hang_up(&self) {
        let writing = &self.0.state().writing;
        if !matches!(writing, Some(Writing::Committing(_))) {
            self.0.options.cancel.cancel();
        }
    }

    /// Waits for the end: of a commit that the sandbox does not wait for, or of what is left of a save that was given up. What was committed,
    /// or why nothing was.
    pub fn end(self) -> Result<Option<SaveStats>, String> {
        let shared = self.0;
        let writing = shared.state().writing.take();
        let undone = shared.runtime.block_on(async {
            match writing {
                None => Ok(()),
                Some(Writing::Committing(committing)) => {
                    let _ = committing.await;
                    Ok(())
                }
                Some(Writing::Idle(writer)) => writer.abort().await,
                // It ends, because its file was closed, and has undone the save then.
                Some(Writing::Streaming(streaming)) => match streaming.await {
                    Ok(Ok(writer)) => writer.abort().await,
                    _ => Ok(()),
                },
            }
        });
        if let Err(error) = undone {
            tracing::warn!(%error, "what was written could not be removed; the next save under this id will do it");
        }
        let mut state = shared.state();
        match (state.committed.take(), state.failed.take()) {
            (Some(committed), _) => Ok(Some(shared.runtime.block_on(committed.settled()))),
            (None, Some((_, why))) => Err(why),
            (None, None) if state.files.is_empty() => Ok(None),
            (None, None) => Err("the sandbox gave it up".to_owned()),
        }
    }
}

impl Files for Saving {
    fn open(&self, name: &str, mode: Mode) -> Result<(Limits, Box<dyn Backing>), String> {
        let shared = &self.0;
        let name = shared.kind.file(name)?;
        if mode != Mode::Write {
            return Err("this gofer was started for writing a checkpoint".to_owned());
        }
        let mut state = shared.state();
        if state.failed.is_none()
            && let Err((errno, why)) = shared.open(&mut state, name)
        {
            tracing::error!(snapshot = %shared.snapshot, file = name, why, "cannot be saved");
            state.failed = Some((errno, why));
        }
        if let Some((errno, why)) = &state.failed {
            return shared.refusal.answer(*errno, why);
        }
        let limits = match name {
            image::PAGES => PAGES_LIMITS,
            _ => OTHER_LIMITS,
        };
        Ok((limits, Box::new(WrittenFile::new(shared.clone(), name))))
    }

    fn failure(&self, _name: &str) -> Option<String> {
        let state = self.0.state();
        state.failed.as_ref().map(|(_, why)| why.clone())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the save with its first file.
    fn open(&self, state: &mut State, name: &'static str) -> Result<(), (Errno, String)> {
        let sandbox = |what: String| (Errno::INVAL, what);
        if state.files.contains_key(name) {
            return Err(sandbox(format!("{name} is open already")));
        }
        if let Some((begun, _)) = state.files.iter().find(|(_, p)| !p.is_untouched()) {
            return Err(sandbox(format!(
                "{name} is opened after {begun} was written"
            )));
        }
        if state.writing.is_none() {
            let save = self.store.save(&self.snapshot, self.options.clone());
            let writer = self.runtime.block_on(save);
            let writer = writer.map_err(|e| (errors::errno(&e), e.to_string()))?;
            state.writing = Some(Writing::Idle(Box::new(writer)));
        }
        state.files.insert(name, Progress::Open);
        state.opened_at = Some(Instant::now());
        Ok(())
    }

    /// The stream for a file that is about to be written, if it is the one that is saved as it comes, and what captures its bytes, if they are to be.
    fn stream_for(self: &Arc<Self>, name: &'static str) -> Option<(StreamEnds, Option<Capture>)> {
        let mut state = self.state();
        state.files.insert(name, Progress::Begun);
        let alone = name == image::CHECKPOINT && !state.files.contains_key(image::PAGES);
        if name != image::PAGES && !alone {
            return None;
        }
        let (ends, stream) = GuestStream::new(name == image::CHECKPOINT);
        let capture = self.capture.as_ref();
        let capture = capture.map(|options| Capture::start(options, self.buffers.clone()));
        let capture = capture.transpose();
        let capture = capture.unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing can be captured: the sandbox waits for the store");
            None
        });
        match state.writing.take() {
            Some(Writing::Idle(mut writer)) => {
                let (role, section) = image::section(name);
                let input = Input::Stream(Box::new(stream), format!("{name} of the sandbox"));
                let shared = self.clone();
                state.writing = Some(Writing::Streaming(self.runtime.spawn(async move {
                    let added = writer.add(NewSection::blob(role, section, input)).await;
                    match added {
                        Ok(()) => Ok(writer),
                        Err(e) => {
                            shared.fail(&e);
                            Err(e)
                        }
                    }
                })));
            }
            // Without anybody who reads it, writing to it fails.
            other => state.writing = other,
        }
        Some((ends, capture))
    }

    /// The number of the error that ended the save.
    fn errno(&self) -> Errno {
        let state = self.state();
        state.failed.as_ref().map_or(Errno::IO, |(errno, _)| *errno)
    }

    /// Nothing will be committed, because of `error`. Returns its number.
    fn fail(&self, error: &Error) -> Errno {
        let mut state = self.state();
        let errno = errors::errno(error);
        // The first error is the cause of the others.
        if state.failed.is_none() {
            tracing::error!(snapshot = %self.snapshot, %error, "the checkpoint cannot be saved");
            state.failed = Some((errno, error.to_string()));
        }
        errno
    }

    /// A file was closed that was not whole.
    fn abandoned(&self, name: &'static str) {
        let mut state = self.state();
        if state.failed.is_none() {
            let why = format!("the sandbox closed {name} before it was whole");
            tracing::warn!(snapshot = %self.snapshot, why, "the checkpoint is given up");
            state.failed = Some((Errno::CANCELED, why));
        }
    }

    /// A file is whole. If all are, the snapshot is committed, before this returns unless the sandbox is not to wait for it.
    fn whole(self: &Arc<Self>, name: &'static str, content: Content) -> Result<(), Errno> {
        let mut state = self.state();
        state.files.insert(name, Progress::Whole(content));
        if let Some((errno, _)) = &state.failed {
            return Err(*errno);
        }
        if state
            .files
            .values()
            .any(|p| !matches!(p, Progress::Whole(_)))
        {
            return Ok(());
        }
        let Some(writing) = state.writing.take() else {
            return Err(Errno::IO);
        };
        let files = std::mem::take(&mut state.files);
        if self.capture.is_some() {
            tracing::info!(snapshot = %self.snapshot, "the checkpoint is captured");
            let shared = self.clone();
            let committing = async move { shared.conclude(writing, files).await };
            state.writing = Some(Writing::Committing(self.runtime.spawn(committing)));
            state.thaw();
            return Ok(());
        }
        drop(state);
        self.runtime.block_on(self.conclude(writing, files))?;
        self.state().thaw();
        Ok(())
    }

    /// Commits, and says what came of it.
    async fn conclude(&self, writing: Writing, files: Contents) -> Result<(), Errno> {
        match self.commit(writing, files).await {
            Ok(committed) => {
                let stats = &committed.stats;
                tracing::info!(
                    snapshot = stats.snapshot,
                    raw_bytes = stats.raw_bytes,
                    stored_bytes = stats.stored_bytes(),
                    elapsed_ms = stats.elapsed_ms,
                    "the checkpoint is committed"
                );
                self.state().committed = Some(committed);
                Ok(())
            }
            Err(e) => Err(self.fail(&e)),
        }
    }

    async fn commit(&self, writing: Writing, files: Contents) -> Result<Committed> {
        let mut writer = match writing {
            Writing::Idle(writer) => writer,
            Writing::Streaming(streaming) => streaming
                .await
                .map_err(|_| Error::new(ErrorKind::Source, "the save's task died"))??,
            Writing::Committing(_) => unreachable!("it commits once"),
        };
        match self.take_in(&mut writer, files).await {
            Ok(description) => writer.set_gvisor(description),
            Err(e) => {
                let _ = writer.abort().await;
                return Err(e);
            }
        }
        // The sandbox waits for this, and not for what comes behind it.
        writer.commit().await
    }

    /// Saves what was kept aside, and finds out what the checkpoint is of.
    async fn take_in(
        &self,
        writer: &mut SnapshotWriter,
        files: Contents,
    ) -> Result<BTreeMap<String, String>> {
        let mut description = None;
        for (name, progress) in files {
            let Progress::Whole(content) = progress else {
                unreachable!("all files are whole");
            };
            let mut aside = match content {
                Content::Aside(bytes) => bytes,
                Content::Streamed(ends) => {
                    if let Some(head) = &ends.head {
                        let head = head.lock().unwrap_or_else(PoisonError::into_inner);
                        description = Some(self.describe(head.bytes())?);
                    }
                    continue;
                }
            };
            rewind(&mut aside)?;
            if name == self.kind.first() {
                description = Some(self.describe(&mut aside)?);
                rewind(&mut aside)?;
            }
            let (role, section) = image::section(name);
            let input = Input::stream(aside, format!("{name} of the sandbox"));
            writer.add(NewSection::blob(role, section, input)).await?;
        }
        description.ok_or_else(|| {
            let what = format!("the sandbox wrote no {}", self.kind.first());
            Error::new(ErrorKind::InvalidInput, what)
        })
    }

    /// What the image is of, as its first file says. A save that fails in the sandbox may declare files whole that say nothing.
    fn describe(&self, mut file: impl Read) -> Result<BTreeMap<String, String>> {
        let name = self.kind.first();
        match self.kind {
            Kind::Sandbox => gvisor::parse_metadata(file, name),
            Kind::FileSystem => match file.read(&mut [0]) {
                Ok(1) => Ok(BTreeMap::new()),
                _ => Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("the sandbox wrote nothing into {name}"),
                )),
            },
        }
    }
}

impl Progress {
    fn is_untouched(&self) -> bool {
        matches!(self, Self::Open)
    }
}

fn rewind(bytes: &mut impl Seek) -> Result<()> {
    let rewound = bytes.seek(SeekFrom::Start(0));
    rewound.map(drop).map_err(|e| {
        Error::new(
            ErrorKind::Source,
            "cannot read what was kept aside of the checkpoint",
        )
        .because(e)
    })
}
