//! Comparing what was restored with what was saved, byte for byte, by plain reading: none of the store's hashes is believed here.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use podsnap::source::Source;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;

/// Bytes compared at once.
const STEP: usize = 1 << 20;

/// What a comparison has seen so far.
#[derive(Debug, Serialize)]
pub struct Comparison {
    pub identical: bool,
    /// Bytes compared.
    pub bytes: u64,
    /// Files, directories and links compared.
    pub files: u64,
    pub differences: Vec<String>,
    #[serde(skip)]
    cancel: CancellationToken,
}

impl Comparison {
    pub fn new(cancel: &CancellationToken) -> Self {
        Self {
            identical: true,
            bytes: 0,
            files: 0,
            differences: Vec::new(),
            cancel: cancel.clone(),
        }
    }

    fn differs(&mut self, difference: String) {
        self.identical = false;
        self.differences.push(difference);
    }

    /// The bytes of any source with those of a restored file.
    pub fn source(
        &mut self,
        what: &str,
        source: &dyn Source,
        restored: &Path,
    ) -> Result<(), Failure> {
        let file = File::open(restored).map_err(|e| cannot(restored, e))?;
        let len = file.metadata().map_err(|e| cannot(restored, e))?.len();
        self.files += 1;
        if len != source.len() {
            self.differs(format!("{what} has {len} bytes, not {}", source.len()));
            return Ok(());
        }
        let (mut a, mut b) = (vec![0; STEP], vec![0; STEP]);
        let mut offset = 0;
        while offset < len {
            if self.cancel.is_cancelled() {
                return Err(Failure::interrupted());
            }
            let now = (len - offset).min(STEP as u64) as usize;
            source.read_at(&mut a[..now], offset)?;
            file.read_exact_at(&mut b[..now], offset)
                .map_err(|e| cannot(restored, e))?;
            if let Some(at) = a[..now].iter().zip(&b[..now]).position(|(a, b)| a != b) {
                self.differs(format!(
                    "{what} differs from byte {} on",
                    offset + at as u64
                ));
                return Ok(());
            }
            offset += now as u64;
            self.bytes += now as u64;
        }
        Ok(())
    }

    /// A file with a restored one.
    pub fn file(&mut self, original: &Path, restored: &Path) -> Result<(), Failure> {
        let what = original.display().to_string();
        match podsnap::Input::file(original)? {
            podsnap::Input::Source(source) => self.source(&what, &*source, restored),
            podsnap::Input::Stream(..) => Err(Failure::other(format!("{what} is no regular file"))),
        }
    }

    /// A file, link or directory, with everything below it, with a restored one: names, kinds, modes, owners, times and bytes.
    pub fn tree(&mut self, original: &Path, restored: &Path) -> Result<(), Failure> {
        let (a, b) = (stat(original)?, stat(restored)?);
        if a.is_dir() && b.is_dir() {
            self.files += 1;
            let (names, found) = (names(original)?, names(restored)?);
            if names != found {
                self.differs(format!("{} holds other names", restored.display()));
            }
            for name in names.intersection(&found) {
                self.tree(&original.join(name), &restored.join(name))?;
            }
        } else if a.is_file() && b.is_file() {
            self.file(original, restored)?;
        } else if a.is_symlink() && b.is_symlink() {
            self.files += 1;
            let target = |path| fs::read_link(path).map_err(|e| cannot(path, e));
            if target(original)? != target(restored)? {
                self.differs(format!("{} links elsewhere", restored.display()));
            }
        }
        let attributes = |m: &Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
        if attributes(&a) != attributes(&b) {
            self.differs(format!(
                "{} has another kind, mode, owner or time",
                restored.display()
            ));
        }
        Ok(())
    }
}

fn stat(path: &Path) -> Result<Metadata, Failure> {
    fs::symlink_metadata(path).map_err(|e| cannot(path, e))
}

fn names(dir: &Path) -> Result<BTreeSet<OsString>, Failure> {
    let entries = fs::read_dir(dir).map_err(|e| cannot(dir, e))?;
    entries
        .map(|entry| entry.map(|e| e.file_name()).map_err(|e| cannot(dir, e)))
        .collect()
}

fn cannot(path: &Path, e: io::Error) -> Failure {
    Failure::other(format!("cannot read {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt, time::SystemTime};

    use super::*;

    /// Two equal trees, one changed by `change`, compared.
    fn differences(change: impl Fn(&Path)) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let time = SystemTime::now();
        let roots = ["original", "restored"].map(|name| dir.path().join(name));
        for root in &roots {
            fs::create_dir_all(root.join("sub")).unwrap();
            fs::write(root.join("sub/file"), vec![7; 3 * STEP + 5]).unwrap();
            std::os::unix::fs::symlink("sub", root.join("link")).unwrap();
        }
        change(&roots[1]);
        for root in &roots {
            for path in [&root.join("sub/file"), &root.join("sub"), root] {
                let file = File::open(path).unwrap();
                file.set_modified(time).unwrap();
            }
            let touch = rustix::fs::Timestamps {
                last_access: rustix::fs::Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                },
                last_modification: rustix::fs::Timespec {
                    tv_sec: 1,
                    tv_nsec: 0,
                },
            };
            let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, root.join("link"), &touch, no_follow).unwrap();
        }
        let mut comparison = Comparison::new(&CancellationToken::new());
        comparison.tree(&roots[0], &roots[1]).unwrap();
        assert_eq!(comparison.identical, comparison.differences.is_empty());
        comparison.differences
    }

    #[test]
    fn equal_trees_are_identical() {
        assert_eq!(differences(|_| {}), [""; 0]);
    }

    #[test]
    fn every_difference_is_seen() {
        type Change<'a> = (&'a str, &'a dyn Fn(&Path));
        let changes: [Change; 5] = [
            ("from byte 2097160 on", &|root| {
                let file = File::options()
                    .write(true)
                    .open(root.join("sub/file"))
                    .unwrap();
                file.write_all_at(&[8], 2 * STEP as u64 + 8).unwrap();
            }),
            ("has 3145734 bytes, not 3145733", &|root| {
                let file = File::options()
                    .write(true)
                    .open(root.join("sub/file"))
                    .unwrap();
                file.set_len(3 * STEP as u64 + 6).unwrap();
            }),
            ("holds other names", &|root| {
                fs::write(root.join("sub/more"), "").unwrap()
            }),
            ("mode", &|root| {
                fs::set_permissions(root.join("sub/file"), Permissions::from_mode(0o600)).unwrap();
            }),
            ("links elsewhere", &|root| {
                fs::remove_file(root.join("link")).unwrap();
                std::os::unix::fs::symlink("elsewhere", root.join("link")).unwrap();
            }),
        ];
        for (expected, change) in changes {
            let found = differences(change);
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{expected}: {found:?}"
            );
        }
    }
}
