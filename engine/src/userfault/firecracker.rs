//! Firecracker's way of asking for its guest's memory: it connects to a Unix socket and sends one message, which says what belongs where (JSON) and
//! carries the userfaultfd (`SCM_RIGHTS`). It leaves the connection open and never says anything again.
//!
//! Whatever else comes is refused: a connection is a stranger's. Who sent a userfaultfd and is refused nevertheless is killed, for it
//! would wait for its memory for ever.

use std::{
    fs,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg},
    process::{Pid, PidfdFlags},
};
use serde::Deserialize;
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

use super::{
    features::Userfault,
    server::{MemoryServer, ServeOptions},
    table::Region,
};
use crate::{
    error::{Error, ErrorKind, Result},
    lazy::SectionReader,
};

/// Most that a message may have, in bytes: some hundreds of regions. Firecracker has one for each of its memory slots.
const MAX_MESSAGE_LEN: usize = 64 << 10;

/// Most pieces that it may come in.
const MAX_PIECES: usize = 64;

/// How long it may take to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// More descriptors than this are too many to even look at.
const MAX_DESCRIPTORS: usize = 4;

/// The size of pages of old versions, which do not say it.
const DEFAULT_PAGE_SIZE: u64 = 4096;

/// A Unix socket that VMMs connect to. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// A process that has connected.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    pid: i32,
    pidfd: OwnedFd,
}

/// What a VMM asks for.
#[derive(Debug)]
pub struct Request {
    /// The VMM.
    pub pid: i32,
    /// What of its memory holds what of the section.
    pub regions: Vec<Region>,
    userfault: Userfault,
    stream: UnixStream,
}

/// Memory of a VMM that is served.
#[derive(Debug)]
pub struct Guest {
    server: MemoryServer,
    /// The VMM may look whether somebody is still there.
    _stream: UnixStream,
}

#[derive(Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    /// The same under an older name; bytes, whatever that says.
    page_size_kib: Option<u64>,
}

impl Socket {
    /// Makes a socket that this process's user can connect to; others once its mode or owner is changed. One that a dead process left is replaced.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |e| Error::target_action("make", format!("the socket {}", path.display()), e);
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    let what = format!("another process serves on {}", path.display());
                    return Err(Error::new(ErrorKind::Conflict, what));
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => {
                let what = format!("{} exists and is no socket", path.display());
                return Err(
                    Error::new(ErrorKind::Conflict, what).hint("name a path where nothing is")
                );
            }
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Whoever can connect can read the snapshot's memory.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
        })
    }

    /// Waits for somebody to connect.
    pub async fn accept(&self) -> Result<Connection> {
        loop {
            let failed = |e| Error::target_action("accept on", self.path.display(), e);
            let (stream, _) = self.listener.accept().await.map_err(failed)?;
            let pid = stream.peer_cred().map_err(failed)?.pid();
            let Some(pid) = pid.and_then(Pid::from_raw) else {
                tracing::error!(
                    "a process of another pid namespace is not served: this program could not see whether it lives"
                );
                continue;
            };
            match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => {
                    let pid = pid.as_raw_nonzero().get();
                    return Ok(Connection { stream, pid, pidfd });
                }
                // It is gone already.
                Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(failed(e.into())),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Connection {
    /// The process at its other end.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for its request, some seconds at most.
    pub async fn request(self) -> Result<Request> {
        let pid = self.pid;
        let mut received = Received::default();
        let result = match tokio::time::timeout(PATIENCE, received.all(&self.stream)).await {
            Ok(result) => result,
            Err(_) => Err(bad("it has not sent its request in time")),
        };
        let result = result.and_then(|regions| {
            let Ok([fd]) = <[OwnedFd; 1]>::try_from(std::mem::take(&mut received.descriptors))
            else {
                unreachable!("counted before");
            };
            let pidfd = self.pidfd.try_clone();
            let pidfd = pidfd.map_err(|e| Error::target_action("duplicate", "a descriptor", e))?;
            Ok(Request {
                pid,
                regions,
                userfault: Userfault::adopt(fd, pidfd)?,
                stream: self.stream,
            })
        });
        result.map_err(|e| {
            if received
                .descriptors
                .iter()
                .any(|fd| is_userfaultfd(fd.as_fd()))
            {
                let _ =
                    rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
            }
            refused(pid, e)
        })
    }
}

impl Request {
    /// Serves it from a section. Kills the VMM if its regions do not fit the section.
    pub fn serve(self, reader: SectionReader, options: ServeOptions) -> Result<Guest> {
        let pidfd = self
            .userfault
            .process
            .pidfd()
            .map(|fd| fd.try_clone_to_owned());
        tracing::info!(pid = self.pid, regions = ?self.regions, "serving a process");
        match MemoryServer::start(self.userfault, reader, &self.regions, options) {
            Ok(server) => Ok(Guest {
                server,
                _stream: self.stream,
            }),
            Err(e) => {
                if let Some(Ok(pidfd)) = pidfd {
                    let _ =
                        rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
                }
                Err(refused(self.pid, e))
            }
        }
    }
}

impl Guest {
    /// What serves it.
    pub fn server(&self) -> &MemoryServer {
        &self.server
    }

    /// Stops serving it; see [`MemoryServer::close`].
    pub async fn close(self) {
        self.server.close().await;
    }
}

/// What has come of a request.
#[derive(Default)]
struct Received {
    message: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Received {
    /// Receives until the request is whole. There is one descriptor then.
    async fn all(&mut self, stream: &UnixStream) -> Result<Vec<Region>> {
        for _ in 0..MAX_PIECES {
            let received = stream
                .async_io(Interest::READABLE, || self.some(stream))
                .await
                .map_err(|e| bad("what it sends cannot be received").because(e))?;
            if self.descriptors.len() > 1 {
                return Err(bad("it sent more descriptors than its userfaultfd"));
            }
            if self.message.len() > MAX_MESSAGE_LEN {
                return Err(bad(format!(
                    "its request has more than {MAX_MESSAGE_LEN} bytes"
                )));
            }
            match serde_json::from_slice::<Vec<Mapping>>(&self.message) {
                Ok(_) if self.descriptors.is_empty() => {
                    return Err(bad("its request came without a userfaultfd"));
                }
                Ok(mappings) => return mappings.into_iter().map(region).collect(),
                Err(e) if e.is_eof() && received > 0 => {}
                Err(_) if self.message.is_empty() => {
                    return Err(bad("it closed the connection and sent nothing"));
                }
                Err(e) => return Err(bad("its request is not what Firecracker sends").because(e)),
            }
        }
        Err(bad("its request came in too many pieces"))
    }

    /// Receives what is there.
    fn some(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let mut piece = vec![0; MAX_MESSAGE_LEN + 1 - self.message.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut iov = [IoSliceMut::new(&mut piece)];
        let received = recvmsg(
            stream,
            &mut iov,
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.descriptors.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "too many descriptors",
            ));
        }
        self.message.extend_from_slice(&piece[..received.bytes]);
        Ok(received.bytes)
    }
}

fn region(mapping: Mapping) -> Result<Region> {
    let start = mapping.base_host_virt_addr;
    let end = start.checked_add(mapping.size);
    Ok(Region {
        addresses: start..end.ok_or_else(|| bad("it has a region beyond all memory"))?,
        section_offset: mapping.offset,
        page_size: mapping
            .page_size
            .or(mapping.page_size_kib)
            .unwrap_or(DEFAULT_PAGE_SIZE),
    })
}

fn is_userfaultfd(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    fd.try_clone_to_owned()
        .is_ok_and(|fd| super::sys::Descriptor::adopt(fd).is_ok())
}

fn bad(why: impl Into<String>) -> Error {
    Error::invalid(why)
}

fn refused(pid: i32, why: Error) -> Error {
    let kind = why.kind();
    Error::new(kind, format!("the memory of process {pid} is not served")).because(why)
}
