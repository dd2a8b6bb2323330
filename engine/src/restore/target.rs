//! Where a section's bytes go in a full restore: a file, a directory tree, or whatever the caller has.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::RwLock,
};

use podsnap_format::tree::TreeTable;

use crate::{
    error::{Error, ErrorKind, Result},
    tree::{self, ExtractOptions, RestoreWarning, TreeExtractor},
};

/// Takes the bytes of a section, in any order, from several threads. Ranges that are never written read as zeros.
pub trait Target: Send + Sync {
    /// Writes `bytes` at `offset` of the section.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Called once, after all bytes were written. Returns what could not be set exactly as it was.
    fn finish(&self) -> Result<Vec<RestoreWarning>> {
        Ok(Vec::new())
    }
}

/// A blob as a new file of the section's length; zeros stay holes.
pub(super) struct FileTarget {
    file: File,
    path: PathBuf,
}

impl FileTarget {
    pub(super) fn create(path: &Path, len: u64) -> Result<Self> {
        let open = OpenOptions::new().write(true).create_new(true).open(path);
        let file = open.map_err(|e| Error::target(path.display(), e))?;
        file.set_len(len)
            .map_err(|e| Error::target(path.display(), e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }
}

impl Target for FileTarget {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|e| Error::target(self.path.display(), e))
    }
}

/// A tree as a new directory.
pub(super) struct TreeTarget {
    /// Taken out when it is finished.
    extractor: RwLock<Option<TreeExtractor>>,
    path: PathBuf,
}

impl TreeTarget {
    pub(super) fn create(path: &Path, table: TreeTable, strict: bool) -> Result<Self> {
        let options = ExtractOptions {
            strict,
            ..ExtractOptions::default()
        };
        let extractor =
            TreeExtractor::new(path, table, options).map_err(|e| tree_error(path, e))?;
        Ok(Self {
            extractor: RwLock::new(Some(extractor)),
            path: path.to_owned(),
        })
    }
}

impl Target for TreeTarget {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        match &*self.extractor.read().expect("no panic while held") {
            Some(extractor) => extractor
                .write_at(offset, bytes)
                .map_err(|e| tree_error(&self.path, e)),
            None => Err(Error::invalid("the tree is finished")),
        }
    }

    fn finish(&self) -> Result<Vec<RestoreWarning>> {
        match self.extractor.write().expect("no panic while held").take() {
            Some(extractor) => Ok(extractor
                .finish()
                .map_err(|e| tree_error(&self.path, e))?
                .warnings),
            None => Ok(Vec::new()),
        }
    }
}

fn tree_error(path: &Path, err: tree::Error) -> Error {
    match err {
        tree::Error::Table(e) => Error::damaged(
            format!("the entry table of {}", path.display()),
            e.to_string(),
        ),
        tree::Error::Io {
            action,
            path: below,
            source,
        } => {
            let place = path.join(&below);
            Error::target_action(action, place.display(), source)
        }
        err => Error::new(
            ErrorKind::Target,
            format!("cannot restore the tree to {}", path.display()),
        )
        .because(err),
    }
}
