//! Podsnap stores the state of running pods and brings it back: memory, kernel state, files and GPU memory become one *snapshot* in an
//! object store. What a snapshot has twice, or what an earlier one has already, is stored once; what is stored is compressed; and every
//! byte that comes back was compared with its hash.
//!
//! This crate is what an agent on a node, or a controller of a cluster, links. The tool `podsnap` does nothing that cannot be done with it.
//!
//! # The nouns
//!
//! | | |
//! |-|-|
//! | [`Store`] | a place where snapshots are kept: a directory, or a path in a bucket. Opened from a URL; saves, opens, lists and removes |
//! | [`SnapshotWriter`] | a snapshot being written: takes [sections](NewSection), then commits them all or nothing |
//! | [`Snapshot`] | a committed snapshot, which never changes: describes, restores, verifies and exports itself |
//! | [`SectionReader`] | any range of one section, without restoring the rest |
//! | [`Mount`], [`MemoryServer`](userfault::MemoryServer) | a snapshot as files, or a section as memory, before its bytes are here |
//! | [`Recording`], [`WorkingSet`] | what a restore touches, recorded, and fetched ahead by the next one |
//! | [`Catalog`] | which snapshots there are for which pods, which of them a new pod starts from, and which have had their time |
//! | [`Progress`] | how far an operation is, to be looked at from anywhere while it runs |
//! | [`Error`], [`ErrorKind`] | what went wrong: a text for people, a kind for programs |
//!
//! A *section* is one part of a snapshot. It has a [role](Role), a name that tells sections of one role apart, and a [shape](Shape): a
//! *blob* is a stream of bytes, a *tree* is files and directories.
//!
//! # Saving and restoring
//!
//! ```
//! use podsnap::{Input, NewSection, RestoreOptions, Role, SaveOptions, Store};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! #   let scratch = tempfile::tempdir()?;
//! #   let (files, restored) = (scratch.path().join("files"), scratch.path().join("restored"));
//! #   std::fs::create_dir(&files)?;
//! #   std::fs::write(files.join("index.html"), "<h1>hello</h1>")?;
//! #   let memory = b"what the pod has in memory ".repeat(10_000);
//! #   let guest = std::io::Cursor::new(memory.clone());
//!     let store = Store::open("memory://example")?; // or a directory, or gs://bucket/path
//!
//!     let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
//!     writer.add(NewSection::blob(Role::Memory, "", Input::stream(guest, "guest memory"))).await?;
//!     writer.add(NewSection::directory(Role::Rootfs, "", &files)?).await?;
//!     let saved = writer.finish().await?; // from here on the snapshot exists
//!     println!("{} bytes, of which {} had to be stored", saved.raw_bytes, saved.stored_bytes());
//!
//!     let snapshot = store.snapshot(&"web-1".parse()?).await?;
//!     snapshot.demand_digest(&saved.digest)?;
//!     snapshot.restore(&store, &restored, &RestoreOptions::default()).await?;
//!     assert_eq!(std::fs::read(restored.join("memory"))?, memory);
//!     assert_eq!(std::fs::read(restored.join("rootfs/index.html"))?, b"<h1>hello</h1>");
//! #   assert!(saved.stored_bytes() < saved.raw_bytes / 10);
//!     Ok(())
//! }
//! ```
//!
//! What waits for a store is async and runs on any tokio runtime. What computes (cutting, hashing, compressing) runs on
//! threads of the store's own, and what may block on tokio's blocking threads, so that a runtime's threads stay free. The memory that a
//! save or a restore needs does not grow with the snapshot.
//!
//! Bytes come from an [`Input`]: a file, any [`Read`](std::io::Read), or whatever implements [`Source`](source::Source), such as the memory of
//! [another process](source::ProcessMemory). They go to a directory, to a stream ([`Snapshot::restore_stream`]), or to any
//! [`Target`](restore::Target).
//!
//! # Bases and groups
//!
//! A save is compared with *bases*, snapshots of the same store that the caller names in [`SaveOptions::bases`]; what they have is not stored
//! again. A *group* saves the naming: the newest snapshot of a group is its [head](Store::head), the next save of the group is
//! compared with it and takes its place.
//!
//! ```
//! # use podsnap::{Input, NewSection, Role, SaveOptions, Store};
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let store = Store::open("memory://groups")?;
//! # let pages: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(n | 0x9e37_79b9).to_le_bytes()).collect();
//! for id in ["monday", "tuesday"] {
//!     let options = SaveOptions {
//!         group: Some("web".to_owned()),
//!         ..SaveOptions::default()
//!     };
//!     let mut writer = store.save(&id.parse()?, options).await?;
//! #   let input = Input::stream(std::io::Cursor::new(pages.clone()), "pages");
//!     writer.add(NewSection::blob(Role::Memory, "", input)).await?;
//!     let saved = writer.finish().await?;
//!     if id == "tuesday" {
//!         assert_eq!(saved.bases, ["monday"]);
//!         assert_eq!(saved.deduplicated_base_bytes, saved.raw_bytes);
//!     }
//! }
//! let head = store.head("web").await?.expect("two snapshots were saved");
//! assert_eq!(head.snapshot.as_str(), "tuesday");
//! # Ok(()) }
//! ```
//!
//! A snapshot is complete in itself: restoring it never goes through its bases, it only reads some of their packs. So a base can be
//! [removed](Store::remove) at any time: nobody can open it afterwards, and what others borrow stays. What nobody needs any more is found and deleted by
//! [`Store::plan_collection`] and [`Store::collect`], to be called every day. Bases are of the same store always: nothing is ever shared
//! between two paths of a bucket, so a path is a tenant.
//!
//! # Progress, and cancelling
//!
//! Every long operation takes a [`Progress`], whose clones may be looked at from other tasks and threads, and a [`CancellationToken`]. An
//! operation that is cancelled ends soon, with [`ErrorKind::Interrupted`], and leaves nothing behind: no half snapshot, no
//! half directory. A [`SnapshotWriter`] that is dropped cleans up in the background; [`abort`](SnapshotWriter::abort) lets
//! one wait for it. What a killed process leaves in a store is invisible, and removed by the next save of the same id.
//!
//! # Errors
//!
//! There is one [`Error`]. Its text says on one line what happened, to what, why, and what can be done about it; its [`ErrorKind`] is small and
//! stable, and is what programs decide by: whether to try again ([`Store`](ErrorKind::Store)), to give up
//! ([`Damaged`](ErrorKind::Damaged), [`Missing`](ErrorKind::Missing)), or that somebody else was first ([`Conflict`](ErrorKind::Conflict)).
//!
//! # Keys
//!
//! Chunks are named by their BLAKE3 hashes, so who can read a manifest could find out whether a pod has a file that he has too. A
//! store that is [opened with a key](Store::open_with) uses keyed hashes, which tell nothing to those without the key. A key encrypts nothing. It
//! must be given whenever the store is opened; a snapshot that was written with another one is refused. See [`Key`].
//!
//! # Trees
//!
//! A [directory](NewSection::directory) or a [tar stream](NewSection::tar) becomes a tree section with all that an overlay's upper directory has: types,
//! modes, owners, times in nanoseconds, extended attributes, hard links, holes, devices, whiteouts and opaque directories. On restore, no name in a tree can
//! reach outside of its target; what the process has no right to set becomes a [warning](restore::RestoreStats::warnings), or an error if
//! the restore is [strict](RestoreOptions::strict). The parts that this is made of are in [`tree`].
//!
//! # gVisor images
//!
//! The image directory that `runsc checkpoint` writes becomes one section for each of its files, and an image directory again when it is restored:
//! see [`gvisor`]. Take the checkpoint with `-compression=none`: podsnap compresses better, and finds what is there already only in bytes that
//! nobody compressed.
//!
//! # Device memory
//!
//! A [`DeviceMemory`](device::DeviceMemory) is the memory of a GPU, or whatever else implements [`gpu::Device`]: as a section it is saved with its
//! addresses, as a [target](restore::Target) it takes them back, over all of the device's streams.
//!
//! # Choosing a store
//!
//! | URL | |
//! |-|-|
//! | `/path`, `file:///path` | a directory: durable against power cuts, unless [`OpenOptions::sync`] is off |
//! | `gs://bucket/path` | Google Cloud Storage, with the application's default credentials or `GOOGLE_*` variables; [`OpenOptions::gcs`] has more |
//! | `s3://bucket/path` | Amazon S3 and what speaks its language, with `AWS_*` variables |
//! | `az://container/path` | Azure Blob Storage, with `AZURE_*` variables |
//! | `memory://name` | this process's memory, for tests; gone when it ends |
//!
//! Saving, opening, restoring and verifying never list a bucket; [listing](Store::list) and [removing](Store::remove) do. Any other kind of
//! store is a [`Backend`](store::Backend), handed to [`Store::from_backend`].
//!
//! Whether a bucket of Google's is fit for snapshots says [`GcsBackend::check`](store::GcsBackend::check), with the command that mends each
//! thing that is wrong; how fast any store is, and with what options, [`bench`](bench::bench()).
//!
//! # Running before the bytes are here
//!
//! A [`SectionReader`] fetches, decodes and checks what it is asked for and little more. All readers of a store share what they fetch; with
//! [`Store::with_cache`] all processes of a node do, and the second restore on a node reads nothing from the bucket. On it stand:
//!
//! - [`Snapshot::mount`]: the snapshot as read-only files, from which `runsc restore --image-path` resumes a pod;
//! - [`MappedSection`](userfault::MappedSection): a section as memory of this process;
//! - [`MemoryServer`](userfault::MemoryServer): a section as memory of another process, which handed over its userfaultfd;
//!   [`firecracker`](userfault::firecracker) does it for VMMs that ask as Firecracker does;
//! - [`SharedMemory`](userfault::SharedMemory): a section as a memfd, whose clean pages any number of clones share.
//!
//! What is touched is fetched first, the rest in the background. A page that cannot be had or does not check out is an error to who touches it, never
//! zeros. [`Snapshot::record`] notes what a restore touches and keeps it beside the snapshot; [`WorkingSet::prefetch`] fetches that ahead, the next time.
//!
//! # Inspecting and comparing
//!
//! [`Snapshot::inspect`] says what a snapshot consists of: what it has twice, what it borrows and from whom, and which files and ranges
//! cost most. [`Snapshot::diff`] says what is different in another snapshot. Both read manifests and the trees' entry tables, none of the
//! data. See [`inspect`] and [`diff`](mod@diff).
//!
//! # Verifying, and digests
//!
//! [`Snapshot::verify`] reads and checks all that a snapshot needs, or a sample of it. Restoring checks every chunk, too, and fails rather
//! than write a wrong byte; with [`RestoreOptions::salvage`] it brings back what is undamaged and says what is lost.
//!
//! The hashes in a snapshot all hang on one, its [digest](Snapshot::digest), which [`SaveStats::digest`] tells. Who keeps it elsewhere and
//! [demands](Snapshot::demand_digest) it before restoring need not trust the store.
//!
//! # Running pods from snapshots
//!
//! A [`Catalog`] is for agents and controllers. An agent asks it for the [newest](Catalog::newest) snapshot of a group, whose name is made of what must
//! agree for a restore ([`Requirements`]), says that it [restores](Catalog::begin_restore) it, or notes that one
//! [could not be saved](Catalog::note_failure); none of this lists the bucket. A controller [plans](Catalog::plan_retention) which snapshots have had
//! their time and [carries that out](Catalog::retain), beside any number of agents and other controllers. What users want of both they say in
//! the YAML that [`policy`] reads. The programs in `examples/agent` and `examples/controller` are made of this and of nothing else. [`Statsd`] tells how it
//! all goes.
//!
//! ```
//! # use podsnap::{Input, NewSection, Role};
//! use podsnap::{
//!     CancellationToken, Catalog, CollectOptions, Requirements, RetentionRules, SaveOptions, Store,
//! };
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open("memory://life")?;
//! let catalog = Catalog::new(&store);
//! let pod = serde_json::json!({ "containers": [{ "name": "web", "image": "web:3" }] });
//! let here = Requirements::of_this_node(&pod, "release-20260101.0");
//! let group = here.group("team-a", "web");
//! assert!(catalog.newest(&group).await?.is_none()); // the pod starts anew
//! for id in ["web-1", "web-2", "web-3"] {
//!     let options = SaveOptions {
//!         group: Some(group.clone()),
//!         labels: here.labels(),
//!         ..SaveOptions::default()
//!     };
//!     let mut writer = store.save(&id.parse()?, options).await?;
//! #   let input = Input::stream(id.as_bytes(), "state");
//!     writer.add(NewSection::blob(Role::Kernel, "", input)).await?;
//!     writer.finish().await?;
//! #   tokio::time::sleep(std::time::Duration::from_millis(2)).await;
//! }
//! // Another pod of the same kind, on any node that fits. From here on nobody retires what it starts from.
//! let newest = catalog.newest(&group).await?.expect("three were saved");
//! let snapshot = catalog.begin_restore(newest.id()).await?;
//! assert_eq!(snapshot.id().as_str(), "web-3");
//!
//! // A controller, every ten minutes.
//! let rules = RetentionRules {
//!     max_per_group: Some(2),
//!     ..RetentionRules::default()
//! };
//! let plan = catalog.plan_retention(&rules).await?;
//! let retained = catalog.retain(&plan, &CancellationToken::new()).await;
//! assert_eq!(retained.removed, ["web-1"]);
//! let plan = store.plan_collection(&CollectOptions::default()).await?;
//! store.collect(plan, &CancellationToken::new()).await?; // what it finds goes a day later
//! # Ok(()) }
//! ```
//!
//! # Exports
//!
//! [`Snapshot::export`] writes a snapshot, with all it borrows, to one file. [`Snapshot::open_export`] opens such a file as if it were stored: it can be
//! restored, read and verified as it is, or brought into a store by [`Snapshot::copy_to`], which also copies from store to store.
//!
//! # What is kept in the bucket
//!
//! ```text
//! <path>/<snapshot>/manifest            what the snapshot consists of: its existence is the commit
//! <path>/<snapshot>/pack-<attempt>-<n>  compressed chunks; written once, never changed
//! <path>/<snapshot>/lease               while the snapshot is being written
//! <path>/<snapshot>/working-set         what a restore touched, if one was recorded
//! <path>/<snapshot>/{used,pinned,...}   notes: when it was last used, that it stays, why it failed or goes
//! <path>/heads/<group>                  the newest snapshot of a group
//! ```
//!
//! `SPEC.md`, at the top of the source tree, describes every byte of it. The crate that reads and writes these bytes is here as [`format`](mod@format).

#[doc(inline)]
pub use podsnap_engine::*;
#[doc(inline)]
pub use podsnap_policy as policy;
