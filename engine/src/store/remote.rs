//! What `object_store` opens: S3, Azure and memory.
//!
//! Writes that need a precondition go as one put. Packs go through multipart uploads; in memory they are put whole.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::{
    Error as OsError, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload, UpdateVersion, memory::InMemory, path::Path,
};

use super::{
    Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version, not_found,
    precondition, too_short,
};
use crate::error::{Error, ErrorKind, Result};

/// Part length of a multipart upload, in bytes.
const PART_LEN: usize = 16 << 20;

/// A store behind `object_store`.
#[derive(Debug)]
pub struct RemoteBackend {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    multipart: bool,
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

/// Whether two versions can be the same object's. Listings tell less than heads, so ETags alone decide.
fn same_object(a: &Version, b: &Version) -> bool {
    match (update_version(a).e_tag, update_version(b).e_tag) {
        (Some(a), Some(b)) => a == b,
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
        let path = self.path(name);
        let upload = if self.multipart {
            Some(
                self.store
                    .put_multipart(&path)
                    .await
                    .map_err(|e| convert(name, e))?,
            )
        } else {
            None
        };
        Ok(Box::new(RemoteWriter {
            store: self.store.clone(),
            name: name.to_owned(),
            path,
            upload,
            buffer: BytesMut::new(),
            len: 0,
        }))
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        // object_store has no conditional delete: looking first keeps the object that took this one's place, unless it does so
        // between the two requests. Names of packs and manifests are never reused; leases and heads are.
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
    upload: Option<Box<dyn MultipartUpload>>,
    buffer: BytesMut,
    len: u64,
}

#[async_trait]
impl ObjectWriter for RemoteWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.len += bytes.len() as u64;
        self.buffer.extend_from_slice(&bytes);
        if let Some(upload) = &mut self.upload {
            while self.buffer.len() >= PART_LEN {
                let part = self.buffer.split_to(PART_LEN).freeze();
                upload
                    .put_part(part.into())
                    .await
                    .map_err(|e| convert(&self.name, e))?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        let rest = self.buffer.split().freeze();
        let put = match &mut self.upload {
            Some(upload) => {
                let finished = async {
                    upload.put_part(rest.into()).await?;
                    upload.complete().await
                };
                match finished.await {
                    Ok(put) => Ok(put),
                    Err(err) => {
                        if let Err(abort) = upload.abort().await {
                            tracing::warn!(object = self.name, error = %abort, "an unfinished upload is left behind");
                        }
                        Err(err)
                    }
                }
            }
            None => {
                let options = PutOptions {
                    mode: PutMode::Create,
                    ..PutOptions::default()
                };
                self.store.put_opts(&self.path, rest.into(), options).await
            }
        };
        let put = put.map_err(|e| convert(&self.name, e))?;
        Ok(ObjectMeta {
            name: self.name,
            len: self.len,
            version: version(put.e_tag, put.version),
        })
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        match &mut self.upload {
            Some(upload) => upload.abort().await.map_err(|e| convert(&self.name, e)),
            None => Ok(()),
        }
    }
}
