//! The least that serving memory takes: a handler whose bytes lie ready in one buffer, with the kernel's interface and nothing else.

use std::{
    ops::Range,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use linux_raw_sys::general as raw;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
    io::Errno,
    ioctl::{self, Opcode, opcode},
    mm::{MapFlags, ProtFlags, UserfaultfdFlags},
};

const IOC: u8 = raw::UFFDIO as u8;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(IOC, raw::_UFFDIO_API as u8);
const REGISTER: Opcode =
    opcode::read_write::<raw::uffdio_register>(IOC, raw::_UFFDIO_REGISTER as u8);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(IOC, raw::_UFFDIO_COPY as u8);
const ZEROPAGE: Opcode =
    opcode::read_write::<raw::uffdio_zeropage>(IOC, raw::_UFFDIO_ZEROPAGE as u8);

/// As long as podsnap's handlers.
const SPIN: Duration = Duration::from_micros(50);

/// Bytes copied by one call when nobody waits.
const COPY_LEN: usize = 2 << 20;

/// Private memory of this process.
pub struct Mapping {
    pub start: u64,
    len: usize,
}

impl Mapping {
    pub fn new(len: u64) -> Self {
        let len = len as usize;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) };
        Self {
            start: start.expect("memory").expose_provenance() as u64,
            len,
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.start as usize);
        // SAFETY: nobody uses the mapping any more.
        unsafe { rustix::mm::munmap(start, self.len) }.expect("it is mapped");
    }
}

/// A userfaultfd.
struct Userfault(OwnedFd);

impl Userfault {
    fn open() -> Self {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        // SAFETY: nothing happens to any memory before it is registered.
        let fd = unsafe { rustix::mm::userfaultfd(flags) }.expect("a userfaultfd");
        let this = Self(fd);
        let mut api = raw::uffdio_api {
            api: u64::from(raw::UFFD_API),
            features: 0,
            ioctls: 0,
        };
        this.request::<API, _>(&mut api).expect("an agreement");
        this
    }

    fn register(&self, addresses: Range<u64>) {
        let mut register = raw::uffdio_register {
            range: raw_range(&addresses),
            mode: u64::from(raw::UFFDIO_REGISTER_MODE_MISSING),
            ioctls: 0,
        };
        self.request::<REGISTER, _>(&mut register)
            .expect("registered memory");
    }

    fn copy(&self, address: u64, bytes: &[u8]) {
        let mut copy = raw::uffdio_copy {
            dst: address,
            src: bytes.as_ptr().expose_provenance() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copy: 0,
        };
        self.request::<COPY, _>(&mut copy).expect("a copy");
    }

    fn zeros(&self, range: &Range<u64>) {
        let mut zeros = raw::uffdio_zeropage {
            range: raw_range(range),
            mode: 0,
            zeropage: 0,
        };
        self.request::<ZEROPAGE, _>(&mut zeros).expect("zeros");
    }

    fn request<const OPCODE: Opcode, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: the opcodes above are made from the types they are used with, and only memory of this benchmark is registered.
        unsafe { ioctl::ioctl(&self.0, ioctl::Updater::<OPCODE, T>::new(argument)) }
    }
}

fn raw_range(range: &Range<u64>) -> raw::uffdio_range {
    raw::uffdio_range {
        start: range.start,
        len: range.end - range.start,
    }
}

/// One thread that answers faults: spins, then polls.
pub struct Handler {
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Handler {
    /// Serves the regions of a mapping, which hold `bytes` one after the other; a fault installs so much, as far as its region has it.
    pub fn start(memory: &Mapping, regions: &[Range<u64>], bytes: &[u8], install: u64) -> Self {
        let userfault = Userfault::open();
        let mut places = Vec::new();
        let mut offset = 0;
        for region in regions {
            userfault.register(memory.start + region.start..memory.start + region.end);
            places.push((region.clone(), offset));
            offset += region.end - region.start;
        }
        let ending = Arc::new(AtomicBool::new(false));
        let (base, ending_too, bytes) = (memory.start, ending.clone(), bytes.to_vec());
        let thread = thread::spawn(move || {
            let mut busy = Instant::now();
            while !ending_too.load(SeqCst) {
                let Some(address) = next_fault(&userfault) else {
                    if busy.elapsed() > SPIN {
                        let mut fds = [PollFd::new(&userfault.0, PollFlags::IN)];
                        let pause = Timespec {
                            tv_sec: 0,
                            tv_nsec: 1_000_000,
                        };
                        let _ = poll(&mut fds, Some(&pause));
                    }
                    continue;
                };
                let at = address - base;
                let found = places.partition_point(|(region, _)| region.end <= at);
                let (region, offset) = &places[found];
                let start = region.start + (at - region.start) / install * install;
                let end = region.end.min(start + install);
                let from = (offset + start - region.start) as usize;
                let part = &bytes[from..from + (end - start) as usize];
                userfault.copy(base + start, part);
                busy = Instant::now();
            }
        });
        Self {
            ending,
            thread: Some(thread),
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.ending.store(true, SeqCst);
        self.thread.take().expect("once").join().expect("no panic");
    }
}

fn next_fault(userfault: &Userfault) -> Option<u64> {
    let mut message = [0_u8; size_of::<raw::uffd_msg>()];
    match rustix::io::read(&userfault.0, &mut message) {
        Ok(_) => Some(u64::from_ne_bytes(*message[16..].first_chunk()?)),
        Err(_) => None,
    }
}

/// Fills memory by copying.
pub fn fill_by_copy(bytes: &[u8]) -> Duration {
    let started = Instant::now();
    let memory = Mapping::new(bytes.len() as u64);
    let userfault = Userfault::open();
    userfault.register(memory.start..memory.start + bytes.len() as u64);
    for (number, part) in bytes.chunks(COPY_LEN).enumerate() {
        userfault.copy(memory.start + (number * COPY_LEN) as u64, part);
    }
    started.elapsed()
}

/// Fills memory with zeros.
pub fn fill_by_zeros(len: u64) -> Duration {
    let started = Instant::now();
    let memory = Mapping::new(len);
    let userfault = Userfault::open();
    userfault.register(memory.start..memory.start + len);
    for start in (0..len).step_by(COPY_LEN) {
        let end = len.min(start + COPY_LEN as u64);
        userfault.zeros(&(memory.start + start..memory.start + end));
    }
    started.elapsed()
}

/// Fills a memfd through a mapping.
pub fn fill_memfd(bytes: &[u8]) -> Duration {
    let started = Instant::now();
    let file = rustix::fs::memfd_create("bare", MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&file, bytes.len() as u64).expect("its length");
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes.len(),
            protection,
            flags,
            &file,
            0,
        )
    };
    let start = start.expect("a mapping");
    // SAFETY: the mapping is as long as the bytes, and this function's alone.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), bytes.len()) };
    let took = started.elapsed();
    // SAFETY: nobody uses the mapping any more.
    unsafe { rustix::mm::munmap(start, bytes.len()) }.expect("it is mapped");
    took
}
