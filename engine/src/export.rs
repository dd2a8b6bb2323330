//! Exports: a snapshot as one self-contained file, and back into a store.
//!
//! An export is a manifest with all its frames inside, in the order of the sections, borrowed ones included. Frames are copied
//! as they are, after they were decoded and compared with their ids; nothing is encoded anew in either direction.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write},
    ops::Range,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::{
    FRAME_HEADER_LEN, HEADER_LEN, Header, Kind, SnapshotId,
    codec::Decoder,
    manifest::{
        EncodedManifest, Location, ManifestBuilder, PackInfo, SectionBuilder, SectionInfo, Segment,
    },
};
use tokio_util::sync::CancellationToken;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    frames,
    progress::Progress,
    restore::plan::{Plan, PlannedChunk, PlannedRead},
    save::{SaveOptions, SaveStats, SnapshotWriter},
    snapshot::Snapshot,
};

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ExportStats {
    /// The snapshot.
    pub snapshot: String,
    /// Digest of the export. It differs from the snapshot's, because the frames stand elsewhere.
    pub digest: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Chunks in it.
    pub chunks: u64,
}

/// Frames of some chunks, one after another, checked.
pub(crate) struct CopiedFrames {
    pub(crate) bytes: Vec<u8>,
    /// Numbers in the list of planned chunks.
    pub(crate) chunks: std::ops::Range<usize>,
}

impl Snapshot {
    /// Writes the snapshot to a new file, which appears when it is whole.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use podsnap::{Input, NewSection, Role, SaveOptions};
    /// # let store = podsnap::Store::open("memory://export")?;
    /// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
    /// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    /// # for name in ["", "second"] {
    /// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
    /// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
    /// # }
    /// # writer.finish().await?;
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let file = dir.path().join("web-1.podsnap");
    /// use podsnap::{CancellationToken, Progress, Snapshot, Store};
    ///
    /// let snapshot = store.snapshot(&"web-1".parse()?).await?;
    /// snapshot.export(&store, &file, &Progress::default(), &CancellationToken::new()).await?;
    ///
    /// // Elsewhere.
    /// let store = Store::open("memory://elsewhere")?;
    /// let exported = Snapshot::open_export(&file, None).await?;
    /// exported.copy_to(&store, exported.id(), SaveOptions::default()).await?;
    /// assert_eq!(store.list().await?[0].snapshot, "web-1");
    /// # Ok(()) }
    /// ```
    pub async fn export(
        &self,
        store: &Store,
        path: &Path,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<ExportStats> {
        let temporary =
            path.with_added_extension(format!("partial-{}", uuid::Uuid::new_v4().simple()));
        let failed = |e| Error::target(temporary.display(), e);
        if path.exists() {
            return Err(
                Error::target(path.display(), std::io::ErrorKind::AlreadyExists.into())
                    .hint("choose another file"),
            );
        }
        let file = File::create_new(&temporary).map_err(failed)?;
        let _guard = RemoveOnDrop(&temporary);
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let name = temporary.display().to_string();
        let stats = self
            .write_export(store, &mut out, &name, progress, cancel)
            .await?;
        let file = out.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)?;
        fs::hard_link(&temporary, path).map_err(|e| Error::target(path.display(), e))?;
        Ok(stats)
    }

    /// Writes the snapshot to any stream.
    pub async fn export_to(
        &self,
        store: &Store,
        out: &mut (dyn Write + Send),
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<ExportStats> {
        self.write_export(store, out, "the export", progress, cancel)
            .await
    }

    /// Writes the export to `out`, which errors call `name`.
    async fn write_export(
        &self,
        store: &Store,
        out: &mut (dyn Write + Send),
        name: &str,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<ExportStats> {
        let failed = |e| Error::target(name, e);
        let all = self.all_segments().await?;
        let (chunks, reads) = plan_all(&all).into_reads(self.backend.read_len());
        let chunks = Arc::new(chunks);
        progress.add_total(chunks.iter().map(|c| c.frame().end - c.frame().start).sum());
        let header = Header {
            kind: Kind::Export,
            pack_number: 0,
            ..self.directory().header.clone()
        };
        let head = header.encode();
        out.write_all(&head).map_err(failed)?;
        let mut crc = crc32c::crc32c(&head);
        let mut at = HEADER_LEN as u64;
        let mut moved = HashMap::new();
        let mut frames = self
            .copy_frames(store, chunks.clone(), reads, progress)
            .boxed();
        loop {
            let next = tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(Error::interrupted()),
                next = frames.try_next() => next?,
            };
            let Some(copied) = next else { break };
            out.write_all(&copied.bytes).map_err(failed)?;
            progress.add_restored(copied.bytes.len() as u64);
            crc = crc32c::crc32c_append(crc, &copied.bytes);
            for planned in &chunks[copied.chunks] {
                let old = &planned.chunk.location;
                let new = Location {
                    pack: 0,
                    offset: at,
                    encoded_len: old.encoded_len,
                };
                moved.insert((old.pack, old.offset), new);
                at += FRAME_HEADER_LEN as u64 + u64::from(old.encoded_len);
            }
        }
        let pack = PackInfo {
            snapshot: self.id().clone(),
            name: String::new(),
            version: String::new(),
            length: at,
            crc32c: crc,
        };
        let sealed = relocated(
            header,
            at,
            self.directory().metadata.clone(),
            all,
            vec![pack],
            &moved,
        )?;
        // The builder's bytes begin behind the frames.
        out.write_all(&sealed.bytes).map_err(failed)?;
        out.flush().map_err(failed)?;
        Ok(ExportStats {
            snapshot: self.id().to_string(),
            digest: sealed.digest.to_string(),
            bytes: at + sealed.bytes.len() as u64,
            chunks: chunks.len() as u64,
        })
    }

    /// Copies the snapshot, a stored or an exported one, into `store` under `id`, with all it borrows.
    pub async fn copy_to(
        &self,
        store: &Store,
        id: &SnapshotId,
        options: SaveOptions,
    ) -> Result<SaveStats> {
        let all = self.all_segments().await?;
        let (chunks, reads) = plan_all(&all).into_reads(self.backend.read_len());
        let chunks = Arc::new(chunks);
        let (progress, cancel) = (options.progress.clone(), options.cancel.clone());
        progress.add_total(chunks.iter().map(|c| c.frame().end - c.frame().start).sum());
        let mut writer = SnapshotWriter::start(store, id.clone(), options).await?;
        let mut frames = self
            .copy_frames(store, chunks.clone(), reads, &progress)
            .boxed();
        let copied = async {
            while let Some(copied) = frames.try_next().await? {
                progress.add_restored(copied.bytes.len() as u64);
                writer.append_frames(copied, &chunks).await?;
            }
            Ok(())
        };
        let done = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::interrupted()),
            done = copied => done,
        };
        match done {
            Ok(()) => writer.finish_copy(self, all, &chunks).await,
            Err(e) => Err(writer.fail(e).await),
        }
    }

    async fn all_segments(&self) -> Result<Vec<(SectionInfo, Vec<Segment>)>> {
        let mut all = Vec::new();
        for (number, info) in self.sections().iter().enumerate() {
            let bare = SectionInfo {
                segments: Vec::new(),
                ..info.clone()
            };
            all.push((bare, self.load_segments(number).await?));
        }
        Ok(all)
    }

    /// The frames of all planned chunks, in order, checked on the worker pool while later ones are read.
    fn copy_frames<'a>(
        &'a self,
        store: &'a Store,
        chunks: Arc<Vec<PlannedChunk>>,
        reads: Vec<PlannedRead>,
        progress: &'a Progress,
    ) -> impl futures::Stream<Item = Result<CopiedFrames>> + 'a {
        stream::iter(reads)
            .map(move |read| {
                let chunks = chunks.clone();
                async move {
                    let bytes = self.read_pack(read.pack, read.range.clone()).await?;
                    progress.add_read(bytes.len() as u64);
                    self.checked_frames(store, chunks, read, bytes).await
                }
            })
            .buffered(self.backend.reads_at_once())
    }

    async fn checked_frames(
        &self,
        store: &Store,
        chunks: Arc<Vec<PlannedChunk>>,
        read: PlannedRead,
        bytes: Bytes,
    ) -> Result<CopiedFrames> {
        let key = self.key.clone();
        let (all, range, numbers) = (chunks.clone(), read.range.clone(), read.chunks.clone());
        let checked_bytes = bytes.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        store.pool().spawn_fifo(move || {
            let (mut decoder, mut raw) = (Decoder::new(), Vec::new());
            let wrong = numbers.filter(|number| {
                let planned = &all[*number];
                let encoded = &checked_bytes[within(&planned.frame(), &range)];
                let chunk = &planned.chunk;
                frames::decode_checked(encoded, chunk, key.as_ref(), &mut decoder, &mut raw)
                    .is_err()
            });
            let _ = sender.send(wrong.collect::<Vec<usize>>());
        });
        let wrong = receiver
            .await
            .map_err(|_| Error::new(ErrorKind::Store, "a worker thread died while copying"))?;
        let mut copied = Vec::with_capacity(bytes.len());
        for number in read.chunks.clone() {
            let planned = &chunks[number];
            if wrong.binary_search(&number).is_ok() {
                let frame = self.read_chunk(&planned.chunk, &mut Vec::new()).await?;
                copied.extend_from_slice(&frame);
            } else {
                copied.extend_from_slice(&bytes[within(&planned.frame(), &read.range)]);
            }
        }
        Ok(CopiedFrames {
            bytes: copied,
            chunks: read.chunks,
        })
    }
}

/// Where a frame stands in the bytes of a read.
fn within(frame: &Range<u64>, read: &Range<u64>) -> Range<usize> {
    (frame.start - read.start) as usize..(frame.end - read.start) as usize
}

fn plan_all(all: &[(SectionInfo, Vec<Segment>)]) -> Plan {
    let mut plan = Plan::default();
    for (number, (_, segments)) in all.iter().enumerate() {
        plan.add(number as u32, segments);
    }
    plan
}

/// The manifest of the same sections with their chunks at new places.
pub(crate) fn relocated(
    header: Header,
    position: u64,
    metadata: String,
    all: Vec<(SectionInfo, Vec<Segment>)>,
    packs: Vec<PackInfo>,
    moved: &HashMap<(u32, u64), Location>,
) -> Result<EncodedManifest> {
    let refused = |e| Error::invalid("the manifest cannot be written").because(e);
    let mut builder = ManifestBuilder::new(header, position);
    for (info, segments) in all {
        let mut built = SectionBuilder::new();
        for mut segment in segments {
            for chunk in &mut segment.chunks {
                let old = (chunk.location.pack, chunk.location.offset);
                chunk.location = *moved
                    .get(&old)
                    .expect("every chunk of the sections was planned and copied");
            }
            built.push(&segment).map_err(refused)?;
        }
        builder.section(info, built);
    }
    builder.finish(&metadata, &packs).map_err(refused)
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}
