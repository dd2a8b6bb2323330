//! One open file: a thread that takes requests from its packet window, hands them to whoever has the file's bytes, and answers.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use crate::{
    guest::GuestFile,
    request::{self, Completion, Limits, Mode, Stopped, Submission},
    save::OTHER_LIMITS,
    window::Window,
};

/// Files that the sentry may register for one open file: one for each of the sandbox's memory files.
const MAX_REGISTERED: usize = 4096;

/// Whoever has an open file's bytes. Dropped, the file is closed.
pub trait Backing: Send {
    /// Takes on a submission, whose ranges are inside of `file`. It is completed once.
    fn submit(&mut self, submission: Submission, file: Arc<GuestFile>);

    /// Waits until at least `least` submissions that were taken on have been completed, and returns all that have.
    fn completed(&mut self, least: usize) -> Vec<Completion>;

    /// The file is whole, and none of its submissions is under way. Nothing else follows. Not for files that are read.
    fn finalize(&mut self) -> Result<(), Errno>;
}

/// How the sandbox learns that a file cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// When it opens the file, by a text, which `runsc checkpoint` shows.
    AtOpen,
    /// By a number, at its first write. A pod that saves itself is told that its save has failed only if the save fails then or later: if
    /// a file cannot be opened, the sentry gives up without a word, and the pod waits for ever.
    /// (`Loader.SaveAsync` in <https://github.com/google/gvisor/blob/master/runsc/boot/restore.go>)
    AtWrite,
}

impl Refusal {
    /// The answer to a file that is opened for writing.
    pub fn answer(self, errno: Errno, why: &str) -> Result<(Limits, Box<dyn Backing>), String> {
        match self {
            Self::AtOpen => Err(why.to_owned()),
            Self::AtWrite => Ok((OTHER_LIMITS, Box::new(Unwritable::new(errno)))),
        }
    }
}

/// A file that is open only so that it can fail.
struct Unwritable {
    errno: Errno,
    failed: Vec<Completion>,
}

impl Unwritable {
    fn new(errno: Errno) -> Self {
        let failed = Vec::new();
        Self { errno, failed }
    }
}

impl Backing for Unwritable {
    fn submit(&mut self, submission: Submission, _file: Arc<GuestFile>) {
        let stopped = Some(Stopped::Error(self.errno));
        let id = submission.id;
        self.failed.push(Completion { id, n: 0, stopped });
    }

    fn completed(&mut self, _least: usize) -> Vec<Completion> {
        std::mem::take(&mut self.failed)
    }

    fn finalize(&mut self) -> Result<(), Errno> {
        Err(self.errno)
    }
}

/// The files that the sentry registered for one open file, by their numbers.
#[derive(Debug, Default)]
pub struct Registered(Mutex<Vec<Arc<GuestFile>>>);

impl Registered {
    fn files(&self) -> MutexGuard<'_, Vec<Arc<GuestFile>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one; its number.
    pub fn add(&self, file: GuestFile) -> Result<u32, String> {
        let mut files = self.files();
        if files.len() >= MAX_REGISTERED {
            return Err(format!("{MAX_REGISTERED} files are registered already"));
        }
        files.push(Arc::new(file));
        Ok(files.len() as u32 - 1)
    }

    fn get(&self, number: u32) -> Option<Arc<GuestFile>> {
        self.files().get(number as usize).cloned()
    }
}

/// Answers requests until the file is whole, is closed, or the sentry breaks the protocol. After an error, nothing was answered.
pub fn serve(
    window: &Window,
    mode: Mode,
    limits: Limits,
    registered: &Registered,
    backing: &mut dyn Backing,
) -> io::Result<()> {
    let mut under_way = UnderWay::new(limits);
    if !window.accept()? {
        return Ok(());
    }
    loop {
        let Some(count) = window.receive()? else {
            return Ok(());
        };
        let request = request::parse_request(window, mode).expect("a window has a page at least");
        if request.finalize {
            let finalized = match (count, under_way.count) {
                (0, 0) => backing.finalize(),
                _ => Err(Errno::INVAL),
            };
            request::write_answer(window, finalized.err(), &[]);
            window.give(0)?;
            return Ok(());
        }
        if count > limits.max_parallel {
            let what = format!("{count} submissions at once, of {}", limits.max_parallel);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the sentry broke the protocol: {what}"),
            ));
        }
        let accepted = request::parse_submissions(
            window,
            mode,
            limits,
            count,
            |file| registered.get(file).map(|file| file.len()),
            |submission| {
                let file = registered.get(submission.file);
                let file = file.ok_or_else(|| "its file is gone".to_owned())?;
                under_way.begin(submission.id)?;
                backing.submit(submission, file);
                Ok(())
            },
        );
        if let Err(rejected) = accepted {
            // Where the next one begins nobody knows now.
            let refusal = Completion {
                id: rejected.id,
                n: 0,
                stopped: Some(Stopped::Error(Errno::INVAL)),
            };
            request::write_answer(window, Some(Errno::INVAL), &[refusal]);
            window.give(1)?;
            let (id, why) = (rejected.id, rejected.why);
            tracing::error!(id, why, "the sentry broke the protocol by a submission");
            return Ok(());
        }
        let least = (request.least as usize).min(under_way.count);
        let completed = backing.completed(least);
        for completion in &completed {
            under_way.end(completion.id);
        }
        request::write_answer(window, None, &completed);
        if !window.give(completed.len() as u32)? {
            return Ok(());
        }
    }
}

/// The ids of submissions that have not been completed.
struct UnderWay {
    ids: Vec<bool>,
    count: usize,
}

impl UnderWay {
    fn new(limits: Limits) -> Self {
        Self {
            ids: vec![false; limits.max_parallel as usize],
            count: 0,
        }
    }

    fn begin(&mut self, id: u32) -> Result<(), String> {
        let slot = &mut self.ids[id as usize];
        if *slot {
            return Err(format!("the id {id} is in use"));
        }
        *slot = true;
        self.count += 1;
        Ok(())
    }

    fn end(&mut self, id: u32) {
        let was = std::mem::replace(&mut self.ids[id as usize], false);
        debug_assert!(was, "completed once");
        self.count -= usize::from(was);
    }
}
