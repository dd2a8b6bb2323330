//! What a request asks for, in words that tests, faults and bills use.

use serde::{Deserialize, Serialize};

/// One kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // Each is what the API calls it.
pub enum Operation {
    InsertMedia,
    InsertMultipart,
    ResumableStart,
    ResumableChunk,
    ResumableStatus,
    ResumableCancel,
    GetMetadata,
    GetMedia,
    List,
    Delete,
    Compose,
    Rewrite,
    Copy,
    Move,
    Patch,
    Restore,
    XmlGet,
    XmlHead,
    XmlPut,
    XmlCopy,
    XmlDelete,
    XmlList,
    XmlMultipartInitiate,
    XmlMultipartPart,
    XmlMultipartComplete,
    XmlMultipartAbort,
    XmlMultipartListParts,
    XmlMultipartList,
    BucketGet,
    BucketInsert,
    BucketList,
    BucketTestPermissions,
    FolderInsert,
    FolderGet,
    FolderList,
    FolderDelete,
    Token,
    MetadataServer,
    Unknown,
}

/// What an operation is billed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BillingClass {
    /// Writes and lists.
    A,
    /// Reads.
    B,
    /// Deletes, and what is no storage operation.
    Free,
}

impl Operation {
    /// What one such operation that succeeds is billed as. A resumable upload is billed when it starts.
    pub fn billing_class(self) -> BillingClass {
        use Operation::*;
        match self {
            InsertMedia
            | InsertMultipart
            | ResumableStart
            | List
            | Compose
            | Rewrite
            | Copy
            | Move
            | Patch
            | Restore
            | XmlPut
            | XmlCopy
            | XmlList
            | XmlMultipartInitiate
            | XmlMultipartPart
            | XmlMultipartComplete
            | XmlMultipartListParts
            | XmlMultipartList
            | BucketInsert
            | BucketList
            | FolderInsert
            | FolderList => BillingClass::A,
            GetMetadata
            | GetMedia
            | XmlGet
            | XmlHead
            | BucketGet
            | BucketTestPermissions
            | FolderGet => BillingClass::B,
            Delete | XmlDelete | XmlMultipartAbort | FolderDelete | ResumableChunk
            | ResumableStatus | ResumableCancel | Token | MetadataServer | Unknown => {
                BillingClass::Free
            }
        }
    }

    /// Whether its request carries an object's bytes.
    pub fn uploads(self) -> bool {
        use Operation::*;
        matches!(
            self,
            InsertMedia | InsertMultipart | ResumableChunk | XmlPut | XmlMultipartPart
        )
    }

    /// Whether its answer carries an object's bytes.
    pub fn downloads(self) -> bool {
        matches!(self, Self::GetMedia | Self::XmlGet)
    }
}
