//! A directory of frames that all processes of a node share, so that a second restore reads nothing from the store.
//!
//! The directory holds *volumes*: a file of frames and a file that says where each lies ([`volume`]). A process appends to a volume of its
//! own and finds what others have appended by reading on in their indexes. When the directory is full, the volume
//! that was not used for longest goes as a whole. Nothing in it is trusted: a frame is checked as if it came from the store, and
//! one that does not check out is as good as none. Nothing is synced either: what a crash leaves half is not found.
//!
//! It never fails anybody: a directory that cannot be used is reported once and then left alone.

mod claims;
mod volume;

use std::{
    collections::HashMap,
    fs::{self, File, FileTimes},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use podsnap_format::ChunkId;

use self::volume::{FRAMES, INDEX, Place, Volume, Writer};

pub(super) use self::claims::Claim;
use self::claims::Claims;
use super::Priority;

/// Longest volume, in bytes.
const VOLUME_LEN: u64 = 64 << 20;

/// A full directory has at least so many volumes: what is thrown away at once is no large part of it.
const LEAST_VOLUMES: u64 = 16;

/// Least room that a cache can work with, in bytes.
const LEAST_LEN: u64 = 64 << 20;

/// How often the use of a volume is written down, at most.
const TOUCH_INTERVAL: Duration = Duration::from_secs(5);

/// Where a node keeps frames, and how many; [`Store::with_cache`](crate::Store::with_cache) takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// A directory on a local file system, for this alone; made if it is not there. Processes of one user may share it.
    pub dir: PathBuf,
    /// Bytes that it may hold, at least 64 MiB.
    pub max_len: u64,
}

/// The frames of a node.
#[derive(Debug)]
pub(crate) struct NodeCache {
    dir: PathBuf,
    max_len: u64,
    claims: Claims,
    state: Mutex<State>,
    /// Whether something went wrong in a way that will go on.
    given_up: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<String, Volume>,
    /// Where each frame is: the volume's number, and the place in it.
    places: HashMap<ChunkId, (u64, Place)>,
    names: HashMap<u64, String>,
    next_number: u64,
    writer: Option<Writer>,
}

impl NodeCache {
    /// Opens the directory, or reports why it is done without.
    pub(crate) fn open(options: &CacheOptions) -> Option<Self> {
        match Self::try_open(options) {
            Ok(cache) => Some(cache),
            Err(e) => {
                tracing::warn!(
                    "going on without the cache in {}: {e}",
                    options.dir.display()
                );
                None
            }
        }
    }

    fn try_open(options: &CacheOptions) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&options.dir)?;
        let cache = Self {
            claims: Claims::open(&options.dir)?,
            dir: options.dir.clone(),
            max_len: options.max_len.max(LEAST_LEN),
            state: Mutex::default(),
            given_up: AtomicBool::new(false),
        };
        cache.scan(&mut cache.lock())?;
        Ok(cache)
    }

    /// Learns what other processes have added.
    pub(super) fn refresh(&self) {
        self.usable(|| self.scan(&mut self.lock()));
    }

    /// Whether frames are kept here.
    pub(super) fn is_usable(&self) -> bool {
        !self.given_up.load(Relaxed)
    }

    /// Bytes that it may hold.
    pub(super) fn max_len(&self) -> u64 {
        self.max_len
    }

    /// Whether it seems to have the frame of a chunk.
    pub(super) fn has(&self, id: &ChunkId) -> bool {
        self.lock().places.contains_key(id)
    }

    /// The frame of a chunk, unchecked.
    pub(super) fn get(&self, id: &ChunkId) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let (number, place) = *state.places.get(id)?;
        let name = state.names.get(&number)?.clone();
        let volume = state.volumes.get_mut(&name)?;
        let frames = volume.frames();
        let touch = volume.use_now(TOUCH_INTERVAL);
        drop(state);
        if touch {
            let _ = frames.set_times(FileTimes::new().set_modified(SystemTime::now()));
        }
        match volume::read(&frames, place) {
            Ok(frame) => Some(frame),
            Err(_) => {
                self.forget(id);
                None
            }
        }
    }

    /// Forgets a frame that did not check out.
    pub(super) fn forget(&self, id: &ChunkId) {
        self.lock().places.remove(id);
    }

    /// Keeps a frame.
    pub(super) fn put(&self, id: &ChunkId, frame: &[u8]) {
        let mut state = self.lock();
        if !state.places.contains_key(id) {
            self.usable(|| self.append(&mut state, id, frame));
        }
    }

    /// Announces to the node's other processes that these bytes of an object are being read; `None` if one of them reads them as urgently.
    pub(super) fn claim(
        &self,
        object: &str,
        range: &Range<u64>,
        priority: Priority,
    ) -> Option<Claim> {
        self.claims.claim(object, range, priority)
    }

    fn append(&self, state: &mut State, id: &ChunkId, frame: &[u8]) -> io::Result<()> {
        let volume_len = (self.max_len / LEAST_VOLUMES).min(VOLUME_LEN);
        if frame.len() as u64 > volume_len {
            return Ok(());
        }
        let fits = |writer: &Writer| writer.len() + frame.len() as u64 <= volume_len;
        if !state.writer.as_ref().is_some_and(fits) {
            state.writer = None;
            self.make_room(volume_len)?;
            let writer = Writer::resume_or_create(&self.dir, volume_len - frame.len() as u64)?;
            state.writer = Some(writer);
            self.scan(state)?;
        }
        let writer = state.writer.as_mut().expect("just made");
        let place = match writer.append(id, frame) {
            Ok(place) => place,
            Err(e) => {
                state.writer = None;
                return Err(e);
            }
        };
        let name = writer.name().to_owned();
        match state.volumes.get(&name) {
            Some(volume) => {
                state.places.insert(*id, (volume.number, place));
            }
            // Another process has removed it to make room.
            None => state.writer = None,
        }
        Ok(())
    }

    /// Looks for volumes of other processes, for what was appended to those that are known, and for those that are gone.
    fn scan(&self, state: &mut State) -> io::Result<()> {
        let mut there = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == INDEX)
                && let Some(name) = path.file_stem().and_then(|n| n.to_str())
            {
                there.push(name.to_owned());
            }
        }
        let State {
            volumes,
            places,
            names,
            next_number,
            ..
        } = state;
        let before = volumes.len();
        volumes.retain(|name, _| there.contains(name));
        if volumes.len() < before {
            names.retain(|_, name| volumes.contains_key(name));
            places.retain(|_, (number, _)| names.contains_key(number));
        }
        for name in there {
            let volume = match volumes.entry(name) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    // Its own process may be making it, or it is being removed.
                    let Ok(volume) = Volume::open(&self.dir, new.key(), *next_number) else {
                        continue;
                    };
                    names.insert(*next_number, new.key().clone());
                    *next_number += 1;
                    new.insert(volume)
                }
            };
            let number = volume.number;
            volume.read_on(|id, place| {
                places.entry(id).or_insert((number, place));
            });
        }
        Ok(())
    }

    /// Removes the volumes that were not used for longest until another one fits.
    fn make_room(&self, needed: u64) -> io::Result<()> {
        let mut volumes: HashMap<String, (SystemTime, u64)> = HashMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            let of_volume = path.extension().is_some_and(|e| e == INDEX || e == FRAMES);
            let (true, Some(name), Ok(stat)) = (
                of_volume,
                path.file_stem().and_then(|n| n.to_str()),
                entry.metadata(),
            ) else {
                continue;
            };
            let modified = stat.modified()?;
            let volume = volumes.entry(name.to_owned()).or_insert((modified, 0));
            volume.0 = volume.0.max(modified);
            volume.1 += stat.len();
        }
        let mut total: u64 = volumes.values().map(|(_, len)| len).sum();
        let mut oldest: Vec<_> = volumes.into_iter().collect();
        oldest.sort_unstable_by_key(|(_, (used, _))| *used);
        for (name, (_, len)) in oldest {
            if total + needed <= self.max_len {
                break;
            }
            // First the index: what is not in an index is not looked for.
            for extension in [INDEX, FRAMES] {
                match fs::remove_file(self.dir.join(&name).with_extension(extension)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            total -= len;
        }
        Ok(())
    }

    /// Does something with the directory unless that is hopeless; what goes wrong is reported once.
    fn usable<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Option<T> {
        if self.given_up.load(Relaxed) {
            return None;
        }
        match work() {
            Ok(done) => Some(done),
            Err(e) => {
                if !self.given_up.swap(true, Relaxed) {
                    tracing::warn!("no longer using the cache in {}: {e}", self.dir.display());
                }
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

fn open_rw(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}
