//! Captured memory: copied out of the sandbox as fast as memory and disk allow, so that the sandbox goes on while the save still works on it.
//!
//! Several threads copy at once. What the save has not read yet is kept in memory up to a limit, beyond that in a file without a name, whose
//! blocks are given back as they are read. However fast or slow the store is, the sandbox never waits for it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::fs::{FallocateFlags, fallocate};

use crate::{
    errors,
    guest::GuestFile,
    request::{Completion, Stopped, Submission},
};

/// Most threads that copy: a few carry all that memory can.
const MAX_THREADS: usize = 8;

/// Where captured bytes are kept.
#[derive(Debug, Clone)]
pub struct CaptureOptions {
    /// Bytes that may be in memory, all captures of this process together.
    pub max_memory_len: u64,
    /// Directory for what is more.
    pub spill_dir: PathBuf,
}

/// Copies submissions.
pub struct Capture {
    jobs: Sender<Job>,
    kept: Arc<Kept>,
}

struct Job {
    submission: Submission,
    file: Arc<GuestFile>,
    captured: Sender<io::Result<Captured>>,
    completions: Sender<Completion>,
}

/// What is kept for the save.
struct Kept {
    max_memory_len: u64,
    memory_len: AtomicU64,
    /// The file has no name, so that it is gone with this process.
    spilled: File,
    spilled_len: AtomicU64,
}

/// The bytes of one submission.
pub struct Captured {
    kept: Arc<Kept>,
    place: Place,
    read: usize,
}

enum Place {
    Memory(Vec<u8>),
    /// A range of the file.
    Spilled {
        offset: u64,
        len: usize,
    },
}

impl Capture {
    /// Starts the threads.
    pub fn start(options: &CaptureOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.spill_dir)?;
        let kept = Arc::new(Kept {
            max_memory_len: options.max_memory_len,
            memory_len: AtomicU64::new(0),
            spilled: tempfile::tempfile_in(&options.spill_dir)?,
            spilled_len: AtomicU64::new(0),
        });
        let (jobs, coming) = unbounded();
        let threads = thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
        for _ in 0..threads {
            let (coming, kept): (Receiver<Job>, _) = (coming.clone(), kept.clone());
            thread::Builder::new()
                .name("gofer-capture".to_owned())
                .spawn(move || coming.iter().for_each(|job| kept.run(job)))?;
        }
        Ok(Self { jobs, kept })
    }

    /// Captures a submission, which is completed when it is. What is returned gives its bytes.
    pub fn begin(
        &self,
        submission: Submission,
        file: Arc<GuestFile>,
        completions: Sender<Completion>,
    ) -> Receiver<io::Result<Captured>> {
        let (captured, coming) = bounded(1);
        let job = Job {
            submission,
            file,
            captured,
            completions,
        };
        // The threads take jobs as long as there is a sender.
        let _ = self.jobs.send(job);
        coming
    }

    /// Bytes that went to the file.
    pub fn spilled_len(&self) -> u64 {
        self.kept.spilled_len.load(Ordering::Relaxed)
    }
}

impl Kept {
    fn run(self: &Arc<Self>, job: Job) {
        let (id, len) = (job.submission.id, job.submission.len);
        let captured = self.capture(&job.submission, &job.file);
        let completion = match &captured {
            Ok(_) => Completion {
                id,
                n: len,
                stopped: None,
            },
            Err(error) => {
                tracing::error!(%error, "the sandbox's memory cannot be captured");
                Completion {
                    id,
                    n: 0,
                    stopped: Some(Stopped::Error(errors::io_errno(error))),
                }
            }
        };
        // Nobody reads any more when the save has failed.
        let _ = job.captured.send(captured);
        let _ = job.completions.send(completion);
    }

    fn capture(
        self: &Arc<Self>,
        submission: &Submission,
        file: &GuestFile,
    ) -> io::Result<Captured> {
        let len = submission.len as usize;
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        for range in &submission.ranges {
            let (now, later) = rest.split_at_mut((range.end - range.start) as usize);
            file.read_at(now, range.start)?;
            rest = later;
        }
        let before = self.memory_len.fetch_add(len as u64, Ordering::Relaxed);
        let place = if before + len as u64 <= self.max_memory_len {
            Place::Memory(bytes)
        } else {
            self.memory_len.fetch_sub(len as u64, Ordering::Relaxed);
            let offset = self.spilled_len.fetch_add(len as u64, Ordering::Relaxed);
            self.spilled.write_all_at(&bytes, offset)?;
            Place::Spilled { offset, len }
        };
        Ok(Captured {
            kept: self.clone(),
            place,
            read: 0,
        })
    }
}

impl Read for Captured {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = match &self.place {
            Place::Memory(bytes) => {
                let left = &bytes[self.read..];
                let len = left.len().min(buf.len());
                buf[..len].copy_from_slice(&left[..len]);
                len
            }
            Place::Spilled { offset, len } => {
                let len = (len - self.read).min(buf.len());
                let at = offset + self.read as u64;
                self.kept.spilled.read_exact_at(&mut buf[..len], at)?;
                len
            }
        };
        self.read += len;
        Ok(len)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        match &self.place {
            Place::Memory(bytes) => {
                let len = bytes.len() as u64;
                self.kept.memory_len.fetch_sub(len, Ordering::Relaxed);
            }
            Place::Spilled { offset, len } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                // Not every file system can; then the blocks are free when the file is.
                let _ = fallocate(&self.kept.spilled, flags, *offset, *len as u64);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    fn guest(bytes: &[u8]) -> Arc<GuestFile> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(GuestFile::new(file.into(), bytes.len() as u64, false).unwrap())
    }

    #[test]
    fn what_is_captured_comes_back_in_order_from_memory_and_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let guest = guest(&bytes);
        let capture = Capture::start(&CaptureOptions {
            max_memory_len: 100_000,
            spill_dir: dir.path().join("spill"),
        })
        .unwrap();
        let (completions, completed) = unbounded();
        let parts: Vec<_> = (0..40)
            .map(|id| {
                let start = u64::from(id) * 10_000;
                let submission = Submission {
                    id,
                    offset: 0,
                    file: 0,
                    ranges: vec![start..start + 1, start + 1..start + 10_000],
                    len: 10_000,
                };
                capture.begin(submission, guest.clone(), completions.clone())
            })
            .collect();
        drop(completions);
        // Everything is captured before anything is read.
        let mut ids: Vec<_> = completed.iter().map(|c| (c.id, c.n, c.stopped)).collect();
        ids.sort_unstable_by_key(|(id, ..)| *id);
        let all: Vec<_> = (0..40).map(|id| (id, 10_000, None)).collect();
        assert_eq!(ids, all);
        assert_eq!(capture.spilled_len(), 300_000);
        let mut found = Vec::new();
        for part in parts {
            let mut captured = part.recv().unwrap().unwrap();
            captured.read_to_end(&mut found).unwrap();
        }
        assert!(found == bytes);
        assert_eq!(capture.kept.memory_len.load(Ordering::Relaxed), 0);
        assert_eq!(fs::read_dir(dir.path().join("spill")).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_no_capture() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(&[1; 100]);
        let capture = Capture::start(&CaptureOptions {
            max_memory_len: 0,
            spill_dir: dir.path().to_owned(),
        })
        .unwrap();
        let (completions, completed) = unbounded();
        let submission = Submission {
            id: 3,
            offset: 0,
            file: 0,
            ranges: vec![0..100, 100..200],
            len: 200,
        };
        let part = capture.begin(submission, guest, completions);
        assert!(part.recv().unwrap().is_err());
        let stopped = Some(Stopped::Error(Errno::FAULT));
        assert_eq!(completed.recv().unwrap().stopped, stopped);
    }
}
