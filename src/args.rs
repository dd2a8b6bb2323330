//! The arguments that all commands share, and the small languages in which sections and sources are named.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Parser};
use podsnap::{Role, SnapshotId, bench::Setting};

use crate::{commands::Command, exit::Failure};

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
    /// Send metrics to this statsd server, by UDP; docs/operations.md lists them
    #[arg(
        long,
        global = true,
        env = "PODSNAP_STATSD",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "HOST:PORT"
    )]
    pub statsd: Option<String>,
    /// In a local store, do not wait until data is on disk: faster, and not safe against a power cut
    #[arg(long, global = true)]
    pub no_sync: bool,
    /// In a gs:// bucket, upload packs in parts of SIZE, N at once, which takes SIZE x N of memory [default: 32M:12]
    #[arg(
        long,
        global = true,
        value_name = "SIZE:N",
        hide_short_help = true,
        value_parser = parse_setting
    )]
    pub upload_parts: Option<Setting>,
    /// In a gs:// bucket, download ranges of SIZE, N at once, which takes SIZE x N of memory [default: 8M:24]
    #[arg(
        long,
        global = true,
        value_name = "SIZE:N",
        hide_short_help = true,
        value_parser = parse_setting
    )]
    pub download_ranges: Option<Setting>,
    /// Keep what mounts and lazy restores fetch in this directory, for all processes of this node
    #[arg(
        long,
        global = true,
        env = "PODSNAP_NODE_CACHE",
        hide_env_values = true,
        value_name = "DIR",
        hide_short_help = true
    )]
    pub cache: Option<PathBuf>,
    /// What the cache may hold; what was not used for longest goes first
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        default_value = "10G",
        hide_short_help = true,
        value_parser = parse_bytes
    )]
    pub cache_size: u64,
    /// Log to standard error; twice for more. PODSNAP_LOG takes a filter, such as podsnap_engine=trace
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A number of bytes: `4096`, `64K`, `32M` or `1G`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let unit = match text.as_bytes().last() {
        Some(b'K' | b'k') => 1 << 10,
        Some(b'M' | b'm') => 1 << 20,
        Some(b'G' | b'g') => 1 << 30,
        _ => 1,
    };
    let digits = match unit {
        1 => text,
        _ => &text[..text.len() - 1],
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is no size; write 4096, 64K, 32M or 1G"))
}

/// Pieces of a transfer: `SIZE:N`.
fn parse_setting(text: &str) -> Result<Setting, String> {
    const SIZES: std::ops::RangeInclusive<u64> = 256 << 10..=128 << 20;
    let (size, count) = text.split_once(':').ok_or("write SIZE:N, such as 16M:8")?;
    let len = parse_bytes(size)?;
    if !SIZES.contains(&len) {
        return Err("SIZE is at least 256K and at most 128M".to_owned());
    }
    let at_once = count.parse().ok().filter(|n| (1..=64).contains(n));
    let at_once = at_once.ok_or("N is a number from 1 to 64")?;
    Ok(Setting { len, at_once })
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

/// Where the raw files of a gVisor image are: the URL or directory `STORE/ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPlace {
    /// What they are below.
    pub store: String,
    /// The last component.
    pub id: SnapshotId,
}

impl RawPlace {
    pub fn parse(place: &Path) -> Result<Self, Failure> {
        let names_none = || {
            Failure::usage(format!("{} names no raw files", place.display()))
                .hint("write gs://BUCKET/PATH/SNAPSHOT/, or a directory")
        };
        let text = place.to_str().ok_or_else(names_none)?;
        let absolute = match text.contains("://") {
            true => text.to_owned(),
            false => std::path::absolute(place)
                .ok()
                .and_then(|path| path.into_os_string().into_string().ok())
                .ok_or_else(names_none)?,
        };
        let (store, id) = absolute
            .trim_end_matches('/')
            .rsplit_once('/')
            .filter(|(store, _)| !store.is_empty() && !store.ends_with('/'))
            .ok_or_else(names_none)?;
        let id = id.parse().map_err(|e: podsnap::format::FormatError| {
            Failure::usage(format!("{}: {e}", place.display()))
        })?;
        Ok(Self {
            store: store.to_owned(),
            id,
        })
    }
}

/// A snapshot, or some sections of it, and whether it must be a certain one.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The snapshot, or file:PATH for one that was exported
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: SnapshotRef,
    /// Only this section; may be given several times
    #[arg(long, value_name = "ROLE[:NAME]")]
    pub section: Vec<SectionName>,
    /// Refuse unless the snapshot has this digest, which `podsnap save` printed
    #[arg(long, value_name = "HEX")]
    pub digest: Option<String>,
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
