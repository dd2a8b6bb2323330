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
    ahead::Purpose,
    chunks::{Duty, Found},
    node_cache::Claim,
};
use crate::{
    error::{ErrorKind, Result},
    frames,
    snapshot::Snapshot,
};

/// Unneeded bytes between two frames that somebody waits for that are read along.
const MAX_GAP: u64 = 32 << 10;

/// A background read counts as at least so many bytes, which bounds how many are under way: there must be turns left for others.
const LEAST_BACKGROUND_LEN: u64 = 512 << 10;

/// Bytes that somebody waits for and that are decoded where they came: to wake another thread takes as long. More, or a disk to write to, would hold
/// up what else comes.
const SHORT_LEN: u64 = 256 << 10;

/// Times that a chunk is looked for when who fetched it gave it up.
const TRIES: u32 = 3;

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

/// How bytes are read.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) priority: Priority,
    /// No read is longer than so many bytes, unless one frame is.
    pub(super) longest: u64,
    /// Unneeded bytes between two frames that are read along rather than paid for with another request.
    pub(super) max_gap: u64,
}

/// Gets chunks, each once however often it is named. No read is longer than `longest` bytes, unless one frame is.
pub(super) async fn fetch(
    snapshot: &Snapshot,
    wanted: impl IntoIterator<Item = Chunk>,
    priority: Priority,
    longest: u64,
) -> Result<Fetched> {
    let reading = Reading {
        priority,
        longest,
        max_gap: MAX_GAP,
    };
    let mut fetched = Fetched::new();
    let mut seen = HashSet::new();
    let mut wanted: Vec<Chunk> = wanted.into_iter().collect();
    wanted.retain(|chunk| seen.insert((chunk.id, chunk.raw_len)));
    for _ in 0..TRIES {
        let (mut arrivals, mut duties) = (Vec::new(), Vec::new());
        for chunk in wanted {
            match snapshot.shared.chunks.find(&chunk, priority, Purpose::Use) {
                Found::Here(bytes) => {
                    fetched.insert((chunk.id, chunk.raw_len), bytes);
                }
                Found::Coming(arrival) => arrivals.push((chunk, arrival)),
                Found::Missing(duty) => {
                    arrivals.push((chunk, duty.arrival()));
                    duties.push(duty);
                }
            }
        }
        begin(snapshot, duties, reading);
        let waiting = arrivals.into_iter().map(|(chunk, arrival)| async move {
            match arrival.wait().await {
                Some(Ok(bytes)) => Ok((chunk, Some(bytes))),
                Some(Err(e)) => Err(e.again()),
                // Who fetched it left it to somebody more urgent, or the runtime of that one has ended.
                None => Ok((chunk, None)),
            }
        });
        wanted = Vec::new();
        for (chunk, arrived) in try_join_all(waiting).await? {
            match arrived {
                Some(bytes) => {
                    fetched.insert((chunk.id, chunk.raw_len), bytes);
                }
                None => wanted.push(chunk),
            }
        }
        if wanted.is_empty() {
            return Ok(fetched);
        }
    }
    for chunk in wanted {
        let bytes = read_one(snapshot, &chunk).await?;
        fetched.insert((chunk.id, chunk.raw_len), bytes);
    }
    Ok(fetched)
}

/// Has duties fulfilled.
pub(super) fn begin(snapshot: &Snapshot, duties: Vec<Duty>, reading: Reading) {
    if !duties.is_empty() {
        tokio::spawn(bring(snapshot.clone(), duties, reading));
    }
}

/// Sorts chunks by where they are and joins neighbours.
fn into_runs(mut duties: Vec<Duty>, reading: Reading) -> Vec<Run> {
    let Reading {
        longest, max_gap, ..
    } = reading;
    duties.sort_by_key(|duty| (duty.chunk.location.pack, duty.chunk.location.offset));
    let mut runs: Vec<Run> = Vec::new();
    for duty in duties {
        let (pack, frame) = (duty.chunk.location.pack, frame(&duty.chunk));
        match runs.last_mut() {
            Some(run)
                if run.pack == pack
                    && frame.start <= run.range.end + max_gap
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
async fn bring(snapshot: Snapshot, duties: Vec<Duty>, reading: Reading) {
    let rest = from_node(&snapshot, duties).await;
    for run in into_runs(rest, reading) {
        tokio::spawn(from_store(snapshot.clone(), run, reading.priority));
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
        let wanted = duties.len();
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
        crate::metrics::node_cache_hits(wanted - missing.len());
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
            let len = (run.range.end - run.range.start).max(LEAST_BACKGROUND_LEN);
            let background = &snapshot.shared.background;
            let permits = (len.min(super::BACKGROUND_LEN as u64) >> 10) as u32;
            background.clone().acquire_many_owned(permits).await.ok()
        }
    };
    // While it waited for its turn, somebody may have needed some of it.
    run.duties.retain(Duty::is_open);
    if run.duties.is_empty() {
        return;
    }
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
        Ok(bytes) => decode(&snapshot, priority, range.start, bytes, duties).await,
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
async fn decode(
    snapshot: &Snapshot,
    priority: Priority,
    start: u64,
    bytes: Bytes,
    duties: Vec<Duty>,
) -> Vec<Duty> {
    let (shared, key) = (snapshot.shared.clone(), snapshot.key.clone());
    let raw_len: u64 = duties
        .iter()
        .map(|duty| u64::from(duty.chunk.raw_len))
        .sum();
    let is_short = raw_len <= SHORT_LEN && shared.node_cache.is_none();
    let at_once = priority == Priority::Urgent && is_short;
    let decoding = move || {
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
                        crate::metrics::node_cache_miss();
                        cache.put(&id, encoded);
                    }
                }
                Err(_) => wrong.push(duty),
            }
        }
        wrong
    };
    if at_once {
        return decoding();
    }
    // If the runtime ends, nobody is left to wait.
    tokio::task::spawn_blocking(decoding)
        .await
        .unwrap_or_default()
}

async fn read_one(snapshot: &Snapshot, chunk: &Chunk) -> Result<Bytes> {
    let mut raw = Vec::new();
    let encoded = snapshot.read_chunk(chunk, &mut raw).await?;
    if let Some(cache) = &snapshot.shared.node_cache {
        crate::metrics::node_cache_miss();
        cache.put(&chunk.id, &encoded);
    }
    Ok(raw.into())
}
