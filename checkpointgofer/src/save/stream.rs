//! The file that is saved as it comes: a stream that reads the sandbox's memory where the sentry's submissions say.
//!
//! A submission is completed when its bytes have been copied into the save's buffers, so that the sandbox waits for the save only as far as those
//! are full. The stream is read by a thread of the save's own.

use std::{
    io::{self, Read},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use podsnap_engine::source::SectionStream;
use rustix::io::Errno;

use super::head::Head;
use crate::{
    guest::GuestFile,
    request::{Completion, Stopped, Submission},
};

/// What the file's thread sends.
pub enum Part {
    /// These bytes come next.
    Bytes(Submission, Arc<GuestFile>),
    /// No more bytes come.
    End,
}

/// The reading end.
pub struct GuestStream {
    parts: Receiver<Part>,
    completions: Sender<Completion>,
    current: Option<Current>,
    ended: bool,
    head: Option<Arc<Mutex<Head>>>,
}

/// The submission that is being copied.
struct Current {
    id: u32,
    len: u32,
    file: Arc<GuestFile>,
    /// What is left of it, the last range first.
    ranges: Vec<Range<u64>>,
}

/// The writing end.
pub struct StreamEnds {
    /// Where submissions go, in the order of their bytes.
    pub parts: Sender<Part>,
    /// Where their completions come from.
    pub completions: Receiver<Completion>,
    /// The first bytes that went through, if they are wanted.
    pub head: Option<Arc<Mutex<Head>>>,
}

impl GuestStream {
    /// Both ends. The number of submissions under way is bounded by the protocol.
    pub fn new(keep_head: bool) -> (StreamEnds, Self) {
        let (parts, coming) = unbounded();
        let (completions, completed) = unbounded();
        let head: Option<Arc<Mutex<Head>>> = keep_head.then(Arc::default);
        let ends = StreamEnds {
            parts,
            completions: completed,
            head: head.clone(),
        };
        let stream = Self {
            parts: coming,
            completions,
            current: None,
            ended: false,
            head,
        };
        (ends, stream)
    }

    fn complete(&self, id: u32, n: u32, stopped: Option<Stopped>) {
        // Nobody waits any more when the file was closed.
        let _ = self.completions.send(Completion { id, n, stopped });
    }
}

impl Read for GuestStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.ended {
            return Ok(0);
        }
        let current = match &mut self.current {
            Some(current) => current,
            slot => match self.parts.recv() {
                Ok(Part::Bytes(submission, file)) => {
                    let mut ranges = submission.ranges;
                    ranges.reverse();
                    slot.insert(Current {
                        id: submission.id,
                        len: submission.len,
                        file,
                        ranges,
                    })
                }
                Ok(Part::End) => {
                    self.ended = true;
                    return Ok(0);
                }
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the sandbox closed it before it was whole",
                    ));
                }
            },
        };
        let range = current.ranges.last_mut().expect("one that has bytes left");
        let len = buf.len().min((range.end - range.start) as usize);
        let read = current.file.read_at(&mut buf[..len], range.start);
        range.start += len as u64;
        if range.is_empty() {
            current.ranges.pop();
        }
        let (id, whole) = (current.id, current.len);
        if let Err(e) = read {
            self.current = None;
            self.complete(id, 0, Some(Stopped::Error(Errno::FAULT)));
            return Err(e);
        }
        if current.ranges.is_empty() {
            self.current = None;
            self.complete(id, whole, None);
        }
        if let Some(head) = &self.head {
            let mut head = head.lock().unwrap_or_else(PoisonError::into_inner);
            head.add(&buf[..len]);
        }
        Ok(len)
    }
}

impl SectionStream for GuestStream {}
