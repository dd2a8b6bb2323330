//! Errors of the engine as the sentry can be told of them: a number in an answer, a text in a reply.

use std::io;

use podsnap_engine::{Error, ErrorKind};
use rustix::io::Errno;

/// The number that tells most of an error. Its text goes to the log and, where there is one, into a reply.
pub fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::InvalidInput | ErrorKind::Unsupported => Errno::INVAL,
        ErrorKind::NotFound => Errno::NOENT,
        ErrorKind::Forbidden => Errno::ACCESS,
        ErrorKind::Conflict => Errno::EXIST,
        ErrorKind::Missing => Errno::NODATA,
        ErrorKind::Damaged => Errno::BADMSG,
        ErrorKind::Interrupted => Errno::CANCELED,
        _ => Errno::IO,
    }
}

/// The number for memory of the sandbox that cannot be taken, or not be kept: it may have been cut off.
pub fn io_errno(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Errno::FAULT,
        _ => Errno::from_io_error(error).unwrap_or(Errno::IO),
    }
}
