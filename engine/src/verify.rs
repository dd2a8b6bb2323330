//! Verification: that every byte a snapshot needs is there and right, without writing any of it anywhere.
//!
//! A whole verification goes through every pack the snapshot names, its own and borrowed ones: header, footer, index, the object's CRC-32C and
//! every frame, whether this snapshot needs it or not. A verification of some sections or of a sample looks only at the
//! frames that these need.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::{
    ChunkId, FRAME_HEADER_LEN, HEADER_LEN, Header,
    codec::Decoder,
    frame,
    manifest::{Location, PackInfo},
    pack::{PackIndex, PackIndexEntry},
    scan::{FrameScanner, Scanned},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    frames,
    progress::Progress,
    restore::{
        Damage, RestoreOptions,
        fetch::{self, Sink},
        plan::{Plan, PlannedChunk},
    },
    snapshot::{Snapshot, read_tail},
    store::ReadRange,
};

/// A pack's index longer than this, in bytes, is refused.
const MAX_INDEX_LEN: u64 = 1 << 30;

/// What is verified, and how thoroughly. The default verifies everything.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://verify")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// use podsnap::VerifyOptions;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let everything = snapshot.verify(&store, &VerifyOptions::default()).await?;
/// let one_in_twenty = VerifyOptions {
///     sample: Some(0.05),
///     ..VerifyOptions::default()
/// };
/// let sample = snapshot.verify(&store, &one_in_twenty).await?;
/// assert!(sample.is_sound() && sample.chunks < everything.chunks);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Numbers of the sections; all if empty.
    pub sections: Vec<usize>,
    /// Share of the chunks to look at, between 0 and 1; all if `None`.
    pub sample: Option<f64>,
    /// Ends the verification with [`ErrorKind::Interrupted`] when it is cancelled.
    pub cancel: CancellationToken,
    /// Where the verification counts what it does.
    pub progress: Progress,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct VerifyReport {
    /// Chunks decoded and compared with their ids.
    pub chunks: u64,
    /// Bytes of these chunks.
    pub raw_bytes: u64,
    /// Bytes read from packs.
    pub read_bytes: u64,
    /// Packs gone through as a whole.
    pub packs: u64,
    /// Everything that is wrong.
    pub damage: Vec<Damage>,
    /// Packs whose index had to be made anew by scanning their frames.
    pub rebuilt_indexes: Vec<String>,
    /// Time in milliseconds.
    pub elapsed_ms: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// What worker threads add to while they verify.
#[derive(Default)]
struct Findings {
    chunks: u64,
    raw_bytes: u64,
    damage: Vec<Damage>,
}

impl Snapshot {
    /// Verifies the snapshot. Damage is reported, not returned as an error; an error means that the store could not be asked.
    pub async fn verify(&self, store: &Store, options: &VerifyOptions) -> Result<VerifyReport> {
        let started = Instant::now();
        let chosen = RestoreOptions {
            sections: options.sections.clone(),
            ..RestoreOptions::default()
        };
        let sections = self.chosen(&chosen)?;
        let findings = Arc::new(Mutex::new(Findings::default()));
        let mut report = VerifyReport::default();
        let mut plan = Plan::default();
        for (number, section) in sections.iter().enumerate() {
            let (_, lost) = self
                .plan_section(&mut plan, number as u32, *section)
                .await?;
            for (range, error) in lost {
                let damage = self.lose(*section, range, &error);
                note(&findings, damage.what, damage.lost);
            }
        }
        let read_before = options.progress.snapshot().read_bytes;
        match options.sample {
            None if options.sections.is_empty() => {
                self.verify_header(&findings).await?;
                self.verify_packs(store, plan, &sections, options, &findings, &mut report)
                    .await?;
            }
            sample => {
                if let Some(share) = sample {
                    plan.sample(share);
                }
                let total = plan.chunks.iter().map(|c| u64::from(c.chunk.raw_len)).sum();
                options.progress.add_total(total);
                let sink = self.verify_sink(&sections, findings.clone(), &options.progress);
                fetch::fetch(store, self, plan, sink, &options.progress, &options.cancel).await?;
            }
        }
        let findings = std::mem::take(&mut *findings.lock().expect("no panic while held"));
        report.chunks = findings.chunks;
        report.raw_bytes = findings.raw_bytes;
        report.damage.extend(findings.damage);
        report.read_bytes = options.progress.snapshot().read_bytes - read_before;
        report.elapsed_ms = started.elapsed().as_millis() as u64;
        Ok(report)
    }

    fn verify_sink(
        &self,
        sections: &[usize],
        findings: Arc<Mutex<Findings>>,
        progress: &Progress,
    ) -> Sink {
        let (snapshot, sections, progress) = (self.clone(), sections.to_vec(), progress.clone());
        Arc::new(move |planned, arrived| {
            let mut findings = findings.lock().expect("no panic while held");
            match arrived {
                Ok(bytes) => {
                    findings.chunks += 1;
                    findings.raw_bytes += bytes.len() as u64;
                    progress.add_restored(bytes.len() as u64);
                }
                Err(e) => findings
                    .damage
                    .push(snapshot.damage(&sections, planned, e.to_string())),
            }
            Ok(())
        })
    }

    fn damage(&self, sections: &[usize], planned: &PlannedChunk, what: String) -> Damage {
        let lost = planned
            .placements
            .iter()
            .map(|p| self.lost(sections[p.target as usize], p))
            .collect();
        Damage { what, lost }
    }

    /// The manifest's header must be the one its directory repeats.
    async fn verify_header(&self, findings: &Mutex<Findings>) -> Result<()> {
        let compare = || async {
            let range = ReadRange::Exact(0..HEADER_LEN as u64);
            let read = self.backend.read(&self.object, range, None).await?;
            same_header(&read.bytes, &self.directory().header)
                .map_err(|why| Error::damaged(&self.object, why))
        };
        match frames::reread(compare).await {
            Err(e) if e.kind() == ErrorKind::Damaged => {
                note(findings, e.to_string(), Vec::new());
                Ok(())
            }
            compared => compared,
        }
    }

    async fn verify_packs(
        &self,
        store: &Store,
        plan: Plan,
        sections: &[usize],
        options: &VerifyOptions,
        findings: &Arc<Mutex<Findings>>,
        report: &mut VerifyReport,
    ) -> Result<()> {
        options
            .progress
            .add_total(plan.chunks.iter().map(|c| u64::from(c.chunk.raw_len)).sum());
        let mut wanted: BTreeMap<u32, BTreeMap<u64, PlannedChunk>> = BTreeMap::new();
        for planned in plan.chunks {
            let Location { pack, offset, .. } = planned.chunk.location;
            match wanted.entry(pack).or_default().entry(offset) {
                Entry::Vacant(place) => drop(place.insert(planned)),
                Entry::Occupied(_) => {
                    let object = self.pack_object(&self.directory().packs[pack as usize]);
                    let place = frames::place(&object, offset);
                    let what = format!("{place} is damaged: the manifest has two chunks there");
                    let damage = self.damage(sections, &planned, what);
                    note(findings, damage.what, damage.lost);
                }
            }
        }
        for (number, pack) in self.directory().packs.iter().enumerate() {
            let wanted = wanted.remove(&(number as u32)).unwrap_or_default();
            let pass = PackPass {
                snapshot: self,
                store,
                pack,
                sections,
                wanted: Arc::new(wanted),
                options,
                findings,
            };
            pass.run(report).await?;
        }
        Ok(())
    }
}

fn note(findings: &Mutex<Findings>, what: String, lost: Vec<crate::restore::LostRange>) {
    findings
        .lock()
        .expect("no panic while held")
        .damage
        .push(Damage { what, lost });
}

fn same_header(bytes: &[u8], expected: &Header) -> Result<(), String> {
    match Header::parse(bytes) {
        Err(e) => Err(e.to_string()),
        Ok(found) if found != *expected => Err(format!(
            "its header is that of {} {} of {}",
            found.kind, found.pack_number, found.snapshot
        )),
        Ok(_) => Ok(()),
    }
}

/// One pack, from its first byte to its last.
struct PackPass<'a> {
    snapshot: &'a Snapshot,
    store: &'a Store,
    pack: &'a PackInfo,
    sections: &'a [usize],
    /// Chunks the snapshot needs, by the offset of their frames.
    wanted: Arc<BTreeMap<u64, PlannedChunk>>,
    options: &'a VerifyOptions,
    findings: &'a Arc<Mutex<Findings>>,
}

impl PackPass<'_> {
    async fn run(&self, report: &mut VerifyReport) -> Result<()> {
        let object = self.snapshot.pack_object(self.pack);
        let lose_all = |why: String| {
            for planned in self.wanted.values() {
                let damage = self.snapshot.damage(self.sections, planned, why.clone());
                note(self.findings, damage.what, damage.lost);
            }
            if self.wanted.is_empty() {
                note(self.findings, why, Vec::new());
            }
        };
        let meta = match self.snapshot.backend.head(&object).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                lose_all(Error::missing(&object).to_string());
                return Ok(());
            }
            meta => meta?,
        };
        report.packs += 1;
        // An export's frames end where its extent maps begin; what follows was checked with the manifest.
        let embedded = self.pack.name.is_empty();
        if !embedded && meta.len != self.pack.length {
            let why = format!(
                "{object} is damaged: it has {} bytes, the manifest says {}",
                meta.len, self.pack.length
            );
            note(self.findings, why, Vec::new());
        }
        // What follows the end that the manifest names belongs to nobody.
        let len = meta.len.min(self.pack.length);
        let entries = if embedded {
            let mut end = HEADER_LEN as u64;
            let apart = self.wanted.values().filter(|planned| {
                // Only a made-up manifest has frames that overlap; those left out here will be missed below.
                let frame = planned.frame();
                let apart = frame.start >= end;
                end = if apart { frame.end } else { end };
                apart
            });
            apart.map(from_manifest).collect()
        } else {
            match frames::reread(|| self.index(&object, len)).await {
                Ok(index) => index.entries,
                Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Unsupported) => {
                    note(
                        self.findings,
                        format!("{e}; its frames were found by scanning"),
                        Vec::new(),
                    );
                    report.rebuilt_indexes.push(object.clone());
                    self.scan(&object, len).await?
                }
                Err(e) => return Err(e),
            }
        };
        self.frames(&object, len, entries).await
    }

    /// The pack's index, if header, footer and index are what they must be.
    async fn index(&self, object: &str, len: u64) -> Result<PackIndex> {
        let (footer, trailer, _) =
            read_tail(&*self.snapshot.backend, object, MAX_INDEX_LEN).await?;
        if footer.total_len != len {
            return Err(Error::damaged(object, "it changed while it was verified"));
        }
        let index = PackIndex::parse(&footer, &trailer).map_err(|e| Error::format(object, e))?;
        let header = self
            .snapshot
            .backend
            .read(object, ReadRange::Exact(0..HEADER_LEN as u64), None)
            .await?;
        same_header(&header.bytes, &index.header).map_err(|why| Error::damaged(object, why))?;
        let name = index.header.pack_name().to_string();
        if index.header.snapshot != self.pack.snapshot || name != self.pack.name {
            let is = crate::names::object(&index.header.snapshot, &name);
            return Err(Error::damaged(
                object,
                format!("it is {is}, put in the wrong place"),
            ));
        }
        Ok(index)
    }

    /// The frames of a pack whose index is of no use, found by looking for them.
    async fn scan(&self, object: &str, len: u64) -> Result<Vec<PackIndexEntry>> {
        let mut entries = Vec::new();
        let mut at = HEADER_LEN as u64;
        while at < len {
            let end = len.min(at + SCAN_LEN);
            let read = self
                .snapshot
                .backend
                .read(object, ReadRange::Exact(at..end), None)
                .await?;
            let mut scanner = FrameScanner::new(&read.bytes, at, end == len);
            for scanned in &mut scanner {
                if let Scanned::Frame { offset, header } = scanned {
                    entries.push(PackIndexEntry {
                        codec: header.codec,
                        raw_len: header.raw_len,
                        encoded_len: header.encoded_len,
                        id_prefix: NO_PREFIX,
                        offset,
                    });
                }
            }
            if scanner.trailer_found() || end == len || scanner.reached() <= at {
                break;
            }
            at = scanner.reached();
        }
        Ok(entries)
    }

    /// Goes through the bytes of the pack once: the object's CRC-32C, every frame, every chunk.
    async fn frames(&self, object: &str, len: u64, entries: Vec<PackIndexEntry>) -> Result<()> {
        let backend = &self.snapshot.backend;
        let reads = split(&entries, len, backend.read_len());
        let entries = Arc::new(entries);
        let work = stream::iter(&reads)
            .map(|(range, entries_of)| {
                self.stretch(object, range.clone(), entries.clone(), entries_of.clone())
            })
            .buffered(backend.reads_at_once())
            .try_collect::<Vec<(u32, usize)>>();
        let mut sums = tokio::select! {
            biased;
            () = self.options.cancel.cancelled() => return Err(Error::interrupted()),
            sums = work => sums?,
        };
        let combined = |sums: &[(u32, usize)]| {
            let join = |crc, (next, len): &(u32, usize)| crc32c::crc32c_combine(crc, *next, *len);
            sums.iter().fold(0, join)
        };
        // The frames are right, or known to be wrong; what is left are the bytes before the first and behind the last.
        if combined(&sums) != self.pack.crc32c {
            for ((range, _), sum) in reads.iter().zip(&mut sums) {
                if range.start == 0 || range.end == len {
                    let read = backend.read(object, ReadRange::Exact(range.clone()), None);
                    if let Ok(read) = read.await {
                        *sum = (crc32c::crc32c(&read.bytes), read.bytes.len());
                    }
                }
            }
        }
        let crc = combined(&sums);
        if crc != self.pack.crc32c {
            let why = format!(
                "{object} is damaged: its CRC-32C is {crc:08x}, the manifest says {:08x}",
                self.pack.crc32c
            );
            note(self.findings, why, Vec::new());
        }
        // What the manifest needs must be among the frames that were found.
        for (offset, planned) in &*self.wanted {
            let found = entries.binary_search_by_key(offset, |e| e.offset);
            let encoded_len = planned.chunk.location.encoded_len;
            if found.is_ok_and(|found| entries[found].encoded_len == encoded_len) {
                continue;
            }
            let place = frames::place(object, *offset);
            let damage = self.snapshot.damage(
                self.sections,
                planned,
                format!("{place} is damaged: the frame that the manifest names is not there"),
            );
            note(self.findings, damage.what, damage.lost);
        }
        Ok(())
    }

    /// Reads and checks one stretch of the pack; its CRC-32C and length. One that does not check out is read again.
    async fn stretch(
        &self,
        object: &str,
        range: Range<u64>,
        entries: Arc<Vec<PackIndexEntry>>,
        entries_of: Range<usize>,
    ) -> Result<(u32, usize)> {
        let mut reread = 0;
        loop {
            let wanted = ReadRange::Exact(range.clone());
            let bytes = match self.snapshot.backend.read(object, wanted, None).await {
                Err(e) if e.kind() == ErrorKind::Damaged => {
                    note(self.findings, e.to_string(), Vec::new());
                    return Ok((0, 0));
                }
                read => read?.bytes,
            };
            self.options.progress.add_read(bytes.len() as u64);
            let (entries, entries_of) = (entries.clone(), entries_of.clone());
            let checked = self
                .check(bytes.clone(), range.start, entries, entries_of)
                .await?;
            if checked.wrong.is_empty() || reread == frames::REREADS {
                self.take_in(object, &checked);
                return Ok((checked.crc32c, bytes.len()));
            }
            reread += 1;
        }
    }

    fn take_in(&self, object: &str, checked: &CheckedStretch) {
        self.options.progress.add_restored(checked.raw_bytes);
        {
            let mut findings = self.findings.lock().expect("no panic while held");
            findings.chunks += checked.chunks;
            findings.raw_bytes += checked.raw_bytes;
        }
        for (offset, why) in &checked.wrong {
            let what = format!("{} is damaged: {why}", frames::place(object, *offset));
            let damage = match self.wanted.get(offset) {
                Some(planned) => self.snapshot.damage(self.sections, planned, what),
                None => Damage {
                    what,
                    lost: Vec::new(),
                },
            };
            note(self.findings, damage.what, damage.lost);
        }
    }

    /// Checks the frames of one stretch on the worker pool.
    async fn check(
        &self,
        bytes: Bytes,
        start: u64,
        entries: Arc<Vec<PackIndexEntry>>,
        entries_of: Range<usize>,
    ) -> Result<CheckedStretch> {
        let (wanted, snapshot) = (self.wanted.clone(), self.snapshot.clone());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.store.pool().spawn_fifo(move || {
            let mut decoder = Decoder::new();
            let mut raw = Vec::new();
            let mut done = CheckedStretch {
                crc32c: crc32c::crc32c(&bytes),
                ..CheckedStretch::default()
            };
            for entry in &entries[entries_of] {
                let from = (entry.offset - start) as usize;
                let encoded = &bytes[from..from + FRAME_HEADER_LEN + entry.encoded_len as usize];
                let checked = match wanted.get(&entry.offset) {
                    Some(planned) => frames::decode_checked(
                        encoded,
                        &planned.chunk,
                        snapshot.key.as_ref(),
                        &mut decoder,
                        &mut raw,
                    ),
                    None => check_foreign(encoded, entry, &snapshot, &mut decoder, &mut raw),
                };
                match checked {
                    Ok(()) => {
                        done.chunks += 1;
                        done.raw_bytes += raw.len() as u64;
                    }
                    Err(why) => done.wrong.push((entry.offset, why)),
                }
            }
            let _ = sender.send(done);
        });
        receiver
            .await
            .map_err(|_| Error::new(ErrorKind::Store, "a worker thread died while verifying"))
    }
}

/// What was found in one stretch of a pack.
#[derive(Default)]
struct CheckedStretch {
    crc32c: u32,
    chunks: u64,
    raw_bytes: u64,
    /// Offsets of frames that are not what they must be, and why.
    wrong: Vec<(u64, String)>,
}

/// Bytes read at once when a pack is scanned for frames.
const SCAN_LEN: u64 = 8 << 20;

/// Stands for the id prefix of a frame that was found by scanning.
const NO_PREFIX: [u8; 8] = [0; 8];

fn from_manifest(planned: &PlannedChunk) -> PackIndexEntry {
    PackIndexEntry {
        codec: planned.chunk.codec,
        raw_len: planned.chunk.raw_len,
        encoded_len: planned.chunk.location.encoded_len,
        id_prefix: planned.chunk.id.prefix(),
        offset: planned.chunk.location.offset,
    }
}

/// A frame that this snapshot does not need must still be whole and what the index calls it.
fn check_foreign(
    encoded: &[u8],
    entry: &PackIndexEntry,
    snapshot: &Snapshot,
    decoder: &mut Decoder,
    raw: &mut Vec<u8>,
) -> Result<(), String> {
    frame::decode_frame(encoded, decoder, raw).map_err(|e| e.to_string())?;
    let id = ChunkId::of(raw, snapshot.key.as_ref());
    // A scan knows no ids.
    if entry.id_prefix != NO_PREFIX && id.prefix() != entry.id_prefix {
        return Err(format!(
            "its chunk is {id}, which is not what the index says"
        ));
    }
    Ok(())
}

/// Cuts `0..len` into stretches of some `read_len` bytes that no frame crosses, with the entries in each.
fn split(entries: &[PackIndexEntry], len: u64, read_len: u64) -> Vec<(Range<u64>, Range<usize>)> {
    let mut stretches = Vec::new();
    let (mut start, mut first) = (0, 0);
    for (number, entry) in entries.iter().enumerate() {
        if entry.offset - start >= read_len {
            stretches.push((start..entry.offset, first..number));
            (start, first) = (entry.offset, number);
        }
    }
    if start < len {
        stretches.push((start..len, first..entries.len()));
    }
    stretches
}
