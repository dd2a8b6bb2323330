//! Decoded chunks that are at hand, and those that are on their way: what makes sure that each is fetched once.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use lru::LruCache;
use podsnap_format::{ChunkId, manifest::Chunk};
use tokio::sync::watch;

use super::{
    Priority,
    ahead::{Purpose, Unused},
};
use crate::error::{Error, Result};

/// A chunk as a manifest names it. A length that is not the chunk's own is thereby another chunk, and found to be none.
type Key = (ChunkId, u32);

/// A chunk, or why it cannot be had.
type Arrived = Result<Bytes, Arc<Error>>;

/// The chunks, bounded by the sum of their lengths; who was not asked for longest goes first.
pub(crate) struct Chunks {
    capacity: u64,
    state: Mutex<State>,
}

struct State {
    kept: LruCache<Key, Kept>,
    kept_len: u64,
    coming: HashMap<Key, Coming>,
    /// Number of the next duty.
    next: u64,
}

/// A chunk at hand.
struct Kept {
    bytes: Bytes,
    /// If nobody has asked for it yet.
    unused: Option<Unused>,
}

/// A chunk that somebody fetches.
struct Coming {
    duty: u64,
    priority: Priority,
    purpose: Purpose,
    arrived: watch::Receiver<Option<Arrived>>,
}

/// Where a chunk is.
pub(super) enum Found {
    /// At hand.
    Here(Bytes),
    /// Somebody fetches it.
    Coming(Arrival),
    /// Nobody does: the caller has to.
    Missing(Duty),
}

/// A chunk that somebody else fetches.
pub(super) struct Arrival(watch::Receiver<Option<Arrived>>);

/// The duty to fetch a chunk for everybody who waits for it.
pub(super) struct Duty {
    pub(super) chunk: Chunk,
    number: u64,
    arrived: watch::Sender<Option<Arrived>>,
    chunks: Arc<Chunks>,
}

impl Chunks {
    pub(super) fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            state: Mutex::new(State {
                kept: LruCache::unbounded(),
                kept_len: 0,
                coming: HashMap::new(),
                next: 0,
            }),
        })
    }

    /// The chunk, if it is at hand.
    pub(super) fn get(&self, chunk: &Chunk) -> Option<Bytes> {
        let mut state = self.state.lock().expect("no panic while held");
        let kept = state.kept.get_mut(&key(chunk))?;
        kept.unused = None;
        Some(kept.bytes.clone())
    }

    /// Whether the chunk is at hand. It does not count as used.
    pub(super) fn has(&self, chunk: &Chunk) -> bool {
        let state = self.state.lock().expect("no panic while held");
        state.kept.contains(&key(chunk))
    }

    /// Where the chunk is. Who wants it urgently does not wait for one who fetches it in the background, together with much else.
    pub(super) fn find(
        self: &Arc<Self>,
        chunk: &Chunk,
        priority: Priority,
        purpose: Purpose,
    ) -> Found {
        let mut state = self.state.lock().expect("no panic while held");
        let key = key(chunk);
        let used = matches!(purpose, Purpose::Use);
        if let Some(kept) = state.kept.get_mut(&key) {
            if used {
                kept.unused = None;
            }
            return Found::Here(kept.bytes.clone());
        }
        let overtakes = |coming: &Coming| {
            (priority, coming.priority) == (Priority::Urgent, Priority::Background)
        };
        match state.coming.get_mut(&key) {
            Some(coming) if !overtakes(coming) => {
                if used {
                    coming.purpose = Purpose::Use;
                }
                Found::Coming(Arrival(coming.arrived.clone()))
            }
            _ => {
                let (sender, receiver) = watch::channel(None);
                let number = state.next;
                state.next += 1;
                let coming = Coming {
                    duty: number,
                    priority,
                    purpose,
                    arrived: receiver,
                };
                state.coming.insert(key, coming);
                Found::Missing(Duty {
                    chunk: *chunk,
                    number,
                    arrived: sender,
                    chunks: self.clone(),
                })
            }
        }
    }
}

impl Arrival {
    /// The chunk once it is there, or `None` if who fetched it gave up.
    pub(super) async fn wait(mut self) -> Option<Arrived> {
        let arrived = self.0.wait_for(Option::is_some).await.ok()?;
        arrived.clone()
    }
}

impl Duty {
    /// What somebody who waits for it has.
    pub(super) fn arrival(&self) -> Arrival {
        Arrival(self.arrived.subscribe())
    }

    /// Whether nobody more urgent has taken it over.
    pub(super) fn is_open(&self) -> bool {
        let state = self.chunks.state.lock().expect("no panic while held");
        let coming = state.coming.get(&key(&self.chunk));
        coming.is_some_and(|coming| coming.duty == self.number)
    }

    /// Ends it: the chunk is kept, and everybody who waits has it or learns why not.
    pub(super) fn fulfil(self, arrived: Arrived) {
        if let Ok(bytes) = &arrived {
            let mut state = self.chunks.state.lock().expect("no panic while held");
            let purpose = match state.coming.get_mut(&key(&self.chunk)) {
                Some(coming) if coming.duty == self.number => {
                    std::mem::replace(&mut coming.purpose, Purpose::Use)
                }
                _ => Purpose::Use,
            };
            state.keep(&self.chunk, bytes, purpose, self.chunks.capacity);
        }
        self.arrived.send_replace(Some(arrived));
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let mut state = self.chunks.state.lock().expect("no panic while held");
        let key = key(&self.chunk);
        // Unless somebody more urgent has overtaken it.
        if state
            .coming
            .get(&key)
            .is_some_and(|c| c.duty == self.number)
        {
            state.coming.remove(&key);
        }
    }
}

impl State {
    fn keep(&mut self, chunk: &Chunk, bytes: &Bytes, purpose: Purpose, capacity: u64) {
        let unused = match purpose {
            Purpose::Use => None,
            Purpose::Memory(unused) => Some(unused),
            Purpose::Disk => return,
        };
        let key = key(chunk);
        if let Some(kept) = self.kept.get_mut(&key) {
            if unused.is_none() {
                kept.unused = None;
            }
            return;
        }
        self.kept_len += bytes.len() as u64;
        let bytes = bytes.clone();
        self.kept.put(key, Kept { bytes, unused });
        while self.kept_len > capacity {
            let (_, oldest) = self.kept.pop_lru().expect("what has a length is there");
            self.kept_len -= oldest.bytes.len() as u64;
        }
    }
}

fn key(chunk: &Chunk) -> Key {
    (chunk.id, chunk.raw_len)
}

impl fmt::Debug for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock().expect("no panic while held");
        f.debug_struct("Chunks")
            .field("kept_len", &state.kept_len)
            .field("capacity", &self.capacity)
            .field("coming", &state.coming.len())
            .finish()
    }
}
