//! Waiting for a save that somebody else does.

use std::time::Duration;

use podsnap_format::SnapshotId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    host::Host,
    lease::{self, LEASE_TTL, LeaseRecord},
    snapshot::Snapshot,
    store::Version,
};

/// Time between two looks at the store: short at first, then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Store {
    /// Waits until a save that somebody else does is over: the snapshot when it is committed, [`ErrorKind::NotFound`] when whoever saved it has given up or
    /// died. A saver that dies on another machine is known to have done so when it has not renewed its lease for ten minutes, whatever the clocks say.
    ///
    /// ```
    /// # use podsnap_engine as podsnap;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use podsnap::{CancellationToken, ErrorKind, SaveOptions, Store};
    ///
    /// let store = Store::open("memory://wait")?;
    /// let id = "web-1".parse()?;
    /// let cancel = CancellationToken::new();
    /// let nobody = store.wait(&id, &cancel).await.unwrap_err();
    /// assert_eq!(nobody.kind(), ErrorKind::NotFound);
    ///
    /// let writer = store.save(&id, SaveOptions::default()).await?;
    /// let saved = tokio::spawn(writer.finish());
    /// let snapshot = store.wait(&id, &cancel).await?;
    /// assert_eq!(snapshot.digest().to_string(), saved.await??.digest);
    /// # Ok(()) }
    /// ```
    pub async fn wait(&self, id: &SnapshotId, cancel: &CancellationToken) -> Result<Snapshot> {
        let mut pause = FIRST_PAUSE;
        let mut saver = Saver::default();
        loop {
            // The lease goes behind the manifest, so it is looked at first.
            let lease = lease::look(&**self.backend(), id).await?;
            match self.snapshot(id).await {
                Err(e) if e.is_absence() => {}
                opened => return opened,
            }
            if !saver.may_live(lease?, self.host()) {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("nobody saves {id}, and it is not in {}", self.url()),
                )
                .hint("the save was given up, or its process died: its log says why"));
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::interrupted()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }
}

/// What is known of who holds a lease from looking at it again and again. The clocks of two machines may differ by more than a lease holds, so it is not
/// asked when it ends, unless that was long ago, but whether it is renewed.
#[derive(Default)]
struct Saver {
    /// The lease as it was last seen, and since when.
    unchanged: Option<(Version, Instant)>,
}

impl Saver {
    fn may_live(&mut self, lease: Option<(LeaseRecord, Version)>, host: &dyn Host) -> bool {
        let Some((record, version)) = lease else {
            return false;
        };
        if record.is_abandoned() || record.is_long_expired(host) {
            return false;
        }
        match &self.unchanged {
            Some((seen, since)) if *seen == version => since.elapsed() < LEASE_TTL,
            _ => {
                self.unchanged = Some((version, Instant::now()));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Condition, RemoteBackend};
    use std::sync::Arc;

    /// By this machine's clock the lease ran out half an hour ago.
    #[tokio::test(start_paused = true)]
    async fn a_save_is_dead_when_its_lease_is_not_renewed_and_not_when_its_clock_is_behind() {
        let backend = Arc::new(RemoteBackend::memory("wait-clocks"));
        let store = Store::from_backend("wait-clocks", backend, None);
        let id: SnapshotId = "s".parse().unwrap();
        let lease = |attempt: u64| {
            let expires = store.host().now_unix_ms() - 1_800_000;
            let text = format!(r#"{{"attempt": "{attempt:016x}", "expires_unix_ms": {expires}}}"#);
            bytes::Bytes::from(text)
        };
        let put = store.backend().put("s/lease", lease(0), Condition::Absent);
        let mut version = put.await.unwrap().version;
        let (waiting, begun) = (store.clone(), Instant::now());
        let waiting =
            tokio::spawn(async move { waiting.wait(&id, &CancellationToken::new()).await });
        for renewal in 1..10 {
            tokio::time::sleep(LEASE_TTL / 3).await;
            let condition = Condition::Matches(version);
            let put = store.backend().put("s/lease", lease(renewal), condition);
            version = put.await.unwrap().version;
            assert!(!waiting.is_finished());
        }
        let gone = waiting.await.unwrap().unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");
        let waited = begun.elapsed();
        assert!(waited >= LEASE_TTL * 4, "{waited:?}");
        assert!(waited < LEASE_TTL * 5, "{waited:?}");
    }
}
