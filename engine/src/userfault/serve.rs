//! Answering one fault: at once if the bytes are at hand, else when they have come.

use std::{ops::Range, sync::Arc, time::Duration};

use super::{
    error::{ServeError, refused},
    server::Shared,
    space::{How, Outcome, Part, Space, is_huge},
    table::{Content, Place, WINDOW},
};
use crate::{
    chunking::zeros::is_zero,
    error::{Error, ErrorKind},
};

/// Fewest bytes of zeros among others that are worth a call of their own.
const LEAST_ZEROS: u64 = 16 << 10;

/// First and longest pause before the kernel is asked again, while somebody reads its events.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(2));

/// Answers a fault on this thread, or has it answered by a task if its bytes must be fetched.
pub(super) fn fault(shared: &Arc<Shared>, space: &Arc<Space>, address: u64, scratch: &mut Vec<u8>) {
    if try_now(shared, space, address, scratch) != Some(Outcome::Installed) {
        later(shared, space, address);
    }
}

/// Has a fault answered by a task.
pub(super) fn later(shared: &Arc<Shared>, space: &Arc<Space>, address: u64) {
    let guard = Unanswered {
        shared: shared.clone(),
        space: space.clone(),
        address: Some(address),
    };
    shared.runtime.spawn(answer(guard));
}

fn try_now(shared: &Shared, space: &Space, address: u64, scratch: &mut Vec<u8>) -> Option<Outcome> {
    let place = space.place(address)?;
    let Content::Section(offset) = place.content else {
        return Some(install_zeros(space, &place));
    };
    let bytes = Bytes::new(&place, offset, shared.reader.len());
    if let Some(memory) = &shared.memory {
        if !memory.is_ready(bytes.page) {
            bytes.room(scratch);
            let read = &mut scratch[..bytes.read_len()];
            let filled = shared
                .reader
                .read_resident(read, offset, bytes.wanted.clone())?;
            let pages = bytes.whole_pages(&filled);
            memory.put(pages.start, &scratch[bytes.within(&pages)]);
        }
        return Some(map_ready(shared, space, &place, &bytes));
    }
    if let Some(lent) = shared.reader.lend(bytes.window.clone(), &bytes.wanted) {
        return Some(install_bytes(space, &place, &bytes, &lent, &bytes.window));
    }
    bytes.room(scratch);
    let read = &mut scratch[..bytes.read_len()];
    let filled = shared
        .reader
        .read_resident(read, offset, bytes.wanted.clone())?;
    Some(install_bytes(space, &place, &bytes, scratch, &filled))
}

/// A fault that no task may forget: whatever becomes of the task, whoever waits does not wait for ever, and does not read on.
struct Unanswered {
    shared: Arc<Shared>,
    space: Arc<Space>,
    address: Option<u64>,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(address) = self.address.take() {
            let why = Error::new(ErrorKind::Store, "what was to read it has died");
            self.shared.fail(ServeError::new(Some(address), None, why));
            // If the process changes its memory right now, it is done when the server closes.
            let _ = self.shared.lose(&self.space, address);
        }
    }
}

async fn answer(mut guard: Unanswered) {
    let (shared, space) = (guard.shared.clone(), guard.space.clone());
    let address = guard.address.expect("a new guard has one");
    let _waiting = shared.pace.wait();
    let mut pause = PAUSES.0;
    loop {
        let outcome = match once(&shared, &space, address).await {
            Ok(outcome) => outcome,
            Err(error) => {
                shared.fail(error);
                shared.lose(&space, address)
            }
        };
        match outcome {
            Outcome::Changed => {
                if space.ended() || shared.is_closing() {
                    break;
                }
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(PAUSES.1);
            }
            Outcome::Failed(e) => {
                let error = ServeError::new(Some(address), None, refused("install the page", e));
                shared.fail(error);
                shared.doom(&space);
                break;
            }
            Outcome::Installed | Outcome::Gone | Outcome::Ended => break,
        }
    }
    guard.address = None;
}

async fn once(shared: &Shared, space: &Space, address: u64) -> Result<Outcome, ServeError> {
    let Some(place) = space.place(address) else {
        return stranger(space, address);
    };
    let Content::Section(offset) = place.content else {
        return Ok(install_zeros(space, &place));
    };
    let bytes = Bytes::new(&place, offset, shared.reader.len());
    if let Some(memory) = &shared.memory
        && memory.is_ready(bytes.page)
    {
        return Ok(map_ready(shared, space, &place, &bytes));
    }
    let mut buf = Vec::new();
    bytes.room(&mut buf);
    let read = &mut buf[..bytes.read_len()];
    let filled = shared
        .reader
        .read_around(read, offset, bytes.wanted.clone())
        .await
        .map_err(|why| ServeError::new(Some(place.page.start), Some(bytes.wanted.start), why))?;
    Ok(match &shared.memory {
        Some(memory) => {
            let pages = bytes.whole_pages(&filled);
            memory.put(pages.start, &buf[bytes.within(&pages)]);
            map_ready(shared, space, &place, &bytes)
        }
        None => install_bytes(space, &place, &bytes, &buf, &filled),
    })
}

/// A fault where nothing is to be served. If the memory is gone, the thread finds that out itself; what is registered and was not
/// announced must not read as anything.
fn stranger(space: &Space, address: u64) -> Result<Outcome, ServeError> {
    let size = rustix::param::page_size() as u64;
    let page = address - address % size..address - address % size + size;
    let generation = space.table().generation;
    let poison = Part {
        range: page.clone(),
        how: How::Poison,
    };
    match space.install(generation, size, &[poison]) {
        Outcome::Installed => {
            let why = Error::invalid(
                "the process registered memory of which it did not say what belongs there",
            );
            Err(ServeError::new(Some(page.start), None, why))
        }
        outcome => Ok(outcome),
    }
}

fn install_zeros(space: &Space, place: &Place) -> Outcome {
    let zeros = Part {
        range: place.window.clone(),
        how: How::Zeros,
    };
    space.install(place.generation, place.page_size, &[zeros])
}

fn map_ready(shared: &Shared, space: &Space, place: &Place, bytes: &Bytes) -> Outcome {
    let memory = shared.memory.as_ref().expect("called for shared memory");
    let runs = memory.ready_runs(bytes.page, &bytes.window);
    let parts: Vec<_> = runs
        .into_iter()
        .map(|(range, zeros)| Part {
            range: bytes.addresses(&range, place),
            how: if zeros { How::Zeros } else { How::Map },
        })
        .collect();
    space.install(place.generation, place.page_size, &parts)
}

fn install_bytes(
    space: &Space,
    place: &Place,
    bytes: &Bytes,
    buf: &[u8],
    filled: &Range<u64>,
) -> Outcome {
    let pages = bytes.whole_pages(filled);
    let addresses = bytes.addresses(&pages, place);
    let parts = parts(addresses, &buf[bytes.within(&pages)], place.page_size);
    space.install(place.generation, place.page_size, &parts)
}

/// Splits pages into those of zeros, which cost no memory, and the others.
pub(super) fn parts(addresses: Range<u64>, bytes: &[u8], page_size: u64) -> Vec<Part<'_>> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    if is_huge(page_size) {
        runs.push((0..bytes.len(), false));
    } else {
        for (number, page) in bytes.chunks(page_size as usize).enumerate() {
            let start = number * page_size as usize;
            let (range, zeros) = (start..start + page.len(), is_zero(page));
            match runs.last_mut() {
                Some((last, kind)) if *kind == zeros => last.end = range.end,
                _ => runs.push((range, zeros)),
            }
        }
        if runs.len() > 1 {
            let mut joined: Vec<(Range<usize>, bool)> = Vec::new();
            for (range, zeros) in runs {
                let zeros = zeros && range.len() as u64 >= LEAST_ZEROS;
                match joined.last_mut() {
                    Some((last, kind)) if *kind == zeros => last.end = range.end,
                    _ => joined.push((range, zeros)),
                }
            }
            runs = joined;
        }
    }
    let part = |(range, zeros): (Range<usize>, bool)| Part {
        range: addresses.start + range.start as u64..addresses.start + range.end as u64,
        how: match zeros {
            true => How::Zeros,
            false => How::Copy(&bytes[range]),
        },
    };
    runs.into_iter().map(part).collect()
}

/// The bytes of a fault's window, in the section's offsets. The section may end within its last page.
pub(super) struct Bytes {
    pub window: Range<u64>,
    /// Where the page begins.
    page: u64,
    /// The section's bytes of the page.
    wanted: Range<u64>,
    section_len: u64,
    page_size: u64,
}

impl Bytes {
    fn new(place: &Place, offset: u64, section_len: u64) -> Self {
        let page = offset + (place.page.start - place.window.start);
        Self {
            window: offset..offset + (place.window.end - place.window.start),
            page,
            wanted: page.min(section_len)..(page + place.page_size).min(section_len),
            section_len,
            page_size: place.page_size,
        }
    }

    fn read_len(&self) -> usize {
        (self.window.end.min(self.section_len) - self.window.start) as usize
    }

    /// Makes room for the window, with zeros behind the section's end.
    fn room(&self, buf: &mut Vec<u8>) {
        let len = (self.window.end - self.window.start) as usize;
        if buf.len() < len {
            buf.resize(len.max(WINDOW as usize), 0);
        }
        buf[self.read_len()..len].fill(0);
    }

    /// The whole pages of what was filled.
    fn whole_pages(&self, filled: &Range<u64>) -> Range<u64> {
        let (base, size) = (self.window.start, self.page_size);
        let end = if filled.end == self.section_len {
            (filled.end - base).next_multiple_of(size)
        } else {
            (filled.end - base) / size * size
        };
        base + (filled.start - base).next_multiple_of(size)..base + end
    }

    fn within(&self, range: &Range<u64>) -> Range<usize> {
        (range.start - self.window.start) as usize..(range.end - self.window.start) as usize
    }

    fn addresses(&self, range: &Range<u64>, place: &Place) -> Range<u64> {
        let at = |offset: u64| place.window.start + (offset - self.window.start);
        at(range.start)..at(range.end)
    }
}
