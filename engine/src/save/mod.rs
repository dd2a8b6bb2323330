//! Saving: a [`SnapshotWriter`] takes sections one after another and commits them all or not at all.
//!
//! Order of a save: lease, bases, packs, manifest (the commit), head, lease dropped. What fails before the manifest leaves nothing that
//! anybody can see, and what was written is removed by the save itself or, if it was killed, by the next save of the same id, if that can tell that
//! it is dead, or by a collector.

mod ahead;
mod bases;
mod buffers;
mod copy;
mod cut;
mod dead;
mod grow;
mod index;
mod packer;
mod pipeline;
mod proof;
mod seal;
mod undo;

use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

pub use podsnap_format::codec::{Dtype, Policy};
use podsnap_format::{
    Header, Key, Kind, Role, Shape, SnapshotId,
    manifest::{AddressRange, EncodedManifest},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) use self::dead::{end_for_the_dead, end_lease};
use self::{
    bases::{load_bases, open_bases, relied_on, wanted_bases},
    cut::{Cutter, Successors},
    index::{SaveIndex, SavedSection},
    packer::{Packed, PackerQueue},
    pipeline::{Buffers, Pipeline},
    proof::Proofs,
    seal::SectionShape,
    undo::Unfinished,
};
use crate::{
    Store,
    catalog::{NAMESPACE_LABEL, POLICY_LABEL},
    chunking::{self, Chunker, ChunkingParams},
    error::{Error, ErrorKind, Result},
    heads,
    lease::{Lease, LeaseRecord},
    metadata::Metadata,
    names,
    progress::Progress,
    snapshot::Snapshot,
    source::Input,
    store::{Condition, Version},
    tree::{ScanOptions, TarTreeReader, TreeReader},
};

/// How a snapshot is saved. The default deduplicates against the group's head, if there is a group.
///
/// ```
/// # use podsnap_engine as podsnap;
/// use podsnap::{Policy, SaveOptions};
///
/// let options = SaveOptions {
///     group: Some("web".to_owned()),
///     codec: Policy::Zstd(3),
///     labels: [("pod".to_owned(), "web-7d9f".to_owned())].into(),
///     ..SaveOptions::default()
/// };
/// let (progress, cancel) = (options.progress.clone(), options.cancel.clone());
/// # drop((progress, cancel));
/// ```
#[derive(Debug, Clone, Default)]
pub struct SaveOptions {
    /// Snapshots to deduplicate against; if empty, the head of `group`.
    pub bases: Vec<SnapshotId>,
    /// Group whose head this snapshot becomes.
    pub group: Option<String>,
    /// How chunks are encoded.
    pub codec: Policy,
    /// Whatever the owner wants to remember.
    pub labels: BTreeMap<String, String>,
    /// Description of the image, for gVisor checkpoints.
    pub gvisor: BTreeMap<String, String>,
    /// Ends the save with [`ErrorKind::Interrupted`] when it is cancelled.
    pub cancel: CancellationToken,
    /// Where the save counts what it does.
    pub progress: Progress,
}

/// A section to be saved.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # fn main() -> podsnap::Result<()> {
/// # let dir = tempfile::tempdir().expect("a directory");
/// # let (ram, upper) = (dir.path().join("ram.bin"), dir.path().join("upper"));
/// # std::fs::write(&ram, "memory").expect("a file");
/// # std::fs::create_dir(&upper).expect("a directory");
/// use podsnap::{Dtype, Input, NewSection, Role};
///
/// let memory = NewSection::blob(Role::Memory, "", Input::file(&ram)?);
/// let rootfs = NewSection::directory(Role::Rootfs, "", &upper)?;
/// let weights = NewSection {
///     dtype: Some(Dtype::Bf16), // tells the codec; needs not be known
///     ..NewSection::blob(Role::Gpu, "0", Input::stream(std::io::empty(), "device 0"))
/// };
/// # let _ = (memory, rootfs, weights);
/// # Ok(()) }
/// ```
pub struct NewSection {
    /// What it is to the pod.
    pub role: Role,
    /// Tells sections of one role apart; may be empty.
    pub name: String,
    /// Byte stream or tree.
    pub shape: Shape,
    /// Its bytes.
    pub input: Input,
    /// How it is cut; by default as the base was, or by the section's length.
    pub chunking: Option<ChunkingParams>,
    /// What the bytes are, where the caller knows.
    pub dtype: Option<Dtype>,
    /// Addresses the bytes belong to.
    pub address_ranges: Vec<AddressRange>,
}

impl NewSection {
    /// A blob of that role and name.
    pub fn blob(role: Role, name: impl Into<String>, input: Input) -> Self {
        Self {
            role,
            name: name.into(),
            shape: Shape::Blob,
            input,
            chunking: None,
            dtype: None,
            address_ranges: Vec::new(),
        }
    }

    /// A tree of that role and name, read from a directory or a tar stream.
    pub fn tree(role: Role, name: impl Into<String>, input: Input) -> Self {
        Self {
            shape: Shape::Tree,
            ..Self::blob(role, name, input)
        }
    }

    /// What is below the directory at `path`, as a tree. The directory is scanned now and its files are read by the save; one that
    /// changes in between makes the save fail.
    pub fn directory(role: Role, name: impl Into<String>, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let reader = TreeReader::open(path, ScanOptions::default()).map_err(|e| {
            Error::new(ErrorKind::Source, format!("cannot save {}", path.display())).because(e)
        })?;
        Ok(Self::tree(
            role,
            name,
            Input::Stream(Box::new(reader), path.display().to_string()),
        ))
    }

    /// `ROLE` or `ROLE:NAME`: what people call the section.
    pub fn title(&self) -> String {
        match self.name.is_empty() {
            true => self.role.to_string(),
            false => format!("{}:{}", self.role, self.name),
        }
    }

    /// An uncompressed tar stream as a tree; `label` is what errors call it.
    pub fn tar(
        role: Role,
        name: impl Into<String>,
        tar: impl Read + Send + 'static,
        label: impl Into<String>,
    ) -> Self {
        Self::tree(
            role,
            name,
            Input::Stream(Box::new(TarTreeReader::new(tar)), label.into()),
        )
    }
}

/// What a save did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SaveStats {
    /// The snapshot.
    pub snapshot: String,
    /// BLAKE3 of its manifest's directory, in hex: keep it and demand it on restore.
    pub digest: String,
    /// Bytes of all sections.
    pub raw_bytes: u64,
    /// Of these, in zero runs.
    pub zero_bytes: u64,
    /// Of these, found twice in the snapshot.
    pub deduplicated_own_bytes: u64,
    /// Of these, found in a base.
    pub deduplicated_base_bytes: u64,
    /// Of these, stored for the first time.
    pub new_bytes: u64,
    /// Bytes of the packs written.
    pub pack_bytes: u64,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Packs written.
    pub packs: u64,
    /// Chunks written.
    pub chunks: u64,
    /// Time from taking the lease to the end, in milliseconds.
    pub elapsed_ms: u64,
    /// Snapshots it was deduplicated against.
    pub bases: Vec<String>,
}

impl SaveStats {
    /// Bytes added to the store.
    pub fn stored_bytes(&self) -> u64 {
        self.pack_bytes + self.manifest_bytes
    }
}

/// A snapshot being written; [`Store::save`] begins one. Call [`SnapshotWriter::finish`] to commit or [`SnapshotWriter::abort`] to leave
/// nothing behind.
///
/// Sections are taken in one after another, each in parallel. Nobody sees the snapshot before it is finished.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use podsnap::{ErrorKind, Input, NewSection, Role, SaveOptions, Store};
///
/// let store = Store::open("memory://writer")?;
/// let id = "web-1".parse()?;
/// let mut writer = store.save(&id, SaveOptions::default()).await?;
/// writer.add(NewSection::blob(Role::Kernel, "", Input::stream(&b"threads"[..], "kernel"))).await?;
/// writer.abort().await?; // as if it had never been
/// assert_eq!(store.snapshot(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
///
/// let mut writer = store.save(&id, SaveOptions::default()).await?;
/// writer.add(NewSection::blob(Role::Kernel, "", Input::stream(&b"threads"[..], "kernel"))).await?;
/// let stats = writer.finish().await?;
/// assert_eq!(stats.raw_bytes, 7);
/// assert_eq!(store.snapshot(&id).await?.digest().to_string(), stats.digest);
/// # Ok(()) }
/// ```
pub struct SnapshotWriter {
    store: Store,
    header: Header,
    options: SaveOptions,
    metadata: Metadata,
    work: Option<Work>,
    shapes: Vec<SectionShape>,
    started: Instant,
}

/// A snapshot that is committed, and whose lease is being dropped. Nothing is lost if that is not waited for, but whoever deletes or collects then
/// waits until the lease has run out.
pub struct Committed {
    /// What the save did.
    pub stats: SaveStats,
    settling: JoinHandle<()>,
}

impl Committed {
    /// Waits until the lease is dropped.
    pub async fn settled(self) -> SaveStats {
        let _ = self.settling.await;
        self.stats
    }
}

/// What is lent to a blocking thread while a section is taken in.
struct Work {
    unfinished: Unfinished,
    index: SaveIndex,
    buffers: Buffers,
    successors: Arc<Successors>,
}

impl SnapshotWriter {
    /// Takes the lease and opens the bases.
    pub(crate) async fn start(
        store: &Store,
        snapshot: SnapshotId,
        options: SaveOptions,
    ) -> Result<Self> {
        let started = Instant::now();
        if snapshot.as_ref() == names::HEADS {
            return Err(Error::invalid(
                "a snapshot cannot be called \"heads\": the store keeps the heads of groups there",
            ));
        }
        if let Some(group) = &options.group {
            heads::check_name(group)?;
        }
        let backend = store.backend();
        refuse_existing(store, &snapshot).await?;
        let wanted = wanted_bases(store, &options).await?;
        let attempt = store.host().draw();
        let key = store.key();
        let header = Header {
            key_check: key.map(Key::key_check),
            ..Header::new(Kind::Manifest, snapshot.clone(), attempt)
        };
        let mut opened = open_bases(store, &wanted).await?;
        let lease = LeaseRecord {
            attempt: format!("{attempt:016x}"),
            bases: relied_on(&opened),
            policy: options.labels.get(POLICY_LABEL).cloned(),
            namespace: options.labels.get(NAMESPACE_LABEL).cloned(),
            ..LeaseRecord::default()
        };
        let lease = Lease::acquire(store, &snapshot, lease).await?;
        // From here on the packs of all these are safe: who deletes a snapshot sees the lease.
        let (bases, base) = match load_bases(&wanted, &mut opened).await {
            Ok(loaded) => loaded,
            Err(e) => {
                let _ = lease.give_up().await;
                return Err(e);
            }
        };
        let metadata = Metadata {
            created_unix_ms: store.host().now_unix_ms(),
            writer: concat!("podsnap ", env!("CARGO_PKG_VERSION")).to_owned(),
            group: options.group.clone(),
            bases,
            labels: options.labels.clone(),
            gvisor: options.gvisor.clone(),
            ..Metadata::default()
        };
        let packer = PackerQueue::start(backend.clone(), header.clone(), options.progress.clone());
        let work = Work {
            unfinished: Unfinished::new(store.clone(), header.clone(), lease, packer),
            index: SaveIndex::new(Arc::new(base)),
            buffers: Buffers::for_threads(store.pool().current_num_threads()),
            successors: Arc::default(),
        };
        Ok(Self {
            store: store.clone(),
            header,
            options,
            metadata,
            work: Some(work),
            shapes: Vec::new(),
            started,
        })
    }

    /// Takes in one section. After an error the save can only be aborted.
    pub async fn add(&mut self, section: NewSection) -> Result<()> {
        let Some(mut work) = self.work.take() else {
            return Err(Error::invalid(
                "an earlier section failed: the save can only be aborted",
            ));
        };
        if self
            .shapes
            .iter()
            .any(|s| s.role == section.role && s.name == section.name)
        {
            self.work = Some(work);
            return Err(Error::invalid(format!(
                "the snapshot has a section {} already",
                section.title()
            )));
        }
        let length = match &section.input {
            Input::Source(source) => Some(source.len()),
            Input::Stream(stream, _) => stream.length(),
        };
        let base_section = work.index.base.section(section.role, &section.name);
        let chunking = section.chunking.unwrap_or_else(|| match base_section {
            Some(base) => work.index.base.sections[base].chunking,
            None => chunking::default_for(length),
        });
        let Some(chunker) = Chunker::new(&chunking) else {
            self.work = Some(work);
            return Err(Error::invalid(format!(
                "chunks of {chunking:?} cannot be cut"
            )));
        };
        self.options.progress.add_total(length.unwrap_or(0));
        let source = match &section.input {
            Input::Source(source) => Some(source.clone()),
            Input::Stream(..) => None,
        };
        let cutter = Arc::new(Cutter {
            chunker,
            key: self.store.key().cloned(),
            base: work.index.base.clone(),
            base_section,
            source: source.clone(),
            successors: work.successors.clone(),
        });
        work.index.sections.push(SavedSection {
            source,
            ..SavedSection::default()
        });
        let (store, options) = (self.store.clone(), self.options.clone());
        let input = section.input;
        // Ends the thread's work when nobody waits for it any more.
        let awaited = CancellationToken::new();
        let _awaiting = awaited.clone().drop_guard();
        let (work, result) = tokio::task::spawn_blocking(move || {
            let failed = || options.cancel.is_cancelled() || awaited.is_cancelled();
            let result = Pipeline {
                pool: store.pool(),
                buffers: &work.buffers,
                packer: work.unfinished.packer(),
                index: &mut work.index,
                progress: &options.progress,
                cutter,
                proofs: Proofs::default(),
                policy: options.codec,
                dtype: section.dtype,
                cancelled: &failed,
            }
            .run(input);
            (work, result)
        })
        .await
        .map_err(|_| Error::new(ErrorKind::Source, "the save's thread died"))?;
        match result {
            Ok(table_length) => {
                self.shapes.push(SectionShape {
                    role: section.role,
                    name: section.name,
                    shape: section.shape,
                    table_length,
                    chunking,
                    address_ranges: section.address_ranges,
                });
                self.work = Some(work);
                Ok(())
            }
            Err(e) => Err(work.unfinished.fail(e).await),
        }
    }

    /// Replaces [`SaveOptions::gvisor`]: who takes an image in as it is made knows its description only when it has seen its bytes.
    pub fn set_gvisor(&mut self, description: BTreeMap<String, String>) {
        self.metadata.gvisor = description;
    }

    /// Commits: when this returns, the snapshot is visible, whole and durable. The one error behind the commit is a group's head that
    /// could not be moved; it says so.
    ///
    /// Once it has begun, dropping the future does not stop it: whether the snapshot is committed then, the store knows.
    pub async fn finish(self) -> Result<SaveStats> {
        Ok(self.commit().await?.settled().await)
    }

    /// The same for who cannot wait for a moment longer than until the snapshot stands: its lease is dropped behind this. Cloud Storage
    /// lets a name be changed once a second, so that a lease which is younger must wait.
    pub async fn commit(mut self) -> Result<Committed> {
        let Some(Work {
            mut unfinished,
            index,
            ..
        }) = self.work.take()
        else {
            return Err(Error::invalid(
                "an earlier section failed: nothing can be committed",
            ));
        };
        let packed = match unfinished.packed().await {
            Ok(packed) => packed,
            Err(e) => return Err(unfinished.fail(e).await),
        };
        let metadata = serde_json::to_string(&self.metadata).expect("metadata is plain data");
        let sealed = seal::seal(&self.header, metadata, &index, &packed, &self.shapes);
        let raw_bytes = index.sections.iter().map(|s| s.len).sum();
        self.conclude(unfinished, packed, sealed, raw_bytes).await
    }

    /// Commits a manifest, if there is one, and says what the save did.
    async fn conclude(
        self,
        unfinished: Unfinished,
        packed: Packed,
        sealed: Result<EncodedManifest>,
        raw_bytes: u64,
    ) -> Result<Committed> {
        let EncodedManifest { bytes, digest } = match sealed {
            Ok(sealed) => sealed,
            Err(e) => return Err(unfinished.fail(e).await),
        };
        let bytes = [self.header.encode().as_slice(), &bytes].concat();
        let manifest_bytes = bytes.len() as u64;
        let (progress, started) = (self.options.progress.clone(), self.started);
        let snapshot = self.header.snapshot.to_string();
        let bases = self.metadata.bases.clone();
        // A commit is not left in the middle.
        let committing = tokio::spawn(async move {
            let dropping = self.make_visible(unfinished, bytes).await?;
            Ok(tokio::spawn(dropping))
        });
        let settling = committing
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Store, "the commit died")))?;
        let p = progress.snapshot();
        let stats = SaveStats {
            snapshot,
            digest: digest.to_string(),
            raw_bytes,
            zero_bytes: p.zero_bytes,
            deduplicated_own_bytes: p.deduplicated_own_bytes,
            deduplicated_base_bytes: p.deduplicated_base_bytes,
            new_bytes: p.new_bytes,
            pack_bytes: packed.len,
            manifest_bytes,
            packs: packed.packs.len() as u64,
            chunks: packed.chunks.len() as u64,
            elapsed_ms: started.elapsed().as_millis() as u64,
            bases,
        };
        crate::metrics::saved(&stats);
        Ok(Committed { stats, settling })
    }

    /// Makes the snapshot visible and moves the head. Whatever fails before the manifest stands undoes the save. Returns what is left to do: to drop the
    /// lease.
    async fn make_visible(
        &self,
        unfinished: Unfinished,
        manifest: Vec<u8>,
    ) -> Result<impl Future<Output = ()> + Send + 'static> {
        let (backend, snapshot) = (&**self.store.backend(), &self.header.snapshot);
        let len = manifest.len() as u64;
        if let Err(e) = unfinished.lease().check().await {
            return Err(unfinished.fail(e).await);
        }
        if self.options.cancel.is_cancelled() {
            return Err(unfinished.fail(Error::interrupted()).await);
        }
        let name = names::object(snapshot, names::MANIFEST);
        let version = match backend.put(&name, manifest.into(), Condition::Absent).await {
            Ok(meta) => meta.version,
            // The answer may be lost though the manifest stands. Then the packs must stand too.
            Err(e) => match self.committed().await {
                Ok(Some(version)) => version,
                // What was refused never comes. What got lost may come yet.
                Ok(None) if e.kind() != ErrorKind::Store => return Err(unfinished.fail(e).await),
                unknown => {
                    if let Err(error) = unknown {
                        tracing::warn!(%snapshot, %error, "the store cannot be asked for the manifest");
                    }
                    unfinished.leave();
                    return Err(Error::new(
                        e.kind(),
                        format!("it is not known whether {snapshot} was committed"),
                    )
                    .because(e)
                    .hint(
                        "save it again under the same id: that is refused if it is there and whole",
                    ));
                }
            },
        };
        let lease_version = match insist(|| unfinished.lease().confirm()).await {
            Ok(version) => version,
            Err(e) => return Err(self.take_back(unfinished, &version, e).await),
        };
        self.options.progress.add_stored(len);
        if let Some(group) = &self.options.group {
            let created = self.metadata.created_unix_ms;
            if let Err(e) = heads::advance(&self.store, group, snapshot, created).await {
                // The next save of this id finds the lease, and moves the head.
                unfinished.leave();
                return Err(Error::new(
                    e.kind(),
                    format!(
                        "{snapshot} is committed, but it could not be made the head of {group}"
                    ),
                )
                .because(e)
                .hint(
                    "save it again under the same id: that is refused, but moves the head first",
                ));
            }
        }
        let lease = unfinished.committed();
        let snapshot = snapshot.clone();
        Ok(async move {
            let dropped = async {
                lease.remove_previous().await?;
                lease.release(lease_version).await
            };
            if let Err(error) = dropped.await {
                tracing::warn!(%snapshot, %error, "the lease could not be dropped; it will expire");
            }
        })
    }

    /// Removes a manifest that was written under a lease that was lost by then: what it needs may be gone. The packs are left to
    /// whoever collects garbage, as somebody may have come to borrow from them already.
    async fn take_back(&self, unfinished: Unfinished, version: &Version, e: Error) -> Error {
        let snapshot = &self.header.snapshot;
        let lost = unfinished.lease().lost();
        unfinished.leave();
        if !lost {
            return Error::new(
                e.kind(),
                format!("{snapshot} is committed, but perhaps too late: its lease had run out and could not be renewed"),
            )
            .because(e)
            .hint("verify it before relying on it");
        }
        let name = names::object(snapshot, names::MANIFEST);
        match insist(|| self.store.backend().delete(&name, Some(version))).await {
            Ok(()) => e,
            Err(left) => Error::new(
                left.kind(),
                format!(
                    "{snapshot} was committed after its lease was lost, and could not be taken back"
                ),
            )
            .because(left)
            .hint("do not rely on it: remove it, and save again"),
        }
    }

    /// Gives the save up and removes everything it wrote.
    pub async fn abort(mut self) -> Result<()> {
        match self.work.take() {
            Some(work) => work.unfinished.undo().await,
            None => Ok(()),
        }
    }

    /// Gives the save up because of `e`; returns what to say of it.
    pub(crate) async fn fail(mut self, e: Error) -> Error {
        match self.work.take() {
            Some(work) => work.unfinished.fail(e).await,
            None => e,
        }
    }

    /// The version of the manifest in the store, if it is the one of this attempt.
    async fn committed(&self) -> Result<Option<Version>> {
        match Snapshot::open(&self.store, &self.header.snapshot).await {
            Ok(snapshot) => {
                let ours = snapshot.directory().header.attempt == self.header.attempt;
                Ok(ours.then(|| snapshot.version().clone()))
            }
            // The lease beside it was read just now: if the caller may read here, what is refused is not there.
            Err(e) if e.is_absence() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Asks a store that fails again, for some minutes: what it is asked for is what keeps a snapshot from being taken for whole.
async fn insist<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    for wait in [1, 2, 5, 10, 30, 60, 60] {
        match ask().await {
            Err(e) if e.kind() == ErrorKind::Store => {
                tracing::warn!(error = %e, "trying again");
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
            done => return done,
        }
    }
    ask().await
}

async fn refuse_existing(store: &Store, snapshot: &SnapshotId) -> Result<()> {
    let backend = &**store.backend();
    match backend
        .head(&names::object(snapshot, names::MANIFEST))
        .await
    {
        // Creating the manifest has the last word.
        Err(e) if e.is_absence() => return Ok(()),
        Err(e) => return Err(e),
        Ok(_) => {}
    }
    if let Err(error) = end_for_the_dead(store, snapshot).await {
        tracing::warn!(%snapshot, %error, "what a killed save left could not be ended");
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("the snapshot {snapshot} exists already"),
    )
    .hint("snapshots never change: save under another id, or remove it first"))
}
