//! Measures a store: how fast packs are written and ranges are read by the same calls that saves and restores make, with what settings
//! it is fastest, and how long it takes to answer.
//!
//! Everything is written under names of its own and removed again, also on cancelling. In a bucket of Google Cloud Storage the settings
//! are those of [`GcsOptions`](crate::store::GcsOptions); other stores have one way to write, and for reading the numbers say what they would bear.

mod run;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    OpenOptions,
    error::{Error, Result},
    progress::Progress,
};

/// Pieces of a transfer, and how many of them are under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Length in bytes of a part or range.
    pub len: u64,
    /// How many at once.
    pub at_once: usize,
}

impl Setting {
    const fn mib(len: u64, at_once: usize) -> Self {
        Self {
            len: len << 20,
            at_once,
        }
    }

    /// Memory that a transfer takes with this setting, in bytes.
    pub fn memory(&self) -> u64 {
        self.len.saturating_mul(self.at_once as u64)
    }
}

/// What is measured.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// Bytes transferred with each setting, at most.
    pub bytes: u64,
    /// Time after which a setting is given no more to do.
    pub time_limit: Duration,
    /// Parts of uploads; only for stores where they can be set.
    pub uploads: Vec<Setting>,
    /// Ranges of downloads.
    pub downloads: Vec<Setting>,
    /// Small reads, one after the other, that time the first byte.
    pub latency_reads: usize,
    /// How far it is, in bytes transferred.
    pub progress: Progress,
    /// Ends it early.
    pub cancel: CancellationToken,
}

impl Default for BenchOptions {
    /// Some GB and minutes in all.
    fn default() -> Self {
        Self {
            bytes: 512 << 20,
            time_limit: Duration::from_secs(10),
            uploads: vec![
                Setting::mib(8, 8),
                Setting::mib(8, 24),
                Setting::mib(16, 8),
                Setting::mib(16, 16),
                Setting::mib(32, 6),
                Setting::mib(32, 12),
            ],
            downloads: vec![
                Setting::mib(4, 16),
                Setting::mib(4, 48),
                Setting::mib(8, 8),
                Setting::mib(8, 24),
                Setting::mib(8, 48),
                Setting::mib(16, 16),
            ],
            latency_reads: 100,
            progress: Progress::default(),
            cancel: CancellationToken::new(),
        }
    }
}

impl BenchOptions {
    /// Less of everything: under a GB, under a minute.
    pub fn quick() -> Self {
        Self {
            bytes: 128 << 20,
            time_limit: Duration::from_secs(5),
            uploads: vec![Setting::mib(8, 8), Setting::mib(16, 8), Setting::mib(32, 4)],
            downloads: vec![Setting::mib(4, 16), Setting::mib(8, 8), Setting::mib(8, 16)],
            latency_reads: 30,
            ..Self::default()
        }
    }
}

/// What one setting came to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Measured {
    /// The setting; none where the store has only its own.
    pub setting: Option<Setting>,
    /// Bytes transferred.
    pub bytes: u64,
    /// Time it took, in microseconds.
    pub elapsed_us: u64,
    /// Bytes per second.
    pub bytes_per_s: u64,
    /// Requests that were repeated.
    pub retries: u64,
    /// Downloads that went on in the middle of a range.
    pub resumed: u64,
    /// Second requests for ranges whose first byte was late.
    pub hedges: u64,
}

/// Times to the first byte, in microseconds, retries and hedges included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct FirstByte {
    /// Number of reads.
    pub reads: usize,
    /// The median.
    pub p50_us: u64,
    /// The 99th percentile; with few reads, their maximum.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BenchReport {
    /// The store's URL.
    pub store: String,
    /// Writing, by setting.
    pub uploads: Vec<Measured>,
    /// Reading, by setting.
    pub downloads: Vec<Measured>,
    /// Waiting.
    pub first_byte: FirstByte,
    /// What to upload with, where that can be set.
    pub recommended_upload: Option<Setting>,
    /// What to download with, where that can be set.
    pub recommended_download: Option<Setting>,
}

/// What a setting may lose to a dearer one and still be recommended.
const NEAR_ENOUGH: f64 = 0.95;

/// The setting that takes the least memory of those that are as fast as any, but for a little.
fn recommended(measured: &[Measured], bytes: u64) -> Option<Setting> {
    // One whose pieces were never all under way was not measured.
    let full = |m: &&Measured| m.setting.is_some_and(|s| s.memory() <= bytes);
    let mut candidates: Vec<&Measured> = measured.iter().filter(full).collect();
    if candidates.is_empty() {
        candidates = measured.iter().filter(|m| m.setting.is_some()).collect();
    }
    let best = candidates.iter().map(|m| m.bytes_per_s).max()?;
    let fast = candidates
        .iter()
        .filter(|m| m.bytes_per_s as f64 >= NEAR_ENOUGH * best as f64);
    fast.filter_map(|m| m.setting).min_by_key(Setting::memory)
}

/// Measures the store at `url`. Fails before anything is written if it could not be removed again.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use podsnap::{OpenOptions, bench::{BenchOptions, bench}};
///
/// let options = BenchOptions {
///     bytes: 4 << 20,
///     ..BenchOptions::quick()
/// };
/// let report = bench("memory://bench", &OpenOptions::default(), &options).await?;
/// assert_eq!(report.downloads.len(), options.downloads.len());
/// # Ok(()) }
/// ```
pub async fn bench(url: &str, open: &OpenOptions, options: &BenchOptions) -> Result<BenchReport> {
    let impossible = |s: &Setting| s.len < MIN_LEN || s.at_once == 0 || s.memory() > MAX_MEMORY;
    if options.bytes == 0 || options.downloads.is_empty() || options.latency_reads == 0 {
        return Err(Error::invalid("there is nothing to measure"));
    }
    let mut settings = options.uploads.iter().chain(&options.downloads);
    if let Some(setting) = settings.find(|s| impossible(s)) {
        return Err(Error::invalid(format!(
            "pieces of {} bytes, {} at once, cannot be measured",
            setting.len, setting.at_once
        )));
    }
    let settings = (options.uploads.len() + options.downloads.len()) as u64;
    options
        .progress
        .add_total(options.bytes.saturating_mul(settings));
    run::Bench::new(url, open, options)?.run().await
}

/// Shortest piece that is worth a request, in bytes.
const MIN_LEN: u64 = 4 << 10;

/// Most memory that a setting may take.
const MAX_MEMORY: u64 = 4 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(len: u64, at_once: usize, bytes_per_s: u64) -> Measured {
        Measured {
            setting: Some(Setting::mib(len, at_once)),
            bytes: 1,
            elapsed_us: 1,
            bytes_per_s,
            retries: 0,
            resumed: 0,
            hedges: 0,
        }
    }

    #[test]
    fn what_is_as_fast_and_takes_less_memory_is_recommended() {
        let rates = [
            measured(8, 8, 700),
            measured(32, 12, 1000),
            measured(16, 8, 960),
            measured(64, 8, 2000),
        ];
        let of = |bytes: u64| recommended(&rates, bytes << 20);
        // The last one's pieces do not all fit into what was transferred.
        assert_eq!(of(400), Some(Setting::mib(16, 8)));
        assert_eq!(of(512), Some(Setting::mib(64, 8)));
        assert_eq!(of(1), Some(Setting::mib(64, 8)));
        assert_eq!(recommended(&[], 1), None);
    }
}
