//! What is garbage, and which of it is due. Reads only.

use std::collections::{BTreeMap, HashSet};

use podsnap_format::SnapshotId;

use super::{
    CollectOptions, CollectionPlan, Part, Survey, garbage, place_of,
    record::{MAX_NOTED, Noted, Seen},
    survey::relies_on,
};
use crate::{
    Store,
    error::{ErrorKind, Result},
    heads,
    host::Safeguard,
    lease::LeaseRecord,
    names,
    store::{ObjectMeta, Version},
};

impl Store {
    /// Looks for what nobody needs, and says what [`collect`](Store::collect) would do about it. Changes nothing. Needs the right to list.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{CollectOptions, Store};
    ///
    /// let store = Store::open("memory://collect")?;
    /// let plan = store.plan_collection(&CollectOptions::default()).await?;
    /// for garbage in &plan.delete {
    ///     println!("{}: {} bytes", garbage.object, garbage.bytes);
    /// }
    /// let stats = store.collect(plan).await?;
    /// assert_eq!(stats.deleted_objects, 0);
    /// # Ok(()) }
    /// ```
    pub async fn plan_collection(&self, options: &CollectOptions) -> Result<CollectionPlan> {
        let seen = Seen::read(&**self.backend()).await;
        // Without the right to list a store does not tell what is missing from what is refused, so that error is the one to know.
        let survey = Survey::of(self).await?;
        let (seen, seen_version) = seen?;
        let now = self.host().now_unix_ms();
        let grace = match self.host().lacks(Safeguard::SecondPass) {
            true => None,
            false => Some(options.grace.as_millis() as u64),
        };
        let judge = Judge {
            survey: &survey,
            seen: &seen,
            now,
            grace,
            expired: |record: &LeaseRecord| record.is_expired(self.host()),
        };
        let mut plan = judge.plan();
        plan.seen_version = seen_version;
        plan.heads = self.stale_heads(&survey).await?;
        plan.stale_heads = plan.heads.iter().map(|(group, _)| group.clone()).collect();
        Ok(plan)
    }

    /// Heads that name a snapshot that is not there, with that snapshot. A head that makes no sense is left to people.
    async fn stale_heads(&self, survey: &Survey) -> Result<Vec<(String, SnapshotId)>> {
        let mut stale = Vec::new();
        for object in &survey.objects {
            let Some((names::HEADS, group)) = object.name.split_once('/') else {
                continue;
            };
            match heads::read(&**self.backend(), group).await {
                Ok(Some((head, _))) if !survey.manifests.contains_key(&head.snapshot) => {
                    let manifest = names::object(&head.snapshot, names::MANIFEST);
                    match self.backend().head(&manifest).await {
                        Err(e) if e.kind() == ErrorKind::NotFound => {
                            stale.push((group.to_owned(), head.snapshot));
                        }
                        Err(e) => return Err(e),
                        // Committed since, or not readable.
                        Ok(_) => {}
                    }
                }
                Ok(_) => {}
                Err(e) if super::unreadable(&e) => {
                    tracing::warn!(group, error = %e, "a head makes no sense");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(stale)
    }
}

/// Decides over every object.
struct Judge<'a, E> {
    survey: &'a Survey,
    seen: &'a Seen,
    now: u64,
    /// How long garbage must have been seen, if at all.
    grace: Option<u64>,
    expired: E,
}

impl<E: Fn(&LeaseRecord) -> bool> Judge<'_, E> {
    fn plan(&self) -> CollectionPlan {
        let survey = self.survey;
        let mut plan = CollectionPlan {
            committed: survey.manifests.keys().cloned().collect(),
            blocked_by: survey.unreadable.values().map(|e| e.to_string()).collect(),
            ..CollectionPlan::default()
        };
        let needed: HashSet<&str> = survey
            .manifests
            .values()
            .flatten()
            .map(String::as_str)
            .collect();
        let mut found: Vec<(SnapshotId, Part, ObjectMeta)> = Vec::new();
        for object in &survey.objects {
            match place_of(object) {
                Some((id, Part::Lease)) => {
                    // As it was read, which is later than it was listed.
                    if let Some((record, version)) = survey.leases.get(&id)
                        && (self.expired)(record)
                    {
                        let version = version.clone();
                        found.push((
                            id,
                            Part::Lease,
                            ObjectMeta {
                                version,
                                ..object.clone()
                            },
                        ));
                    }
                }
                Some((id, Part::Pack)) => {
                    let promised = self.promised(&id, |record, _| !(self.expired)(record));
                    if !needed.contains(object.name.as_str()) && !promised {
                        found.push((id, Part::Pack, object.clone()));
                    }
                }
                Some((id, part @ (Part::WorkingSet | Part::Note))) => {
                    if !survey.manifests.contains_key(&id) && !survey.leases.contains_key(&id) {
                        found.push((id, part, object.clone()));
                    }
                }
                Some((_, Part::Manifest)) => {}
                None if is_ours(&object.name) => {}
                None => plan.foreign_objects += 1,
            }
        }
        let blocked = !plan.blocked_by.is_empty();
        let mut due_leases: BTreeMap<SnapshotId, Version> = BTreeMap::new();
        for (id, part, object) in &found {
            if *part == Part::Lease && !blocked && self.is_due(object) {
                due_leases.insert(id.clone(), object.version.clone());
            }
        }
        for (id, part, object) in found {
            let first = self.first_seen(&object);
            // A pack goes only together with, or after, every lease that promised it: such a lease is dead for good then.
            let goes = !blocked
                && self.is_due(&object)
                && (part != Part::Pack
                    || !self.promised(&id, |_, holder| !due_leases.contains_key(holder)));
            let garbage = garbage(&object, first);
            match goes {
                true => plan.delete.push(garbage),
                false => {
                    if plan.seen.garbage.len() < MAX_NOTED {
                        let noted = Noted {
                            version: object.version.0,
                            first_unix_ms: first.unwrap_or(self.now),
                        };
                        plan.seen.garbage.insert(object.name, noted);
                    }
                    plan.keep.push(garbage);
                }
            }
        }
        plan.dead_leases = due_leases.into_iter().collect();
        plan
    }

    /// Whether a lease that `counts` promises that packs of `id` stay: its own save's, or one's that relies on it.
    fn promised(
        &self,
        id: &SnapshotId,
        counts: impl Fn(&LeaseRecord, &SnapshotId) -> bool,
    ) -> bool {
        let mut leases = self.survey.leases.iter();
        leases.any(|(holder, (record, _))| {
            (holder == id || relies_on(record, id)) && counts(record, holder)
        })
    }

    /// When an earlier pass first saw this version of the object to be garbage.
    fn first_seen(&self, object: &ObjectMeta) -> Option<u64> {
        let noted = self.seen.garbage.get(&object.name)?;
        (noted.version == object.version.0).then_some(noted.first_unix_ms)
    }

    fn is_due(&self, object: &ObjectMeta) -> bool {
        let Some(grace) = self.grace else { return true };
        self.first_seen(object)
            // A time to come is that of another clock: it has not been long enough.
            .and_then(|first| self.now.checked_sub(first))
            .is_some_and(|seen_for| seen_for >= grace)
    }
}

/// Whether the object is one of the store's own that belong to no snapshot.
fn is_ours(name: &str) -> bool {
    name == names::GARBAGE
        || name
            .split_once('/')
            .is_some_and(|(dir, _)| dir == names::HEADS)
}
