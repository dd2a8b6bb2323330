//! The one public error: a small stable [`ErrorKind`] for programs, and for people a text that says what, where and what to do.

use std::{error::Error as StdError, fmt, io};

use podsnap_format::FormatError;

/// Result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a program needs to know about an [`Error`] to act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense: a bad id, a bad URL, a wrong key, contradicting options.
    InvalidInput,
    /// The snapshot, section or object does not exist.
    NotFound,
    /// The store refused: the caller's credentials do not allow the request.
    Forbidden,
    /// The snapshot exists already, or somebody else is writing it or relies on it.
    Conflict,
    /// An object that a committed snapshot needs is gone from the store.
    Missing,
    /// Stored bytes do not check out.
    Damaged,
    /// The object was written by a newer podsnap, or needs a feature that this one lacks.
    Unsupported,
    /// What was to be saved vanished, changed while it was read, or could not be read.
    Source,
    /// What was to be restored could not be written.
    Target,
    /// The store could not be reached or failed.
    Store,
    /// The caller cancelled.
    Interrupted,
}

/// An error of the engine. Displayed, it is one line: what happened, to what, why, and in parentheses what can be done about it.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use podsnap::{ErrorKind, Store};
///
/// let store = Store::open("memory://errors")?;
/// match store.snapshot(&"web-1".parse()?).await {
///     Ok(snapshot) => println!("{} sections", snapshot.sections().len()),
///     Err(e) if e.kind() == ErrorKind::NotFound => println!("starting without: {e}"),
///     Err(e) => return Err(e.into()),
/// }
/// # Ok(()) }
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    maybe_absent: bool,
}

impl Error {
    /// An error that says what happened and to what. Sources, targets and backends of the caller's make these as well.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            source: None,
            maybe_absent: false,
        }))
    }

    /// Adds what the reader of the message can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The store forbids, and may do so because there is nothing: it does not tell this caller which.
    pub(crate) fn maybe_absent(mut self) -> Self {
        self.0.maybe_absent = true;
        self
    }

    /// Whether an object is absent, or forbidden in a way that an absent one may be. Only for those who go on safely if it is there after all.
    pub(crate) fn is_absence(&self) -> bool {
        self.0.kind == ErrorKind::NotFound || self.0.maybe_absent
    }

    /// Adds what caused it.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted")
    }

    pub(crate) fn source(what: impl fmt::Display, err: io::Error) -> Self {
        Self::new(ErrorKind::Source, format!("cannot read {what}")).because(err)
    }

    pub(crate) fn target(what: impl fmt::Display, err: io::Error) -> Self {
        Self::target_action("write", what, err)
    }

    /// Something other than writing that could not be done in a restore's target.
    pub(crate) fn target_action(action: &str, what: impl fmt::Display, err: io::Error) -> Self {
        let full = matches!(
            err.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let error = Self::new(ErrorKind::Target, format!("cannot {action} {what}")).because(err);
        if full {
            error.hint("free space there, or write to another file system")
        } else {
            error
        }
    }

    /// An object that is there but does not hold what it must.
    pub(crate) fn damaged(object: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::new(
            ErrorKind::Damaged,
            format!("{object} is damaged: {}", why.into()),
        )
    }

    /// A pack that a committed snapshot needs and that is not there.
    pub(crate) fn missing(object: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Missing, format!("{object} is missing, and the snapshot needs it"))
            .hint("it was deleted or never copied: restore it from a copy of the store, or salvage the rest")
    }

    /// A refusal of the format, for `object`.
    pub(crate) fn format(object: impl fmt::Display, err: FormatError) -> Self {
        if is_unsupported(&err) {
            Self::new(
                ErrorKind::Unsupported,
                format!("{object} cannot be read by this version"),
            )
            .because(err)
            .hint("use a podsnap at least as new as the one that wrote it")
        } else {
            Self::new(ErrorKind::Damaged, format!("{object} is damaged")).because(err)
        }
    }

    /// The same error for somebody else who is concerned.
    pub(crate) fn again(&self) -> Self {
        Self(Box::new(Inner {
            kind: self.0.kind,
            message: self.what(),
            hint: self.0.hint.clone(),
            source: None,
            maybe_absent: self.0.maybe_absent,
        }))
    }

    /// Message and causes.
    fn what(&self) -> String {
        let mut what = self.0.message.clone();
        let mut cause = self.0.source.as_deref().map(|e| e as &dyn StdError);
        while let Some(err) = cause {
            let text = err.to_string();
            // Texts of some errors have those of their causes in them.
            if !what.contains(&text) {
                what.push_str(": ");
                what.push_str(&text);
            }
            cause = err.source();
        }
        what
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What the reader of the message can do about it, if anything is known.
    pub fn advice(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// Whether a newer podsnap could read what was refused.
fn is_unsupported(err: &FormatError) -> bool {
    matches!(
        err,
        FormatError::Version { .. } | FormatError::Features { .. }
    )
}

impl fmt::Display for Error {
    /// Message, causes, advice, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        if let Some(hint) = &self.0.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for Error {}
