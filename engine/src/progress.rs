//! How far a long operation is: counters that any thread may read while it runs. Nothing here prints.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[derive(Debug, Default)]
struct Counters {
    total: AtomicU64,
    zero: AtomicU64,
    deduplicated_own: AtomicU64,
    deduplicated_base: AtomicU64,
    new: AtomicU64,
    stored: AtomicU64,
    restored: AtomicU64,
    read: AtomicU64,
}

/// A handle on the counters of one operation; clones share them.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use podsnap::{ErrorKind, Input, NewSection, Role, SaveOptions, Store};
///
/// let options = SaveOptions::default();
/// let (progress, cancel) = (options.progress.clone(), options.cancel.clone());
/// let watcher = tokio::spawn(async move {
///     loop {
///         tokio::time::sleep(Duration::from_millis(100)).await;
///         let now = progress.snapshot();
///         println!("{} of {} bytes", now.saved_bytes(), now.total_bytes);
///     }
/// });
/// let store = Store::open("memory://progress")?;
/// let mut writer = store.save(&"web-1".parse()?, options).await?;
/// writer.add(NewSection::blob(Role::Memory, "", Input::stream(&b"pages"[..], "pages"))).await?;
///
/// // Anybody who has a clone of the token can end it, at any time.
/// cancel.cancel();
/// assert_eq!(writer.finish().await.unwrap_err().kind(), ErrorKind::Interrupted);
/// watcher.abort();
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Counters>);

/// The counters at one moment, all in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProgressSnapshot {
    /// Bytes the operation will go through, as far as known yet; 0 for a stream.
    pub total_bytes: u64,
    /// Bytes of zero runs, which are not stored.
    pub zero_bytes: u64,
    /// Bytes found twice in this snapshot.
    pub deduplicated_own_bytes: u64,
    /// Bytes found in a base.
    pub deduplicated_base_bytes: u64,
    /// Bytes in chunks that nobody had.
    pub new_bytes: u64,
    /// Bytes written to the store.
    pub stored_bytes: u64,
    /// Bytes written to the target of a restore, or checked by a verification.
    pub restored_bytes: u64,
    /// Bytes read from the store.
    pub read_bytes: u64,
}

impl ProgressSnapshot {
    /// Bytes of the source that a save is done with.
    pub fn saved_bytes(&self) -> u64 {
        self.zero_bytes
            + self.deduplicated_own_bytes
            + self.deduplicated_base_bytes
            + self.new_bytes
    }
}

impl Progress {
    /// The counters now.
    pub fn snapshot(&self) -> ProgressSnapshot {
        let c = &self.0;
        ProgressSnapshot {
            total_bytes: c.total.load(Relaxed),
            zero_bytes: c.zero.load(Relaxed),
            deduplicated_own_bytes: c.deduplicated_own.load(Relaxed),
            deduplicated_base_bytes: c.deduplicated_base.load(Relaxed),
            new_bytes: c.new.load(Relaxed),
            stored_bytes: c.stored.load(Relaxed),
            restored_bytes: c.restored.load(Relaxed),
            read_bytes: c.read.load(Relaxed),
        }
    }

    pub(crate) fn add_total(&self, bytes: u64) {
        self.0.total.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_zero(&self, bytes: u64) {
        self.0.zero.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_deduplicated_own(&self, bytes: u64) {
        self.0.deduplicated_own.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_deduplicated_base(&self, bytes: u64) {
        self.0.deduplicated_base.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_new(&self, bytes: u64) {
        self.0.new.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_stored(&self, bytes: u64) {
        self.0.stored.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_restored(&self, bytes: u64) {
        self.0.restored.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_read(&self, bytes: u64) {
        self.0.read.fetch_add(bytes, Relaxed);
    }
}
