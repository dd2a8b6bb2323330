//! Preconditions on generation and metageneration.

use http::HeaderMap;

use crate::{
    error::{Refusal, Result},
    object::Object,
    request::Query,
};

/// What must hold of the object that is there. A generation of 0 stands for none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Conditions {
    pub generation_match: Option<i64>,
    pub generation_not_match: Option<i64>,
    pub metageneration_match: Option<i64>,
    pub metageneration_not_match: Option<i64>,
}

/// Why a read is not answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unmet {
    NotModified,
    Failed,
}

impl Conditions {
    pub fn from_query(query: &Query) -> Result<Self> {
        Self::from_query_prefixed(query, "if")
    }

    /// `ifSource...` of copies.
    pub fn from_query_prefixed(query: &Query, prefix: &str) -> Result<Self> {
        let get = |name: &str| query.int(&format!("{prefix}{name}"));
        Ok(Self {
            generation_match: get("GenerationMatch")?,
            generation_not_match: get("GenerationNotMatch")?,
            metageneration_match: get("MetagenerationMatch")?,
            metageneration_not_match: get("MetagenerationNotMatch")?,
        })
    }

    pub fn from_headers(headers: &HeaderMap) -> Result<Self> {
        let get = |name: &str| {
            let Some(value) = headers.get(name) else {
                return Ok(None);
            };
            let parsed = value.to_str().ok().and_then(|v| v.trim().parse().ok());
            let invalid = || Refusal::invalid(format!("{name} is not a number"));
            parsed.ok_or_else(invalid).map(Some)
        };
        Ok(Self {
            generation_match: get("x-goog-if-generation-match")?,
            generation_not_match: None,
            metageneration_match: get("x-goog-if-metageneration-match")?,
            metageneration_not_match: None,
        })
    }

    fn unmet(&self, object: Option<&Object>) -> Option<Unmet> {
        let generation = object.map_or(0, |o| o.generation);
        let metageneration = object.map_or(0, |o| o.metageneration);
        let differs = |wanted: Option<i64>, found| wanted.is_some_and(|w| w != found);
        let equals = |unwanted: Option<i64>, found| unwanted.is_some_and(|u| u == found);
        if differs(self.generation_match, generation)
            || differs(self.metageneration_match, metageneration)
        {
            return Some(Unmet::Failed);
        }
        let not_modified = equals(self.generation_not_match, generation)
            || equals(self.metageneration_not_match, metageneration);
        not_modified.then_some(Unmet::NotModified)
    }

    /// For a change of what is there, or is not.
    pub fn check_change(&self, object: Option<&Object>) -> Result<()> {
        match self.unmet(object) {
            None => Ok(()),
            Some(_) => Err(Refusal::condition_not_met()),
        }
    }

    /// For a read: `false` for "not modified".
    pub fn check_read(&self, object: &Object) -> Result<bool> {
        match self.unmet(Some(object)) {
            None => Ok(true),
            Some(Unmet::NotModified) => Ok(false),
            Some(Unmet::Failed) => Err(Refusal::condition_not_met()),
        }
    }
}
