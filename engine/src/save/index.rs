//! What a save knows so far: every chunk it refers to, where each stands in its own sections, and the sections' extents.
//!
//! Used by one thread, in the order of the bytes. Positions are kept so that duplicates can be grown past their chunks' borders
//! ([`super::grow`]) and so that [`super::seal`] can write the extent maps.

use std::sync::Arc;

use podsnap_format::ChunkId;

use super::grow::Known;
use crate::{
    base::{BaseIndex, Content, IdMap, PlacedExtent, covering},
    source::Source,
};

/// A chunk this save refers to.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownChunk {
    pub(super) id: ChunkId,
    pub(super) raw_len: u32,
    /// Its number in the base, if it is stored there.
    pub(super) base: Option<u32>,
    /// A place in this save where it stands whole.
    pub(super) whole_at: Place,
}

/// A place in the sections of this save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) section: u32,
    pub(super) offset: u64,
}

impl Place {
    /// The place `len` bytes further on.
    pub(super) fn after(self, len: u64) -> Self {
        Self {
            offset: self.offset + len,
            ..self
        }
    }

    /// The place `len` bytes before this one.
    pub(super) fn before(self, len: u64) -> Self {
        Self {
            offset: self.offset - len,
            ..self
        }
    }
}

/// Extents of a section so far, and its source where it can be read again.
#[derive(Default)]
pub(super) struct SavedSection {
    pub(super) extents: Vec<PlacedExtent>,
    pub(super) len: u64,
    pub(super) source: Option<Arc<dyn Source>>,
}

impl SavedSection {
    /// Appends an extent; zeros join zeros before them.
    pub(super) fn push(&mut self, len: u64, content: Content) {
        match self.extents.last_mut() {
            Some(last) if content == Content::Zero && last.content == Content::Zero => {
                last.len += len
            }
            _ => self.extents.push(PlacedExtent {
                offset: self.len,
                len,
                content,
            }),
        }
        self.len += len;
    }

    /// The extent that holds the byte at `offset`.
    pub(super) fn covering(&self, offset: u64) -> Option<PlacedExtent> {
        covering(&self.extents, offset)
    }
}

/// Chunks and sections of a save.
pub(super) struct SaveIndex {
    pub(super) base: Arc<BaseIndex>,
    pub(super) chunks: Vec<KnownChunk>,
    pub(super) sections: Vec<SavedSection>,
    by_id: IdMap<u32>,
}

/// What became of a chunk that was looked up.
pub(super) enum Lookup {
    /// This save or its base has it already.
    Known(u32),
    /// It must be stored.
    New(u32),
}

impl SaveIndex {
    pub(super) fn new(base: Arc<BaseIndex>) -> Self {
        Self {
            base,
            chunks: Vec::new(),
            sections: Vec::new(),
            by_id: IdMap::default(),
        }
    }

    /// Whether the chunk is known to this save or its base.
    pub(super) fn knows(&self, id: &ChunkId) -> bool {
        self.by_id.contains_key(id) || self.base.find(id).is_some()
    }

    /// The chunk's number in this save, if the save has met it whole before.
    pub(super) fn met(&self, id: &ChunkId) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// Where the base has its chunk of that number whole.
    pub(super) fn base_place(&self, chunk: u32) -> Option<Known> {
        let (section, extent) = self.base.whole_at(chunk)?;
        let offset = self.base.sections[section].extents[extent].offset;
        Some(Known::Base { section, offset })
    }

    /// Notes a whole chunk at `place`.
    pub(super) fn enter(&mut self, id: ChunkId, raw_len: u32, place: Place) -> Lookup {
        let next = self.chunks.len() as u32;
        let number = *self.by_id.entry(id).or_insert(next);
        if number != next {
            return Lookup::Known(number);
        }
        let base = self.base.find(&id);
        self.chunks.push(KnownChunk {
            id,
            raw_len,
            base,
            whole_at: place,
        });
        if base.is_some() {
            Lookup::Known(number)
        } else {
            Lookup::New(number)
        }
    }

    /// Notes a chunk of the base of which a range is used; `place` is where the whole one was proven to stand.
    pub(super) fn enter_base(&mut self, base: u32, place: Place) -> u32 {
        let chunk = &self.base.chunks[base as usize];
        let (id, raw_len) = (chunk.id, chunk.raw_len);
        match self.enter(id, raw_len, place) {
            Lookup::Known(number) | Lookup::New(number) => number,
        }
    }
}
