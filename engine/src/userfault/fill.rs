//! Filling memory that nobody asked for yet: what was named first, then everything in the section's order, giving way to faults.

use std::{collections::VecDeque, ops::Range, sync::Arc, thread, time::Duration};

use futures::FutureExt;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    error::refused,
    memfd::Memory,
    pace::{Pace, Steps},
    serve,
    space::{How, Outcome, Part, Space},
};
use crate::{error::Result, lazy::SectionReader};

/// Bytes decoded and installed at once, so that they are still in the processor's cache, and that faults are not held up.
const PIECE: u64 = 256 << 10;

/// Bytes fetched by one request, and how many steps are fetched ahead of what is installed: a distant store gives what a node can take to many streams only,
/// and what is fetched ahead must find room in memory.
const FETCH_LEN: u64 = 4 << 20;
const STEPS_AHEAD: u64 = 4;

/// Bytes of zeros installed at once.
const ZEROS_PIECE: u64 = 2 << 20;

/// How often somebody looks whether something that another does has come to its end.
const PAUSE: Duration = Duration::from_millis(1);

/// What fills, and on whose behalf.
pub(super) struct Filler<'a> {
    /// Where reading is done. Installing is done by the thread that calls [`fill`](Self::fill).
    pub runtime: &'a Handle,
    pub closing: &'a CancellationToken,
    pub pace: &'a Pace,
    pub reader: SectionReader,
    pub target: Target<'a>,
}

/// What is filled.
pub(super) enum Target<'a> {
    Process(&'a Space),
    Memfd(&'a Memory),
}

/// Absent pages one after another.
#[derive(Debug, Clone)]
struct Stretch {
    /// Which bytes of the section they are. The last page may reach beyond its end.
    section: Range<u64>,
    page_size: u64,
    /// Where they are in the process, and when that was so.
    address: u64,
    generation: u64,
}

/// Bytes that are being fetched.
struct Ahead {
    /// Where they begin in the section.
    start: u64,
    fetched: Doing<()>,
}

/// What may be done already, or is being done by a task.
enum Doing<T> {
    Done(Result<T>),
    Task(JoinHandle<Result<T>>),
}

impl Filler<'_> {
    /// Fills. False if it was closed, or the process ended, before all was there.
    pub fn fill(&self, first: &[Range<u64>]) -> Result<bool> {
        let mut steps = self.pace.steps();
        let mut buf = Vec::new();
        let everything = 0..self.reader.len();
        for wanted in first.iter().chain([&everything]) {
            if !self.fill_range(wanted, &mut steps, &mut buf)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn fill_range(
        &self,
        wanted: &Range<u64>,
        steps: &mut Steps,
        buf: &mut Vec<u8>,
    ) -> Result<bool> {
        let mut at = wanted.start;
        let mut ahead: VecDeque<Ahead> = VecDeque::new();
        let mut asked = at;
        loop {
            let len = steps.next(self.pace);
            if self.is_over() {
                return Ok(false);
            }
            let Some(stretch) = self.target.absent(&(at..wanted.end), len) else {
                return Ok(true);
            };
            let until = stretch.section.start + STEPS_AHEAD * len;
            asked = asked.max(stretch.section.start);
            while asked < until.max(stretch.section.end)
                && let Some(next) = self.target.absent(&(asked..wanted.end), FETCH_LEN.min(len))
            {
                asked = next.section.end;
                ahead.push_back(self.fetch(&next.section));
            }
            while ahead
                .front()
                .is_some_and(|fetch| fetch.start < stretch.section.end)
                && let Some(fetch) = ahead.pop_front()
            {
                match self.wait(fetch.fetched) {
                    Some(came) => came?,
                    None => return Ok(false),
                }
            }
            at = self.fill_stretch(&stretch, buf)?;
        }
    }

    /// Installs a stretch whose bytes are at hand, or as much as one piece of it if somebody waits for a fault. Returns how far it came.
    fn fill_stretch(&self, stretch: &Stretch, buf: &mut Vec<u8>) -> Result<u64> {
        let (size, len) = (stretch.page_size, self.reader.len());
        let (reader, section) = (
            self.reader.clone(),
            stretch.section.start..stretch.section.end.min(len),
        );
        let runs = self.wait(self.start(async move { reader.runs(section).await }));
        let Some(runs) = runs else {
            return Ok(stretch.section.start);
        };
        for (run, zeros) in page_runs(runs?, &stretch.section, size, len) {
            let piece_len = if zeros { ZEROS_PIECE } else { PIECE }.max(size);
            for start in run.clone().step_by(piece_len as usize) {
                let gives_way = self.pace.waiting() > 0 && start > stretch.section.start;
                if gives_way || self.is_over() {
                    return Ok(start);
                }
                let piece = start..run.end.min(start + piece_len);
                let done = match self.target {
                    Target::Memfd(memory) if zeros => {
                        memory.put_zeros(&piece);
                        true
                    }
                    Target::Memfd(memory) if memory.put_resident(&piece) => true,
                    Target::Memfd(memory) => {
                        let read = self.read(&piece, buf)?;
                        if read {
                            memory.put(piece.start, buf);
                        }
                        read
                    }
                    Target::Process(_) if !zeros && !self.read(&piece, buf)? => false,
                    Target::Process(space) => {
                        install(space, stretch, &piece, (!zeros).then_some(buf))?
                    }
                };
                if !done {
                    // Somebody reads the process's events meanwhile; then what belongs here may be something else.
                    thread::sleep(PAUSE);
                    return Ok(start);
                }
            }
        }
        Ok(stretch.section.end)
    }

    /// Puts the bytes of whole pages into `buf`; false if it is over before.
    fn read(&self, pages: &Range<u64>, buf: &mut Vec<u8>) -> Result<bool> {
        let read = pages.start..pages.end.min(self.reader.len());
        let read_len = (read.end - read.start) as usize;
        buf.resize((pages.end - pages.start) as usize, 0);
        buf[read_len..].fill(0);
        let resident = self
            .reader
            .read_resident(&mut buf[..read_len], read.start, read.clone());
        if resident.is_some() {
            return Ok(true);
        }
        let (reader, start) = (self.reader.clone(), read.start);
        let bytes = self.wait(self.start(async move {
            let mut bytes = vec![0; read_len];
            reader.read_at(&mut bytes, start).await.map(|()| bytes)
        }));
        match bytes.transpose()? {
            Some(bytes) => buf[..read_len].copy_from_slice(&bytes),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn fetch(&self, section: &Range<u64>) -> Ahead {
        let section = section.start..section.end.min(self.reader.len());
        let (reader, range) = (self.reader.clone(), section.clone());
        Ahead {
            start: section.start,
            fetched: self.start(async move { reader.prefetch(&[range]).await }),
        }
    }

    /// Does at once what needs not wait for anything: a task would take longer to be woken. The rest becomes a task.
    fn start<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Doing<T> {
        let mut work = Box::pin(work);
        let _entered = self.runtime.enter();
        match (&mut work).now_or_never() {
            Some(done) => Doing::Done(done),
            None => Doing::Task(self.runtime.spawn(work)),
        }
    }

    fn is_over(&self) -> bool {
        let ended = match self.target {
            Target::Process(space) => space.ended(),
            Target::Memfd(_) => false,
        };
        ended || self.closing.is_cancelled()
    }

    /// Waits until it is done; `None` if it is closed, or the runtime ends, before.
    fn wait<T>(&self, doing: Doing<T>) -> Option<Result<T>> {
        let mut task = match doing {
            Doing::Done(done) => return Some(done),
            Doing::Task(task) => task,
        };
        futures::executor::block_on(async {
            tokio::select! {
                done = &mut task => done.ok(),
                () = self.closing.cancelled() => None,
            }
        })
    }
}

impl Target<'_> {
    /// The first pages of these bytes of the section that are not there, of about `len` bytes at most.
    fn absent(&self, wanted: &Range<u64>, len: u64) -> Option<Stretch> {
        let mut stretch = match self {
            Self::Process(space) => {
                let table = space.table();
                let absent = table.next_absent(wanted)?;
                Stretch {
                    section: absent.section,
                    page_size: absent.page_size,
                    address: absent.address,
                    generation: table.generation,
                }
            }
            Self::Memfd(memory) => Stretch {
                section: memory.next_absent(wanted.clone())?,
                page_size: memory.page_size,
                address: 0,
                generation: 0,
            },
        };
        let end = stretch.section.start + len.max(stretch.page_size);
        stretch.section.end = stretch.section.end.min(end);
        Some(stretch)
    }
}

/// Installs a piece of a stretch, zeros if there are no bytes; false if the process changed its memory meanwhile.
fn install(
    space: &Space,
    stretch: &Stretch,
    piece: &Range<u64>,
    bytes: Option<&mut Vec<u8>>,
) -> Result<bool> {
    let at = |offset: u64| stretch.address + (offset - stretch.section.start);
    let size = stretch.page_size;
    let bytes: Option<&[u8]> = bytes.map(|bytes| &bytes[..]);
    let install = |range: Range<u64>, bytes: Option<&[u8]>| {
        let parts = match bytes {
            Some(bytes) => serve::parts(range, bytes, size),
            None => vec![Part {
                range,
                how: How::Zeros,
            }],
        };
        space.install(stretch.generation, size, &parts)
    };
    match install(at(piece.start)..at(piece.end), bytes) {
        Outcome::Installed => Ok(true),
        Outcome::Failed(e) => Err(refused("install pages", e)),
        Outcome::Changed | Outcome::Ended => Ok(false),
        // Some of it was unmapped, and that was never told.
        Outcome::Gone => {
            for page in piece.clone().step_by(size as usize) {
                let within = (page - piece.start) as usize..(page - piece.start + size) as usize;
                install(at(page)..at(page + size), bytes.map(|bytes| &bytes[within]));
            }
            Ok(true)
        }
    }
}

/// Runs in whole pages: a page is zeros if all of it is. The last may reach beyond the section's end.
fn page_runs(
    runs: Vec<crate::lazy::Run>,
    pages: &Range<u64>,
    size: u64,
    section_len: u64,
) -> Vec<(Range<u64>, bool)> {
    let mut found: Vec<(Range<u64>, bool)> = Vec::new();
    let mut push = |range: Range<u64>, zeros: bool| {
        if !range.is_empty() {
            found.push((range, zeros));
        }
    };
    let base = pages.start;
    let mut at = base;
    for run in runs.into_iter().filter(|run| run.zeros) {
        let start = base + (run.range.start - base).next_multiple_of(size);
        let end = match run.range.end == section_len {
            true => pages.end,
            false => base + (run.range.end - base) / size * size,
        };
        if start < end {
            push(at..start, false);
            push(start..end, true);
            at = end;
        }
    }
    push(at..pages.end, false);
    found
}

/// Fills a memfd, unless another does it already: then waits for that one.
pub(super) fn memfd(
    memory: &Arc<Memory>,
    runtime: &Handle,
    closing: &CancellationToken,
    first: &[Range<u64>],
) -> Result<bool> {
    let filler = Filler {
        runtime,
        closing,
        pace: &memory.pace,
        reader: memory.reader.background(),
        target: Target::Memfd(memory),
    };
    loop {
        match memory.filling.try_lock() {
            Err(std::sync::TryLockError::WouldBlock) if closing.is_cancelled() => return Ok(false),
            Err(std::sync::TryLockError::WouldBlock) => thread::sleep(PAUSE),
            Ok(_filling) => return filler.fill(first),
            // Whoever panicked is not filling any more.
            Err(std::sync::TryLockError::Poisoned(_filling)) => return filler.fill(first),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lazy::Run;

    #[test]
    fn only_whole_pages_are_zeros() {
        let run = |range, zeros| Run { range, zeros };
        let runs = vec![
            run(4096..9000, true),
            run(9000..20_000, false),
            run(20_000..40_000, true),
            run(40_000..41_000, false),
            run(41_000..45_000, true),
        ];
        let found = page_runs(runs, &(4096..45_056), 4096, 45_000);
        let expected = [
            (4096..8192, true),
            (8192..20_480, false),
            (20_480..36_864, true),
            (36_864..45_056, false),
        ];
        assert_eq!(found, expected);
    }
}
