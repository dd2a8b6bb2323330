//! What a section's bytes are read from: random access where there is any, a stream otherwise.
//!
//! Random access lets several threads read at once and lets bytes be read again to prove a duplicate; a stream is read
//! once, in order. Everything is copied into the engine's own buffers before it is hashed, so that a source that changes
//! while it is read can make a save fail but can never make a chunk differ from its id.

mod path;
mod process;

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use path::PathReader;
pub use process::ProcessMemory;

use crate::error::{Error, ErrorKind, Result};

/// Bytes that can be read at any offset, by several threads.
///
/// ```
/// # use podsnap_engine as podsnap;
/// use std::sync::Arc;
///
/// use podsnap::{Input, NewSection, Result, Role, source::Source};
///
/// /// The memory of a guest that is paused.
/// struct Guest(Vec<u8>);
///
/// impl Source for Guest {
///     fn len(&self) -> u64 {
///         self.0.len() as u64
///     }
///
///     fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
///         buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
///         Ok(())
///     }
///
///     fn check_unchanged(&self) -> Result<()> {
///         Ok(()) // this one cannot change
///     }
/// }
///
/// let guest = Guest(vec![7; 1 << 20]);
/// let section = NewSection::blob(Role::Memory, "", Input::Source(Arc::new(guest)));
/// # drop(section);
/// ```
pub trait Source: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// An error if the bytes may have changed since the source was opened.
    fn check_unchanged(&self) -> Result<()>;
}

/// A stream whose last bytes may be a tree's entry table.
pub trait SectionStream: Read + Send {
    /// Length of the whole stream in bytes, where it is known from the beginning.
    fn length(&self) -> Option<u64> {
        None
    }

    /// Length in bytes of the entry table at the end; asked once the stream has ended.
    fn table_length(&self) -> u64 {
        0
    }
}

/// A plain byte stream as a blob.
pub(crate) struct BlobStream<R>(pub(crate) R);

impl<R: Read> Read for BlobStream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read + Send> SectionStream for BlobStream<R> {}

/// Where one section's bytes come from.
pub enum Input {
    /// Random access.
    Source(Arc<dyn Source>),
    /// A stream, with what to call it in errors.
    Stream(Box<dyn SectionStream>, String),
}

impl Input {
    /// The file at `path`: random access for a regular file, a stream for anything else (pipe, device). A FIFO is
    /// opened when the save comes to it.
    pub fn file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |e| Error::source(path.display(), e);
        if path::is_fifo(path).map_err(failed)? {
            let name = path.display().to_string();
            return Ok(Self::stream(PathReader::open(path)?, name));
        }
        let file = File::open(path).map_err(failed)?;
        let stat = file.metadata().map_err(failed)?;
        if stat.is_file() {
            Ok(Self::Source(Arc::new(FileSource {
                file,
                path: path.to_owned(),
                stat,
            })))
        } else if stat.is_dir() {
            Err(Error::invalid(format!("{} is a directory", path.display()))
                .hint("directories are saved as trees, under the roles rootfs and tmpfs"))
        } else {
            Ok(Self::Stream(
                Box::new(BlobStream(file)),
                path.display().to_string(),
            ))
        }
    }

    /// A stream that is read to its end.
    pub fn stream(reader: impl Read + Send + 'static, name: impl Into<String>) -> Self {
        Self::Stream(Box::new(BlobStream(reader)), name.into())
    }
}

/// A regular file.
struct FileSource {
    file: File,
    path: PathBuf,
    stat: Metadata,
}

impl FileSource {
    fn changed(&self) -> Error {
        Error::new(
            ErrorKind::Source,
            format!("{} changed while it was read", self.path.display()),
        )
        .hint("save it again once nothing writes to it")
    }
}

impl Source for FileSource {
    fn len(&self) -> u64 {
        self.stat.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => self.changed(),
                _ => Error::source(self.path.display(), e),
            })
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = self
            .file
            .metadata()
            .map_err(|e| Error::source(self.path.display(), e))?;
        let key = |stat: &Metadata| (stat.len(), stat.mtime(), stat.mtime_nsec());
        if key(&now) == key(&self.stat) {
            Ok(())
        } else {
            Err(self.changed())
        }
    }
}
