//! What the kernel does at moments that no process can be brought to hit by chance: each is made here, with real memory.

use std::{
    ops::Range,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous},
};

use super::{
    features::Userfault,
    space::{How, Outcome, Part, Space},
    sys::Stop,
    table::{Content, PAGE, Region, Table},
};

const PAGES: u64 = 64;

/// How long somebody is given to do what it must not.
const WHILE: Duration = Duration::from_millis(50);

/// Registered memory of this process that nobody serves but the test; `None` where it cannot be had.
struct Memory {
    space: Space,
    start: u64,
}

impl Memory {
    fn new() -> Option<Self> {
        let Ok(userfault) = Userfault::open() else {
            eprintln!(
                "SKIPPED: traps of userfaultfd: opening one needs root or vm.unprivileged_userfaultfd=1"
            );
            return None;
        };
        let (len, protection) = (PAGES * PAGE, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping, which is never taken away.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len as usize,
                protection,
                MapFlags::PRIVATE,
            )
        };
        let start = start.unwrap().expose_provenance() as u64;
        userfault.register(start..start + len).unwrap();
        let region = Region {
            addresses: start..start + len,
            section_offset: 0,
            page_size: PAGE,
        };
        let table = Table::new(&[region], len).unwrap();
        Some(Self {
            space: Space::new(userfault.descriptor, table, false),
            start,
        })
    }

    fn pages(&self, pages: Range<u64>) -> Range<u64> {
        self.start + pages.start * PAGE..self.start + pages.end * PAGE
    }

    /// Touches a page from another thread; the byte that it finds.
    fn touch(&self, page: u64) -> JoinHandle<u8> {
        let address = self.pages(page..page).start as usize;
        // SAFETY: the memory is there for good, and nobody writes to it.
        thread::spawn(move || unsafe {
            std::ptr::with_exposed_provenance::<u8>(address).read_volatile()
        })
    }

    /// Drops pages from another thread.
    fn drop_pages(&self, pages: Range<u64>) -> JoinHandle<()> {
        let range = self.pages(pages);
        thread::spawn(move || {
            let start = std::ptr::with_exposed_provenance_mut(range.start as usize);
            // SAFETY: nobody holds a reference into it.
            unsafe {
                madvise(
                    start,
                    (range.end - range.start) as usize,
                    Advice::LinuxDontNeed,
                )
            }
            .unwrap();
        })
    }

    fn wait_for_event(&self) {
        let patience = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut fds = [PollFd::new(&*self.space.descriptor, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1));
    }

    fn install(&self, generation: u64, pages: Range<u64>, byte: u8) -> Outcome {
        let range = self.pages(pages);
        let bytes = vec![byte; (range.end - range.start) as usize];
        let part = Part {
            range,
            how: How::Copy(&bytes),
        };
        self.space.install(generation, PAGE, &[part])
    }
}

fn join<T>(thread: JoinHandle<T>) -> T {
    let started = Instant::now();
    while !thread.is_finished() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it waits for ever"
        );
        thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap()
}

#[test]
fn who_waits_for_a_page_that_is_there_is_woken() {
    let Some(memory) = Memory::new() else { return };
    let waiting = memory.touch(5);
    memory.wait_for_event();
    assert_eq!(
        memory.space.read().unwrap().faults,
        [memory.pages(5..6).start]
    );
    // It comes without anybody being woken.
    let bytes = vec![7; PAGE as usize];
    memory
        .space
        .descriptor
        .copy_quietly(memory.pages(5..6).start, &bytes)
        .unwrap();
    thread::sleep(WHILE);
    assert!(!waiting.is_finished());
    let page = memory
        .space
        .descriptor
        .copy(memory.pages(5..6).start, &bytes);
    assert_eq!(page.stop, Some(Stop::Present));
    thread::sleep(WHILE);
    assert!(!waiting.is_finished(), "the kernel wakes it by itself");
    // In the midst of others that are not there.
    assert_eq!(memory.install(0, 0..10, 9), Outcome::Installed);
    assert_eq!(join(waiting), 7);
    assert_eq!(join(memory.touch(4)), 9);
    assert_eq!(join(memory.touch(6)), 9);
}

#[test]
fn nothing_is_installed_before_what_was_dropped_is_known() {
    let Some(memory) = Memory::new() else { return };
    assert_eq!(memory.install(0, 0..4, 1), Outcome::Installed);
    let dropping = memory.drop_pages(2..6);
    memory.wait_for_event();
    // The event is there and unread: the kernel installs nothing anywhere.
    assert_eq!(memory.install(0, 10..12, 1), Outcome::Changed);
    let pages = memory.pages(12..13);
    assert_eq!(
        memory.space.descriptor.zeros(&pages).stop,
        Some(Stop::EventsFirst)
    );
    assert_eq!(
        memory.space.descriptor.poison(&pages).stop,
        Some(Stop::EventsFirst)
    );
    assert!(!dropping.is_finished());
    assert!(memory.space.read().unwrap().faults.is_empty());
    join(dropping);
    // What was meant for the memory as it was is not installed any more.
    assert_eq!(memory.install(0, 3..5, 1), Outcome::Changed);
    let place = memory.space.place(memory.pages(3..4).start).unwrap();
    assert_eq!(place.content, Content::Zeros);
    assert_ne!(place.generation, 0);
    let place = memory.space.place(memory.pages(6..7).start).unwrap();
    assert_eq!(place.content, Content::Section(6 * PAGE));
    assert_eq!(
        memory.install(place.generation, 6..8, 2),
        Outcome::Installed
    );
    assert_eq!(join(memory.touch(7)), 2);
    assert_eq!(join(memory.touch(1)), 1);
}

#[test]
fn nobody_learns_of_dropped_pages_while_pages_are_installed() {
    let Some(memory) = Memory::new() else { return };
    let dropping = memory.drop_pages(0..4);
    memory.wait_for_event();
    thread::scope(|scope| {
        let installing = memory.space.table();
        let reading = scope.spawn(|| memory.space.read().unwrap());
        thread::sleep(WHILE);
        // Else it would go on, and find again what is being installed.
        assert!(!dropping.is_finished() && !reading.is_finished());
        drop(installing);
    });
    join(dropping);
}

#[test]
fn what_is_missing_when_it_is_released_is_not_there_for_the_kernel_to_fill() {
    let Some(memory) = Memory::new() else { return };
    assert_eq!(memory.install(0, 0..2, 3), Outcome::Installed);
    let dropping = memory.drop_pages(40..41);
    memory.wait_for_event();
    assert_eq!(memory.space.release(|_, _| false), Outcome::Changed);
    memory.space.read().unwrap();
    join(dropping);
    assert_eq!(memory.space.release(|_, _| false), Outcome::Installed);
    assert_eq!(join(memory.touch(1)), 3);
    assert_eq!(join(memory.touch(40)), 0);
    // To touch what is missing would kill the tests; a system call is refused it.
    let (_theirs, ours) = std::io::pipe().unwrap();
    let missing = std::ptr::with_exposed_provenance::<u8>(memory.pages(20..21).start as usize);
    // SAFETY: the kernel reads there, or says that it cannot.
    let missing = unsafe { std::slice::from_raw_parts(missing, 16) };
    let refused = rustix::io::write(&ours, missing);
    assert!(
        matches!(refused, Err(Errno::FAULT | Errno::HWPOISON)),
        "{refused:?}"
    );
}
