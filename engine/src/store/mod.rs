//! Where objects live: one small interface over a directory, Google Cloud Storage ([`gcs`]), memory and whatever else `object_store`
//! opens from a URL.
//!
//! A backend knows names, bytes, versions and preconditions. It knows nothing of snapshots, and nothing above it knows
//! which backend it talks to.

mod checked;
pub mod gcs;
mod local;
mod remote;

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

pub(crate) use checked::Checked;
pub use gcs::{GcsBackend, GcsOptions};
pub use local::LocalBackend;
pub use remote::RemoteBackend;

use crate::error::{Error, ErrorKind, Result};

/// An opaque version of an object: a generation, an ETag, or what a file system has in its place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version(pub String);

/// What is known of a stored object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Name below the store's path, with `/` between components.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Version to pin reads and conditions to.
    pub version: Version,
}

/// When a write may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Only if no object of that name exists.
    Absent,
    /// Only if the object is still at this version.
    Matches(Version),
}

/// Which bytes of an object to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadRange {
    /// Exactly these; an object that ends earlier is an error.
    Exact(Range<u64>),
    /// At most so many bytes from the end.
    Suffix(u64),
}

/// The bytes of a read, and where they stood.
#[derive(Debug, Clone)]
pub struct ReadBytes {
    /// The bytes.
    pub bytes: Bytes,
    /// Offset of the first of them.
    pub offset: u64,
    /// The object they came from.
    pub meta: ObjectMeta,
}

/// Objects by name. All names are below the store's own path; all errors name the object.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync {
    /// Reads a range, of `version` where one is given and the store keeps versions.
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes>;

    /// Length and version of an object.
    async fn head(&self, name: &str) -> Result<ObjectMeta>;

    /// Writes a small object whole, atomically and durably.
    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta>;

    /// Starts an object that must not exist yet and that becomes readable, at the latest, when it is finished.
    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>>;

    /// Removes an object; with a version, only that one. Removing what is absent is no error.
    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()>;

    /// Removes what a writer of `name` that came to no end may have left beside the object itself.
    async fn remove_leftovers(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Everything below `prefix` (a whole component), recursively, in no particular order.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;

    /// Length in bytes that a range read should have at least to be worth its latency.
    fn read_len(&self) -> u64;

    /// Reads that may be under way at once; each holds some [`Backend::read_len`] bytes of memory.
    fn reads_at_once(&self) -> usize;

    /// Length in bytes at which a pack is closed and the next one started.
    fn pack_len(&self) -> u64;
}

/// An object being written. Dropped without [`finish`](ObjectWriter::finish), it may be left behind: call [`abort`](ObjectWriter::abort).
#[async_trait]
pub trait ObjectWriter: Send {
    /// Appends bytes, waiting where the store is slower than the caller.
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Begins to send what was held back to be sent together with more. For who knows that nothing more comes, and has to wait before it finishes.
    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Makes the object whole and durable.
    async fn finish(self: Box<Self>) -> Result<ObjectMeta>;

    /// Gives the object up and removes what was written of it.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// How a store is opened, beyond its URL.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Whether a local store waits until objects are on disk before it calls them written. On by default.
    pub sync: bool,
    /// How a bucket of Google Cloud Storage is used.
    pub gcs: GcsOptions,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            sync: true,
            gcs: GcsOptions::default(),
        }
    }
}

/// Opens the backend of `url`: a path, `file://`, `memory://`, `gs://`, `s3://`, `az://`.
pub(crate) fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn Backend>> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok(Arc::new(LocalBackend::new(url, options.sync)?));
    };
    match scheme {
        "file" => {
            let parsed = url::Url::parse(url)
                .map_err(|e| Error::invalid(format!("bad store URL {url}")).because(e))?;
            let path = parsed.to_file_path().map_err(|()| {
                Error::invalid(format!("{url} names no local path"))
                    .hint("write file:///absolute/path, or just the path")
            })?;
            Ok(Arc::new(LocalBackend::new(path, options.sync)?))
        }
        "gs" => Ok(Arc::new(GcsBackend::open(url, options.gcs.clone())?)),
        "memory" => Ok(Arc::new(RemoteBackend::memory(rest))),
        _ => Ok(Arc::new(RemoteBackend::open(url)?)),
    }
}

/// The error for an object that is not there.
pub(crate) fn not_found(name: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("{name} does not exist in the store"),
    )
}

/// The error for an object that ends before a range that was asked for does.
pub(crate) fn too_short(name: &str, len: u64, range: &Range<u64>) -> Error {
    let from = range.start.max(len);
    Error::damaged(
        name,
        format!(
            "it ends at {len}, bytes {from} to {} are missing",
            range.end
        ),
    )
}

/// The error for a condition that does not hold.
pub(crate) fn precondition(name: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("{name} exists already or was changed by somebody else"),
    )
}
