//! The kernel's userfaultfd interface: every system call that this module's unsafe is for, and nothing that decides anything.
//!
//! The numbers and structures are the kernel's own ([`linux_raw_sys`]). An operation that installs pages may do part of its work:
//! it says how far it came and what stopped it ([`Progress`]), and its caller goes on from there.

use std::{
    ffi::c_void,
    fs::File,
    io::{self, ErrorKind},
    mem::size_of,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use linux_raw_sys::general as raw;
use rustix::{
    fs::OFlags,
    io::Errno,
    ioctl::{self, IoctlOutput, Opcode, opcode},
    mm::UserfaultfdFlags,
};

const API: Opcode = opcode::read_write::<raw::uffdio_api>(IOC, raw::_UFFDIO_API as u8);
const REGISTER: Opcode =
    opcode::read_write::<raw::uffdio_register>(IOC, raw::_UFFDIO_REGISTER as u8);
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(IOC, raw::_UFFDIO_UNREGISTER as u8);
const WAKE: Opcode = opcode::read::<raw::uffdio_range>(IOC, raw::_UFFDIO_WAKE as u8);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(IOC, raw::_UFFDIO_COPY as u8);
const ZEROPAGE: Opcode =
    opcode::read_write::<raw::uffdio_zeropage>(IOC, raw::_UFFDIO_ZEROPAGE as u8);
const CONTINUE: Opcode =
    opcode::read_write::<raw::uffdio_continue>(IOC, raw::_UFFDIO_CONTINUE as u8);
const POISON: Opcode = opcode::read_write::<raw::uffdio_poison>(IOC, raw::_UFFDIO_POISON as u8);
const IOC: u8 = raw::UFFDIO as u8;
/// `USERFAULTFD_IOC_NEW` of /dev/userfaultfd.
const NEW: Opcode = opcode::none(IOC, 0);

/// Addresses that waiters may have.
pub(super) const ALL: Range<u64> = 0x1_0000..0x7fff_0000_0000;
const NOWHERE: Range<u64> = 0x1_0000..0x1_1000;

/// Events read at once.
const EVENTS: usize = 16;
const MESSAGE_LEN: usize = size_of::<raw::uffd_msg>();

/// A userfaultfd, not blocking.
#[derive(Debug)]
pub(super) struct Descriptor(OwnedFd);

/// How far an operation on a range came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Bytes from the range's beginning that are done.
    pub done: u64,
    /// What stopped it, if it is not done to its end. Nothing, when the kernel only wants to be asked again.
    pub stop: Option<Stop>,
}

/// What stops an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The next page is there already. Whoever waits for it may not have been woken.
    Present,
    /// An event waits to be read, and nothing goes on before it is.
    EventsFirst,
    /// The range is not, or no longer, mapped and registered.
    Gone,
    /// The process has ended.
    Ended,
    /// Anything else.
    Failed(Errno),
}

/// What a userfaultfd tells.
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for a page.
    Fault { address: u64 },
    /// The process forked; the descriptor is the child's.
    Fork(Descriptor),
    /// Pages were moved.
    Remap { from: u64, to: u64, len: u64 },
    /// Pages were dropped: what is there from now on are zeros.
    Remove(Range<u64>),
    /// The range is no longer mapped.
    Unmap(Range<u64>),
}

impl Descriptor {
    /// Opens one for the calling process: by the system call, else by the device, which has permissions of its own.
    pub fn open() -> io::Result<Self> {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: nothing happens to any memory before it is registered.
        match unsafe { rustix::mm::userfaultfd(flags) } {
            Ok(fd) => Ok(Self(fd)),
            Err(e) if e == Errno::PERM || e == Errno::NOSYS => {
                let device = File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/userfaultfd")
                    .map_err(|device| match device.kind() {
                        ErrorKind::NotFound => io::Error::from(e),
                        _ => device,
                    })?;
                // SAFETY: the device's only request makes a descriptor.
                Ok(Self(unsafe { ioctl::ioctl(&device, New(flags)) }?))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Takes one that another process opened and agreed with the kernel about. Fails if it is anything else.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if link.as_os_str() != "anon_inode:[userfaultfd]" {
            let what = format!("it is {}, no userfaultfd", link.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        // Polling one that blocks says nothing but that it does.
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        let this = Self(fd);
        // Before it is agreed about, nothing works.
        this.wake(&ALL).map_err(|_| {
            let what = "its owner has not agreed with the kernel about it (UFFDIO_API)";
            io::Error::new(ErrorKind::InvalidInput, what)
        })?;
        Ok(this)
    }

    /// For a process that keeps one and must not allocate: takes it as it is.
    pub fn keep(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Agrees with the kernel on features: once only for each descriptor. Returns all that the kernel has.
    pub fn agree(&self, features: u64) -> io::Result<u64> {
        let mut api = raw::uffdio_api {
            api: u64::from(raw::UFFD_API),
            features,
            ioctls: 0,
        };
        self.request::<API, _>(&mut api)?;
        Ok(api.features)
    }

    /// Registers a range of the process's own memory.
    pub fn register(&self, range: &Range<u64>, minor: bool) -> io::Result<()> {
        let mut mode = raw::UFFDIO_REGISTER_MODE_MISSING;
        if minor {
            mode |= raw::UFFDIO_REGISTER_MODE_MINOR;
        }
        let mut register = raw::uffdio_register {
            range: raw_range(range),
            mode: u64::from(mode),
            ioctls: 0,
        };
        Ok(self.request::<REGISTER, _>(&mut register)?)
    }

    /// Ends the registration of a range; whoever waits there is woken.
    pub fn unregister(&self, range: &Range<u64>) -> Result<(), Errno> {
        self.request::<UNREGISTER, _>(&mut raw_range(range))
    }

    /// Wakes whoever waits for pages of the range, to look again.
    pub fn wake(&self, range: &Range<u64>) -> Result<(), Errno> {
        self.request::<WAKE, _>(&mut raw_range(range))
    }

    /// Installs copies of these bytes from `address` on.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Progress {
        let mut copy = raw::uffdio_copy {
            dst: address,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copy: 0,
        };
        let result = self.request::<COPY, _>(&mut copy);
        progress(result, copy.copy, copy.len)
    }

    /// The same, and nobody is woken.
    #[cfg(test)]
    pub fn copy_quietly(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut copy = raw::uffdio_copy {
            dst: address,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: u64::from(raw::UFFDIO_COPY_MODE_DONTWAKE),
            copy: 0,
        };
        self.request::<COPY, _>(&mut copy)
    }

    /// Installs pages of zeros. Not in huge pages.
    pub fn zeros(&self, range: &Range<u64>) -> Progress {
        let mut zeros = raw::uffdio_zeropage {
            range: raw_range(range),
            mode: 0,
            zeropage: 0,
        };
        let result = self.request::<ZEROPAGE, _>(&mut zeros);
        progress(result, zeros.zeropage, zeros.range.len)
    }

    /// Maps the pages that the mapped file has.
    pub fn map_present(&self, range: &Range<u64>) -> Progress {
        let mut map = raw::uffdio_continue {
            range: raw_range(range),
            mode: 0,
            mapped: 0,
        };
        let result = self.request::<CONTINUE, _>(&mut map);
        progress(result, map.mapped, map.range.len)
    }

    /// Makes pages that are not there fatal to whoever touches them.
    pub fn poison(&self, range: &Range<u64>) -> Progress {
        let mut poison = raw::uffdio_poison {
            range: raw_range(range),
            mode: 0,
            updated: 0,
        };
        let result = self.request::<POISON, _>(&mut poison);
        progress(result, poison.updated, poison.range.len)
    }

    /// Hands out the events that are there, as many as are read at once. Allocates nothing.
    pub fn read(&self, each: impl FnMut(Event)) -> Result<(), Errno> {
        let mut messages = [0; EVENTS * MESSAGE_LEN];
        let len = match rustix::io::read(&self.0, &mut messages) {
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(e) => return Err(e),
        };
        let messages = messages[..len].chunks_exact(MESSAGE_LEN);
        messages.filter_map(event).for_each(each);
        Ok(())
    }

    /// Whether the process has ended.
    pub fn has_ended(&self) -> bool {
        // Where nothing is ever registered, since nothing is mapped at so low addresses.
        self.zeros(&NOWHERE).stop == Some(Stop::Ended)
    }

    /// Another descriptor of the same, which keeps the memory from reading as zeros when this one is closed.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    fn request<const OPCODE: Opcode, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: the opcodes above are made from the types they are used with. The kernel writes to `argument`, and to memory of a process
        // only where a userfaultfd stands for it, in pages that were not there before and that nobody can hold a reference into.
        unsafe { ioctl::ioctl(&self.0, ioctl::Updater::<OPCODE, T>::new(argument)) }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn raw_range(range: &Range<u64>) -> raw::uffdio_range {
    raw::uffdio_range {
        start: range.start,
        len: range.end - range.start,
    }
}

/// Reads the two answers of the kernel. `field` is a number of bytes or a negative error, and in some kernels stays 0 where it should be
/// -EAGAIN; the call itself then fails with EAGAIN. Behind a part that was done, the reason comes only when one asks again.
fn progress(result: Result<(), Errno>, field: i64, len: u64) -> Progress {
    let error = match result {
        Ok(()) => {
            return Progress {
                done: len,
                stop: None,
            };
        }
        Err(_) if field > 0 => {
            return Progress {
                done: field as u64,
                stop: None,
            };
        }
        Err(e) if field == 0 => e,
        Err(_) => Errno::from_raw_os_error(i32::try_from(-field).unwrap_or(i32::MAX)),
    };
    let stop = match error {
        Errno::EXIST => Stop::Present,
        Errno::AGAIN => Stop::EventsFirst,
        Errno::NOENT => Stop::Gone,
        Errno::SRCH => Stop::Ended,
        e => Stop::Failed(e),
    };
    Progress {
        done: 0,
        stop: Some(stop),
    }
}

/// A message; `None` for one of a kind that was never asked for.
fn event(message: &[u8]) -> Option<Event> {
    let word = |at: usize| {
        let bytes = message[at..].first_chunk().expect("messages have 32 bytes");
        u64::from_ne_bytes(*bytes)
    };
    Some(match u32::from(message[0]) {
        raw::UFFD_EVENT_PAGEFAULT => Event::Fault { address: word(16) },
        raw::UFFD_EVENT_FORK => {
            let fd = u32::from_ne_bytes(*message[8..].first_chunk().expect("as above"));
            // SAFETY: the kernel made this descriptor for whoever reads the message, which nobody else does.
            let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
            Event::Fork(Descriptor(fd))
        }
        raw::UFFD_EVENT_REMAP => Event::Remap {
            from: word(8),
            to: word(16),
            len: word(24),
        },
        raw::UFFD_EVENT_REMOVE => Event::Remove(word(8)..word(16)),
        raw::UFFD_EVENT_UNMAP => Event::Unmap(word(8)..word(16)),
        _ => return None,
    })
}

/// The request of /dev/userfaultfd, whose argument are flags and whose answer is a descriptor.
struct New(UserfaultfdFlags);

// SAFETY: the kernel's `USERFAULTFD_IOC_NEW` takes its flags in place of a pointer, touches no memory and returns a new descriptor.
unsafe impl ioctl::Ioctl for New {
    type Output = OwnedFd;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so this is a descriptor that nobody has yet.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(done: u64, stop: Option<Stop>) -> Progress {
        Progress { done, stop }
    }

    #[test]
    fn reads_every_answer_of_the_kernel() {
        assert_eq!(progress(Ok(()), 8192, 8192), stopped(8192, None));
        assert_eq!(
            progress(Err(Errno::AGAIN), 4096, 8192),
            stopped(4096, None),
            "a part was done"
        );
        let events_first = stopped(0, Some(Stop::EventsFirst));
        assert_eq!(progress(Err(Errno::AGAIN), -11, 8192), events_first);
        assert_eq!(progress(Err(Errno::AGAIN), 0, 8192), events_first);
        assert_eq!(
            progress(Err(Errno::EXIST), -17, 8192),
            stopped(0, Some(Stop::Present))
        );
        assert_eq!(
            progress(Err(Errno::NOENT), 0, 8192),
            stopped(0, Some(Stop::Gone))
        );
        assert_eq!(
            progress(Err(Errno::SRCH), 0, 8192),
            stopped(0, Some(Stop::Ended))
        );
    }

    #[test]
    fn opcodes_are_the_kernels() {
        use linux_raw_sys::ioctl as known;
        assert_eq!(API, known::UFFDIO_API as Opcode);
        assert_eq!(REGISTER, known::UFFDIO_REGISTER as Opcode);
        assert_eq!(UNREGISTER, known::UFFDIO_UNREGISTER as Opcode);
        assert_eq!(WAKE, known::UFFDIO_WAKE as Opcode);
        assert_eq!(COPY, known::UFFDIO_COPY as Opcode);
        assert_eq!(ZEROPAGE, known::UFFDIO_ZEROPAGE as Opcode);
        assert_eq!(CONTINUE, known::UFFDIO_CONTINUE as Opcode);
    }
}
