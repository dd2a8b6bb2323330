//! Makes a directory from a tree section. First everything is created, empty; then contents are written in any order and
//! from any thread; at last [`super::attributes`] gives everything its owners, modes and times.
//!
//! Nothing ever leads out of the target: a table cannot hold `..` or `/` in a name, each name is opened relative to
//! its parent's descriptor, and symbolic links are never followed, be they ours or somebody else's.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use podsnap_format::tree::{Entry, EntryKind, TreeTable};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::dirs::{Directories, FdCache, open_beneath};
use super::{Error, RestoreWarning, to_path};

/// Warnings kept one by one; further ones are only counted.
const MAX_WARNINGS: usize = 1000;

/// How a tree is restored.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtractOptions {
    /// Whether something the process may not do (make a device, give a file away, set a trusted attribute) is an error and
    /// not a [`RestoreWarning`].
    pub strict: bool,
    /// Whether the target may have something in it. Existing directories are then merged with the tree's, other existing
    /// entries of the same name replaced, and what the tree does not have is left alone.
    pub into_existing: bool,
}

/// A run of the stream and the file it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// Where the run begins in the stream, in bytes.
    pub stream_offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Index of the entry that it belongs to.
    pub entry: u32,
    /// Where it begins in that file, in bytes.
    pub file_offset: u64,
}

/// What a restore did.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct ExtractStats {
    /// Entries of the tree, the top directory included.
    pub entries: u64,
    /// What the restored tree lacks (at most 1000 kept).
    pub warnings: Vec<RestoreWarning>,
    /// Warnings beyond those.
    pub further_warnings: u64,
}

/// A tree on its way into a directory.
pub struct TreeExtractor {
    pub(super) table: TreeTable,
    pub(super) directories: Directories,
    pub(super) report: Report,
    /// Whether each entry is there; one may be missing after a warning.
    pub(super) created: Vec<bool>,
    ranges: Vec<FileRange>,
    files: FdCache,
}

impl TreeExtractor {
    /// Creates every entry of `table` in `target`, which is created if need be: directories, files of their full size
    /// without data, links and nodes, all accessible to the process only. Contents and attributes follow.
    ///
    /// # Errors
    /// [`Error::NotEmpty`] if something is in the target already; otherwise [`Error::Io`] naming what could not be created.
    pub fn new(target: &Path, table: TreeTable, options: ExtractOptions) -> Result<Self, Error> {
        let at_target = |action| {
            move |source| Error::Io {
                action,
                path: target.to_path_buf(),
                source,
            }
        };
        std::fs::create_dir_all(target).map_err(at_target("create the directory"))?;
        let directories = Directories::open_top(target).map_err(at_target("open the directory"))?;
        if !options.into_existing
            && !is_empty(directories.top())
                .map_err(|e| at_target("read the directory")(e.into()))?
        {
            return Err(Error::NotEmpty {
                path: target.to_path_buf(),
            });
        }
        let ranges = ranges_of(&table);
        let created = vec![true; table.entries().len()];
        let report = Report {
            strict: options.strict,
            stats: ExtractStats::default(),
        };
        let mut extractor = Self {
            table,
            directories,
            report,
            created,
            ranges,
            files: FdCache::new(),
        };
        for index in 1..extractor.table.entries().len() as u32 {
            extractor.create(index, options.into_existing)?;
        }
        Ok(extractor)
    }

    /// What is being restored.
    pub fn table(&self) -> &TreeTable {
        &self.table
    }

    /// Which file each run of the stream belongs to, ascending by stream offset. Together with [`Self::write_at`] the
    /// contents may be written in any order.
    pub fn ranges(&self) -> &[FileRange] {
        &self.ranges
    }

    /// Writes `bytes` of the stream, beginning at `stream_offset`, to the files they belong to. Bytes that belong to none
    /// (the table itself) are ignored, so that whole chunks can be given. Several threads may call it at once.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that could not be written.
    pub fn write_at(&self, stream_offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = stream_offset.saturating_add(bytes.len() as u64);
        let first = self
            .ranges
            .partition_point(|range| range.stream_offset + range.length <= stream_offset);
        for range in self.ranges[first..]
            .iter()
            .take_while(|range| range.stream_offset < end)
        {
            let from = range.stream_offset.max(stream_offset);
            let to = (range.stream_offset + range.length).min(end);
            let piece = &bytes[(from - stream_offset) as usize..(to - stream_offset) as usize];
            let file_offset = range.file_offset + (from - range.stream_offset);
            self.write_file(range.entry, file_offset, piece)
                .map_err(|source| Error::Io {
                    action: "write to",
                    path: to_path(self.table.path(range.entry)),
                    source,
                })?;
        }
        Ok(())
    }

    fn write_file(&self, entry: u32, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let file = match self.files.get(entry) {
            Some(file) => file,
            None => {
                let directory = self.directories.open_parent(self.table.entries(), entry)?;
                let name = &self.table.entries()[entry as usize].name;
                self.files.put(
                    entry,
                    open_beneath(&directory, name, OFlags::WRONLY, Mode::empty())?,
                )
            }
        };
        while !bytes.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, bytes, offset))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Gives everything its owner, extended attributes, mode and time, directories last and deepest first, and ends the
    /// restore. Contents must be written before: writing changes times and takes set-user-id away.
    ///
    /// # Errors
    /// [`Error::Io`] naming what could not be set; if strict, for want of privilege too.
    pub fn finish(mut self) -> Result<ExtractStats, Error> {
        super::attributes::apply(&mut self)?;
        self.report.stats.entries = self.table.entries().len() as u64;
        Ok(self.report.stats)
    }

    fn create(&mut self, index: u32, replace: bool) -> Result<(), Error> {
        let entries = self.table.entries();
        let entry = &entries[index as usize];
        let path = || to_path(self.table.path(index));
        let directory = self.directories.open_parent(entries, index);
        let directory = directory.map_err(|e| Error::Io {
            action: "open the parent of",
            path: path(),
            source: e.into(),
        })?;
        if let EntryKind::HardLink { target } = entry.kind
            && !self.created[target as usize]
        {
            let path = path();
            self.created[index as usize] = false;
            return self.report.missing(
                "create (what it links to is not there)",
                path,
                Errno::NOENT.into(),
            );
        }
        let mut result = self.make(&directory, entry);
        if replace && result == Err(Errno::EXIST) {
            let is_directory = entry.kind == EntryKind::Directory;
            result = if is_directory {
                // Whether it is one shows when something is put in it; a lone symbolic link must not pass as one.
                open_beneath(
                    &directory,
                    &entry.name,
                    OFlags::RDONLY | OFlags::DIRECTORY,
                    Mode::empty(),
                )
                .map(drop)
            } else {
                rustix::fs::unlinkat(&directory, &entry.name, AtFlags::empty())
                    .and_then(|()| self.make(&directory, entry))
            };
        }
        match (result, &entry.kind) {
            (Ok(()), _) => Ok(()),
            // What the process may not make, or the file system does not know.
            (
                Err(errno @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP)),
                EntryKind::CharDevice { .. }
                | EntryKind::BlockDevice { .. }
                | EntryKind::Fifo
                | EntryKind::Socket,
            ) => {
                let path = path();
                self.created[index as usize] = false;
                self.report.missing("create", path, errno.into())
            }
            (Err(errno), _) => Err(Error::Io {
                action: "create",
                path: path(),
                source: errno.into(),
            }),
        }
    }

    fn make(&self, directory: &OwnedFd, entry: &Entry) -> Result<(), Errno> {
        let name = &entry.name;
        let private = Mode::RUSR | Mode::WUSR;
        let node =
            |file_type, device| rustix::fs::mknodat(directory, name, file_type, private, device);
        match &entry.kind {
            EntryKind::Directory => rustix::fs::mkdirat(directory, name, private | Mode::XUSR),
            EntryKind::Regular { size, .. } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let file = open_beneath(directory, name, flags, private)?;
                if *size > 0 {
                    rustix::fs::ftruncate(&file, *size)
                } else {
                    Ok(())
                }
            }
            EntryKind::Symlink { target } => rustix::fs::symlinkat(target, directory, name),
            EntryKind::Fifo => node(FileType::Fifo, 0),
            EntryKind::Socket => node(FileType::Socket, 0),
            EntryKind::CharDevice { major, minor } => node(
                FileType::CharacterDevice,
                rustix::fs::makedev(*major, *minor),
            ),
            EntryKind::BlockDevice { major, minor } => {
                node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor))
            }
            EntryKind::HardLink { target } => {
                let entries = self.table.entries();
                let first = self.directories.open_parent(entries, *target)?;
                let first_name = &entries[*target as usize].name;
                rustix::fs::linkat(&first, first_name, directory, name, AtFlags::empty())
            }
        }
    }
}

/// Collects what could not be restored.
pub(super) struct Report {
    strict: bool,
    stats: ExtractStats,
}

impl Report {
    /// Notes a warning, or gives it back as an error if that is asked for.
    pub(super) fn missing(
        &mut self,
        what: &'static str,
        path: PathBuf,
        error: io::Error,
    ) -> Result<(), Error> {
        if self.strict {
            return Err(Error::Io {
                action: what,
                path,
                source: error,
            });
        }
        if self.stats.warnings.len() < MAX_WARNINGS {
            self.stats
                .warnings
                .push(RestoreWarning { path, what, error });
        } else {
            self.stats.further_warnings += 1;
        }
        Ok(())
    }
}

fn ranges_of(table: &TreeTable) -> Vec<FileRange> {
    let mut all = Vec::new();
    for (entry, described) in table.entries().iter().enumerate() {
        if let EntryKind::Regular { ranges, .. } = &described.kind {
            all.extend(ranges.iter().map(|range| FileRange {
                stream_offset: range.stream_offset,
                length: range.length,
                entry: entry as u32,
                file_offset: range.file_offset,
            }));
        }
    }
    all.sort_unstable_by_key(|range| range.stream_offset);
    all
}

fn is_empty(directory: &OwnedFd) -> Result<bool, Errno> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
