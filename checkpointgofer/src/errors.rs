//! Errors of the engine as the sentry can be told of them: a number in an answer, a text in a reply.

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
