//! What earlier passes saw: the object `.garbage/seen` of a store, which any collector reads and replaces by compare-and-swap.
//!
//! It is a memory, not a list to delete by: an object is deleted only if it is garbage now and was so, in the same version, when it
//! was noted. A record that is lost, damaged or of a clock that is ahead costs time, no data; one of a clock that is behind takes as much
//! from the time of grace, so that must be longer than clocks differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind, Result},
    names,
    store::{Backend, Condition, ReadRange, Version},
};

/// A longer record is not one of ours, in bytes. What does not fit waits for a later pass.
const MAX_RECORD_LEN: u64 = 16 << 20;

/// Objects noted at most, so that a record stays below its longest.
pub(crate) const MAX_NOTED: usize = 50_000;

/// When an object was first seen to be garbage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) version: String,
    pub(crate) first_unix_ms: u64,
}

/// The record: garbage by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    #[serde(default)]
    pub(crate) garbage: BTreeMap<String, Noted>,
}

impl Seen {
    /// The record and its version; an empty one if there is none. A damaged one is as good as none, and is replaced.
    pub(crate) async fn read(backend: &dyn Backend) -> Result<(Self, Option<Version>)> {
        let range = ReadRange::Suffix(MAX_RECORD_LEN);
        let read = match backend.read(names::GARBAGE, range, None).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Self::default(), None)),
            // Stores refuse to read the end of nothing.
            Err(e) if e.kind() == ErrorKind::Damaged => {
                let meta = backend.head(names::GARBAGE).await?;
                return Ok((Self::default(), Some(meta.version)));
            }
            read => read?,
        };
        let seen = serde_json::from_slice(&read.bytes).unwrap_or_else(|error| {
            let object = names::GARBAGE;
            tracing::warn!(%object, %error, "what earlier passes saw cannot be read; beginning anew");
            Self::default()
        });
        Ok((seen, Some(read.meta.version)))
    }

    /// Replaces the record in the version that was read, or removes it if nothing is left to note. Returns its new version. A conflict is another
    /// collector's doing.
    pub(crate) async fn write(
        &self,
        backend: &dyn Backend,
        replaced: Option<&Version>,
    ) -> Result<Option<Version>> {
        if self.garbage.is_empty() {
            if let Some(version) = replaced {
                backend.delete(names::GARBAGE, Some(version)).await?;
            }
            return Ok(None);
        }
        let bytes = serde_json::to_vec(self).expect("a record is plain data");
        let condition = match replaced {
            Some(version) => Condition::Matches(version.clone()),
            None => Condition::Absent,
        };
        match backend.put(names::GARBAGE, bytes.into(), condition).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::new(
                ErrorKind::Conflict,
                "another collector removed the record of earlier passes",
            )),
            put => put.map(|meta| Some(meta.version)),
        }
    }
}
