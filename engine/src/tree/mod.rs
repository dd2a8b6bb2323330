//! Directory trees in and out of tree sections.
//!
//! A tree section is one byte stream, the contents of the files one after another and then the entry table
//! ([`podsnap_format::tree`]). This module makes that stream from a directory ([`TreeReader`]) or a tar stream
//! ([`TarTreeReader`]), and turns it back into a directory ([`TreeExtractor`]) or a tar stream ([`write_tar`]). What
//! happens to the stream in between (chunks, packs, stores) is not its business.

mod attributes;
mod dirs;
mod extract;
mod nodes;
mod reader;
mod scan;
mod tar_header;
mod tar_in;
mod tar_out;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use podsnap_format::tree::TreeError;

use crate::source::SectionStream;

pub use extract::{ExtractOptions, ExtractStats, FileRange, TreeExtractor};
pub use reader::TreeReader;
pub use scan::ScanOptions;
pub use tar_in::TarTreeReader;
pub use tar_out::{ContentSource, TarStats, write_tar};

/// What went wrong with a tree. A [`std::io::Read`] of this module carries it inside its [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The source is not what it was when reading began: the saved tree would be none that ever was.
    #[error("source changed while it was read: {}: {what}", shown(path))]
    SourceChanged {
        /// Path in the source.
        path: PathBuf,
        /// What is different.
        what: &'static str,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", shown(path))]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what; relative to the tree's top directory where there is one.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The entries make no sense together.
    #[error(transparent)]
    Table(#[from] TreeError),
    /// The target of a restore exists and has something in it.
    #[error("{} is not empty: choose an empty or new directory, or allow existing files to be replaced", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// A tar stream is damaged or holds what a tree cannot hold.
    #[error("tar stream at byte {offset}: member {}: {problem}", path.display())]
    Tar {
        /// Where in the tar stream the member's header ends.
        offset: u64,
        /// The member's path, if it was known by then.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The reader failed before; what it would give now has a gap.
    #[error("the tree cannot be read on after an error")]
    Failed,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Table(_) | Error::Tar { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Something that a restored tree lacks because the process or the file system could not give it.
#[derive(Debug)]
pub struct RestoreWarning {
    /// The entry's path below the top directory.
    pub path: PathBuf,
    /// What is lacking, such as "set the owner of".
    pub what: &'static str,
    /// Why.
    pub error: io::Error,
}

impl std::fmt::Display for RestoreWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "could not {} {}: {}",
            self.what,
            shown(&self.path),
            self.error
        )
    }
}

impl SectionStream for TreeReader {
    fn length(&self) -> Option<u64> {
        Some(self.stream_length())
    }

    fn table_length(&self) -> u64 {
        TreeReader::table_length(self)
    }
}

impl<R: io::Read + Send> SectionStream for TarTreeReader<R> {
    fn table_length(&self) -> u64 {
        // Asked when the stream has ended, and then it is known.
        TarTreeReader::table_length(self).unwrap_or(0)
    }
}

/// A path as errors show it: the top directory's own is empty.
fn shown(path: &Path) -> std::path::Display<'_> {
    match path.as_os_str().is_empty() {
        true => Path::new(".").display(),
        false => path.display(),
    }
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}
