//! Chunks from the store: many at once, neighbouring frames in one read, each checked before anybody has it.
//!
//! Every read is a task of its own, so that it comes to its end for those who wait for its chunks even if who
//! started it has gone.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::try_join_all;
use podsnap_format::{ChunkId, codec::Decoder, manifest::Chunk};
use tokio::time::{Instant, sleep};

use super::{
    Priority,
    chunks::{Duty, Found},
    node_cache::Claim,
};
use crate::{
    error::{ErrorKind, Result},
    frames,
    snapshot::Snapshot,
};

/// Unneeded bytes between two frames that are read along rather than paid for with another request.
const MAX_GAP: u64 = 32 << 10;

/// How long bytes are waited for that another process of the node is reading. One that somebody waits for there comes as soon as it can; without
/// that patience many processes that begin at once would slow each other down until all of them read everything.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long who waits for bytes leaves it to a background read of another process to bring them: some round trips.
const URGENT_PATIENCE: Duration = Duration::from_millis(50);

/// How often it is looked whether the other process is done: at first, and later, when many may be looking.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(20);

/// Chunks by what a manifest says of them.
pub(super) type Fetched = HashMap<(ChunkId, u32), Bytes>;

/// Frames that are read at once.
struct Run {
    pack: u32,
    range: Range<u64>,
    duties: Vec<Duty>,
}

/// Gets chunks, each once however often it is named. No read is longer than `longest` bytes, unless one frame is.
pub(super) async fn fetch(
    snapshot: &Snapshot,
    wanted: impl IntoIterator<Item = Chunk>,
    priority: Priority,
    longest: u64,
) -> Result<Fetched> {
    let mut fetched = Fetched::new();
    let (mut arrivals, mut duties) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for chunk in wanted {
        let key = (chunk.id, chunk.raw_len);
        if !seen.insert(key) {
            continue;
        }
        match snapshot.shared.chunks.find(&chunk, priority) {
            Found::Here(bytes) => {
                fetched.insert(key, bytes);
            }
            Found::Coming(arrival) => arrivals.push((chunk, arrival)),
            Found::Missing(duty) => {
                arrivals.push((chunk, duty.arrival()));
                duties.push(duty);
            }
        }
    }
    if !duties.is_empty() {
        tokio::spawn(bring(snapshot.clone(), duties, priority, longest));
    }
    let waiting = arrivals.into_iter().map(|(chunk, arrival)| async move {
        let bytes = match arrival.wait().await {
            Some(Ok(bytes)) => bytes,
            Some(Err(e)) => return Err(e.again()),
            // The runtime of who fetched it has ended.
            None => read_one(snapshot, &chunk).await?,
        };
        Ok(((chunk.id, chunk.raw_len), bytes))
    });
    fetched.extend(try_join_all(waiting).await?);
    Ok(fetched)
}

/// Sorts chunks by where they are and joins neighbours.
fn into_runs(mut duties: Vec<Duty>, longest: u64) -> Vec<Run> {
    duties.sort_by_key(|duty| (duty.chunk.location.pack, duty.chunk.location.offset));
    let mut runs: Vec<Run> = Vec::new();
    for duty in duties {
        let (pack, frame) = (duty.chunk.location.pack, frame(&duty.chunk));
        match runs.last_mut() {
            Some(run)
                if run.pack == pack
                    && frame.start <= run.range.end + MAX_GAP
                    && (frame.end <= run.range.end || frame.end - run.range.start <= longest) =>
            {
                run.range.end = run.range.end.max(frame.end);
                run.duties.push(duty);
            }
            _ => runs.push(Run {
                pack,
                range: frame,
                duties: vec![duty],
            }),
        }
    }
    runs
}

/// The bytes of its pack that hold a chunk's frame.
fn frame(chunk: &Chunk) -> Range<u64> {
    let location = &chunk.location;
    location.offset..location.offset + location.frame_len()
}

/// Fulfils the duties: from the node's disk what is there, the rest from the store in runs.
async fn bring(snapshot: Snapshot, duties: Vec<Duty>, priority: Priority, longest: u64) {
    let rest = from_node(&snapshot, duties).await;
    for run in into_runs(rest, longest) {
        tokio::spawn(from_store(snapshot.clone(), run, priority));
    }
}

/// Fulfils the duties whose frames the node has; returns the others.
async fn from_node(snapshot: &Snapshot, duties: Vec<Duty>) -> Vec<Duty> {
    if snapshot.shared.node_cache.is_none() {
        return duties;
    }
    let (shared, key) = (snapshot.shared.clone(), snapshot.key.clone());
    let work = move || {
        let cache = shared.node_cache.as_ref().expect("looked at before");
        cache.refresh();
        let mut decoder = Decoder::new();
        let mut missing = Vec::new();
        for duty in duties {
            let id = &duty.chunk.id;
            let Some(frame) = cache.get(id) else {
                missing.push(duty);
                continue;
            };
            let mut raw = Vec::new();
            match frames::decode_checked(&frame, &duty.chunk, key.as_ref(), &mut decoder, &mut raw)
            {
                Ok(()) => duty.fulfil(Ok(raw.into())),
                Err(why) => {
                    tracing::debug!("a cached frame is not used: {why}");
                    cache.forget(id);
                    missing.push(duty);
                }
            }
        }
        missing
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Claims what the run reads for the whole node. If another process is reading it already, waits a while, and takes what that one has fetched.
async fn claim(snapshot: &Snapshot, run: &mut Run, priority: Priority) -> [Option<Claim>; 2] {
    let Some(cache) = &snapshot.shared.node_cache else {
        return [None, None];
    };
    let object = snapshot.pack_object(&snapshot.directory().packs[run.pack as usize]);
    let wait = async |of, patience| {
        let begin = Instant::now();
        loop {
            let claim = cache.claim(&object, &run.range, of);
            let waited = begin.elapsed();
            if claim.is_some() || waited > patience {
                return claim;
            }
            sleep((waited / 8).clamp(FIRST_LOOK, LAST_LOOK)).await;
        }
    };
    let urgent = wait(Priority::Urgent, PATIENCE).await;
    let claims = match priority {
        Priority::Urgent => [urgent, wait(Priority::Background, URGENT_PATIENCE).await],
        // It must stand in nobody's way who is in a hurry.
        Priority::Background => [None, wait(Priority::Background, PATIENCE).await],
    };
    // Whoever had it before has left there what was read.
    run.duties = from_node(snapshot, std::mem::take(&mut run.duties)).await;
    claims
}

async fn from_store(snapshot: Snapshot, mut run: Run, priority: Priority) {
    let _permit = match priority {
        Priority::Urgent => None,
        Priority::Background => {
            let kib = ((run.range.end - run.range.start) >> 10) as u32 + 1;
            let background = &snapshot.shared.background;
            let permits = kib.min(super::BACKGROUND_LEN as u32 >> 10);
            background.clone().acquire_many_owned(permits).await.ok()
        }
    };
    let _claims = claim(&snapshot, &mut run, priority).await;
    let Run { pack, duties, .. } = run;
    let frames = || duties.iter().map(|duty| frame(&duty.chunk));
    let (start, end) = (
        frames().map(|f| f.start).min(),
        frames().map(|f| f.end).max(),
    );
    let (Some(start), Some(end)) = (start, end) else {
        return;
    };
    let range = start..end;
    let rest = match snapshot.read_pack(pack, range.clone()).await {
        Ok(bytes) => decode(&snapshot, range.start, bytes, duties).await,
        // Perhaps not all of them are damaged.
        Err(e) if e.kind() == ErrorKind::Damaged => duties,
        Err(e) => {
            let error = Arc::new(e);
            for duty in duties {
                duty.fulfil(Err(error.clone()));
            }
            return;
        }
    };
    for duty in rest {
        let arrived = read_one(&snapshot, &duty.chunk).await;
        duty.fulfil(arrived.map_err(Arc::new));
    }
}

/// Fulfils the duties whose frames check out, each as soon as it is decoded; returns the others.
async fn decode(snapshot: &Snapshot, start: u64, bytes: Bytes, duties: Vec<Duty>) -> Vec<Duty> {
    let (shared, key) = (snapshot.shared.clone(), snapshot.key.clone());
    let decoding = tokio::task::spawn_blocking(move || {
        let mut decoder = Decoder::new();
        let mut wrong = Vec::new();
        for duty in duties {
            let frame = frame(&duty.chunk);
            let encoded = &bytes[(frame.start - start) as usize..(frame.end - start) as usize];
            let mut raw = Vec::new();
            match frames::decode_checked(encoded, &duty.chunk, key.as_ref(), &mut decoder, &mut raw)
            {
                Ok(()) => {
                    let id = duty.chunk.id;
                    duty.fulfil(Ok(raw.into()));
                    if let Some(cache) = &shared.node_cache {
                        cache.put(&id, encoded);
                    }
                }
                Err(_) => wrong.push(duty),
            }
        }
        wrong
    });
    // If the runtime ends, nobody is left to wait.
    decoding.await.unwrap_or_default()
}

async fn read_one(snapshot: &Snapshot, chunk: &Chunk) -> Result<Bytes> {
    let mut raw = Vec::new();
    let encoded = snapshot.read_chunk(chunk, &mut raw).await?;
    if let Some(cache) = &snapshot.shared.node_cache {
        cache.put(&chunk.id, &encoded);
    }
    Ok(raw.into())
}
