//! The arguments that all commands share, and the small languages in which sections and sources are named.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Parser};
use podsnap::{Role, SnapshotId};

use crate::commands::Command;

/// Stores the state of running pods, small and fast, and brings back every byte.
#[derive(Debug, Parser)]
#[command(
    name = "podsnap",
    version,
    propagate_version = true,
    after_help = "\
Try it:  podsnap demo

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused by the store (no permission, or a conflict),
5 damaged, missing or unreadable data, 130 interrupted, 141 standard output closed before the end."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Global {
    /// Where snapshots are kept: a directory, file://, gs://BUCKET/PATH, s3://BUCKET/PATH or az://CONTAINER/PATH
    /// [default: podsnap in $XDG_DATA_HOME or ~/.local/share]
    #[arg(
        long,
        global = true,
        env = "PODSNAP_STORE",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub store: Option<String>,
    /// File with the store's key, 64 hex digits or 32 bytes: chunk ids then say nothing about content
    #[arg(
        long,
        global = true,
        env = "PODSNAP_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub key_file: Option<PathBuf>,
    /// Print one JSON document instead of text; errors too, on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Show no progress and no summary
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// In a local store, do not wait until data is on disk: faster, and not safe against a power cut
    #[arg(long, global = true)]
    pub no_sync: bool,
    /// Log to standard error; twice for more. PODSNAP_LOG takes a filter, such as podsnap_engine=trace
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A section by role and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionName {
    pub role: Role,
    pub name: String,
}

impl FromStr for SectionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, name) = text.split_once(':').unwrap_or((text, ""));
        let role = role.parse().map_err(|_| {
            format!("{role:?} is no role; roles are memory, kernel, rootfs, tmpfs, gpu and other")
        })?;
        if name.len() > 255 {
            return Err("a section's name has at most 255 bytes".to_owned());
        }
        Ok(Self {
            role,
            name: name.to_owned(),
        })
    }
}

/// A snapshot in the store, or one in a file that `podsnap export` wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotRef {
    Stored(SnapshotId),
    Exported(PathBuf),
}

impl FromStr for SnapshotRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("file:") {
            Some("") => Err("file: must be followed by a path".to_owned()),
            Some(path) => Ok(Self::Exported(path.into())),
            None => text
                .parse()
                .map(Self::Stored)
                .map_err(|e: podsnap::format::FormatError| e.to_string()),
        }
    }
}
