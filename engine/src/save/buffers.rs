//! A fixed number of buffers: what bounds a save's memory and holds back its source.
//!
//! Buffers are used again and again, so that the kernel has to find and clear their pages once only.

use std::ops::{Deref, DerefMut};

use crossbeam_channel::{Receiver, Sender, bounded};

/// Hands out a fixed number of buffers and takes them back when they are dropped. Clones share the buffers.
#[derive(Clone)]
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

    /// A buffer with what its last user left in it, waiting until one is free.
    pub(super) fn take(&self) -> Buffer {
        Buffer {
            bytes: self.free.recv().expect("the pool keeps a sender"),
            back: self.back.clone(),
        }
    }
}

/// A buffer of the pool.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    back: Sender<Vec<u8>>,
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The pool may be gone; then so may the bytes.
        let _ = self.back.try_send(std::mem::take(&mut self.bytes));
    }
}
