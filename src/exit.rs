//! How the tool ends: the exit codes, and failures as people and scripts see them.

use std::{fmt, io::Write};

use podsnap::{Error, ErrorKind, printable_message};
use serde_json::json;

use crate::report;

/// Any failure that has no code of its own.
pub const FAILED: u8 = 1;
/// The arguments make no sense, or do not fit what they are applied to.
pub const USAGE: u8 = 2;
/// The snapshot or section does not exist.
pub const NOT_FOUND: u8 = 3;
/// The store refused: no permission, or a conflict with what it holds.
pub const REFUSED: u8 = 4;
/// Stored data is damaged, missing or of an unknown version.
pub const DAMAGED: u8 = 5;
/// Ended by a signal.
pub const INTERRUPTED: u8 = 130;
/// Whoever read standard output had enough before the end; what the shell says of programs that SIGPIPE ends.
pub const CLOSED_PIPE: u8 = 141;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// For scripts; stable.
    pub kind: &'static str,
    pub code: u8,
    message: String,
    hint: Option<String>,
}

impl Failure {
    fn new(kind: &'static str, code: u8, message: impl Into<String>) -> Self {
        Self {
            kind,
            code,
            message: message.into(),
            hint: None,
        }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new("invalid_input", USAGE, message)
    }

    pub fn other(message: impl Into<String>) -> Self {
        Self::new("failed", FAILED, message)
    }

    /// A source that cannot be read.
    pub fn source(message: impl Into<String>) -> Self {
        Self::new("source", FAILED, message)
    }

    pub fn interrupted() -> Self {
        Self::new("interrupted", INTERRUPTED, "interrupted")
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// One line on standard error, or one JSON document.
    pub fn print(&self, json: bool) {
        let line = if json {
            let document = json!({ "error": { "kind": self.kind, "message": self.message, "hint": self.hint } });
            report::tame_json(&document.to_string())
        } else {
            let text = match &self.hint {
                Some(hint) => format!("podsnap: {} ({hint})", self.message),
                None => format!("podsnap: {}", self.message),
            };
            printable_message(&text)
        };
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// The message without the hint.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        let (kind, code) = match e.kind() {
            ErrorKind::InvalidInput => ("invalid_input", USAGE),
            ErrorKind::NotFound => ("not_found", NOT_FOUND),
            ErrorKind::Forbidden => ("forbidden", REFUSED),
            ErrorKind::Conflict => ("conflict", REFUSED),
            ErrorKind::Missing => ("missing", DAMAGED),
            ErrorKind::Damaged => ("damaged", DAMAGED),
            ErrorKind::Unsupported => ("unsupported", DAMAGED),
            ErrorKind::Source => ("source", FAILED),
            ErrorKind::Target => ("target", FAILED),
            ErrorKind::Store => ("store", FAILED),
            ErrorKind::Interrupted => ("interrupted", INTERRUPTED),
            _ => ("failed", FAILED),
        };
        let mut message = e.to_string();
        let hint = e.advice().map(str::to_owned);
        if let Some(hint) = &hint
            && let Some(bare) = message.strip_suffix(&format!(" ({hint})"))
        {
            message.truncate(bare.len());
        }
        Self {
            kind,
            code,
            message,
            hint,
        }
    }
}
