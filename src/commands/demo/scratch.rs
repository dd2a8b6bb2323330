//! Where the demo keeps everything: one directory that is gone afterwards, except for the store if somebody wants to keep it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::exit::Failure;

/// The directory. It goes with this.
pub struct Scratch {
    dir: TempDir,
    keep: Option<PathBuf>,
}

impl Scratch {
    /// A new directory among the temporary ones, or beside the place where the store is to be kept.
    pub fn create(keep: Option<&Path>) -> Result<Self, Failure> {
        let keep = match keep {
            None => None,
            Some(dir) => Some(std::path::absolute(dir).map_err(|e| cannot("use", dir, e))?),
        };
        let parent = match &keep {
            None => std::env::temp_dir(),
            Some(dir) => {
                check_vacant(dir)?;
                let parent = dir.parent().unwrap_or(dir);
                fs::create_dir_all(parent).map_err(|e| cannot("make", parent, e))?;
                parent.to_owned()
            }
        };
        let dir = tempfile::Builder::new()
            .prefix("podsnap-demo-")
            .tempdir_in(&parent)
            .map_err(|e| cannot("write to", &parent, e))?;
        Ok(Self { dir, keep })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where the store is until the end.
    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// Removes everything; a store that is to be kept appears at its place first, and that is returned.
    pub fn close(self) -> Result<Option<PathBuf>, Failure> {
        if let Some(keep) = &self.keep {
            fs::rename(self.store(), keep).map_err(|e| cannot("keep the store in", keep, e))?;
        }
        let path = self.path().to_owned();
        self.dir.close().map_err(|e| cannot("remove", &path, e))?;
        Ok(self.keep)
    }
}

fn check_vacant(dir: &Path) -> Result<(), Failure> {
    match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(cannot("use", dir, e)),
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Failure::usage(format!("{} is not empty", dir.display()))
                .hint("keep the store in a new directory")),
        },
    }
}

fn cannot(what: &str, path: &Path, e: std::io::Error) -> Failure {
    Failure::other(format!("the demo cannot {what} {}: {e}", path.display()))
}
