//! The rules that entries must obey, checked one entry after another in table order. Knows nothing of the encoding.

use super::{
    Entry, EntryKind, MAX_DEPTH, MAX_FILE_SIZE, MAX_NAME_LEN, MAX_SYMLINK_LEN, MAX_XATTR_NAME_LEN,
    MAX_XATTR_VALUE_LEN, TreeError,
};

/// A directory that is still open: later entries may lie in it.
#[derive(Clone, Copy)]
struct Level {
    directory: u32,
    last_child: Option<u32>,
}

/// Follows a pre-order and remembers what the next entry must fit to.
pub(super) struct Walk {
    levels: Vec<Level>,
    /// (stream offset, end, entry) of every data range.
    claimed: Vec<(u64, u64, u32)>,
    data_length: u64,
}

impl Walk {
    pub(super) fn new(data_length: u64) -> Self {
        Self {
            levels: Vec::new(),
            claimed: Vec::new(),
            data_length,
        }
    }

    /// The directory reached by leaving `up` of the open ones, if there are so many.
    pub(super) fn directory_above(&self, up: u64) -> Option<u32> {
        let depth = (self.levels.len() as u64).checked_sub(1)?.checked_sub(up)?;
        Some(self.levels[depth as usize].directory)
    }

    /// How many open directories must be left to reach `directory`, if it is open.
    pub(super) fn up_to(&self, directory: u32) -> Option<usize> {
        self.levels
            .iter()
            .rev()
            .position(|level| level.directory == directory)
    }

    /// The entry that comes right before a new one in the directory `up` levels above, if it holds one already.
    pub(super) fn sibling(&self, up: usize) -> Option<u32> {
        self.levels[self.levels.len() - 1 - up].last_child
    }

    /// Moves on past an entry that is known to fit.
    pub(super) fn enter(&mut self, index: u32, entry: &Entry, up: usize) {
        if index > 0 {
            self.levels.truncate(self.levels.len() - up);
            if let Some(level) = self.levels.last_mut() {
                level.last_child = Some(index);
            }
        }
        if matches!(entry.kind, EntryKind::Directory) {
            self.levels.push(Level {
                directory: index,
                last_child: None,
            });
        }
    }

    /// Checks the last of `entries` against all before it, and moves on past it.
    pub(super) fn check(&mut self, entries: &[Entry]) -> Result<(), TreeError> {
        let index = u32::try_from(entries.len() - 1).map_err(|_| TreeError::TooMany {
            count: entries.len() as u64,
        })?;
        let entry = &entries[index as usize];
        let wrong = |problem| TreeError::Entry {
            index,
            name: entry.name.escape_ascii().to_string(),
            problem,
        };
        let mut up = 0;
        if index == 0 {
            if !entry.name.is_empty() || entry.parent != 0 || entry.kind != EntryKind::Directory {
                return Err(wrong(
                    "the first entry must be the top directory, without a name",
                ));
            }
        } else {
            check_name(&entry.name).map_err(wrong)?;
            up = self.up_to(entry.parent).ok_or_else(|| {
                wrong("its parent is not a directory that contains it in pre-order")
            })?;
            if self.levels.len() - up > MAX_DEPTH {
                return Err(wrong("it lies too deep"));
            }
            if self
                .sibling(up)
                .is_some_and(|sibling| entries[sibling as usize].name >= entry.name)
            {
                return Err(wrong("names in a directory must ascend, none twice"));
            }
        }
        self.check_kind(entries, index, entry).map_err(wrong)?;
        check_attributes(entry).map_err(wrong)?;
        self.enter(index, entry, up);
        Ok(())
    }

    fn check_kind(
        &mut self,
        entries: &[Entry],
        index: u32,
        entry: &Entry,
    ) -> Result<(), &'static str> {
        match &entry.kind {
            EntryKind::Regular { size, ranges } => {
                if *size > MAX_FILE_SIZE {
                    return Err("the file is larger than a file can be");
                }
                let mut at = 0;
                for range in ranges {
                    let end = range
                        .file_offset
                        .checked_add(range.length)
                        .ok_or("a data range overflows")?;
                    let stream_end = range
                        .stream_offset
                        .checked_add(range.length)
                        .ok_or("a data range overflows")?;
                    if range.length == 0 {
                        return Err("a data range is empty");
                    }
                    if range.file_offset < at {
                        return Err("data ranges must ascend without overlap");
                    }
                    if end > *size {
                        return Err("a data range lies outside the file");
                    }
                    if stream_end > self.data_length {
                        return Err("a data range lies outside the stream");
                    }
                    at = end;
                    self.claimed.push((range.stream_offset, stream_end, index));
                }
            }
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.len() > MAX_SYMLINK_LEN || target.contains(&0) {
                    return Err(
                        "a symbolic link must have a target of 1 to 4095 bytes without NUL",
                    );
                }
            }
            EntryKind::HardLink { target } => {
                let shared = (*target < index).then(|| &entries[*target as usize].kind);
                if matches!(
                    shared,
                    None | Some(EntryKind::Directory | EntryKind::HardLink { .. })
                ) {
                    return Err(
                        "a hard link must name an earlier entry that is neither directory nor hard link",
                    );
                }
            }
            EntryKind::Directory
            | EntryKind::Fifo
            | EntryKind::Socket
            | EntryKind::CharDevice { .. }
            | EntryKind::BlockDevice { .. } => {}
        }
        Ok(())
    }

    /// Checks what only the whole shows.
    pub(super) fn finish(mut self, entries: &[Entry]) -> Result<(), TreeError> {
        if entries.is_empty() {
            return Err(TreeError::Empty);
        }
        // As a rule the contents stand in table order and this finds them sorted.
        self.claimed.sort_unstable();
        match self.claimed.windows(2).find(|pair| pair[1].0 < pair[0].1) {
            Some(pair) => Err(TreeError::Overlap {
                first: pair[0].2,
                second: pair[1].2,
                stream_offset: pair[1].0,
            }),
            None => Ok(()),
        }
    }
}

fn check_name(name: &[u8]) -> Result<(), &'static str> {
    match name {
        b"" => Err("its name is empty"),
        b"." | b".." => Err("'.' and '..' are no names"),
        _ if name.len() > MAX_NAME_LEN => Err("its name is longer than 255 bytes"),
        _ if name.iter().any(|&byte| byte == b'/' || byte == 0) => {
            Err("its name contains '/' or NUL")
        }
        _ => Ok(()),
    }
}

fn check_attributes(entry: &Entry) -> Result<(), &'static str> {
    let attributes = &entry.attributes;
    if matches!(entry.kind, EntryKind::HardLink { .. }) {
        return if *attributes == Default::default() {
            Ok(())
        } else {
            Err("a hard link has no attributes of its own")
        };
    }
    if attributes.mode > 0o7777 {
        return Err("its mode has more than 12 bits");
    }
    if attributes.mtime.nanos >= 1_000_000_000 {
        return Err("its time has a second or more of nanoseconds");
    }
    let mut previous: &[u8] = b"";
    for xattr in attributes.xattrs.iter() {
        if xattr.name.is_empty() || xattr.name.len() > MAX_XATTR_NAME_LEN || xattr.name.contains(&0)
        {
            return Err("an extended attribute's name must have 1 to 255 bytes without NUL");
        }
        if xattr.name.as_slice() <= previous {
            return Err("extended attributes must ascend by name, none twice");
        }
        if xattr.value.len() > MAX_XATTR_VALUE_LEN {
            return Err("an extended attribute's value is longer than 64 KiB");
        }
        previous = &xattr.name;
    }
    Ok(())
}
