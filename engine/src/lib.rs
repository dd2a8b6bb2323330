//! Podsnap's engine: chunking, saving, restoring and verifying snapshots in a store. The crate `podsnap` is this one under its public name,
//! with a guide as its first page.
//!
//! The nouns, in the order in which one meets them: a [`Store`] is opened from a URL; a [`SnapshotWriter`] takes sections and
//! commits them as one snapshot; a [`Snapshot`] is opened, inspected, verified and restored; a [`SectionReader`] reads any range
//! of one section. Everything that waits for a store is async and runs on tokio; everything that computes runs on the
//! store's own worker threads.

mod base;
pub mod bench;
mod catalog;
pub mod chunking;
mod coverage;
pub mod device;
pub mod diff;
mod error;
mod export;
mod frames;
mod garbage;
pub mod gvisor;
mod heads;
mod holder;
mod host;
pub mod inspect;
mod key_file;
mod lazy;
mod lease;
mod metadata;
mod metrics;
pub mod mount;
mod names;
mod printable;
mod progress;
mod removal;
pub mod restore;
mod save;
#[cfg(test)]
mod simulation;
mod snapshot;
pub mod source;
mod statsd;
pub mod store;
pub mod tree;
pub mod userfault;
pub mod verify;
mod wait;

use std::sync::{Arc, OnceLock};

pub use catalog::{
    Catalog, Listed, NAMESPACE_LABEL, POLICY_LABEL, Requirements, Retained, RetentionPlan,
    RetentionRules, RetentionStats, State, Status, Verdict,
};
pub use error::{Error, ErrorKind, Result};
pub use export::ExportStats;
pub use garbage::{CollectOptions, CollectStats, CollectionPlan, FailedDeletion, Garbage};
pub use heads::Head;
pub use key_file::read_key;
pub use lazy::{CacheOptions, Recording, Run, SectionReader, WorkingSet};
pub use metadata::Metadata;
pub use mount::{Mount, MountOptions};
pub use podsnap_format as format;
pub use podsnap_format::{Digest, Key, Role, SectionInfo, Shape, SnapshotId};
pub use podsnap_gpu as gpu;
pub use printable::{printable, printable_message};
pub use progress::{Progress, ProgressSnapshot};
pub use removal::{RemoveOptions, RemoveStats};
pub use restore::{RestoreOptions, RestoreStats};
pub use save::{Committed, Dtype, NewSection, Policy, SaveOptions, SaveStats, SnapshotWriter};
pub use snapshot::Snapshot;
pub use source::Input;
pub use statsd::Statsd;
pub use store::OpenOptions;
pub use tokio_util::sync::CancellationToken;
pub use verify::{VerifyOptions, VerifyReport};

/// A place where snapshots are kept: a directory, memory, or a path in a bucket.
///
/// Opening one costs nothing, clones share everything, and any number of processes on any number of machines may use the same place
/// at once: the only thing they share is what is in it.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path().join("snapshots");
/// # let dir = dir.to_str().expect("a path that is UTF-8");
/// use podsnap::{Input, NewSection, Role, SaveOptions, Store};
///
/// let store = Store::open(dir)?;
/// let mut writer = store.save(&"first".parse()?, SaveOptions::default()).await?;
/// writer.add(NewSection::blob(Role::Other, "note", Input::stream(&b"hello"[..], "a note"))).await?;
/// writer.finish().await?;
///
/// // Another process, another day.
/// let store = Store::open(dir)?;
/// let mut hello = [0; 5];
/// store.snapshot(&"first".parse()?).await?.reader(0).read_at(&mut hello, 0).await?;
/// assert_eq!(&hello, b"hello");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    url: String,
    backend: Arc<dyn store::Backend>,
    key: Option<Key>,
    pool: Arc<OnceLock<rayon::ThreadPool>>,
    host: Arc<dyn host::Host>,
    /// What the readers of its snapshots share.
    reading: Arc<lazy::Shared>,
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
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{ErrorKind, Key, OpenOptions, SaveOptions, Store};
    ///
    /// # let thirty_two_secret_bytes = [7; 32];
    /// let key = Key::new(thirty_two_secret_bytes);
    /// let store = Store::open_with("memory://keyed", &OpenOptions::default(), Some(key))?;
    /// store.save(&"secret".parse()?, SaveOptions::default()).await?.finish().await?;
    ///
    /// let without = Store::open("memory://keyed")?;
    /// let refused = without.snapshot(&"secret".parse()?).await.unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    /// # Ok(()) }
    /// ```
    pub fn open_with(url: &str, options: &OpenOptions, key: Option<Key>) -> Result<Self> {
        Ok(Self::from_backend(url, store::open(url, options)?, key))
    }

    /// A store over any backend: one that counts, fails or delays, say. `url` is what errors call it.
    pub fn from_backend(url: &str, backend: Arc<dyn store::Backend>, key: Option<Key>) -> Self {
        Self(Arc::new(Inner {
            url: url.to_owned(),
            backend: Arc::new(store::Checked(backend)),
            key,
            pool: Arc::default(),
            host: Arc::new(host::System),
            reading: lazy::Shared::new(None),
        }))
    }

    /// The same store, whose readers keep what they fetch on the node's disk, where all processes of the node find it. A directory that cannot be used is
    /// reported and done without.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path().join("cache");
    /// use podsnap::{CacheOptions, Store};
    ///
    /// let cache = CacheOptions {
    ///     dir,
    ///     max_len: 20 << 30,
    /// };
    /// let store = Store::open("memory://cached")?.with_cache(&cache);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_cache(self, cache: &CacheOptions) -> Self {
        Self(Arc::new(Inner {
            url: self.0.url.clone(),
            backend: self.0.backend.clone(),
            key: self.0.key.clone(),
            pool: self.0.pool.clone(),
            host: self.0.host.clone(),
            reading: lazy::Shared::new(Some(cache)),
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

    pub(crate) fn host(&self) -> &dyn host::Host {
        &*self.0.host
    }

    pub(crate) fn reading(&self) -> &Arc<lazy::Shared> {
        &self.0.reading
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

    /// Starts a snapshot: takes its lease and opens its bases. Fails with [`ErrorKind::Conflict`] if the snapshot exists, or if somebody
    /// is writing it.
    pub async fn save(
        &self,
        snapshot: &SnapshotId,
        options: SaveOptions,
    ) -> Result<SnapshotWriter> {
        let started = SnapshotWriter::start(self, snapshot.clone(), options).await;
        started.inspect_err(|_| metrics::save_failed())
    }

    /// Opens a committed snapshot. One small read tells what it consists of; nothing else is read before it is asked for.
    pub async fn snapshot(&self, snapshot: &SnapshotId) -> Result<Snapshot> {
        Snapshot::open(self, snapshot).await
    }
}
