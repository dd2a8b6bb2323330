//! What `object_store` opens: S3, Azure and memory.
//!
//! Writes that need a precondition go as one put. Packs that are longer than a part go through multipart uploads, several parts at once; in
//! memory they are put whole.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::{
    Error as OsError, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, PutResult, UpdateVersion, memory::InMemory, path::Path,
};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use super::{
    Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version, not_found,
    precondition, too_short,
};
use crate::error::{Error, ErrorKind, Result};

/// Part length of a multipart upload, in bytes.
const PART_LEN: usize = 16 << 20;

/// Parts that one store uploads at once, each held in memory until it is stored.
const PARTS_AT_ONCE: usize = 8;

/// Time that parts under way get to end when their upload is given up: one that is cut off might be stored, and billed, after it.
const GRACE: Duration = Duration::from_secs(2);

/// A store behind `object_store`.
#[derive(Debug)]
pub struct RemoteBackend {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    multipart: bool,
    /// Bounds the parts under way, of all packs together.
    parts: Arc<Semaphore>,
}

impl RemoteBackend {
    /// Opens `url`, with credentials and endpoints from the environment as `object_store` documents them.
    pub fn open(url: &str) -> Result<Self> {
        let parsed = url::Url::parse(url)
            .map_err(|e| Error::invalid(format!("bad store URL {url}")).because(e))?;
        let options =
            std::env::vars().filter(|(k, _)| ["AWS_", "AZURE_"].iter().any(|p| k.starts_with(p)));
        let (store, prefix) =
            object_store::parse_url_opts(&parsed, options.map(|(k, v)| (k.to_lowercase(), v)))
                .map_err(|e| Error::invalid(format!("cannot open {url}")).because(e))?;
        Ok(Self {
            store: store.into(),
            prefix,
            multipart: true,
            parts: Arc::new(Semaphore::new(PARTS_AT_ONCE)),
        })
    }

    /// The process-wide store in memory of that name.
    pub fn memory(name: &str) -> Self {
        static STORES: OnceLock<Mutex<HashMap<String, Arc<InMemory>>>> = OnceLock::new();
        let mut stores = STORES
            .get_or_init(Mutex::default)
            .lock()
            .expect("no panic while held");
        Self {
            store: stores.entry(name.to_owned()).or_default().clone(),
            prefix: Path::default(),
            multipart: false,
            parts: Arc::new(Semaphore::new(PARTS_AT_ONCE)),
        }
    }

    fn path(&self, name: &str) -> Path {
        self.prefix
            .parts()
            .chain(Path::from(name).parts())
            .collect()
    }

    /// What a failed read means. A range behind the end of an object is refused in many ways, so the object is asked for its length.
    async fn read_error(&self, name: &str, range: &ReadRange, err: OsError) -> Error {
        if matches!(err, OsError::Generic { .. })
            && let Ok(meta) = self.store.head(&self.path(name)).await
        {
            match range {
                ReadRange::Exact(range) if meta.size < range.end => {
                    return too_short(name, meta.size, range);
                }
                ReadRange::Suffix(_) if meta.size == 0 => {
                    return Error::damaged(name, "it is empty");
                }
                _ => {}
            }
        }
        convert(name, err)
    }

    /// Reads the end of an object whose length is asked for first.
    async fn read_suffix(
        &self,
        name: &str,
        range: &ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let ReadRange::Suffix(len) = range else {
            return Err(Error::invalid(format!("{range:?} is no end of {name}")));
        };
        let meta = self.head(name).await?;
        if meta.len == 0 {
            return Err(Error::damaged(name, "it is empty"));
        }
        let exact = ReadRange::Exact(meta.len - meta.len.min(*len)..meta.len);
        // What is read must be what was measured, even if nobody else asks for a version.
        self.read(name, exact, Some(version.unwrap_or(&meta.version)))
            .await
    }

    fn meta(&self, name: &str, meta: &object_store::ObjectMeta) -> ObjectMeta {
        ObjectMeta {
            name: name.to_owned(),
            len: meta.size,
            version: version(meta.e_tag.clone(), meta.version.clone()),
        }
    }
}

/// The version is whatever the provider can pin a read to and compare on a write: ETag and version in one string.
fn version(e_tag: Option<String>, version: Option<String>) -> Version {
    Version(match version {
        Some(version) => format!("{}\n{version}", e_tag.unwrap_or_default()),
        None => e_tag.unwrap_or_default(),
    })
}

/// Whether two versions can be the same object's. Listings tell less than heads, so ETags alone decide; Azure lists them without the quotes
/// that they have elsewhere.
fn same_object(a: &Version, b: &Version) -> bool {
    match (update_version(a).e_tag, update_version(b).e_tag) {
        (Some(a), Some(b)) => a.trim_matches('"') == b.trim_matches('"'),
        _ => true,
    }
}

fn update_version(version: &Version) -> UpdateVersion {
    let (e_tag, version) = match version.0.split_once('\n') {
        Some((e_tag, version)) => (e_tag, Some(version.to_owned())),
        None => (version.0.as_str(), None),
    };
    UpdateVersion {
        e_tag: (!e_tag.is_empty()).then(|| e_tag.to_owned()),
        version,
    }
}

fn convert(name: &str, err: OsError) -> Error {
    match err {
        OsError::NotFound { .. } => not_found(name),
        OsError::AlreadyExists { .. } | OsError::Precondition { .. } => precondition(name),
        OsError::PermissionDenied { .. } | OsError::Unauthenticated { .. } => Error::new(
            ErrorKind::Forbidden,
            format!("the store refuses access to {name}"),
        )
        .because(err)
        .hint("check the credentials and their permissions on the store's path"),
        OsError::NotImplemented { .. } | OsError::NotSupported { .. } => Error::new(
            ErrorKind::Unsupported,
            format!("this store cannot do what {name} needs"),
        )
        .because(err),
        err => Error::new(ErrorKind::Store, format!("the store failed at {name}")).because(err),
    }
}

#[async_trait]
impl Backend for RemoteBackend {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let options = GetOptions {
            if_match: version.and_then(|v| update_version(v).e_tag),
            version: version.and_then(|v| update_version(v).version),
            range: Some(match &range {
                ReadRange::Exact(range) => GetRange::Bounded(range.clone()),
                ReadRange::Suffix(len) => GetRange::Suffix(*len),
            }),
            ..GetOptions::default()
        };
        let got = match self.store.get_opts(&self.path(name), options).await {
            Ok(got) => got,
            // Azure knows no ranges that are counted from the end.
            Err(OsError::NotSupported { .. }) if matches!(range, ReadRange::Suffix(_)) => {
                return self.read_suffix(name, &range, version).await;
            }
            Err(e) => return Err(self.read_error(name, &range, e).await),
        };
        let (offset, meta) = (got.range.start, self.meta(name, &got.meta));
        let wanted = match &range {
            ReadRange::Exact(range) => range.end - range.start,
            ReadRange::Suffix(len) => (*len).min(meta.len),
        };
        // A server that sends another range than asked for is not given the chance to fill our memory.
        if got.range.end.saturating_sub(got.range.start) != wanted {
            return Err(match &range {
                ReadRange::Exact(range) if meta.len < range.end => too_short(name, meta.len, range),
                _ => Error::new(
                    ErrorKind::Store,
                    format!(
                        "{name}: asked for {range:?}, the store offered {:?} of {}",
                        got.range, meta.len
                    ),
                ),
            });
        }
        let bytes = got.bytes().await.map_err(|e| convert(name, e))?;
        if bytes.len() as u64 != wanted {
            return Err(Error::new(
                ErrorKind::Store,
                format!("{name}: the store sent {} of {wanted} bytes", bytes.len()),
            ));
        }
        Ok(ReadBytes {
            bytes,
            offset,
            meta,
        })
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        let meta = self
            .store
            .head(&self.path(name))
            .await
            .map_err(|e| convert(name, e))?;
        Ok(self.meta(name, &meta))
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        let mode = match &condition {
            Condition::Absent => PutMode::Create,
            Condition::Matches(version) => PutMode::Update(update_version(version)),
        };
        let len = bytes.len() as u64;
        let options = PutOptions {
            mode,
            ..PutOptions::default()
        };
        let put = self
            .store
            .put_opts(&self.path(name), PutPayload::from_bytes(bytes), options)
            .await
            .map_err(|e| convert(name, e))?;
        Ok(ObjectMeta {
            name: name.to_owned(),
            len,
            version: version(put.e_tag, put.version),
        })
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(RemoteWriter {
            store: self.store.clone(),
            name: name.to_owned(),
            path: self.path(name),
            multipart: self.multipart,
            upload: None,
            permits: self.parts.clone(),
            parts: JoinSet::new(),
            buffer: BytesMut::new(),
            len: 0,
        }))
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        // object_store has no conditional delete: looking first keeps the object that took this one's place, unless it does so
        // between the two requests. Only names of packs are never used again: a manifest's is when its id is.
        if let Some(version) = version {
            match self.head(name).await {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
                Ok(meta) if !same_object(&meta.version, version) => return Err(precondition(name)),
                Ok(_) => {}
            }
        }
        match self.store.delete(&self.path(name)).await {
            Ok(()) | Err(OsError::NotFound { .. }) => Ok(()),
            Err(e) => Err(convert(name, e)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let path = if prefix.is_empty() {
            self.prefix.clone()
        } else {
            self.path(prefix)
        };
        let skip = match self.prefix.as_ref().len() {
            0 => 0,
            len => len + 1,
        };
        let found: Vec<_> = self
            .store
            .list(Some(&path))
            .try_collect()
            .await
            .map_err(|e| convert(prefix, e))?;
        Ok(found
            .iter()
            .map(|meta| self.meta(&meta.location.as_ref()[skip..], meta))
            .collect())
    }

    fn read_len(&self) -> u64 {
        8 << 20
    }

    fn reads_at_once(&self) -> usize {
        16
    }

    fn pack_len(&self) -> u64 {
        if self.multipart { 1 << 30 } else { 64 << 20 }
    }
}

struct RemoteWriter {
    store: Arc<dyn ObjectStore>,
    name: String,
    path: Path,
    multipart: bool,
    /// Begun with the first part that is full.
    upload: Option<Box<dyn MultipartUpload>>,
    permits: Arc<Semaphore>,
    parts: JoinSet<object_store::Result<()>>,
    buffer: BytesMut,
    len: u64,
}

impl RemoteWriter {
    /// Begins to upload what the buffer holds, waiting while too much is under way.
    async fn begin_part(&mut self) -> Result<()> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("it is never closed");
        while let Some(ended) = self.parts.try_join_next() {
            self.check(ended)?;
        }
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let begun = self.store.put_multipart(&self.path).await;
                self.upload
                    .insert(begun.map_err(|e| convert(&self.name, e))?)
            }
        };
        let bytes = std::mem::take(&mut self.buffer).freeze();
        let part = upload.put_part(bytes.into());
        self.parts.spawn(async move {
            let stored = part.await;
            drop(permit);
            stored
        });
        Ok(())
    }

    fn check(&self, ended: Result<object_store::Result<()>, JoinError>) -> Result<()> {
        ended
            .map_err(|_| Error::new(ErrorKind::Store, "an upload died"))?
            .map_err(|e| convert(&self.name, e))
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        // Full parts wait for the first byte behind them: what fits in one is put whole.
        while self.multipart && self.buffer.len() + bytes.len() > PART_LEN {
            let (now, rest) = bytes.split_at(PART_LEN - self.buffer.len());
            self.buffer.extend_from_slice(now);
            bytes = rest;
            self.begin_part().await?;
        }
        if self.upload.is_some() && self.buffer.is_empty() {
            self.buffer.reserve(PART_LEN);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    async fn finish_object(&mut self) -> Result<PutResult> {
        if self.upload.is_none() {
            let options = PutOptions {
                mode: PutMode::Create,
                ..PutOptions::default()
            };
            let bytes = self.buffer.split().freeze();
            let put = self.store.put_opts(&self.path, bytes.into(), options).await;
            return put.map_err(|e| convert(&self.name, e));
        }
        if !self.buffer.is_empty() {
            self.begin_part().await?;
        }
        while let Some(ended) = self.parts.join_next().await {
            self.check(ended)?;
        }
        let upload = self.upload.as_mut().expect("begun, as was seen above");
        upload.complete().await.map_err(|e| convert(&self.name, e))
    }

    /// Ends what is under way and gives the upload up.
    async fn give_up(&mut self) -> Result<()> {
        let ended = async { while self.parts.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            self.parts.shutdown().await;
        }
        match &mut self.upload {
            Some(upload) => upload.abort().await.map_err(|e| convert(&self.name, e)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectWriter for RemoteWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.write_all(&bytes).await
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        match self.finish_object().await {
            Ok(put) => Ok(ObjectMeta {
                name: self.name,
                len: self.len,
                version: version(put.e_tag, put.version),
            }),
            Err(err) => {
                if let Err(left) = self.give_up().await {
                    tracing::warn!(object = self.name, error = %left, "an unfinished upload is left behind");
                }
                Err(err)
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.give_up().await
    }
}
