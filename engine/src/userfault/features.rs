//! What this machine's kernel can do, and userfaultfds that are opened here.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use linux_raw_sys::general as raw;
use rustix::io::Errno;

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
/// zeros**, so whoever must not read zeros keeps a [duplicate](Self::duplicate) in a place that does not die with the server.
#[derive(Debug, Clone)]
pub struct Userfault(pub(super) Arc<Descriptor>);

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
        let descriptor = open()?;
        if let Err(e) = descriptor.agree(features.0 & wanted) {
            // Forks are told to those only who may trace.
            if e.raw_os_error() != Some(Errno::PERM.raw_os_error()) {
                return Err(unusable(e));
            }
            let descriptor = open()?;
            let fork = u64::from(raw::UFFD_FEATURE_EVENT_FORK);
            descriptor
                .agree(features.0 & wanted & !fork)
                .map_err(unusable)?;
            return Ok(Self(Arc::new(descriptor)));
        }
        Ok(Self(Arc::new(descriptor)))
    }

    /// Takes one that another process opened and agreed with the kernel about, such as came over a socket.
    pub fn adopt(fd: OwnedFd) -> Result<Self> {
        let descriptor = Descriptor::adopt(fd)
            .map_err(|e| Error::invalid("the descriptor cannot be used").because(e))?;
        Ok(Self(Arc::new(descriptor)))
    }

    /// Registers memory of this process: its missing pages are to be served from now on.
    pub fn register(&self, addresses: Range<u64>) -> Result<()> {
        self.register_as(addresses, false)
    }

    /// Registers a mapping of a memfd of this process: missing pages, and those that are in the file and not mapped yet.
    pub fn register_shared(&self, addresses: Range<u64>) -> Result<()> {
        self.register_as(addresses, true)
    }

    fn register_as(&self, addresses: Range<u64>, minor: bool) -> Result<()> {
        self.0.register(&addresses, minor).map_err(|e| {
            let what = format!(
                "the memory {:#x}..{:#x} cannot be registered with userfaultfd",
                addresses.start, addresses.end
            );
            Error::new(ErrorKind::Target, what).because(e).hint(
                "it must be mapped, whole pages, writable, and anonymous or of a memfd",
            )
        })
    }

    /// Another descriptor of the same, to be kept by somebody who outlives the server.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        self.0
            .duplicate()
            .map_err(|e| Error::target_action("duplicate", "a userfaultfd", e))
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
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
