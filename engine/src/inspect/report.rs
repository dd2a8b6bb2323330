//! What an inspection says, as plain data.
//!
//! Every byte of every section is in exactly one of four accounts: *zero*; *new*, stored by this snapshot, at its first place in
//! the snapshot; *borrowed*, stored by another snapshot, at its first place in this one; *deduplicated*, the same as bytes at an earlier
//! place of this snapshot. What is stored, a frame with its header, is charged to the first place of its bytes, so that charges
//! add up to the frames of the packs.

use podsnap_format::manifest::ChunkingParams;
use serde::Serialize;

use crate::metadata::Metadata;

/// What an inspection found out about a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InspectReport {
    /// The snapshot.
    pub snapshot: String,
    /// BLAKE3 of the manifest's directory.
    pub digest: String,
    /// Whether it is an export, which holds all its chunks itself.
    pub exported: bool,
    /// Whether its chunk ids are keyed.
    pub keyed: bool,
    /// What the manifest says of who made it, when, of what.
    pub metadata: Metadata,
    /// Bytes of all sections.
    pub raw_bytes: u64,
    /// Of these, in zero runs.
    pub zero_bytes: u64,
    /// Of these, first placed here and stored by this snapshot.
    pub new_bytes: u64,
    /// Of these, first placed here and stored by other snapshots.
    pub borrowed_bytes: u64,
    /// Of these, the same as earlier bytes of the snapshot.
    pub deduplicated_bytes: u64,
    /// Bytes of the frames, with their headers, that this snapshot stores and that some section uses.
    pub new_stored_bytes: u64,
    /// Of the frames it stores, bytes charged to nobody: parts of chunks that no section uses.
    pub unused_stored_bytes: u64,
    /// What it takes from each other snapshot.
    pub borrowed: Vec<Borrowed>,
    /// Length of the manifest; of an export, without its frames.
    pub manifest_bytes: u64,
    /// Length of the object that says what a restore touched, if there is one.
    pub working_set_bytes: Option<u64>,
    /// What it says, if it is whole and of this snapshot.
    pub working_set: Option<LearnedReport>,
    /// Different chunks that the sections refer to.
    pub chunks: u64,
    /// Of these, stored by this snapshot.
    pub new_chunks: u64,
    /// Average length of a chunk in bytes.
    pub average_chunk_bytes: u64,
    /// These chunks by codec.
    pub codecs: Vec<CodecUse>,
    /// Its own packs and those it borrows from.
    pub packs: Vec<PackUse>,
    /// Its sections.
    pub sections: Vec<SectionReport>,
    /// Files of tree sections that are charged most, the dearest first.
    pub files: Vec<FileCost>,
    /// Files of tree sections that share most with something else in the snapshot, be they charged or not.
    pub shared_files: Vec<FileCost>,
    /// Ranges of blob sections that are charged most, the dearest first.
    pub ranges: Vec<RangeCost>,
    /// The longest ranges that equal something earlier in the snapshot.
    pub duplicates: Vec<Duplicate>,
    /// What could not be looked into, and why.
    pub problems: Vec<String>,
}

/// What is taken from another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Borrowed {
    /// The snapshot that stores it.
    pub snapshot: String,
    /// Bytes of sections, each counted at its first place.
    pub raw_bytes: u64,
    /// Bytes of the frames that hold them, as far as they are used.
    pub stored_bytes: u64,
}

/// Chunks of one codec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CodecUse {
    /// `raw`, `zstd`, `planes2`, `planes4` or `planes8`.
    pub codec: &'static str,
    /// How many.
    pub chunks: u64,
    /// Their bytes.
    pub raw_bytes: u64,
    /// Bytes of their frames, with their headers.
    pub stored_bytes: u64,
}

/// A pack that the snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PackUse {
    /// Name of the object below the store's path.
    pub object: String,
    /// The snapshot that it belongs to.
    pub snapshot: String,
    /// Whether that is another one.
    pub borrowed: bool,
    /// Length in bytes.
    pub bytes: u64,
    /// Chunks that the snapshot uses.
    pub used_chunks: u64,
    /// Bytes of their frames.
    pub used_bytes: u64,
}

/// A section and where its bytes are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SectionReport {
    /// `ROLE` or `ROLE:NAME`, as on the command line.
    pub section: String,
    /// What part of the pod it is.
    pub role: String,
    /// What tells it apart from others of its role.
    pub name: String,
    /// `blob` or `tree`.
    pub shape: String,
    /// Its length in bytes.
    pub raw_bytes: u64,
    /// Of these, in zero runs.
    pub zero_bytes: u64,
    /// Of these, first placed here and stored by this snapshot.
    pub new_bytes: u64,
    /// Of these, first placed here and stored by other snapshots.
    pub borrowed_bytes: u64,
    /// Of these, the same as earlier bytes of the snapshot.
    pub deduplicated_bytes: u64,
    /// Bytes of frames of this snapshot that are charged to the section.
    pub new_stored_bytes: u64,
    /// What it takes from each other snapshot.
    pub borrowed: Vec<Borrowed>,
    /// The sections where its deduplicated bytes stand first, itself perhaps among them.
    pub deduplicated: Vec<SharedBytes>,
    /// Different chunks that it refers to; some may be other sections' too.
    pub chunks: u64,
    /// Of these, stored by this snapshot.
    pub new_chunks: u64,
    /// Average length of a chunk in bytes.
    pub average_chunk_bytes: u64,
    /// These chunks by codec.
    pub codecs: Vec<CodecUse>,
    /// How it was cut.
    pub chunking: Chunking,
    /// Runs that its extent map is made of.
    pub extents: u64,
    /// Bytes of its extent map.
    pub map_bytes: u64,
    /// Address ranges that its bytes belong to.
    pub address_ranges: u64,
    /// Files, if it is a tree whose entry table could be read.
    pub files: Option<u64>,
    /// Files, directories and all other entries, likewise.
    pub entries: Option<u64>,
}

/// What a restore touched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearnedReport {
    /// Ranges that were touched one after the other.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were not told apart.
    pub page_bytes: u64,
    /// Milliseconds from the first touch to the last first touch of a range.
    pub span_ms: f64,
    /// The sections that were touched.
    pub sections: Vec<LearnedSection>,
    /// The ranges in the order in which they were touched first; no more than were asked for.
    pub first_touches: Vec<LearnedTouch>,
}

/// What a restore touched of a section.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearnedSection {
    /// The section.
    pub section: String,
    /// Its length in bytes.
    pub raw_bytes: u64,
    /// Ranges of it that were touched.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Milliseconds from the start of the recording until its first range was touched.
    pub first_ms: f64,
    /// The same of its last one.
    pub last_ms: f64,
}

/// A range that a restore touched.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearnedTouch {
    /// The section.
    pub section: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Milliseconds from the start of the recording.
    pub at_ms: f64,
}

/// Bytes shared with something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SharedBytes {
    /// The section.
    pub section: String,
    /// The file, if it is a tree's; escaped like [`FileCost::path`].
    pub path: Option<String>,
    /// How many.
    pub bytes: u64,
}

/// How a section was cut into chunks, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Chunking {
    /// Where the content says so.
    Cdc {
        /// Shortest chunk.
        min: u32,
        /// Average chunk.
        average: u32,
        /// Longest chunk.
        max: u32,
    },
    /// Every so many bytes.
    Fixed {
        /// Length of a chunk.
        size: u32,
    },
}

impl From<ChunkingParams> for Chunking {
    fn from(params: ChunkingParams) -> Self {
        match params {
            ChunkingParams::Cdc { min, avg, max } => Self::Cdc {
                min,
                average: avg,
                max,
            },
            ChunkingParams::Fixed { size } => Self::Fixed { size },
        }
    }
}

/// What a file costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileCost {
    /// The section it is in.
    pub section: String,
    /// Its path below the section's top directory, made safe to show by [`printable`](crate::printable).
    pub path: String,
    /// How many names it has, this one included.
    pub names: u64,
    /// Its length in bytes, holes included.
    pub size: u64,
    /// Bytes of it that are not holes.
    pub data_bytes: u64,
    /// Bytes of frames of this snapshot that are charged to it.
    pub new_stored_bytes: u64,
    /// Bytes of frames of other snapshots that are charged to it.
    pub borrowed_stored_bytes: u64,
    /// Of the former, bytes that nothing else in the snapshot uses: what the save would have been spared without the file.
    pub spared_bytes: u64,
    /// Bytes of the file that stand elsewhere in the snapshot too.
    pub shared_bytes: u64,
    /// Where, the greatest part first, at most three.
    pub shared_with: Vec<SharedBytes>,
}

/// What a range of a blob costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RangeCost {
    /// The section.
    pub section: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The address that the first byte belongs to, if the section has addresses.
    pub address: Option<u64>,
    /// Bytes of frames of this snapshot that are charged to it.
    pub new_stored_bytes: u64,
    /// Bytes of frames of other snapshots that are charged to it.
    pub borrowed_stored_bytes: u64,
}

/// A range that equals an earlier one. A few bytes in the middle may differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// Where it is.
    pub at: Place,
    /// Where the same bytes stood before.
    pub of: Place,
    /// Length of the range.
    pub len: u64,
    /// Bytes of it that are the same.
    pub bytes: u64,
}

/// A byte of a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The section.
    pub section: String,
    /// The file, if it is a tree's; escaped like [`FileCost::path`].
    pub path: Option<String>,
    /// Offset in the file, or else in the section.
    pub offset: u64,
}
