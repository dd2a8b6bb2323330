//! A sentry without a sandbox: speaks both protocols with a gofer, rightly or as the test wants.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::FdFlags,
    mm::{MapFlags, ProtFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg,
    },
    thread::futex::{self, Timespec},
};
use serde_json::{Value, json};

use super::{GOFER, PATIENCE};

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;

/// A gofer with nobody but the test at its other end.
pub struct Sentry {
    socket: Option<OwnedFd>,
    pub gofer: Child,
}

impl Sentry {
    /// Starts a gofer with these options in `dir`, for saving or restoring. Its log is `gofer.log` there.
    pub fn start(dir: &Path, flag: &str, options: &Value) -> Self {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let path = dir.join("gcs_opts.json");
        std::fs::write(&path, options.to_string()).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join("gofer.log"))
            .unwrap();
        let options: OwnedFd = File::open(path).unwrap().into();
        // The gofer finds them open under their own numbers.
        for fd in [&theirs, &options] {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        let number = |fd: &OwnedFd| std::os::fd::AsRawFd::as_raw_fd(fd);
        let gofer = Command::new(GOFER)
            .args(["--debug=true", "--root=/nowhere", "checkpointgofer"])
            .arg(format!("-sock-fd={}", number(&theirs)))
            .arg(format!("-gcs-opts-fd={}", number(&options)))
            .arg(flag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            socket: Some(ours),
            gofer,
        }
    }

    fn socket(&self) -> &OwnedFd {
        self.socket.as_ref().expect("not hung up")
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: &[u8], fds: &[&dyn AsFd]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(self.socket(), &[IoSlice::new(bytes)], &mut control, flags);
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// The reply to what was sent, and what came with it. `None` if the gofer has closed the socket.
    pub fn receive(&self) -> Option<(Value, Vec<OwnedFd>)> {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut buffer)];
        let received = recvmsg(
            self.socket(),
            buffers,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let len = received.ok()?.bytes;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        (len > 0).then(|| (serde_json::from_slice(&buffer[..len]).unwrap(), fds))
    }

    /// Calls a method; the result, or the error.
    pub fn call(
        &self,
        method: &str,
        arg: Value,
        fds: &[&dyn AsFd],
    ) -> Result<(Value, Vec<OwnedFd>), String> {
        let call = json!({ "method": format!("AsyncFileServer.{method}"), "arg": arg });
        self.send(call.to_string().as_bytes(), fds);
        let (reply, fds) = self.receive().expect("a reply");
        match reply["success"].as_bool().expect("true or false") {
            true => Ok((reply["result"].clone(), fds)),
            false => Err(reply["err"].as_str().expect("a text").to_owned()),
        }
    }

    /// Opens a file and connects to it.
    pub fn open(&self, name: &str, mode: u32) -> Result<SentryFile, String> {
        let (opened, fds) = self.call("Open", json!({ "path": name, "mode": mode }), &[])?;
        let number = |key: &str| opened[key].as_u64().expect("a number");
        assert_eq!(number("packet_window_offset"), 0);
        let window = Window::map(&fds[0], number("packet_window_length") as usize);
        let file = SentryFile {
            handle: number("handle") as u32,
            max_io_bytes: number("max_io_bytes") as u32,
            max_ranges: number("max_ranges") as u32,
            max_parallel: number("max_parallel") as u32,
            mode,
            window,
        };
        file.window.set_bytes(0, b"{}\n");
        assert_eq!(file.window.exchange(3), Some(3));
        assert_eq!(file.window.u32_at(0).to_ne_bytes()[..3], *b"{}\n");
        Ok(file)
    }

    /// Registers memory of the sandbox that is to have huge pages; its number.
    pub fn register(&self, file: &SentryFile, memory: &Memory) -> Result<u32, String> {
        let settings = match memory.len {
            0 => Value::Null,
            end => json!([{ "Start": 0, "End": end, "Property": 1 }]),
        };
        self.register_with(file, memory, settings)
    }

    /// Registers memory of the sandbox, with what is wanted of its pages.
    pub fn register_with(
        &self,
        file: &SentryFile,
        memory: &Memory,
        settings: Value,
    ) -> Result<u32, String> {
        let arg = json!({
            "handle": file.handle,
            "size": memory.len,
            "writable": file.mode == READ,
            "settings": settings,
        });
        let (registered, _) = self.call("RegisterClientFile", arg, &[&memory.file])?;
        Ok(registered["handle"].as_u64().expect("a number") as u32)
    }

    pub fn close(&self, file: &SentryFile) -> Result<(), String> {
        let closed = self.call("Close", json!({ "handle": file.handle }), &[]);
        closed.map(drop)
    }

    /// Closes the socket and waits for the gofer's end: whether it is content.
    pub fn hang_up(mut self) -> bool {
        self.socket = None;
        self.wait().success()
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.gofer.try_wait().unwrap() {
                // Not by a signal: that would be a crash.
                assert!(ended.code().is_some(), "{ended}");
                return ended;
            }
            assert!(Instant::now() < deadline, "the gofer does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Sentry {
    fn drop(&mut self) {
        let _ = self.gofer.kill();
        let _ = self.gofer.wait();
    }
}

/// Memory of the sandbox: a file in memory.
pub struct Memory {
    pub file: File,
    pub len: u64,
}

impl Memory {
    pub fn new(bytes: &[u8]) -> Self {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(rustix::fs::memfd_create("memory", flags).unwrap());
        file.set_len(bytes.len() as u64).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Self {
            file,
            len: bytes.len() as u64,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.file.metadata().unwrap().len() as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

/// An open file, from the sentry's side.
pub struct SentryFile {
    pub handle: u32,
    pub max_io_bytes: u32,
    pub max_ranges: u32,
    pub max_parallel: u32,
    mode: u32,
    pub window: Window,
}

/// What the sentry asks for.
#[derive(Debug, Clone)]
pub struct Submission {
    pub id: u32,
    pub offset: i64,
    pub file: u32,
    /// Said to be there; the ranges that are written are `ranges`.
    pub count: u32,
    pub ranges: Vec<(u64, u64)>,
}

impl Submission {
    pub fn new(id: u32, offset: i64, file: u32, ranges: &[(u64, u64)]) -> Self {
        Self {
            id,
            offset,
            file,
            count: ranges.len() as u32,
            ranges: ranges.to_vec(),
        }
    }
}

/// The gofer's answer: an error number, and (id, n, error number) of each completion.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub errno: i32,
    pub completions: Vec<(u32, u32, i32)>,
}

impl SentryFile {
    /// Sends submissions and waits for `least` completions. `None` if the gofer has shut the window down.
    pub fn submit(&self, submissions: &[Submission], least: u32) -> Option<Answer> {
        self.write(submissions, least);
        self.exchange(submissions.len() as u32)
    }

    /// Writes a request into the window.
    pub fn write(&self, submissions: &[Submission], least: u32) {
        let mut words = match self.mode {
            READ => vec![least, 0],
            _ => vec![least, 0, 0, 0],
        };
        for s in submissions {
            let offset = [s.offset as u32, (s.offset >> 32) as u32];
            match self.mode {
                READ => words.extend([s.id, 0, offset[0], offset[1], s.file, s.count]),
                _ => words.extend([s.id, s.file, s.count, 0]),
            }
            for (start, end) in &s.ranges {
                let halves = [*start as u32, (start >> 32) as u32];
                words.extend(halves);
                words.extend([*end as u32, (end >> 32) as u32]);
            }
        }
        for (number, word) in words.iter().enumerate() {
            self.window.set_u32(4 * number, *word);
        }
    }

    /// Sends what is in the window as `count` submissions.
    pub fn exchange(&self, count: u32) -> Option<Answer> {
        let completed = self.window.exchange(count)?;
        let word = |at| self.window.u32_at(at);
        Some(Answer {
            errno: word(0) as i32,
            completions: (0..completed as usize)
                .map(|n| 8 + 12 * n)
                .map(|at| (word(at), word(at + 4), word(at + 8) as i32))
                .collect(),
        })
    }

    /// Says that the file is whole; the error number of the answer.
    pub fn finalize(&self) -> Option<i32> {
        for (at, word) in [(0, 0), (4, 1), (8, 0), (12, 0)] {
            self.window.set_u32(at, word);
        }
        Some(self.exchange(0)?.errno)
    }

    /// Writes memory from its beginning to its end, as many bytes at once as may be.
    pub fn write_all(&self, file: u32, len: u64) {
        let step = u64::from(self.max_io_bytes);
        for start in (0..len).step_by(step as usize) {
            let end = len.min(start + step);
            let answer = self.submit(&[Submission::new(0, 0, file, &[(start, end)])], 1);
            let expected = Answer {
                errno: 0,
                completions: vec![(0, (end - start) as u32, 0)],
            };
            assert_eq!(answer, Some(expected));
        }
    }
}

/// The client's end of a packet window.
pub struct Window {
    memory: NonNull<AtomicU32>,
    pub len: usize,
}

// SAFETY: the mapping is reached through atomics only.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    fn map(fd: &OwnedFd, len: usize) -> Self {
        let seals = rustix::fs::fcntl_get_seals(fd).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::SEAL));
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address; the seals keep the memory whole.
        let memory = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0).unwrap()
        };
        Self {
            memory: NonNull::new(memory.cast()).unwrap(),
            len,
        }
    }

    /// A word of the whole window, which begins with the state and the count.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: aligned, and inside the mapping.
        unsafe { self.memory.add(at / 4).as_ref() }
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        self.word(16 + at).load(Ordering::Relaxed)
    }

    pub fn set_u32(&self, at: usize, value: u32) {
        self.word(16 + at).store(value, Ordering::Relaxed);
    }

    pub fn set_bytes(&self, at: usize, bytes: &[u8]) {
        for (number, four) in bytes.chunks(4).enumerate() {
            let mut word = [0; 4];
            word[..four.len()].copy_from_slice(four);
            self.set_u32(at + 4 * number, u32::from_ne_bytes(word));
        }
    }

    /// Gives the turn to the gofer.
    pub fn give(&self, count: u32) {
        self.word(4).store(count, Ordering::Relaxed);
        let state = self.word(0);
        let _ = state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        futex::wake(state, futex::Flags::empty(), 1).unwrap();
    }

    /// Waits for the turn; the count that came with it, or `None` when the window is shut down.
    pub fn wait(&self) -> Option<u32> {
        let deadline = Instant::now() + PATIENCE;
        let state = self.word(0);
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        loop {
            match state.load(Ordering::Acquire) {
                0 => return Some(self.word(4).load(Ordering::Relaxed)),
                1 => {
                    assert!(Instant::now() < deadline, "the gofer does not answer");
                    let _: Result<(), io::Error> =
                        futex::wait(state, futex::Flags::empty(), 1, Some(&second))
                            .map_err(Into::into);
                }
                _ => return None,
            }
        }
    }

    pub fn exchange(&self, count: u32) -> Option<u32> {
        self.give(count);
        self.wait()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and nobody has a reference into it.
        unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.len).unwrap() };
    }
}
