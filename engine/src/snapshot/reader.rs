//! Random access to a section: any range, reading only the extent maps and frames it touches.
//!
//! Every chunk is checked against its id before a byte of it is handed out. This is the plain reader: it keeps the last
//! extent map and nothing else, and fetches one frame after another.

use std::sync::Arc;

use podsnap_format::{
    FRAME_HEADER_LEN,
    codec::Decoder,
    manifest::{Extent, Segment},
};
use tokio::sync::Mutex;

use super::Snapshot;
use crate::{
    error::{Error, Result},
    frames,
};

/// Reads ranges of one section.
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
        let mut decoder = Decoder::new();
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
                            let bytes = self.chunk(&map, *chunk, &mut decoder).await?;
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

    async fn chunk(&self, map: &Segment, number: u32, decoder: &mut Decoder) -> Result<Vec<u8>> {
        let chunk = &map.chunks[number as usize];
        let pack = chunk.location.pack;
        let start = chunk.location.offset;
        let end = start + FRAME_HEADER_LEN as u64 + u64::from(chunk.location.encoded_len);
        let bytes = self.snapshot.read_pack(pack, start..end).await?;
        let mut raw = Vec::new();
        frames::decode_checked(&bytes, chunk, self.snapshot.key.as_ref(), decoder, &mut raw)
            .map_err(|why| {
                let object = self
                    .snapshot
                    .pack_object(&self.snapshot.directory().packs[pack as usize]);
                Error::damaged(frames::place(&object, start), why)
            })?;
        Ok(raw)
    }
}
