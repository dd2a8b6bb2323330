//! Random access to a section: any range, reading only the extent maps and frames it touches.
//!
//! Every chunk is checked against its id before a byte of it is handed out. This is the plain reader: it keeps the last
//! extent map and nothing else, and reads one after another, neighbouring frames at once.

use std::{ops::Range, sync::Arc};

use podsnap_format::{
    codec::Decoder,
    manifest::{Chunk, Extent, Segment},
};
use tokio::sync::Mutex;

use super::Snapshot;
use crate::{
    error::{Error, ErrorKind, Result},
    frames,
};

/// A read that is no longer than this, in bytes, costs little more than its latency.
const LEAST_READ_LEN: u64 = 256 << 10;

/// Unneeded bytes between two frames that are read along rather than paid for with another request.
const MAX_GAP: u64 = 32 << 10;

/// A range to be filled from a chunk.
struct Wanted {
    chunk: Chunk,
    /// Where its bytes begin in the chunk.
    skip: usize,
    target: Range<usize>,
}

impl Wanted {
    /// The bytes of the pack that hold the chunk's frame.
    fn frame(&self) -> Range<u64> {
        let location = &self.chunk.location;
        location.offset..location.offset + location.frame_len()
    }
}

/// Reads ranges of one section; [`Snapshot::reader`] makes one. Only what a range touches is fetched, and it is checked before it is handed out.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://reader")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let section = snapshot.find_section(Role::Memory, "")?;
/// let reader = snapshot.reader(section);
/// let mut number = [0; 4];
/// reader.read_at(&mut number, 4 * 1234).await?;
/// assert_eq!(u32::from_le_bytes(number), 1234);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SectionReader {
    snapshot: Snapshot,
    section: usize,
    /// The extent map used last, with its number.
    map: Mutex<Option<(usize, Arc<Segment>)>>,
}

impl SectionReader {
    pub(super) fn new(snapshot: Snapshot, section: usize) -> Self {
        Self {
            snapshot,
            section,
            map: Mutex::new(None),
        }
    }

    /// Length of the section in bytes.
    pub fn len(&self) -> u64 {
        self.snapshot.sections()[self.section].length
    }

    /// Whether the section has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset` of the section.
    pub async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= self.len())
            .ok_or_else(|| {
                let label = self.snapshot.sections()[self.section].title();
                Error::invalid(format!(
                    "{} bytes at {offset} are outside of {label}, which has {}",
                    buf.len(),
                    self.len()
                ))
            })?;
        let mut at = offset;
        while at < end {
            let (start, map) = self.map_at(at).await?;
            let mut extent_start = start;
            let mut wanted = Vec::new();
            for extent in &map.extents {
                let extent_end = extent_start + extent.len();
                let (from, to) = (at.max(extent_start), end.min(extent_end));
                if from < to {
                    let target = (from - offset) as usize..(to - offset) as usize;
                    match *extent {
                        Extent::Zero { .. } => buf[target].fill(0),
                        Extent::Chunk { chunk, start, .. } => wanted.push(Wanted {
                            chunk: map.chunks[chunk as usize],
                            skip: start as usize + (from - extent_start) as usize,
                            target,
                        }),
                    }
                    at = to;
                }
                extent_start = extent_end;
            }
            self.fill(buf, wanted).await?;
        }
        Ok(())
    }

    /// Fills ranges of `buf` from chunks. Frames that stand together are read together.
    async fn fill(&self, buf: &mut [u8], mut wanted: Vec<Wanted>) -> Result<()> {
        let longest = (buf.len() as u64)
            .min(self.snapshot.backend.read_len())
            .max(LEAST_READ_LEN);
        wanted.sort_by_key(|wanted| (wanted.chunk.location.pack, wanted.chunk.location.offset));
        let mut rest = wanted.as_slice();
        while let Some(first) = rest.first() {
            let (pack, mut range) = (first.chunk.location.pack, first.frame());
            let joins = |next: &&Wanted| {
                let frame = next.frame();
                let joins = next.chunk.location.pack == pack
                    && frame.start <= range.end + MAX_GAP
                    && (frame.end <= range.end || frame.end - range.start <= longest);
                if joins {
                    range.end = range.end.max(frame.end);
                }
                joins
            };
            let (run, behind) = rest.split_at(rest.iter().take_while(joins).count());
            rest = behind;
            self.fill_from(buf, run, pack, range).await?;
        }
        Ok(())
    }

    /// Fills ranges of `buf` from chunks whose frames are in `range` of a pack.
    async fn fill_from(
        &self,
        buf: &mut [u8],
        run: &[Wanted],
        pack: u32,
        range: Range<u64>,
    ) -> Result<()> {
        let read = match run.iter().all(|wanted| wanted.chunk == run[0].chunk) {
            true => None,
            false => match self.snapshot.read_pack(pack, range.clone()).await {
                // Perhaps not all of them are damaged.
                Err(e) if e.kind() == ErrorKind::Damaged => None,
                read => Some(read?),
            },
        };
        let (mut decoder, mut raw, mut decoded) = (Decoder::new(), Vec::new(), None);
        for wanted in run {
            let chunk = &wanted.chunk;
            if decoded != Some(*chunk) {
                let frame = wanted.frame();
                let checked = read.as_ref().is_some_and(|read| {
                    let within =
                        (frame.start - range.start) as usize..(frame.end - range.start) as usize;
                    let key = self.snapshot.key.as_ref();
                    frames::decode_checked(&read[within], chunk, key, &mut decoder, &mut raw)
                        .is_ok()
                });
                if !checked {
                    self.snapshot.read_chunk(chunk, &mut raw).await?;
                }
                decoded = Some(*chunk);
            }
            let bytes = &raw[wanted.skip..][..wanted.target.len()];
            buf[wanted.target.clone()].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// The extent map that covers `offset`, and where in the section it starts.
    async fn map_at(&self, offset: u64) -> Result<(u64, Arc<Segment>)> {
        let infos = &self.snapshot.sections()[self.section].segments;
        let number = infos.partition_point(|s| s.section_offset + s.section_len <= offset);
        let start = infos[number].section_offset;
        let mut kept = self.map.lock().await;
        if let Some((_, map)) = kept.as_ref().filter(|(kept, _)| *kept == number) {
            return Ok((start, map.clone()));
        }
        let map = Arc::new(self.snapshot.load_segment(self.section, number).await?);
        *kept = Some((number, map.clone()));
        Ok((start, map))
    }
}
