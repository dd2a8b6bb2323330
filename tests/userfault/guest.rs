//! A process whose memory is served: this test executable, started again. It asks for its memory exactly as Firecracker does, then does with it
//! what it is told on standard input, and says what it found.

use std::{
    env, fs,
    io::{BufRead, BufReader, IoSlice, Write},
    mem::MaybeUninit,
    ops::Range,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt, process::ExitStatusExt},
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    ioctl::{self, Updater, opcode},
    mm::{Advice, MapFlags, MremapFlags, ProtFlags, UserfaultfdFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Signal},
};

use crate::{
    ring::Ring,
    support::{Noise, noise, text},
};

/// What the guest is told when it starts: where the socket is, and how to be.
const SOCKET: &str = "PODSNAP_TEST_GUEST_SOCKET";
const SHAPE: &str = "PODSNAP_TEST_GUEST_SHAPE";

/// In place of a socket: there is nobody to ask.
pub const NOWHERE: &str = "nowhere";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub const PAGE: usize = 4096;
pub const HUGE: usize = 2 << 20;

/// What Firecracker agrees on with the kernel.
pub const FIRECRACKER: u64 = 1 << 3;
/// All events: of forks, moved, dropped and unmapped pages.
pub const ALL_EVENTS: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

/// Unused addresses between the two regions.
pub const GAP: usize = HUGE;

/// The memory that all these tests save: bytes, text and zeros of all kinds of lengths.
pub fn content(len: usize) -> Vec<u8> {
    let mut bytes = noise(41, len);
    let mut places = Noise(42);
    while bytes.len() > 3 * PAGE {
        let at = places.below(len - 3 * PAGE);
        let run = (places.below(40) * 3 * PAGE / 2)
            .min(len - at)
            .min(200 * PAGE);
        match places.below(8) {
            0..3 => bytes[at..at + run].fill(0),
            3..5 => bytes[at..at + run].copy_from_slice(&text(at as u64, run)),
            5 => bytes[at / PAGE * PAGE..][..PAGE].fill(0),
            _ if places.below(len / (8 * PAGE)) == 0 => break,
            _ => {}
        }
    }
    bytes
}

/// How a guest is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub len: usize,
    pub page_size: usize,
    pub events: u64,
    /// Where its memory is; 0 if that does not matter.
    pub start: usize,
    /// Where in the section the addresses from there on are, if it does.
    pub offset: usize,
}

impl Shape {
    pub fn new(len: usize) -> Self {
        Self {
            len,
            page_size: PAGE,
            events: FIRECRACKER,
            start: 0,
            offset: 0,
        }
    }

    fn to_text(self) -> String {
        let Self {
            len,
            page_size,
            events,
            start,
            offset,
        } = self;
        format!("{len} {page_size} {events} {start} {offset}")
    }

    fn from_text(text: &str) -> Self {
        let numbers: Vec<usize> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        Self {
            len: numbers[0],
            page_size: numbers[1],
            events: numbers[2] as u64,
            start: numbers[3],
            offset: numbers[4],
        }
    }
}

/// A guest as the test sees it; killed when it is dropped.
pub struct Guest {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Guest {
    /// Starts one, which sends its request.
    pub fn start(socket: &Path, shape: Shape) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "a_guest_process", "--nocapture"])
            .env(SOCKET, socket)
            .env(SHAPE, shape.to_text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let parent = rustix::process::getpid();
        let die_with_it = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            match rustix::process::getppid() == Some(parent) {
                true => Ok(()),
                false => Err(std::io::Error::other("the test has ended")),
            }
        };
        // SAFETY: two system calls.
        let mut child = unsafe { command.pre_exec(die_with_it) }.spawn().unwrap();
        Self {
            stdin: child.stdin.take().unwrap(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Has something done, without waiting until it is.
    pub fn tell(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
    }

    /// The next answer; `None` if the guest has died.
    pub fn answer(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            // The test harness has things to say, too.
            if let Some((_, answer)) = line.trim_end().split_once("> ") {
                return Some(answer.to_owned());
            }
        }
    }

    /// Has something done that must turn out as it should.
    #[track_caller]
    pub fn does(&mut self, what: &str) {
        self.tell(what);
        assert_eq!(self.answer().as_deref(), Some("as it should be"), "{what}");
    }

    /// Waits until it dies; panics if it answers, or lives on.
    #[track_caller]
    pub fn dies_of(mut self, signal: Signal) {
        let status = self.status();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status:?}");
    }

    #[track_caller]
    fn status(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(self.answer(), None, "it read what was not there");
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it lives on");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process does that a test started as a guest.
pub fn run_if_told() {
    let Ok(socket) = env::var(SOCKET) else { return };
    let shape = Shape::from_text(&env::var(SHAPE).unwrap());
    let expected = content(shape.len);
    let memory = Memory::new(shape);
    // As Firecracker does, it keeps the userfaultfd, and never closes the socket.
    let _userfault = (socket != NOWHERE).then(|| memory.ask_for_content(Path::new(&socket)));
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<usize>().unwrap();
        let range = || number(1)..number(1) + number(2);
        let wrong = match words[0] {
            "check" => memory.check(&expected, range()),
            "zeros" => memory.check(&vec![0; shape.len], range()),
            "race" => memory.race(&expected, number(1)),
            "remove" => memory.remove(range()),
            "churn" => memory.churn(&expected, number(1)),
            "unmap" => memory.unmap(range()),
            "move" => memory.move_away(&expected, range()),
            "fork" => memory.fork(&expected, range()),
            "write" => memory.write(range()),
            "ring" => Ring::of(&memory).make(number(1)),
            "walk" => Ring::of(&memory).walk(number(1), number(2)),
            other => panic!("what is {other}?"),
        };
        println!(
            "\n> {}",
            wrong.unwrap_or_else(|| "as it should be".to_owned())
        );
    }
}

/// The memory of a guest: two regions, the first of a quarter.
#[derive(Clone, Copy)]
pub struct Memory {
    start: usize,
    split: usize,
    pub shape: Shape,
}

impl Memory {
    fn new(shape: Shape) -> Self {
        let split = (shape.len / 4).next_multiple_of(shape.page_size);
        let mut flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        if shape.start != 0 {
            flags |= MapFlags::FIXED_NOREPLACE;
        }
        if shape.page_size == HUGE {
            flags |= MapFlags::HUGETLB;
        }
        let len = shape.len.next_multiple_of(shape.page_size) + GAP;
        // SAFETY: a new mapping.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::with_exposed_provenance_mut(shape.start),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        Self {
            start: start.unwrap().expose_provenance(),
            split,
            shape,
        }
    }

    pub fn at(&self, offset: usize) -> *mut u8 {
        let gap = if offset < self.split { 0 } else { GAP };
        std::ptr::with_exposed_provenance_mut(self.start + offset + gap)
    }

    fn regions(&self) -> [(usize, usize, usize); 2] {
        let len = self.shape.len.next_multiple_of(self.shape.page_size);
        let second = self.start + self.split + GAP;
        let (one, two) = match self.shape.start {
            0 => (0, self.split),
            start => (self.shape.offset, self.shape.offset + second - start),
        };
        [
            (self.start, self.split, one),
            (second, len - self.split, two),
        ]
    }

    fn ask_for_content(&self, socket: &Path) -> OwnedFd {
        let userfault = open_userfaultfd(self.shape.events);
        let mut regions = Vec::new();
        for (start, len, offset) in self.regions() {
            register(&userfault, start, len);
            let page_size = self.shape.page_size;
            regions.push(serde_json::json!({
                "base_host_virt_addr": start, "size": len, "offset": offset, "page_size": page_size, "page_size_kib": page_size,
            }));
        }
        let stream = UnixStream::connect(socket).unwrap();
        let message = serde_json::to_string(&regions).unwrap();
        send(&stream, message.as_bytes(), &[&userfault]);
        std::mem::forget(stream);
        userfault
    }

    /// What is wrong with these bytes.
    fn check(&self, expected: &[u8], range: Range<usize>) -> Option<String> {
        for page in range.clone().step_by(PAGE) {
            let end = (page / PAGE * PAGE + PAGE).min(range.end);
            // SAFETY: within the mapping; whoever writes to it is told apart by the tests.
            let found = unsafe { std::slice::from_raw_parts(self.at(page), end - page) };
            if found != &expected[page..end] {
                let kind = if found.iter().all(|b| *b == 0) {
                    "zeros"
                } else {
                    "other bytes"
                };
                return Some(format!("{kind} at {page}"));
            }
        }
        None
    }

    /// Every page from many threads, each in an order of its own.
    fn race(&self, expected: &[u8], threads: usize) -> Option<String> {
        let pages = self.shape.len.div_ceil(PAGE);
        thread::scope(|scope| {
            let racers: Vec<_> = (0..threads)
                .map(|seed| {
                    scope.spawn(move || {
                        let mut order: Vec<usize> = (0..pages).collect();
                        let mut noise = Noise(seed as u64);
                        for i in (1..pages).rev() {
                            order.swap(i, noise.below(i + 1));
                        }
                        order.into_iter().find_map(|page| {
                            let end = (page * PAGE + PAGE).min(self.shape.len);
                            self.check(expected, page * PAGE..end)
                        })
                    })
                })
                .collect();
            racers.into_iter().find_map(|racer| racer.join().unwrap())
        })
    }

    fn remove(&self, range: Range<usize>) -> Option<String> {
        // SAFETY: as above.
        unsafe {
            rustix::mm::madvise(
                self.at(range.start).cast(),
                range.len(),
                Advice::LinuxDontNeed,
            )
        }
        .err()
        .map(|e| e.to_string())
    }

    /// Drops pages in a hurry while others read theirs: what was dropped is zeros for good, however many installs were under way.
    fn churn(&self, expected: &[u8], rounds: usize) -> Option<String> {
        let zeros = vec![0; self.shape.len];
        let blocks = self.shape.len / (16 * PAGE);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|seed| {
                    scope.spawn(move || {
                        let mut noise = Noise(seed);
                        (0..8 * rounds).find_map(|_| {
                            // The upper half of each block is never dropped.
                            let page = noise.below(blocks) * 16 + 8 + noise.below(8);
                            self.check(expected, page * PAGE..page * PAGE + PAGE)
                        })
                    })
                })
                .collect();
            let mut noise = Noise(99);
            let dropped = (0..rounds).find_map(|_| {
                let start = noise.below(blocks) * 16 * PAGE;
                let range = start..start + (1 + noise.below(8)) * PAGE;
                self.remove(range.clone())
                    .or_else(|| self.check(&zeros, range))
            });
            let read = readers
                .into_iter()
                .find_map(|reader| reader.join().unwrap());
            dropped.or(read)
        })
    }

    fn unmap(&self, range: Range<usize>) -> Option<String> {
        // SAFETY: the tests touch it no more.
        unsafe { rustix::mm::munmap(self.at(range.start).cast(), range.len()) }
            .err()
            .map(|e| e.to_string())
    }

    /// Moves pages elsewhere, where they must be what they are.
    fn move_away(&self, expected: &[u8], range: Range<usize>) -> Option<String> {
        // SAFETY: as above.
        let moved = unsafe {
            let (from, len) = (self.at(range.start), range.len());
            rustix::mm::mremap(
                from.cast(),
                len,
                len,
                MremapFlags::MAYMOVE | MremapFlags::from_bits_retain(4),
            )
        };
        let moved = match moved {
            Ok(moved) if moved != self.at(range.start).cast() => moved,
            Ok(_) => return Some("it did not move".to_owned()),
            Err(e) => return Some(e.to_string()),
        };
        // SAFETY: that is where it is now.
        let found = unsafe { std::slice::from_raw_parts(moved.cast::<u8>(), range.len()) };
        (found != &expected[range]).then(|| "other bytes where it went".to_owned())
    }

    /// Has a child look at its copy.
    fn fork(&self, expected: &[u8], range: Range<usize>) -> Option<String> {
        let (memory, expected) = (*self, expected.to_vec());
        let look = move || match memory.check(&expected, range.clone()) {
            None => Ok(()),
            Some(_) => Err(rustix::io::Errno::ILSEQ.into()),
        };
        let mut child = Command::new("/bin/true");
        // SAFETY: the child reads memory and allocates nothing unless it is wrong.
        unsafe { child.pre_exec(look) };
        match child.status() {
            Err(e) => Some(format!("in the child: {e}")),
            Ok(status) => status
                .signal()
                .map(|signal| format!("the child died of {signal}")),
        }
    }

    fn write(&self, range: Range<usize>) -> Option<String> {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.at(range.start), range.len()) }.fill(7);
        // SAFETY: as above.
        let found = unsafe { std::slice::from_raw_parts(self.at(range.start), range.len()) };
        found
            .iter()
            .any(|b| *b != 7)
            .then(|| "not what was written".to_owned())
    }
}

/// Sends a message with descriptors, as Firecracker does.
pub fn send(stream: &UnixStream, message: &[u8], fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    sendmsg(
        stream,
        &[IoSlice::new(message)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

/// A userfaultfd for this process, with these features agreed on.
pub fn open_userfaultfd(features: u64) -> OwnedFd {
    // SAFETY: nothing is registered yet.
    let fd =
        unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) };
    let fd = fd.unwrap();
    let mut api: [u64; 3] = [0xaa, features, 0];
    // SAFETY: UFFDIO_API takes three words.
    unsafe {
        let api = Updater::<{ opcode::read_write::<[u64; 3]>(0xaa, 0x3f) }, _>::new(&mut api);
        ioctl::ioctl(&fd, api).unwrap();
    }
    fd
}

fn register(userfault: &OwnedFd, start: usize, len: usize) {
    let mut register: [u64; 4] = [start as u64, len as u64, 1, 0];
    // SAFETY: UFFDIO_REGISTER takes four words; the memory is this process's own and empty.
    unsafe {
        let register =
            Updater::<{ opcode::read_write::<[u64; 4]>(0xaa, 0) }, _>::new(&mut register);
        ioctl::ioctl(userfault, register).unwrap();
    }
}

/// Whether memory can be served here; says so if not.
pub fn can_serve() -> bool {
    let can = podsnap::userfault::Features::probe().is_ok();
    if !can {
        crate::support::skipped(
            "serving memory: userfaultfd needs root or vm.unprivileged_userfaultfd=1",
        );
    }
    can
}

/// Huge pages set aside for as long as this is kept.
pub struct HugePages(usize);

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// `None`, having said why, if there are not that many.
    pub fn new(count: usize) -> Option<Self> {
        let this = Self(count);
        this.change(|pages| pages + count);
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
        let free = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("HugePages_Free:"));
        let free = free.map_or(0, |n| n.trim().parse::<usize>().unwrap());
        if free < count {
            crate::support::skipped(&format!(
                "huge pages: {count} of 2 MiB are not free, and root could not set them aside"
            ));
            return None;
        }
        Some(this)
    }

    fn change(&self, change: impl Fn(usize) -> usize) {
        let now = fs::read_to_string(HUGE_PAGES).ok();
        if let Some(now) = now.and_then(|n| n.trim().parse().ok()) {
            let _ = fs::write(HUGE_PAGES, change(now).to_string());
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        self.change(|pages| pages.saturating_sub(self.0));
    }
}
