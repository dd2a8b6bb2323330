//! A backend that passes every call on to another one and asks the test first what is to become of it: so that a test can count
//! calls, and make any of them fail, wait, or lose its answer.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use podsnap::{
    CacheOptions, Error, ErrorKind, Result, Store,
    store::{Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version},
};
use tokio::sync::watch;

/// The calls of a backend and of its writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Read,
    Head,
    Put,
    Create,
    Write,
    Finish,
    Delete,
    List,
}

pub const CALLS: [Call; 8] = [
    Call::Read,
    Call::Head,
    Call::Put,
    Call::Create,
    Call::Write,
    Call::Finish,
    Call::Delete,
    Call::List,
];

/// What becomes of a call.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is carried out and answered.
    Done,
    /// It fails and nothing happens.
    Refused,
    /// It is forbidden: an object that may not be touched.
    Forbidden,
    /// It is carried out, and fails.
    AnswerLost,
    /// It waits until the watched value is true; then it is carried out and answered.
    Waits(watch::Receiver<bool>),
    /// A read that answers with its bytes cut or extended by so many.
    Length(i64),
}

type Hook = dyn Fn(Call, &str) -> Fate + Send + Sync;

/// The backend.
#[derive(Clone)]
pub struct Watched {
    inner: Arc<dyn Backend>,
    hook: Arc<Hook>,
    pack_len: Option<u64>,
    reads: Arc<Mutex<Vec<(String, u64)>>>,
    waiting: Arc<AtomicUsize>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watched({:?})", self.inner)
    }
}

impl Watched {
    pub fn new(
        inner: Arc<dyn Backend>,
        hook: impl Fn(Call, &str) -> Fate + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner,
            hook: Arc::new(hook),
            pack_len: None,
            reads: Arc::default(),
            waiting: Arc::default(),
        }
    }

    /// The same with packs closed at `len` bytes.
    pub fn with_pack_len(self, len: u64) -> Self {
        Self {
            pack_len: Some(len),
            ..self
        }
    }

    /// A store over this backend.
    pub fn store(&self) -> Store {
        Store::from_backend("watched", Arc::new(self.clone()), None)
    }

    /// The same with a cache on the node's disk.
    pub fn store_with_cache(&self, cache: &CacheOptions) -> Store {
        self.store().with_cache(cache)
    }

    /// Reads that are held up.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Objects and lengths of the reads since the last call of this.
    pub fn take_reads(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

/// A call up to its being carried out; then whether its answer arrives.
async fn meet(fate: Fate, call: Call, name: &str) -> Result<bool> {
    match fate {
        Fate::Done | Fate::Length(_) => Ok(true),
        Fate::AnswerLost => Ok(false),
        Fate::Refused => Err(failed(call, name)),
        Fate::Forbidden => Err(Error::new(
            ErrorKind::Forbidden,
            format!("{call:?} of {name} is forbidden"),
        )),
        Fate::Waits(mut until) => {
            until.wait_for(|open| *open).await.unwrap();
            Ok(true)
        }
    }
}

fn failed(call: Call, name: &str) -> Error {
    Error::new(
        ErrorKind::Store,
        format!("{call:?} of {name} fails, as the test wants it"),
    )
}

#[async_trait]
impl Backend for Watched {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let fate = (self.hook)(Call::Read, name);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let met = meet(fate.clone(), Call::Read, name).await;
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let answered = met?;
        let mut read = self.inner.read(name, range, version).await?;
        let len = read.bytes.len() as u64;
        self.reads.lock().unwrap().push((name.to_owned(), len));
        if let Fate::Length(change) = fate {
            let mut bytes = read.bytes.to_vec();
            bytes.resize(bytes.len().saturating_add_signed(change as isize), 0);
            read.bytes = bytes.into();
        }
        answered
            .then_some(read)
            .ok_or_else(|| failed(Call::Read, name))
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        let answered = meet((self.hook)(Call::Head, name), Call::Head, name).await?;
        let meta = self.inner.head(name).await?;
        answered
            .then_some(meta)
            .ok_or_else(|| failed(Call::Head, name))
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        let answered = meet((self.hook)(Call::Put, name), Call::Put, name).await?;
        let meta = self.inner.put(name, bytes, condition).await?;
        answered
            .then_some(meta)
            .ok_or_else(|| failed(Call::Put, name))
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        let answered = meet((self.hook)(Call::Create, name), Call::Create, name).await?;
        let inner = self.inner.create(name).await?;
        let writer = Box::new(WatchedWriter {
            inner,
            hook: self.hook.clone(),
            name: name.to_owned(),
        });
        match answered {
            true => Ok(writer),
            false => Err(failed(Call::Create, name)),
        }
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        let answered = meet((self.hook)(Call::Delete, name), Call::Delete, name).await?;
        self.inner.delete(name, version).await?;
        answered
            .then_some(())
            .ok_or_else(|| failed(Call::Delete, name))
    }

    async fn remove_leftovers(&self, name: &str) -> Result<()> {
        self.inner.remove_leftovers(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let answered = meet((self.hook)(Call::List, prefix), Call::List, prefix).await?;
        let listed = self.inner.list(prefix).await?;
        answered
            .then_some(listed)
            .ok_or_else(|| failed(Call::List, prefix))
    }

    fn read_len(&self) -> u64 {
        self.inner.read_len()
    }

    fn reads_at_once(&self) -> usize {
        self.inner.reads_at_once()
    }

    fn pack_len(&self) -> u64 {
        self.pack_len.unwrap_or_else(|| self.inner.pack_len())
    }
}

struct WatchedWriter {
    inner: Box<dyn ObjectWriter>,
    hook: Arc<Hook>,
    name: String,
}

#[async_trait]
impl ObjectWriter for WatchedWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let answered = meet(
            (self.hook)(Call::Write, &self.name),
            Call::Write,
            &self.name,
        )
        .await?;
        self.inner.write(bytes).await?;
        answered
            .then_some(())
            .ok_or_else(|| failed(Call::Write, &self.name))
    }

    async fn finish(self: Box<Self>) -> Result<ObjectMeta> {
        let Self { inner, hook, name } = *self;
        let answered = meet(hook(Call::Finish, &name), Call::Finish, &name).await?;
        let meta = inner.finish().await?;
        answered
            .then_some(meta)
            .ok_or_else(|| failed(Call::Finish, &name))
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}

/// Names of all objects.
pub async fn names(backend: &dyn Backend) -> BTreeSet<String> {
    let objects = backend.list("").await.unwrap();
    objects.into_iter().map(|object| object.name).collect()
}

/// Names of the objects that the snapshot `id` consists of under its own name.
pub async fn own_names(store: &Store, id: &str) -> BTreeSet<String> {
    let snapshot = store.snapshot(&super::id(id)).await.expect("a snapshot");
    let packs = snapshot.directory().packs.iter();
    packs
        .filter(|pack| pack.snapshot == super::id(id))
        .map(|pack| format!("{id}/{}", pack.name))
        .chain([format!("{id}/manifest")])
        .collect()
}
