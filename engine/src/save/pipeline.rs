//! One section through a save: segments are read and cut in parallel, deduplicated in order, encoded in parallel, packed in order.
//!
//! The coordinating thread owns the index and does the work that must be in order, which is little. Cutting and encoding
//! run on the worker pool. The buffer pool bounds what is read ahead, the packer's queue what waits to be written; both
//! push back to the source.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use podsnap_format::{
    ChunkId,
    codec::{Dtype, Encoder, Policy},
    frame::append_frame,
};

use super::{
    ahead::{Ahead, ReadAhead},
    buffers::{Buffer, BufferPool},
    cut::{Cutter, Piece, PieceKind},
    grow::{self, Grown, GrownChunk, Known},
    index::{Lookup, Place, SaveIndex},
    packer::{EncodedBatch, EncodedChunk, PackerQueue},
    proof::Proofs,
};
use crate::{
    base::{Content, IdMap},
    chunking::SEGMENT_LEN,
    error::{Error, Result},
    progress::Progress,
    source::{Input, SectionStream, Source},
};

/// Raw bytes that are encoded as one task.
const BATCH_LEN: usize = 1 << 20;

/// Batches of frames that may be encoded or wait to be written.
const BATCHES: usize = 32;

/// The memory of a save.
pub(super) struct Buffers {
    segments: BufferPool,
    frames: BufferPool,
}

impl Buffers {
    /// Enough for `threads` workers to be busy: some 4 MiB for each of them and for three more, and 1 MiB for each batch.
    pub(super) fn for_threads(threads: usize) -> Self {
        Self {
            segments: BufferPool::new(threads + 3),
            frames: BufferPool::new(BATCHES.max(4 * threads)),
        }
    }
}

/// A segment that was read and cut.
struct CutSegment {
    buffer: Buffer,
    pieces: Vec<Piece>,
}

/// Everything one section's way through the save needs.
pub(super) struct Pipeline<'a> {
    pub(super) pool: &'a rayon::ThreadPool,
    pub(super) buffers: &'a Buffers,
    pub(super) packer: &'a PackerQueue,
    pub(super) index: &'a mut SaveIndex,
    pub(super) progress: &'a Progress,
    pub(super) cutter: Arc<Cutter>,
    /// Kept from one segment to the next: a chunk that crosses their border is asked for on both sides.
    pub(super) proofs: Proofs,
    pub(super) policy: Policy,
    pub(super) dtype: Option<Dtype>,
    pub(super) cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Pipeline<'_> {
    /// Runs the section through; its extents are then in the index's last section. Returns the length of the table at a stream's end.
    pub(super) fn run(mut self, input: Input) -> Result<u64> {
        match input {
            Input::Source(source) => self.run_source(&source).map(|()| 0),
            Input::Stream(stream, name) => self.run_stream(stream, name),
        }
    }

    fn run_source(&mut self, source: &Arc<dyn Source>) -> Result<()> {
        let len = source.len();
        let mut pending = VecDeque::new();
        let mut next = 0;
        while next < len || !pending.is_empty() {
            // The pool has a buffer for each segment under way; one more would wait for ever.
            while next < len && pending.len() < self.segments_ahead() {
                let this = (len - next).min(SEGMENT_LEN as u64) as usize;
                pending.push_back(self.spawn_read_and_cut(source, next, this));
                next += this as u64;
            }
            if let Some(first) = pending.pop_front() {
                self.take_in(receive(&first)?)?;
            }
        }
        source.check_unchanged()
    }

    /// Segments that may be read or cut at once: one for each thread and one that waits.
    fn segments_ahead(&self) -> usize {
        self.pool.current_num_threads() + 1
    }

    fn spawn_read_and_cut(
        &self,
        source: &Arc<dyn Source>,
        offset: u64,
        len: usize,
    ) -> Receiver<Result<CutSegment>> {
        let (cutter, source) = (self.cutter.clone(), source.clone());
        let mut buffer = self.buffers.segments.take();
        buffer.resize(len, 0);
        let (sender, receiver) = bounded(1);
        self.pool.spawn_fifo(move || {
            let result = source.read_at(&mut buffer, offset).map(|()| {
                let pieces = cutter.cut(&buffer, offset);
                CutSegment { buffer, pieces }
            });
            // Nobody waits any more when the save has failed elsewhere.
            let _ = sender.send(result);
        });
        receiver
    }

    fn run_stream(&mut self, stream: Box<dyn SectionStream>, name: String) -> Result<u64> {
        let ahead = ReadAhead::start(stream, name, self.buffers.segments.clone())?;
        let mut pending: VecDeque<Receiver<CutSegment>> = VecDeque::new();
        let mut offset = 0;
        loop {
            let Ahead {
                buffer,
                table_length,
            } = ahead.next(self.cancelled)?;
            if !buffer.is_empty() {
                let (cutter, len) = (self.cutter.clone(), buffer.len());
                let (sender, receiver) = bounded(1);
                self.pool.spawn_fifo(move || {
                    let pieces = cutter.cut(&buffer, offset);
                    let _ = sender.send(CutSegment { buffer, pieces });
                });
                pending.push_back(receiver);
                offset += len as u64;
            }
            let ended = table_length.is_some();
            while ended && !pending.is_empty() || pending.len() >= self.segments_ahead() {
                let first = pending.pop_front().expect("checked");
                self.take_in(first.recv().map_err(|_| worker_died())?)?;
            }
            if let Some(table_length) = table_length {
                return Ok(table_length);
            }
        }
    }

    fn check_cancelled(&self) -> Result<()> {
        if (self.cancelled)() {
            Err(Error::interrupted())
        } else {
            Ok(())
        }
    }

    /// Deduplicates a segment's pieces against everything before them and sends the new chunks on.
    fn take_in(&mut self, segment: CutSegment) -> Result<()> {
        self.check_cancelled()?;
        let buffer = Arc::new(segment.buffer);
        let mut batch = Batch::default();
        let mut pieces = segment.pieces.as_slice();
        while let Some((piece, rest)) = pieces.split_first() {
            match piece.kind {
                PieceKind::Zero => {
                    self.section().push(piece.len as u64, Content::Zero);
                    self.progress.add_zero(piece.len as u64);
                    pieces = rest;
                }
                PieceKind::BaseRange {
                    chunk,
                    start,
                    whole_at,
                } => {
                    self.base_range(chunk, start, whole_at, piece.len as u64);
                    pieces = rest;
                }
                PieceKind::Chunk(id) if self.index.knows(&id) => {
                    self.chunk(
                        id,
                        piece.start..piece.start + piece.len,
                        &buffer,
                        &mut batch,
                    )?;
                    pieces = rest;
                }
                PieceKind::Chunk(_) => {
                    let (run, rest) = pieces.split_at(self.unknown_count(pieces));
                    self.unknown_run(run, rest.first(), &buffer, &mut batch)?;
                    pieces = rest;
                }
            }
        }
        self.flush(&buffer, &mut batch)
    }

    /// How many chunks that nobody knows stand at the start of `pieces`. Where one repeats an earlier one, the run ends behind
    /// that earlier one: once it is taken in, the repetition is a known chunk, and growing starts from it.
    fn unknown_count(&self, pieces: &[Piece]) -> usize {
        let mut run = IdMap::default();
        for (number, piece) in pieces.iter().enumerate() {
            let PieceKind::Chunk(id) = piece.kind else {
                return number;
            };
            if self.index.knows(&id) {
                return number;
            }
            if let Some(first) = run.insert(id, number) {
                return first + 1;
            }
        }
        pieces.len()
    }

    fn section(&mut self) -> &mut super::index::SavedSection {
        self.index.sections.last_mut().expect("a section was begun")
    }

    fn place(&self) -> Place {
        let section = self.index.sections.len() - 1;
        Place {
            section: section as u32,
            offset: self.index.sections[section].len,
        }
    }

    fn base_range(&mut self, base_chunk: u32, start: u32, whole_at: u64, len: u64) {
        let place = Place {
            offset: whole_at,
            ..self.place()
        };
        let chunk = self.index.enter_base(base_chunk, place);
        self.section().push(len, Content::Chunk { chunk, start });
        self.progress.add_deduplicated_base(len);
    }

    /// Takes in a run of chunks that nobody knows, after trying to grow the duplicates on either side into it.
    fn unknown_run(
        &mut self,
        run: &[Piece],
        next: Option<&Piece>,
        buffer: &Arc<Buffer>,
        batch: &mut Batch,
    ) -> Result<()> {
        let (first, last) = (run[0], run[run.len() - 1]);
        let whole = first.start..last.start + last.len;
        let here = self.place();
        let behind = here.after(whole.len() as u64);
        let key = self.cutter.key.clone();
        let mut grower = grow::Grower {
            index: self.index,
            proofs: &mut self.proofs,
            key: key.as_ref(),
        };
        let front = known_before(grower.index, here)
            .map(|known| grower.forward(&buffer[whole.clone()], known, here))
            .find(|grown| !grown.is_empty())
            .unwrap_or_default();
        let middle_start = whole.start + grow::total(&front);
        let back = known_behind(grower.index, next)
            .map(|known| grower.backward(&buffer[middle_start..whole.end], known, behind))
            .find(|grown| !grown.is_empty())
            .unwrap_or_default();
        let middle = middle_start..whole.end - grow::total(&back);
        self.ranges(&front);
        for piece in run {
            let range = piece.start.max(middle.start)..(piece.start + piece.len).min(middle.end);
            if range.is_empty() {
                continue;
            }
            let id = match piece.kind {
                PieceKind::Chunk(id) if range.len() == piece.len => id,
                _ => ChunkId::of(&buffer[range.clone()], key.as_ref()),
            };
            self.chunk(id, range, buffer, batch)?;
        }
        self.ranges(&back);
        Ok(())
    }

    fn ranges(&mut self, grown: &[Grown]) {
        for part in grown {
            let chunk = match part.chunk {
                GrownChunk::Saved(chunk) => chunk,
                GrownChunk::Base { chunk, whole_at } => self.index.enter_base(chunk, whole_at),
            };
            self.section().push(
                part.len as u64,
                Content::Chunk {
                    chunk,
                    start: part.start,
                },
            );
            match self.index.chunks[chunk as usize].base {
                Some(_) => self.progress.add_deduplicated_base(part.len as u64),
                None => self.progress.add_deduplicated_own(part.len as u64),
            }
        }
    }

    /// Takes in one whole chunk, new or known.
    fn chunk(
        &mut self,
        id: ChunkId,
        range: Range<usize>,
        buffer: &Arc<Buffer>,
        batch: &mut Batch,
    ) -> Result<()> {
        let place = self.place();
        let len = range.len() as u64;
        let number = match self.index.enter(id, range.len() as u32, place) {
            Lookup::Known(number) => {
                match self.index.chunks[number as usize].base {
                    Some(_) => self.progress.add_deduplicated_base(len),
                    None => self.progress.add_deduplicated_own(len),
                }
                number
            }
            Lookup::New(number) => {
                batch.len += range.len();
                batch.chunks.push((number, id, range));
                self.progress.add_new(len);
                number
            }
        };
        self.section().push(
            len,
            Content::Chunk {
                chunk: number,
                start: 0,
            },
        );
        if batch.len >= BATCH_LEN {
            self.flush(buffer, batch)
        } else {
            Ok(())
        }
    }

    /// Sends the batch to be encoded, and its result to the packer, in this order.
    fn flush(&mut self, buffer: &Arc<Buffer>, batch: &mut Batch) -> Result<()> {
        if batch.chunks.is_empty() {
            return Ok(());
        }
        let (buffer, Batch { chunks, len }) = (buffer.clone(), std::mem::take(batch));
        let (policy, dtype) = (self.policy, self.dtype);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.packer.push(receiver)?;
        let mut frames = self.buffers.frames.take();
        self.pool.spawn_fifo(move || {
            frames.clear();
            frames.reserve(len + chunks.len() * podsnap_format::FRAME_HEADER_LEN);
            let chunks = with_encoder(policy, |encoder| {
                let encode = |(number, id, range): (u32, ChunkId, Range<usize>)| {
                    let before = frames.len();
                    let codec = append_frame(&mut frames, &buffer[range.clone()], encoder, dtype);
                    let encoded_len =
                        (frames.len() - before - podsnap_format::FRAME_HEADER_LEN) as u32;
                    EncodedChunk {
                        number,
                        id,
                        codec,
                        raw_len: range.len() as u32,
                        encoded_len,
                    }
                };
                chunks.into_iter().map(encode).collect()
            });
            drop(buffer);
            let frames = Bytes::from_owner(frames);
            let _ = sender.send(EncodedBatch { frames, chunks });
        });
        Ok(())
    }
}

/// The places, in this save and in the base, that follow on the bytes just before `here`.
fn known_before(index: &SaveIndex, here: Place) -> impl Iterator<Item = Known> + use<> {
    let places = || {
        let last = index.sections[here.section as usize].extents.last()?;
        let Content::Chunk { chunk, start } = last.content else {
            return None;
        };
        let known = &index.chunks[chunk as usize];
        let end = u64::from(start) + last.len;
        let saved = known.whole_at.after(end);
        let base = known.base.and_then(|chunk| index.base_place(chunk));
        Some((
            (saved != here).then_some(Known::Saved(saved)),
            base.map(|known| known.after(end)),
        ))
    };
    let (saved, base) = places().unwrap_or_default();
    saved.into_iter().chain(base)
}

/// The places, in this save and in the base, that bytes before `next` would have to agree with.
fn known_behind(index: &SaveIndex, next: Option<&Piece>) -> impl Iterator<Item = Known> + use<> {
    let id = next.and_then(|piece| match piece.kind {
        PieceKind::Chunk(id) => Some(id),
        _ => None,
    });
    let saved = id
        .and_then(|id| index.met(&id))
        .map(|chunk| Known::Saved(index.chunks[chunk as usize].whole_at));
    let base = id
        .and_then(|id| index.base.find(&id))
        .and_then(|chunk| index.base_place(chunk));
    saved.into_iter().chain(base)
}

/// New chunks of one segment that are encoded together.
#[derive(Default)]
struct Batch {
    chunks: Vec<(u32, ChunkId, Range<usize>)>,
    len: usize,
}

fn receive(receiver: &Receiver<Result<CutSegment>>) -> Result<CutSegment> {
    receiver.recv().map_err(|_| worker_died())?
}

fn worker_died() -> Error {
    Error::new(crate::ErrorKind::Source, "a worker thread died")
        .hint("this is a defect of podsnap: please report it")
}

/// Runs `work` with this thread's encoder for `policy`; encoders own large tables and are kept.
fn with_encoder<T>(policy: Policy, work: impl FnOnce(&mut Encoder) -> T) -> T {
    use std::cell::RefCell;
    thread_local!(static ENCODER: RefCell<Option<(Policy, Encoder)>> = const { RefCell::new(None) });
    ENCODER.with_borrow_mut(|slot| {
        let encoder = match slot {
            Some((kept, encoder)) if *kept == policy => encoder,
            _ => &mut slot.insert((policy, Encoder::new(policy))).1,
        };
        work(encoder)
    })
}
