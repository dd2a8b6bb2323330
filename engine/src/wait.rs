//! Waiting for a save that somebody else does.

use std::time::Duration;

use podsnap_format::SnapshotId;
use tokio_util::sync::CancellationToken;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    lease,
    snapshot::Snapshot,
};

/// Time between two looks at the store: short at first, then longer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Store {
    /// Waits until a save that somebody else does is over: the snapshot when it is committed, [`ErrorKind::NotFound`] when whoever saved it has given up or
    /// died. A saver that dies on another machine is known to have done so when its lease has run out.
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
        loop {
            // The lease goes behind the manifest, so it is looked at first.
            let saving = match lease::read(&**self.backend(), id).await {
                Ok(found) => found.is_some_and(|(record, _)| record.is_live(self.host())),
                Err(e) if e.is_absence() => false,
                Err(e) => return Err(e),
            };
            match self.snapshot(id).await {
                Err(e) if e.is_absence() && saving => {}
                Err(e) if e.is_absence() => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("nobody saves {id}, and it is not in {}", self.url()),
                    )
                    .hint("the save was given up, or its process died: its log says why"));
                }
                opened => return opened,
            }
            tokio::select! {
                () = cancel.cancelled() => return Err(Error::interrupted()),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    }
}
