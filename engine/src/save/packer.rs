//! Writes encoded frames into packs, in the order in which their batches were announced.
//!
//! Runs as one task beside the pipeline. Its queue is bounded: a store that is slower than the source holds the source back. While a full
//! pack is finished the next one is filled, so that the link to the store never idles.

use std::sync::Arc;

use bytes::Bytes;
use podsnap_format::{
    ChunkId, FRAME_HEADER_LEN, HEADER_LEN, Header, SnapshotId,
    codec::Codec,
    manifest::{Location, PackInfo},
    pack::PackIndexBuilder,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, ErrorKind, Result},
    names,
    progress::Progress,
    store::{Backend, ObjectWriter},
};

/// Encoded batches of about 1 MiB that may wait to be written.
const QUEUE_LEN: usize = 64;

/// A chunk within a batch of frames.
pub(super) struct EncodedChunk {
    pub(super) number: u32,
    pub(super) id: ChunkId,
    pub(super) codec: Codec,
    pub(super) raw_len: u32,
    pub(super) encoded_len: u32,
}

/// Frames one after another, and which chunks they hold.
pub(super) struct EncodedBatch {
    pub(super) frames: Bytes,
    pub(super) chunks: Vec<EncodedChunk>,
}

/// Where a chunk was stored; the pack is counted among the save's own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoredChunk {
    pub(crate) number: u32,
    pub(crate) codec: Codec,
    pub(crate) location: Location,
}

/// What the packer did, when it has ended well.
#[derive(Default)]
pub(crate) struct Packed {
    pub(crate) packs: Vec<PackInfo>,
    pub(crate) chunks: Vec<StoredChunk>,
    /// Bytes of all packs.
    pub(crate) len: u64,
}

/// The packer's waiting end.
pub(crate) struct PackerQueue {
    /// Gone when there are no more batches.
    sender: Option<mpsc::Sender<oneshot::Receiver<EncodedBatch>>>,
    task: JoinHandle<Result<Packed>>,
    stop: CancellationToken,
}

impl PackerQueue {
    /// Starts the packer. `template` is the header of the snapshot's manifest.
    pub(crate) fn start(backend: Arc<dyn Backend>, template: Header, progress: Progress) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let stop = CancellationToken::new();
        let packer = Packer {
            backend,
            template,
            progress,
            open: None,
            begun: 0,
            closing: None,
            packed: Packed::default(),
            stop: stop.clone(),
        };
        Self {
            sender: Some(sender),
            task: tokio::spawn(packer.run(receiver)),
            stop,
        }
    }

    /// Announces the next batch; waits while the queue is full. Call it from a blocking thread.
    pub(super) fn push(&self, batch: oneshot::Receiver<EncodedBatch>) -> Result<()> {
        let sent = self.sender.as_ref().map(|s| s.blocking_send(batch).is_ok());
        accepted(sent)
    }

    /// [`PackerQueue::push`] for asynchronous callers.
    pub(super) async fn push_async(&self, batch: oneshot::Receiver<EncodedBatch>) -> Result<()> {
        let sent = match &self.sender {
            Some(sender) => Some(sender.send(batch).await.is_ok()),
            None => None,
        };
        accepted(sent)
    }

    /// Whether the packer gave up; its error comes from [`PackerQueue::finish`].
    pub(crate) fn has_failed(&self) -> bool {
        self.sender.as_ref().is_some_and(mpsc::Sender::is_closed)
    }

    /// Closes the last pack. To be called once; a caller that stops waiting can still [`abort`](PackerQueue::abort).
    pub(crate) async fn finish(&mut self) -> Result<Packed> {
        self.sender = None;
        let ended = (&mut self.task).await;
        ended.unwrap_or_else(|_| Err(Error::new(ErrorKind::Store, "the packer died")))
    }

    /// Ends the packer, which gives up the pack it was writing; waits until it has ended.
    pub(crate) async fn abort(self) {
        self.stop.cancel();
        drop(self.sender);
        let _ = self.task.await;
    }
}

/// The packer's own error says more; it is returned by [`PackerQueue::finish`].
fn accepted(sent: Option<bool>) -> Result<()> {
    match sent {
        Some(true) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Store,
            "the store stopped taking packs",
        )),
    }
}

struct OpenPack {
    number: u32,
    name: String,
    index: PackIndexBuilder,
    body: PackBody,
}

/// A pack whose bytes have all been written.
struct EndedPack {
    name: String,
    body: PackBody,
}

/// The bytes of a pack so far.
struct PackBody {
    writer: Box<dyn ObjectWriter>,
    len: u64,
    crc32c: u32,
}

struct Packer {
    backend: Arc<dyn Backend>,
    template: Header,
    progress: Progress,
    open: Option<OpenPack>,
    /// Packs that were begun.
    begun: u32,
    /// The pack before the open one, while it is being finished. There is one at most, so that packs come into being in their order.
    closing: Option<JoinHandle<Result<PackInfo>>>,
    packed: Packed,
    stop: CancellationToken,
}

impl Packer {
    async fn run(
        mut self,
        mut batches: mpsc::Receiver<oneshot::Receiver<EncodedBatch>>,
    ) -> Result<Packed> {
        match self.pack(&mut batches).await {
            Ok(()) => Ok(self.packed),
            Err(e) => {
                if let Some(open) = self.open.take() {
                    give_up(&open.name, open.body.writer).await;
                }
                // What is finished in spite of all must be there before it is removed.
                let _ = self.closed().await;
                Err(e)
            }
        }
    }

    async fn pack(
        &mut self,
        batches: &mut mpsc::Receiver<oneshot::Receiver<EncodedBatch>>,
    ) -> Result<()> {
        let stop = self.stop.clone();
        loop {
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::interrupted()),
                batch = batches.recv() => batch,
            };
            let Some(batch) = batch else { break };
            // A batch that never comes belongs to a save that failed and will not be finished.
            let Ok(batch) = batch.await else {
                return Err(Error::new(
                    ErrorKind::Source,
                    "a worker thread died while encoding",
                ));
            };
            self.make_room().await?;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::interrupted()),
                appended = self.append(batch) => appended?,
            }
        }
        // The queue's end may be that of a save that is given up.
        if stop.is_cancelled() {
            return Err(Error::interrupted());
        }
        self.close().await?;
        self.closed().await
    }

    /// Sees to it that a pack is open that is not full.
    async fn make_room(&mut self) -> Result<()> {
        if self.closing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.closed().await?;
        }
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.body.len >= self.backend.pack_len())
        {
            self.close().await?;
        }
        if self.open.is_none() {
            let number = self.begun;
            let open = self
                .open
                .insert(open_pack(&*self.backend, &self.template, number).await?);
            self.begun += 1;
            let header = Bytes::copy_from_slice(&self.template.pack(number).encode());
            open.body.write(header, &Progress::default()).await?;
            debug_assert_eq!(open.body.len, HEADER_LEN as u64);
        }
        Ok(())
    }

    async fn append(&mut self, batch: EncodedBatch) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::new(ErrorKind::Store, "no pack is open"));
        };
        let pack = open.number;
        let mut offset = open.body.len;
        for chunk in &batch.chunks {
            open.index
                .push(&chunk.id, chunk.codec, chunk.raw_len, chunk.encoded_len);
            let location = Location {
                pack,
                offset,
                encoded_len: chunk.encoded_len,
            };
            self.packed.chunks.push(StoredChunk {
                number: chunk.number,
                codec: chunk.codec,
                location,
            });
            offset += FRAME_HEADER_LEN as u64 + u64::from(chunk.encoded_len);
        }
        open.body.write(batch.frames, &self.progress).await
    }

    /// Ends the open pack, and begins to finish it when the one before it is finished. Its bytes are on their way meanwhile.
    async fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return self.closed().await;
        };
        let ended = open.end(&self.progress).await?;
        if let Err(e) = self.closed().await {
            give_up(&ended.name, ended.body.writer).await;
            return Err(e);
        }
        let snapshot = self.template.snapshot.clone();
        self.closing = Some(tokio::spawn(ended.finish(snapshot)));
        Ok(())
    }

    /// Waits until no pack is being finished.
    async fn closed(&mut self) -> Result<()> {
        let Some(closing) = self.closing.take() else {
            return Ok(());
        };
        let died = |_| Err(Error::new(ErrorKind::Store, "the packer died"));
        let pack = closing.await.unwrap_or_else(died)?;
        self.packed.len += pack.length;
        self.packed.packs.push(pack);
        Ok(())
    }
}

impl OpenPack {
    /// Writes the index, which comes last. A pack that cannot be ended is given up.
    async fn end(mut self, progress: &Progress) -> Result<EndedPack> {
        let written = match self.index.finish(self.body.len) {
            Ok(index) => self.body.write(index.into(), progress).await,
            Err(e) => Err(Error::invalid("the pack's index cannot be written").because(e)),
        };
        let sent = match written {
            Ok(()) => self.body.writer.flush().await,
            Err(e) => Err(e),
        };
        if let Err(e) = sent {
            give_up(&self.name, self.body.writer).await;
            return Err(e);
        }
        Ok(EndedPack {
            name: self.name,
            body: self.body,
        })
    }
}

impl EndedPack {
    /// Makes the pack readable.
    async fn finish(self, snapshot: SnapshotId) -> Result<PackInfo> {
        let meta = self.body.writer.finish().await?;
        Ok(PackInfo {
            snapshot,
            name: self.name,
            version: meta.version.0,
            length: self.body.len,
            crc32c: self.body.crc32c,
        })
    }
}

async fn give_up(name: &str, writer: Box<dyn ObjectWriter>) {
    if let Err(error) = writer.abort().await {
        tracing::warn!(pack = name, %error, "an unfinished pack could not be given up");
    }
}

async fn open_pack(backend: &dyn Backend, template: &Header, number: u32) -> Result<OpenPack> {
    let header = template.pack(number);
    let name = header.pack_name().to_string();
    let writer = backend
        .create(&names::object(&header.snapshot, &name))
        .await?;
    Ok(OpenPack {
        number,
        name,
        index: PackIndexBuilder::new(header),
        body: PackBody {
            writer,
            len: 0,
            crc32c: 0,
        },
    })
}

impl PackBody {
    async fn write(&mut self, bytes: Bytes, progress: &Progress) -> Result<()> {
        self.len += bytes.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes);
        progress.add_stored(bytes.len() as u64);
        self.writer.write(bytes).await
    }
}
