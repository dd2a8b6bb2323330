//! Podsnap's engine: chunking, saving, restoring and verifying snapshots in a store.
//!
//! The nouns, in the order in which one meets them: a [`Store`] is opened from a URL; a [`SnapshotWriter`] takes sections and
//! commits them as one snapshot; a [`Snapshot`] is opened, inspected, verified and restored; a [`SectionReader`] reads any range
//! of one section. Everything that waits for a store is async and runs on tokio; everything that computes runs on the
//! store's own worker threads.

mod base;
pub mod catalog;
pub mod chunking;
mod coverage;
pub mod diff;
mod error;
pub mod export;
mod frames;
pub mod gvisor;
pub mod heads;
pub mod inspect;
pub mod lease;
mod metadata;
mod names;
mod printable;
mod progress;
pub mod restore;
mod save;
mod snapshot;
pub mod source;
pub mod store;
pub mod tree;
pub mod verify;

use std::sync::{Arc, OnceLock};

pub use error::{Error, ErrorKind, Result};
pub use metadata::Metadata;
pub use podsnap_format as format;
pub use podsnap_format::{Key, Role, Shape, SnapshotId};
pub use printable::{printable, printable_message};
pub use progress::{Progress, ProgressSnapshot};
pub use save::{Dtype, NewSection, Policy, SaveOptions, SaveStats, SnapshotWriter};
pub use snapshot::{SectionReader, Snapshot};
pub use source::Input;
pub use store::OpenOptions;

/// A place where snapshots are kept: a directory, memory, or a path in a bucket.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    url: String,
    backend: Arc<dyn store::Backend>,
    key: Option<Key>,
    pool: OnceLock<rayon::ThreadPool>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("url", &self.0.url)
            .field("keyed", &self.0.key.is_some())
            .finish()
    }
}

impl Store {
    /// Opens the store at `url`: a path, `file://`, `memory://name`, `gs://bucket/path`, `s3://bucket/path` or
    /// `az://container/path`. Nothing is read or written yet.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, &OpenOptions::default(), None)
    }

    /// Opens the store with options and, if its chunk ids are keyed, with its key.
    pub fn open_with(url: &str, options: &OpenOptions, key: Option<Key>) -> Result<Self> {
        Ok(Self::from_backend(url, store::open(url, options)?, key))
    }

    /// A store over any backend: one that counts, fails or delays, say. `url` is what errors call it.
    pub fn from_backend(url: &str, backend: Arc<dyn store::Backend>, key: Option<Key>) -> Self {
        Self(Arc::new(Inner {
            url: url.to_owned(),
            backend: Arc::new(store::Checked(backend)),
            key,
            pool: OnceLock::new(),
        }))
    }

    /// What the store was opened from.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The objects under the store's path.
    pub fn backend(&self) -> &Arc<dyn store::Backend> {
        &self.0.backend
    }

    pub(crate) fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// Worker threads, one for each core, started when they are first needed.
    pub(crate) fn pool(&self) -> &rayon::ThreadPool {
        self.0.pool.get_or_init(|| {
            rayon::ThreadPoolBuilder::new()
                .thread_name(|i| format!("podsnap-{i}"))
                // Sources and targets may be the caller's: their panic fails the one operation, which notices that its
                // answer never comes, and not the process.
                .panic_handler(|_| ())
                .build()
                .expect("the system can start threads")
        })
    }

    /// Starts a snapshot.
    pub async fn save(
        &self,
        snapshot: &SnapshotId,
        options: SaveOptions,
    ) -> Result<SnapshotWriter> {
        SnapshotWriter::start(self, snapshot.clone(), options).await
    }

    /// Opens a committed snapshot.
    pub async fn snapshot(&self, snapshot: &SnapshotId) -> Result<Snapshot> {
        Snapshot::open(self, snapshot).await
    }
}
