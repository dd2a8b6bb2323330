//! Random access to a section: any range, reading only the extent maps and frames it touches.
//!
//! Every chunk is checked against its id before a byte of it is handed out. This is the plain reader: it keeps the last
//! extent map and nothing else, and fetches one frame after another.

use std::sync::Arc;

use podsnap_format::manifest::{Chunk, Extent, Segment};
use tokio::sync::Mutex;

use super::Snapshot;
use crate::error::{Error, Result};

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
            for extent in &map.extents {
                let extent_end = extent_start + extent.len();
                let (from, to) = (at.max(extent_start), end.min(extent_end));
                if from < to {
                    let target = &mut buf[(from - offset) as usize..(to - offset) as usize];
                    match extent {
                        Extent::Zero { .. } => target.fill(0),
                        Extent::Chunk { chunk, start, .. } => {
                            let skip = *start as usize + (from - extent_start) as usize;
                            let bytes = self.chunk(&map.chunks[*chunk as usize]).await?;
                            target.copy_from_slice(&bytes[skip..skip + target.len()]);
                        }
                    }
                    at = to;
                }
                extent_start = extent_end;
            }
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

    async fn chunk(&self, chunk: &Chunk) -> Result<Vec<u8>> {
        let mut raw = Vec::new();
        self.snapshot.read_chunk(chunk, &mut raw).await?;
        Ok(raw)
    }
}
