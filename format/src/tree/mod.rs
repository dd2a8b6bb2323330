//! The entry table of a tree section: what a directory tree consists of, apart from the bytes in its files.
//!
//! A tree section is one byte stream: the contents of its files one after another, then this table. The table says which
//! entries there are, with their attributes, and which ranges of the stream fill which ranges of which file. This
//! module holds the types, checks that they make sense together, and turns them into bytes and back (SPEC.md, "Tree
//! entry table"). It does not touch a file system: the engine's `tree` module does.
//!
//! Entries stand in *pre-order*: the top directory first, a directory right before what it holds, the names in one
//! directory in ascending byte order. Hence a parent is always an earlier directory, and no path can occur twice.

mod bytes;
mod encode;
mod parse;
mod walk;

use std::sync::Arc;

/// Version of the table this crate writes and reads, its first byte.
pub const TABLE_VERSION: u8 = 1;
/// Longest encoded table a reader accepts, in bytes (about ten million entries).
pub const MAX_TABLE_LEN: u64 = 256 << 20;
/// Longest name of an entry, in bytes (what Linux calls `NAME_MAX`).
pub const MAX_NAME_LEN: usize = 255;
/// Deepest entry: how many names its path may have.
pub const MAX_DEPTH: usize = 4096;
/// Longest target of a symbolic link, in bytes.
pub const MAX_SYMLINK_LEN: usize = 4095;
/// Longest name of an extended attribute, in bytes.
pub const MAX_XATTR_NAME_LEN: usize = 255;
/// Longest value of an extended attribute, in bytes.
pub const MAX_XATTR_VALUE_LEN: usize = 64 << 10;
/// Largest file, in bytes (offsets are signed in the kernel's interface).
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// One file, directory or other node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Index of the directory that holds it; 0 for the top directory itself.
    pub parent: u32,
    /// Its name in that directory, any bytes but `/` and NUL, neither `.` nor `..`; empty for the top directory only.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Its owner, mode, time and extended attributes. A hard link has none of its own: the default.
    pub attributes: Attributes,
}

/// What an entry is. An overlay's *whiteout* is nothing special here: a character device 0/0. An *opaque* directory is
/// one with the extended attribute `trusted.overlay.opaque` or `user.overlay.opaque`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Length of the file in bytes.
        size: u64,
        /// Where it has data, ascending; whatever lies between is a hole and reads as zeros.
        ranges: Vec<DataRange>,
    },
    /// A symbolic link.
    Symlink {
        /// The text of the link: any bytes but NUL, never interpreted.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A Unix domain socket's name.
    Socket,
    /// A character device; 0/0 is an overlay's whiteout.
    CharDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major device number.
        major: u32,
        /// Minor device number.
        minor: u32,
    },
    /// One more name of an earlier entry.
    HardLink {
        /// Index of that entry, which is neither a directory nor itself a hard link.
        target: u32,
    },
}

/// A run of a file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRange {
    /// Where it lies in the file, in bytes.
    pub file_offset: u64,
    /// Its length in bytes, never zero.
    pub length: u64,
    /// Where its bytes lie in the section's stream.
    pub stream_offset: u64,
}

/// What is known about an entry apart from its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The 12 permission bits, set-user-id, set-group-id and sticky included.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes, ascending by name, no name twice. Equal sets are stored once in the table and shared in memory.
    pub xattrs: Arc<[Xattr]>,
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970, possibly negative.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1 000 000 000.
    pub nanos: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Xattr {
    /// Full name with its namespace, such as `user.comment`.
    pub name: Vec<u8>,
    /// Value, possibly empty.
    pub value: Vec<u8>,
}

/// Why a table was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The table is of a version this crate does not know.
    #[error("tree table: version {found} is not known (this reader knows {TABLE_VERSION})")]
    Version {
        /// The version found.
        found: u8,
    },
    /// The table is longer than [`MAX_TABLE_LEN`].
    #[error("tree table: {length} bytes long, at most {MAX_TABLE_LEN} are accepted")]
    TooLong {
        /// Its length in bytes.
        length: u64,
    },
    /// The table ends in the middle of something, or counts more than it could hold.
    #[error("tree table: {what} at byte {offset} runs past the end of the table")]
    Truncated {
        /// Where in the table.
        offset: usize,
        /// What was being read.
        what: &'static str,
    },
    /// A number does not fit what it stands for.
    #[error("tree table: {what} at byte {offset} is too large")]
    Overflow {
        /// Where in the table.
        offset: usize,
        /// What was being read.
        what: &'static str,
    },
    /// Bytes follow the last entry.
    #[error("tree table: {count} bytes are left over at byte {offset}")]
    LeftOver {
        /// Where in the table.
        offset: usize,
        /// How many.
        count: usize,
    },
    /// There are no entries: even an empty tree has its top directory.
    #[error("tree table: no entry for the top directory")]
    Empty,
    /// More entries than an index can count.
    #[error("tree table: {count} entries are too many")]
    TooMany {
        /// How many.
        count: u64,
    },
    /// An entry makes no sense, by itself or after those before it.
    #[error("tree table: entry {index} ({name}): {problem}")]
    Entry {
        /// Index of the entry.
        index: u32,
        /// Its name, with unusual bytes escaped.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Two ranges of files claim the same byte of the stream.
    #[error(
        "tree table: entries {first} and {second} both claim byte {stream_offset} of the stream"
    )]
    Overlap {
        /// Index of one entry.
        first: u32,
        /// Index of the other.
        second: u32,
        /// The first such byte.
        stream_offset: u64,
    },
}

/// All entries of a tree, known to make sense together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeTable {
    entries: Vec<Entry>,
    data_length: u64,
}

impl TreeTable {
    /// Checks `entries`, in pre-order, against each other and against the `data_length` bytes of content in the stream.
    ///
    /// # Errors
    /// A [`TreeError`] that names the first entry that breaks a rule of the module's description.
    pub fn new(entries: Vec<Entry>, data_length: u64) -> Result<Self, TreeError> {
        let mut walk = walk::Walk::new(data_length);
        for index in 0..entries.len() {
            walk.check(&entries[..=index])?;
        }
        walk.finish(&entries)?;
        Ok(Self {
            entries,
            data_length,
        })
    }

    /// Reads a table; `data_length` is the length of the stream before it.
    ///
    /// # Errors
    /// A [`TreeError`] if the bytes are not exactly one valid table. Memory stays within a small multiple of their length.
    pub fn parse(bytes: &[u8], data_length: u64) -> Result<Self, TreeError> {
        parse::parse(bytes, data_length)
    }

    /// The table's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode::encode(&self.entries)
    }

    /// The entries in pre-order; the top directory first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Length in bytes of the contents, that is of the stream before the table.
    pub fn data_length(&self) -> u64 {
        self.data_length
    }

    /// The path of an entry below the top directory, names joined by `/`; empty for the top directory.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn path(&self, index: u32) -> Vec<u8> {
        path(&self.entries, index)
    }
}

/// The path of entry `index` of `entries`, whose parents must be earlier entries; see [`TreeTable::path`].
pub fn path(entries: &[Entry], index: u32) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = index;
    while at != 0 {
        let entry = &entries[at as usize];
        names.push(entry.name.as_slice());
        at = entry.parent;
    }
    names.reverse();
    names.join(&b'/')
}
