//! One measurement from beginning to end, and the removal of what it wrote.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::Instant;

use super::{BenchOptions, BenchReport, FirstByte, Measured, Setting, recommended};
use crate::{
    OpenOptions,
    error::{Error, ErrorKind, Result},
    store::{
        self, Backend, GcsBackend, GcsOptions, ObjectMeta, ObjectWriter, ReadRange,
        gcs::{GcsStats, PART_SUFFIX},
    },
};

/// Length in bytes of what is handed to a writer at once.
const BLOCK_LEN: u64 = 1 << 20;

/// Length in bytes of the reads that time the first byte.
const FIRST_BYTES: u64 = 1 << 10;

/// Time that an object which is being finished gets for it when the measurement is cancelled.
const GRACE: Duration = Duration::from_secs(2);

/// A store opened with one setting.
struct Opened {
    backend: Arc<dyn Backend>,
    /// The same, if it counts.
    gcs: Option<Arc<GcsBackend>>,
}

impl Opened {
    fn stats(&self) -> GcsStats {
        self.gcs.as_ref().map(|gcs| gcs.stats()).unwrap_or_default()
    }

    fn measured(
        &self,
        setting: Option<Setting>,
        bytes: u64,
        elapsed: Duration,
        before: &GcsStats,
    ) -> Measured {
        let after = self.stats();
        Measured {
            setting,
            bytes,
            elapsed_us: elapsed.as_micros() as u64,
            bytes_per_s: (bytes as f64 / elapsed.as_secs_f64().max(1e-6)) as u64,
            retries: after.retries - before.retries,
            resumed: after.resumed - before.resumed,
            hedges: after.hedges - before.hedges,
        }
    }
}

/// A measurement under way.
pub(super) struct Bench<'a> {
    url: &'a str,
    open: &'a OpenOptions,
    options: &'a BenchOptions,
    is_gcs: bool,
    /// Opened as the caller wants it; what advice there is about a bucket comes from here.
    store: Opened,
    /// Begins the names of all objects.
    scratch: String,
    /// Objects that were begun.
    begun: usize,
    /// Objects that may be there.
    left: Vec<String>,
    /// Whether an upload was cut off, so that parts of it may be there.
    cut_off: bool,
    /// What is read.
    source: Option<ObjectMeta>,
}

impl<'a> Bench<'a> {
    pub(super) fn new(
        url: &'a str,
        open: &'a OpenOptions,
        options: &'a BenchOptions,
    ) -> Result<Self> {
        let is_gcs = url.starts_with("gs://");
        let store = match is_gcs {
            true => {
                let gcs = Arc::new(GcsBackend::open(url, open.gcs.clone())?);
                Opened {
                    backend: gcs.clone(),
                    gcs: Some(gcs),
                }
            }
            false => Opened {
                backend: store::open(url, open)?,
                gcs: None,
            },
        };
        Ok(Self {
            url,
            open,
            options,
            is_gcs,
            store,
            scratch: format!("podsnap-bench-{}", uuid::Uuid::new_v4().simple()),
            begun: 0,
            left: Vec::new(),
            cut_off: false,
            source: None,
        })
    }

    pub(super) async fn run(mut self) -> Result<BenchReport> {
        let cancel = self.options.cancel.clone();
        tokio::select! {
            refused = self.refuse_what_would_stay() => refused?,
            () = cancel.cancelled() => return Err(Error::interrupted()),
        }
        let measured = self.measure().await;
        let removed = self.remove_all().await;
        if let (Err(_), Err(e)) = (&measured, &removed) {
            tracing::warn!("{e}");
        }
        let report = measured?;
        removed?;
        Ok(report)
    }

    /// Fails if objects could be written and not removed.
    async fn refuse_what_would_stay(&self) -> Result<()> {
        if let Some(gcs) = &self.store.gcs {
            match gcs.bucket().await {
                Ok(bucket) if !bucket.can_remove_parts() => {
                    let what = format!("{} retains or holds objects", self.url);
                    return Err(Error::new(ErrorKind::Forbidden, what).hint(
                        "what a measurement writes could not be removed; measure another bucket",
                    ));
                }
                Err(e) if e.kind() != ErrorKind::Forbidden => return Err(e),
                _ => {}
            }
        }
        let nothing = format!("{}{PART_SUFFIX}", self.scratch);
        self.store.backend.delete(&nothing, None).await
    }

    /// The store with a setting of its own, and a connection to it.
    async fn with(&self, change: impl FnOnce(&mut GcsOptions)) -> Result<Opened> {
        if !self.is_gcs {
            return Ok(Opened {
                backend: self.store.backend.clone(),
                gcs: None,
            });
        }
        let mut options = self.open.gcs.clone();
        change(&mut options);
        let gcs = Arc::new(GcsBackend::open(self.url, options)?.without_advice());
        let _ = gcs.head(&format!("{}{PART_SUFFIX}", self.scratch)).await;
        Ok(Opened {
            backend: gcs.clone(),
            gcs: Some(gcs),
        })
    }

    async fn measure(&mut self) -> Result<BenchReport> {
        let block = noise(BLOCK_LEN as usize);
        let mut uploads = Vec::new();
        let settings: Vec<Option<Setting>> = match self.is_gcs && !self.options.uploads.is_empty() {
            true => self.options.uploads.iter().copied().map(Some).collect(),
            false => vec![None],
        };
        for setting in settings {
            let opened = self
                .with(|gcs| {
                    if let Some(setting) = setting {
                        gcs.part_len = setting.len as usize;
                        gcs.parts_at_once = setting.at_once;
                    }
                })
                .await?;
            uploads.push(self.upload(&opened, setting, &block).await?);
        }
        let source = self.source.clone();
        let source = source.ok_or_else(|| Error::invalid("nothing was written to be read"))?;
        let first_byte = self.first_byte(&source).await?;
        let mut downloads = Vec::new();
        for setting in &self.options.downloads {
            let opened = self
                .with(|gcs| {
                    gcs.read_len = setting.len;
                    gcs.reads_at_once = setting.at_once;
                })
                .await?;
            downloads.push(self.download(&opened, *setting, &source).await?);
        }
        let best = |measured: &[Measured]| {
            recommended(measured, self.options.bytes).filter(|_| self.is_gcs)
        };
        Ok(BenchReport {
            store: self.url.to_owned(),
            recommended_upload: best(&uploads),
            recommended_download: best(&downloads),
            uploads,
            downloads,
            first_byte,
        })
    }

    /// Writes an object as a save writes a pack.
    async fn upload(
        &mut self,
        opened: &Opened,
        setting: Option<Setting>,
        block: &Bytes,
    ) -> Result<Measured> {
        let options = self.options;
        let cancel = &options.cancel;
        let name = format!("{}-{}{PART_SUFFIX}", self.scratch, self.begun);
        if cancel.is_cancelled() {
            return Err(Error::interrupted());
        }
        // The caller's own store says what is wrong with a bucket, once.
        if self.begun == 0
            && let Some(gcs) = &self.store.gcs
        {
            gcs.advise().await;
        }
        self.begun += 1;
        self.left.push(name.clone());
        let before = opened.stats();
        let started = Instant::now();
        let mut writer = opened.backend.create(&name).await?;
        let mut written = 0;
        let filled = loop {
            let len = BLOCK_LEN.min(options.bytes - written);
            if len == 0 || (written > 0 && started.elapsed() >= options.time_limit) {
                break Ok(());
            }
            let wrote = tokio::select! {
                wrote = writer.write(block.slice(..len as usize)) => wrote,
                () = cancel.cancelled() => Err(Error::interrupted()),
            };
            if let Err(e) = wrote {
                break Err(e);
            }
            written += len;
            options.progress.add_stored(len);
        };
        if let Err(e) = filled {
            give_up(&name, writer).await;
            return Err(e);
        }
        let meta = tokio::select! {
            finished = writer.finish() => finished?,
            () = async { cancel.cancelled().await; tokio::time::sleep(GRACE).await } => {
                self.cut_off = true;
                return Err(Error::interrupted());
            }
        };
        let measured = opened.measured(setting, written, started.elapsed(), &before);
        // Only the longest one is kept, to be read.
        let unused = match &self.source {
            Some(longest) if longest.len >= meta.len => Some(meta),
            _ => self.source.replace(meta),
        };
        if let Some(unused) = unused {
            opened.backend.delete(&unused.name, None).await?;
            self.left.retain(|left| *left != unused.name);
        }
        Ok(measured)
    }

    async fn first_byte(&self, source: &ObjectMeta) -> Result<FirstByte> {
        let opened = self.with(|_| ()).await?;
        let len = FIRST_BYTES.min(source.len);
        let mut times = Vec::new();
        let started = Instant::now();
        for number in 0..self.options.latency_reads as u64 {
            if !times.is_empty() && started.elapsed() >= self.options.time_limit {
                break;
            }
            // Here and there, so that nothing near the last read helps.
            let at = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (source.len - len + 1);
            let asked = Instant::now();
            self.read(&opened, source, at..at + len).await?;
            times.push(asked.elapsed().as_micros() as u64);
        }
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1];
        Ok(FirstByte {
            reads: times.len(),
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
        })
    }

    /// Reads ranges in order as a restore reads a pack, from the beginning again where the object ends too soon.
    async fn download(
        &self,
        opened: &Opened,
        setting: Setting,
        source: &ObjectMeta,
    ) -> Result<Measured> {
        let mut ranges = Vec::new();
        let (mut planned, mut at) = (0, 0);
        while planned < self.options.bytes {
            let end = source
                .len
                .min(at + setting.len)
                .min(at + self.options.bytes - planned);
            ranges.push(at..end);
            planned += end - at;
            at = if end == source.len { 0 } else { end };
        }
        let before = opened.stats();
        let started = Instant::now();
        let timely = ranges
            .into_iter()
            .enumerate()
            .take_while(|(number, _)| *number == 0 || started.elapsed() < self.options.time_limit);
        let reads = stream::iter(timely).map(|(_, range)| self.read(opened, source, range));
        let mut reads = std::pin::pin!(reads.buffer_unordered(setting.at_once));
        let mut bytes = 0;
        while let Some(len) = reads.next().await {
            let len = len?;
            bytes += len;
            self.options.progress.add_read(len);
        }
        Ok(opened.measured(Some(setting), bytes, started.elapsed(), &before))
    }

    async fn read(
        &self,
        opened: &Opened,
        source: &ObjectMeta,
        range: std::ops::Range<u64>,
    ) -> Result<u64> {
        let len = range.end - range.start;
        let read =
            opened
                .backend
                .read(&source.name, ReadRange::Exact(range), Some(&source.version));
        let read = tokio::select! {
            read = read => read?,
            () = self.options.cancel.cancelled() => return Err(Error::interrupted()),
        };
        match read.bytes.len() as u64 == len {
            true => Ok(len),
            false => Err(Error::damaged(&source.name, "a read of it came short")),
        }
    }

    /// Removes everything that may be there. An object that is not there any more, or never was, is none that is left.
    async fn remove_all(&self) -> Result<()> {
        let backend = &*self.store.backend;
        let removals = self.left.iter().map(|name| async move {
            let removed = backend.delete(name, None).await;
            let removed = match removed {
                Err(e) if e.kind() == ErrorKind::Forbidden => match backend.head(name).await {
                    Err(absent) if absent.is_absence() => Ok(()),
                    _ => Err(e),
                },
                removed => removed,
            };
            match self.cut_off {
                true => removed.and(backend.remove_leftovers(name).await),
                false => removed,
            }
        });
        let removed = futures::future::join_all(removals).await;
        removed.into_iter().collect::<Result<()>>().map_err(|e| {
            let what = format!(
                "objects of {} named {}* may be left",
                self.url, self.scratch
            );
            Error::new(ErrorKind::Store, what)
                .because(e)
                .hint("remove them by hand")
        })
    }
}

async fn give_up(name: &str, writer: Box<dyn ObjectWriter>) {
    if let Err(error) = writer.abort().await {
        tracing::warn!(object = name, %error, "an unfinished object could not be given up");
    }
}

/// Bytes that nothing on the way makes smaller.
fn noise(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes.into()
}
