//! What a snapshot consists of: sections, cut into segments that map them to chunks, and the directory that ties
//! them together. The same structures stand in a manifest and, behind the frames, in an export. How a tree section's
//! stream is made of files is not this module's business, nor what the metadata says.

mod builder;
mod directory;
mod segment;

use std::fmt;
use std::str::FromStr;

pub use builder::{EncodedManifest, ManifestBuilder, SectionBuilder};
pub use directory::{Directory, MAX_METADATA_LEN, MAX_PACKS, MAX_SECTIONS};
pub use segment::{Chunk, Extent, Location, MAX_SEGMENT_EXTENTS, MAX_SEGMENT_LEN, Segment};

use crate::{FormatError, SnapshotId};

/// Longest name of a section, in bytes.
pub const MAX_SECTION_NAME_LEN: usize = 255;

/// What part of a pod a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Memory of the sandbox.
    Memory = 1,
    /// Kernel state: threads, open files, sockets.
    Kernel = 2,
    /// Changes to a root file system.
    Rootfs = 3,
    /// A tmpfs volume.
    Tmpfs = 4,
    /// Device memory.
    Gpu = 5,
    /// Anything else.
    Other = 6,
}

impl Role {
    /// All roles, in the order of their numbers.
    pub const ALL: [Role; 6] = [
        Role::Memory,
        Role::Kernel,
        Role::Rootfs,
        Role::Tmpfs,
        Role::Gpu,
        Role::Other,
    ];

    fn name(self) -> &'static str {
        match self {
            Role::Memory => "memory",
            Role::Kernel => "kernel",
            Role::Rootfs => "rootfs",
            Role::Tmpfs => "tmpfs",
            Role::Gpu => "gpu",
            Role::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Role, FormatError> {
        let role = Role::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| {
            FormatError::text(
                "section",
                "role",
                text,
                "memory, kernel, rootfs, tmpfs, gpu or other",
            )
        })
    }
}

/// What a section is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// A stream of bytes.
    Blob = 1,
    /// Files and directories.
    Tree = 2,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::Blob => "blob",
            Shape::Tree => "tree",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Shape {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Shape, FormatError> {
        let shape = [Shape::Blob, Shape::Tree]
            .into_iter()
            .find(|shape| shape.name() == text);
        shape.ok_or_else(|| FormatError::text("section", "shape", text, "blob or tree"))
    }
}

/// How a section was cut into chunks: what a later save must do as well, or nothing would match. Lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChunkingParams {
    /// Where the content says so (FastCDC).
    Cdc {
        /// Shortest chunk.
        min: u32,
        /// Average chunk.
        avg: u32,
        /// Longest chunk.
        max: u32,
    },
    /// Every `size` bytes.
    Fixed {
        /// Length of every chunk but the last.
        size: u32,
    },
}

/// A run of a section that was mapped at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// Address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// Where the first byte is in the section.
    pub section_offset: u64,
}

/// Where a segment is and what it hashes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Where the bytes it maps begin in the section.
    pub section_offset: u64,
    /// How many bytes of the section it maps.
    pub section_len: u64,
    /// Offset of the segment in the object.
    pub object_offset: u64,
    /// Length of the segment in the object, in bytes, at most [`MAX_SEGMENT_LEN`].
    pub object_len: u64,
    /// BLAKE3-256 of the segment's bytes.
    pub hash: [u8; 32],
}

impl SegmentInfo {
    /// Reads the segment out of its bytes in the object, after checking their length and their hash.
    pub fn open(&self, bytes: &[u8], packs: &[PackInfo]) -> Result<Segment, FormatError> {
        if blake3::hash(bytes) != self.hash || bytes.len() as u64 != self.object_len {
            return Err(FormatError::Hash {
                what: segment::WHAT,
            });
        }
        Segment::parse(bytes, self.section_len, packs)
    }
}

/// A section of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionInfo {
    /// What part of the pod it is.
    pub role: Role,
    /// Tells sections of one role apart: at most 255 bytes, no control characters, may be empty.
    pub name: String,
    /// What it is made of.
    pub shape: Shape,
    /// Length of its stream in bytes.
    pub length: u64,
    /// How many bytes at the end of a tree's stream are the entry table; 0 for a blob.
    pub table_length: u64,
    /// How it was cut into chunks.
    pub chunking: ChunkingParams,
    /// The addresses that its bytes belong to, if any.
    pub address_ranges: Vec<AddressRange>,
    /// The segments, in the order of their section offsets; together they map the whole section.
    pub segments: Vec<SegmentInfo>,
}

impl SectionInfo {
    /// A section of which nothing but this is known yet.
    pub fn new(
        role: Role,
        name: impl Into<String>,
        shape: Shape,
        chunking: ChunkingParams,
    ) -> SectionInfo {
        SectionInfo {
            role,
            name: name.into(),
            shape,
            length: 0,
            table_length: 0,
            chunking,
            address_ranges: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// `ROLE` or `ROLE:NAME`: what people call the section.
    pub fn title(&self) -> String {
        match self.name.is_empty() {
            true => self.role.to_string(),
            false => format!("{}:{}", self.role, self.name),
        }
    }

    /// The segment that maps the byte at `section_offset`.
    pub fn segment_at(&self, section_offset: u64) -> Option<&SegmentInfo> {
        let after = self
            .segments
            .partition_point(|segment| segment.section_offset <= section_offset);
        let segment = self.segments[..after].last()?;
        (section_offset - segment.section_offset < segment.section_len).then_some(segment)
    }
}

/// A pack that a snapshot needs, its own or another snapshot's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackInfo {
    /// The snapshot that the pack belongs to.
    pub snapshot: SnapshotId,
    /// The last component of its object name (see [`PackName`](crate::header::PackName)); empty for the frames of an
    /// export, which are in the export itself.
    pub name: String,
    /// What the store calls this version of the object (a generation or an etag); empty if unknown.
    pub version: String,
    /// Length of the object in bytes; of an export, the offset of the end of its frames.
    pub length: u64,
    /// CRC-32C of the object's bytes; of an export, of its first `length` bytes.
    pub crc32c: u32,
}
