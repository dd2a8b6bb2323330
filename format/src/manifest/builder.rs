//! Putting a manifest, or the end of an export, together. Segments are encoded as they are finished, so that of a
//! large snapshot only their bytes are held and not their structures.

use std::collections::BTreeMap;

use super::{Directory, PackInfo, SectionInfo, Segment, SegmentInfo, directory, segment};
use crate::{Digest, Footer, FormatError, HEADER_LEN, Header, Kind};

/// Collects the segments of one section, in the order of their offsets. Sections can be built at the same time.
#[derive(Debug, Default)]
pub struct SectionBuilder {
    bytes: Vec<u8>,
    /// Object offsets are relative to `bytes`.
    segments: Vec<SegmentInfo>,
    length: u64,
    /// For every pack referred to, where the last frame in it ends.
    pack_ends: BTreeMap<u32, u64>,
}

impl SectionBuilder {
    /// A section without segments.
    pub fn new() -> SectionBuilder {
        SectionBuilder::default()
    }

    /// Adds the next segment; an error if it is empty or no reader would accept it.
    pub fn push(&mut self, segment: &Segment) -> Result<(), FormatError> {
        let bytes = segment.encode()?;
        let section_len = segment.len();
        if section_len == 0 {
            let expected = "some extents";
            return Err(FormatError::Unwritable {
                what: segment::WHAT,
                field: "length",
                found: 0,
                expected,
            });
        }
        for chunk in &segment.chunks {
            let end = self.pack_ends.entry(chunk.location.pack).or_default();
            *end = (*end).max(chunk.location.offset + chunk.location.frame_len());
        }
        self.segments.push(SegmentInfo {
            section_offset: self.length,
            section_len,
            object_offset: self.bytes.len() as u64,
            object_len: bytes.len() as u64,
            hash: *blake3::hash(&bytes).as_bytes(),
        });
        self.bytes.extend_from_slice(&bytes);
        self.length = self.length.saturating_add(section_len);
        Ok(())
    }

    /// How many bytes of the section the segments added so far map.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether no segment was added.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

/// Collects the sections of a snapshot.
#[derive(Debug)]
pub struct ManifestBuilder {
    header: Header,
    /// Where `bytes` begin in the object.
    position: u64,
    bytes: Vec<u8>,
    sections: Vec<SectionInfo>,
    pack_ends: BTreeMap<u32, u64>,
}

/// The end of an object, ready to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedManifest {
    /// Segments, directory and footer: what follows the header of a manifest, or the frames of an export.
    pub bytes: Vec<u8>,
    /// The digest of the snapshot.
    pub digest: Digest,
}

impl ManifestBuilder {
    /// The end of the object that begins with `header`. `position` is where the segments will stand: at
    /// [`HEADER_LEN`] in a manifest, behind the frames in an export.
    pub fn new(header: Header, position: u64) -> ManifestBuilder {
        ManifestBuilder {
            header,
            position,
            bytes: Vec::new(),
            sections: Vec::new(),
            pack_ends: BTreeMap::new(),
        }
    }

    /// Adds a section with its segments. `length` and `segments` of `info` are filled in here.
    pub fn section(&mut self, mut info: SectionInfo, built: SectionBuilder) {
        let offset = self.position + self.bytes.len() as u64;
        info.length = built.length;
        info.segments = built.segments;
        info.segments
            .iter_mut()
            .for_each(|segment| segment.object_offset += offset);
        self.bytes.extend_from_slice(&built.bytes);
        self.sections.push(info);
        for (pack, end) in built.pack_ends {
            let known = self.pack_ends.entry(pack).or_default();
            *known = (*known).max(end);
        }
    }

    /// Completes the object. `metadata` is JSON; `packs` is the table that the chunks' locations refer to.
    ///
    /// An error if a chunk lies in no pack of the table or beyond its end, or if there is anything else that a reader
    /// would refuse: the directory is read back before it is handed out.
    pub fn finish(
        self,
        metadata: &str,
        packs: &[PackInfo],
    ) -> Result<EncodedManifest, FormatError> {
        const WHAT: &str = "directory";
        for (&pack, &end) in &self.pack_ends {
            if packs
                .get(pack as usize)
                .is_none_or(|pack| end > pack.length)
            {
                let (field, expected) = (
                    "end of a pack's last frame",
                    "a pack of the table that is as long",
                );
                return Err(FormatError::Unwritable {
                    what: WHAT,
                    field,
                    found: end,
                    expected,
                });
            }
        }
        if self.header.kind == Kind::Manifest && self.position != HEADER_LEN as u64 {
            let (field, expected) = ("position of the segments", "192, as this is a manifest");
            return Err(FormatError::Unwritable {
                what: WHAT,
                field,
                found: self.position,
                expected,
            });
        }
        let directory = directory::encode(&self.header, metadata, packs, &self.sections);
        let mut bytes = self.bytes;
        let offset = self.position + bytes.len() as u64;
        let footer = Footer::of(self.header.kind, self.position, offset, &directory)?;
        let digest = Directory::parse(&footer, &directory)?.digest;
        bytes.extend_from_slice(&directory);
        bytes.extend_from_slice(&footer.encode());
        Ok(EncodedManifest { bytes, digest })
    }
}
