//! Turns the bytes of a table into checked entries. Every byte is hostile: counts are bounded by the bytes that are
//! left, numbers are checked before use, and the rules themselves are `walk`'s.

use std::sync::Arc;

use super::bytes::Cursor;
use super::walk::Walk;
use super::{
    Attributes, DataRange, Entry, EntryKind, MAX_FILE_SIZE, MAX_NAME_LEN, MAX_SYMLINK_LEN,
    MAX_TABLE_LEN, MAX_XATTR_NAME_LEN, MAX_XATTR_VALUE_LEN, TABLE_VERSION, Timestamp, TreeError,
    TreeTable, Xattr,
};

/// The first byte of an entry: its kind in the low four bits, then flags. Bit 7 is zero.
pub(super) mod head {
    pub(crate) const KIND: u8 = 0x0f;
    pub(crate) const DIRECTORY: u8 = 0;
    pub(crate) const REGULAR: u8 = 1;
    pub(crate) const SYMLINK: u8 = 2;
    pub(crate) const FIFO: u8 = 3;
    pub(crate) const SOCKET: u8 = 4;
    pub(crate) const CHAR_DEVICE: u8 = 5;
    pub(crate) const BLOCK_DEVICE: u8 = 6;
    pub(crate) const HARD_LINK: u8 = 7;
    /// Mode, owner and group are those of the nearest earlier entry of the same kind (0, 0, 0 before the first).
    pub(crate) const SAME_OWNER: u8 = 0x10;
    /// Extended attributes follow.
    pub(crate) const XATTRS: u8 = 0x20;
    /// A regular file without holes whose bytes begin where the previous range of the table ended.
    pub(crate) const DENSE: u8 = 0x40;
}

/// What entries are coded against; begins as zeros.
#[derive(Default)]
pub(super) struct Previous {
    /// (mode, uid, gid) of the last entry of each kind.
    pub(super) owner: [(u16, u32, u32); 8],
    /// Seconds of the last time in the table.
    pub(super) seconds: i64,
    /// Where in the stream the last data range ended.
    pub(super) stream_end: u64,
}

/// The shortest entry: head, up, shared, length of the rest, one byte of it, hard link.
const LEAST_ENTRY_LEN: usize = 6;
/// The shortest top directory: head, seconds, nanoseconds.
const LEAST_TOP_LEN: usize = 3;

pub(super) fn parse(bytes: &[u8], data_length: u64) -> Result<TreeTable, TreeError> {
    if bytes.len() as u64 > MAX_TABLE_LEN {
        return Err(TreeError::TooLong {
            length: bytes.len() as u64,
        });
    }
    let mut cursor = Cursor::new(bytes);
    let version = cursor.byte("the version")?;
    if version != TABLE_VERSION {
        return Err(TreeError::Version { found: version });
    }
    let offset = cursor.position();
    let count = cursor.varint("the number of entries")?;
    let most = 1 + cursor.remaining().saturating_sub(LEAST_TOP_LEN) / LEAST_ENTRY_LEN;
    if count > most as u64 {
        return Err(TreeError::Truncated {
            offset,
            what: "the number of entries",
        });
    }
    let mut parser = Parser {
        cursor,
        walk: Walk::new(data_length),
        previous: Previous::default(),
        xattr_sets: Vec::new(),
        none: Arc::from([]),
    };
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let entry = parser.entry(&entries)?;
        entries.push(entry);
        parser.walk.check(&entries)?;
    }
    let Parser { cursor, walk, .. } = parser;
    if cursor.remaining() > 0 {
        return Err(TreeError::LeftOver {
            offset: cursor.position(),
            count: cursor.remaining(),
        });
    }
    walk.finish(&entries)?;
    Ok(TreeTable {
        entries,
        data_length,
    })
}

struct Parser<'a> {
    cursor: Cursor<'a>,
    walk: Walk,
    previous: Previous,
    xattr_sets: Vec<Arc<[Xattr]>>,
    none: Arc<[Xattr]>,
}

impl Parser<'_> {
    fn entry(&mut self, entries: &[Entry]) -> Result<Entry, TreeError> {
        let index = entries.len() as u32;
        let head = self.cursor.byte("an entry")?;
        let tag = head & head::KIND;
        let (parent, name) = if index == 0 {
            (0, Vec::new())
        } else {
            self.name(entries)?
        };
        let wrong = |problem| TreeError::Entry {
            index,
            name: name.escape_ascii().to_string(),
            problem,
        };
        let allowed = match tag {
            head::HARD_LINK => 0,
            head::REGULAR => head::SAME_OWNER | head::XATTRS | head::DENSE,
            0..head::HARD_LINK => head::SAME_OWNER | head::XATTRS,
            _ => return Err(wrong("its kind is not known")),
        };
        if head & !head::KIND & !allowed != 0 {
            return Err(wrong("it has a flag that its kind does not know"));
        }
        if tag == head::HARD_LINK {
            let back = self.cursor.varint("a hard link")?;
            let target = u64::from(index)
                .checked_sub(back)
                .ok_or_else(|| wrong("a hard link must name an earlier entry"))?;
            let kind = EntryKind::HardLink {
                target: target as u32,
            };
            let attributes = Attributes {
                xattrs: self.none.clone(),
                ..Attributes::default()
            };
            return Ok(Entry {
                parent,
                name,
                kind,
                attributes,
            });
        }
        let attributes = self.attributes(head)?;
        let kind = match tag {
            head::DIRECTORY => EntryKind::Directory,
            head::REGULAR => {
                let size = self.cursor.bounded(MAX_FILE_SIZE, "a file's size")?;
                let ranges = if head & head::DENSE != 0 {
                    self.dense(size)
                } else {
                    self.ranges()
                };
                EntryKind::Regular {
                    size,
                    ranges: ranges?,
                }
            }
            head::SYMLINK => {
                let target = self
                    .cursor
                    .counted(MAX_SYMLINK_LEN, "a symbolic link's target")?;
                EntryKind::Symlink {
                    target: target.to_vec(),
                }
            }
            head::FIFO => EntryKind::Fifo,
            head::SOCKET => EntryKind::Socket,
            _ => {
                let major = self.cursor.u32("a device number")?;
                let minor = self.cursor.u32("a device number")?;
                if tag == head::CHAR_DEVICE {
                    EntryKind::CharDevice { major, minor }
                } else {
                    EntryKind::BlockDevice { major, minor }
                }
            }
        };
        Ok(Entry {
            parent,
            name,
            kind,
            attributes,
        })
    }

    /// The parent's index and the name, which is coded against its predecessor in the directory.
    fn name(&mut self, entries: &[Entry]) -> Result<(u32, Vec<u8>), TreeError> {
        let offset = self.cursor.position();
        let what = "the way up to an entry's directory";
        let up = self.cursor.varint(what)?;
        let parent = self
            .walk
            .directory_above(up)
            .ok_or(TreeError::Overflow { offset, what })?;
        let sibling = self
            .walk
            .sibling(up as usize)
            .map_or(&b""[..], |sibling| &entries[sibling as usize].name);
        let shared = self.cursor.bounded(
            sibling.len() as u64,
            "what a name shares with the one before",
        )? as usize;
        let rest = self.cursor.counted(MAX_NAME_LEN - shared, "a name")?;
        Ok((parent, [&sibling[..shared], rest].concat()))
    }

    fn attributes(&mut self, head: u8) -> Result<Attributes, TreeError> {
        let known = &mut self.previous.owner[usize::from(head & head::KIND)];
        if head & head::SAME_OWNER == 0 {
            let mode = self.cursor.bounded(0o7777, "a mode")? as u16;
            *known = (
                mode,
                self.cursor.u32("an owner")?,
                self.cursor.u32("a group")?,
            );
        }
        let (mode, uid, gid) = *known;
        let seconds = self
            .previous
            .seconds
            .wrapping_add(self.cursor.signed("a time")?);
        self.previous.seconds = seconds;
        let nanos = self.cursor.bounded(999_999_999, "a time's nanoseconds")? as u32;
        let xattrs = if head & head::XATTRS == 0 {
            self.none.clone()
        } else {
            self.xattrs()?
        };
        Ok(Attributes {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos },
            xattrs,
        })
    }

    fn xattrs(&mut self) -> Result<Arc<[Xattr]>, TreeError> {
        let number = self.cursor.bounded(
            self.xattr_sets.len() as u64,
            "the number of a set of extended attributes",
        )?;
        if let Some(known) = (number as usize).checked_sub(1) {
            return Ok(self.xattr_sets[known].clone());
        }
        let count = self.cursor.count(3, "the number of extended attributes")?;
        let mut xattrs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self
                .cursor
                .counted(MAX_XATTR_NAME_LEN, "an extended attribute's name")?
                .to_vec();
            let value = self
                .cursor
                .counted(MAX_XATTR_VALUE_LEN, "an extended attribute's value")?
                .to_vec();
            xattrs.push(Xattr { name, value });
        }
        let set: Arc<[Xattr]> = xattrs.into();
        self.xattr_sets.push(set.clone());
        Ok(set)
    }

    fn dense(&mut self, size: u64) -> Result<Vec<DataRange>, TreeError> {
        if size == 0 {
            return Ok(Vec::new());
        }
        let stream_offset = self.advance(self.previous.stream_end, size)?;
        Ok(vec![DataRange {
            file_offset: 0,
            length: size,
            stream_offset,
        }])
    }

    fn ranges(&mut self) -> Result<Vec<DataRange>, TreeError> {
        let count = self.cursor.count(3, "the number of data ranges")?;
        let mut ranges = Vec::with_capacity(count);
        let mut file_end = 0u64;
        for _ in 0..count {
            let gap = self.cursor.bounded(MAX_FILE_SIZE, "a hole")?;
            let length = self.cursor.bounded(MAX_FILE_SIZE, "a data range")?;
            let delta = self.cursor.signed("a stream offset")?;
            let stream_offset =
                self.advance(self.previous.stream_end.wrapping_add_signed(delta), length)?;
            let overflow = TreeError::Overflow {
                offset: self.cursor.position(),
                what: "a data range before",
            };
            let file_offset = file_end.checked_add(gap).ok_or(overflow.clone())?;
            file_end = file_offset.checked_add(length).ok_or(overflow)?;
            ranges.push(DataRange {
                file_offset,
                length,
                stream_offset,
            });
        }
        Ok(ranges)
    }

    /// Notes that a range of `length` bytes begins at `stream_offset`, which it gives back.
    fn advance(&mut self, stream_offset: u64, length: u64) -> Result<u64, TreeError> {
        let overflow = TreeError::Overflow {
            offset: self.cursor.position(),
            what: "a stream offset before",
        };
        self.previous.stream_end = stream_offset.checked_add(length).ok_or(overflow)?;
        Ok(stream_offset)
    }
}
