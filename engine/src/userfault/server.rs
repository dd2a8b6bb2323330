//! The threads that serve one process, from the first fault until everything is there, the process ends or the server is closed.

use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    error::ServeError,
    features::{Process, Userfault},
    fill::{self, Filler, Target},
    memfd::Memory,
    pace::Pace,
    serve,
    space::{How, News, Outcome, Part, Space},
    table::{Content, Region, Table},
    watchdog::Guarded,
};
use crate::{
    error::{Error, ErrorKind, Result},
    lazy::SectionReader,
};

/// How long a thread looks for the next fault before it sleeps: being woken takes longer than a fault.
const SPIN: Duration = Duration::from_micros(50);

/// Faults that a thread answers before it lets another one read on.
const FEW_FAULTS: usize = 2;

/// How often it is looked whether a process has ended of which nothing tells.
const PROBE: Duration = Duration::from_secs(1);

/// How often a process is asked to let its memory be released, between changes of its own.
const RELEASE_TRIES: u32 = 2000;

/// How memory is served.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// Threads that answer faults.
    pub threads: usize,
    /// Whether what nobody touches is filled in the background as well.
    pub fill: bool,
    /// What is filled before everything else, in this order: ranges of the section.
    pub first: Vec<Range<u64>>,
    /// Whether the process is killed as soon as a page that it touches cannot be had. Otherwise it gets SIGBUS.
    pub kill: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            threads: 2,
            fill: true,
            first: Vec::new(),
            kill: false,
        }
    }
}

/// How far serving is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServeProgress {
    /// Bytes of the memory that is served.
    pub total_bytes: u64,
    /// Bytes of it that are there, by a fault or in the background.
    pub installed_bytes: u64,
    /// Faults that were answered.
    pub faults: u64,
    /// Times that a page could not be had.
    pub failures: u64,
}

/// Serves the memory of one process. [`close`](Self::close) ends it, as does dropping it: **what is not there by then is lost**, and whoever touches it
/// gets SIGBUS. Once everything is [filled](Self::filled), the process needs no server any more.
///
/// Faults whose bytes must be fetched are answered by the tokio runtime that this is started on. Its threads must therefore never
/// touch memory of their own process that is served.
#[derive(Debug)]
pub struct MemoryServer {
    shared: Arc<Shared>,
    space: Arc<Space>,
    total_bytes: u64,
    threads: Vec<JoinHandle<()>>,
}

/// What all that serve a process share.
#[derive(Debug)]
pub(super) struct Shared {
    pub reader: SectionReader,
    /// Where its pages are, if it shares them.
    pub memory: Option<Arc<Memory>>,
    pub runtime: Handle,
    pub pace: Arc<Pace>,
    process: Process,
    kill: bool,
    closing: CancellationToken,
    /// Readable once it is closing.
    closed: OwnedFd,
    /// The children of the process.
    children: Mutex<Vec<Child>>,
    failures: AtomicU64,
    first_failure: watch::Sender<Option<ServeError>>,
    /// Whether all the process has is filled, and whether it has ended; its children are not told of.
    filled: watch::Sender<Option<Result<(), ServeError>>>,
    ended: watch::Sender<bool>,
}

#[derive(Debug)]
struct Child {
    space: Arc<Space>,
    threads: Vec<JoinHandle<()>>,
}

/// What somebody waited for.
enum Waited {
    News(Result<News, Errno>),
    Time,
    Ended,
    Closing,
}

impl MemoryServer {
    /// Serves the bytes that `reader` reads at `regions` of the process whose memory is registered with `userfault`.
    pub fn start(
        userfault: Userfault,
        reader: SectionReader,
        regions: &[Region],
        options: ServeOptions,
    ) -> Result<Self> {
        Self::start_with(userfault, reader, None, regions, options)
    }

    pub(super) fn start_with(
        userfault: Userfault,
        reader: SectionReader,
        memory: Option<Arc<Memory>>,
        regions: &[Region],
        options: ServeOptions,
    ) -> Result<Self> {
        let runtime = Handle::try_current()
            .map_err(|e| Error::invalid("memory is served on a tokio runtime").because(e))?;
        if let Some(range) = options
            .first
            .iter()
            .find(|r| r.start > r.end || r.end > reader.len())
        {
            let what = format!("{range:?} is to be filled first and is not in the section");
            return Err(Error::invalid(what));
        }
        let table = Table::new(regions, reader.len())?;
        let maps = reader.background();
        runtime.spawn(async move { maps.load_maps().await });
        let total_bytes = table
            .mappings()
            .iter()
            .map(|m| m.range.end - m.range.start)
            .sum();
        let Userfault {
            descriptor,
            process,
            ..
        } = userfault;
        let guarded = match &process {
            // When this process dies, so does the memory.
            Process::Own => None,
            Process::Other(pidfd) => Some(Guarded::new(
                &descriptor,
                Some(pidfd.as_fd()),
                options.kill,
            )?),
        };
        let failed = |e| Error::target_action("start", "a memory server", e);
        let shared = Arc::new(Shared {
            pace: memory
                .as_ref()
                .map_or_else(Arc::default, |m| m.pace.clone()),
            reader,
            memory,
            runtime,
            process,
            kill: options.kill,
            closing: CancellationToken::new(),
            closed: eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?,
            children: Mutex::new(Vec::new()),
            failures: AtomicU64::new(0),
            first_failure: watch::Sender::new(None),
            filled: watch::Sender::new(None),
            ended: watch::Sender::new(false),
        });
        let space = Space::new(descriptor, table, false);
        *space.guarded() = guarded;
        let space = Arc::new(space);
        // From here on dropping it releases the process.
        let mut server = Self {
            threads: Vec::new(),
            shared,
            space,
            total_bytes,
        };
        for _ in 0..options.threads.max(1) {
            let thread = server.shared.start_handler(&server.space).map_err(failed)?;
            server.threads.push(thread);
        }
        if options.fill {
            let thread = server
                .shared
                .start_filling(&server.space, options.first)
                .map_err(failed)?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// How far it is.
    pub fn progress(&self) -> ServeProgress {
        ServeProgress {
            total_bytes: self.total_bytes,
            installed_bytes: self.space.installed.load(SeqCst).min(self.total_bytes),
            faults: self.shared.pace.faults(),
            failures: self.shared.failures.load(SeqCst),
        }
    }

    /// Waits until all of the memory is there and the process needs no server any more, or until filling it fails; faults are served nevertheless.
    /// Never comes if it is not filled, or if the process ends before.
    pub async fn filled(&self) -> Result<(), ServeError> {
        let mut filled = self.shared.filled.subscribe();
        match filled.wait_for(Option::is_some).await {
            Ok(result) => result.clone().expect("waited for"),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until a page cannot be had; that is the first one.
    pub async fn failed(&self) -> ServeError {
        let mut failure = self.shared.first_failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(failure) => failure.clone().expect("waited for"),
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the process has ended.
    pub async fn ended(&self) {
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Stops serving. What is not there is lost to the process, unless it has ended.
    pub async fn close(self) {
        let _ = tokio::task::spawn_blocking(move || drop(self)).await;
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.closing.cancel();
        let _ = rustix::io::write(&shared.closed, &1_u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        loop {
            // One of them may have had a child meanwhile.
            let children = std::mem::take(&mut *shared.children());
            if children.is_empty() {
                break;
            }
            for child in children {
                for thread in child.threads {
                    let _ = thread.join();
                }
                shared.release(&child.space);
            }
        }
        shared.release(&self.space);
    }
}

impl Shared {
    pub fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }

    fn children(&self) -> std::sync::MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of a page that cannot be had.
    pub fn fail(&self, error: ServeError) {
        tracing::error!("{error}");
        self.failures.fetch_add(1, SeqCst);
        self.first_failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(error);
            is_first
        });
    }

    /// Sees to it that nobody reads on at an address whose bytes cannot be had.
    pub fn lose(&self, space: &Space, address: u64) -> Outcome {
        // Once it is closing, what is missing is poisoned.
        if self.kill && !self.is_closing() {
            self.doom(space);
            return Outcome::Ended;
        }
        let base = rustix::param::page_size() as u64;
        let place = space.place(address);
        let (range, how, size, generation) = match place {
            // The process dropped it meanwhile.
            Some(place) if place.content == Content::Zeros => {
                (place.page, How::Zeros, place.page_size, place.generation)
            }
            Some(place) => (place.page, How::Poison, place.page_size, place.generation),
            None => {
                let start = address - address % base;
                (
                    start..start + base,
                    How::Poison,
                    base,
                    space.table().generation,
                )
            }
        };
        match space.install(generation, size, &[Part { range, how }]) {
            Outcome::Failed(_) => {
                self.doom(space);
                Outcome::Ended
            }
            outcome => outcome,
        }
    }

    /// Kills the process, which is all that is left.
    pub fn doom(&self, space: &Space) {
        if !space.has_ended() {
            self.process.kill();
        }
    }

    fn start_handler(self: &Arc<Self>, space: &Arc<Space>) -> std::io::Result<JoinHandle<()>> {
        let (shared, space) = (self.clone(), space.clone());
        let thread = thread::Builder::new().name("podsnap-fault".to_owned());
        thread.spawn(move || shared.handle(&space))
    }

    fn start_filling(
        self: &Arc<Self>,
        space: &Arc<Space>,
        first: Vec<Range<u64>>,
    ) -> std::io::Result<JoinHandle<()>> {
        let (shared, space) = (self.clone(), space.clone());
        let thread = thread::Builder::new().name("podsnap-fill".to_owned());
        thread.spawn(move || match shared.fill(&space, &first) {
            Ok(false) => {}
            Ok(true) => {
                shared.release(&space);
                if !space.is_child {
                    shared.filled.send_replace(Some(Ok(())));
                }
            }
            Err(why) => {
                let error = ServeError::new(None, None, why);
                tracing::warn!("filling memory in the background has ended, what is touched is still served: {error}");
                if !space.is_child {
                    shared.filled.send_replace(Some(Err(error)));
                }
            }
        })
    }

    fn fill(&self, space: &Space, first: &[Range<u64>]) -> Result<bool> {
        if let Some(memory) = &self.memory {
            return fill::memfd(memory, &self.runtime, &self.closing, first);
        }
        let filler = Filler {
            runtime: &self.runtime,
            closing: &self.closing,
            pace: &self.pace,
            reader: self.reader.background(),
            target: Target::Process(space),
        };
        filler.fill(first)
    }

    /// Answers faults until there can be none.
    fn handle(self: &Arc<Self>, space: &Arc<Space>) {
        let mut scratch = Vec::new();
        let mut busy = Instant::now();
        // One thread waits, for the others it would be for the same events. It keeps on as long as it can: waking another one takes longer than to
        // answer a fault or two, and takes a processor from who faults.
        let mut reading = space.reading();
        loop {
            let news = match self.wait(space, busy) {
                Waited::Closing => return,
                Waited::Ended => {
                    space.set_ended();
                    if !space.is_child {
                        self.ended.send_replace(true);
                    }
                    return;
                }
                Waited::Time => continue,
                Waited::News(news) => news,
            };
            let news = match news {
                Ok(news) => news,
                Err(e) => {
                    let why = super::error::refused("tell of faults", e);
                    self.fail(ServeError::new(None, None, why));
                    self.doom(space);
                    return;
                }
            };
            for child in news.children {
                self.adopt(child);
            }
            self.pace.count(news.faults.len());
            crate::metrics::faults(news.faults.len());
            let kept = (news.faults.len() <= FEW_FAULTS).then_some(reading);
            for address in news.faults {
                serve::fault(self, space, address, &mut scratch);
            }
            reading = kept.unwrap_or_else(|| space.reading());
            busy = Instant::now();
        }
    }

    fn wait(&self, space: &Space, busy: Instant) -> Waited {
        let events = PollFlags::IN;
        // A child may outlive its parent.
        let pidfd = self.process.pidfd().filter(|_| !space.is_child);
        let mut fds = [
            PollFd::new(&*space.descriptor, events),
            PollFd::new(&self.closed, events),
            PollFd::from_borrowed_fd(pidfd.unwrap_or(self.closed.as_fd()), events),
        ];
        let probe = Timespec {
            tv_sec: PROBE.as_secs() as i64,
            tv_nsec: 0,
        };
        loop {
            if self.is_closing() {
                return Waited::Closing;
            }
            if space.ended() {
                return Waited::Ended;
            }
            // Looking is cheaper for those who fault meanwhile than reading, which takes their locks.
            let spins = busy.elapsed() < SPIN;
            let looked = match spins {
                true => poll(&mut fds[..1], Some(&Timespec::default())),
                false => poll(&mut fds, Some(&probe)),
            };
            match looked {
                Ok(0) if spins => std::hint::spin_loop(),
                Ok(0) if space.has_ended() => return Waited::Ended,
                Ok(0) => return Waited::Time,
                Ok(_) | Err(Errno::INTR) => {
                    if !fds[0].revents().is_empty() {
                        return Waited::News(space.read());
                    }
                    if pidfd.is_some() && !fds[2].revents().is_empty() {
                        return Waited::Ended;
                    }
                }
                Err(e) => return Waited::News(Err(e)),
            }
        }
    }

    /// Serves a child of the process.
    fn adopt(self: &Arc<Self>, space: Space) {
        let space = Arc::new(space);
        let guarded = Guarded::new(&space.descriptor, None, false).map_err(Into::into);
        let started = guarded.and_then(|guarded| {
            *space.guarded() = Some(guarded);
            let handler = self.start_handler(&space)?;
            Ok(vec![handler, self.start_filling(&space, Vec::new())?])
        });
        let threads = started.unwrap_or_else(|e: Box<dyn std::error::Error + Send + Sync>| {
            let why = Error::new(ErrorKind::Target, "a child of the process cannot be served");
            self.fail(ServeError::new(None, None, why.because(e)));
            self.release(&space);
            Vec::new()
        });
        let mut children = self.children();
        children.retain(|child| !child.threads.iter().all(JoinHandle::is_finished));
        children.push(Child { space, threads });
    }

    /// Lets the process go: with all its memory, or with pages missing that are fatal from then on.
    fn release(&self, space: &Space) {
        let keep =
            |mapping: &super::table::Mapping, address: u64| match (&self.memory, mapping.content) {
                (Some(memory), Content::Section(offset)) => {
                    memory.is_ready(offset + (address - mapping.range.start))
                }
                _ => false,
            };
        for _ in 0..RELEASE_TRIES {
            if space.has_ended() {
                break;
            }
            let Ok(news) = space.read() else { break };
            for child in &news.children {
                self.release(child);
            }
            match space.release(keep) {
                Outcome::Changed => thread::sleep(Duration::from_millis(1)),
                Outcome::Failed(e) => {
                    let why = super::error::refused("make missing pages fatal", e);
                    self.fail(ServeError::new(None, None, why));
                    self.doom(space);
                    break;
                }
                _ => break,
            }
        }
        if let Some(guarded) = space.guarded().take() {
            guarded.forget();
        }
    }
}
