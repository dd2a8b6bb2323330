//! `PodSnapshotStorageConfig`: the bucket, and the path in it.

use std::path::PathBuf;

use crate::{Error, Metadata, error::quoted, field::Field};

/// Whose right to the bucket is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// The pod's service account.
    Pod,
    /// The node's agent, which hands out tokens for one path.
    Node,
}

/// Where snapshots are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSnapshotStorageConfig {
    /// Its name, by which policies of every namespace refer to it.
    pub metadata: Metadata,
    /// The file that says so.
    pub file: PathBuf,
    /// The bucket.
    pub bucket: String,
    /// The path in it, without `/` at either end; empty for the whole bucket.
    pub path: String,
    /// Whose right is used.
    pub token_source: TokenSource,
}

impl PodSnapshotStorageConfig {
    pub(crate) fn read(metadata: Metadata, spec: &Field<'_>) -> Result<Self, Error> {
        let mut fields = spec.map()?;
        let mut config = fields.require("snapshotStorageConfig")?.map()?;
        let mut gcs = config.require("gcs")?.map()?;
        let bucket = read_bucket(&gcs.require("bucket")?)?;
        let path = gcs.take("path").map(|path| read_path(&path)).transpose()?;
        let sources = [
            ("podKSA", TokenSource::Pod),
            ("federatedP4SA", TokenSource::Node),
        ];
        let source = gcs.take("tokenSource");
        let source = source.map(|source| source.one_of(&sources)).transpose()?;
        gcs.end()?;
        config.end()?;
        fields.end()?;
        Ok(Self {
            metadata,
            file: spec.file().to_owned(),
            bucket,
            path: path.unwrap_or_default(),
            token_source: source.unwrap_or(TokenSource::Pod),
        })
    }

    /// The URL of the store: `gs://bucket/path`.
    pub fn store_url(&self) -> String {
        match self.path.is_empty() {
            true => format!("gs://{}", self.bucket),
            false => format!("gs://{}/{}", self.bucket, self.path),
        }
    }
}

fn read_bucket(field: &Field<'_>) -> Result<String, Error> {
    let bucket = field.name()?;
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if bucket.len() > 222 || !bucket.chars().all(allowed) {
        return Err(field.error(format!("{} is no name of a bucket", quoted(bucket))));
    }
    Ok(bucket.to_owned())
}

fn read_path(field: &Field<'_>) -> Result<String, Error> {
    let path = field.text()?.trim_matches('/');
    let bad = |part: &str| part.is_empty() || part == "." || part == "..";
    if path.is_empty() {
        return Ok(String::new());
    }
    if path.split('/').any(bad) || path.contains(|c: char| c.is_control() || "?#*\\".contains(c)) {
        return Err(field.error(format!("{} is no path in a bucket", quoted(path))));
    }
    Ok(path.to_owned())
}
