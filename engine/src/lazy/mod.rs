//! Reading of a snapshot only what is asked for: any range of any section, in any order, by many at once.
//!
//! [`SectionReader`] is what everything that serves a snapshot stands on. It finds out which chunks a range consists of and gets them from
//! the nearest place: memory ([`chunks`]), the node's disk ([`node_cache`]), the store ([`fetch`]). A chunk that several ask for is
//! fetched once, a chunk that does not check out is handed to nobody. How the bytes come to a page, a file or a socket
//! is not this module's business.

mod ahead;
mod chunks;
mod fetch;
mod map;
mod node_cache;
mod reader;
mod recorder;
mod working_set;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub use node_cache::CacheOptions;
pub use reader::{Run, SectionReader};
pub use working_set::{Recording, WorkingSet};

use self::{ahead::Ahead, node_cache::NodeCache};

pub(crate) use self::{chunks::Chunks, map::SharedMaps, recorder::Recorder};

/// Bytes of decoded chunks that the readers of a store keep in memory.
const CHUNKS_LEN: u64 = 64 << 20;

/// Bytes that background reads may hold at once, as stored.
const BACKGROUND_LEN: usize = 64 << 20;

/// What all readers of a store share, so that none fetches what another one has.
#[derive(Debug)]
pub(crate) struct Shared {
    chunks: Arc<Chunks>,
    /// KiB that background reads may still hold.
    background: Arc<Semaphore>,
    node_cache: Option<NodeCache>,
    /// What was fetched ahead of its use, and how much that may be.
    ahead: Arc<Ahead>,
    ahead_len: u64,
}

impl Shared {
    /// With a cache on the node's disk, if that is wanted.
    pub(crate) fn new(cache: Option<&CacheOptions>) -> Arc<Self> {
        Arc::new(Self {
            chunks: Chunks::new(CHUNKS_LEN),
            background: Arc::new(Semaphore::new(BACKGROUND_LEN >> 10)),
            node_cache: cache.and_then(NodeCache::open),
            ahead: Arc::default(),
            ahead_len: CHUNKS_LEN / 2,
        })
    }
}

/// How urgently bytes are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Somebody waits for them.
    Urgent,
    /// Somebody may ask for them later.
    Background,
}
