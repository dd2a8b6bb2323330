//! `gcs_opts.json`: what the operator puts into the image path. Google's keys say where, ours say how.

use std::{collections::BTreeMap, path::PathBuf};

use podsnap_engine::{
    CacheOptions, Error, ErrorKind, OpenOptions, Policy, Result, SaveOptions, SnapshotId, Store,
    read_key,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{save::CaptureOptions, serve::Refusal};

/// Longest file that is read, in bytes.
pub const MAX_LEN: u64 = 1 << 20;

/// What the cache on the node's disk may hold, in bytes, unless it is said.
const CACHE_LEN: u64 = 10 << 30;

/// What may be captured in memory, in bytes, unless it is said: the sandbox's own limit counts it.
const CAPTURED_LEN: u64 = 256 << 20;

/// The file.
#[derive(Debug, Deserialize)]
pub struct Options {
    token: Option<Token>,
    bucket: Option<String>,
    object_prefix: String,
    /// Google's: podsnap composes where that is safe.
    #[serde(rename = "parallel_composite_upload")]
    _parallel_composite_upload: Option<String>,
    store: Option<String>,
    #[serde(default)]
    bases: Vec<String>,
    group: Option<String>,
    codec: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    key_file: Option<PathBuf>,
    cache: Option<PathBuf>,
    cache_bytes: Option<u64>,
    acknowledge: Option<String>,
    spill: Option<PathBuf>,
    spill_after_bytes: Option<u64>,
    #[serde(default)]
    tell_pod: bool,
    statsd: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Token {
    access_token: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// Where a snapshot is, or will be.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// URL of the store.
    pub store: String,
    /// The snapshot in it.
    pub snapshot: SnapshotId,
}

impl Options {
    /// Reads the file's bytes.
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).map_err(|e| invalid("gcs_opts.json cannot be read").because(e))
    }

    /// Keys that nobody knows. They are no error: another version may know them.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.keys().map(String::as_str)
    }

    /// The store and the snapshot: `"bucket": "b", "object_prefix": "path/ID/"` is the snapshot `ID` in `gs://b/path`. With a `store`, only the last
    /// part of the prefix counts.
    pub fn place(&self) -> Result<Place> {
        let prefix = &self.object_prefix;
        let Some(path) = prefix.strip_suffix('/') else {
            return Err(
                invalid(format!("the object_prefix {prefix:?} names no snapshot"))
                    .hint("write PATH/SNAPSHOT/, with the slash at the end"),
            );
        };
        let (path, id) = path.rsplit_once('/').unwrap_or(("", path));
        let snapshot = id.parse().map_err(|e| {
            invalid(format!(
                "{id:?}, at the end of object_prefix, is no id of a snapshot"
            ))
            .because(e)
        })?;
        let store = match (&self.store, self.bucket.as_deref()) {
            (Some(store), _) => store.clone(),
            (None, Some(bucket)) if !bucket.is_empty() && !bucket.contains('/') => {
                match path.is_empty() {
                    true => format!("gs://{bucket}"),
                    false => format!("gs://{bucket}/{path}"),
                }
            }
            _ => {
                return Err(invalid("gcs_opts.json names neither a bucket nor a store"));
            }
        };
        Ok(Place { store, snapshot })
    }

    /// Opens the store.
    pub fn open(&self, place: &Place) -> Result<Store> {
        let mut options = OpenOptions::default();
        let token = self.token.as_ref().map(|token| token.access_token.clone());
        options.gcs.bearer_token = token.filter(|token| !token.is_empty());
        let key = self.key_file.as_deref().map(read_key).transpose()?;
        let store = Store::open_with(&place.store, &options, key)?;
        Ok(match &self.cache {
            None => store,
            Some(dir) => store.with_cache(&CacheOptions {
                dir: dir.clone(),
                max_len: self.cache_bytes.unwrap_or(CACHE_LEN),
            }),
        })
    }

    /// Whether the sandbox is to go on before its snapshot is durable.
    pub fn is_captured(&self) -> bool {
        self.acknowledge.as_deref() == Some("captured")
    }

    /// How the sandbox learns of a save that cannot begin.
    pub fn refusal(&self) -> Refusal {
        match self.tell_pod {
            true => Refusal::AtWrite,
            false => Refusal::AtOpen,
        }
    }

    /// Address of the statsd server that metrics are sent to, `HOST:PORT`.
    pub fn statsd(&self) -> Option<&str> {
        self.statsd.as_deref()
    }

    /// Whether the sandbox goes on as soon as it is captured, and where that is kept.
    pub fn capture(&self) -> Result<Option<CaptureOptions>> {
        match self.acknowledge.as_deref() {
            None | Some("durable") => Ok(None),
            Some("captured") => Ok(Some(CaptureOptions {
                max_memory_len: self.spill_after_bytes.unwrap_or(CAPTURED_LEN),
                spill_dir: self.spill.clone().unwrap_or_else(std::env::temp_dir),
            })),
            Some(other) => Err(invalid(format!(
                "acknowledge is {other:?}, it can be \"durable\" or \"captured\""
            ))),
        }
    }

    /// How the snapshot is saved.
    pub fn save_options(&self) -> Result<SaveOptions> {
        let base = |id: &String| {
            id.parse()
                .map_err(|e| invalid(format!("the base {id:?} is no id of a snapshot")).because(e))
        };
        let codec = self.codec.as_deref().unwrap_or("auto");
        Ok(SaveOptions {
            bases: self.bases.iter().map(base).collect::<Result<_>>()?,
            group: self.group.clone(),
            codec: codec
                .parse::<Policy>()
                .map_err(|e| invalid(format!("there is no codec {codec:?}")).because(e))?,
            labels: self.labels.clone(),
            ..SaveOptions::default()
        })
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(json: &str) -> Result<Place> {
        Options::parse(json.as_bytes())?.place()
    }

    #[test]
    fn bucket_and_prefix_say_store_and_snapshot() {
        for (json, store, snapshot) in [
            (
                r#"{"bucket": "b", "object_prefix": "a/c/web-1/"}"#,
                "gs://b/a/c",
                "web-1",
            ),
            (
                r#"{"bucket": "b", "object_prefix": "web-1/"}"#,
                "gs://b",
                "web-1",
            ),
            (
                r#"{"store": "/srv/snapshots", "object_prefix": "web-1/", "new": [1]}"#,
                "/srv/snapshots",
                "web-1",
            ),
            (
                r#"{"store": "s3://x/y", "bucket": "b", "object_prefix": "a/web-1/"}"#,
                "s3://x/y",
                "web-1",
            ),
        ] {
            let found = place(json).unwrap();
            assert_eq!(
                (found.store.as_str(), found.snapshot.as_str()),
                (store, snapshot)
            );
        }
    }

    #[test]
    fn what_names_no_snapshot_is_refused() {
        for (json, why) in [
            (
                r#"{"bucket": "b", "object_prefix": "a/web-1"}"#,
                "slash at the end",
            ),
            (r#"{"bucket": "b", "object_prefix": "/"}"#, "no id"),
            (r#"{"bucket": "b", "object_prefix": "../"}"#, "no id"),
            (
                r#"{"object_prefix": "web-1/"}"#,
                "neither a bucket nor a store",
            ),
            (r#"{"bucket": "", "object_prefix": "web-1/"}"#, "neither"),
            (r#"{"bucket": "b"}"#, "object_prefix"),
            ("[]", "cannot be read"),
            ("", "cannot be read"),
        ] {
            let error = place(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn options_of_a_save_are_checked() {
        let parse = |json: &str| Options::parse(json.as_bytes()).unwrap();
        let options = parse(
            r#"{"object_prefix": "x/", "bases": ["a", "b"], "group": "web", "codec": "zstd:3", "labels": {"k": "v"}}"#,
        );
        let save = options.save_options().unwrap();
        assert_eq!(save.bases.len(), 2);
        assert_eq!(save.group.as_deref(), Some("web"));
        assert_eq!(save.codec, Policy::Zstd(3));
        assert_eq!(save.labels["k"], "v");
        assert!(options.capture().unwrap().is_none());
        let captured =
            parse(r#"{"object_prefix": "x/", "acknowledge": "captured", "spill": "/var/x"}"#);
        let captured = captured.capture().unwrap().unwrap();
        assert_eq!(captured.spill_dir.to_str(), Some("/var/x"));
        assert!(
            parse(r#"{"object_prefix": "x/", "acknowledge": "never"}"#)
                .capture()
                .is_err()
        );
        for json in [
            r#"{"object_prefix": "x/", "codec": "best"}"#,
            r#"{"object_prefix": "x/", "bases": ["a/b"]}"#,
        ] {
            assert!(parse(json).save_options().is_err(), "{json}");
        }
    }

    #[test]
    fn a_token_is_never_shown() {
        let options = Options::parse(
            br#"{"object_prefix": "x/", "token": {"access_token": "secret", "token_type": "Bearer"}}"#,
        );
        assert!(!format!("{:?}", options.unwrap()).contains("secret"));
    }
}
