//! What is stored and what it costs, for tests to look at.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use serde::Serialize;

use crate::{
    object::{Object, encode_crc32c},
    operation::BillingClass,
    server::Shared,
};

/// A live object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ObjectInfo {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its generation.
    pub generation: i64,
    /// Its metageneration.
    pub metageneration: i64,
    /// Base64 of its CRC-32C.
    pub crc32c: String,
    /// Of how many parts it was composed, if it was.
    pub components: Option<u32>,
    /// Its storage class.
    pub storage_class: String,
    /// What callers keep with it.
    pub metadata: std::collections::BTreeMap<String, String>,
}

impl From<&Object> for ObjectInfo {
    fn from(object: &Object) -> Self {
        Self {
            name: object.name.clone(),
            size: object.len(),
            generation: object.generation,
            metageneration: object.metageneration,
            crc32c: encode_crc32c(object.sums.crc32c),
            components: object.components,
            storage_class: object.storage_class().into(),
            metadata: object.metadata.custom.clone(),
        }
    }
}

/// What a bucket costs. Refused requests cost nothing, nor do answers that were only repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Billing {
    /// Class A operations (on all buckets) since the log was cleared.
    pub class_a: u64,
    /// Class B operations, likewise.
    pub class_b: u64,
    /// Free operations, likewise.
    pub free: u64,
    /// Bytes of live objects.
    pub live_bytes: u64,
    /// Bytes of objects that were deleted or overwritten and are kept by the soft-delete policy.
    pub soft_deleted_bytes: u64,
    /// How many such objects there are.
    pub soft_deleted_objects: u64,
    /// Uploads begun and neither finished nor given up: resumable ones and XML multipart ones.
    pub unfinished_uploads: u64,
}

/// Connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionCounts {
    /// Open now.
    pub open: u64,
    /// Open at once at most so far.
    pub most: u64,
    /// Accepted so far.
    pub accepted: u64,
}

pub(crate) fn objects(shared: &Arc<Shared>, bucket: &str) -> Vec<ObjectInfo> {
    let config = shared.config();
    let mut store = shared.store.lock().unwrap();
    let Ok(bucket) = store.bucket(&config, bucket) else {
        return Vec::new();
    };
    bucket
        .state
        .objects
        .values()
        .map(ObjectInfo::from)
        .collect()
}

pub(crate) fn billing(shared: &Arc<Shared>, bucket: &str) -> Billing {
    let config = shared.config();
    let mut store = shared.store.lock().unwrap();
    let unfinished = store.sessions.values().filter(|s| !s.is_finished()).count();
    let unfinished_uploads = (unfinished + store.uploads.len()) as u64;
    let operations = |class| shared.recorder.operations(class);
    let mut billing = Billing {
        class_a: operations(BillingClass::A),
        class_b: operations(BillingClass::B),
        free: operations(BillingClass::Free),
        live_bytes: 0,
        soft_deleted_bytes: 0,
        soft_deleted_objects: 0,
        unfinished_uploads,
    };
    if let Ok(mut bucket) = store.bucket(&config, bucket) {
        bucket.forget_soft_deleted();
        billing.live_bytes = bucket.state.objects.values().map(Object::len).sum();
        let soft_deleted = &bucket.state.soft_deleted;
        billing.soft_deleted_bytes = soft_deleted.iter().map(|(_, o)| o.len()).sum();
        billing.soft_deleted_objects = soft_deleted.len() as u64;
    }
    billing
}

pub(crate) fn connections(shared: &Arc<Shared>) -> ConnectionCounts {
    let connections = &shared.connections;
    ConnectionCounts {
        open: connections.open.load(Relaxed),
        most: connections.most.load(Relaxed),
        accepted: connections.accepted.load(Relaxed),
    }
}
