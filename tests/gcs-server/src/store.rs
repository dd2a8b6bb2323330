//! Everything that is stored, behind one lock: buckets, uploads under way, and answers that may be asked for again.

use std::collections::{HashMap, VecDeque};

use crate::{
    bucket::{Bucket, BucketState, Generations},
    config::Config,
    error::{Refusal, Result},
    json::resumable::Session,
    reply::Reply,
    xml::multipart::Upload,
};

/// Answers to mutations that are remembered by their idempotency token.
const REMEMBERED: usize = 50_000;

/// See the module.
#[derive(Default)]
pub(crate) struct Store {
    buckets: HashMap<String, BucketState>,
    generations: Generations,
    remembered: Remembered,
    /// Resumable uploads, by id.
    pub sessions: HashMap<String, Session>,
    /// XML multipart uploads, by id.
    pub uploads: HashMap<String, Upload>,
    next_upload: u64,
}

impl Store {
    /// A bucket that is configured; it begins empty.
    pub fn bucket<'a>(&'a mut self, config: &'a Config, name: &'a str) -> Result<Bucket<'a>> {
        let settings = config.buckets.get(name).ok_or_else(Refusal::no_bucket)?;
        Ok(Bucket {
            name,
            settings,
            rules: &config.rules,
            state: self.buckets.entry(name.into()).or_default(),
            generations: &mut self.generations,
        })
    }

    /// An id that no other upload has.
    pub fn new_upload_id(&mut self) -> String {
        self.next_upload += 1;
        format!(
            "podsnap-upload-{}-{}",
            self.next_upload,
            self.generations.next()
        )
    }

    /// The answer that was given to the same request before.
    pub fn remembered(&self, key: &str) -> Option<Reply> {
        self.remembered.replies.get(key).cloned()
    }

    /// Keeps the answer to a mutation.
    pub fn remember(&mut self, key: String, reply: &Reply) {
        let remembered = &mut self.remembered;
        if remembered.order.len() >= REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.replies.remove(&oldest);
        }
        remembered.order.push_back(key.clone());
        remembered.replies.insert(key, reply.clone());
    }
}

#[derive(Default)]
struct Remembered {
    replies: HashMap<String, Reply>,
    order: VecDeque<String>,
}
