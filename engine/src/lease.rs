//! The lease a save holds while it writes: who writes this snapshot, which bases it relies on, until when.
//!
//! A lease is an object, `<snapshot>/lease`, changed by compare-and-swap only. Whoever deletes a base looks at the leases first;
//! a saver whose lease has run out, or was taken over, must give up. A lease whose writer is known to be dead (same machine, same boot,
//! no such process; or this process, which has ended that attempt) or that has expired may be taken over. What the dead left behind is removed by who takes over
//! and commits; what is left of one that has expired, and may be asleep, is left to collectors.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use podsnap_format::{SnapshotId, header::PackName};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    garbage::unreadable,
    holder::Holder,
    host::{Host, Safeguard, is_nonsense},
    names,
    store::{Backend, Condition, ReadRange, Version},
};

/// How long a lease holds unless it is renewed. Renewals come three times as often.
pub const LEASE_TTL: Duration = Duration::from_secs(600);

const TTL_MS: u64 = LEASE_TTL.as_millis() as u64;

/// Clocks of machines may differ by so much.
const CLOCKS_DIFFER_MS: u64 = 3_600_000;

/// A lease longer than this, in bytes, is not one of ours.
const MAX_LEASE_LEN: u64 = 1 << 20;

/// What a lease says, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The attempt that holds it; part of its packs' names. Sixteen hex digits.
    pub attempt: String,
    /// Earlier attempts at this snapshot whose processes are known to be dead, and whose packs may still have to be removed.
    #[serde(default)]
    pub previous: Vec<String>,
    /// Snapshots that the save relies on.
    #[serde(default)]
    pub bases: Vec<String>,
    /// Milliseconds since 1970 after which the lease no longer holds.
    pub expires_unix_ms: u64,
    /// The process that holds it, where that can be told.
    #[serde(default)]
    pub holder: Option<Holder>,
    /// Milliseconds since 1970 when the save began, for people; 0 if that is not known.
    #[serde(default)]
    pub begun_unix_ms: u64,
    /// The policy that the snapshot is saved for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The namespace of that policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// An attempt that this process is making, from before its lease is taken until after it is given up. A lease of this process's
/// whose attempt is not under way was left by a save that failed: nobody will renew it or drop it.
struct Underway(String);

impl Underway {
    fn attempts() -> MutexGuard<'static, HashSet<String>> {
        static ATTEMPTS: OnceLock<Mutex<HashSet<String>>> = OnceLock::new();
        let attempts = ATTEMPTS.get_or_init(Mutex::default);
        attempts.lock().expect("no panic while held")
    }

    fn begin(attempt: &str) -> Self {
        Self::attempts().insert(attempt.to_owned());
        Self(attempt.to_owned())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        Self::attempts().remove(&self.0);
    }
}

impl LeaseRecord {
    /// Whether the lease still binds anybody.
    pub(crate) fn is_live(&self, host: &dyn Host) -> bool {
        !self.is_expired(host) && !self.is_abandoned()
    }

    /// What names of packs begin with, of its own attempt and of those before it.
    pub(crate) fn attempts(&self, snapshot: &SnapshotId) -> Vec<String> {
        let attempts = self.previous.iter().chain([&self.attempt]);
        let name = |attempt| names::object(snapshot, &format!("pack-{attempt}-"));
        attempts.map(name).collect()
    }

    /// Whether its time is over. Its holder may not know that yet. One that would hold for days counts as over: it must not keep others away, nor
    /// their bases' packs, for ever.
    pub(crate) fn is_expired(&self, host: &dyn Host) -> bool {
        let now = host.now_unix_ms();
        self.expires_unix_ms <= now || is_nonsense(self.expires_unix_ms, now)
    }

    /// Whether its time was over even if its holder's clock is as far behind this one as clocks may be.
    pub(crate) fn is_long_expired(&self, host: &dyn Host) -> bool {
        self.expires_unix_ms.saturating_add(CLOCKS_DIFFER_MS) <= host.now_unix_ms()
    }

    /// Whether it is certain that nobody holds the lease any more, though it has not expired.
    pub(crate) fn is_abandoned(&self) -> bool {
        let Some(holder) = &self.holder else {
            return false;
        };
        let ours = Holder::this_process().is_some_and(|this| this == *holder);
        holder.is_dead() || ours && !Underway::attempts().contains(&self.attempt)
    }

    fn describe(&self, host: &dyn Host) -> String {
        let who = match &self.holder {
            Some(holder) => format!("process {} on {}", holder.pid, holder.host),
            None => "somebody".to_owned(),
        };
        let left = self.expires_unix_ms.saturating_sub(host.now_unix_ms()) / 1000;
        format!("{who}, whose lease holds for another {left} s unless it is renewed")
    }
}

/// Reads the lease of a snapshot, if there is one.
pub(crate) async fn read(
    backend: &dyn Backend,
    snapshot: &SnapshotId,
) -> Result<Option<(LeaseRecord, Version)>> {
    let name = names::object(snapshot, names::LEASE);
    let read = match backend
        .read(&name, ReadRange::Suffix(MAX_LEASE_LEN), None)
        .await
    {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    // A longer object is cut at its start and is no JSON then.
    let record = serde_json::from_slice(&read.bytes).map_err(|e| {
        Error::damaged(&name, e.to_string())
            .hint("if nobody is writing this snapshot, delete the object and try again")
    })?;
    Ok(Some((record, read.meta.version)))
}

/// As [`read`], for those who know that they may read here: what is refused then is not there. Without the right to list, a store does not tell
/// the one from the other.
pub(crate) async fn read_where_allowed(
    backend: &dyn Backend,
    snapshot: &SnapshotId,
) -> Result<Option<(LeaseRecord, Version)>> {
    match read(backend, snapshot).await {
        Err(e) if e.is_absence() => Ok(None),
        found => found,
    }
}

/// As [`read_where_allowed`], for those to whom a lease that makes no sense matters only if there is no manifest.
pub(crate) async fn look(
    backend: &dyn Backend,
    snapshot: &SnapshotId,
) -> Result<Result<Option<(LeaseRecord, Version)>>> {
    match read_where_allowed(backend, snapshot).await {
        Err(e) if unreadable(&e) => Ok(Err(e)),
        found => found.map(Ok),
    }
}

/// Takes a lease that has run out away for good: its holder, should it wake up, finds that it has lost it. It is an [`ErrorKind::Conflict`] if the lease is
/// not there any more in the version that was seen. So it is swapped for nobody's before it is deleted: of a deletion alone nobody learns whether anything
/// was there, and not every store deletes a version only.
pub(crate) async fn end(
    store: &Store,
    snapshot: &SnapshotId,
    record: &LeaseRecord,
    version: &Version,
) -> Result<()> {
    let ended = LeaseRecord {
        attempt: format!("{:016x}", store.host().draw()),
        expires_unix_ms: 0,
        holder: None,
        ..record.clone()
    };
    let name = names::object(snapshot, names::LEASE);
    let condition = Condition::Matches(version.clone());
    let put = store.backend().put(&name, encode(&ended), condition).await;
    let ended = put.map_err(|e| match e.kind() {
        ErrorKind::NotFound => crate::store::precondition(&name),
        _ => e,
    })?;
    match store.delete_exactly(&name, &ended.version).await {
        // A new save has taken it over.
        Err(e) if e.kind() == ErrorKind::Conflict => Ok(()),
        deleted => deleted,
    }
}

/// A held lease, renewed in the background until it is released or dropped.
pub(crate) struct Lease {
    state: Arc<State>,
    renewal: JoinHandle<()>,
    _underway: Underway,
}

struct State {
    store: Store,
    snapshot: SnapshotId,
    /// As it was taken.
    record: LeaseRecord,
    version: Mutex<Version>,
    /// When it ends, as was last written.
    expires_unix_ms: AtomicU64,
    lost: AtomicBool,
}

/// Times a lease is tried to be taken while others come and go.
const MAX_TRIES: u32 = 8;

/// A lease that holds for less than this is as good as over: what is done under it has to arrive in the store.
const MARGIN: Duration = LEASE_TTL.checked_div(10).expect("ten is not zero");

impl Lease {
    /// Takes the lease of `snapshot` for an attempt, over from a dead or expired holder if need be. What that one wrote stays for now. `record` says whose
    /// attempt it is and what it is about.
    pub(crate) async fn acquire(
        store: &Store,
        snapshot: &SnapshotId,
        mut record: LeaseRecord,
    ) -> Result<Self> {
        record.holder = store.host().process();
        record.begun_unix_ms = store.host().now_unix_ms();
        let underway = Underway::begin(&record.attempt);
        let (version, took_over) = take(store, snapshot, &mut record).await?;
        let state = Arc::new(State {
            store: store.clone(),
            snapshot: snapshot.clone(),
            version: Mutex::new(version),
            expires_unix_ms: record.expires_unix_ms.into(),
            record,
            lost: AtomicBool::new(false),
        });
        let renewal = tokio::spawn(renew(state.clone()));
        let lease = Self {
            state,
            renewal,
            _underway: underway,
        };
        if took_over && is_committed(&**store.backend(), snapshot).await? {
            // The last holder committed and died before it could drop the lease: its packs are no leftovers.
            lease.release(None).await?;
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the snapshot {snapshot} exists already"),
            ));
        }
        Ok(lease)
    }

    /// An error unless the lease is still ours and will be for a while. Asks the store.
    pub(crate) async fn check(&self) -> Result<()> {
        let state = &*self.state;
        if state.store.host().lacks(Safeguard::LeaseCheck) {
            return Ok(());
        }
        if state.lost.load(Ordering::SeqCst) {
            return Err(state.is_lost());
        }
        match read_where_allowed(&**state.store.backend(), &state.snapshot).await? {
            Some((record, _)) if record.attempt == state.record.attempt => {
                match state.holds_until(record.expires_unix_ms) {
                    true => Ok(()),
                    false => Err(state.is_lost()),
                }
            }
            _ => {
                state.lost.store(true, Ordering::SeqCst);
                Err(state.is_lost())
            }
        }
    }

    /// Whether the lease was ours without a break until now, when the manifest stands. One that has run out and that nobody has
    /// touched is renewed: who deletes takes a dead lease away first, and looks for the manifest then. Returns the lease's version
    /// if it is known.
    pub(crate) async fn confirm(&self) -> Result<Option<Version>> {
        let state = &*self.state;
        if state.store.host().lacks(Safeguard::LeaseCheck) {
            return Ok(None);
        }
        if state.lost.load(Ordering::SeqCst) {
            return Err(state.is_lost());
        }
        let found = match read_where_allowed(&**state.store.backend(), &state.snapshot).await {
            Ok(found) => found,
            // Nobody takes a lease away before its time.
            Err(error) if state.holds_until(state.expires_unix_ms.load(Ordering::SeqCst)) => {
                tracing::warn!(snapshot = %state.snapshot, %error, "the lease could not be read after the commit");
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        match found {
            Some((record, version)) if record.attempt == state.record.attempt => {
                if state.holds_until(record.expires_unix_ms) {
                    return Ok(Some(version));
                }
                match state.renew().await? {
                    true => Ok(None),
                    false => Err(state.is_lost()),
                }
            }
            _ => {
                state.lost.store(true, Ordering::SeqCst);
                Err(state.is_lost())
            }
        }
    }

    /// Whether it is certain that the lease is not ours any more.
    pub(crate) fn lost(&self) -> bool {
        self.state.lost.load(Ordering::SeqCst)
    }

    /// Removes what the dead left that tried before this one. Only for one that has committed: what they sent and has not arrived yet can
    /// commit no more then.
    pub(crate) async fn remove_previous(&self) -> Result<()> {
        let state = &*self.state;
        for attempt in &state.record.previous {
            if let Ok(attempt) = u64::from_str_radix(attempt, 16) {
                let backend = &**state.store.backend();
                let removed = remove_packs(backend, &state.snapshot, attempt).await?;
                tracing::info!(snapshot = %state.snapshot, removed, "removed what an unfinished save had left");
            }
        }
        Ok(())
    }

    /// Ends an attempt that will not commit. The attempts before it are not forgotten: the lease stays then, over, for the next save.
    pub(crate) async fn give_up(self) -> Result<()> {
        if self.state.record.previous.is_empty() {
            return self.release(None).await;
        }
        self.renewal.abort();
        self.state.write(0).await.map(drop)
    }

    /// Gives the lease up; whoever took it over keeps theirs. `known` is its version, if it was read just now.
    pub(crate) async fn release(self, mut known: Option<Version>) -> Result<()> {
        self.renewal.abort();
        let state = &*self.state;
        if state.lost.load(Ordering::SeqCst) {
            return Ok(());
        }
        let backend = &**state.store.backend();
        let name = names::object(&state.snapshot, names::LEASE);
        for _ in 0..MAX_TRIES {
            // Not every store can delete a version only, and the lease that is there now may be somebody else's.
            let version = match known.take() {
                Some(version) => version,
                None => match read_where_allowed(backend, &state.snapshot).await? {
                    Some((found, version)) if found.attempt == state.record.attempt => version,
                    _ => return Ok(()),
                },
            };
            match backend.delete(&name, Some(&version)).await {
                // A renewal that was on its way has arrived, or somebody took the lease over.
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                done => return done,
            }
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// Makes the lease object `record`, with the attempts before it of which nothing comes any more. Returns its version, and whether it may have been another's.
async fn take(
    store: &Store,
    snapshot: &SnapshotId,
    record: &mut LeaseRecord,
) -> Result<(Version, bool)> {
    let (backend, host) = (&**store.backend(), store.host());
    let name = names::object(snapshot, names::LEASE);
    for _ in 0..MAX_TRIES {
        record.expires_unix_ms = host.now_unix_ms() + TTL_MS;
        match backend.put(&name, encode(record), Condition::Absent).await {
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            meta => return Ok((meta?.version, false)),
        }
        let Some((old, version)) = read_where_allowed(backend, snapshot).await? else {
            // Another save of this snapshot ended just now.
            continue;
        };
        if old.attempt == record.attempt {
            // A write whose answer was lost, and that was sent again.
            record.previous = old.previous;
            return Ok((version, true));
        }
        if old.is_live(host) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{snapshot} is being written by {}", old.describe(host)),
            )
            .hint("wait for it, or save under another id"));
        }
        // One whose time is merely over may be asleep, and commit when this save's snapshot has come and gone: what it wrote is left to
        // collectors.
        let abandoned = old.is_abandoned();
        record.previous = old.previous;
        record.previous.extend(abandoned.then_some(old.attempt));
        match backend
            .put(&name, encode(record), Condition::Matches(version))
            .await
        {
            // Somebody else was faster.
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {
                record.previous.clear();
            }
            meta => return Ok((meta?.version, true)),
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!("others keep taking and dropping the lease on {snapshot}"),
    )
    .hint("give each save an id of its own"))
}

fn encode(record: &LeaseRecord) -> bytes::Bytes {
    serde_json::to_vec_pretty(record)
        .expect("a lease is plain data")
        .into()
}

async fn renew(state: Arc<State>) {
    let mut wait = LEASE_TTL / 3;
    loop {
        tokio::time::sleep(wait).await;
        wait = LEASE_TTL / 3;
        match state.renew().await {
            Ok(true) => {}
            Ok(false) => return,
            // The old term still runs.
            Err(error) => {
                tracing::warn!(snapshot = %state.snapshot, %error, "could not renew the lease");
                wait = LEASE_TTL / 30;
            }
        }
    }
}

impl State {
    /// Makes the lease hold for another term. Returns whether it is still ours.
    async fn renew(&self) -> Result<bool> {
        let expires = self.store.host().now_unix_ms() + TTL_MS;
        let ours = self.write(expires).await?;
        match ours {
            true => self.expires_unix_ms.store(expires, Ordering::SeqCst),
            false => self.lost.store(true, Ordering::SeqCst),
        }
        Ok(ours)
    }

    /// Writes when the lease ends, unless it is no longer ours.
    async fn write(&self, expires_unix_ms: u64) -> Result<bool> {
        let backend = &**self.store.backend();
        let name = names::object(&self.snapshot, names::LEASE);
        let record = LeaseRecord {
            expires_unix_ms,
            ..self.record.clone()
        };
        for _ in 0..MAX_TRIES {
            let version = self.version.lock().expect("no panic while held").clone();
            let condition = Condition::Matches(version);
            match backend.put(&name, encode(&record), condition).await {
                Ok(meta) => {
                    *self.version.lock().expect("no panic while held") = meta.version;
                    return Ok(true);
                }
                Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound) => {}
                Err(e) => return Err(e),
            }
            // An earlier write may have arrived though its answer was lost: then the lease is still ours.
            match read_where_allowed(backend, &self.snapshot).await? {
                Some((found, version)) if found.attempt == record.attempt => {
                    *self.version.lock().expect("no panic while held") = version;
                }
                _ => break,
            }
        }
        Ok(false)
    }

    fn holds_until(&self, expires_unix_ms: u64) -> bool {
        self.store.host().now_unix_ms() + MARGIN.as_millis() as u64 <= expires_unix_ms
    }

    fn is_lost(&self) -> Error {
        Error::new(
            ErrorKind::Conflict,
            format!(
                "the lease on {} was lost: somebody took it over, or it ran out",
                self.snapshot
            ),
        )
        .hint("nothing was committed; save again")
    }
}

async fn is_committed(backend: &dyn Backend, snapshot: &SnapshotId) -> Result<bool> {
    match backend
        .head(&names::object(snapshot, names::MANIFEST))
        .await
    {
        Ok(_) => Ok(true),
        // The lease beside it was read just now: if the caller may read here, what is refused is not there.
        Err(e) if e.is_absence() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes the packs of an attempt that will not be finished. Packs are numbered without gaps and removed from the last, so
/// that a removal that is itself cut short can be repeated. Returns how many there were.
pub(crate) async fn remove_packs(
    backend: &dyn Backend,
    snapshot: &SnapshotId,
    attempt: u64,
) -> Result<u32> {
    let object = |number| names::object(snapshot, &PackName { attempt, number }.to_string());
    let mut count = 0;
    loop {
        match backend.head(&object(count)).await {
            Ok(_) => count += 1,
            Err(e) if e.is_absence() => break,
            Err(e) => return Err(e),
        }
    }
    // Two more than there are: the pack that was being finished, and the next one that was being filled.
    for number in (0..=count + 1).rev() {
        backend.remove_leftovers(&object(number)).await?;
        if number < count {
            backend.delete(&object(number), None).await?;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RemoteBackend;

    /// A lease with an hour-old term.
    async fn taken(name: &str) -> (Arc<dyn Backend>, State, u64) {
        let backend: Arc<dyn Backend> = Arc::new(RemoteBackend::memory(name));
        let store = Store::from_backend(name, backend.clone(), None);
        let old = store.host().now_unix_ms() - 3_600_000;
        let record = LeaseRecord {
            attempt: "00000000000000aa".into(),
            expires_unix_ms: old,
            ..LeaseRecord::default()
        };
        let snapshot: SnapshotId = "s".parse().unwrap();
        let put = backend.put("s/lease", encode(&record), Condition::Absent);
        let version = put.await.unwrap().version;
        let state = State {
            store,
            snapshot,
            record,
            version: Mutex::new(version),
            expires_unix_ms: old.into(),
            lost: AtomicBool::new(false),
        };
        (backend, state, old)
    }

    async fn expiry(state: &State) -> u64 {
        let (record, _) = read(&**state.store.backend(), &state.snapshot)
            .await
            .unwrap()
            .unwrap();
        record.expires_unix_ms
    }

    #[tokio::test]
    async fn a_renewal_holds_for_another_term() {
        let (_, state, old) = taken("lease-renewed").await;
        for _ in 0..2 {
            assert!(state.renew().await.unwrap());
            assert!(expiry(&state).await > old + 3_600_000);
        }
    }

    #[tokio::test]
    async fn a_renewal_whose_answer_was_lost_loses_nothing() {
        let (backend, state, old) = taken("lease-answer-lost").await;
        let version = state.version.lock().unwrap().clone();
        let put = backend.put(
            "s/lease",
            encode(&state.record),
            Condition::Matches(version),
        );
        put.await.unwrap();
        assert!(state.renew().await.unwrap());
        assert!(expiry(&state).await > old + 3_600_000);
    }

    #[tokio::test]
    async fn a_lease_that_is_somebody_elses_is_not_renewed() {
        for gone in [false, true] {
            let (backend, state, old) = taken(&format!("lease-taken-over-{gone}")).await;
            let version = state.version.lock().unwrap().clone();
            match gone {
                true => backend.delete("s/lease", None).await.unwrap(),
                false => {
                    let other = LeaseRecord {
                        attempt: "00000000000000bb".into(),
                        ..state.record.clone()
                    };
                    let put = backend.put("s/lease", encode(&other), Condition::Matches(version));
                    put.await.unwrap();
                }
            }
            assert!(!state.renew().await.unwrap());
            assert!(state.lost.load(Ordering::SeqCst));
            if !gone {
                assert_eq!(expiry(&state).await, old);
            }
        }
    }
}
