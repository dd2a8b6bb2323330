//! What goes wrong while memory is served.

use std::{fmt, sync::Arc};

use crate::error::{Error, ErrorKind};

/// Pages that could not be served. Whoever touches them gets SIGBUS, or the process was killed: nobody reads anything in their place.
#[derive(Debug, Clone)]
pub struct ServeError {
    /// The page, in the process that is served, if it is about one.
    pub address: Option<u64>,
    /// Where its bytes are in the section, if they are known.
    pub section_offset: Option<u64>,
    /// Why.
    pub why: Arc<Error>,
}

impl ServeError {
    pub(super) fn new(address: Option<u64>, section_offset: Option<u64>, why: Error) -> Self {
        Self {
            address,
            section_offset,
            why: Arc::new(why),
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.section_offset) {
            (Some(address), Some(offset)) => write!(
                f,
                "the page at {address:#x}, {offset} in the section, cannot be served: "
            )?,
            (Some(address), None) => write!(f, "the page at {address:#x} cannot be served: ")?,
            _ => write!(f, "the memory cannot be served: ")?,
        }
        write!(f, "{}", self.why)
    }
}

impl std::error::Error for ServeError {}

impl ServeError {
    /// The same as an error of the engine.
    pub fn into_error(self) -> Error {
        let kind = self.why.kind();
        let advice = self.why.advice().map(str::to_owned);
        let mut text = self.to_string();
        let Some(advice) = advice else {
            return Error::new(kind, text);
        };
        if let Some(bare) = text.strip_suffix(&format!(" ({advice})")) {
            text.truncate(bare.len());
        }
        Error::new(kind, text).hint(advice)
    }
}

/// A refusal of the kernel's.
pub(super) fn refused(what: &str, e: rustix::io::Errno) -> Error {
    Error::new(ErrorKind::Target, format!("the kernel does not {what}")).because(e)
}
