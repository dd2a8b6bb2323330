//! What a store answers is compared with what it was asked, once for all backends: everything above slices answers by the
//! ranges it asked for.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version};
use crate::error::{Error, ErrorKind, Result};

/// A backend whose reads hold exactly the bytes that were asked for, or are errors.
#[derive(Debug)]
pub(crate) struct Checked(pub(crate) Arc<dyn Backend>);

#[async_trait]
impl Backend for Checked {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let read = self.0.read(name, range.clone(), version).await?;
        let (offset, len) = match range {
            ReadRange::Exact(range) => (range.start, range.end - range.start),
            ReadRange::Suffix(len) => {
                let len = len.min(read.meta.len);
                (read.meta.len - len, len)
            }
        };
        if (read.offset, read.bytes.len() as u64) != (offset, len) {
            return Err(Error::new(
                ErrorKind::Store,
                format!(
                    "{name}: the store sent {} bytes at {} when asked for {len} at {offset}",
                    read.bytes.len(),
                    read.offset
                ),
            )
            .hint(
                "try again; if it happens again, something between here and the store is broken",
            ));
        }
        Ok(read)
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        self.0.head(name).await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        self.0.put(name, bytes, condition).await
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        self.0.create(name).await
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        self.0.delete(name, version).await
    }

    async fn remove_leftovers(&self, name: &str) -> Result<()> {
        self.0.remove_leftovers(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.0.list(prefix).await
    }

    fn read_len(&self) -> u64 {
        self.0.read_len()
    }

    fn reads_at_once(&self) -> usize {
        self.0.reads_at_once()
    }

    fn pack_len(&self) -> u64 {
        self.0.pack_len()
    }
}
