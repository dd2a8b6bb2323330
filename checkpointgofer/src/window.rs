//! A packet window: memory shared with the sentry, through which one file's requests and answers pass.
//!
//! It begins with a word that says whose turn it is and a word that counts what was sent, then 8 bytes that mean nothing, then the data. Who gives the turn
//! away wakes the other by a futex on the first word. The sentry may write anywhere in it at any time, so everything is read by
//! atomic words, once, into memory of our own, and nothing that we wrote is read back. Which words mean what is not known here: see
//! [`request`](crate::request).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    mm::{MapFlags, ProtFlags},
    thread::futex::{self, Timespec},
};

/// Whose turn it is.
const CLIENT: u32 = 0;
const SERVER: u32 = 1;
const SHUT_DOWN: u32 = 2;

/// Offsets in bytes of what a window begins with.
const STATE_AT: usize = 0;
const COUNT_AT: usize = 4;
const DATA_AT: usize = 16;

/// Bytes of the longest greeting that is read. A greeting is an empty JSON object.
const MAX_GREETING_LEN: usize = 4096;

const GREETING: &[u8; 3] = b"{}\n";

/// How long a wait may go on without a look at whether it was shut down: a sentry that overwrites the state could hide the waking.
const LOOK_UP: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The server's end of a packet window.
#[derive(Debug)]
pub struct Window {
    memory: NonNull<AtomicU32>,
    /// Its length in bytes, a multiple of the page size.
    len: usize,
    fd: OwnedFd,
    shut_down: AtomicBool,
}

// SAFETY: the memory stays mapped as long as the window lives, and is only reached through atomics.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window whose data have at least `data_len` bytes.
    pub fn new(data_len: usize) -> io::Result<Self> {
        let len = (DATA_AT + data_len).next_multiple_of(rustix::param::page_size());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("checkpointgofer-window", flags)?;
        rustix::fs::ftruncate(&fd, len as u64)?;
        // Neither end can take memory from under the other.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::SEAL)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an address that nothing else uses.
        let memory = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, &fd, 0)?
        };
        Ok(Self {
            memory: NonNull::new(memory.cast()).expect("a mapping is not at 0"),
            len,
            fd,
            shut_down: AtomicBool::new(false),
        })
    }

    /// The memory, for the client to map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Length of the window in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// A window is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The word at an offset in bytes, if there is one.
    fn word(&self, at: usize) -> Option<&AtomicU32> {
        let inside = at.is_multiple_of(4) && at.checked_add(4).is_some_and(|end| end <= self.len);
        // SAFETY: the word is aligned, as the mapping is, and inside the mapping, which the seal keeps whole; all access from this
        // process is atomic.
        inside.then(|| unsafe { self.memory.add(at / 4).as_ref() })
    }

    fn state(&self) -> &AtomicU32 {
        self.word(STATE_AT).expect("a window has a page at least")
    }

    /// The 32-bit word at an offset in the data.
    pub fn u32_at(&self, at: usize) -> Option<u32> {
        let word = self.word(DATA_AT.checked_add(at)?)?;
        Some(word.load(Ordering::Relaxed))
    }

    /// Writes a 32-bit word at an offset in the data.
    ///
    /// # Panics
    /// If the window ends before it.
    pub fn set_u32(&self, at: usize, value: u32) {
        let word = self.word(DATA_AT + at).expect("answers fit in a window");
        word.store(value, Ordering::Relaxed);
    }

    /// Waits for the client's greeting and returns it. `false` if the window was shut down.
    pub fn accept(&self) -> io::Result<bool> {
        let Some(len) = self.receive()? else {
            return Ok(false);
        };
        let len = len as usize;
        if len > MAX_GREETING_LEN.min(self.len - DATA_AT) {
            return Err(violation(format!("a greeting of {len} bytes")));
        }
        let words = (0..len).step_by(4);
        let bytes = words.flat_map(|at| self.u32_at(at).unwrap_or_default().to_ne_bytes());
        let greeting: Vec<u8> = bytes.take(len).collect();
        let object: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(&greeting);
        object.map_err(|e| violation(format!("a greeting that is none: {e}")))?;
        let [a, b, c] = *GREETING;
        self.set_u32(0, u32::from_ne_bytes([a, b, c, 0]));
        self.give(GREETING.len() as u32)
    }

    /// Waits for the turn and returns how much was sent, or `None` if the window was shut down, by either end.
    pub fn receive(&self) -> io::Result<Option<u32>> {
        loop {
            match self.state().load(Ordering::Acquire) {
                SERVER => break,
                SHUT_DOWN => return Ok(None),
                CLIENT if self.shut_down.load(Ordering::SeqCst) => return Ok(None),
                CLIENT => {
                    match futex::wait(self.state(), futex::Flags::empty(), CLIENT, Some(&LOOK_UP)) {
                        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                state => return Err(violation(format!("the state {state}"))),
            }
        }
        let count = self.word(COUNT_AT).expect("a window has a page at least");
        Ok(Some(count.load(Ordering::Relaxed)))
    }

    /// Gives the turn to the client, with the count of what it is sent. `false` if the window was shut down.
    pub fn give(&self, count: u32) -> io::Result<bool> {
        let word = self.word(COUNT_AT).expect("a window has a page at least");
        word.store(count, Ordering::Relaxed);
        match self
            .state()
            .compare_exchange(SERVER, CLIENT, Ordering::AcqRel, Ordering::Acquire)
        {
            Ok(_) => {}
            Err(SHUT_DOWN) => return Ok(false),
            Err(state) => return Err(violation(format!("the state {state}"))),
        }
        futex::wake(self.state(), futex::Flags::empty(), 1)?;
        Ok(true)
    }

    /// Ends the connection, for both ends. Whoever waits in here is woken.
    pub fn shut_down(&self) {
        self.shut_down.store(true, Ordering::SeqCst);
        self.state().store(SHUT_DOWN, Ordering::SeqCst);
        // A wake can only fail for a bad address.
        let _ = futex::wake(self.state(), futex::Flags::empty(), i32::MAX as u32);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

fn violation(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the sentry broke the packet window's protocol: {what}"),
    )
}
