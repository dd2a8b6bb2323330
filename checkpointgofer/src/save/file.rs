//! A file that the sentry writes: into the stream that is saved as it comes, or aside until that one has ended.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::io::Errno;
use tempfile::SpooledTempFile;

use super::{
    Shared,
    capture::Capture,
    stream::{Part, StreamEnds},
};
use crate::{
    errors,
    guest::GuestFile,
    request::{Completion, Stopped, Submission},
    serve::Backing,
};

/// Bytes of a file that are kept in memory until they are saved; with more, it goes to a temporary file. Most files have a fraction of it.
const MAX_KEPT_LEN: usize = 64 << 20;

/// Where a file's bytes go.
enum Sink {
    Stream(StreamEnds),
    Captured {
        ends: StreamEnds,
        capture: Capture,
        completions: (Sender<Completion>, Receiver<Completion>),
    },
    Aside(Aside),
}

/// Bytes that are saved later.
struct Aside {
    bytes: SpooledTempFile,
    completed: Vec<Completion>,
}

/// What a whole file left behind.
pub(super) enum Content {
    /// It went through the stream.
    Streamed(StreamEnds),
    /// It has yet to be saved.
    Aside(SpooledTempFile),
}

/// One file that is being written.
pub(super) struct WrittenFile {
    shared: Arc<Shared>,
    name: &'static str,
    /// `None` until it is known whether it is the one that is streamed.
    sink: Option<Sink>,
    under_way: BTreeSet<u32>,
    whole: bool,
}

impl WrittenFile {
    pub(super) fn new(shared: Arc<Shared>, name: &'static str) -> Self {
        Self {
            shared,
            name,
            sink: None,
            under_way: BTreeSet::new(),
            whole: false,
        }
    }

    fn sink(&mut self) -> &mut Sink {
        let (shared, name) = (&self.shared, self.name);
        self.sink
            .get_or_insert_with(|| match shared.stream_for(name) {
                Some((ends, Some(capture))) => Sink::Captured {
                    ends,
                    capture,
                    completions: unbounded(),
                },
                Some((ends, None)) => Sink::Stream(ends),
                None => Sink::Aside(Aside {
                    bytes: SpooledTempFile::new(MAX_KEPT_LEN),
                    completed: Vec::new(),
                }),
            })
    }
}

impl Backing for WrittenFile {
    fn submit(&mut self, submission: Submission, file: Arc<GuestFile>) {
        self.under_way.insert(submission.id);
        let name = self.name;
        match self.sink() {
            // When the save has failed, nobody takes it; then nobody completes it either, which is noticed there.
            Sink::Stream(ends) => drop(ends.parts.send(Part::Bytes(submission, file))),
            Sink::Captured {
                ends,
                capture,
                completions,
            } => {
                let captured = capture.begin(submission, file, completions.0.clone());
                let _ = ends.parts.send(Part::Captured(captured));
            }
            Sink::Aside(aside) => {
                let (id, n) = (submission.id, submission.len);
                let written = copy(&submission, &file, &mut aside.bytes);
                if let Err(error) = &written {
                    tracing::error!(file = name, %error, "cannot keep what the sandbox writes");
                }
                let stopped = written.err().map(|e| Stopped::Error(errors::io_errno(&e)));
                let n = if stopped.is_none() { n } else { 0 };
                aside.completed.push(Completion { id, n, stopped });
            }
        }
    }

    fn completed(&mut self, least: usize) -> Vec<Completion> {
        let mut completed = match &mut self.sink {
            None => Vec::new(),
            Some(Sink::Aside(aside)) => std::mem::take(&mut aside.completed),
            Some(Sink::Stream(ends)) => receive(&ends.completions, least),
            Some(Sink::Captured { completions, .. }) => receive(&completions.1, least),
        };
        for completion in &completed {
            self.under_way.remove(&completion.id);
        }
        if completed.len() < least {
            // The save has ended, and will take no more.
            let stopped = Some(Stopped::Error(self.shared.errno()));
            let failed = std::mem::take(&mut self.under_way).into_iter();
            completed.extend(failed.map(|id| Completion { id, n: 0, stopped }));
        }
        completed
    }

    fn finalize(&mut self) -> Result<(), Errno> {
        self.sink();
        let content = match self.sink.take().expect("made just now") {
            Sink::Stream(ends) => {
                let _ = ends.parts.send(Part::End);
                Content::Streamed(ends)
            }
            Sink::Captured { ends, capture, .. } => {
                let _ = ends.parts.send(Part::End);
                let spilled_bytes = capture.spilled_len();
                tracing::debug!(file = self.name, spilled_bytes, "captured");
                Content::Streamed(ends)
            }
            Sink::Aside(aside) => Content::Aside(aside.bytes),
        };
        self.whole = true;
        self.shared.whole(self.name, content)
    }
}

impl Drop for WrittenFile {
    fn drop(&mut self) {
        if !self.whole {
            self.shared.abandoned(self.name);
        }
    }
}

/// At least `least` completions, unless there will be no more.
fn receive(completions: &Receiver<Completion>, least: usize) -> Vec<Completion> {
    let mut completed: Vec<_> = completions.iter().take(least).collect();
    completed.extend(completions.try_iter());
    completed
}

/// Copies a submission's bytes.
fn copy(submission: &Submission, file: &GuestFile, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = Vec::new();
    for range in &submission.ranges {
        buffer.resize((range.end - range.start) as usize, 0);
        file.read_at(&mut buffer, range.start)?;
        to.write_all(&buffer)?;
    }
    Ok(())
}
