//! The calls of the control protocol, as JSON.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A call: `{"method": ..., "arg": {...}}`.
#[derive(Debug, Deserialize)]
pub struct Call {
    /// `AsyncFileServer.` and a name.
    pub method: String,
    /// What the method is called with.
    #[serde(default)]
    pub arg: Value,
}

/// What is answered.
#[derive(Debug, Serialize)]
pub struct Reply<T> {
    success: bool,
    err: String,
    result: Option<T>,
}

impl<T> From<Result<T, String>> for Reply<T> {
    fn from(result: Result<T, String>) -> Self {
        match result {
            Ok(result) => Self {
                success: true,
                err: String::new(),
                result: Some(result),
            },
            Err(err) => Self {
                success: false,
                err,
                result: None,
            },
        }
    }
}

/// `Open`: a file of the image, by name.
#[derive(Debug, Deserialize)]
pub struct Open {
    /// Its name.
    pub path: String,
    /// 1 to read it, 2 to write it.
    pub mode: i64,
}

/// The answer to [`Open`], which comes with the packet window's memory.
#[derive(Debug, Serialize)]
pub struct Opened {
    /// By which the other calls name it.
    pub handle: u32,
    /// What may be asked for at once.
    pub max_io_bytes: u32,
    /// Ranges of one submission.
    pub max_ranges: u32,
    /// Submissions at once.
    pub max_parallel: u32,
    /// Where in the memory the packet window is.
    pub packet_window_offset: i64,
    /// Its length.
    pub packet_window_length: usize,
}

/// `RegisterClientFile`, which comes with the file.
#[derive(Debug, Deserialize)]
pub struct Register {
    /// Of the open file.
    pub handle: u32,
    /// Bytes of the file to register.
    pub size: u64,
    /// Whether it will be written.
    #[serde(default)]
    pub writable: bool,
    /// What the sentry wants of its pages.
    #[serde(default)]
    pub settings: Option<Vec<Setting>>,
}

/// What is wanted of a range of a registered file.
#[derive(Debug, Deserialize)]
pub struct Setting {
    /// First byte.
    #[serde(rename = "Start")]
    pub start: u64,
    /// Behind the last byte.
    #[serde(rename = "End")]
    pub end: u64,
    /// 1 for huge pages, 2 for none.
    #[serde(rename = "Property")]
    pub property: i64,
}

/// The answer to [`Register`].
#[derive(Debug, Serialize)]
pub struct Registered {
    /// Number of the registered file, for submissions.
    pub handle: u32,
}

/// `Close`.
#[derive(Debug, Deserialize)]
pub struct Close {
    /// Of the open file.
    pub handle: u32,
}

/// An answer that says nothing.
#[derive(Debug, Serialize)]
pub struct Nothing {}
