//! Filling memory that nobody asked for yet: what was named first, then everything, in order, giving way to faults.

use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use super::{
    memfd::Memory,
    pace::Pace,
    serve,
    server::Shared,
    space::{How, Outcome, Part, Space},
    table::Content,
};
use crate::{
    error::{Error, Result},
    lazy::SectionReader,
};

/// Bytes decoded and installed at once, so that they are still in the processor's cache, and that faults are not held up.
const PIECE: u64 = 64 << 10;

/// Bytes of zeros installed at once.
const ZEROS_PIECE: u64 = 2 << 20;

/// Fills the memory of a process. Returns early when the server closes or the process ends.
pub(super) async fn process(shared: &Arc<Shared>, space: &Space, first: &[Range<u64>]) -> Result<()> {
    let reader = shared.reader.background();
    let mut steps = shared.pace.steps();
    let mut buf = Vec::new();
    for wanted in first {
        for addresses in addresses_of(space, wanted) {
            addresses_in(shared, space, &reader, &addresses, &mut steps, &mut buf).await?;
        }
    }
    loop {
        let generation = space.table().generation;
        let everything = 0..u64::MAX;
        addresses_in(shared, space, &reader, &everything, &mut steps, &mut buf).await?;
        // What moved meanwhile may have moved to where this has been already.
        if shared.is_closing() || space.ended.load(SeqCst) || space.table().generation == generation
        {
            return Ok(());
        }
    }
}

/// Where bytes of the section are now.
fn addresses_of(space: &Space, wanted: &Range<u64>) -> Vec<Range<u64>> {
    let table = space.table();
    let mappings = table.mappings().iter();
    mappings
        .filter_map(|mapping| {
            let Content::Section(offset) = mapping.content else {
                return None;
            };
            let end = offset + (mapping.range.end - mapping.range.start);
            let (from, to) = (wanted.start.max(offset), wanted.end.min(end));
            let at = |offset_in: u64| mapping.range.start + (offset_in - offset);
            (from < to).then(|| {
                let size = mapping.page_size;
                let start = at(from) / size * size;
                start..at(to).next_multiple_of(size)
            })
        })
        .collect()
}

async fn addresses_in(
    shared: &Arc<Shared>,
    space: &Space,
    reader: &SectionReader,
    addresses: &Range<u64>,
    steps: &mut super::pace::Steps,
    buf: &mut Vec<u8>,
) -> Result<()> {
    let mut at = addresses.start;
    while !shared.is_closing() && !space.ended.load(SeqCst) {
        let step = steps.next(&shared.pace).await;
        let next = {
            let table = space.table();
            let within = at..addresses.end;
            table.mappings().iter().find_map(|mapping| {
                let Content::Section(offset) = mapping.content else {
                    return None;
                };
                let absent = mapping.next_absent(&within)?;
                let offset = offset + (absent.start - mapping.range.start);
                let len = step.max(mapping.page_size);
                let end = absent.end.min(absent.start.saturating_add(len));
                Some((absent.start..end, offset, mapping.page_size, table.generation))
            })
        };
        let Some((absent, offset, page_size, generation)) = next else {
            return Ok(());
        };
        let piece = Stretch {
            addresses: absent.clone(),
            offset,
            page_size,
            generation,
        };
        if fill_stretch(shared, space, reader, &piece, buf).await? {
            at = absent.end;
        } else {
            // Somebody reads the events meanwhile; then what belongs here may be something else.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

struct Stretch {
    addresses: Range<u64>,
    offset: u64,
    page_size: u64,
    generation: u64,
}

/// Fills a stretch; false if the process changed its memory meanwhile.
async fn fill_stretch(
    shared: &Shared,
    space: &Space,
    reader: &SectionReader,
    stretch: &Stretch,
    buf: &mut Vec<u8>,
) -> Result<bool> {
    let size = stretch.page_size;
    let offset = stretch.offset;
    let len = stretch.addresses.end - stretch.addresses.start;
    let section = offset..(offset + len).min(reader.len());
    let at = |in_section: u64| stretch.addresses.start + (in_section - offset);
    for (run, zeros) in page_runs(reader, &section, size).await? {
        let pieces = if zeros { ZEROS_PIECE } else { PIECE }.max(size);
        if !zeros {
            reader.prefetch(&[run.start..run.end.min(reader.len())]).await?;
        }
        let mut start = run.start;
        while start < run.end {
            let end = run.end.min(start + pieces);
            let addresses = at(start)..at(end);
            let outcome = if zeros {
                let zeros = Part {
                    range: addresses,
                    how: How::Zeros,
                };
                space.install(stretch.generation, size, &[zeros])
            } else {
                let read = start..end.min(reader.len());
                let read_len = (read.end - read.start) as usize;
                buf.resize((end - start) as usize, 0);
                buf[read_len..].fill(0);
                let resident = reader.read_resident(&mut buf[..read_len], start, read);
                if resident.is_none() {
                    reader.read_at(&mut buf[..read_len], start).await?;
                }
                let parts = serve::parts(addresses, buf, size);
                space.install(stretch.generation, size, &parts)
            };
            match outcome {
                Outcome::Installed => {}
                Outcome::Failed(e) => return Err(super::error::refused("install pages", e)),
                Outcome::Changed | Outcome::Gone | Outcome::Ended => return Ok(false),
            }
            start = end;
            tokio::task::yield_now().await;
            if shared.pace.waiting() > 0 {
                // The rest is found absent, and filled in smaller steps.
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Runs of a stretch in whole pages: a page is zeros if all of it is. The last may reach beyond the section's end.
async fn page_runs(
    reader: &SectionReader,
    section: &Range<u64>,
    size: u64,
) -> Result<Vec<(Range<u64>, bool)>> {
    let base = section.start;
    let end = base + (section.end - base).next_multiple_of(size);
    let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
    let mut push = |range: Range<u64>, zeros: bool| match runs.last_mut() {
        _ if range.is_empty() => {}
        Some((last, kind)) if *kind == zeros => last.end = range.end,
        _ => runs.push((range, zeros)),
    };
    let mut at = base;
    for run in reader.runs(section.clone()).await? {
        if !run.zeros {
            continue;
        }
        let start = base + (run.range.start - base).next_multiple_of(size);
        let stop = match run.range.end == reader.len() {
            true => end,
            false => base + (run.range.end - base) / size * size,
        };
        if start < stop {
            push(at..start, false);
            push(start..stop, true);
            at = stop;
        }
    }
    push(at..end, false);
    Ok(runs)
}

/// Fills a memfd.
pub(super) async fn memfd(
    memory: &Memory,
    pace: &Pace,
    first: &[Range<u64>],
    closing: impl Fn() -> bool,
) -> Result<()> {
    let reader = memory.reader.background();
    let mut steps = pace.steps();
    let everything = 0..reader.len();
    let mut buf = Vec::new();
    for wanted in first.iter().chain([&everything]) {
        if wanted.start > wanted.end || wanted.end > reader.len() {
            return Err(Error::invalid("a range to be filled first is outside of the section"));
        }
        while let Some(absent) = memory.next_absent(wanted.clone()) {
            if closing() {
                return Ok(());
            }
            let step = steps.next(pace).await.max(memory.page_size);
            let end = absent.end.min(absent.start + step);
            let section = absent.start..end.min(reader.len());
            for (run, zeros) in page_runs(&reader, &section, memory.page_size).await? {
                if zeros {
                    memory.put_zeros(&run);
                    continue;
                }
                let read = run.start..run.end.min(reader.len());
                reader.prefetch(std::slice::from_ref(&read)).await?;
                if !memory.put_resident(&run) {
                    buf.clear();
                    buf.resize((run.end - run.start) as usize, 0);
                    let len = (read.end - read.start) as usize;
                    reader.read_at(&mut buf[..len], read.start).await?;
                    memory.put(run.start, &buf);
                }
            }
        }
    }
    Ok(())
}
