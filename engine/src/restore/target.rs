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
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://target")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// use std::sync::{Arc, Mutex};
///
/// use podsnap::{RestoreOptions, restore::Target};
///
/// /// Where a new guest will find its memory.
/// struct Guest(Mutex<Vec<u8>>);
///
/// impl Target for Guest {
///     fn write_at(&self, bytes: &[u8], offset: u64) -> podsnap::Result<()> {
///         let mut memory = self.0.lock().expect("no panic while held");
///         memory[offset as usize..][..bytes.len()].copy_from_slice(bytes);
///         Ok(())
///     }
/// }
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let guest = Arc::new(Guest(Mutex::new(vec![0; snapshot.sections()[0].length as usize])));
/// snapshot.restore_to(&store, vec![(0, guest.clone())], &RestoreOptions::default()).await?;
/// # assert_eq!(*guest.0.lock().unwrap(), numbers);
/// # Ok(()) }
/// ```
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
