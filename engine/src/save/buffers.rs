//! A fixed number of buffers: what bounds a save's memory and holds back its source.
//!
//! Buffers are used again and again, so that the kernel has to find and clear their pages once only.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex},
};

/// Hands out a fixed number of buffers and takes them back when they are dropped. Clones share the buffers. The one that came back last is
/// handed out first: it is still in the processor's cache, and buffers that are not needed are never touched.
#[derive(Clone)]
pub(super) struct BufferPool(Arc<Shared>);

struct Shared {
    free: Mutex<Vec<Vec<u8>>>,
    returned: Condvar,
}

impl BufferPool {
    /// A pool of `count` buffers, each allocated when it is first needed.
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Shared {
            free: Mutex::new(vec![Vec::new(); count]),
            returned: Condvar::new(),
        }))
    }

    /// A buffer with what its last user left in it, waiting until one is free.
    pub(super) fn take(&self) -> Buffer {
        let free = self.0.free.lock().expect("no panic while held");
        let mut free = self
            .0
            .returned
            .wait_while(free, |free| free.is_empty())
            .expect("no panic while held");
        Buffer {
            bytes: free.pop().expect("waited for"),
            pool: self.0.clone(),
        }
    }
}

/// A buffer of the pool.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    pool: Arc<Shared>,
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
        let mut free = self.pool.free.lock().expect("no panic while held");
        free.push(std::mem::take(&mut self.bytes));
        self.pool.returned.notify_one();
    }
}
