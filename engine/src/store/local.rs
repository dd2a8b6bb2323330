//! A directory as a store: the embedded default, durable and with the same preconditions as a bucket.
//!
//! Packs are written in place under names that are used once; until a manifest names them nobody looks at them. Small objects that
//! carry meaning (manifest, lease, head) are written beside their place, synced and renamed, so that a reader
//! sees all of one or none. All file-system calls run on tokio's blocking threads.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{FlockOperation, RenameFlags, flock};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::{
    Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version, not_found,
    precondition,
};
use crate::error::{Error, ErrorKind, Result};

/// Bytes after which a writer asks the kernel to begin writing out, so that the final sync has little left to wait for.
const SYNC_EVERY: u64 = 16 << 20;

/// A store in a directory, which is made when the first object is written.
#[derive(Debug, Clone)]
pub struct LocalBackend {
    root: Arc<Path>,
    sync: bool,
}

impl LocalBackend {
    /// A store in `root`. With `sync`, objects are on disk when they are called written.
    pub fn new(root: impl Into<PathBuf>, sync: bool) -> Result<Self> {
        let root: PathBuf = root.into();
        if root.as_os_str().is_empty() {
            return Err(Error::invalid("the store's path is empty"));
        }
        Ok(Self {
            root: root.into(),
            sync,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce(&Self, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (this, path) = (self.clone(), self.path(name));
        ended(spawn_blocking(move || work(&this, &path)).await)?
            .map_err(|e| convert(name, &self.path(name), e))
    }
}

/// What came of a task on a blocking thread. There is none when the runtime ends, and with it whatever somebody still does in the background.
fn ended<T>(task: std::result::Result<T, JoinError>) -> Result<T> {
    task.map_err(|e| match e.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::interrupted(),
    })
}

fn convert(name: &str, path: &Path, err: io::Error) -> Error {
    let path = path.display();
    match err.kind() {
        io::ErrorKind::NotFound => not_found(name),
        io::ErrorKind::AlreadyExists => precondition(name),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::new(
            ErrorKind::Forbidden,
            format!("the store refuses access to {path}"),
        )
        .because(err),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(ErrorKind::Store, format!("the store is full at {path}"))
                .because(err)
                .hint("free space there and save again")
        }
        io::ErrorKind::InvalidData => Error::damaged(name, err.to_string()),
        _ => Error::new(ErrorKind::Store, format!("the store failed at {path}")).because(err),
    }
}

/// Reads into memory that was not cleared first: clearing it costs as much as the read.
fn read_exact_at(file: &File, range: Range<u64>) -> io::Result<Vec<u8>> {
    let len = (range.end - range.start) as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = range.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // The allocator may have given more room than was asked for, and the read have filled it.
    bytes.truncate(len);
    Ok(bytes)
}

fn meta_of(name: &str, stat: &fs::Metadata) -> ObjectMeta {
    // Inode and times change with every replacement by rename; that is what a version must do.
    let version = format!("{}-{}.{:09}", stat.ino(), stat.mtime(), stat.mtime_nsec());
    ObjectMeta {
        name: name.to_owned(),
        len: stat.len(),
        version: Version(version),
    }
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Locks a directory, so that comparing a version in it and acting on that are one step. The lock ends with the file.
fn lock(dir: &Path) -> io::Result<File> {
    loop {
        let file = File::open(dir)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // While waiting, the directory may have gone with its last object, and another one have come.
        if fs::metadata(dir)?.ino() == file.metadata()?.ino() {
            return Ok(file);
        }
    }
}

/// Does something in a directory that is made if it is missing, again if it goes with its last object just then. It goes again if
/// nothing came into it.
fn in_made_dir<T>(dir: &Path, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..100 {
        fs::create_dir_all(dir)?;
        match work() {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.exists() => {}
            Err(e) => {
                let _ = fs::remove_dir(dir);
                return Err(e);
            }
            done => return done,
        }
    }
    Err(io::Error::other(format!(
        "{} is removed as often as it is made",
        dir.display()
    )))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Prefix of files that are not yet objects. Their writer holds a lock on them for as long as it lives.
const TEMPORARY: &str = ".tmp-";

fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
}

/// Removes temporary files in `dir` whose writer died.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !is_temporary(&entry.file_name()) {
            continue;
        }
        if let Ok(file) = File::open(entry.path())
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            // Gone already is as good: another sweep, or the writer's own rename.
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

impl LocalBackend {
    fn put_blocking(
        &self,
        name: &str,
        path: &Path,
        bytes: &[u8],
        condition: &Condition,
    ) -> io::Result<ObjectMeta> {
        let parent = parent_of(path)?;
        let _locked = in_made_dir(parent, || lock(parent))?;
        sweep(parent)?;
        let (flags, replaced) = match condition {
            Condition::Absent => (RenameFlags::NOREPLACE, None),
            Condition::Matches(version) => {
                let stat = fs::metadata(path)?;
                if meta_of(name, &stat).version != *version {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                (RenameFlags::empty(), Some(stat.modified()?))
            }
        };
        let temporary = parent.join(format!("{TEMPORARY}{}", uuid::Uuid::new_v4().simple()));
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&temporary)?;
            flock(&file, FlockOperation::LockExclusive)?;
            file.write_all(bytes)?;
            // Inodes are used again, and the clock stands still between its ticks: a version must not come back.
            if let Some(replaced) = replaced
                && file.metadata()?.modified()? <= replaced
            {
                file.set_modified(replaced + Duration::from_nanos(1))?;
            }
            if self.sync {
                file.sync_all()?;
            }
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, &temporary, cwd, path, flags)?;
            Ok(meta_of(name, &file.metadata()?))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
            let _ = fs::remove_dir(parent);
        } else if self.sync {
            sync_dir(parent)?;
        }
        written
    }

    fn list_blocking(&self, dir: &Path, into: &mut Vec<ObjectMeta>) -> io::Result<()> {
        let entries = match fs::read_dir(dir) {
            // The store or the snapshot was never written to.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if is_temporary(&entry.file_name()) {
                continue;
            }
            let path = entry.path();
            match fs::symlink_metadata(&path) {
                Ok(stat) if stat.is_dir() => self.list_blocking(&path, into)?,
                Ok(stat) => {
                    let below = path.strip_prefix(&self.root).unwrap_or(&path);
                    // Names that are not UTF-8 are not ours.
                    if let Some(name) = below.to_str() {
                        into.push(meta_of(name, &stat));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for LocalBackend {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        _version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let own_name = name.to_owned();
        self.blocking(name, move |_, path| {
            let file = File::open(path)?;
            let meta = meta_of(&own_name, &file.metadata()?);
            let range = match range {
                ReadRange::Exact(range) => range,
                ReadRange::Suffix(len) => meta.len.saturating_sub(len)..meta.len,
            };
            if range.end > meta.len {
                let why = format!(
                    "it ends at {}, bytes {} to {} are missing",
                    meta.len, meta.len, range.end
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let bytes = read_exact_at(&file, range.clone())?;
            Ok(ReadBytes {
                bytes: bytes.into(),
                offset: range.start,
                meta,
            })
        })
        .await
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        let own_name = name.to_owned();
        self.blocking(name, move |_, path| {
            Ok(meta_of(&own_name, &fs::metadata(path)?))
        })
        .await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        let own_name = name.to_owned();
        self.blocking(name, move |this, path| {
            this.put_blocking(&own_name, path, &bytes, &condition)
        })
        .await
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        let file = self
            .blocking(name, |_, path| {
                in_made_dir(parent_of(path)?, || {
                    OpenOptions::new().write(true).create_new(true).open(path)
                })
            })
            .await?;
        Ok(Box::new(LocalWriter {
            path: self.path(name),
            name: name.to_owned(),
            file: Arc::new(file),
            sync: self.sync,
            len: 0,
            syncing: None,
            synced: 0,
        }))
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        let (own_name, version) = (name.to_owned(), version.cloned());
        self.blocking(name, move |this, path| {
            let parent = parent_of(path)?;
            let _locked = match lock(parent) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                locked => locked?,
            };
            let stat = match fs::symlink_metadata(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                stat => stat?,
            };
            if version.is_some_and(|version| meta_of(&own_name, &stat).version != version) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::remove_file(path)?;
            let _ = sweep(parent);
            // A manifest that came back after a loss of power would name packs that went after it.
            if this.sync {
                sync_dir(parent)?;
            }
            // The directory goes with its last object; while it has others this fails, as it should.
            let _ = fs::remove_dir(parent);
            Ok(())
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.blocking(prefix, |this, path| {
            let mut found = Vec::new();
            this.list_blocking(path, &mut found)?;
            Ok(found)
        })
        .await
    }

    fn read_len(&self) -> u64 {
        1 << 20
    }

    fn reads_at_once(&self) -> usize {
        // One for each core to decode, and as many waiting.
        2 * std::thread::available_parallelism().map_or(4, |n| n.get().min(32))
    }

    fn pack_len(&self) -> u64 {
        1 << 30
    }
}

struct LocalWriter {
    name: String,
    path: PathBuf,
    file: Arc<File>,
    sync: bool,
    len: u64,
    synced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl LocalWriter {
    /// Waits for the write-out under way, if any.
    async fn settle(&mut self) -> Result<()> {
        match self.syncing.take() {
            Some(task) => {
                let done = ended(task.await)?;
                done.map_err(|e| convert(&self.name, &self.path, e))
            }
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectWriter for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let (file, offset) = (self.file.clone(), self.len);
        self.len += bytes.len() as u64;
        ended(spawn_blocking(move || file.write_all_at(&bytes, offset)).await)?
            .map_err(|e| convert(&self.name, &self.path, e))?;
        if self.sync
            && self.len - self.synced >= SYNC_EVERY
            && self.syncing.as_ref().is_none_or(|t| t.is_finished())
        {
            self.settle().await?;
            self.synced = self.len;
            let file = self.file.clone();
            self.syncing = Some(spawn_blocking(move || file.sync_data()));
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        self.settle().await?;
        let (file, sync, path, name) = (
            self.file.clone(),
            self.sync,
            self.path.clone(),
            self.name.clone(),
        );
        let finished = spawn_blocking(move || {
            if sync {
                file.sync_all()?;
                sync_dir(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
            }
            Ok(meta_of(&name, &file.metadata()?))
        });
        ended(finished.await)?.map_err(|e| convert(&self.name, &self.path, e))
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        let _ = self.settle().await;
        let path = self.path.clone();
        ended(spawn_blocking(move || fs::remove_file(path)).await)?
            .map_err(|e| convert(&self.name, &self.path, e))
    }
}
