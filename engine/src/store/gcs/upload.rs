//! Packs as composites: parts are uploaded in parallel as they fill, then joined on the server. A small pack goes in one insert.
//!
//! Parts lie beside their pack and are called after it, `PACK.N.part`, so that they can be found again without a listing, and so that a
//! lifecycle rule on the suffix can remove what a crash leaves. Each is written under a precondition and with its CRC-32C; the
//! composite's CRC-32C is compared with ours.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use super::{
    client::Client,
    objects::{Component, Conditional, Stored},
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::{ObjectMeta, ObjectWriter, Version},
};

/// Most sources of one compose.
const MAX_SOURCES: usize = 32;

/// Parts at the beginning of a pack that are shorter, so that several streams start at once instead of after another.
const SHORT_PARTS: usize = 3;

/// How many short parts are as long as one other.
const SHORT_SHARE: usize = 4;

/// Parts of a pack: as many as one compose takes, less some room for the last one's growth. They are so long that each write that is
/// billed, the compose included, stands for 30 MB.
const PARTS_IN_PACK: usize = 31;

/// Length at which a pack of parts of `part_len` bytes is full.
pub(super) fn pack_len(part_len: usize) -> u64 {
    let lens = (0..PARTS_IN_PACK).map(|number| len_of_part(number, part_len) as u64);
    lens.sum()
}

fn len_of_part(number: usize, part_len: usize) -> usize {
    match number < SHORT_PARTS {
        true => (part_len / SHORT_SHARE).max(1),
        false => part_len,
    }
}

/// Objects that are removed at once.
const DELETES_AT_ONCE: usize = 16;

/// Time that uploads under way get to end when their pack is given up. One that is cut off might still be stored after its
/// name was cleared.
const GRACE: Duration = Duration::from_secs(2);

/// The end of the names of all objects that are not to stay.
pub(crate) const PART_SUFFIX: &str = ".part";

fn part_name(object: &str, number: usize) -> String {
    format!("{object}.{number}{PART_SUFFIX}")
}

/// Parts that were joined, where there are too many for one compose.
fn joint_name(object: &str, number: usize) -> String {
    format!("{object}.joint-{number}{PART_SUFFIX}")
}

/// A pack being written.
pub(super) struct GcsWriter {
    client: Arc<Client>,
    /// Name below the store's path.
    name: String,
    /// Name in the bucket.
    object: String,
    part_len: usize,
    /// Whether there may be parts; else everything goes in one insert.
    composes: bool,
    /// Bounds the parts under way, of all packs together.
    permits: Arc<Semaphore>,
    buffer: BytesMut,
    uploads: JoinSet<Result<Uploaded>>,
    /// Parts that were begun.
    begun: usize,
    parts: Vec<Option<Stored>>,
    /// Memory of parts that are done, to be filled again.
    spare: Vec<BytesMut>,
}

struct Uploaded {
    number: usize,
    stored: Stored,
    memory: Option<BytesMut>,
}

impl GcsWriter {
    pub(super) fn new(
        client: Arc<Client>,
        name: &str,
        object: String,
        part_len: usize,
        composes: bool,
        permits: Arc<Semaphore>,
    ) -> Self {
        Self {
            client,
            name: name.to_owned(),
            object,
            part_len: part_len.max(1),
            composes,
            permits,
            buffer: BytesMut::new(),
            uploads: JoinSet::new(),
            begun: 0,
            parts: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Begins to upload what the buffer holds, waiting while too much is under way.
    async fn begin_part(&mut self) -> Result<()> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.expect("it is never closed");
        while let Some(done) = self.uploads.try_join_next() {
            self.note(done)?;
        }
        let next = self.spare.pop().unwrap_or_default();
        let bytes = std::mem::replace(&mut self.buffer, next).freeze();
        let number = self.begun;
        self.begun += 1;
        self.parts.push(None);
        let (client, name) = (self.client.clone(), part_name(&self.object, number));
        self.uploads.spawn(async move {
            let stored = client
                .insert(&name, bytes.clone(), Conditional::Absent)
                .await?;
            drop(permit);
            let memory = bytes.try_into_mut().ok().map(|mut memory| {
                memory.clear();
                memory
            });
            Ok(Uploaded {
                number,
                stored,
                memory,
            })
        });
        Ok(())
    }

    fn note(&mut self, done: Result<Result<Uploaded>, JoinError>) -> Result<()> {
        let done = done.map_err(|_| Error::new(ErrorKind::Store, "an upload died"))??;
        self.parts[done.number] = Some(done.stored);
        self.spare.extend(done.memory);
        Ok(())
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        while self.composes {
            let part_len = len_of_part(self.begun, self.part_len);
            if self.buffer.len() + bytes.len() <= part_len {
                break;
            }
            let (now, rest) = bytes.split_at(part_len - self.buffer.len());
            self.buffer.extend_from_slice(now);
            bytes = rest;
            self.begin_part().await?;
        }
        if self.buffer.is_empty() && self.begun > 0 {
            let part_len = len_of_part(self.begun, self.part_len);
            self.buffer.reserve(part_len);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    async fn finish_object(&mut self) -> Result<Stored> {
        if self.begun == 0 {
            let bytes = self.buffer.split().freeze();
            return self
                .client
                .insert(&self.object, bytes, Conditional::Absent)
                .await;
        }
        self.flush().await?;
        self.spare.clear();
        while let Some(done) = self.uploads.join_next().await {
            self.note(done)?;
            // The next pack may be filling its own.
            self.spare.clear();
        }
        let mut components: Vec<Component> = Vec::with_capacity(self.parts.len());
        for (number, stored) in self.parts.iter().enumerate() {
            components.push(Component {
                name: part_name(&self.object, number),
                stored: stored.expect("every upload that began has ended well"),
            });
        }
        let mut joints = 0;
        while components.len() > MAX_SOURCES {
            let mut joined = Vec::new();
            for group in components.chunks(MAX_SOURCES) {
                let name = joint_name(&self.object, joints);
                joints += 1;
                let stored = join(&self.client, &name, group).await?;
                joined.push(Component { name, stored });
            }
            components = joined;
        }
        join(&self.client, &self.object, &components).await
    }

    /// Ends what is under way and removes every part that may be there.
    async fn give_up(&mut self) -> Result<()> {
        let ended = async { while self.uploads.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            self.uploads.shutdown().await;
        }
        let joints = self.begun.div_ceil(MAX_SOURCES) * 2;
        let names = (0..self.begun)
            .map(|number| part_name(&self.object, number))
            .chain(
                (0..joints)
                    .filter(|_| self.begun > MAX_SOURCES)
                    .map(|n| joint_name(&self.object, n)),
            );
        remove(&self.client, names.collect()).await.map(drop)
    }
}

/// Joins some objects into one and sees to it that they go.
async fn join(client: &Client, object: &str, components: &[Component]) -> Result<Stored> {
    let (crc32c, len) = components.iter().fold((0, 0), |(crc, len), c| {
        let stored = &c.stored;
        (
            crc32c::crc32c_combine(crc, stored.crc32c, stored.len as usize),
            len + stored.len,
        )
    });
    let stored = client.compose(object, components, len, crc32c).await?;
    let removes_sources = client
        .removes_sources
        .get_or_try_init(|| async {
            let left = client.exists(&components[0].name).await?;
            Ok::<_, Error>(!left)
        })
        .await?;
    if !removes_sources {
        let names = components.iter().map(|c| c.name.clone()).collect();
        remove(client, names).await?;
    }
    Ok(stored)
}

/// Removes objects whether they are there or not; says of each whether the caller was not allowed to or there was none to be seen.
async fn remove(client: &Client, names: Vec<String>) -> Result<()> {
    let results: Vec<Result<()>> = stream::iter(names)
        .map(|name| async move { client.delete(&name, None).await })
        .buffer_unordered(DELETES_AT_ONCE)
        .collect()
        .await;
    results.into_iter().collect()
}

/// Removes the parts of a pack that nobody writes any more. How many there were is not known: a gap can be no longer than
/// the number of parts that were under way at once.
pub(super) async fn remove_parts(client: &Client, object: &str, at_once: usize) -> Result<()> {
    let window = at_once.max(1) + 1;
    let mut first = 0;
    loop {
        let found: Vec<Result<bool>> = stream::iter(first..first + window)
            .map(|number| async move { remove_if_there(client, &part_name(object, number)).await })
            .buffer_unordered(DELETES_AT_ONCE)
            .collect()
            .await;
        let found: Vec<bool> = found.into_iter().collect::<Result<_>>()?;
        if !found.contains(&true) {
            break;
        }
        first += window;
    }
    let mut joint = 0;
    while first > 0 && remove_if_there(client, &joint_name(object, joint)).await? {
        joint += 1;
    }
    Ok(())
}

/// Whether there was such an object, which is gone now.
async fn remove_if_there(client: &Client, object: &str) -> Result<bool> {
    if !client.exists(object).await? {
        return Ok(false);
    }
    client.delete(object, None).await?;
    Ok(true)
}

#[async_trait]
impl ObjectWriter for GcsWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.write_all(&bytes).await
    }

    async fn flush(&mut self) -> Result<()> {
        // An object of one part is sent as what it is.
        if self.begun > 0 && !self.buffer.is_empty() {
            self.begin_part().await?;
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<ObjectMeta> {
        match self.finish_object().await {
            Ok(stored) => Ok(ObjectMeta {
                name: self.name,
                len: stored.len,
                version: Version(stored.generation.to_string()),
            }),
            Err(e) => {
                if let Err(left) = self.give_up().await {
                    tracing::warn!(object = self.object, error = %left, "parts of an unfinished pack may be left behind");
                }
                Err(e)
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.give_up().await
    }
}
