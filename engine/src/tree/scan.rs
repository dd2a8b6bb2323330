//! Walks a directory and describes all it holds as entries. Reads no contents: [`super::reader`] does, later, and
//! compares what it then finds with the [`Stamp`]s taken here.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use podsnap_format::tree::{
    Attributes, DataRange, Entry, EntryKind, Timestamp, TreeTable, Xattr, path,
};
use rustix::fs::{AtFlags, FileType, Mode, SeekFrom, Stat, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::dirs::{Directories, READ_FILE, open_beneath};
use super::{Error, to_path};

/// How a directory is walked.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanOptions {
    /// Whether to stay out of what is mounted below the top directory; a mount point is then saved as an empty directory.
    pub one_file_system: bool,
}

/// What tells whether a file is still the one that was scanned, apart from its size and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    changed: (i64, u64),
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

pub(super) struct Scan {
    pub(super) directories: Directories,
    pub(super) table: TreeTable,
    /// One for each entry.
    pub(super) stamps: Vec<Stamp>,
}

pub(super) fn scan(top: &Path, options: ScanOptions) -> Result<Scan, Error> {
    let directories = Directories::open_top(top).map_err(|source| Error::Io {
        action: "open the directory",
        path: top.to_path_buf(),
        source,
    })?;
    let mut scanner = Scanner {
        directories,
        options,
        entries: Vec::new(),
        stamps: Vec::new(),
        links: HashMap::new(),
        stream_end: 0,
        xattrs: XattrReader::new(),
    };
    scanner.walk()?;
    let table = TreeTable::new(scanner.entries, scanner.stream_end)?;
    Ok(Scan {
        directories: scanner.directories,
        table,
        stamps: scanner.stamps,
    })
}

/// A directory and the names in it that are still to be visited, in descending order.
struct Frame {
    index: u32,
    names: Vec<CString>,
}

struct Scanner {
    directories: Directories,
    options: ScanOptions,
    entries: Vec<Entry>,
    stamps: Vec<Stamp>,
    /// First entry of each (device, inode) that has several names.
    links: HashMap<(u64, u64), u32>,
    stream_end: u64,
    xattrs: XattrReader,
}

impl Scanner {
    fn walk(&mut self) -> Result<(), Error> {
        let top = self.directories.top().clone();
        let mut frames = vec![];
        frames.extend(self.visit(&top, 0, c"")?);
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                frames.pop();
                continue;
            };
            let parent = frame.index;
            let directory = self
                .directories
                .open(&self.entries, parent)
                .map_err(|errno| self.failed(parent, "open", errno))?;
            frames.extend(self.visit(&directory, parent, &name)?);
        }
        Ok(())
    }

    /// Adds an entry; gives back its names to visit if it is a directory.
    fn visit(
        &mut self,
        directory: &OwnedFd,
        parent: u32,
        name: &std::ffi::CStr,
    ) -> Result<Option<Frame>, Error> {
        let index = self.entries.len() as u32;
        // An entry is there first, so that whatever goes wrong can name it.
        let name = name.to_bytes();
        self.entries.push(Entry {
            parent,
            name: name.to_vec(),
            kind: EntryKind::Directory,
            attributes: Attributes::default(),
        });
        let at: &[u8] = if name.is_empty() { b"." } else { name };
        let stat = rustix::fs::statat(directory, at, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.failed(index, "stat", e))?;
        self.stamps.push(Stamp::of(&stat));
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type != FileType::Directory && stat.st_nlink > 1 {
            let first = *self
                .links
                .entry((stat.st_dev, stat.st_ino))
                .or_insert(index);
            if first != index {
                self.entries[index as usize].kind = EntryKind::HardLink { target: first };
                return Ok(None);
            }
        }
        let xattrs = self
            .xattrs
            .read(directory, at)
            .map_err(|e| self.failed(index, "read extended attributes of", e))?;
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        let mut frame = None;
        let kind = match file_type {
            FileType::Directory => {
                if index == 0
                    || !self.options.one_file_system
                    || !self.is_mount_point(directory, at, index)?
                {
                    frame = Some(Frame {
                        index,
                        names: self.names(index)?,
                    });
                }
                EntryKind::Directory
            }
            FileType::RegularFile => self.regular(directory, at, index, &stat)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, at, Vec::new());
                let target = target.map_err(|e| self.failed(index, "read the link", e))?;
                EntryKind::Symlink {
                    target: target.into_bytes(),
                }
            }
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharDevice { major, minor },
            FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
            _ => return Err(self.failed(index, "tell the type of", Errno::INVAL)),
        };
        let entry = &mut self.entries[index as usize];
        entry.kind = kind;
        entry.attributes = Attributes {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: mtime(&stat),
            xattrs,
        };
        Ok(frame)
    }

    fn names(&self, index: u32) -> Result<Vec<CString>, Error> {
        let failed = |errno| self.failed(index, "read the directory", errno);
        let directory = self
            .directories
            .open(&self.entries, index)
            .map_err(failed)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    fn is_mount_point(&self, directory: &OwnedFd, name: &[u8], index: u32) -> Result<bool, Error> {
        let statx = rustix::fs::statx(
            directory,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
            StatxFlags::BASIC_STATS,
        );
        let statx = statx.map_err(|errno| self.failed(index, "stat", errno))?;
        Ok(statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    fn regular(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        index: u32,
        stat: &Stat,
    ) -> Result<EntryKind, Error> {
        let size = stat.st_size as u64;
        // Only a file with fewer blocks than its size needs can have holes: all others need not be opened here.
        let may_have_holes = (stat.st_blocks as u64).saturating_mul(512) < size;
        let runs = if may_have_holes {
            let file = open_beneath(directory, name, READ_FILE, Mode::empty())
                .map_err(|e| self.failed(index, "open", e))?;
            data_runs(&file, size).map_err(|e| self.failed(index, "look for holes in", e))?
        } else if size > 0 {
            vec![(0, size)]
        } else {
            Vec::new()
        };
        let mut ranges = Vec::with_capacity(runs.len());
        for (file_offset, end) in runs {
            let length = end - file_offset;
            ranges.push(DataRange {
                file_offset,
                length,
                stream_offset: self.stream_end,
            });
            self.stream_end += length;
        }
        Ok(EntryKind::Regular { size, ranges })
    }

    fn failed(&self, index: u32, action: &'static str, errno: Errno) -> Error {
        let path = to_path(path(&self.entries, index));
        match errno {
            Errno::NOENT if index > 0 => Error::SourceChanged {
                path,
                what: "it vanished",
            },
            _ => Error::Io {
                action,
                path,
                source: errno.into(),
            },
        }
    }
}

pub(super) fn mtime(stat: &Stat) -> Timestamp {
    Timestamp {
        seconds: stat.st_mtime,
        nanos: stat.st_mtime_nsec as u32,
    }
}

/// Where a file has data: (start, end) of each run.
fn data_runs(file: &OwnedFd, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A file system that does not know its holes has none.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        runs.push((start, end));
        at = end;
    }
    Ok(runs)
}

/// Reads extended attributes of any kind of file. A socket or symbolic link cannot be opened, and the `*at` calls for
/// extended attributes are too young, so the way leads through `/proc/self/fd`, ending at a name that is not followed.
struct XattrReader {
    names: Vec<u8>,
    value: Vec<u8>,
    none: Arc<[Xattr]>,
    last: Arc<[Xattr]>,
}

impl XattrReader {
    /// The kernel's limits on a list of names and on a value.
    const LIMIT: usize = 64 << 10;

    fn new() -> Self {
        let none: Arc<[Xattr]> = Arc::from([]);
        Self {
            names: vec![0; Self::LIMIT],
            value: vec![0; Self::LIMIT],
            last: none.clone(),
            none,
        }
    }

    fn read(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<Arc<[Xattr]>, Errno> {
        let path = through_proc(directory, name);
        let length = match rustix::fs::llistxattr(path.as_slice(), &mut self.names[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(self.none.clone()),
            result => result?,
        };
        let mut xattrs = Vec::new();
        for name in self.names[..length]
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
        {
            match rustix::fs::lgetxattr(path.as_slice(), name, &mut self.value[..]) {
                Ok(length) => xattrs.push(Xattr {
                    name: name.to_vec(),
                    value: self.value[..length].to_vec(),
                }),
                // Removed since it was listed, or listed though it may not be read.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        xattrs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        // Neighbours as a rule carry the same set.
        if *self.last != *xattrs {
            self.last = xattrs.into();
        }
        Ok(self.last.clone())
    }
}

/// A path to `name` in an open directory for the calls that know no directory descriptors.
pub(super) fn through_proc(directory: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}
