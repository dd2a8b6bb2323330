//! Writes encoded frames into packs, in the order in which their batches were announced.
//!
//! Runs as one task beside the pipeline. Its queue is bounded: a store that is slower than the source holds the source back.

use std::sync::Arc;

use bytes::Bytes;
use podsnap_format::{
    ChunkId, FRAME_HEADER_LEN, HEADER_LEN, Header,
    codec::Codec,
    manifest::{Location, PackInfo},
    pack::PackIndexBuilder,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

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
    sender: mpsc::Sender<oneshot::Receiver<EncodedBatch>>,
    task: JoinHandle<Result<Packed>>,
}

impl PackerQueue {
    /// Starts the packer. `template` is the header of the snapshot's manifest.
    pub(crate) fn start(backend: Arc<dyn Backend>, template: Header, progress: Progress) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let packer = Packer {
            backend,
            template,
            progress,
            open: None,
            packed: Packed::default(),
        };
        Self {
            sender,
            task: tokio::spawn(packer.run(receiver)),
        }
    }

    /// Announces the next batch; waits while the queue is full. Call it from a blocking thread.
    pub(super) fn push(&self, batch: oneshot::Receiver<EncodedBatch>) -> Result<()> {
        // The packer's own error says more; it is returned by finish().
        self.sender
            .blocking_send(batch)
            .map_err(|_| Error::new(ErrorKind::Store, "the store stopped taking packs"))
    }

    /// [`PackerQueue::push`] for asynchronous callers.
    pub(super) async fn push_async(&self, batch: oneshot::Receiver<EncodedBatch>) -> Result<()> {
        self.sender
            .send(batch)
            .await
            .map_err(|_| Error::new(ErrorKind::Store, "the store stopped taking packs"))
    }

    /// Whether the packer gave up; its error comes from [`PackerQueue::finish`].
    pub(crate) fn has_failed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Closes the last pack.
    pub(crate) async fn finish(self) -> Result<Packed> {
        drop(self.sender);
        self.task
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Store, "the packer died")))
    }

    /// Ends the packer wherever it is; waits until it has ended.
    pub(crate) async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

struct OpenPack {
    name: String,
    index: PackIndexBuilder,
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
    packed: Packed,
}

impl Packer {
    async fn run(
        mut self,
        mut batches: mpsc::Receiver<oneshot::Receiver<EncodedBatch>>,
    ) -> Result<Packed> {
        while let Some(batch) = batches.recv().await {
            // A batch that never comes belongs to a save that failed and will not be finished.
            let Ok(batch) = batch.await else {
                return Err(Error::new(
                    ErrorKind::Source,
                    "a worker thread died while encoding",
                ));
            };
            self.append(batch).await?;
        }
        self.close().await?;
        Ok(self.packed)
    }

    async fn append(&mut self, batch: EncodedBatch) -> Result<()> {
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.body.len >= self.backend.pack_len())
        {
            self.close().await?;
        }
        let pack = self.packed.packs.len() as u32;
        let open = match &mut self.open {
            Some(open) => open,
            slot => slot.insert(open_pack(&*self.backend, &self.template, pack).await?),
        };
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

    async fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        let index = open.index.finish(open.body.len);
        let index =
            index.map_err(|e| Error::invalid("the pack's index cannot be written").because(e))?;
        open.body.write(index.into(), &self.progress).await?;
        let PackBody {
            writer,
            len,
            crc32c,
        } = open.body;
        let meta = writer.finish().await?;
        self.packed.len += len;
        self.packed.packs.push(PackInfo {
            snapshot: self.template.snapshot.clone(),
            name: open.name,
            version: meta.version.0,
            length: len,
            crc32c,
        });
        Ok(())
    }
}

async fn open_pack(backend: &dyn Backend, template: &Header, number: u32) -> Result<OpenPack> {
    let header = template.pack(number);
    let name = header.pack_name().to_string();
    let object = names::object(&header.snapshot, &name);
    let bytes = Bytes::copy_from_slice(&header.encode());
    let writer = backend.create(&object).await?;
    let mut body = PackBody {
        writer,
        len: 0,
        crc32c: 0,
    };
    body.write(bytes, &Progress::default()).await?;
    debug_assert_eq!(body.len, HEADER_LEN as u64);
    Ok(OpenPack {
        name,
        index: PackIndexBuilder::new(header),
        body,
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
