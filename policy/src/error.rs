//! The one error: which file, which line, which field, and what about it.

use std::{
    borrow::Cow,
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
            field: one_line(&cut(&field.into())),
            problem: one_line(&problem.into()),
        }
    }

    pub(crate) fn of_file(file: &Path, problem: impl Into<String>) -> Self {
        Self::new(file, 0, "", problem)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", one_line(&self.file.display().to_string()))?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// A text of a file, for a message: in quotes, and not all of it if it is long.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

/// The beginning of a text of a file, which may be as long as the file.
pub(crate) fn cut(text: &str) -> Cow<'_, str> {
    const MAX_SHOWN: usize = 200;
    match text.len() > MAX_SHOWN {
        true => format!("{}...", &text[..text.floor_char_boundary(MAX_SHOWN)]).into(),
        false => text.into(),
    }
}

/// What would end the line, or make a terminal do something, is escaped. Quotes and backslashes stay: [`quoted`] has put them there.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\'' | '\\' => line.push(c),
            c => line.extend(c.escape_debug()),
        }
    }
    line
}
