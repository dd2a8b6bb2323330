//! Google Cloud Storage, by its JSON API: what a tenant's agent may do (get, create and delete objects), done fast and repeatably.
//!
//! - `client`: one request, its retries and its errors; `credentials`: who is asking; `objects`: what is done with objects.
//! - `download`: ranges of objects, hedged, resumed in mid-body; `latency`: when a first byte is late; `pace`: how many at once.
//! - `upload`: packs as parts that are uploaded in parallel and composed on the server.
//! - `bucket`: the bucket's own settings, and what is wrong with them; `location`: where it lies and where we are.
//! - `check`: all that can be found out about a bucket; `permissions`: what the caller may do there, tried out.
//!
//! Nothing here lists or uses multipart uploads unless it is asked to: a role that isolates tenants forbids both. Every write has a
//! generation precondition and an idempotency token, so that a repetition cannot do harm; every read is pinned to a generation.

pub mod bucket;
mod check;
mod client;
mod credentials;
mod download;
mod latency;
mod location;
mod objects;
mod pace;
mod permissions;
mod retry;
mod stats;
mod upload;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore};

pub(crate) use self::upload::PART_SUFFIX;
pub use self::{
    check::{BucketCheck, setup_commands},
    permissions::{Access, Permission},
    retry::RetryPolicy,
    stats::GcsStats,
};
use self::{
    client::Client,
    objects::{Answer, Conditional},
    upload::GcsWriter,
};
use super::{Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version};
use crate::error::{Error, ErrorKind, Result};

/// How the engine uses a bucket. The defaults keep a save and a restore within their memory budget of 512 MiB.
#[derive(Debug, Clone)]
pub struct GcsOptions {
    /// Length in bytes of the parts of a pack, all but the first few. One write is billed for each; 32 MiB are 30 MB and some.
    pub part_len: usize,
    /// Parts that are uploaded at once, each holding `part_len` bytes of memory.
    pub parts_at_once: usize,
    /// Length in bytes of a range that is read.
    pub read_len: u64,
    /// Most ranges that are read at once, each holding `read_len` bytes of memory. A bucket that throttles is asked for fewer.
    pub reads_at_once: usize,
    /// When requests are repeated and when they are given up.
    pub retry: RetryPolicy,
    /// A bearer token of the caller's; else credentials are looked for (see [`Store::open`](crate::Store::open)).
    pub bearer_token: Option<String>,
    /// Where the bucket is asked for, as `http://HOST:PORT`, instead of at Google's; by default what STORAGE_EMULATOR_HOST names.
    pub endpoint: Option<String>,
}

impl Default for GcsOptions {
    fn default() -> Self {
        Self {
            part_len: 32 << 20,
            parts_at_once: 12,
            read_len: 8 << 20,
            reads_at_once: 24,
            retry: RetryPolicy::default(),
            bearer_token: None,
            endpoint: None,
        }
    }
}

/// Most time that the look at the bucket's settings may take from a save.
const ADVICE_TIMEOUT: Duration = Duration::from_secs(5);

/// Parts that any save keeps under way at once: what it left is looked for so far.
const MOST_PARTS_AT_ONCE: usize = 64;

/// A path in a bucket.
#[derive(Debug)]
pub struct GcsBackend {
    client: Arc<Client>,
    /// Path of the store in the bucket, without slashes at its ends; may be empty.
    prefix: String,
    options: GcsOptions,
    parts: Arc<Semaphore>,
    advised: OnceCell<()>,
    /// Whether parts may be made: they cannot be removed where objects are retained or held.
    composes: AtomicBool,
}

impl GcsBackend {
    /// Opens `gs://BUCKET/PATH`. Credentials are looked for, and nothing is sent yet.
    pub fn open(url: &str, options: GcsOptions) -> Result<Self> {
        let rest = url
            .strip_prefix("gs://")
            .ok_or_else(|| Error::invalid(format!("{url} is no gs:// URL")))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() || prefix.split('/').any(|part| part == "." || part == "..") {
            return Err(
                Error::invalid(format!("bad store URL {url}")).hint("write gs://BUCKET/PATH")
            );
        }
        Ok(Self {
            client: Arc::new(Client::open(bucket, &options)?),
            prefix: prefix.to_owned(),
            parts: Arc::new(Semaphore::new(options.parts_at_once.max(1))),
            options,
            advised: OnceCell::new(),
            composes: AtomicBool::new(true),
        })
    }

    /// The object's whole name in the bucket.
    fn object(&self, name: &str) -> String {
        match (self.prefix.is_empty(), name.is_empty()) {
            (true, _) => name.to_owned(),
            (false, true) => self.prefix.clone(),
            (false, false) => format!("{}/{name}", self.prefix),
        }
    }

    /// What was sent, repeated and hedged so far.
    pub fn stats(&self) -> GcsStats {
        self.client.stats()
    }

    /// The bucket's settings.
    pub async fn bucket(&self) -> Result<bucket::Bucket> {
        bucket::get(&self.client).await
    }

    /// The same without advice about the bucket: for whoever has looked at it already.
    pub(crate) fn without_advice(self) -> Self {
        Self {
            advised: OnceCell::new_with(Some(())),
            ..self
        }
    }

    /// Says once, before anything is written, what makes this bucket slow or expensive.
    pub(crate) async fn advise(&self) {
        let advise = async {
            let found = async { tokio::join!(self.bucket(), location::region_if_google()) };
            let found = tokio::time::timeout(ADVICE_TIMEOUT, found).await;
            let Ok((found, region)) = found else { return };
            let findings = match &found {
                Ok(bucket) => {
                    self.composes
                        .store(bucket.can_remove_parts(), Ordering::Relaxed);
                    let mut findings = bucket.findings();
                    findings.extend(region.and_then(|r| location::finding(bucket, &r)));
                    findings
                }
                Err(e) => vec![bucket::unknown(self.client.bucket(), e)],
            };
            for finding in findings.iter().filter(|f| f.slows_saves) {
                tracing::warn!("{finding}");
            }
        };
        self.advised.get_or_init(|| advise).await;
    }
}

fn meta(name: &str, answer: &Answer) -> Result<ObjectMeta> {
    Ok(ObjectMeta {
        name: name.to_owned(),
        len: answer.resource_size()?,
        version: Version(answer.resource_generation()?.to_string()),
    })
}

/// The generation that a version stands for.
fn generation(name: &str, version: &Version) -> Result<u64> {
    version.0.parse().map_err(|_| {
        Error::new(
            ErrorKind::Conflict,
            format!(
                "{name} is wanted in version {:?}, which is no generation of this store",
                version.0
            ),
        )
    })
}

#[async_trait]
impl Backend for GcsBackend {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let generation = version.map(|v| generation(name, v)).transpose()?;
        let object = self.object(name);
        let read = download::read(&self.client, &object, &range, generation).await?;
        Ok(ReadBytes {
            bytes: read.bytes,
            offset: read.offset,
            meta: ObjectMeta {
                name: name.to_owned(),
                len: read.object_len,
                version: Version(read.generation.to_string()),
            },
        })
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        let answer = self.client.get_metadata(&self.object(name)).await?;
        meta(name, &answer)
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        let condition = match &condition {
            Condition::Absent => Conditional::Absent,
            Condition::Matches(version) => Conditional::Generation(generation(name, version)?),
        };
        let stored = self
            .client
            .insert(&self.object(name), bytes, condition)
            .await?;
        Ok(ObjectMeta {
            name: name.to_owned(),
            len: stored.len,
            version: Version(stored.generation.to_string()),
        })
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        self.advise().await;
        Ok(Box::new(GcsWriter::new(
            self.client.clone(),
            name,
            self.object(name),
            self.options.part_len,
            self.composes.load(Ordering::Relaxed),
            self.parts.clone(),
        )))
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        let generation = version.map(|v| generation(name, v)).transpose()?;
        match self.client.delete(&self.object(name), generation).await {
            // Who may not list is told so of what is absent; of what is there, that it may not be deleted.
            Err(e) if permissions::hides_absence(&e) => Ok(()),
            deleted => deleted,
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let below = match self.object(prefix) {
            all if all.is_empty() => all,
            some => format!("{some}/"),
        };
        let skip = match self.prefix.len() {
            0 => 0,
            len => len + 1,
        };
        let listed = self.client.list(&below).await?;
        let found = listed.into_iter().filter_map(|object| {
            Some(ObjectMeta {
                name: object.name.get(skip..)?.to_owned(),
                len: object.len,
                version: Version(object.generation.to_string()),
            })
        });
        // Placeholders that other tools make for folders are no objects of ours.
        Ok(found.filter(|object| !object.name.ends_with('/')).collect())
    }

    async fn remove_leftovers(&self, name: &str) -> Result<()> {
        let at_once = self.options.parts_at_once.max(MOST_PARTS_AT_ONCE);
        upload::remove_parts(&self.client, &self.object(name), at_once).await
    }

    fn read_len(&self) -> u64 {
        self.options.read_len
    }

    fn reads_at_once(&self) -> usize {
        self.options.reads_at_once
    }

    fn pack_len(&self) -> u64 {
        match self.composes.load(Ordering::Relaxed) {
            true => upload::pack_len(self.options.part_len),
            false => self.options.part_len as u64,
        }
    }
}
