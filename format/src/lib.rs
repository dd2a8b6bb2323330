//! Podsnap's container format: the bytes of packs, manifests and exported snapshots.
//!
//! This crate turns structures into bytes and bytes back into structures, and nothing else: it does no I/O, spawns
//! nothing, and holds no policy about what is saved where. `SPEC.md` at the root of the repository describes every
//! byte; its sections follow the modules here, in the same order:
//!
//! - [`id`]: chunk ids, keys, digests, snapshot ids;
//! - [`header`] and [`footer`]: the fixed ends of every object;
//! - [`frame`]: one stored chunk; [`scan`]: finding frames without an index;
//! - [`codec`]: how the payload of a frame is encoded;
//! - [`pack`]: the index of a pack;
//! - [`manifest`]: segments (extent maps) and the directory that ties them together;
//! - [`working_set`]: what a restore touched, in order.
//!
//! Everything parsed is taken as hostile: no length is believed before it is compared with the bytes at hand, and
//! every refusal is a [`FormatError`] that says what was refused, where and why.
#![forbid(unsafe_code)]

pub mod codec;
mod error;
pub mod footer;
pub mod frame;
pub mod header;
pub mod id;
pub mod manifest;
pub mod pack;
pub mod scan;
pub mod tree;
mod varint;
pub mod working_set;

pub use error::FormatError;
pub use footer::{FOOTER_LEN, Footer};
pub use frame::{FRAME_HEADER_LEN, FrameHeader, MAX_CHUNK_LEN};
pub use header::{HEADER_LEN, Header, Kind, VERSION};
pub use id::{ChunkId, Digest, Key, SnapshotId};
pub use manifest::{
    Directory, MAX_SEGMENT_EXTENTS, ManifestBuilder, Role, SectionInfo, Segment, SegmentInfo, Shape,
};
pub use pack::{PackIndex, PackIndexBuilder, PackIndexEntry};
pub use scan::FrameScanner;
pub use working_set::WorkingSet;
