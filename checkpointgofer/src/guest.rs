//! Memory of the sandbox that the sentry registered: bytes are taken from it and put into it.
//!
//! It is a file of the sentry's, which may shrink it at any time, so that touching a mapping of it may end this process by SIGBUS. Nothing here ever
//! touches one: bytes are read from the file, and written into it or, by the kernel, into a mapping that exists for this only. The kernel finds pages
//! missing and says so. Writing into the file costs a third of the processor time, but a file takes one writer at a time and has small pages
//! only; through the mapping many threads write at once, and pages are as large as the sentry wants them.

use std::{
    fs::File,
    io::{self, IoSlice},
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_writev},
    unistd::Pid,
};
use rustix::{
    fs::FileType,
    mm::{Advice, MapFlags, ProtFlags},
};

/// Threads that write into a file at once, all but one of them waiting: more of them are faster through the mapping.
const MAX_WRITERS: usize = 3;

/// What the sentry wants of the pages in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// Huge ones, where the kernel has them.
    Huge,
    /// No huge ones.
    Small,
}

/// A registered file.
#[derive(Debug)]
pub struct GuestFile {
    file: File,
    len: u64,
    /// Where it is written.
    mapping: Option<Mapping>,
    /// The kernel cannot write into mappings, so files are written.
    no_mapping: AtomicBool,
    /// The sentry wants huge pages somewhere, which only the mapping makes.
    huge: AtomicBool,
    /// Threads that write into the file or wait for their turn.
    writers: AtomicUsize,
}

impl GuestFile {
    /// The first `len` bytes of a file, for reading or also for writing.
    pub fn new(fd: OwnedFd, len: u64, writable: bool) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("what is registered is no regular file".to_owned()));
        }
        if len > stat.st_size as u64 {
            return Err(refused(format!(
                "{len} bytes are registered of a file that has {}",
                stat.st_size
            )));
        }
        let mapping = (writable && len > 0).then(|| Mapping::new(&fd, len));
        Ok(Self {
            file: fd.into(),
            len,
            mapping: mapping.transpose()?,
            no_mapping: AtomicBool::new(false),
            huge: AtomicBool::new(false),
            writers: AtomicUsize::new(0),
        })
    }

    /// Bytes that were registered.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing was registered.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it can be written.
    pub fn is_writable(&self) -> bool {
        self.len == 0 || self.mapping.is_some()
    }

    /// How large the pages in a range should be. Only for files that are written: the pages of others are there.
    pub fn advise(&self, range: &Range<u64>, pages: PageSize) -> io::Result<()> {
        match &self.mapping {
            Some(mapping) => {
                if pages == PageSize::Huge {
                    self.huge.store(true, Ordering::Relaxed);
                }
                mapping.advise(range, pages)
            }
            None => Ok(()),
        }
    }

    /// Fills `buf` from `offset`, which must be inside.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// Writes `bytes` at `offset`, which must be inside.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(refused(format!(
                "{} bytes at {offset} are outside of what was registered",
                bytes.len()
            )));
        }
        let mapping = match &self.mapping {
            Some(mapping) if !self.no_mapping.load(Ordering::Relaxed) => mapping,
            _ => return self.write_into_file(bytes, offset),
        };
        if !self.huge.load(Ordering::Relaxed) {
            let before = self.writers.fetch_add(1, Ordering::Relaxed);
            let written = (before < MAX_WRITERS).then(|| self.write_into_file(bytes, offset));
            self.writers.fetch_sub(1, Ordering::Relaxed);
            if let Some(written) = written {
                return written;
            }
        }
        match mapping.write_at(bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                self.no_mapping.store(true, Ordering::Relaxed);
                self.write_into_file(bytes, offset)
            }
            written => written,
        }
    }

    /// Unless it was cut off: writing would make it longer again.
    fn write_into_file(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.file.metadata()?.len() {
            return Err(cut_off());
        }
        self.file.write_all_at(bytes, offset)
    }
}

/// A mapping that only the kernel touches.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is never dereferenced by this process.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &impl AsFd, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| refused(format!("{len} bytes")))?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address that nothing else uses.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0)? };
        Ok(Self {
            start: NonNull::new(start.cast()).expect("a mapping is not at 0"),
            len,
        })
    }

    /// The address of a range, if it is inside.
    fn address(&self, offset: u64, len: usize) -> io::Result<usize> {
        let offset = usize::try_from(offset).ok();
        let inside = offset.filter(|at| at.checked_add(len).is_some_and(|end| end <= self.len));
        let offset = inside.ok_or_else(|| refused("a range outside of the mapping".to_owned()))?;
        Ok(self.start.as_ptr().addr() + offset)
    }

    fn advise(&self, range: &Range<u64>, pages: PageSize) -> io::Result<()> {
        let len = range.end.saturating_sub(range.start) as usize;
        let address = self.address(range.start, len)?;
        let advice = match pages {
            PageSize::Huge => Advice::LinuxHugepage,
            PageSize::Small => Advice::LinuxNoHugepage,
        };
        let address = self.start.as_ptr().with_addr(address);
        // SAFETY: the range is inside the mapping, and this advice changes no contents.
        unsafe { rustix::mm::madvise(address.cast(), len, advice) }.map_err(io::Error::from)
    }

    fn write_at(&self, mut bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut address = self.address(offset, bytes.len())?;
        while !bytes.is_empty() {
            let remote = RemoteIoVec {
                base: address,
                len: bytes.len(),
            };
            match process_vm_writev(Pid::this(), &[IoSlice::new(bytes)], &[remote]) {
                Ok(0) | Err(Errno::EFAULT) => {
                    return Err(cut_off());
                }
                Ok(written) => {
                    bytes = &bytes[written..];
                    address += written;
                }
                Err(Errno::EINTR) => {}
                // Kernels may be built without it, and sandboxes may forbid it.
                Err(Errno::ENOSYS | Errno::EPERM) => return Err(io::ErrorKind::Unsupported.into()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nobody has a reference into it.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file was cut off, or there is no memory for it",
    )
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}
