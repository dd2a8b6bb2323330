//! A section as a memfd that many processes map privately: they share the pages that they do not change.
//!
//! Pages are put into the file through a mapping of this process, and from there the kernel maps them into the clones. A page of
//! the file is mapped only when all of it has been checked, which [`SharedMemory`] keeps account of; the file's own idea of what it has is
//! of no use, since a page exists from its first byte on. Zeros stay holes.

use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{MapFlags, ProtFlags},
};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{
    Userfault,
    features::Features,
    fill,
    pace::Pace,
    present::Present,
    server::{MemoryServer, ServeOptions},
    space::is_huge,
    table::{Region, WINDOW},
};
use crate::{
    chunking,
    error::{Error, ErrorKind, Result},
    lazy::SectionReader,
};

/// Locks that parts of the file share.
const LOCKS: usize = 64;

/// The memory of clones: a section in a memfd, filled as they touch it.
///
/// Clones map [`memfd`](AsFd::as_fd) privately (`MAP_PRIVATE`; the file is sealed against anything else), register the mapping with
/// [`Userfault::register_shared`], and are served by [`attach`](Self::attach). What one of them reads is there for all; what one writes is its own.
#[derive(Debug, Clone)]
pub struct SharedMemory(pub(super) Arc<Memory>);

/// The file and what is in it.
#[derive(Debug)]
pub(super) struct Memory {
    file: OwnedFd,
    pages: NonNull<u8>,
    /// Bytes of the file.
    len: u64,
    pub page_size: u64,
    pub reader: SectionReader,
    /// Pages that may be mapped, or are zeros.
    ready: Present,
    filled: AtomicU64,
    /// Pages that are zeros and not in the file.
    zeros: Present,
    locks: [Mutex<()>; LOCKS],
    pub pace: Arc<Pace>,
    /// Held by the one who fills it.
    pub filling: Mutex<()>,
}

// SAFETY: `pages` is a mapping of its own that lives as long as this does; it is written only under `locks`, and read by nobody.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl SharedMemory {
    /// An empty memfd for the bytes that `reader` reads, in pages of 4096 bytes, or of 2 MiB if the machine has so many huge ones to spare.
    pub fn new(reader: SectionReader, page_size: u64) -> Result<Self> {
        let features = Features::probe()?;
        let huge = is_huge(page_size);
        let able = if huge {
            features.minor_hugetlbfs()
        } else {
            features.minor_shmem()
        };
        if !able {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this kernel cannot serve mappings of a memfd",
            )
            .hint("it needs Linux 5.14; serve each process in memory of its own"));
        }
        if reader.is_empty() {
            return Err(Error::invalid("an empty section cannot be mapped"));
        }
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        match page_size {
            _ if !huge && page_size == rustix::param::page_size() as u64 => {}
            0x20_0000 => flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            _ => {
                let what = format!("there is no memory in pages of {page_size} bytes");
                return Err(Error::invalid(what));
            }
        }
        let len = reader.len().next_multiple_of(page_size);
        let failed = |action: &str, e: rustix::io::Errno| {
            let error = Error::target_action(action, "a memfd for the section", e.into());
            match huge {
                true => error.hint("huge pages must be set aside: sysctl vm.nr_hugepages"),
                false => error,
            }
        };
        let file = rustix::fs::memfd_create("podsnap", flags).map_err(|e| failed("make", e))?;
        rustix::fs::ftruncate(&file, len).map_err(|e| failed("size", e))?;
        let (protection, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let pages = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len as usize,
                protection,
                shared,
                &file,
                0,
            )
        }
        .map_err(|e| failed("map", e))?;
        let pages = NonNull::new(pages.cast()).expect("the kernel maps nothing at 0");
        let memory = Memory {
            file,
            pages,
            len,
            page_size,
            ready: Present::new(len / page_size),
            filled: AtomicU64::new(0),
            zeros: Present::new(len / page_size),
            locks: std::array::from_fn(|_| Mutex::new(())),
            pace: Arc::default(),
            filling: Mutex::new(()),
            reader,
        };
        // From here on nobody but the mapping above can write to it, so nobody can change what others share.
        let seals = SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SHRINK;
        rustix::fs::fcntl_add_seals(&memory.file, seals).map_err(|e| failed("seal", e))?;
        Ok(Self(Arc::new(memory)))
    }

    /// Bytes of the memfd: the section's, in whole pages.
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// Never: there is no mapping of nothing.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Size of a page in bytes.
    pub fn page_size(&self) -> u64 {
        self.0.page_size
    }

    /// Bytes of the section.
    pub fn section_len(&self) -> u64 {
        self.0.reader.len()
    }

    /// Bytes that are in the memfd, or are zeros.
    pub fn filled_bytes(&self) -> u64 {
        self.0.filled.load(SeqCst)
    }

    /// Fills the memfd whether anybody uses it or not: `first`, in this order, then the rest. Faults of those who use it go before. Ends
    /// early when the future is dropped.
    pub async fn fill(&self, first: &[Range<u64>]) -> Result<()> {
        let closing = CancellationToken::new();
        let _closes = closing.clone().drop_guard();
        let (memory, first) = (self.0.clone(), first.to_vec());
        let runtime = Handle::current();
        let filling =
            tokio::task::spawn_blocking(move || fill::memfd(&memory, &runtime, &closing, &first));
        match filling.await {
            Ok(filled) => filled.map(|_| ()),
            Err(_) => Err(Error::interrupted()),
        }
    }

    /// Whether all of the section is in the memfd.
    pub fn is_filled(&self) -> bool {
        self.0.next_absent(0..self.0.len).is_none()
    }

    /// Serves private mappings of the memfd in one process, registered with `userfault`. The offset of a region in the section is its
    /// offset in the memfd. What the process drops reads as zeros afterwards, as in memory of its own, as long as it is served; when it is
    /// not any more, the kernel gives what a private mapping has then: the memfd's bytes.
    pub fn attach(
        &self,
        userfault: Userfault,
        regions: &[Region],
        options: ServeOptions,
    ) -> Result<MemoryServer> {
        if let Some(other) = regions.iter().find(|r| r.page_size != self.0.page_size) {
            return Err(Error::invalid(format!(
                "the region at {:#x} has pages of {} bytes, and the memfd of {}",
                other.addresses.start, other.page_size, self.0.page_size
            )));
        }
        let (reader, memory) = (self.0.reader.clone(), self.0.clone());
        MemoryServer::start_with(userfault, reader, Some(memory), regions, options)
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Memory {
    /// Whether the page at `offset` may be mapped.
    pub fn is_ready(&self, offset: u64) -> bool {
        self.ready.has(offset / self.page_size)
    }

    /// The first range within this one, in whole pages, that is not there.
    pub fn next_absent(&self, within: Range<u64>) -> Option<Range<u64>> {
        let last = within.end.min(self.len).div_ceil(self.page_size);
        let start = self.ready.find(false, within.start / self.page_size, last);
        let end = self.ready.find(true, start, last);
        (start < end).then(|| start * self.page_size..end * self.page_size)
    }

    /// The stretch of ready pages around the page at `offset` within `window`, in runs of zeros and of pages of the file.
    pub fn ready_runs(&self, offset: u64, window: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let size = self.page_size;
        let number = offset / size;
        let (first, last) = (window.start / size, window.end / size);
        let ready = |number: &u64| self.ready.has(*number);
        let start = number - (first..number).rev().take_while(ready).count() as u64;
        let end = number + (number..last).take_while(ready).count() as u64;
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        for number in start..end {
            let (page, zeros) = (number * size..(number + 1) * size, self.zeros.has(number));
            match runs.last_mut() {
                Some((range, kind)) if *kind == zeros => range.end = page.end,
                _ => runs.push((page, zeros)),
            }
        }
        runs
    }

    /// Notes that whole pages are zeros. In huge pages they are in the file nevertheless: the kernel maps nothing else.
    pub fn put_zeros(&self, range: &Range<u64>) {
        for block in blocks(range, self.page_size) {
            let _lock = self.lock(block.start);
            self.each_absent(&block, |page| self.put_zero_page(page));
        }
    }

    /// Puts bytes into whole pages that are not there yet.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let range = offset..offset + bytes.len() as u64;
        for block in blocks(&range, self.page_size) {
            let _lock = self.lock(block.start);
            self.each_absent(&block, |page| {
                let at = (page * self.page_size - offset) as usize;
                let bytes = &bytes[at..at + self.page_size as usize];
                if chunking::zeros::is_zero(bytes) {
                    self.put_zero_page(page);
                } else {
                    // SAFETY: the page is not ready, so nobody looks at it, and its lock is held, so nobody else writes it.
                    unsafe { self.page_mut(page * self.page_size, bytes.len()) }
                        .copy_from_slice(bytes);
                    self.add_ready(page..page + 1);
                }
            });
        }
    }

    /// Decodes the bytes of a range in place, as far as they are in memory. Returns whether all of it is there now.
    pub fn put_resident(&self, range: &Range<u64>) -> bool {
        let section_end = self.reader.len();
        blocks(range, self.page_size).all(|block| {
            let _lock = self.lock(block.start);
            while let Some(absent) = self.next_absent(block.clone()) {
                let absent = absent.start..absent.end.min(block.end);
                let read = absent.start..absent.end.min(section_end);
                // SAFETY: as above.
                let target =
                    unsafe { self.page_mut(absent.start, (absent.end - absent.start) as usize) };
                let (bytes, tail) = target.split_at_mut((read.end - read.start) as usize);
                if self
                    .reader
                    .read_resident(bytes, read.start, read.clone())
                    .is_none()
                {
                    return false;
                }
                tail.fill(0);
                self.add_ready(absent.start / self.page_size..absent.end / self.page_size);
            }
            true
        })
    }

    fn add_ready(&self, pages: Range<u64>) {
        let added = self.ready.add(pages) * self.page_size;
        self.filled.fetch_add(added, SeqCst);
    }

    fn put_zero_page(&self, page: u64) {
        if is_huge(self.page_size) {
            let len = self.page_size as usize;
            // SAFETY: called for pages that are not ready, with their lock.
            unsafe { self.page_mut(page * self.page_size, len) }.fill(0);
        } else {
            self.zeros.add(page..page + 1);
        }
        self.add_ready(page..page + 1);
    }

    fn each_absent(&self, range: &Range<u64>, mut put: impl FnMut(u64)) {
        for page in range.start / self.page_size..range.end / self.page_size {
            if !self.ready.has(page) {
                put(page);
            }
        }
    }

    fn lock(&self, offset: u64) -> std::sync::MutexGuard<'_, ()> {
        let block = offset / WINDOW.max(self.page_size);
        self.locks[block as usize % LOCKS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// # Safety
    /// The pages are not ready and within the file, and their lock is held.
    #[expect(
        clippy::mut_from_ref,
        reason = "the lock stands for the exclusive borrow"
    )]
    unsafe fn page_mut(&self, offset: u64, len: usize) -> &mut [u8] {
        debug_assert!(offset + len as u64 <= self.len);
        // SAFETY: the mapping has `len` bytes and the caller has these for itself.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_ptr().add(offset as usize), len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody has it any more.
        let _ = unsafe { rustix::mm::munmap(self.pages.as_ptr().cast(), self.len as usize) };
    }
}

/// The parts of a range that have a lock each.
fn blocks(range: &Range<u64>, page_size: u64) -> impl Iterator<Item = Range<u64>> {
    let (mut at, end) = (range.start, range.end);
    let len = WINDOW.max(page_size);
    std::iter::from_fn(move || {
        let block = at..end.min((at / len + 1) * len);
        at = block.end;
        (!block.is_empty()).then_some(block)
    })
}
