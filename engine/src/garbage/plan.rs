//! What is garbage, and which of it is due. Reads only.

use std::collections::{BTreeMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;

use super::{
    CollectOptions, CollectionPlan, Part, Survey, garbage, place_of,
    record::{MAX_NOTED, Noted, Seen},
    survey::promises,
};
use crate::{
    Store,
    error::{ErrorKind, Result},
    heads,
    host::Safeguard,
    lease::LeaseRecord,
    names,
    store::ObjectMeta,
};

impl Store {
    /// Looks for what nobody needs, and says what [`collect`](Store::collect) would do about it. Changes nothing. Needs the right to list.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{CancellationToken, CollectOptions, Store};
    ///
    /// let store = Store::open("memory://collect")?;
    /// let plan = store.plan_collection(&CollectOptions::default()).await?;
    /// for garbage in &plan.delete {
    ///     println!("{}: {} bytes", garbage.object, garbage.bytes);
    /// }
    /// let stats = store.collect(plan, &CancellationToken::new()).await?;
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
            false => Some(u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX)),
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

    /// Heads that name a snapshot that is not there or not theirs, with that snapshot.
    async fn stale_heads(&self, survey: &Survey) -> Result<Vec<(String, SnapshotId)>> {
        let groups: Vec<String> = survey
            .objects
            .iter()
            .filter_map(|object| match object.name.split_once('/') {
                Some((names::HEADS, group)) => Some(group.to_owned()),
                _ => None,
            })
            .collect();
        stream::iter(groups)
            .map(|group| async move {
                let gone = self.names_what_is_gone(survey, &group).await?;
                Ok(gone.map(|snapshot| (group, snapshot)))
            })
            .buffered(READS_AT_ONCE)
            .try_filter_map(|stale| async move { Ok(stale) })
            .try_collect()
            .await
    }

    /// The snapshot that the head of a group names, if that is not there, or of another group. A head that makes no sense is left to people.
    async fn names_what_is_gone(&self, survey: &Survey, group: &str) -> Result<Option<SnapshotId>> {
        let named = match heads::read(&**self.backend(), group).await {
            Ok(Some((head, _))) => head.snapshot,
            Ok(None) => return Ok(None),
            Err(e) if super::unreadable(&e) => {
                tracing::warn!(group, error = %e, "a head makes no sense");
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        if survey.manifests.contains_key(&named) {
            let is_its_own = survey.groups.get(&named).is_some_and(|of| of == group);
            return Ok((!is_its_own).then_some(named));
        }
        let manifest = names::object(&named, names::MANIFEST);
        match self.backend().head(&manifest).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Some(named)),
            Err(e) => Err(e),
            // Committed since, or not readable.
            Ok(_) => Ok(None),
        }
    }
}

/// Heads read at once.
const READS_AT_ONCE: usize = 16;

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
        let promised_by_live = self.promised(|record, _| !(self.expired)(record));
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
                    if !needed.contains(object.name.as_str())
                        && !promised_by_live.contains(id.as_str())
                    {
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
        let mut due_leases: BTreeMap<SnapshotId, LeaseRecord> = BTreeMap::new();
        for (id, part, object) in &found {
            if *part == Part::Lease
                && !blocked
                && self.is_due(object)
                && let Some((record, _)) = survey.leases.get(id)
            {
                due_leases.insert(id.clone(), record.clone());
            }
        }
        // A pack goes only together with, or after, every lease that promised it: such a lease is dead for good then.
        let promised_by_staying = self.promised(|_, holder| !due_leases.contains_key(holder));
        plan.seen = self.noted(&found);
        for (id, part, object) in found {
            let goes = !blocked
                && self.is_due(&object)
                && (part != Part::Pack || !promised_by_staying.contains(id.as_str()));
            let garbage = garbage(&object, self.first_seen(&object));
            match goes {
                true => plan.delete.push(garbage),
                false => plan.keep.push(garbage),
            }
        }
        let by_name = |(id, record)| (names::object(&id, names::LEASE), (id, record));
        plan.dead_leases = due_leases.into_iter().map(by_name).collect();
        plan
    }

    /// Ids whose packs must stay because of leases that `count`: of their own saves, and of those that rely on them.
    fn promised(&self, count: impl Fn(&LeaseRecord, &SnapshotId) -> bool) -> HashSet<&str> {
        let leases = self.survey.leases.iter();
        leases
            .filter(|(holder, (record, _))| count(record, holder))
            .flat_map(|(holder, (record, _))| promises(holder, record))
            .collect()
    }

    /// What is to be remembered, also of what goes now, as it may not come to that. What was noted before comes first, so that it does not lose its
    /// time to what is found now.
    fn noted(&self, found: &[(SnapshotId, Part, ObjectMeta)]) -> Seen {
        let times = found
            .iter()
            .map(|(_, _, object)| (object, self.first_seen(object)));
        let (known, new): (Vec<_>, Vec<_>) = times.partition(|(_, first)| first.is_some());
        let noted = known.into_iter().chain(new).take(MAX_NOTED);
        let noted = noted.map(|(object, first)| {
            let noted = Noted {
                version: object.version.0.clone(),
                first_unix_ms: first.unwrap_or(self.now),
            };
            (object.name.clone(), noted)
        });
        Seen {
            garbage: noted.collect(),
        }
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
