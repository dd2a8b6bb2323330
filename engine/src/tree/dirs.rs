//! Opens things in a tree by directory descriptor, one name at a time, never through a symbolic link and never out of
//! the tree, with a bounded number of descriptors open whatever the tree's depth and width.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use podsnap_format::tree::Entry;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Descriptors a cache keeps open at most. Two caches stay far below the usual limit of 1024.
const SLOTS: usize = 128;

/// What a name of the tree is opened with: see [`open_beneath`].
pub(super) const READ_FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK);

/// Opens `name`, one component, in a directory. A symbolic link there is refused whatever it points to.
pub(super) fn open_beneath(
    directory: &OwnedFd,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    debug_assert!(!name.contains(&b'/') && name != b"..");
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(directory, name, flags, mode, resolve) {
        // Not there before Linux 5.6, and forbidden by some seccomp filters: with a single name, NOFOLLOW does the same.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(directory, name, flags, mode),
        result => result,
    }
}

/// Descriptors by entry index. Each index has one slot that it may lose to another, which needs no bookkeeping and
/// suits a walk in table order, where neighbours have neighbouring indexes.
pub(super) struct FdCache {
    slots: Vec<Mutex<Slot>>,
}

type Slot = Option<(u32, Arc<OwnedFd>)>;

impl FdCache {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Mutex::new(None)).collect(),
        }
    }

    fn slot(&self, index: u32) -> std::sync::MutexGuard<'_, Slot> {
        // A slot is replaced in one step, so a thread that panicked cannot have left half of one.
        self.slots[index as usize % SLOTS]
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn get(&self, index: u32) -> Option<Arc<OwnedFd>> {
        self.slot(index)
            .as_ref()
            .filter(|(held, _)| *held == index)
            .map(|(_, fd)| fd.clone())
    }

    pub(super) fn put(&self, index: u32, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        // The descriptor that is pushed out is closed after the lock is released.
        let _pushed_out = self.slot(index).replace((index, fd.clone()));
        fd
    }
}

/// The directories of a tree, by entry index.
pub(super) struct Directories {
    top: Arc<OwnedFd>,
    cache: FdCache,
}

impl Directories {
    /// Opens the top directory. Its own path may lead through symbolic links: it is the user's.
    pub(super) fn open_top(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
        Ok(Self {
            top: Arc::new(top),
            cache: FdCache::new(),
        })
    }

    pub(super) fn top(&self) -> &Arc<OwnedFd> {
        &self.top
    }

    /// The directory that entry `index` is. Entries up to it must be known.
    pub(super) fn open(&self, entries: &[Entry], index: u32) -> Result<Arc<OwnedFd>, Errno> {
        let mut unopened = Vec::new();
        let mut at = index;
        let mut fd = loop {
            if at == 0 {
                break self.top.clone();
            }
            if let Some(fd) = self.cache.get(at) {
                break fd;
            }
            unopened.push(at);
            at = entries[at as usize].parent;
        };
        for &index in unopened.iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = open_beneath(&fd, &entries[index as usize].name, flags, Mode::empty())?;
            fd = self.cache.put(index, opened);
        }
        Ok(fd)
    }

    /// The directory that holds entry `index`.
    pub(super) fn open_parent(&self, entries: &[Entry], index: u32) -> Result<Arc<OwnedFd>, Errno> {
        self.open(entries, entries[index as usize].parent)
    }
}
