//! Reading a path from its beginning to its end, whatever is there: a file, a pipe, a device.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use crate::error::{Error, Result};

/// Reads a path once. A FIFO is opened when it is first read, because opening it waits for somebody who writes to it, and whoever
/// writes to several of them may open the next one when the last one is read.
#[derive(Debug)]
pub struct PathReader {
    path: PathBuf,
    /// None until the first read of a FIFO.
    file: Option<File>,
}

impl PathReader {
    /// Opens `path`, unless it is a FIFO.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |e| Error::source(path.display(), e);
        let file = if is_fifo(path).map_err(failed)? {
            None
        } else {
            Some(File::open(path).map_err(failed)?)
        };
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

/// Whether opening `path` would wait.
pub(super) fn is_fifo(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.file_type().is_fifo())
}

impl Read for PathReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            slot => slot.insert(File::open(&self.path)?),
        };
        file.read(buf)
    }
}
