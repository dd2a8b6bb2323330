//! A process of its own that holds a descriptor of everything that is served, so that memory does not read as zeros when the server is killed: the
//! kernel fills missing pages with zeros once nobody holds the userfaultfd any more.
//!
//! One watchdog guards all that a process serves. When that process dies, it makes whatever is touched and missing fatal to who touches it, or kills
//! the process where the kernel cannot do that, and ends with the last of those processes. It is forked from the server and executes nothing, for a library
//! has no program to execute: it therefore allocates nothing, takes no locks, and closes all that it inherits.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow, sigprocmask},
    unistd::{ForkResult, fork},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{PidfdFlags, Signal, WaitOptions},
};

use super::sys::{ALL, Descriptor, Event, Stop};
use crate::error::{Error, ErrorKind, Result};

/// Processes that one watchdog guards.
const PLACES: usize = 128;

/// The sizes of pages, the usual first.
const PAGES: [u64; 2] = [4096, 2 << 20];

/// What a message says of a place: hold these descriptors, and poison or kill when the server dies; or let them go.
const POISON: u32 = 0;
const KILL: u32 = 1;
const FORGET: u32 = 2;

/// The one that guards what is served now.
static CURRENT: Mutex<Option<Arc<Watchdog>>> = Mutex::new(None);

/// The server's end.
#[derive(Debug)]
struct Watchdog {
    socket: OwnedFd,
    taken: Mutex<[bool; PLACES]>,
}

/// A place in a watchdog. Dropped, it stays taken: the process is then guarded as if the server had died.
#[derive(Debug)]
pub(super) struct Guarded {
    watchdog: Arc<Watchdog>,
    place: usize,
}

impl Guarded {
    /// Has a userfaultfd guarded. The process, if it is known, is killed at once when the server dies, or only if nothing else helps.
    pub fn new(
        descriptor: &Descriptor,
        process: Option<BorrowedFd<'_>>,
        kill: bool,
    ) -> Result<Self> {
        let failed = |e| {
            Error::new(
                ErrorKind::Target,
                "the watchdog that memory is served with cannot be started",
            )
            .because(std::io::Error::from(e))
        };
        let mut fds = vec![descriptor.as_fd()];
        fds.extend(process);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let word = if kill { KILL } else { POISON };
        if let Some(watchdog) = &*current
            && let Some(place) = watchdog.take()
        {
            match watchdog.send(word, place, &fds) {
                Ok(()) => {
                    return Ok(Self {
                        watchdog: watchdog.clone(),
                        place,
                    });
                }
                Err(e) => tracing::error!(
                    "the watchdog of the memory that is served was killed ({e}): should this process die, too, missing pages read as zeros"
                ),
            }
        }
        let watchdog = Arc::new(Watchdog::start().map_err(failed)?);
        let place = watchdog.take().expect("a new one has places");
        watchdog.send(word, place, &fds).map_err(failed)?;
        *current = Some(watchdog.clone());
        Ok(Self { watchdog, place })
    }

    /// There is nothing left to guard.
    pub fn forget(self) {
        if self.watchdog.send(FORGET, self.place, &[]).is_ok() {
            self.watchdog.taken()[self.place] = false;
        }
    }
}

impl Watchdog {
    fn start() -> std::result::Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC;
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let server = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        let errno = |e: nix::Error| Errno::from_raw_os_error(e as i32);
        // A handler of the server's must not run in the watchdog, and what ends the server must not end it.
        let mut before = SigSet::empty();
        sigprocmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut before),
        )
        .map_err(errno)?;
        // SAFETY: the child calls `detach`, which does nothing that must not be done between fork and exec, and does not return.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            detach(&theirs, &server);
        }
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        if let ForkResult::Parent { child } = forked.map_err(errno)? {
            // Its own child is the watchdog, which thereby is nobody's here.
            let child = rustix::process::Pid::from_raw(child.as_raw());
            rustix::io::retry_on_intr(|| rustix::process::waitpid(child, WaitOptions::empty()))?;
        }
        Ok(Self {
            socket,
            taken: Mutex::new([false; PLACES]),
        })
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, [bool; PLACES]> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<usize> {
        let mut taken = self.taken();
        let place = taken.iter().position(|taken| !taken)?;
        taken[place] = true;
        Some(place)
    }

    fn send(
        &self,
        word: u32,
        place: usize,
        fds: &[BorrowedFd<'_>],
    ) -> std::result::Result<(), Errno> {
        let message = [word.to_ne_bytes(), (place as u32).to_ne_bytes()].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let message = [IoSlice::new(&message)];
        sendmsg(&self.socket, &message, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// What the child does: has a child of its own become the watchdog, and ends.
fn detach(socket: &OwnedFd, server: &OwnedFd) -> ! {
    // SAFETY: as above; `watch` allocates nothing and takes no locks.
    if let Ok(ForkResult::Child) = unsafe { fork() } {
        let _ = rustix::process::setsid();
        let _ = rustix::process::chdir("/");
        let _ = rustix::thread::set_name(c"podsnap-watch");
        keep_only([socket.as_raw_fd(), server.as_raw_fd()]);
        // Whatever happens, what is the server's to do must not be done here as well.
        let _ = catch_unwind(AssertUnwindSafe(|| watch(socket, server)));
    }
    // SAFETY: it ends the process, with nothing of the server's run before.
    unsafe { libc::_exit(0) }
}

/// Closes everything but these and standard error: a descriptor kept here would keep pipes and files of the server's open.
fn keep_only(mut kept: [i32; 2]) {
    kept.sort_unstable();
    let mut from: u32 = 0;
    for fd in [2, kept[0], kept[1]] {
        let fd = fd as u32;
        if from < fd {
            close_range(from, fd - 1);
        }
        from = from.max(fd + 1);
    }
    close_range(from, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: nothing in this process uses the descriptors any more.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// A process that is guarded.
struct Place {
    descriptor: Descriptor,
    process: Option<OwnedFd>,
    kill: bool,
}

fn watch(socket: &OwnedFd, server: &OwnedFd) {
    let mut places: [Option<Place>; PLACES] = [const { None }; PLACES];
    let (mut listening, mut lost) = (true, false);
    while !(lost && places.iter().all(Option::is_none)) {
        let nothing = PollFlags::empty();
        let mut fds: [PollFd<'_>; 2 + 2 * PLACES] =
            std::array::from_fn(|_| PollFd::new(server, nothing));
        if listening {
            fds[0] = PollFd::new(socket, PollFlags::IN);
        }
        if !lost {
            fds[1] = PollFd::new(server, PollFlags::IN);
        }
        for (number, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            if lost {
                fds[2 + 2 * number] = PollFd::new(&place.descriptor, PollFlags::IN);
            }
            if let Some(process) = &place.process {
                fds[3 + 2 * number] = PollFd::new(process, PollFlags::IN);
            }
        }
        // Of some processes nothing tells when they end.
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let _ = poll(&mut fds, Some(&second));
        let ready = |fd: &PollFd<'_>| {
            fd.revents()
                .intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
        };
        let (said, died) = (listening && ready(&fds[0]), !lost && ready(&fds[1]));
        let ended: [bool; PLACES] = std::array::from_fn(|number| {
            let process = places[number].as_ref().map(|place| place.process.is_some());
            process == Some(true) && ready(&fds[3 + 2 * number])
        });
        for (place, ended) in places.iter_mut().zip(ended) {
            if place
                .as_ref()
                .is_some_and(|place| ended || place.descriptor.has_ended())
            {
                *place = None;
            }
        }
        if said {
            // What the server said before it died comes before its death.
            listening = hear(socket, &mut places);
        } else if died {
            lost = true;
            server_died(&mut places);
        } else if lost {
            answer_all(&mut places);
        }
    }
}

/// Takes one message; false if there will be no more.
fn hear(socket: &OwnedFd, places: &mut [Option<Place>; PLACES]) -> bool {
    let mut message = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut message)];
    match recvmsg(socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(received) if received.bytes == 0 => return false,
        Ok(_) => {}
        Err(Errno::INTR) => return true,
        Err(_) => return false,
    }
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let mut fds = fds.next().into_iter().flatten();
    let word = |at: usize| {
        u32::from_ne_bytes([
            message[at],
            message[at + 1],
            message[at + 2],
            message[at + 3],
        ])
    };
    let Some(place) = places.get_mut(word(4) as usize) else {
        return true;
    };
    *place = match (word(0), fds.next()) {
        (word @ (POISON | KILL), Some(descriptor)) => Some(Place {
            descriptor: Descriptor::keep(descriptor),
            process: fds.next(),
            kill: word == KILL,
        }),
        _ => None,
    };
    true
}

fn server_died(places: &mut [Option<Place>; PLACES]) {
    if places.iter().any(Option::is_some) {
        let what = b"podsnap: what served memory has died: whoever touches memory that was not there yet gets SIGBUS or is killed\n";
        let _ = rustix::io::write(rustix::stdio::stderr(), what);
    }
    // Whoever reads it until its end does not wait for those who are guarded.
    close_range(2, 2);
    for place in places.iter_mut().flatten() {
        if place.kill {
            kill(place);
        }
        // What the server had heard of and not answered is told again.
        let _ = place.descriptor.wake(&ALL);
    }
}

fn answer_all(places: &mut [Option<Place>; PLACES]) {
    for number in 0..PLACES {
        let Some(place) = &places[number] else {
            continue;
        };
        let mut child = None;
        let read = place.descriptor.read(|event| match event {
            Event::Fault { address } => answer(place, address),
            Event::Fork(descriptor) => {
                // More at once than one are not kept apart; their memory stays locked rather than read as zeros.
                if let Some(one) = child.replace(descriptor) {
                    std::mem::forget(one);
                }
            }
            Event::Remap { .. } | Event::Remove(_) | Event::Unmap(_) => {}
        });
        if read.is_err() {
            kill(place);
            places[number] = None;
            continue;
        }
        let Some(descriptor) = child else { continue };
        let child = Place {
            descriptor,
            process: None,
            kill: false,
        };
        match places.iter_mut().find(|place| place.is_none()) {
            Some(free) => *free = Some(child),
            None => std::mem::forget(child),
        }
    }
}

/// Sees to it that nobody reads at an address.
fn answer(place: &Place, address: u64) {
    for size in PAGES {
        let start = address - address % size;
        let page = start..start + size;
        match place.descriptor.poison(&page).stop {
            // Of the wrong size, or not known to the kernel.
            Some(Stop::Failed(_)) => continue,
            // Not now, or nothing is missing: who waits looks again.
            Some(_) => {
                let _ = place.descriptor.wake(&page);
            }
            None => {}
        }
        return;
    }
    kill(place);
}

fn kill(place: &Place) {
    if let Some(process) = &place.process {
        let _ = rustix::process::pidfd_send_signal(process, Signal::KILL);
    }
}
