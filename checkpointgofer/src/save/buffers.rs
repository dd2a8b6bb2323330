//! Memory for what is captured, whose pages the kernel has found already: while the sandbox stands still, finding them would take longer than copying into
//! them. They are found while the store is being asked, before the sandbox stops.
//!
//! How much the sandbox will write is not known by then. What is used in the cgroup, which is the sandbox's, is the most that it can be, and
//! what is left there is not all taken.

use std::{
    fs,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use crossbeam_channel::{Receiver, bounded};

/// Bytes of a prepared buffer: the most that a submission has.
const BUFFER_LEN: usize = super::PAGES_LIMITS.max_io_bytes as usize;

/// Threads that prepare: the store answers too soon for one.
const THREADS: usize = 2;

/// Buffers that are ready.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Option<Receiver<Vec<u8>>>>);

impl Buffers {
    /// Begins to prepare as many bytes as are sensible, `most` at most.
    pub fn prepare(&self, most: u64) {
        let len = Usage::read().map_or(0, |usage| usage.sensible()).min(most);
        let count = len as usize / BUFFER_LEN;
        let (ready, coming) = bounded(count);
        tracing::debug!(count, "preparing buffers");
        *self.ready() = Some(coming);
        for number in 0..THREADS {
            let ready = ready.clone();
            let prepare = move || {
                for _ in (number..count).step_by(THREADS) {
                    let mut buffer = vec![0; BUFFER_LEN];
                    for page in buffer.chunks_mut(rustix::param::page_size()) {
                        page[0] = 1;
                    }
                    // Nobody wants any more when the sandbox has written everything.
                    if ready.send(buffer).is_err() {
                        break;
                    }
                }
            };
            let thread = thread::Builder::new().name("gofer-prepare".to_owned());
            if let Err(error) = thread.spawn(prepare) {
                tracing::debug!(%error, "fewer buffers are prepared");
            }
        }
    }

    fn ready(&self) -> MutexGuard<'_, Option<Receiver<Vec<u8>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what nobody will take.
    pub fn release(&self) {
        *self.ready() = None;
    }

    /// A buffer of `len` bytes of any values.
    pub fn take(&self, len: usize) -> Vec<u8> {
        // Not for few bytes, which would hold a whole one.
        let worth_it = (BUFFER_LEN / 2..=BUFFER_LEN).contains(&len);
        let ready = worth_it.then(|| self.ready().as_ref()?.try_recv().ok());
        let mut buffer = ready.flatten().unwrap_or_else(|| vec![0; len]);
        buffer.truncate(len);
        buffer
    }
}

/// How a cgroup's memory is used, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    used: u64,
    /// `None` if there is no limit.
    limit: Option<u64>,
}

impl Usage {
    /// Of this process's cgroup; `None` where the system does not say.
    fn read() -> Option<Self> {
        let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
        Self::of(&cgroups, Path::new("/sys/fs/cgroup"))
    }

    /// Of the one that a line of `cgroups` names, be it of version 1 or 2.
    fn of(cgroups: &str, root: &Path) -> Option<Self> {
        cgroups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, used, limit) = match controllers {
                "" => (root.to_owned(), "memory.current", "memory.max"),
                "memory" => (
                    root.join("memory"),
                    "memory.usage_in_bytes",
                    "memory.limit_in_bytes",
                ),
                _ => return None,
            };
            let dir = root.join(path.trim_start_matches('/'));
            let number = |name| -> Option<u64> {
                let text = fs::read_to_string(dir.join(name)).ok()?;
                text.trim().parse().ok()
            };
            Some(Self {
                used: number(used)?,
                limit: number(limit),
            })
        })
    }

    /// Bytes to prepare: what is used is the most that is saved, and half of what is left stays free.
    fn sensible(self) -> u64 {
        let left = self.limit.map(|limit| limit.saturating_sub(self.used) / 2);
        self.used.min(left.unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_say_how_memory_is_used() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("pods/a/memory.current", "1000\n");
        write("pods/a/memory.max", "max\n");
        write("memory/b/memory.usage_in_bytes", "2000\n");
        write("memory/b/memory.limit_in_bytes", "5000\n");
        let (used, limit) = (1000, None);
        let found = Usage::of("0::/pods/a\n", root.path());
        assert_eq!(found, Some(Usage { used, limit }));
        assert_eq!(found.unwrap().sensible(), 1000);
        let (used, limit) = (2000, Some(5000));
        let found = Usage::of("3:cpu:/x\n2:memory:/b\n0::/\n", root.path());
        assert_eq!(found, Some(Usage { used, limit }));
        assert_eq!(found.unwrap().sensible(), 1500);
        assert_eq!(Usage::of("0::/\n", root.path()), None);
    }

    #[test]
    fn a_buffer_has_the_length_that_is_wanted_whether_it_was_prepared_or_not() {
        let buffers = Buffers::default();
        let (ready, coming) = bounded(1);
        ready.send(vec![1; BUFFER_LEN]).unwrap();
        *buffers.ready() = Some(coming);
        assert_eq!(buffers.take(100), [0; 100]);
        let len = BUFFER_LEN - 1;
        assert!(buffers.take(len) == vec![1; len]);
        assert!(buffers.take(len) == vec![0; len]);
    }
}
