//! The other way to fill a snapshot: with frames that another one has already, for imports.

use std::collections::HashMap;

use podsnap_format::manifest::{SectionInfo, Segment};

use super::{
    SaveStats, SnapshotWriter, Work,
    packer::{EncodedBatch, EncodedChunk},
};
use crate::{
    error::{Error, Result},
    export::{CopiedFrames, relocated},
    restore::plan::PlannedChunk,
    snapshot::Snapshot,
};

impl SnapshotWriter {
    /// Appends checked frames to the packs as they are.
    pub(crate) async fn append_frames(
        &mut self,
        copied: CopiedFrames,
        chunks: &[PlannedChunk],
    ) -> Result<()> {
        let Some(work) = &self.work else {
            return Err(Error::invalid("the save has failed"));
        };
        let first = copied.chunks.start as u32;
        let encoded = chunks[copied.chunks]
            .iter()
            .zip(first..)
            .map(|(planned, number)| EncodedChunk {
                number,
                id: planned.chunk.id,
                codec: planned.chunk.codec,
                raw_len: planned.chunk.raw_len,
                encoded_len: planned.chunk.location.encoded_len,
            });
        let batch = EncodedBatch {
            chunks: encoded.collect(),
            frames: copied.bytes.into(),
        };
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let _ = sender.send(batch);
        work.unfinished.packer().push_async(receiver).await
    }

    /// Commits what [`SnapshotWriter::append_frames`] stored as the sections of `source`.
    pub(crate) async fn finish_copy(
        mut self,
        source: &Snapshot,
        all: Vec<(SectionInfo, Vec<Segment>)>,
        chunks: &[PlannedChunk],
    ) -> Result<SaveStats> {
        let Some(Work { mut unfinished, .. }) = self.work.take() else {
            return Err(Error::invalid("the save has failed"));
        };
        let packed = match unfinished.packed().await {
            Ok(packed) => packed,
            Err(e) => return Err(unfinished.fail(e).await),
        };
        let moved: HashMap<_, _> = packed
            .chunks
            .iter()
            .map(|stored| {
                let old = &chunks[stored.number as usize].chunk.location;
                ((old.pack, old.offset), stored.location)
            })
            .collect();
        let raw_bytes = source.sections().iter().map(|s| s.length).sum();
        self.metadata
            .labels
            .extend(source.metadata().labels.clone());
        self.metadata.gvisor = source.metadata().gvisor.clone();
        self.metadata.created_unix_ms = source.metadata().created_unix_ms;
        let metadata = serde_json::to_string(&self.metadata).expect("metadata is plain data");
        let position = podsnap_format::HEADER_LEN as u64;
        let sealed = relocated(
            self.header.clone(),
            position,
            metadata,
            all,
            packed.packs.clone(),
            &moved,
        );
        Ok(self
            .conclude(unfinished, packed, sealed, raw_bytes)
            .await?
            .settled()
            .await)
    }
}
