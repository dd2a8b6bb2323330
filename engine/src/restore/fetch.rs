//! Carrying out a plan: reads under way at once, chunks decoded and checked on the worker pool, each exactly once.
//!
//! Memory is bounded by the number of reads at once. What to do with a chunk, right or damaged, is up to the caller.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::codec::Decoder;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, PlannedChunk, PlannedRead};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    frames,
    progress::Progress,
    snapshot::Snapshot,
};

/// A chunk that arrived: its bytes, or why it cannot be had.
pub(crate) type Arrived<'a> = std::result::Result<&'a [u8], Error>;

/// Takes each chunk on some worker thread. An error ends everything.
pub(crate) type Sink = Arc<dyn Fn(&PlannedChunk, Arrived<'_>) -> Result<()> + Send + Sync>;

/// Fetches every chunk of `plan` and gives it to `sink`.
pub(crate) async fn fetch(
    store: &Store,
    snapshot: &Snapshot,
    plan: Plan,
    sink: Sink,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<()> {
    let backend = snapshot.backend.clone();
    let (chunks, reads) = plan.into_reads(backend.read_len());
    let chunks = Arc::new(chunks);
    let work = stream::iter(reads)
        .map(|read| {
            fetch_one(
                store,
                snapshot,
                chunks.clone(),
                read,
                sink.clone(),
                progress,
            )
        })
        .buffer_unordered(backend.reads_at_once())
        .try_collect::<()>();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::interrupted()),
        done = work => done,
    }
}

async fn fetch_one(
    store: &Store,
    snapshot: &Snapshot,
    chunks: Arc<Vec<PlannedChunk>>,
    read: PlannedRead,
    sink: Sink,
    progress: &Progress,
) -> Result<()> {
    match snapshot.read_pack(read.pack, read.range.clone()).await {
        Ok(bytes) => {
            progress.add_read(bytes.len() as u64);
            decode(store, snapshot, chunks, read, bytes, sink).await
        }
        // A pack that is short: what of it can still be had is had frame by frame, if the sink goes on.
        Err(e) if e.kind() == ErrorKind::Damaged && read.chunks.len() > 1 => {
            for number in read.chunks.clone() {
                let one = PlannedRead {
                    pack: read.pack,
                    range: chunks[number].frame(),
                    chunks: number..number + 1,
                };
                let (chunks, sink) = (chunks.clone(), sink.clone());
                // One more level only: a read of one chunk is not split.
                Box::pin(fetch_one(store, snapshot, chunks, one, sink, progress)).await?;
            }
            Ok(())
        }
        Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Missing) => {
            let (kind, what) = (e.kind(), e.to_string());
            sink(&chunks[read.chunks.start], Err(e))?;
            // A pack that is gone is not asked for again.
            for planned in &chunks[read.chunks.start + 1..read.chunks.end] {
                sink(planned, Err(Error::new(kind, what.clone())))?;
            }
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// Decodes the chunks of one read on the worker pool and gives them to the sink there.
async fn decode(
    store: &Store,
    snapshot: &Snapshot,
    chunks: Arc<Vec<PlannedChunk>>,
    read: PlannedRead,
    bytes: Bytes,
    sink: Sink,
) -> Result<()> {
    let key = snapshot.key.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (all, decoded_to) = (chunks.clone(), sink.clone());
    store.pool().spawn_fifo(move || {
        let decoded = with_decoder(|decoder, raw| {
            let mut wrong = Vec::new();
            for number in read.chunks {
                let planned = &all[number];
                let frame = planned.frame();
                let start = (frame.start - read.range.start) as usize;
                let encoded = &bytes[start..start + (frame.end - frame.start) as usize];
                match frames::decode_checked(encoded, &planned.chunk, key.as_ref(), decoder, raw) {
                    Ok(()) => decoded_to(planned, Ok(raw))?,
                    Err(_) => wrong.push(number),
                }
            }
            Ok(wrong)
        });
        let _ = sender.send(decoded);
    });
    let wrong = receiver.await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::Target,
            "a worker thread died while decoding or writing to the target",
        ))
    })?;
    for number in wrong {
        let planned = &chunks[number];
        let mut raw = Vec::new();
        match snapshot.read_chunk(&planned.chunk, &mut raw).await {
            Ok(_) => sink(planned, Ok(&raw))?,
            Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Missing) => {
                sink(planned, Err(e))?
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Runs `work` with this thread's decoder and a buffer for one chunk.
fn with_decoder<T>(work: impl FnOnce(&mut Decoder, &mut Vec<u8>) -> T) -> T {
    use std::cell::RefCell;
    thread_local!(static DECODER: RefCell<(Decoder, Vec<u8>)> = RefCell::new((Decoder::new(), Vec::new())));
    DECODER.with_borrow_mut(|(decoder, raw)| work(decoder, raw))
}
