//! Retention: which snapshots have had their time. Planned, shown, then executed through [removal](crate::removal).
//!
//! Nothing is removed on what somebody believed a while ago. Who removes a snapshot first writes that it is being removed, and looks then
//! whether it is used or pinned; who restores one first writes that it is used, and looks then whether it is being removed. So one of
//! the two sees the other. Its packs are left to a collector, for restores that were under way before.

use std::{collections::BTreeMap, time::Duration};

use podsnap_format::SnapshotId;

use super::{
    Catalog, Listed, Status,
    finder::USE_RESOLUTION,
    notes::{self, Deleting, Pinned, Used},
};
use crate::{
    RemoveOptions,
    error::{ErrorKind, Result},
    garbage::unreadable,
    names,
    store::Version,
};

/// Who wrote that it removes a snapshot is given that long to do it, clocks that differ included.
const TAKEOVER: Duration = Duration::from_secs(2 * 3600);

/// Which snapshots stay.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use podsnap::{Catalog, RetentionRules, SaveOptions, Store};
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
/// let stats = catalog.retain(&plan).await?;
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
    /// Milliseconds since 1970 when it was saved or last used.
    pub active_unix_ms: u64,
    /// Bytes under its own name.
    pub stored_bytes: u64,
    /// Why it stays, or goes.
    pub reason: String,
    /// The newest of its group, which must be there while this one goes.
    #[serde(skip)]
    last_good: Option<SnapshotId>,
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
}

/// What became of a snapshot that was to go and stays.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Retained {
    /// The snapshot.
    pub snapshot: String,
    /// Why it stays.
    pub reason: String,
}

/// What retention did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RetentionStats {
    /// Snapshots removed. Their packs wait for a collector.
    pub removed: Vec<String>,
    /// Snapshots that were to go, and stay because something has changed since the plan.
    pub retained: Vec<Retained>,
}

impl Catalog {
    /// Looks for snapshots that have had their time. Changes nothing. Needs the right to list.
    pub async fn plan_retention(&self, rules: &RetentionRules) -> Result<RetentionPlan> {
        let now = self.store.host().now_unix_ms();
        let wanted = |s: &Listed| {
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
        let mut groups: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for listed in self.store.list().await?.into_iter().filter(wanted) {
            match (&listed.status, &listed.group) {
                (Status::Available | Status::Deleting, Some(group)) => {
                    groups.entry(group.clone()).or_default().push(listed);
                }
                (Status::Available, None) => {
                    plan.keep.push(verdict(&listed, "it is of no group", None));
                }
                // Not there yet, not any more, or not to be judged.
                _ => {}
            }
        }
        for snapshots in groups.into_values() {
            judge(&mut plan, rules, now, snapshots);
        }
        // Those that were not used for longest, first.
        plan.remove
            .sort_by(|a, b| (a.active_unix_ms, &a.snapshot).cmp(&(b.active_unix_ms, &b.snapshot)));
        Ok(plan)
    }

    /// Carries a plan out. It may be old, and others may carry out theirs at the same time: what is used, pinned or the last of its group by now
    /// stays.
    pub async fn retain(&self, plan: &RetentionPlan) -> Result<RetentionStats> {
        let mut stats = RetentionStats::default();
        for verdict in &plan.remove {
            match self.remove_if_unused(verdict, plan.restoring).await? {
                None => stats.removed.push(verdict.snapshot.clone()),
                Some(reason) => stats.retained.push(Retained {
                    snapshot: verdict.snapshot.clone(),
                    reason,
                }),
            }
        }
        crate::metrics::retained(&stats);
        Ok(stats)
    }

    /// Removes a snapshot, or says why it stays.
    async fn remove_if_unused(
        &self,
        verdict: &Verdict,
        restoring: Duration,
    ) -> Result<Option<String>> {
        let store = &self.store;
        let backend = &**store.backend();
        let Ok(id) = verdict.snapshot.parse::<SnapshotId>() else {
            return Ok(Some("its id makes no sense".to_owned()));
        };
        if let Some(last_good) = &verdict.last_good {
            let manifest = names::object(last_good, names::MANIFEST);
            match backend.head(&manifest).await {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let why = format!("{last_good}, the newest of its group, is gone since");
                    return Ok(Some(why));
                }
                Err(e) => return Err(e),
            }
        }
        let manifest = match backend.head(&names::object(&id, names::MANIFEST)).await {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok(Some("somebody else has removed it".to_owned()));
            }
            Err(e) => return Err(e),
        };
        let marked = match self.mark(&id, &manifest.version, &verdict.reason).await? {
            Ok(marked) => marked,
            Err(why) => return Ok(Some(why)),
        };
        let needed = self.is_needed(&id, restoring).await;
        if let Some(why) = needed.as_ref().unwrap_or(&None) {
            let name = names::object(&id, names::DELETING);
            backend.delete(&name, Some(&marked)).await?;
            return Ok(Some(why.clone()));
        }
        needed?;
        let leave = RemoveOptions { leave_packs: true };
        match store.remove_with(&id, &leave).await {
            Ok(_) => Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Ok(Some("somebody else has removed it".to_owned()))
            }
            Err(e) => {
                // Nobody shall wait for a removal that came to nothing. If it did not, the snapshot is gone, and the mark tells nobody anything.
                let name = names::object(&id, names::DELETING);
                if let Err(error) = backend.delete(&name, Some(&marked)).await {
                    tracing::warn!(%error, "the mark of a removal that failed stays");
                }
                match e.kind() {
                    ErrorKind::Conflict => Ok(Some(e.to_string())),
                    _ => Err(e),
                }
            }
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
                let theirs = found.manifest == manifest.0;
                let age = Duration::from_millis(now.saturating_sub(found.unix_ms));
                if theirs && age < TAKEOVER {
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
        match notes::read::<Used>(backend, id).await {
            Ok(Some((used, _))) if is_recent(used.unix_ms, now, restoring) => {
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

/// Whether something happened within that time before `now`, or after it, by another clock.
fn is_recent(unix_ms: u64, now: u64, within: Duration) -> bool {
    let since = now.saturating_sub(unix_ms);
    since < (within + USE_RESOLUTION).as_millis() as u64
}

/// Decides over the snapshots of one group, which come newest first.
fn judge(plan: &mut RetentionPlan, rules: &RetentionRules, now: u64, snapshots: Vec<Listed>) {
    let (available, deleting): (Vec<_>, Vec<_>) = snapshots
        .into_iter()
        .partition(|s| s.status == Status::Available);
    let last_good: Option<SnapshotId> = available
        .first()
        .and_then(|newest| newest.snapshot.parse().ok());
    for snapshot in &deleting {
        // Whoever began to remove it may have died. If it is alive, it is asked again before anything is done.
        let what = match &snapshot.reason {
            Some(reason) => format!("its removal was begun: {reason}"),
            None => "its removal was begun".to_owned(),
        };
        match last_good.is_some() {
            true => plan
                .remove
                .push(verdict(snapshot, &what, last_good.clone())),
            false => plan
                .keep
                .push(verdict(snapshot, "it is the last of its group", None)),
        }
    }
    let mut stay = available.len();
    let mut others: Vec<&Listed> = Vec::new();
    for (i, snapshot) in available.iter().enumerate() {
        let used = snapshot.last_used_unix_ms.unwrap_or(0);
        let why = if i == 0 {
            Some("it is the newest of its group".to_owned())
        } else if let Some(reason) = &snapshot.pinned {
            Some(format!("it is pinned: {reason}"))
        } else if is_recent(used, now, rules.restoring) {
            Some("it is being restored, or was a short time ago".to_owned())
        } else {
            None
        };
        match why {
            Some(why) => plan.keep.push(verdict(snapshot, &why, None)),
            None => others.push(snapshot),
        }
    }
    others.sort_by_key(|snapshot| active(snapshot));
    for snapshot in others {
        let unused_for = now.saturating_sub(active(snapshot));
        let is_old = |limit: Duration| u128::from(unused_for) >= limit.as_millis();
        let too_old = rules.unused_for.filter(|limit| is_old(*limit));
        let too_many = rules.max_per_group.filter(|max| stay > *max as usize);
        let why = match (too_old, too_many) {
            (Some(limit), _) => format!(
                "it was not used for {}, longer than {}",
                time(Duration::from_millis(unused_for)),
                time(limit)
            ),
            (None, Some(max)) => format!("its group has {stay}, more than {max}"),
            (None, None) => {
                plan.keep
                    .push(verdict(snapshot, "nothing says otherwise", None));
                continue;
            }
        };
        stay -= 1;
        plan.remove.push(verdict(snapshot, &why, last_good.clone()));
    }
}

/// When a snapshot was last of use to anybody.
fn active(snapshot: &Listed) -> u64 {
    let used = snapshot.last_used_unix_ms.unwrap_or(0);
    snapshot.created_unix_ms.max(used)
}

fn verdict(snapshot: &Listed, reason: &str, last_good: Option<SnapshotId>) -> Verdict {
    Verdict {
        snapshot: snapshot.snapshot.clone(),
        group: snapshot.group.clone(),
        policy: snapshot.policy.clone(),
        active_unix_ms: active(snapshot),
        stored_bytes: snapshot.stored_bytes,
        reason: reason.to_owned(),
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
