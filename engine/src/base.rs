//! What a save knows of the snapshots it deduplicates against: their chunks by id, and their sections in order.
//!
//! Chunks by id say what need not be stored again. Sections in order let the next cut be predicted, so that unchanged bytes
//! are hashed once and never run through the chunker. Nothing here reads a base's packs.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use podsnap_format::{
    ChunkId, Role,
    manifest::{Chunk, ChunkingParams, Extent, PackInfo},
};

use crate::{
    error::{Error, Result},
    snapshot::Snapshot,
};

/// A map from chunk ids, which are random already: their first bytes are the hash.
pub(crate) type IdMap<V> = HashMap<ChunkId, V, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {
        // The length prefix of an array's bytes says nothing.
    }
}

/// An extent with its place in the section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacedExtent {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) content: Content,
}

/// The extent that holds the byte at `offset`.
pub(crate) fn covering(extents: &[PlacedExtent], offset: u64) -> Option<PlacedExtent> {
    let behind = extents.partition_point(|e| e.offset <= offset);
    let extent = *extents.get(behind.checked_sub(1)?)?;
    (offset < extent.offset + extent.len).then_some(extent)
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    /// Bytes from `start` of the chunk with this number.
    Chunk {
        chunk: u32,
        start: u32,
    },
}

pub(crate) struct BaseSection {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) chunking: ChunkingParams,
    pub(crate) extents: Vec<PlacedExtent>,
}

impl BaseSection {
    /// The extent that starts exactly at `offset`.
    pub(crate) fn extent_at(&self, offset: u64) -> Option<usize> {
        self.extents
            .binary_search_by_key(&offset, |e| e.offset)
            .ok()
    }
}

/// The chunks and sections of all bases of a save.
#[derive(Default)]
pub(crate) struct BaseIndex {
    pub(crate) sections: Vec<BaseSection>,
    /// Locations refer to `packs`.
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) packs: Vec<PackInfo>,
    by_id: IdMap<u32>,
    /// Where each chunk stands whole, first: section and extent.
    whole_at: Vec<Option<(u32, u32)>>,
}

impl BaseIndex {
    pub(crate) async fn load(bases: &[Snapshot]) -> Result<Self> {
        let mut index = Self::default();
        for base in bases {
            index.add(base).await?;
        }
        Ok(index)
    }

    async fn add(&mut self, base: &Snapshot) -> Result<()> {
        let first_pack = self.packs.len() as u32;
        let directory = base.directory();
        self.packs.extend(directory.packs.iter().cloned());
        for (number, info) in directory.sections.iter().enumerate() {
            let section = self.sections.len() as u32;
            let mut extents: Vec<PlacedExtent> = Vec::new();
            let mut offset = 0;
            for segment in base.load_segments(number).await? {
                let mut numbers = Vec::with_capacity(segment.chunks.len());
                for chunk in segment.chunks {
                    let number = self.chunk_number(chunk, first_pack);
                    let known = &self.chunks[number as usize];
                    // Extents were checked against the length that their own segment states.
                    if known.raw_len != chunk.raw_len {
                        return Err(Error::damaged(
                            base.object_name(),
                            format!(
                                "chunk {} has {} bytes in one place and {} in another",
                                chunk.id, known.raw_len, chunk.raw_len
                            ),
                        ));
                    }
                    numbers.push(number);
                }
                for extent in segment.extents {
                    let (len, content) = match extent {
                        Extent::Zero { len } => (len, Content::Zero),
                        Extent::Chunk { chunk, start, len } => {
                            let chunk = numbers[chunk as usize];
                            if start == 0 && len == self.chunks[chunk as usize].raw_len {
                                self.whole_at[chunk as usize]
                                    .get_or_insert((section, extents.len() as u32));
                            }
                            (len.into(), Content::Chunk { chunk, start })
                        }
                    };
                    extents.push(PlacedExtent {
                        offset,
                        len,
                        content,
                    });
                    offset += len;
                }
            }
            self.sections.push(BaseSection {
                role: info.role,
                name: info.name.clone(),
                chunking: info.chunking,
                extents,
            });
        }
        Ok(())
    }

    fn chunk_number(&mut self, mut chunk: Chunk, first_pack: u32) -> u32 {
        let next = self.chunks.len() as u32;
        let number = *self.by_id.entry(chunk.id).or_insert(next);
        if number == next {
            chunk.location.pack += first_pack;
            self.chunks.push(chunk);
            self.whole_at.push(None);
        }
        number
    }

    /// The number of the chunk with this id.
    pub(crate) fn find(&self, id: &ChunkId) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// The section of that role and name, in the first base that has it.
    pub(crate) fn section(&self, role: Role, name: &str) -> Option<usize> {
        self.sections
            .iter()
            .position(|s| s.role == role && s.name == name)
    }

    /// Where the chunk stands whole: section and index of the extent.
    pub(crate) fn whole_at(&self, chunk: u32) -> Option<(usize, usize)> {
        self.whole_at[chunk as usize].map(|(s, e)| (s as usize, e as usize))
    }
}
