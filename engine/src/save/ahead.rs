//! Reading a stream on a thread of its own, so that a save whose stream is silent can still be cancelled.
//!
//! Nothing can wake a thread that waits inside somebody else's `read`. A cancelled save therefore leaves it behind; it ends as soon
//! as the stream gives anything, or ends itself. Its buffers come from the save's pool, which bounds how far it reads ahead.

use std::{
    io::{self, Read},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::buffers::{Buffer, BufferPool};
use crate::{
    chunking::SEGMENT_LEN,
    error::{Error, ErrorKind, Result},
    source::SectionStream,
};

/// How long a cancellation may go unnoticed while the stream is silent.
const POLL: Duration = Duration::from_millis(50);

/// The next bytes of a stream.
pub(super) struct Ahead {
    /// Full, unless the stream has ended.
    pub(super) buffer: Buffer,
    /// Once the stream has ended: the length of the table that were its last bytes.
    pub(super) table_length: Option<u64>,
}

/// A stream being read.
pub(super) struct ReadAhead {
    segments: Receiver<io::Result<Ahead>>,
    name: String,
}

impl ReadAhead {
    /// Starts to read `stream`, which errors call `name`.
    pub(super) fn start(
        stream: Box<dyn SectionStream>,
        name: String,
        pool: BufferPool,
    ) -> Result<Self> {
        let (sender, segments) = bounded(0);
        let reading = move || {
            let mut stream = stream;
            loop {
                let read = read_one(&mut *stream, &pool);
                let last = !matches!(
                    read,
                    Ok(Ahead {
                        table_length: None,
                        ..
                    })
                );
                // Nobody receives any more when the save has failed or was cancelled.
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("podsnap-source".to_owned())
            .spawn(reading)
            .map_err(|e| Error::source(&name, e))?;
        Ok(Self { segments, name })
    }

    /// Waits for the next bytes, until `cancelled`.
    pub(super) fn next(&self, cancelled: &dyn Fn() -> bool) -> Result<Ahead> {
        loop {
            if cancelled() {
                return Err(Error::interrupted());
            }
            match self.segments.recv_timeout(POLL) {
                Ok(read) => return read.map_err(|e| Error::source(&self.name, e)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(
                        ErrorKind::Source,
                        format!("the thread that reads {} died", self.name),
                    ));
                }
            }
        }
    }
}

fn read_one(stream: &mut dyn SectionStream, pool: &BufferPool) -> io::Result<Ahead> {
    let mut buffer = pool.take();
    buffer.resize(SEGMENT_LEN, 0);
    let len = fill(stream, &mut buffer)?;
    buffer.truncate(len);
    Ok(Ahead {
        buffer,
        table_length: (len < SEGMENT_LEN).then(|| stream.table_length()),
    })
}

/// Reads until `buf` is full or the stream ends; the number of bytes read.
fn fill(stream: &mut (impl Read + ?Sized), buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
