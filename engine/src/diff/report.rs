//! What a comparison of two snapshots says, as plain data.
//!
//! Every byte of B is in exactly one of four accounts: *equal* to the byte at the same offset of A's section; *zeroed*, a zero where A has
//! something else or nothing; *moved*, found elsewhere in A; *new*, found nowhere in A. Bytes are compared by the chunks they are in:
//! what is equal is equal, but what was cut differently may be called new although it is not.

use serde::Serialize;

use crate::inspect::SharedBytes;

/// What is different between two snapshots, A and B.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    /// The first snapshot.
    pub a: Side,
    /// The second snapshot.
    pub b: Side,
    /// Whether their sections are the same in every respect.
    pub identical: bool,
    /// Bytes of B that are the same at the same place of A.
    pub equal_bytes: u64,
    /// Bytes of B that are zeros, but not so in A.
    pub zeroed_bytes: u64,
    /// Bytes of B that stand elsewhere in A.
    pub moved_bytes: u64,
    /// Bytes of B that A lacks.
    pub new_bytes: u64,
    /// The sections of B, then those that only A has.
    pub sections: Vec<SectionDiff>,
}

/// One of two snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Its id.
    pub snapshot: String,
    /// BLAKE3 of its manifest's directory.
    pub digest: String,
    /// Bytes of its sections.
    pub raw_bytes: u64,
}

/// A section that is in A, in B or in both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionDiff {
    /// `ROLE` or `ROLE:NAME`, as on the command line.
    pub section: String,
    /// What it is in A.
    pub a: Option<SectionSide>,
    /// What it is in B.
    pub b: Option<SectionSide>,
    /// Whether it is the same in every respect.
    pub identical: bool,
    /// Whether both were cut in the same way; if not, equal bytes may be called new.
    pub cut_alike: bool,
    /// Bytes of B that are the same at the same offset of A.
    pub equal_bytes: u64,
    /// Bytes of B that are zeros, but not so at the same offset of A.
    pub zeroed_bytes: u64,
    /// Bytes of B that stand elsewhere in A.
    pub moved_bytes: u64,
    /// The sections of A where these stand.
    pub moved_from: Vec<SharedBytes>,
    /// Bytes of B that A lacks.
    pub new_bytes: u64,
    /// Ranges of B, of a blob, that are not the same in A.
    pub changed_ranges: u64,
    /// The longest of them, in the order of the section.
    pub ranges: Vec<ChangedRange>,
    /// What became of files and directories, if it is a tree in both.
    pub tree: Option<TreeDiff>,
}

/// A section in one of the snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionSide {
    /// `blob` or `tree`.
    pub shape: String,
    /// Its length in bytes.
    pub raw_bytes: u64,
}

/// A range that is not the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ChangedRange {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Of these, zeros in B.
    pub zeroed_bytes: u64,
    /// Of these, elsewhere in A.
    pub moved_bytes: u64,
    /// Of these, nowhere in A.
    pub new_bytes: u64,
}

/// What became of the entries of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TreeDiff {
    /// Entries that only B has.
    pub added: Entries,
    /// Entries that only A has.
    pub removed: Entries,
    /// Entries that are different.
    pub changed: u64,
    /// Of these, the ones of which most bytes changed.
    pub changes: Vec<ChangedEntry>,
    /// Files of the same size, time and attributes that are in chunks with something that changed: probably unchanged, but
    /// only [reading](super::DiffOptions::read) tells.
    pub undecided: Entries,
    /// Entries that are the same.
    pub unchanged: u64,
}

/// Some entries of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Entries {
    /// How many.
    pub count: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// The largest.
    pub largest: Vec<EntryState>,
}

/// An entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryState {
    /// Its path below the top directory, made safe to show by [`printable`](crate::printable); empty for the top directory.
    pub path: String,
    /// `file`, `directory`, `symlink`, `fifo`, `socket`, `character device`, `block device` or `hard link`.
    pub kind: &'static str,
    /// Length of a file in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Whole seconds of the time of last modification, since 1970.
    pub mtime_seconds: i64,
    /// The rest of that time in nanoseconds.
    pub mtime_nanos: u32,
}

/// An entry that is in both trees but not the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangedEntry {
    /// Its state in A. Of a hard link, the state of the file.
    pub a: EntryState,
    /// Its state in B, likewise.
    pub b: EntryState,
    /// In what they differ.
    pub changes: Vec<Change>,
    /// Bytes of a file in B that are not the same, or not known to be, at the same offset in A.
    pub changed_bytes: u64,
}

/// In what an entry differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Change {
    /// What kind of entry it is.
    Type,
    /// Bytes or length of a file.
    Content,
    /// Perhaps bytes of a file: it has another time and is in other chunks, but these hold something else too.
    PerhapsContent,
    /// What a symbolic link points to, or which file a hard link is a name of.
    Target,
    /// The number of a device.
    Device,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Time of last modification.
    Mtime,
    /// Extended attributes.
    Xattrs,
}
