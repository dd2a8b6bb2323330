//! The control socket: JSON documents one after another, some with file descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::de::DeserializeOwned;

/// Longest document that is read, in bytes. The longest real one tells the huge pages of a large sandbox.
const MAX_LEN: usize = 16 << 20;

/// File descriptors that may come with a document.
const MAX_FDS: usize = 16;

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Takes a socket over.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The next document and what came with it; `None` when the other end has closed.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = Vec::new();
        let mut fds = Vec::new();
        loop {
            let read = self.receive_some(&mut bytes, &mut fds)?;
            if read == 0 {
                return match bytes.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            // Documents are objects, so only what ends in a brace may be whole.
            if !bytes.trim_ascii_end().ends_with(b"}") {
                continue;
            }
            match serde_json::from_slice(&bytes) {
                Ok(document) => return Ok(Some((document, fds))),
                Err(e) if e.is_eof() => {}
                Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
            }
        }
    }

    fn receive_some(&self, bytes: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut buffer = [0; 64 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let buffers = &mut [IoSliceMut::new(&mut buffer)];
            match recvmsg(&self.0, buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if fds.len() > MAX_FDS || bytes.len() + received.bytes > MAX_LEN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the call is too long",
            ));
        }
        bytes.extend_from_slice(&buffer[..received.bytes]);
        Ok(received.bytes)
    }

    /// Sends a document, with a file descriptor.
    pub fn send(&self, document: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let fds: Vec<_> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let mut rest = document;
        while !rest.is_empty() {
            match sendmsg(
                &self.0,
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    // They went with the first byte.
                    control.clear();
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
