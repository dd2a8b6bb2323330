//! The extent maps of a section: loaded when first needed, a bounded number of them kept, searched by offset.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    ops::Range,
    sync::{Arc, Mutex, Weak},
};

use futures::{StreamExt, stream};
use lru::LruCache;
use podsnap_format::manifest::{Chunk, Extent, Segment};
use tokio::sync::OnceCell;

use crate::{error::Result, snapshot::Snapshot};

/// Maps kept of each section. Each covers some 128 MiB (2048 extents) and takes at most 180 KB.
const KEPT_MAPS: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

/// Maps loaded at once ahead of their use.
const LOADS_AT_ONCE: usize = 16;

/// A part of a section, as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// Its bytes in the section.
    pub(super) range: Range<u64>,
    pub(super) content: Content,
}

/// What a piece consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Zeros,
    /// Bytes of a chunk from `skip` on.
    Chunk {
        chunk: Chunk,
        skip: usize,
    },
}

/// The maps of each section that some reader has, by the section's number: all its readers have the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedMaps(Arc<Mutex<HashMap<usize, Weak<Maps>>>>);

impl SharedMaps {
    pub(super) fn of(snapshot: &Snapshot, section: usize) -> Arc<Maps> {
        let mut all = snapshot.maps.0.lock().expect("no panic while held");
        let known = all.get(&section).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let maps = Arc::new(Maps::new(snapshot.clone(), section));
            all.insert(section, Arc::downgrade(&maps));
            maps
        })
    }
}

/// The maps of one section.
#[derive(Debug)]
pub(crate) struct Maps {
    snapshot: Snapshot,
    section: usize,
    /// By number; one that is not loaded yet is being loaded by somebody.
    kept: Mutex<LruCache<usize, Arc<OnceCell<Map>>>>,
}

/// One map.
#[derive(Debug)]
struct Map {
    segment: Segment,
    /// Where each extent starts in the section, and where the last one ends.
    starts: Vec<u64>,
}

impl Maps {
    fn new(snapshot: Snapshot, section: usize) -> Self {
        Self {
            snapshot,
            section,
            kept: Mutex::new(LruCache::new(KEPT_MAPS)),
        }
    }

    /// The pieces of a range, which must be within the section.
    pub(super) async fn pieces(&self, range: Range<u64>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let cell = self.cell(self.number_at(at));
            let map = cell
                .get_or_try_init(|| self.load(self.number_at(at)))
                .await?;
            at = map.append_pieces(at..range.end, &mut pieces);
        }
        Ok(pieces)
    }

    /// The same without waiting, if the maps are at hand.
    pub(super) fn kept_pieces(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let cell = self.cell(self.number_at(at));
            at = cell.get()?.append_pieces(at..range.end, &mut pieces);
        }
        Some(pieces)
    }

    /// Loads the maps of ranges, many at once. One that cannot be loaded is found out by who needs it.
    pub(super) async fn load_ahead(&self, ranges: &[Range<u64>]) {
        let mut numbers: Vec<usize> = ranges
            .iter()
            .filter(|range| !range.is_empty())
            .flat_map(|range| self.number_at(range.start)..=self.number_at(range.end - 1))
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        stream::iter(numbers.into_iter().take(KEPT_MAPS.get()))
            .for_each_concurrent(LOADS_AT_ONCE, |number| async move {
                let cell = self.cell(number);
                let _ = cell.get_or_try_init(|| self.load(number)).await;
            })
            .await;
    }

    fn number_at(&self, offset: u64) -> usize {
        let infos = &self.snapshot.sections()[self.section].segments;
        infos.partition_point(|s| s.section_offset + s.section_len <= offset)
    }

    fn cell(&self, number: usize) -> Arc<OnceCell<Map>> {
        let mut kept = self.kept.lock().expect("no panic while held");
        kept.get_or_insert(number, Arc::default).clone()
    }

    async fn load(&self, number: usize) -> Result<Map> {
        let segment = self.snapshot.load_segment(self.section, number).await?;
        let start = self.snapshot.sections()[self.section].segments[number].section_offset;
        Ok(Map::new(segment, start))
    }
}

impl Map {
    fn new(segment: Segment, start: u64) -> Self {
        let mut end = start;
        let mut starts = Vec::with_capacity(segment.extents.len() + 1);
        starts.push(start);
        for extent in &segment.extents {
            end += extent.len();
            starts.push(end);
        }
        Self { segment, starts }
    }

    /// Appends the pieces of what of `range` this map covers, from its start on; returns where that ends.
    fn append_pieces(&self, range: Range<u64>, pieces: &mut Vec<Piece>) -> u64 {
        let first = self.starts.partition_point(|start| *start <= range.start) - 1;
        let mut at = range.start;
        for (extent, bounds) in self
            .segment
            .extents
            .iter()
            .zip(self.starts.windows(2))
            .skip(first)
        {
            if at >= range.end {
                break;
            }
            let (start, end) = (bounds[0], bounds[1].min(range.end));
            let content = match *extent {
                Extent::Zero { .. } => Content::Zeros,
                Extent::Chunk {
                    chunk,
                    start: within,
                    ..
                } => Content::Chunk {
                    chunk: self.segment.chunks[chunk as usize],
                    skip: within as usize + (at - start) as usize,
                },
            };
            if at < end {
                pieces.push(Piece {
                    range: at..end,
                    content,
                });
            }
            at = end.max(at);
        }
        at
    }
}
