//! Proving that a chunk's bytes stand somewhere in this save's own sources, by hashing them again.
//!
//! An extent may name a range inside a chunk. To claim one, the chunk's bytes must be at hand; they are read from a
//! source where they should stand and count only if they hash to the chunk's id. So nothing that changed in
//! between, and no wrong guess, can ever enter a snapshot.

use std::{collections::VecDeque, sync::Arc};

use podsnap_format::{ChunkId, Key};

use crate::source::Source;

/// Chunks kept; neighbouring extents ask for the same one or two again.
const KEPT: usize = 4;

/// Reads and proves chunks, and keeps the last few.
#[derive(Default)]
pub(super) struct Proofs {
    kept: VecDeque<(ChunkId, Arc<Vec<u8>>)>,
}

impl Proofs {
    /// The bytes of chunk `id`, if they stand at `offset` of `source`.
    pub(super) fn chunk(
        &mut self,
        id: &ChunkId,
        raw_len: u32,
        source: &dyn Source,
        offset: u64,
        key: Option<&Key>,
    ) -> Option<Arc<Vec<u8>>> {
        if let Some((_, bytes)) = self.kept.iter().find(|(kept, _)| kept == id) {
            return Some(bytes.clone());
        }
        if offset.checked_add(raw_len.into())? > source.len() {
            return None;
        }
        let mut bytes = vec![0; raw_len as usize];
        source.read_at(&mut bytes, offset).ok()?;
        if ChunkId::of(&bytes, key) != *id {
            return None;
        }
        let bytes = Arc::new(bytes);
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((*id, bytes.clone()));
        Some(bytes)
    }
}
