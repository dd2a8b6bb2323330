//! Permissions: which there are, and who has them where.
//!
//! A grant is a set of permissions on a bucket, or on the objects and folders below one prefix of it, as a role
//! bound to a managed folder is. Who a request speaks for is [`auth`](crate::auth)'s business.

use serde::{Deserialize, Serialize};

/// A permission of Cloud Storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // Each is the permission that its JSON name says.
pub enum Permission {
    #[serde(rename = "storage.objects.get")]
    ObjectsGet,
    #[serde(rename = "storage.objects.create")]
    ObjectsCreate,
    #[serde(rename = "storage.objects.delete")]
    ObjectsDelete,
    #[serde(rename = "storage.objects.list")]
    ObjectsList,
    #[serde(rename = "storage.objects.update")]
    ObjectsUpdate,
    #[serde(rename = "storage.objects.move")]
    ObjectsMove,
    #[serde(rename = "storage.objects.restore")]
    ObjectsRestore,
    #[serde(rename = "storage.folders.create")]
    FoldersCreate,
    #[serde(rename = "storage.folders.get")]
    FoldersGet,
    #[serde(rename = "storage.folders.list")]
    FoldersList,
    #[serde(rename = "storage.folders.delete")]
    FoldersDelete,
    #[serde(rename = "storage.multipartUploads.create")]
    MultipartCreate,
    #[serde(rename = "storage.multipartUploads.abort")]
    MultipartAbort,
    #[serde(rename = "storage.multipartUploads.listParts")]
    MultipartListParts,
    #[serde(rename = "storage.multipartUploads.list")]
    MultipartList,
    #[serde(rename = "storage.buckets.get")]
    BucketsGet,
    #[serde(rename = "storage.buckets.list")]
    BucketsList,
    #[serde(rename = "storage.buckets.create")]
    BucketsCreate,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 18] = [
        Self::ObjectsGet,
        Self::ObjectsCreate,
        Self::ObjectsDelete,
        Self::ObjectsList,
        Self::ObjectsUpdate,
        Self::ObjectsMove,
        Self::ObjectsRestore,
        Self::FoldersCreate,
        Self::FoldersGet,
        Self::FoldersList,
        Self::FoldersDelete,
        Self::MultipartCreate,
        Self::MultipartAbort,
        Self::MultipartListParts,
        Self::MultipartList,
        Self::BucketsGet,
        Self::BucketsList,
        Self::BucketsCreate,
    ];

    /// Its name, as in `storage.objects.get`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ObjectsGet => "storage.objects.get",
            Self::ObjectsCreate => "storage.objects.create",
            Self::ObjectsDelete => "storage.objects.delete",
            Self::ObjectsList => "storage.objects.list",
            Self::ObjectsUpdate => "storage.objects.update",
            Self::ObjectsMove => "storage.objects.move",
            Self::ObjectsRestore => "storage.objects.restore",
            Self::FoldersCreate => "storage.folders.create",
            Self::FoldersGet => "storage.folders.get",
            Self::FoldersList => "storage.folders.list",
            Self::FoldersDelete => "storage.folders.delete",
            Self::MultipartCreate => "storage.multipartUploads.create",
            Self::MultipartAbort => "storage.multipartUploads.abort",
            Self::MultipartListParts => "storage.multipartUploads.listParts",
            Self::MultipartList => "storage.multipartUploads.list",
            Self::BucketsGet => "storage.buckets.get",
            Self::BucketsList => "storage.buckets.list",
            Self::BucketsCreate => "storage.buckets.create",
        }
    }

    /// Whether it is about a bucket and not about what lies in it: a grant on a prefix does not give it.
    fn on_bucket(self) -> bool {
        matches!(
            self,
            Self::BucketsGet | Self::BucketsList | Self::BucketsCreate
        )
    }
}

/// Permissions on a bucket or on a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// What is allowed.
    pub permissions: Vec<Permission>,
    /// In which bucket; `*` for all.
    #[serde(default = "any")]
    pub bucket: String,
    /// Below which prefix; a managed folder's ends in `/`. Empty: in the whole bucket.
    #[serde(default)]
    pub prefix: String,
}

fn any() -> String {
    "*".into()
}

impl Grant {
    /// Everything everywhere.
    pub fn everything() -> Self {
        Self {
            permissions: Permission::ALL.to_vec(),
            bucket: any(),
            prefix: String::new(),
        }
    }

    /// One set of permissions below a prefix of a bucket.
    pub fn new(bucket: &str, prefix: &str, permissions: &[Permission]) -> Self {
        Self {
            permissions: permissions.to_vec(),
            bucket: bucket.into(),
            prefix: prefix.into(),
        }
    }

    /// What a multi-tenant agent has: its managed folder, and the bucket's metadata.
    pub fn agent(bucket: &str, folder: &str) -> Vec<Self> {
        use Permission::*;
        let objects = [ObjectsGet, ObjectsCreate, ObjectsDelete, FoldersCreate];
        vec![
            Self::new(bucket, folder, &objects),
            Self::new(bucket, "", &[BucketsGet]),
        ]
    }

    /// Whether it gives `permission` on `name` (empty for the bucket itself) in `bucket`.
    pub fn gives(&self, permission: Permission, bucket: &str, name: &str) -> bool {
        let here = match permission.on_bucket() {
            true => self.prefix.is_empty(),
            false => name.starts_with(&self.prefix),
        };
        here && (self.bucket == "*" || self.bucket == bucket)
            && self.permissions.contains(&permission)
    }
}
