//! What this machine's kernel can do, and userfaultfds that are opened here.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use linux_raw_sys::general as raw;
use rustix::{io::Errno, process::Signal};

use super::sys::Descriptor;
use crate::error::{Error, ErrorKind, Result};

/// What the kernel offers of userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Asks the kernel. Fails as [`Userfault::open`] does where no userfaultfd may be opened.
    pub fn probe() -> Result<Self> {
        Ok(Self(open()?.agree(0).map_err(unusable)?))
    }

    fn has(self, bit: u32) -> bool {
        self.0 & u64::from(bit) != 0
    }

    /// Whether a page that cannot be had can be made to kill whoever touches it (Linux 6.6). Without it, the process is killed.
    pub fn poison(self) -> bool {
        self.has(raw::UFFD_FEATURE_POISON)
    }

    /// Whether pages of a memfd can be mapped instead of copied (Linux 5.14).
    pub fn minor_shmem(self) -> bool {
        self.has(raw::UFFD_FEATURE_MINOR_SHMEM)
    }

    /// The same in huge pages (Linux 5.13).
    pub fn minor_hugetlbfs(self) -> bool {
        self.has(raw::UFFD_FEATURE_MINOR_HUGETLBFS)
    }

    /// Whether it tells of dropped, moved and unmapped pages (Linux 4.11).
    pub fn events(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_REMOVE)
            && self.has(raw::UFFD_FEATURE_EVENT_REMAP)
            && self.has(raw::UFFD_FEATURE_EVENT_UNMAP)
    }

    /// Whether it tells of forks, which takes the right to trace processes (Linux 4.11).
    pub fn fork(self) -> bool {
        self.has(raw::UFFD_FEATURE_EVENT_FORK)
    }
}

/// A userfaultfd: the kernel's way to have the page faults of one process answered by somebody else.
///
/// As long as any descriptor of it is open, missing pages of registered memory wait to be served. **When the last one is closed, they read as
/// zeros**. A [`MemoryServer`](super::MemoryServer) of another process's memory therefore has its watchdog hold one.
#[derive(Debug)]
pub struct Userfault {
    pub(super) descriptor: Arc<Descriptor>,
    pub(super) process: Process,
    /// Whether forks are told. Otherwise a child would read zeros.
    forks: bool,
}

/// Whose memory it is.
#[derive(Debug)]
pub(super) enum Process {
    /// This process's.
    Own,
    /// The one that this is a pidfd of.
    Other(OwnedFd),
}

impl Process {
    /// Something that is readable once it has ended.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Own => None,
            Self::Other(pidfd) => Some(pidfd.as_fd()),
        }
    }

    /// Kills it, and with it whoever reads its memory.
    pub fn kill(&self) {
        let _ = match self {
            Self::Own => rustix::process::kill_process(rustix::process::getpid(), Signal::KILL),
            Self::Other(pidfd) => rustix::process::pidfd_send_signal(pidfd, Signal::KILL),
        };
    }
}

impl Userfault {
    /// Opens one for the memory of this process, with all events that the kernel tells.
    pub fn open() -> Result<Self> {
        let features = Features::probe()?;
        let wanted = [
            raw::UFFD_FEATURE_EVENT_FORK,
            raw::UFFD_FEATURE_EVENT_REMAP,
            raw::UFFD_FEATURE_EVENT_REMOVE,
            raw::UFFD_FEATURE_EVENT_UNMAP,
            raw::UFFD_FEATURE_MISSING_HUGETLBFS,
            raw::UFFD_FEATURE_MISSING_SHMEM,
            raw::UFFD_FEATURE_MINOR_HUGETLBFS,
            raw::UFFD_FEATURE_MINOR_SHMEM,
            raw::UFFD_FEATURE_POISON,
        ];
        let wanted = wanted.into_iter().fold(0, |all, bit| all | u64::from(bit));
        let own = |descriptor, forks| Self {
            descriptor: Arc::new(descriptor),
            process: Process::Own,
            forks,
        };
        let fork = u64::from(raw::UFFD_FEATURE_EVENT_FORK);
        // A child's pages that cannot be had can only be poisoned, since nobody says which process it is.
        if features.fork() && features.poison() {
            let descriptor = open()?;
            match descriptor.agree(features.0 & wanted) {
                Ok(_) => return Ok(own(descriptor, true)),
                // Forks are told to those only who may trace.
                Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
                Err(e) => return Err(unusable(e)),
            }
        }
        let descriptor = open()?;
        descriptor
            .agree(features.0 & wanted & !fork)
            .map_err(unusable)?;
        Ok(own(descriptor, false))
    }

    /// Takes one that another process, of which `pidfd` is one, opened and agreed with the kernel about. It must have agreed on being told
    /// of whatever it does to its memory: dropped without that (`EVENT_REMOVE`) it gets the section's bytes again, moved (`EVENT_REMAP`) SIGBUS, and a
    /// child (`EVENT_FORK`) zeros for what is missing.
    pub fn adopt(fd: OwnedFd, pidfd: OwnedFd) -> Result<Self> {
        let descriptor = Descriptor::adopt(fd)
            .map_err(|e| Error::invalid("the descriptor cannot be used").because(e))?;
        Ok(Self {
            descriptor: Arc::new(descriptor),
            process: Process::Other(pidfd),
            forks: true,
        })
    }

    /// Registers memory of this process, and of a child that it forks where forks are told ([`Features::fork`]); elsewhere children do not have it. Its missing pages are to be served from now on.
    pub fn register(&self, addresses: Range<u64>) -> Result<()> {
        self.register_as(addresses, false)
    }

    /// Registers a mapping of a memfd of this process: missing pages, and those that are in the file and not mapped yet.
    pub fn register_shared(&self, addresses: Range<u64>) -> Result<()> {
        self.register_as(addresses, true)
    }

    fn register_as(&self, addresses: Range<u64>, minor: bool) -> Result<()> {
        if !self.forks {
            not_for_children(&addresses);
        }
        self.descriptor.register(&addresses, minor).map_err(|e| {
            let what = format!(
                "the memory {:#x}..{:#x} cannot be registered with userfaultfd",
                addresses.start, addresses.end
            );
            Error::new(ErrorKind::Target, what)
                .because(e)
                .hint("it must be mapped, whole pages, writable, and anonymous or of a memfd")
        })
    }

    /// Another descriptor of the same, to be handed to the process that serves.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.descriptor
            .duplicate()
            .map_err(|e| Error::target_action("duplicate", "a userfaultfd", e))
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Leaves memory out of what a child of this process has.
pub(super) fn not_for_children(addresses: &Range<u64>) {
    let (start, len) = (
        addresses.start as usize,
        addresses.end.saturating_sub(addresses.start) as usize,
    );
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: it changes nothing in this process; a child that uses the memory nevertheless has none there.
    let _ = unsafe { rustix::mm::madvise(start, len, rustix::mm::Advice::LinuxDontFork) };
}

fn open() -> Result<Descriptor> {
    Descriptor::open().map_err(|e| {
        let error = Error::new(ErrorKind::Forbidden, "userfaultfd cannot be used here");
        match e.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::PERM | Errno::ACCESS) => error.because(e).hint(
                "it takes CAP_SYS_PTRACE, or the right to open /dev/userfaultfd, or the setting vm.unprivileged_userfaultfd=1",
            ),
            Some(Errno::NOSYS) => Error::new(ErrorKind::Unsupported, "this kernel has no userfaultfd")
                .because(e)
                .hint("it needs CONFIG_USERFAULTFD, and a sandbox that lets the call through"),
            _ => error.because(e),
        }
    })
}

fn unusable(e: io::Error) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the kernel's userfaultfd lacks what serving needs",
    )
    .because(e)
}
