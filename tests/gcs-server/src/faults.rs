//! Faults on request: what goes wrong, for which requests, and how often. Deterministic by seed.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::operation::Operation;

/// What goes wrong. Positions default to the middle of the body; "upload" is about bodies of requests that carry an
/// object's bytes, "download" about bodies of answers that do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FaultKind {
    /// This status instead of an answer; nothing is done.
    Status {
        /// 408, 429, 500, 502, 503, 504, ...
        status: u16,
        /// Seconds for `Retry-After`.
        #[serde(default)]
        retry_after_s: Option<u64>,
    },
    /// The connection is reset instead of an answer; nothing is done.
    Reset,
    /// The connection is reset while the upload is being read; nothing is done.
    ResetUpload {
        /// After so many bytes.
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    /// The connection is reset while the download is being sent.
    ResetDownload {
        /// After so many bytes.
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    /// The answer is late.
    Stall {
        /// By so much.
        ms: u64,
    },
    /// Reading the upload pauses.
    StallUpload {
        /// For so long.
        ms: u64,
        /// After so many bytes.
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    /// Sending the download pauses.
    StallDownload {
        /// For so long.
        ms: u64,
        /// After so many bytes.
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    /// The upload is read at this pace.
    SlowUpload {
        /// The pace.
        bytes_per_s: u64,
    },
    /// The download is sent at this pace.
    SlowDownload {
        /// The pace.
        bytes_per_s: u64,
    },
    /// The connection ends in good order in the middle of the download.
    Truncate {
        /// After so many bytes.
        #[serde(default)]
        after_bytes: Option<u64>,
    },
    /// One bit of the download is flipped; the checksum header stays right.
    Corrupt {
        /// In this byte.
        #[serde(default)]
        at: Option<u64>,
    },
    /// One bit of the upload is flipped before the server looks at it: a client that sends a checksum gets 400,
    /// one that sends none has stored something else than it sent.
    CorruptUpload {
        /// In this byte.
        #[serde(default)]
        at: Option<u64>,
    },
    /// The request is carried out, but its answer is lost: a reset, or this status in its place.
    LoseAnswer {
        /// Say, 503; without one, the connection is reset.
        #[serde(default)]
        status: Option<u16>,
    },
    /// `Content-Length` of the download is wrong by so much.
    WrongLength {
        /// Difference to the right one.
        by: i64,
    },
    /// The checksums in the answer (header and metadata) are not the content's.
    WrongHash,
}

impl FaultKind {
    /// Whether it can happen to such a request at all.
    fn applies_to(&self, operation: Operation) -> bool {
        use FaultKind::*;
        match self {
            ResetUpload { .. } | StallUpload { .. } | SlowUpload { .. } | CorruptUpload { .. } => {
                operation.uploads()
            }
            ResetDownload { .. }
            | StallDownload { .. }
            | SlowDownload { .. }
            | Truncate { .. }
            | Corrupt { .. }
            | WrongLength { .. } => operation.downloads(),
            Status { .. } | Reset | Stall { .. } | LoseAnswer { .. } | WrongHash => true,
        }
    }
}

/// A fault, and the requests that it happens to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub fault: FaultKind,
    /// Only for these operations; empty for all.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// Only for these HTTP methods; empty for all.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Only for objects and folders whose names begin so.
    #[serde(default)]
    pub prefix: String,
    /// Only for objects and folders whose names hold this.
    #[serde(default)]
    pub contains: String,
    /// The first so many matching requests are spared.
    #[serde(default)]
    pub skip: u64,
    /// It happens at most so often.
    #[serde(default)]
    pub times: Option<u64>,
    /// To what part of the matching requests it happens.
    #[serde(default = "always")]
    pub probability: f64,
    /// Where the dice start.
    #[serde(default)]
    pub seed: u64,
}

fn always() -> f64 {
    1.0
}

impl Fault {
    /// A fault that happens to every request it can happen to.
    pub fn new(fault: FaultKind) -> Self {
        Self {
            fault,
            operations: Vec::new(),
            methods: Vec::new(),
            prefix: String::new(),
            contains: String::new(),
            skip: 0,
            times: None,
            probability: 1.0,
            seed: 0,
        }
    }

    /// Only for these operations.
    pub fn on(mut self, operations: &[Operation]) -> Self {
        self.operations = operations.to_vec();
        self
    }

    /// Only for names that begin so.
    pub fn below(mut self, prefix: &str) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Only for names that hold this.
    pub fn containing(mut self, part: &str) -> Self {
        self.contains = part.into();
        self
    }

    /// At most so often.
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Only to the n-th matching request, counted from 1.
    pub fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = Some(1);
        self
    }

    /// To this part of the matching requests, by dice that start at `seed`.
    pub fn with_probability(mut self, probability: f64, seed: u64) -> Self {
        self.probability = probability;
        self.seed = seed;
        self
    }

    fn matches(&self, operation: Operation, method: &str, name: &str) -> bool {
        self.fault.applies_to(operation)
            && (self.operations.is_empty() || self.operations.contains(&operation))
            && (self.methods.is_empty() || self.methods.iter().any(|m| m == method))
            && name.starts_with(&self.prefix)
            && name.contains(&self.contains)
    }
}

/// The faults that are set.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Armed>>);

#[derive(Debug)]
struct Armed {
    fault: Fault,
    matched: u64,
    happened: u64,
    dice: u64,
}

impl Faults {
    pub fn add(&self, fault: Fault) {
        let dice = fault.seed;
        let armed = Armed {
            fault,
            matched: 0,
            happened: 0,
            dice,
        };
        self.0.lock().unwrap().push(armed);
    }

    pub fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// The faults that are set, and how often each has happened.
    pub fn list(&self) -> Vec<(Fault, u64)> {
        let armed = self.0.lock().unwrap();
        armed
            .iter()
            .map(|a| (a.fault.clone(), a.happened))
            .collect()
    }

    /// What happens to a request: the first fault in the order of setting that matches and whose turn it is.
    pub fn draw(&self, operation: Operation, method: &str, name: &str) -> Option<FaultKind> {
        let mut drawn = None;
        for armed in self.0.lock().unwrap().iter_mut() {
            if !armed.fault.matches(operation, method, name) {
                continue;
            }
            armed.matched += 1;
            let thrown = throw(&mut armed.dice);
            let due = armed.matched > armed.fault.skip
                && armed.fault.times.is_none_or(|times| armed.happened < times)
                && thrown < armed.fault.probability;
            if due && drawn.is_none() {
                armed.happened += 1;
                drawn = Some(armed.fault.fault.clone());
            }
        }
        drawn
    }
}

/// A number in 0..1 (splitmix64).
fn throw(state: &mut u64) -> f64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}
