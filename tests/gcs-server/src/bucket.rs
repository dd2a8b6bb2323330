//! A bucket's state and the rules of changing it. Who may is decided before; HTTP is elsewhere.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    conditions::Conditions,
    config::{BucketConfig, Rules},
    content::{Content, Sums},
    error::{Refusal, Result},
    names,
    object::{Metadata, Object, timestamp},
};

/// Sources of one compose at most.
pub(crate) const COMPOSE_SOURCES: usize = 32;
/// Bytes of one object at most.
const OBJECT_LEN: u64 = 5 << 40;
/// Names whose last mutations are remembered before those that no longer matter are forgotten.
const REMEMBERED_MUTATIONS: usize = 100_000;

/// A folder of a hierarchical bucket.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    pub created: SystemTime,
}

/// What a bucket holds.
#[derive(Debug)]
pub(crate) struct BucketState {
    pub created: SystemTime,
    pub objects: BTreeMap<String, Object>,
    pub folders: BTreeMap<String, Folder>,
    /// With the time at which each was deleted.
    pub soft_deleted: Vec<(SystemTime, Object)>,
    mutations: HashMap<String, (f64, Instant)>,
}

impl Default for BucketState {
    fn default() -> Self {
        Self {
            created: SystemTime::now(),
            objects: BTreeMap::new(),
            folders: BTreeMap::new(),
            soft_deleted: Vec::new(),
            mutations: HashMap::new(),
        }
    }
}

/// Generations of all buckets: microseconds, and strictly increasing.
#[derive(Debug, Default)]
pub(crate) struct Generations(i64);

impl Generations {
    pub fn next(&mut self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_micros() as i64);
        self.0 = now.max(self.0 + 1);
        self.0
    }
}

/// An object to be.
#[derive(Debug, Clone)]
pub(crate) struct NewObject {
    pub content: Content,
    pub sums: Sums,
    pub metadata: Metadata,
    pub components: Option<u32>,
}

/// One source of a compose.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub name: String,
    pub generation: Option<i64>,
    pub generation_match: Option<i64>,
}

/// A bucket under the store's lock, with its settings.
pub(crate) struct Bucket<'a> {
    pub name: &'a str,
    pub settings: &'a BucketConfig,
    pub rules: &'a Rules,
    pub state: &'a mut BucketState,
    pub generations: &'a mut Generations,
}

impl Bucket<'_> {
    /// The live object, if it has this generation.
    pub fn find(&self, name: &str, generation: Option<i64>) -> Option<&Object> {
        let object = self.state.objects.get(name)?;
        generation
            .is_none_or(|g| g == object.generation)
            .then_some(object)
    }

    /// Creates or replaces an object. `may_replace` is asked only if there is one.
    pub fn put(
        &mut self,
        name: &str,
        new: NewObject,
        conditions: &Conditions,
        may_replace: impl FnOnce() -> Result<()>,
    ) -> Result<Object> {
        names::check_object(name, self.settings.hierarchical_namespace)?;
        if new.content.len() > OBJECT_LEN {
            return Err(Refusal::malformed(
                "EntityTooLarge",
                "an object has at most 5 TiB",
            ));
        }
        let old = self.state.objects.get(name);
        conditions.check_change(old)?;
        if let Some(old) = old {
            may_replace()?;
            self.check_not_kept(old)?;
        }
        self.check_rate(name)?;
        let now = SystemTime::now();
        let mut metadata = new.metadata;
        let class = metadata.storage_class.take();
        metadata.storage_class = Some(class.unwrap_or_else(|| self.settings.storage_class.clone()));
        if self.settings.default_event_based_hold && metadata.event_based_hold.is_none() {
            metadata.event_based_hold = Some(true);
        }
        let retained = self
            .settings
            .retention_s
            .map(|s| now + Duration::from_secs(s));
        let object = Object {
            name: name.into(),
            content: new.content,
            sums: new.sums,
            generation: self.generations.next(),
            metageneration: 1,
            created: now,
            updated: now,
            metadata,
            components: new.components,
            retained_until: retained,
        };
        if self.settings.hierarchical_namespace {
            for folder in names::parents(name) {
                let made = Folder { created: now };
                self.state.folders.entry(folder.into()).or_insert(made);
            }
        }
        if let Some(old) = self.state.objects.insert(name.into(), object.clone()) {
            self.soft_delete(old);
        }
        Ok(object)
    }

    /// Deletes the live object.
    pub fn delete(
        &mut self,
        name: &str,
        generation: Option<i64>,
        conditions: &Conditions,
    ) -> Result<()> {
        let object = self.find(name, generation);
        conditions.check_change(object)?;
        let Some(object) = object else {
            return Err(Refusal::no_object(self.name, name));
        };
        self.check_not_kept(object)?;
        self.check_rate(name)?;
        if let Some(object) = self.state.objects.remove(name) {
            self.soft_delete(object);
        }
        Ok(())
    }

    /// Makes one object of several. With `delete_sources` the sources are gone for good, at once and in the same step.
    pub fn compose(
        &mut self,
        name: &str,
        sources: &[Source],
        mut metadata: Metadata,
        delete_sources: bool,
        conditions: &Conditions,
        may_replace: impl FnOnce() -> Result<()>,
    ) -> Result<Object> {
        if sources.is_empty() {
            return Err(Refusal::invalid(
                "You must provide at least one source component.",
            ));
        }
        if sources.len() > COMPOSE_SOURCES {
            let message = format!(
                "The number of source components provided ({}) exceeds the maximum ({COMPOSE_SOURCES})",
                sources.len()
            );
            return Err(Refusal::invalid(message));
        }
        let mut parts = Vec::with_capacity(sources.len());
        for source in sources {
            let Some(object) = self.find(&source.name, source.generation) else {
                let what = format!(
                    "Object {} (generation: {:?}) not found.",
                    source.name, source.generation
                );
                return Err(Refusal::not_found("NoSuchKey", what));
            };
            if source
                .generation_match
                .is_some_and(|g| g != object.generation)
            {
                return Err(Refusal::condition_not_met());
            }
            if delete_sources && source.name != name {
                self.check_not_kept(object)?;
            }
            parts.push(object);
        }
        let class = parts[0].storage_class();
        let wanted = metadata.storage_class.as_deref().unwrap_or(class);
        if parts.iter().any(|p| p.storage_class() != wanted) {
            return Err(Refusal::invalid(
                "Source objects and the composite must have one storage class.",
            ));
        }
        metadata.storage_class = Some(wanted.into());
        if metadata.content_type.is_none() {
            metadata.content_type = parts[0].metadata.content_type.clone();
        }
        let combine = |crc: u32, part: &&Object| {
            crc32c::crc32c_combine(crc, part.sums.crc32c, part.len() as usize)
        };
        let new = NewObject {
            sums: Sums {
                crc32c: parts.iter().fold(0, combine),
                md5: None,
            },
            components: Some(parts.iter().map(|p| p.components.unwrap_or(1)).sum()),
            content: Content::concat(parts.iter().map(|p| p.content.clone())),
            metadata,
        };
        let object = self.put(name, new, conditions, may_replace)?;
        if delete_sources {
            for source in sources.iter().filter(|s| s.name != name) {
                self.state.objects.remove(&source.name);
            }
        }
        Ok(object)
    }

    /// Renames an object; the source leaves no soft-deleted copy.
    pub fn rename(
        &mut self,
        from: &str,
        to: &str,
        from_conditions: &Conditions,
        conditions: &Conditions,
        may_replace: impl FnOnce() -> Result<()>,
    ) -> Result<Object> {
        if from == to {
            return Err(Refusal::invalid(
                "Source and destination object names must be different.",
            ));
        }
        let Some(source) = self.find(from, None) else {
            return Err(Refusal::no_object(self.name, from));
        };
        from_conditions.check_change(Some(source))?;
        self.check_not_kept(source)?;
        let new = NewObject {
            content: source.content.clone(),
            sums: source.sums,
            metadata: source.metadata.clone(),
            components: source.components,
        };
        let object = self.put(to, new, conditions, may_replace)?;
        self.state.objects.remove(from);
        Ok(object)
    }

    /// Changes an object's metadata.
    pub fn patch(
        &mut self,
        name: &str,
        generation: Option<i64>,
        conditions: &Conditions,
        change: impl FnOnce(&mut Metadata),
    ) -> Result<Object> {
        let object = self.find(name, generation);
        conditions.check_change(object)?;
        if object.is_none() {
            return Err(Refusal::no_object(self.name, name));
        }
        self.check_rate(name)?;
        let object = self.state.objects.get_mut(name).expect("found above");
        change(&mut object.metadata);
        object.metageneration += 1;
        object.updated = SystemTime::now();
        Ok(object.clone())
    }

    /// Brings a soft-deleted object back, as a new generation.
    pub fn restore(
        &mut self,
        name: &str,
        generation: i64,
        conditions: &Conditions,
        may_replace: impl FnOnce() -> Result<()>,
    ) -> Result<Object> {
        self.forget_soft_deleted();
        let is_it = |(_, o): &&(SystemTime, Object)| o.name == name && o.generation == generation;
        let Some((_, old)) = self.state.soft_deleted.iter().find(is_it) else {
            return Err(Refusal::no_object(self.name, name));
        };
        let new = NewObject {
            content: old.content.clone(),
            sums: old.sums,
            metadata: old.metadata.clone(),
            components: old.components,
        };
        self.put(name, new, conditions, may_replace)
    }

    /// Bytes of soft-deleted objects that are still billed.
    pub fn forget_soft_deleted(&mut self) {
        let kept = Duration::from_secs(self.settings.soft_delete_s);
        let now = SystemTime::now();
        let still = |at: &SystemTime| now.duration_since(*at).unwrap_or_default() < kept;
        self.state.soft_deleted.retain(|(at, _)| still(at));
    }

    fn soft_delete(&mut self, object: Object) {
        if self.settings.soft_delete_s > 0 {
            self.state.soft_deleted.push((SystemTime::now(), object));
        }
    }

    fn check_not_kept(&self, object: &Object) -> Result<()> {
        let what = format!("Object '{}/{}'", self.name, object.name);
        for (held, kind) in [
            (
                object.metadata.event_based_hold == Some(true),
                "Event-Based",
            ),
            (object.metadata.temporary_hold, "Temporary"),
        ] {
            if held {
                let message = format!(
                    "{what} is under active {kind} hold and cannot be deleted, overwritten or archived until hold is removed."
                );
                return Err(Refusal::kept("objectUnderActiveHold", message));
            }
        }
        // A policy that is set later counts for objects that were there before.
        let Some(retention_s) = self.settings.retention_s else {
            return Ok(());
        };
        let until = object.created + Duration::from_secs(retention_s);
        if until <= SystemTime::now() {
            return Ok(());
        }
        let until = timestamp(until);
        let message = format!(
            "{what} is subject to bucket's retention policy and cannot be deleted or overwritten until {until}"
        );
        Err(Refusal::kept("retentionPolicyNotMet", message))
    }

    /// One mutation per second and name. What is refused does not count.
    fn check_rate(&mut self, name: &str) -> Result<()> {
        let rate = self.rules.mutations_per_second;
        if rate <= 0.0 {
            return Ok(());
        }
        let burst = f64::from(self.rules.mutation_burst.max(1));
        let now = Instant::now();
        let filled = |(tokens, at): (f64, Instant)| {
            (tokens + now.duration_since(at).as_secs_f64() * rate).min(burst)
        };
        let mutations = &mut self.state.mutations;
        if mutations.len() >= REMEMBERED_MUTATIONS {
            mutations.retain(|_, last| filled(*last) < burst);
        }
        let tokens = mutations.get(name).map_or(burst, |last| filled(*last));
        if tokens < 1.0 {
            return Err(Refusal::slow_down(self.name, name));
        }
        mutations.insert(name.into(), (tokens - 1.0, now));
        Ok(())
    }
}
