//! The control protocol: opens files, registers the sandbox's memory for them, closes them. Each open file is served on a thread of its own.

use std::{
    collections::HashMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    thread::{self, JoinHandle},
};

use rustix::io::Errno;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    calls::{Call, Close, Nothing, Open, Opened, Register, Registered as RegisteredReply, Reply},
    guest::{GuestFile, PageSize},
    request::{Limits, Mode},
    serve::{Backing, Refusal, Registered, serve},
    socket::Socket,
    window::Window,
};

/// Files that may be open at once. An image has four at most.
const MAX_OPEN: usize = 16;

/// Who has files to open.
pub trait Files {
    /// Opens a file. Errors are shown to whoever runs the sandbox.
    fn open(&self, name: &str, mode: Mode) -> Result<(Limits, Box<dyn Backing>), String>;

    /// What went wrong with an open file, if anything did: told when it is closed.
    fn failure(&self, name: &str) -> Option<String>;
}

/// Has no files.
pub struct Refusing {
    /// Why.
    pub why: String,
    /// When the sandbox learns it, if it wants to write.
    pub refusal: Refusal,
}

impl Files for Refusing {
    fn open(&self, _name: &str, mode: Mode) -> Result<(Limits, Box<dyn Backing>), String> {
        match mode {
            Mode::Read => Err(self.why.clone()),
            Mode::Write => self.refusal.answer(Errno::INVAL, &self.why),
        }
    }

    fn failure(&self, _name: &str) -> Option<String> {
        Some(self.why.clone())
    }
}

struct OpenFile {
    name: String,
    mode: Mode,
    window: Arc<Window>,
    registered: Arc<Registered>,
    thread: JoinHandle<()>,
}

impl OpenFile {
    /// Ends its connection and waits for its thread, and so for all that was under way.
    fn close(self) {
        self.window.shut_down();
        if self.thread.join().is_err() {
            tracing::error!(file = self.name, "the thread that serves it died");
        }
    }
}

/// Serves one sandbox.
pub struct Server<'a> {
    socket: Socket,
    files: &'a dyn Files,
    open: HashMap<u32, OpenFile>,
    next_handle: u32,
}

impl<'a> Server<'a> {
    /// Serves `files` on `socket`.
    pub fn new(socket: Socket, files: &'a dyn Files) -> Self {
        Self {
            socket,
            files,
            open: HashMap::new(),
            next_handle: 0,
        }
    }

    /// Answers calls until the sandbox closes the socket.
    pub fn run(&mut self) -> io::Result<()> {
        while let Some((call, fds)) = self.socket.receive::<Call>()? {
            tracing::debug!(method = call.method, "called");
            self.answer(call, fds)?;
        }
        Ok(())
    }

    fn answer(&mut self, call: Call, fds: Vec<OwnedFd>) -> io::Result<()> {
        let arg = call.arg;
        match call.method.as_str() {
            "AsyncFileServer.Open" => {
                let opened = parse(arg).and_then(|open| self.open(&open));
                let window = opened.as_ref().ok().map(|(_, window)| window.clone());
                let fd = window.as_ref().map(|window| window.fd());
                let opened = opened.map(|(opened, _)| opened);
                self.reply(&call.method, opened, fd)
            }
            "AsyncFileServer.RegisterClientFile" => {
                let registered = parse(arg).and_then(|register| self.register(&register, fds));
                self.reply(&call.method, registered, None)
            }
            "AsyncFileServer.Close" => {
                let closed = parse(arg).and_then(|close| self.close(&close));
                self.reply(&call.method, closed, None)
            }
            unknown => {
                let refusal = Err::<Nothing, _>(format!("there is no method {unknown}"));
                self.reply(&call.method, refusal, None)
            }
        }
    }

    fn reply<T: Serialize>(
        &self,
        method: &str,
        result: Result<T, String>,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        if let Err(error) = &result {
            tracing::warn!(method, error, "a call fails");
        }
        let reply = serde_json::to_vec(&Reply::from(result)).expect("replies are plain data");
        self.socket.send(&reply, fd)
    }

    fn open(&mut self, open: &Open) -> Result<(Opened, Arc<Window>), String> {
        let mode = match open.mode {
            1 => Mode::Read,
            2 => Mode::Write,
            mode => return Err(format!("there is no mode {mode}")),
        };
        if self.open.len() >= MAX_OPEN {
            return Err(format!("{MAX_OPEN} files are open already"));
        }
        let (limits, mut backing) = self.files.open(&open.path, mode)?;
        let window = Window::new(mode.data_len(limits));
        let window = window.map_err(|e| format!("cannot make a packet window: {e}"))?;
        let window = Arc::new(window);
        let registered = Arc::new(Registered::default());
        let serving = {
            let (window, registered) = (window.clone(), registered.clone());
            let name = open.path.clone();
            move || {
                let served = serve(&window, mode, limits, &registered, &mut *backing);
                if let Err(error) = served {
                    tracing::error!(file = name, %error, "serving it ends");
                    // The sentry must not wait for an answer that never comes.
                    window.shut_down();
                }
            }
        };
        let thread = thread::Builder::new()
            .name(format!("gofer-{}", open.path))
            .spawn(serving)
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        let handle = self.next_handle;
        self.next_handle = handle.wrapping_add(1);
        let opened = Opened {
            handle,
            max_io_bytes: limits.max_io_bytes,
            max_ranges: limits.max_ranges,
            max_parallel: limits.max_parallel,
            packet_window_offset: 0,
            packet_window_length: window.len(),
        };
        let file = OpenFile {
            name: open.path.clone(),
            mode,
            window: window.clone(),
            registered,
            thread,
        };
        if let Some(old) = self.open.insert(handle, file) {
            // Handles went round once: nobody has a file open for so long.
            old.close();
        }
        Ok((opened, window))
    }

    fn register(
        &mut self,
        register: &Register,
        mut fds: Vec<OwnedFd>,
    ) -> Result<RegisteredReply, String> {
        let open = self.open.get(&register.handle);
        let open = open.ok_or_else(|| format!("no file {} is open", register.handle))?;
        let fd = match (fds.pop(), fds.len()) {
            (Some(fd), 0) => fd,
            (_, more) => return Err(format!("it comes with {more} file descriptors, not one")),
        };
        if open.mode == Mode::Read && !register.writable {
            return Err("what is read into must be writable".to_owned());
        }
        let writable = open.mode == Mode::Read;
        let file = GuestFile::new(fd, register.size, writable)
            .map_err(|e| format!("cannot register memory for {}: {e}", open.name))?;
        for setting in register.settings.iter().flatten() {
            if setting.start >= setting.end || setting.end > register.size {
                return Err(format!(
                    "a setting for the range {} to {} of {} bytes",
                    setting.start, setting.end, register.size
                ));
            }
            let pages = match setting.property {
                1 => PageSize::Huge,
                2 => PageSize::Small,
                property => return Err(format!("there is no property {property}")),
            };
            if let Err(error) = file.advise(&(setting.start..setting.end), pages) {
                tracing::warn!(?setting, %error, "the size of pages stays as it is");
            }
        }
        let handle = open.registered.add(file)?;
        Ok(RegisteredReply { handle })
    }

    fn close(&mut self, close: &Close) -> Result<Nothing, String> {
        let file = self.open.remove(&close.handle);
        let file = file.ok_or_else(|| format!("no file {} is open", close.handle))?;
        let name = file.name.clone();
        file.close();
        match self.files.failure(&name) {
            None => Ok(Nothing {}),
            Some(why) => Err(why),
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        for (_, file) in self.open.drain() {
            file.close();
        }
    }
}

fn parse<T: DeserializeOwned>(arg: Value) -> Result<T, String> {
    serde_json::from_value(arg).map_err(|e| format!("the call's argument makes no sense: {e}"))
}
