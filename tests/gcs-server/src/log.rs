//! The log of requests: one entry each, made when its head has arrived and completed when its answer has left.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use serde::Serialize;

use crate::{
    iam::Permission,
    operation::{BillingClass, Operation},
};

/// One request and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// Numbers requests from 0.
    pub number: u64,
    /// The connection it came on, numbered from 0.
    pub connection: u64,
    /// When its head was there, in milliseconds since the server started.
    pub at_ms: u64,
    /// How long it took until the last byte of the answer was handed over; while it lasts, 0.
    pub took_ms: u64,
    /// What it asked for.
    pub operation: Operation,
    /// HTTP method.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Bucket it is about, or empty.
    pub bucket: String,
    /// Object or folder it is about (for a listing, the prefix), or empty.
    pub name: String,
    /// Generation that the request pins, if it does.
    pub generation: Option<i64>,
    /// The `Range` header.
    pub range: Option<String>,
    /// Who asked.
    pub principal: Option<String>,
    /// Permissions that were asked for, those refused included.
    pub permissions: Vec<Permission>,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
    /// Reason of a refusal.
    pub reason: String,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes handed to the connection.
    pub bytes_out: u64,
    /// The fault that was injected.
    pub fault: Option<String>,
    /// Whether the answer is the remembered one of an earlier request with the same idempotency token.
    pub replayed: bool,
    /// Whether the request is over.
    pub ended: bool,
}

/// An entry in the making.
#[derive(Debug)]
pub(crate) struct Record {
    entry: Mutex<Entry>,
    started: Instant,
    pub bytes_in: AtomicU64,
    pub bytes_out: AtomicU64,
    ended: AtomicBool,
}

impl Record {
    pub fn set(&self, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entry.lock().unwrap());
    }

    pub fn get<T>(&self, read: impl FnOnce(&Entry) -> T) -> T {
        read(&self.entry.lock().unwrap())
    }

    /// The request is over, one way or the other.
    pub fn end(&self) {
        if !self.ended.swap(true, Relaxed) {
            let took_ms = self.started.elapsed().as_millis() as u64;
            self.set(|e| e.took_ms = took_ms);
        }
    }

    fn entry(&self) -> Entry {
        let mut entry = self.entry.lock().unwrap().clone();
        entry.bytes_in = self.bytes_in.load(Relaxed);
        entry.bytes_out = self.bytes_out.load(Relaxed);
        entry.ended = self.ended.load(Relaxed);
        entry
    }
}

/// Keeps the log while the server runs.
#[derive(Debug)]
pub(crate) struct Recorder {
    started: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    next: u64,
    records: VecDeque<Arc<Record>>,
    /// Operations that succeeded, of all time, also of entries that are gone.
    succeeded: BTreeMap<Operation, u64>,
}

impl Recorder {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            kept: Mutex::default(),
        }
    }

    pub fn begin(&self, connection: u64, method: &str, target: &str, limit: usize) -> Arc<Record> {
        let mut kept = self.kept.lock().unwrap();
        let entry = Entry {
            number: kept.next,
            connection,
            at_ms: self.started.elapsed().as_millis() as u64,
            took_ms: 0,
            operation: Operation::Unknown,
            method: method.into(),
            target: target.into(),
            bucket: String::new(),
            name: String::new(),
            generation: None,
            range: None,
            principal: None,
            permissions: Vec::new(),
            status: 0,
            reason: String::new(),
            bytes_in: 0,
            bytes_out: 0,
            fault: None,
            replayed: false,
            ended: false,
        };
        kept.next += 1;
        let record = Arc::new(Record {
            entry: Mutex::new(entry),
            started: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        if kept.records.len() >= limit.max(1) {
            kept.records.pop_front();
        }
        kept.records.push_back(record.clone());
        record
    }

    /// Counts an operation that was carried out, for the bill. A replayed one is not carried out.
    pub fn succeeded(&self, operation: Operation) {
        let mut kept = self.kept.lock().unwrap();
        *kept.succeeded.entry(operation).or_default() += 1;
    }

    pub fn operations(&self, class: BillingClass) -> u64 {
        let kept = self.kept.lock().unwrap();
        let of_class = kept
            .succeeded
            .iter()
            .filter(|(o, _)| o.billing_class() == class);
        of_class.map(|(_, n)| n).sum()
    }

    pub fn log(&self) -> Log {
        let kept = self.kept.lock().unwrap();
        Log {
            entries: kept.records.iter().map(|r| r.entry()).collect(),
        }
    }

    pub fn clear(&self) {
        let mut kept = self.kept.lock().unwrap();
        kept.records.clear();
        kept.succeeded.clear();
    }
}

/// A copy of the log, to ask questions of.
#[derive(Debug, Clone, Serialize)]
pub struct Log {
    /// The requests, in the order in which they arrived.
    pub entries: Vec<Entry>,
}

impl Log {
    /// How many requests of a kind there were.
    pub fn count(&self, operation: Operation) -> usize {
        self.of(operation).len()
    }

    /// The requests of a kind.
    pub fn of(&self, operation: Operation) -> Vec<&Entry> {
        let of_kind = self.entries.iter().filter(|e| e.operation == operation);
        of_kind.collect()
    }

    /// The requests about names that begin with `prefix`.
    pub fn about(&self, prefix: &str) -> Vec<&Entry> {
        let about = self.entries.iter().filter(|e| e.name.starts_with(prefix));
        about.collect()
    }

    /// How many requests of each kind there were.
    pub fn counts(&self) -> BTreeMap<Operation, usize> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries {
            *counts.entry(entry.operation).or_default() += 1;
        }
        counts
    }

    /// Every permission that was asked for.
    pub fn permissions(&self) -> Vec<Permission> {
        let mut permissions: Vec<_> = self
            .entries
            .iter()
            .flat_map(|e| e.permissions.iter().copied())
            .collect();
        permissions.sort_unstable();
        permissions.dedup();
        permissions
    }

    /// The requests into which a fault was injected.
    pub fn faulty(&self) -> Vec<&Entry> {
        self.entries.iter().filter(|e| e.fault.is_some()).collect()
    }

    /// Panics, showing the first other request, unless all requests were of these kinds.
    #[track_caller]
    pub fn assert_only(&self, operations: &[Operation]) {
        if let Some(other) = self
            .entries
            .iter()
            .find(|e| !operations.contains(&e.operation))
        {
            panic!("a request of a kind that was not expected: {other:?}");
        }
    }

    /// Panics, showing the first refusal, if any request was answered by 401 or 403.
    #[track_caller]
    pub fn assert_nothing_denied(&self) {
        if let Some(denied) = self.entries.iter().find(|e| matches!(e.status, 401 | 403)) {
            panic!("a request that was not allowed: {denied:?}");
        }
    }
}
