//! A file that the sentry reads: each submission is a task that gets its bytes and puts them into the sandbox's memory.
//!
//! The sentry fills all of the sandbox's memory in its order, and in between asks for pages that a thread waits for. It does not say which are
//! which, but what it fills with is as long as it may be, or goes on where the last one ended. Everything else is urgent, and so are all other
//! files: it goes before the filling, here and in the store.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::io::Errno;

use super::{Restoring, bytes::FileBytes};
use crate::{
    errors,
    guest::GuestFile,
    image, metrics,
    request::{Completion, Stopped, Submission},
    serve::Backing,
};

/// One file that is being read.
pub(super) struct ReadFile {
    restoring: Arc<Restoring>,
    name: &'static str,
    bytes: FileBytes,
    order: Order,
    buffers: Arc<Buffers>,
    completions: (Sender<Completion>, Receiver<Completion>),
    under_way: usize,
}

/// Buffers that submissions have passed through and the next ones will: new memory would have to be found and cleared first.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// A buffer of `len` bytes of any values.
    fn take(&self, len: usize) -> Vec<u8> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    fn put_back(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(buffer);
    }
}

impl ReadFile {
    pub(super) fn new(restoring: Arc<Restoring>, name: &'static str, bytes: FileBytes) -> Self {
        Self {
            restoring,
            name,
            bytes,
            order: Order::default(),
            buffers: Arc::default(),
            completions: unbounded(),
            under_way: 0,
        }
    }
}

impl Backing for ReadFile {
    fn submit(&mut self, submission: Submission, file: Arc<GuestFile>) {
        self.under_way += 1;
        let memory = self.name == image::PAGES;
        let urgent = !memory || self.order.is_urgent(submission.offset, submission.len);
        let (id, offset, len) = (submission.id, submission.offset, submission.len);
        tracing::trace!(file = self.name, id, offset, len, urgent, "asked for");
        if memory && urgent {
            self.restoring.state().faulted = true;
            metrics::fault();
        }
        let (bytes, buffers) = (self.bytes.clone(), self.buffers.clone());
        let (restoring, name) = (self.restoring.clone(), self.name);
        let completions = self.completions.0.clone();
        self.restoring.runtime.spawn(async move {
            let id = submission.id;
            let read = Read {
                restoring: &restoring,
                name,
                bytes,
                buffers,
                urgent,
            };
            let completion = tokio::select! {
                completion = read.run(submission, file) => completion,
                () = restoring.cancel.cancelled() => Completion {
                    id,
                    n: 0,
                    stopped: Some(Stopped::Error(Errno::CANCELED)),
                },
            };
            tracing::trace!(file = name, id, "completed");
            // Received at the latest when the file is closed.
            let _ = completions.send(completion);
        });
    }

    fn completed(&mut self, least: usize) -> Vec<Completion> {
        let receiver = &self.completions.1;
        let mut completed: Vec<_> = receiver.iter().take(least).collect();
        completed.extend(receiver.try_iter());
        self.under_way -= completed.len();
        completed
    }

    fn finalize(&mut self) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
}

impl Drop for ReadFile {
    fn drop(&mut self) {
        // When the file is closed, nothing may write to the sandbox's memory any more.
        self.completed(self.under_way);
    }
}

/// One submission on its way.
struct Read<'a> {
    restoring: &'a Restoring,
    name: &'static str,
    bytes: FileBytes,
    buffers: Arc<Buffers>,
    urgent: bool,
}

impl Read<'_> {
    async fn run(self, submission: Submission, file: Arc<GuestFile>) -> Completion {
        let id = submission.id;
        let left = self.bytes.len().saturating_sub(submission.offset);
        let n = u64::from(submission.len).min(left) as u32;
        if let Err(errno) = self
            .copy(submission.offset, n as usize, &submission, file)
            .await
        {
            return Completion {
                id,
                n: 0,
                stopped: Some(Stopped::Error(errno)),
            };
        }
        metrics::restored(n);
        let stopped = (n < submission.len).then_some(Stopped::EndOfFile);
        Completion { id, n, stopped }
    }

    async fn copy(
        &self,
        offset: u64,
        len: usize,
        submission: &Submission,
        file: Arc<GuestFile>,
    ) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let pace = &self.restoring.pace;
        let (_urgent, _filling) = match self.urgent {
            true => (Some(pace.hurry()), None),
            false => (None, Some(pace.fill().await)),
        };
        let mut bytes = self.buffers.take(len);
        let read = self.bytes.read_at(&mut bytes, offset, self.urgent).await;
        read.map_err(|e| {
            self.restoring.fail(self.name, &e);
            errors::errno(&e)
        })?;
        let (ranges, buffers) = (submission.ranges.clone(), self.buffers.clone());
        // The kernel may have to find memory first, and the file may be anything.
        let copied = tokio::task::spawn_blocking(move || {
            let mut rest = bytes.as_slice();
            for range in &ranges {
                let len = rest.len().min((range.end - range.start) as usize);
                let (now, later) = rest.split_at(len);
                file.write_at(now, range.start)?;
                rest = later;
            }
            buffers.put_back(bytes);
            Ok::<_, std::io::Error>(())
        });
        let copied = copied.await.unwrap_or_else(|e| Err(e.into()));
        copied.map_err(|e| {
            self.restoring
                .fail(self.name, &format!("the sandbox's memory: {e}"));
            Errno::FAULT
        })
    }
}

/// Tells filling from what somebody waits for.
#[derive(Debug, Default)]
struct Order {
    /// Where the filling goes on.
    next: u64,
}

impl Order {
    /// Whether somebody waits for the bytes of a submission.
    fn is_urgent(&mut self, offset: u64, len: u32) -> bool {
        let filling = len == super::PAGES_LIMITS.max_io_bytes || offset == self.next;
        if filling {
            self.next = offset.saturating_add(u64::from(len));
        }
        !filling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_is_told_from_what_is_waited_for() {
        let full = super::super::PAGES_LIMITS.max_io_bytes;
        let mut order = Order::default();
        let at = |n: u64| n * u64::from(full);
        assert!(!order.is_urgent(0, full));
        // A page far ahead, and some around another.
        assert!(order.is_urgent(at(50), 4096));
        assert!(order.is_urgent(at(20) + 8192, 65536));
        assert!(!order.is_urgent(at(1), full));
        // The filling ends at the page, goes on behind it, and is full again.
        assert!(!order.is_urgent(at(2), 8192));
        assert!(order.is_urgent(at(2) + 12288, 4096));
        assert!(!order.is_urgent(at(3), full));
        assert!(!order.is_urgent(at(4), 4096));
    }
}
