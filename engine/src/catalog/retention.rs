//! Retention: which snapshots have had their time. Planned, shown, then executed through [removal](crate::removal).
//!
//! Nothing is removed on what somebody believed a while ago. Who removes a snapshot first writes that it is being removed, and looks then
//! whether it is used or pinned; who restores one first writes that it is used, and looks then whether it is being removed. So one of
//! the two sees the other. Only the version that was judged is removed: another snapshot of the same id is another snapshot. Its packs are left to a
//! collector, for restores that were under way before.

use std::{collections::BTreeMap, time::Duration};

use podsnap_format::SnapshotId;
use tokio_util::sync::CancellationToken;

use super::{
    Catalog, Listed, Status,
    finder::USE_RESOLUTION,
    notes::{self, Deleting, Pinned, Used},
};
use crate::{
    error::{ErrorKind, Result},
    garbage::unreadable,
    heads,
    host::{Safeguard, is_nonsense},
    names,
    removal::Removal,
    store::{ObjectMeta, Version},
};

/// Who wrote that it removes a snapshot is given that long to do it, clocks that differ included.
const TAKEOVER: Duration = Duration::from_secs(2 * 3600);

/// Which snapshots stay.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use podsnap::{CancellationToken, Catalog, RetentionRules, SaveOptions, Store};
///
/// let store = Store::open("memory://retention")?;
/// for id in ["web-1", "web-2", "web-3"] {
///     let options = SaveOptions {
///         group: Some("web".to_owned()),
///         ..SaveOptions::default()
///     };
///     store.save(&id.parse()?, options).await?.finish().await?;
/// #   tokio::time::sleep(std::time::Duration::from_millis(2)).await;
/// }
/// let catalog = Catalog::new(&store);
/// let rules = RetentionRules {
///     max_per_group: Some(2),
///     ..RetentionRules::default()
/// };
/// let plan = catalog.plan_retention(&rules).await?;
/// assert_eq!(plan.remove[0].snapshot, "web-1");
/// let stats = catalog.retain(&plan, &CancellationToken::new()).await;
/// assert_eq!(stats.removed, ["web-1"]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RetentionRules {
    /// Only snapshots of this policy; of all, if nothing is said.
    pub policy: Option<String>,
    /// Only snapshots of policies of this namespace.
    pub namespace: Option<String>,
    /// Only snapshots of this group.
    pub group: Option<String>,
    /// How many stay of each group: those that were saved or used last. Pinned ones count.
    pub max_per_group: Option<u32>,
    /// How long a snapshot stays that nobody uses.
    pub unused_for: Option<Duration>,
    /// How long a restore may take: what was used so recently is not touched. At least an hour more than clocks differ; two hours by default.
    pub restoring: Duration,
}

impl Default for RetentionRules {
    fn default() -> Self {
        Self {
            policy: None,
            namespace: None,
            group: None,
            max_per_group: None,
            unused_for: None,
            restoring: Duration::from_secs(2 * 3600),
        }
    }
}

/// Whether a snapshot stays, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// The snapshot.
    pub snapshot: String,
    /// Its group.
    pub group: Option<String>,
    /// The policy it was saved for.
    pub policy: Option<String>,
    /// Milliseconds since 1970 when it was saved or last used; 0 if that is not known.
    pub active_unix_ms: u64,
    /// Bytes under its own name.
    pub stored_bytes: u64,
    /// Why it stays, or goes.
    pub reason: String,
    /// The version that was judged.
    #[serde(skip)]
    pub(crate) version: Option<Version>,
    /// Whether it is marked to be removed.
    #[serde(skip)]
    marked: bool,
    /// The newest of its group, which must be there, in that version, while this one goes.
    #[serde(skip)]
    last_good: Option<(SnapshotId, Version)>,
}

/// What retention will do; [`Catalog::plan_retention`] makes one, [`Catalog::retain`] carries it out.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RetentionPlan {
    /// Snapshots that go, in this order.
    pub remove: Vec<Verdict>,
    /// Snapshots that stay.
    pub keep: Vec<Verdict>,
    /// How long a restore may take, as the rules said.
    #[serde(skip)]
    restoring: Duration,
    /// The newest of each group.
    #[serde(skip)]
    newest: BTreeMap<String, SnapshotId>,
}

/// What became of a snapshot that was to go and stays.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Retained {
    /// The snapshot.
    pub snapshot: String,
    /// Why it stays.
    pub reason: String,
    /// The kind of the error that kept it, if one did.
    #[serde(skip)]
    pub error: Option<ErrorKind>,
}

/// What retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RetentionStats {
    /// Snapshots removed. Their packs wait for a collector.
    pub removed: Vec<String>,
    /// Snapshots that were to go, and stay because something has changed since the plan, or went wrong.
    pub retained: Vec<Retained>,
    /// Why it ended early, if it did: it was cancelled, or the store failed twice in a row. A new plan goes on.
    pub stopped: Option<String>,
}

impl RetentionStats {
    /// The first snapshot that an error of the store kept.
    pub fn failed(&self) -> Option<&Retained> {
        self.retained.iter().find(|r| r.error.is_some())
    }
}

impl Catalog {
    /// Looks for snapshots that have had their time. Changes nothing. Needs the right to list.
    pub async fn plan_retention(&self, rules: &RetentionRules) -> Result<RetentionPlan> {
        Ok(self.plan_retention_of(&self.store.list().await?, rules))
    }

    /// The same in a [listing](Store::list) of this store, for who has many rules.
    pub fn plan_retention_of(&self, listed: &[Listed], rules: &RetentionRules) -> RetentionPlan {
        let now = self.store.host().now_unix_ms();
        let wanted = |s: &&Listed| {
            let is =
                |rule: &Option<String>, value: &Option<String>| rule.is_none() || rule == value;
            is(&rules.policy, &s.policy)
                && is(&rules.namespace, &s.namespace)
                && is(&rules.group, &s.group)
        };
        let mut plan = RetentionPlan {
            restoring: rules.restoring,
            ..RetentionPlan::default()
        };
        let mut groups: BTreeMap<String, Vec<&Listed>> = BTreeMap::new();
        for listed in listed.iter().filter(wanted) {
            match (&listed.status, &listed.group) {
                (Status::Available | Status::Deleting, Some(group)) => {
                    groups.entry(group.clone()).or_default().push(listed);
                }
                (Status::Available, None) => {
                    plan.keep
                        .push(verdict(listed, now, "it is of no group", None));
                }
                // Not there yet, not any more, or not to be judged.
                _ => {}
            }
        }
        for (group, snapshots) in groups {
            let mut available = snapshots.iter().filter(|s| s.status == Status::Available);
            if let Some(Ok(newest)) = available.next().map(|newest| newest.snapshot.parse()) {
                plan.newest.insert(group, newest);
            }
            judge(&mut plan, rules, now, snapshots);
        }
        // Those that were not used for longest, first.
        plan.remove
            .sort_by(|a, b| (a.active_unix_ms, &a.snapshot).cmp(&(b.active_unix_ms, &b.snapshot)));
        plan
    }

    /// Carries a plan out. It may be old, and others may carry out theirs at the same time: what is used, pinned, saved anew or the last of its group by now
    /// stays. What cannot be read stays as well, and stops nothing else; two errors of the store one after the other end it, as does `cancel` between two
    /// snapshots.
    pub async fn retain(&self, plan: &RetentionPlan, cancel: &CancellationToken) -> RetentionStats {
        let mut stats = RetentionStats::default();
        for verdict in &plan.keep {
            if let Err(error) = self.keep_for_good(verdict).await {
                tracing::warn!(snapshot = verdict.snapshot, %error, "a removal that nobody finishes could not be called off");
            }
        }
        for (group, newest) in &plan.newest {
            if let Err(error) = self.mend_head(group, newest).await {
                tracing::warn!(group, %error, "the head of a group could not be mended");
            }
        }
        let mut in_a_row = 0;
        for verdict in &plan.remove {
            if cancel.is_cancelled() {
                stats.stopped = Some("interrupted".to_owned());
                break;
            }
            let (reason, error) = match self.remove_if_unused(verdict, plan.restoring).await {
                Ok(None) => {
                    in_a_row = 0;
                    stats.removed.push(verdict.snapshot.clone());
                    continue;
                }
                Ok(Some(reason)) => {
                    in_a_row = 0;
                    (reason, None)
                }
                Err(e) if unreadable(&e) => (e.to_string(), None),
                Err(e) => {
                    in_a_row += 1;
                    (e.to_string(), Some(e.kind()))
                }
            };
            stats.retained.push(Retained {
                snapshot: verdict.snapshot.clone(),
                reason,
                error,
            });
            if in_a_row == 2 {
                stats.stopped = Some("the store fails".to_owned());
                break;
            }
        }
        crate::metrics::retained(&stats);
        stats
    }

    /// Lifts the mark of a snapshot whose removal somebody began and nobody will finish, and that stays.
    async fn keep_for_good(&self, verdict: &Verdict) -> Result<()> {
        let backend = &**self.store.backend();
        let (true, Ok(id), Some(version)) =
            (verdict.marked, verdict.snapshot.parse(), &verdict.version)
        else {
            return Ok(());
        };
        let now = self.store.host().now_unix_ms();
        match notes::read::<Deleting>(backend, &id).await? {
            Some((mark, written)) if mark.manifest == version.0 && mark.is_old(now) => {
                notes::lift::<Deleting>(backend, &id, &written).await;
            }
            _ => return Ok(()),
        }
        match verdict.group.as_deref() {
            Some(group) if heads::check_name(group).is_ok() => {
                self.store.settle_head(group, None).await
            }
            _ => Ok(()),
        }
    }

    /// A removal that died when it had moved the head away, or could not, leaves a group with a head that leads nowhere, or without one.
    async fn mend_head(&self, group: &str, newest: &SnapshotId) -> Result<()> {
        match self.store.head(group).await {
            Ok(Some(head)) if head.snapshot == *newest => return Ok(()),
            // For people to look at.
            Err(e) if unreadable(&e) => return Ok(()),
            head => head?,
        };
        match self.newest(group).await {
            // Saved since.
            Ok(Some(_)) => Ok(()),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => self.store.settle_head(group, None).await,
        }
    }

    /// Removes a snapshot, or says why it stays.
    async fn remove_if_unused(
        &self,
        verdict: &Verdict,
        restoring: Duration,
    ) -> Result<Option<String>> {
        let backend = &**self.store.backend();
        let Ok(id) = verdict.snapshot.parse::<SnapshotId>() else {
            return Ok(Some("its id makes no sense".to_owned()));
        };
        let removed = || Ok(Some("somebody else has removed it".to_owned()));
        let manifest = match backend.head(&names::object(&id, names::MANIFEST)).await {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => return removed(),
            Err(e) => return Err(e),
        };
        let judged = verdict.version.as_ref() == Some(&manifest.version);
        if !judged && !self.store.host().lacks(Safeguard::JudgedVersion) {
            return Ok(Some("it was removed and saved again since".to_owned()));
        }
        let mark = match self.mark(&id, &manifest.version, &verdict.reason).await? {
            Ok(mark) => mark,
            Err(why) => return Ok(Some(why)),
        };
        let ready = self.make_ready(&id, manifest, &mark, verdict, restoring);
        let done = match ready.await {
            Ok(Ok(removal)) => match removal.finish().await {
                // The request may arrive yet. As long as the mark is there, nobody comes to rely on the snapshot.
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                finished => finished.map(|_| None),
            },
            Ok(Err(why)) => Ok(Some(why)),
            Err(e) => Err(e),
        };
        if !matches!(done, Ok(None)) {
            // Nobody shall wait for a removal that came to nothing.
            notes::lift::<Deleting>(backend, &id, &mark).await;
        }
        match done {
            Err(e) if e.kind() == ErrorKind::NotFound => removed(),
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(Some(e.to_string())),
            done => done,
        }
    }

    /// The removal of a marked snapshot, up to its last step, or why it stays.
    async fn make_ready(
        &self,
        id: &SnapshotId,
        manifest: ObjectMeta,
        mark: &Version,
        verdict: &Verdict,
        restoring: Duration,
    ) -> Result<std::result::Result<Removal, String>> {
        if let Some(why) = self.is_needed(id, restoring).await? {
            return Ok(Err(why));
        }
        if let Some(why) = self.has_changed(id, mark, verdict).await? {
            return Ok(Err(why));
        }
        let removal = Removal::begin(&self.store, id, manifest, true).await?;
        match self.has_changed(id, mark, verdict).await {
            Ok(None) => Ok(Ok(removal)),
            stays => {
                removal.call_off().await;
                stays.map(|why| Err(why.expect("it stays")))
            }
        }
    }

    /// Why a snapshot must stay though nobody uses it. Looked for before the head of its group is touched, and once more just before its manifest goes.
    async fn has_changed(
        &self,
        id: &SnapshotId,
        mark: &Version,
        verdict: &Verdict,
    ) -> Result<Option<String>> {
        if let Some((last_good, version)) = &verdict.last_good {
            let newest = format!("{last_good}, the newest of its group,");
            if !self.is_there(last_good, names::MANIFEST, version).await? {
                return Ok(Some(format!("{newest} is gone since")));
            }
            if self.store.is_marked(last_good, version).await? {
                return Ok(Some(format!("{newest} is being removed")));
            }
        }
        // Who has slept for hours may have lost it to somebody who then found the snapshot needed.
        let ours = self.is_there(id, names::DELETING, mark).await?;
        Ok((!ours).then(|| {
            "its removal took so long that somebody else has called it off, or done it".to_owned()
        }))
    }

    async fn is_there(&self, id: &SnapshotId, name: &str, version: &Version) -> Result<bool> {
        let object = names::object(id, name);
        match self.store.backend().head(&object).await {
            Ok(meta) => Ok(meta.version == *version),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Writes that the snapshot is being removed. Or else who says so already, and not long ago.
    async fn mark(
        &self,
        id: &SnapshotId,
        manifest: &Version,
        reason: &str,
    ) -> Result<std::result::Result<Version, String>> {
        let backend = &**self.store.backend();
        let now = self.store.host().now_unix_ms();
        let others = || Err("another controller is removing it".to_owned());
        let note = Deleting {
            manifest: manifest.0.clone(),
            reason: notes::reason(reason),
            unix_ms: now,
        };
        let replaced = match notes::read::<Deleting>(backend, id).await {
            Ok(None) => None,
            Ok(Some((found, version))) => {
                if found.manifest == manifest.0 && !found.is_old(now) {
                    return Ok(others());
                }
                Some(version)
            }
            Err(e) if unreadable(&e) => {
                let meta = backend.head(&names::object(id, names::DELETING)).await?;
                Some(meta.version)
            }
            Err(e) => return Err(e),
        };
        match notes::write(backend, id, &note, replaced).await {
            Ok(version) => Ok(Ok(version)),
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => Ok(others()),
            Err(e) => Err(e),
        }
    }

    /// Why a snapshot must stay now, if it must. What cannot be read says that it must.
    async fn is_needed(&self, id: &SnapshotId, restoring: Duration) -> Result<Option<String>> {
        let backend = &**self.store.backend();
        let now = self.store.host().now_unix_ms();
        if self.store.host().lacks(Safeguard::UseCheck) {
            return Ok(None);
        }
        match notes::read::<Used>(backend, id).await {
            Ok(Some((used, _))) if may_be_restored(used.unix_ms, now, restoring) => {
                return Ok(Some("it is being restored, or was just now".to_owned()));
            }
            Ok(_) => {}
            Err(e) if unreadable(&e) => return Ok(Some(e.to_string())),
            Err(e) => return Err(e),
        }
        match notes::read::<Pinned>(backend, id).await {
            Ok(Some((pinned, _))) => Ok(Some(format!("it is pinned: {}", pinned.reason))),
            Ok(None) => Ok(None),
            Err(e) if unreadable(&e) => Ok(Some(e.to_string())),
            Err(e) => Err(e),
        }
    }
}

impl Deleting {
    /// Whether it was written so long ago that nobody is at it any more.
    fn is_old(&self, now: u64) -> bool {
        !notes::is_within(self.unix_ms, now, TAKEOVER)
    }
}

/// Whether a snapshot that was last used then may still be being restored. Use is not noted more exactly.
fn may_be_restored(used_unix_ms: u64, now: u64, restoring: Duration) -> bool {
    notes::is_within(used_unix_ms, now, restoring.saturating_add(USE_RESOLUTION))
}

/// Decides over the snapshots of one group, which come newest first.
fn judge(plan: &mut RetentionPlan, rules: &RetentionRules, now: u64, snapshots: Vec<&Listed>) {
    let (available, deleting): (Vec<_>, Vec<_>) = snapshots
        .into_iter()
        .partition(|s| s.status == Status::Available);
    let last_good = available.first().and_then(|newest| {
        let id = newest.snapshot.parse().ok()?;
        Some((id, newest.version.clone()?))
    });
    for snapshot in &deleting {
        // Whoever began to remove it may have died. If it is alive, it is asked again before anything is done.
        let what = match &snapshot.reason {
            Some(reason) => format!("its removal was begun: {reason}"),
            None => "its removal was begun".to_owned(),
        };
        match last_good.is_some() {
            true => plan
                .remove
                .push(verdict(snapshot, now, &what, last_good.clone())),
            false => plan
                .keep
                .push(verdict(snapshot, now, "it is the last of its group", None)),
        }
    }
    let mut stay = available.len();
    let mut others: Vec<&Listed> = Vec::new();
    for (i, snapshot) in available.iter().enumerate() {
        let used = snapshot.last_used_unix_ms;
        let why = if i == 0 {
            Some("it is the newest of its group".to_owned())
        } else if let Some(reason) = &snapshot.pinned {
            Some(format!("it is pinned: {reason}"))
        } else if used.is_some_and(|used| may_be_restored(used, now, rules.restoring)) {
            Some("it is being restored, or was a short time ago".to_owned())
        } else {
            None
        };
        match why {
            Some(why) => plan.keep.push(verdict(snapshot, now, &why, None)),
            None => others.push(snapshot),
        }
    }
    others.sort_by_key(|snapshot| (active(snapshot, now), snapshot.created_unix_ms));
    for snapshot in others {
        let unused_for =
            active(snapshot, now).map(|active| Duration::from_millis(now.saturating_sub(active)));
        let too_old = unused_for
            .zip(rules.unused_for)
            .filter(|(unused, limit)| unused >= limit);
        let too_many = rules.max_per_group.filter(|max| stay > *max as usize);
        let why = match (too_old, too_many) {
            (Some((unused_for, limit)), _) => format!(
                "it was not used for {}, longer than {}",
                time(unused_for),
                time(limit)
            ),
            (None, Some(max)) => format!("its group has {stay}, more than {max}"),
            (None, None) => {
                plan.keep
                    .push(verdict(snapshot, now, "nothing says otherwise", None));
                continue;
            }
        };
        stay -= 1;
        plan.remove
            .push(verdict(snapshot, now, &why, last_good.clone()));
    }
}

/// When a snapshot was last of use to anybody, if that can be told: of a time that is nonsense nothing follows.
fn active(snapshot: &Listed, now: u64) -> Option<u64> {
    let times = [Some(snapshot.created_unix_ms), snapshot.last_used_unix_ms];
    let times = times.into_iter().flatten();
    times.filter(|time| !is_nonsense(*time, now)).max()
}

fn verdict(
    snapshot: &Listed,
    now: u64,
    reason: &str,
    last_good: Option<(SnapshotId, Version)>,
) -> Verdict {
    Verdict {
        snapshot: snapshot.snapshot.clone(),
        group: snapshot.group.clone(),
        policy: snapshot.policy.clone(),
        active_unix_ms: active(snapshot, now).unwrap_or(0),
        stored_bytes: snapshot.stored_bytes,
        reason: reason.to_owned(),
        version: snapshot.version.clone(),
        marked: snapshot.status == Status::Deleting,
        last_good,
    }
}

/// A time in its largest unit.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}min", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
