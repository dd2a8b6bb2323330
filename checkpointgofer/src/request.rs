//! What a packet window's words mean: requests are read out of it and checked, answers are written into it.
//!
//! A read request is `{u32 least, u32 0}`, then for each submission `{u32 id, u32 0, i64 offset, u32 file, u32 count}` and `count`
//! ranges `{u64 start, u64 end}` of the registered file. A write request is `{u32 least, u32 finalize, u64 reserve}`, then for each submission
//! `{u32 id, u32 file, u32 count, u32 0}` and its ranges; writes append. An answer is `{i32 errno, u32 0}`, then `{u32 id, u32 n, i32 errno}` for
//! each completion. All are in the byte order of the machine. How many submissions or completions there are the window counts.

use std::ops::Range;

use rustix::io::Errno;

use crate::window::Window;

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reading at any offset.
    Read,
    /// Appending.
    Write,
}

/// What a client may ask for at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one submission.
    pub max_io_bytes: u32,
    /// Ranges of one submission.
    pub max_ranges: u32,
    /// Submissions under way, and so the end of their ids.
    pub max_parallel: u32,
}

impl Mode {
    /// Bytes that a request begins with, and that a submission begins with.
    const fn header_lens(self) -> (usize, usize) {
        match self {
            Self::Read => (8, 24),
            Self::Write => (16, 16),
        }
    }

    /// Bytes of window data that the longest request needs; answers are shorter.
    pub const fn data_len(self, limits: Limits) -> usize {
        let (request, submission) = self.header_lens();
        let ranges = limits.max_ranges as usize * RANGE_LEN;
        request + limits.max_parallel as usize * (submission + ranges)
    }
}

const RANGE_LEN: usize = 16;

/// Bytes of an answer before its completions, and of each of those.
const ANSWER_LEN: usize = 8;
const COMPLETION_LEN: usize = 12;

/// In place of an error number: the file ended.
const END_OF_FILE: i32 = -1;

/// A request of the sentry's, except its submissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Completions to wait for.
    pub least: u32,
    /// The file is whole.
    pub finalize: bool,
}

/// Bytes to be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submission {
    /// By which it is completed.
    pub id: u32,
    /// Where in the file; always 0 for what is appended.
    pub offset: u64,
    /// Number of the registered file.
    pub file: u32,
    /// Ranges of the registered file, none of them empty.
    pub ranges: Vec<Range<u64>>,
    /// Bytes in all ranges.
    pub len: u32,
}

/// How a submission ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The submission's.
    pub id: u32,
    /// Bytes that were read or written.
    pub n: u32,
    /// Why not all of them were.
    pub stopped: Option<Stopped>,
}

/// Why a submission stopped before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The file has no more bytes.
    EndOfFile,
    /// An error.
    Error(Errno),
}

/// Why a submission is not accepted: the sentry broke the protocol, and what follows it makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The submission's, as far as it had one.
    pub id: u32,
    /// What is wrong.
    pub why: String,
}

/// Memory that words are read from, each once.
pub trait Words {
    /// The 32-bit word at this offset in bytes, a multiple of four; `None` behind the end.
    fn u32_at(&self, at: usize) -> Option<u32>;
}

impl Words for Window {
    fn u32_at(&self, at: usize) -> Option<u32> {
        self.u32_at(at)
    }
}

/// Goes through the words of one request.
struct Reader<'a, W> {
    words: &'a W,
    at: usize,
}

impl<W: Words> Reader<'_, W> {
    fn u32(&mut self) -> Option<u32> {
        let word = self.words.u32_at(self.at)?;
        self.at += 4;
        Some(word)
    }

    fn u64(&mut self) -> Option<u64> {
        // The halves may be of two minds: what comes of it is checked as if it had been meant.
        let (first, second) = (self.u32()?, self.u32()?);
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first.to_ne_bytes());
        bytes[4..].copy_from_slice(&second.to_ne_bytes());
        Some(u64::from_ne_bytes(bytes))
    }
}

/// Reads what a request begins with.
pub fn parse_request(words: &impl Words, mode: Mode) -> Option<Request> {
    let mut reader = Reader { words, at: 0 };
    let (least, second) = (reader.u32()?, reader.u32()?);
    Some(Request {
        least,
        finalize: mode == Mode::Write && second != 0,
    })
}

/// Reads `count` submissions, handing each to `accept` as soon as it is known to be sound. `file_len` tells the length of a registered file.
/// Returns the first that is not sound, or that `accept` does not want.
pub fn parse_submissions(
    words: &impl Words,
    mode: Mode,
    limits: Limits,
    count: u32,
    file_len: impl Fn(u32) -> Option<u64>,
    mut accept: impl FnMut(Submission) -> Result<(), String>,
) -> Result<(), Rejected> {
    let mut reader = Reader {
        words,
        at: mode.header_lens().0,
    };
    for _ in 0..count {
        let mut id = 0;
        parse_submission(&mut reader, mode, limits, &file_len, &mut id)
            .and_then(&mut accept)
            .map_err(|why| Rejected { id, why })?;
    }
    Ok(())
}

fn parse_submission<W: Words>(
    reader: &mut Reader<'_, W>,
    mode: Mode,
    limits: Limits,
    file_len: impl Fn(u32) -> Option<u64>,
    id: &mut u32,
) -> Result<Submission, String> {
    let cut_off = || "the window ends within it".to_owned();
    let mut word = || reader.u32().ok_or_else(cut_off);
    *id = word()?;
    let (offset, file, count) = match mode {
        Mode::Read => {
            word()?;
            let offset = reader.u64().ok_or_else(cut_off)?;
            let mut word = || reader.u32().ok_or_else(cut_off);
            (offset, word()?, word()?)
        }
        Mode::Write => {
            let (file, count) = (word()?, word()?);
            word()?;
            (0, file, count)
        }
    };
    if *id >= limits.max_parallel {
        return Err(format!("its id is {id}, of {}", limits.max_parallel));
    }
    if offset > i64::MAX as u64 {
        return Err(format!("its offset is {}", offset as i64));
    }
    let file_len = file_len(file).ok_or_else(|| format!("no file {file} is registered"))?;
    if count == 0 || count > limits.max_ranges {
        return Err(format!("it has {count} ranges, of {}", limits.max_ranges));
    }
    let mut ranges = Vec::with_capacity(count as usize);
    let mut len = 0_u64;
    for _ in 0..count {
        let start = reader.u64().ok_or_else(cut_off)?;
        let end = reader.u64().ok_or_else(cut_off)?;
        if start >= end || end > file_len {
            return Err(format!(
                "it has the range {start} to {end} of a file of {file_len} bytes"
            ));
        }
        len = len.saturating_add(end - start);
        if len > u64::from(limits.max_io_bytes) {
            return Err(format!(
                "it has more than {} bytes, which are the most",
                limits.max_io_bytes
            ));
        }
        ranges.push(start..end);
    }
    Ok(Submission {
        id: *id,
        offset,
        file,
        ranges,
        len: len as u32,
    })
}

/// Writes an answer into the window, whose turn is still ours.
pub fn write_answer(window: &Window, errno: Option<Errno>, completions: &[Completion]) {
    let raw = |errno: Errno| errno.raw_os_error();
    window.set_u32(0, errno.map_or(0, raw) as u32);
    window.set_u32(4, 0);
    for (number, completion) in completions.iter().enumerate() {
        let at = ANSWER_LEN + number * COMPLETION_LEN;
        let errno = match completion.stopped {
            None => 0,
            Some(Stopped::EndOfFile) => END_OF_FILE,
            Some(Stopped::Error(errno)) => raw(errno),
        };
        window.set_u32(at, completion.id);
        window.set_u32(at + 4, completion.n);
        window.set_u32(at + 8, errno as u32);
    }
}
