//! Writing down what a save found: extent maps, pack table and metadata become a manifest.

use std::collections::HashMap;

use podsnap_format::{
    Header, MAX_SEGMENT_EXTENTS, Role, Shape,
    manifest::{
        AddressRange, Chunk, ChunkingParams, EncodedManifest, Extent, ManifestBuilder, PackInfo,
        SectionBuilder, SectionInfo, Segment,
    },
};

use super::{index::SaveIndex, packer::Packed};
use crate::{
    base::Content,
    error::{Error, Result},
};

/// What a section is, beside its bytes.
#[derive(Debug, Clone)]
pub(super) struct SectionShape {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) table_length: u64,
    pub(super) chunking: ChunkingParams,
    pub(super) address_ranges: Vec<AddressRange>,
}

/// No number: the chunk is not in the segment's table yet.
const NONE: u32 = u32::MAX;

/// The manifest of everything in `index`.
pub(super) fn seal(
    header: &Header,
    metadata: String,
    index: &SaveIndex,
    packed: &Packed,
    shapes: &[SectionShape],
) -> Result<EncodedManifest> {
    let refused = |e| Error::invalid("the manifest cannot be written").because(e);
    let mut table = Table::new(index, packed);
    let mut builder = ManifestBuilder::new(header.clone(), podsnap_format::HEADER_LEN as u64);
    for (section, shape) in index.sections.iter().zip(shapes) {
        let mut built = SectionBuilder::new();
        for extents in section.extents.chunks(MAX_SEGMENT_EXTENTS) {
            built.push(&table.segment(extents)).map_err(refused)?;
        }
        let info = SectionInfo {
            table_length: shape.table_length,
            address_ranges: shape.address_ranges.clone(),
            ..SectionInfo::new(shape.role, &shape.name, shape.shape, shape.chunking)
        };
        builder.section(info, built);
    }
    builder.finish(&metadata, &table.packs).map_err(refused)
}

/// Chunk locations by number, in terms of the manifest's pack table.
struct Table<'a> {
    index: &'a SaveIndex,
    chunks: Vec<Option<Chunk>>,
    packs: Vec<PackInfo>,
    borrowed: HashMap<u32, u32>,
    /// Number of each chunk in the segment being made.
    in_segment: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(index: &'a SaveIndex, packed: &Packed) -> Self {
        let mut chunks = vec![None; index.chunks.len()];
        for stored in &packed.chunks {
            let known = &index.chunks[stored.number as usize];
            let (id, raw_len) = (known.id, known.raw_len);
            chunks[stored.number as usize] = Some(Chunk {
                id,
                raw_len,
                codec: stored.codec,
                location: stored.location,
            });
        }
        Self {
            index,
            chunks,
            packs: packed.packs.clone(),
            borrowed: HashMap::new(),
            in_segment: vec![NONE; index.chunks.len()],
        }
    }

    /// Where the chunk is; borrowed packs enter the table when they are first used.
    fn chunk(&mut self, number: u32) -> Chunk {
        if let Some(chunk) = self.chunks[number as usize] {
            return chunk;
        }
        let base = self.index.chunks[number as usize]
            .base
            .expect("a chunk is stored by this save or by its base");
        let mut chunk = self.index.base.chunks[base as usize];
        let packs = &mut self.packs;
        let info = &self.index.base.packs[chunk.location.pack as usize];
        chunk.location.pack = *self.borrowed.entry(chunk.location.pack).or_insert_with(|| {
            // Two bases may borrow from one pack.
            let same = |p: &PackInfo| p.snapshot == info.snapshot && p.name == info.name;
            packs.iter().position(same).unwrap_or_else(|| {
                packs.push(info.clone());
                packs.len() - 1
            }) as u32
        });
        self.chunks[number as usize] = Some(chunk);
        chunk
    }

    fn segment(&mut self, extents: &[crate::base::PlacedExtent]) -> Segment {
        let mut segment = Segment {
            chunks: Vec::new(),
            extents: Vec::with_capacity(extents.len()),
        };
        let mut used = Vec::new();
        for extent in extents {
            segment.extents.push(match extent.content {
                Content::Zero => Extent::Zero { len: extent.len },
                Content::Chunk {
                    chunk: number,
                    start,
                } => {
                    if self.in_segment[number as usize] == NONE {
                        self.in_segment[number as usize] = segment.chunks.len() as u32;
                        used.push(number);
                        let chunk = self.chunk(number);
                        segment.chunks.push(chunk);
                    }
                    Extent::Chunk {
                        chunk: self.in_segment[number as usize],
                        start,
                        len: extent.len as u32,
                    }
                }
            });
        }
        for number in used {
            self.in_segment[number as usize] = NONE;
        }
        segment
    }
}
