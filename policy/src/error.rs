//! The one error: which file, which line, which field, and what about it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Something in a file that makes no sense. Displayed, it is one line: `policy.yaml:9: spec.triggerConfig.type: ...`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The file, or the directory that should hold files.
    pub file: PathBuf,
    /// The line, from 1; 0 if it is about the whole file.
    pub line: u64,
    /// The field, from the top of its document: `spec.selector.matchLabels`. Empty if it is about the whole document.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl Error {
    pub(crate) fn new(
        file: &Path,
        line: u64,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            file: file.to_owned(),
            line,
            field: field.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn of_file(file: &Path, problem: impl Into<String>) -> Self {
        Self::new(file, 0, "", problem)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.problem)
    }
}
