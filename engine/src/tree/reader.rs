//! Gives a directory as the stream of a tree section. The directory is scanned when the reader is opened; the files are
//! opened one at a time when the stream reaches them.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use podsnap_format::tree::{DataRange, EntryKind, TreeTable};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::dirs::{READ_FILE, open_beneath};
use super::scan::{Scan, ScanOptions, Stamp, mtime, scan};
use super::{Error, to_path};

/// The contents of a directory's files, one after another in table order, then the entry table.
///
/// A file that vanished, was replaced, or has another size or time than when the reader was opened, or changes while it is
/// read, is an error ([`Error::SourceChanged`]) that ends the stream. Files that appear meanwhile are not noticed.
pub struct TreeReader {
    scan: Scan,
    table: Vec<u8>,
    /// Next byte of the stream.
    position: u64,
    /// Entry and range that hold it, while it lies in the contents.
    entry: usize,
    range: usize,
    file: Option<OwnedFd>,
    failed: bool,
}

impl TreeReader {
    /// Scans `directory`.
    ///
    /// # Errors
    /// [`Error`] names the path that could not be read or changed during the scan.
    pub fn open(directory: &Path, options: ScanOptions) -> Result<Self, Error> {
        let scan = scan(directory, options)?;
        let table = scan.table.encode();
        Ok(Self {
            scan,
            table,
            position: 0,
            entry: 0,
            range: 0,
            file: None,
            failed: false,
        })
    }

    /// What is in the directory.
    pub fn table(&self) -> &TreeTable {
        &self.scan.table
    }

    /// Length of the whole stream in bytes, contents and table; known from the beginning.
    pub fn stream_length(&self) -> u64 {
        self.scan.table.data_length() + self.table_length()
    }

    /// Length in bytes of the table at the stream's end; known from the beginning.
    pub fn table_length(&self) -> u64 {
        self.table.len() as u64
    }

    fn fill(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let data_length = self.scan.table.data_length();
        let mut filled = 0;
        while filled < buf.len() && self.position < data_length {
            let read = self.content(&mut buf[filled..])?;
            filled += read;
            self.position += read as u64;
        }
        if filled < buf.len() && self.position >= data_length {
            let left = &self.table[(self.position - data_length) as usize..];
            let count = left.len().min(buf.len() - filled);
            buf[filled..][..count].copy_from_slice(&left[..count]);
            filled += count;
            self.position += count as u64;
        }
        Ok(filled)
    }

    /// Reads from the range at hand, or steps to the next one and reads nothing.
    fn content(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let range = match &self.scan.table.entries()[self.entry].kind {
            EntryKind::Regular { ranges, .. } => ranges.get(self.range).copied(),
            _ => None,
        };
        let Some(DataRange {
            file_offset,
            length,
            stream_offset,
        }) = range
        else {
            if let Some(file) = self.file.take() {
                self.check_unchanged(&file)?;
            }
            self.entry += 1;
            self.range = 0;
            return Ok(0);
        };
        let file = match self.file.take() {
            Some(file) => file,
            None => self.open_file()?,
        };
        let done = self.position - stream_offset;
        let count = (length - done).min(buf.len() as u64);
        let read = rustix::io::retry_on_intr(|| {
            rustix::io::pread(&file, &mut buf[..count as usize], file_offset + done)
        });
        let read = read.map_err(|errno| self.io_error("read", errno))?;
        if read == 0 {
            return Err(self.changed("it became shorter"));
        }
        self.file = Some(file);
        if done + read as u64 == length {
            self.range += 1;
            if self.position + read as u64 == self.scan.table.data_length() {
                // Nothing follows that would step past the last file.
                self.check_unchanged(self.file.as_ref().expect("just set"))?;
                self.file = None;
            }
        }
        Ok(read)
    }

    fn open_file(&self) -> Result<OwnedFd, Error> {
        let entries = self.scan.table.entries();
        let open = || {
            let directory = self
                .scan
                .directories
                .open_parent(entries, self.entry as u32)?;
            open_beneath(
                &directory,
                &entries[self.entry].name,
                READ_FILE,
                Mode::empty(),
            )
        };
        let file = open().map_err(|errno| match errno {
            Errno::NOENT => self.changed("it vanished"),
            Errno::LOOP | Errno::NOTDIR | Errno::NXIO => self.changed("it was replaced"),
            _ => self.io_error("open", errno),
        })?;
        self.check_unchanged(&file)?;
        Ok(file)
    }

    fn check_unchanged(&self, file: &OwnedFd) -> Result<(), Error> {
        let stat = rustix::fs::fstat(file).map_err(|errno| self.io_error("stat", errno))?;
        let entry = &self.scan.table.entries()[self.entry];
        let EntryKind::Regular { size, .. } = entry.kind else {
            return Ok(());
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            Err(self.changed("it was replaced"))
        } else if stat.st_size as u64 != size {
            Err(self.changed("it has another size"))
        } else if mtime(&stat) != entry.attributes.mtime
            || Stamp::of(&stat) != self.scan.stamps[self.entry]
        {
            Err(self.changed("it was written, replaced or given other attributes"))
        } else {
            Ok(())
        }
    }

    fn changed(&self, what: &'static str) -> Error {
        Error::SourceChanged {
            path: to_path(self.scan.table.path(self.entry as u32)),
            what,
        }
    }

    fn io_error(&self, action: &'static str, errno: Errno) -> Error {
        Error::Io {
            action,
            path: to_path(self.scan.table.path(self.entry as u32)),
            source: errno.into(),
        }
    }
}

impl Read for TreeReader {
    /// Fills `buf` across as many files as it takes; less only at the end of the stream.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            return Err(Error::Failed.into());
        }
        let result = self.fill(buf);
        self.failed = result.is_err();
        Ok(result?)
    }
}
