//! Bytes of objects: immutable segments that ranges and composites share without copying.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use md5::{Digest, Md5};

/// Length of the buffers that an upload is gathered in.
const SEGMENT_LEN: usize = 8 << 20;

/// What an object consists of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    /// Each with the offset of its end.
    segments: Arc<[(u64, Bytes)]>,
}

impl Content {
    pub fn len(&self) -> u64 {
        self.segments.last().map_or(0, |(end, _)| *end)
    }

    /// One content after another.
    pub fn concat(parts: impl Iterator<Item = Content>) -> Self {
        let mut segments = Vec::new();
        let mut end = 0;
        for part in parts {
            for (_, bytes) in part.segments.iter() {
                end += bytes.len() as u64;
                segments.push((end, bytes.clone()));
            }
        }
        Self {
            segments: segments.into(),
        }
    }

    /// The bytes of a range that lies inside.
    pub fn slices(&self, range: Range<u64>) -> Vec<Bytes> {
        let first = self
            .segments
            .partition_point(|(end, _)| *end <= range.start);
        let mut slices = Vec::new();
        for (end, bytes) in &self.segments[first..] {
            let start = end - bytes.len() as u64;
            if start >= range.end {
                break;
            }
            let from = range.start.saturating_sub(start) as usize;
            let to = (range.end - start).min(bytes.len() as u64) as usize;
            if from < to {
                slices.push(bytes.slice(from..to));
            }
        }
        slices
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len() as usize);
        for (_, bytes) in self.segments.iter() {
            all.extend_from_slice(bytes);
        }
        all
    }
}

/// Checksums of a content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub crc32c: u32,
    pub md5: Option<[u8; 16]>,
}

/// Bytes held by everything that was ever built with it, as long as anybody refers to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory(Arc<AtomicU64>);

impl Memory {
    pub fn held(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

struct Held {
    bytes: Vec<u8>,
    memory: Memory,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.0.fetch_sub(self.bytes.len() as u64, Relaxed);
    }
}

/// Gathers an upload, summing as it comes.
pub(crate) struct ContentBuilder {
    memory: Memory,
    limit: u64,
    segments: Vec<(u64, Bytes)>,
    last: Vec<u8>,
    len: u64,
    expected: u64,
    crc32c: u32,
    md5: Option<Md5>,
}

impl ContentBuilder {
    /// For some `expected` bytes (a hint; allocation is bounded whatever it is), with at most `limit` held in all.
    pub fn new(memory: &Memory, limit: u64, expected: u64, md5: bool) -> Self {
        Self {
            memory: memory.clone(),
            limit: if limit == 0 { u64::MAX } else { limit },
            segments: Vec::new(),
            last: Vec::new(),
            len: 0,
            expected,
            crc32c: 0,
            md5: md5.then(Md5::new),
        }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fails when that is more than may be held.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        let open = self.last.len() as u64;
        if self.memory.held() + open + bytes.len() as u64 > self.limit {
            return Err(());
        }
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        if let Some(md5) = &mut self.md5 {
            md5.update(bytes);
        }
        while !bytes.is_empty() {
            if self.last.capacity() == 0 {
                let left = self.expected.saturating_sub(self.len);
                let wanted = left.clamp(bytes.len().min(SEGMENT_LEN) as u64, SEGMENT_LEN as u64);
                self.last.reserve_exact(wanted as usize);
            }
            let fits = bytes.len().min(self.last.capacity() - self.last.len());
            let (now, later) = bytes.split_at(fits);
            self.last.extend_from_slice(now);
            self.len += fits as u64;
            bytes = later;
            if self.last.len() == self.last.capacity() {
                self.close_segment();
            }
        }
        Ok(())
    }

    fn close_segment(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        if bytes.is_empty() {
            return;
        }
        self.memory.0.fetch_add(bytes.len() as u64, Relaxed);
        let held = Held {
            bytes,
            memory: self.memory.clone(),
        };
        self.segments.push((self.len, Bytes::from_owner(held)));
    }

    pub fn finish(mut self) -> (Content, Sums) {
        self.close_segment();
        let content = Content {
            segments: self.segments.into(),
        };
        let sums = Sums {
            crc32c: self.crc32c,
            md5: self.md5.map(|md5| md5.finalize().into()),
        };
        (content, sums)
    }
}
