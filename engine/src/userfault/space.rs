//! The memory of one process that is served: its descriptor, its table, and installing pages so that they never contradict what the
//! process did to its memory meanwhile.
//!
//! The kernel holds a process that drops, moves or unmaps pages until its event is read, and refuses to install anything meanwhile. From the
//! moment of reading on it does neither. So events are read, and noted in the table, with the table locked for writing, and
//! pages are installed with it locked for reading: what is installed is what the table says at that moment.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use rustix::io::Errno;

use super::{
    sys::{Descriptor, Event, Progress, Stop},
    table::{Content, Mapping, Place, Table},
    watchdog::Guarded,
};

/// Bytes of zeros, for huge pages, of which the kernel has no page of zeros.
static ZEROS: [u8; 2 << 20] = [0; 2 << 20];

/// How a range becomes present.
#[derive(Debug, Clone, Copy)]
pub(super) enum How<'a> {
    /// With these bytes, as many as the range has.
    Copy(&'a [u8]),
    /// With zeros.
    Zeros,
    /// With the pages that the memfd has there.
    Map,
    /// Not at all: who touches it dies.
    Poison,
}

/// A range to be installed.
#[derive(Debug, Clone)]
pub(super) struct Part<'a> {
    pub range: Range<u64>,
    pub how: How<'a>,
}

/// What came of installing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The pages are there, and whoever waited for them goes on.
    Installed,
    /// The process changed its memory: read its events, and look again at what belongs there.
    Changed,
    /// There is no such memory any more. Whoever waited was told to look again.
    Gone,
    /// The process has ended.
    Ended,
    /// The kernel refuses.
    Failed(Errno),
}

/// What was read of a descriptor, but for what the table already knows.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Addresses for whose pages threads wait.
    pub faults: Vec<u64>,
    /// Children of the process.
    pub children: Vec<Space>,
}

/// The memory of one process.
#[derive(Debug)]
pub(super) struct Space {
    pub descriptor: Arc<Descriptor>,
    /// Whether it is a child of the process that the server was started for.
    pub is_child: bool,
    guarded: Mutex<Option<Guarded>>,
    table: RwLock<Table>,
    reading: Mutex<()>,
    /// Whether the process has ended.
    ended: AtomicBool,
    /// Bytes that were installed.
    pub installed: AtomicU64,
}

impl Space {
    pub fn new(descriptor: Arc<Descriptor>, table: Table, is_child: bool) -> Self {
        Self {
            descriptor,
            is_child,
            guarded: Mutex::new(None),
            table: RwLock::new(table),
            reading: Mutex::new(()),
            ended: AtomicBool::new(false),
            installed: AtomicU64::new(0),
        }
    }

    pub fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held by the one thread that waits for events and reads them.
    pub fn reading(&self) -> MutexGuard<'_, ()> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watchdog's hold on it.
    pub fn guarded(&self) -> MutexGuard<'_, Option<Guarded>> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to do for a thread that waits at `address`.
    pub fn place(&self, address: u64) -> Option<Place> {
        self.table().place(address)
    }

    /// Reads what there is to read, without waiting.
    pub fn read(&self) -> Result<News, Errno> {
        let mut table = self.table_mut();
        let mut news = News::default();
        self.descriptor.read(|event| match event {
            Event::Fault { address } => news.faults.push(address),
            Event::Fork(child) => {
                news.children
                    .push(Self::new(Arc::new(child), table.fork(), true));
            }
            Event::Remap { from, to, len } => table.remap(from, to, len),
            Event::Remove(range) => table.remove(&range),
            Event::Unmap(range) => table.unmap(&range),
        })?;
        Ok(news)
    }

    /// Installs parts of one mapping, if the table is still what it was at `generation`.
    pub fn install(&self, generation: u64, page_size: u64, parts: &[Part]) -> Outcome {
        let table = self.table();
        if table.generation != generation {
            return Outcome::Changed;
        }
        for part in parts {
            let outcome = self.install_part(part, page_size);
            if outcome != Outcome::Installed {
                return outcome;
            }
            let new = table.installed(&part.range);
            if !matches!(part.how, How::Poison) {
                self.installed.fetch_add(new, SeqCst);
            }
        }
        Outcome::Installed
    }

    fn install_part(&self, part: &Part, page_size: u64) -> Outcome {
        let mut rest = part.range.clone();
        while rest.start < rest.end {
            let step = self.step(&rest, part, page_size);
            rest.start += step.done;
            match step.stop {
                None if step.done > 0 => {}
                None => return Outcome::Failed(Errno::IO),
                Some(Stop::Present) => {
                    // It may have come between a thread's fault and its waiting: nobody else wakes that one.
                    let page = rest.start..rest.start + page_size;
                    let _ = self.descriptor.wake(&page);
                    rest.start = page.end;
                }
                Some(Stop::EventsFirst) => return Outcome::Changed,
                Some(Stop::Gone) => {
                    let _ = self.descriptor.wake(&part.range);
                    return Outcome::Gone;
                }
                Some(Stop::Ended) => {
                    self.ended.store(true, SeqCst);
                    return Outcome::Ended;
                }
                Some(Stop::Failed(e)) => return Outcome::Failed(e),
            }
        }
        Outcome::Installed
    }

    fn step(&self, rest: &Range<u64>, part: &Part, page_size: u64) -> Progress {
        match part.how {
            How::Copy(bytes) => {
                let bytes = &bytes[(rest.start - part.range.start) as usize..];
                self.descriptor.copy(rest.start, bytes)
            }
            How::Zeros if is_huge(page_size) => {
                let len = (rest.end - rest.start).min(page_size) as usize;
                self.descriptor.copy(rest.start, &ZEROS[..len])
            }
            How::Zeros => self.descriptor.zeros(rest),
            How::Map => self.descriptor.map_present(rest),
            How::Poison => self.descriptor.poison(rest),
        }
    }

    /// Whether it is known that the process has ended.
    pub fn ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Notes that it has.
    pub fn set_ended(&self) {
        self.ended.store(true, SeqCst);
    }

    /// Asks the kernel whether the process still lives.
    pub fn has_ended(&self) -> bool {
        if self.descriptor.has_ended() {
            self.ended.store(true, SeqCst);
        }
        self.ended.load(SeqCst)
    }

    /// Makes the kernel serve the memory itself from now on, what is not there being fatal to whoever touches it; `keep` says of addresses
    /// that are not mapped that the kernel finds the right bytes for them nevertheless. `Failed` if it cannot make them fatal.
    pub fn release(&self, keep: impl Fn(&Mapping, u64) -> bool) -> Outcome {
        let table = self.table();
        for mapping in table.mappings() {
            let Content::Section(_) = mapping.content else {
                continue;
            };
            let mut at = mapping.range.start;
            while let Some(absent) = mapping.next_absent(&(at..mapping.range.end)) {
                at = absent.end;
                let size = mapping.page_size;
                let mut page = absent.start;
                while page < absent.end {
                    let kept = keep(mapping, page);
                    let start = page;
                    while page < absent.end && keep(mapping, page) == kept {
                        page += size;
                    }
                    if kept {
                        continue;
                    }
                    let part = Part {
                        range: start..page,
                        how: How::Poison,
                    };
                    match self.poison_what_is_mapped(&part, size) {
                        Outcome::Installed => {}
                        outcome => return outcome,
                    }
                }
            }
        }
        for mapping in table.mappings() {
            // What is not registered any more needs nothing.
            let _ = self.descriptor.unregister(&mapping.range);
        }
        Outcome::Installed
    }

    /// Poisons pages of which some may not be mapped any more, if that was never told.
    fn poison_what_is_mapped(&self, part: &Part, page_size: u64) -> Outcome {
        match self.install_part(part, page_size) {
            Outcome::Gone => {}
            outcome => return outcome,
        }
        for start in part.range.clone().step_by(page_size as usize) {
            let page = Part {
                range: start..start + page_size,
                how: How::Poison,
            };
            match self.install_part(&page, page_size) {
                Outcome::Installed | Outcome::Gone => {}
                outcome => return outcome,
            }
        }
        Outcome::Installed
    }
}

/// Whether pages of this size are of hugetlbfs.
pub(super) fn is_huge(page_size: u64) -> bool {
    page_size > rustix::param::page_size() as u64
}
