//! The file that is saved as it comes: a stream of what the sentry's submissions say, in their order.
//!
//! As a rule it reads the sandbox's memory itself, and a submission is completed when its bytes have been copied into the save's buffers: the
//! sandbox waits for the save as far as those are full. When the sandbox is not to wait, the bytes were [captured](super::capture) already.
//! The stream is read by a thread of the save's own.

use std::{
    io::{self, Read},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use podsnap_engine::source::SectionStream;
use rustix::io::Errno;

use super::{capture::Captured, head::Head};
use crate::{
    guest::GuestFile,
    request::{Completion, Stopped, Submission},
};

/// What the file's thread sends.
pub enum Part {
    /// These bytes come next.
    Bytes(Submission, Arc<GuestFile>),
    /// These bytes, which are being captured.
    Captured(Receiver<io::Result<Captured>>),
    /// No more bytes come.
    End,
}

/// The reading end.
pub struct GuestStream {
    parts: Receiver<Part>,
    completions: Sender<Completion>,
    current: Current,
    head: Option<Arc<Mutex<Head>>>,
}

/// What is being read.
enum Current {
    /// The next part, when it comes.
    Next,
    Guest(Guest),
    Captured(Captured),
    /// Nothing any more.
    Ended,
}

/// A submission that is being copied.
struct Guest {
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
            current: Current::Next,
            head,
        };
        (ends, stream)
    }

    fn complete(&self, id: u32, n: u32, stopped: Option<Stopped>) {
        // Nobody waits any more when the file was closed.
        let _ = self.completions.send(Completion { id, n, stopped });
    }

    /// Waits for the next part.
    fn next(&mut self) -> io::Result<()> {
        let gone = |what| io::Error::new(io::ErrorKind::ConnectionAborted, what);
        self.current = match self.parts.recv() {
            Ok(Part::Bytes(submission, file)) => {
                let mut ranges = submission.ranges;
                ranges.reverse();
                Current::Guest(Guest {
                    id: submission.id,
                    len: submission.len,
                    file,
                    ranges,
                })
            }
            Ok(Part::Captured(captured)) => {
                let captured = captured.recv();
                Current::Captured(captured.map_err(|_| gone("a thread died"))??)
            }
            Ok(Part::End) => Current::Ended,
            Err(_) => return Err(gone("the sandbox closed it before it was whole")),
        };
        Ok(())
    }

    /// Copies bytes of a submission.
    fn read_guest(&mut self, buf: &mut [u8], mut guest: Guest) -> io::Result<usize> {
        let range = guest.ranges.last_mut().expect("one that has bytes left");
        let len = buf.len().min((range.end - range.start) as usize);
        if let Err(e) = guest.file.read_at(&mut buf[..len], range.start) {
            self.complete(guest.id, 0, Some(Stopped::Error(Errno::FAULT)));
            return Err(e);
        }
        range.start += len as u64;
        if range.is_empty() {
            guest.ranges.pop();
        }
        if guest.ranges.is_empty() {
            self.complete(guest.id, guest.len, None);
        } else {
            self.current = Current::Guest(guest);
        }
        Ok(len)
    }
}

impl Read for GuestStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let len = loop {
            match std::mem::replace(&mut self.current, Current::Next) {
                Current::Next => self.next()?,
                Current::Guest(guest) => break self.read_guest(buf, guest)?,
                Current::Captured(mut captured) => {
                    let len = captured.read(buf)?;
                    if len > 0 {
                        self.current = Current::Captured(captured);
                        break len;
                    }
                }
                Current::Ended => {
                    self.current = Current::Ended;
                    return Ok(0);
                }
            }
        };
        if let Some(head) = &self.head {
            let mut head = head.lock().unwrap_or_else(PoisonError::into_inner);
            head.add(&buf[..len]);
        }
        Ok(len)
    }
}

impl SectionStream for GuestStream {}
