//! What commands that serve a snapshot learn from being read: the next one fetches it ahead. Nothing of it keeps a command from serving.

use std::{ops::Range, time::Duration};

use podsnap::{Recording, Snapshot, WorkingSet};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::exit::Failure;

/// How long the end of a command may be held up by storing what was learned.
const PARTING: Duration = Duration::from_secs(20);

/// Whether a command learns, and makes use of what was learned.
#[derive(Debug, clap::Args)]
pub struct Learning {
    /// Record what is read even if an earlier restore was recorded, and replace that; without this it is recorded unless one was
    #[arg(long, conflicts_with = "no_record")]
    record: bool,
    /// Record nothing
    #[arg(long)]
    no_record: bool,
    /// Do not fetch ahead what an earlier restore read
    #[arg(long)]
    no_replay: bool,
}

/// A command that learns.
pub struct Learner {
    recording: Option<Recording>,
    replacing: bool,
    replay: Option<JoinHandle<()>>,
    /// What an earlier restore read, once that is known.
    learned: oneshot::Receiver<WorkingSet>,
}

impl Learning {
    /// The same, but nothing is fetched ahead unless `wanted`.
    pub fn replaying(self, wanted: bool) -> Self {
        Self {
            no_replay: self.no_replay || !wanted,
            ..self
        }
    }

    /// Begins to learn, and to fetch these sections ahead: all if there are none.
    pub fn start(&self, snapshot: &Snapshot, sections: &[usize]) -> Result<Learner, Failure> {
        let exported = snapshot.directory().header.kind == podsnap::format::Kind::Export;
        if exported && self.record {
            return Err(
                Failure::usage("what is read of an exported snapshot cannot be recorded")
                    .hint("import it into a store, or leave --record away"),
            );
        }
        let records = !self.no_record && !exported;
        let replays = !self.no_replay && !exported;
        let (found, learned) = oneshot::channel();
        Ok(Learner {
            recording: records.then(|| snapshot.record()),
            replacing: self.record,
            replay: replays
                .then(|| tokio::spawn(replay(snapshot.clone(), sections.to_vec(), found))),
            learned,
        })
    }
}

async fn replay(snapshot: Snapshot, sections: Vec<usize>, found: oneshot::Sender<WorkingSet>) {
    let fetched = match snapshot.working_set().await {
        Ok(Some(learned)) => {
            let _ = found.send(learned.clone());
            learned.prefetch(&sections).await
        }
        Ok(None) => return,
        Err(e) => Err(e),
    };
    if let Err(e) = fetched {
        tracing::warn!("going on without fetching ahead what was read before: {e}");
    }
}

impl Learner {
    /// The snapshot to serve.
    pub fn snapshot<'a>(&'a self, snapshot: &'a Snapshot) -> &'a Snapshot {
        self.recording
            .as_ref()
            .map_or(snapshot, Recording::snapshot)
    }

    /// What an earlier restore read of a section, in order, once it is known; nothing if that is not to be made use of, or cannot be read.
    pub async fn ranges(&mut self, section: usize) -> Vec<Range<u64>> {
        let learned = (&mut self.learned).await;
        learned.map_or_else(|_| Vec::new(), |learned| learned.ranges(section))
    }

    /// Stores what was learned. What keeps it from doing so is a warning.
    pub async fn finish(mut self) {
        self.end_replay();
        let Some(recording) = &self.recording else {
            return;
        };
        let stored = tokio::time::timeout(PARTING, recording.store(self.replacing)).await;
        match stored {
            Ok(Ok(stored)) => tracing::debug!(stored, "the working set"),
            Ok(Err(e)) => tracing::warn!("what was read is not recorded in the store: {e}"),
            Err(_) => tracing::warn!(
                "what was read is not recorded in the store: that takes longer than {} s",
                PARTING.as_secs()
            ),
        }
    }

    fn end_replay(&mut self) {
        if let Some(replay) = self.replay.take() {
            replay.abort();
        }
    }
}

impl Drop for Learner {
    fn drop(&mut self) {
        self.end_replay();
    }
}
