//! Fetching ahead of who will ask: ranges in the order given, many reads at once, frames that lie near each other in one.
//!
//! What is fetched too far ahead pushes out what was fetched just before it, and all of it is fetched twice. So no more than half of what is
//! kept in memory is filled with chunks that nobody has asked for yet ([`Unused`]); as they are used in about the order in
//! which they came, what memory gives up first is then what was used. Where that half is full, a node's cache
//! takes what follows, up to half of its own length; after that [`replay`] waits until half of what is in memory has been used,
//! and [`prefetch`] ends.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use podsnap_format::manifest::Chunk;
use tokio::sync::Notify;

use super::{
    Priority, Shared,
    chunks::Found,
    fetch::{self, Reading},
    map::Piece,
    node_cache::NodeCache,
    reader::{SectionReader, chunks},
};
use crate::{error::Result, snapshot::Snapshot};

/// Bytes of chunks that are sorted by where they are stored and then fetched together. More find more neighbours, and keep the order less.
const WINDOW_LEN: u64 = 16 << 20;

/// Windows under way at once: those before are being decoded when the next one is asked for.
const WINDOWS: usize = 4;

/// Unneeded bytes between two frames that are read along: they cost less than the round trip of another request, of which only so many are under
/// way at once.
const MAX_GAP: u64 = 128 << 10;

/// Ranges whose extent maps are loaded together.
const RANGES_AT_ONCE: usize = 1024;

/// Bytes of a range that are looked at at once.
const MAX_PART_LEN: u64 = 16 << 20;

/// What a chunk is fetched for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// Somebody has asked for it.
    Use,
    /// To be in memory when somebody asks.
    Memory(Unused),
    /// To be on the node's disk when somebody asks.
    Disk,
}

/// Bytes in memory, or on their way there, that nobody has asked for yet.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    len: AtomicU64,
    fewer: Notify,
}

/// Bytes that count as unused until this is dropped: they are used, or pushed out, or do not come.
#[derive(Debug)]
pub(super) struct Unused {
    ahead: Arc<Ahead>,
    len: u64,
}

impl Ahead {
    fn count(self: &Arc<Self>, len: u64) -> Unused {
        self.len.fetch_add(len, Relaxed);
        Unused {
            ahead: self.clone(),
            len,
        }
    }

    /// Waits until no more than `most` bytes are unused.
    async fn at_most(&self, most: u64) {
        loop {
            let fewer = self.fewer.notified();
            if self.len.load(Relaxed) <= most {
                return;
            }
            fewer.await;
        }
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        self.ahead.len.fetch_sub(self.len, Relaxed);
        self.ahead.fewer.notify_waiters();
    }
}

/// Fetches as much of the ranges of a section as there is room for.
pub(super) async fn prefetch(reader: &SectionReader, ranges: &[Range<u64>]) -> Result<()> {
    let shared = &reader.snapshot().shared;
    let ranges = ranges.iter().map(|range| (reader.clone(), range.clone()));
    let room = Room {
        memory: Memory::Once(shared.ahead_len),
        disk_len: disk_room(shared),
    };
    Fetching::new(reader.snapshot(), room)
        .await
        .all(ranges)
        .await
}

/// Fetches ranges of sections of one snapshot, not further ahead than there is room for: that may take as long as they are in use.
pub(super) async fn replay(
    snapshot: &Snapshot,
    ranges: impl Iterator<Item = (SectionReader, Range<u64>)>,
) -> Result<()> {
    let room = Room {
        memory: Memory::AsUsed,
        disk_len: disk_room(&snapshot.shared),
    };
    Fetching::new(snapshot, room).await.all(ranges).await
}

fn disk_room(shared: &Shared) -> u64 {
    cache(shared).map_or(0, |cache| cache.max_len() / 2)
}

fn cache(shared: &Shared) -> Option<&NodeCache> {
    shared.node_cache.as_ref().filter(|cache| cache.is_usable())
}

/// Where there is room for what is fetched.
struct Room {
    memory: Memory,
    /// Bytes that may still go to the node's disk.
    disk_len: u64,
}

enum Memory {
    /// So many bytes, used or not.
    Once(u64),
    /// As much as comes to be used.
    AsUsed,
}

/// Where a chunk is to go.
enum Place {
    For(Purpose),
    /// It is near enough already.
    Nowhere,
    Full,
}

/// Fetches chunks in order.
struct Fetching<'a> {
    snapshot: &'a Snapshot,
    room: Room,
    window: Window,
    under_way: VecDeque<BoxFuture<'static, Result<()>>>,
}

/// Chunks that are fetched together.
#[derive(Default)]
struct Window {
    chunks: Vec<(Chunk, Purpose)>,
    seen: HashSet<podsnap_format::ChunkId>,
    len: u64,
}

impl<'a> Fetching<'a> {
    async fn new(snapshot: &'a Snapshot, room: Room) -> Self {
        if cache(&snapshot.shared).is_some() {
            let shared = snapshot.shared.clone();
            let refresh = move || cache(&shared).into_iter().for_each(NodeCache::refresh);
            // It only says what is there already, so it may fail.
            let _ = tokio::task::spawn_blocking(refresh).await;
        }
        Self {
            snapshot,
            room,
            window: Window::default(),
            under_way: VecDeque::new(),
        }
    }

    async fn all(
        mut self,
        mut ranges: impl Iterator<Item = (SectionReader, Range<u64>)>,
    ) -> Result<()> {
        loop {
            let batch: Vec<_> = ranges.by_ref().take(RANGES_AT_ONCE).collect();
            if batch.is_empty() {
                break;
            }
            for (reader, range) in &batch {
                reader.check(range)?;
            }
            for same in batch.chunk_by(|a, b| a.0.is_same(&b.0)) {
                let ranges: Vec<_> = same.iter().map(|(_, range)| range.clone()).collect();
                same[0].0.maps().load_ahead(&ranges).await;
            }
            for (reader, range) in batch {
                let mut at = range.start;
                while at < range.end {
                    let end = range.end.min(at + MAX_PART_LEN);
                    let pieces = reader.maps().pieces(at..end).await?;
                    if !self.take(&pieces).await? {
                        return self.finish().await;
                    }
                    at = end;
                }
            }
        }
        self.finish().await
    }

    /// Takes the chunks of pieces on; false if there is no room for them and never will be.
    async fn take(&mut self, pieces: &[Piece]) -> Result<bool> {
        for chunk in chunks(pieces) {
            if self.window.seen.contains(&chunk.id) {
                continue;
            }
            let purpose = loop {
                match self.place(&chunk) {
                    Place::For(purpose) => break Some(purpose),
                    Place::Nowhere => break None,
                    Place::Full if !self.wait_for_room().await? => return Ok(false),
                    Place::Full => {}
                }
            };
            if let Some(purpose) = purpose {
                self.window.seen.insert(chunk.id);
                self.window.len += u64::from(chunk.raw_len);
                self.window.chunks.push((chunk, purpose));
            }
            if self.window.len >= WINDOW_LEN {
                self.start().await?;
            }
        }
        Ok(true)
    }

    fn place(&mut self, chunk: &Chunk) -> Place {
        let shared = &self.snapshot.shared;
        let len = u64::from(chunk.raw_len);
        if shared.chunks.has(chunk) {
            return Place::Nowhere;
        }
        let free = match &mut self.room.memory {
            Memory::Once(left) if *left >= len => {
                *left -= len;
                true
            }
            Memory::Once(_) => false,
            Memory::AsUsed => shared.ahead.len.load(Relaxed) + len <= shared.ahead_len,
        };
        if free {
            return Place::For(Purpose::Memory(shared.ahead.count(len)));
        }
        match cache(shared) {
            Some(cache) if cache.has(&chunk.id) => Place::Nowhere,
            Some(_) if self.room.disk_len >= len => {
                self.room.disk_len -= len;
                Place::For(Purpose::Disk)
            }
            _ => Place::Full,
        }
    }

    /// Waits until there is room again, and not for one chunk only; false if there never will be.
    async fn wait_for_room(&mut self) -> Result<bool> {
        if let Memory::Once(_) = self.room.memory {
            return Ok(false);
        }
        // What is in the window counts as unused: nobody can use it before it is fetched.
        self.start().await?;
        let shared = &self.snapshot.shared;
        // Not for all that is under way to come: until more is asked for, the link would lie idle.
        shared.ahead.at_most(shared.ahead_len / 2).await;
        Ok(true)
    }

    /// Has the window fetched, and waits if too many are under way.
    async fn start(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        if window.chunks.is_empty() {
            return Ok(());
        }
        if self.under_way.len() == WINDOWS
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.await?;
        }
        self.under_way
            .push_back(window.fetch(self.snapshot).boxed());
        Ok(())
    }

    async fn finish(mut self) -> Result<()> {
        self.start().await?;
        for done in self.under_way {
            done.await?;
        }
        Ok(())
    }
}

impl Window {
    /// Has the chunks fetched; what is returned waits for them.
    fn fetch(self, snapshot: &Snapshot) -> impl Future<Output = Result<()>> + Send + 'static {
        let (mut arrivals, mut duties) = (Vec::new(), Vec::new());
        for (chunk, purpose) in self.chunks {
            let found = snapshot
                .shared
                .chunks
                .find(&chunk, Priority::Background, purpose);
            match found {
                Found::Here(_) => {}
                Found::Coming(arrival) => arrivals.push(arrival),
                Found::Missing(duty) => {
                    arrivals.push(duty.arrival());
                    duties.push(duty);
                }
            }
        }
        let reading = Reading {
            priority: Priority::Background,
            longest: snapshot.backend.read_len(),
            max_gap: MAX_GAP,
        };
        fetch::begin(snapshot, duties, reading);
        async move {
            // What came to nothing was taken over by somebody more urgent.
            let waiting = arrivals.into_iter().map(|arrival| async move {
                match arrival.wait().await {
                    Some(Err(e)) => Err(e.again()),
                    _ => Ok(()),
                }
            });
            try_join_all(waiting).await.map(drop)
        }
    }
}
