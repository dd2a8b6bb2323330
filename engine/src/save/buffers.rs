//! A fixed number of buffers for segments: what bounds a save's memory and holds back its source.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Hands out a fixed number of buffers and takes them back when they are dropped.
pub(super) struct BufferPool {
    free: Receiver<Vec<u8>>,
    back: Sender<Vec<u8>>,
}

impl BufferPool {
    /// A pool of `count` buffers, each allocated when it is first needed.
    pub(super) fn new(count: usize) -> Self {
        let (back, free) = bounded(count);
        for _ in 0..count {
            back.send(Vec::new()).expect("there is room for all");
        }
        Self { free, back }
    }

    /// A buffer of `len` bytes of any content, waiting until one is free.
    pub(super) fn take(&self, len: usize) -> Buffer {
        let mut bytes = self.free.recv().expect("the pool keeps a sender");
        if bytes.len() < len {
            bytes.resize(len, 0);
        }
        Buffer {
            bytes,
            len,
            back: self.back.clone(),
        }
    }
}

/// A buffer of the pool.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    back: Sender<Vec<u8>>,
}

impl Buffer {
    /// Shortens what is seen of the buffer to its first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The pool may be gone; then so may the bytes.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}
