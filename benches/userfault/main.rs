//! Memory that is served by userfaultfd: what a fault, a filled byte and a zero cost beside a bare handler that has its bytes in one buffer, and how long a
//! working set, a hundred faults and many clones take behind a distant bucket.
//!
//! Usage: cargo bench --bench userfault [-- [local] [sets] [latency] [clones] [--rounds N]]
//!
//! `local` needs memory for three times 256 MiB, the others for three times 2 GiB. All figures are medians (least..greatest) over the rounds, which take
//! turns; ratios are of medians of the same run.

mod bare;
mod plain;

use std::{
    ops::Range,
    sync::{Barrier, Mutex, atomic::AtomicBool, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use podsnap::{
    Input, NewSection, OpenOptions, Role, SaveOptions, SectionReader, Snapshot, Store,
    store::GcsOptions,
    userfault::{
        Features, MappedSection, MemoryServer, Region, ServeOptions, SharedMemory, Userfault,
    },
};
use podsnap_gcs_server::{AGENT_TOKEN, Config, GcsServer, Operation};

const PAGE: u64 = 4096;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Less than what a store's readers keep decoded: its bytes are at hand.
const LOCAL_LEN: u64 = 48 * MIB;

/// Bytes of zeros that are filled.
const ZEROS_LEN: u64 = 512 * MIB;

/// The section in the bucket, the part of it that is touched, and in what pieces.
const DISTANT_LEN: u64 = 2048 * MIB;
const WORKING_SET: u64 = DISTANT_LEN / 20;
const TOUCH_LEN: u64 = 64 * KIB;

/// Threads that touch a working set.
const TOUCHING: usize = 8;

/// The shaped link.
const FIRST_BYTE: Duration = Duration::from_millis(20);
const STREAM_BYTES_PER_S: u64 = 50_000_000;
const TOTAL_BYTES_PER_S: u64 = 400_000_000;

const CLONES: usize = 32;
const CLONED_LEN: u64 = 1024 * MIB;

fn main() {
    let mut arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let mut rounds = 5;
    if let Some(at) = arguments.iter().position(|a| a == "--rounds") {
        rounds = arguments[at + 1].parse().expect("--rounds takes a number");
        arguments.drain(at..at + 2);
    }
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    if let Err(e) = Features::probe() {
        eprintln!("SKIPPED: userfault: {e}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _entered = runtime.enter();
    if wanted("local") {
        local(&runtime, rounds);
    }
    let distant = ["sets", "latency", "clones"];
    if distant.into_iter().any(wanted) {
        bucket(&runtime, rounds, wanted);
    }
}

/// Costs beside a bare handler.
fn local(runtime: &tokio::runtime::Runtime, rounds: usize) {
    let bytes = noise(1, LOCAL_LEN);
    let store = Store::open("memory://bench").expect("a store in memory");
    let snapshot = runtime.block_on(async {
        save(&store, "noise", bytes.clone()).await;
        save(&store, "zeros", vec![0; ZEROS_LEN as usize]).await;
        store.snapshot(&"noise".parse().unwrap()).await.unwrap()
    });
    let zeros = runtime
        .block_on(store.snapshot(&"zeros".parse().unwrap()))
        .unwrap();
    let reader = snapshot.reader(0);
    let at_hand = |reader: &SectionReader| {
        let mut all = vec![0; LOCAL_LEN as usize];
        runtime.block_on(reader.read_at(&mut all, 0)).unwrap();
    };

    let mut table = Table::new("seconds", &["bare", "podsnap"]);
    for _ in 0..rounds {
        at_hand(&reader);
        for (label, stride, regions) in [
            (
                "a fault of 4 KiB, us",
                PAGE,
                apart as fn(u64) -> Vec<Range<u64>>,
            ),
            ("a fault of 64 KiB, us", 64 * KIB, whole),
        ] {
            let count = LOCAL_LEN / stride;
            let bare = faults_bare(&bytes, stride, regions);
            let ours = faults_served(&reader, stride, regions);
            table.note(label, 0, bare.as_secs_f64() / count as f64 * 1e6);
            table.note(label, 1, ours.as_secs_f64() / count as f64 * 1e6);
        }
        let gib = |len: u64, took: Duration| took.as_secs_f64() * (1 << 30) as f64 / len as f64;
        let label = "filling memory, s/GiB";
        table.note(label, 0, gib(LOCAL_LEN, bare::fill_by_copy(&bytes)));
        table.note(label, 1, gib(LOCAL_LEN, filled(runtime, &reader)));
        let label = "filling a memfd, s/GiB";
        table.note(label, 0, gib(LOCAL_LEN, bare::fill_memfd(&bytes)));
        table.note(label, 1, gib(LOCAL_LEN, filled_memfd(runtime, &reader)));
        let label = "filling zeros, s/GiB";
        table.note(label, 0, gib(ZEROS_LEN, bare::fill_by_zeros(ZEROS_LEN)));
        table.note(label, 1, gib(ZEROS_LEN, filled(runtime, &zeros.reader(0))));
    }
    table.print(
        "beside a bare handler with its bytes in one buffer",
        "x bare",
    );
}

/// All in one piece.
fn whole(len: u64) -> Vec<Range<u64>> {
    std::iter::once(0..len).collect()
}

/// Page by page with a page between them: a fault can bring no more than its page.
fn apart(len: u64) -> Vec<Range<u64>> {
    (0..len / PAGE)
        .map(|n| 2 * n * PAGE..(2 * n + 1) * PAGE)
        .collect()
}

/// Where the touches go, in random order.
fn places(regions: &[Range<u64>], stride: u64) -> Vec<u64> {
    let mut places: Vec<u64> = regions
        .iter()
        .flat_map(|region| region.clone().step_by(stride as usize))
        .collect();
    shuffle(&mut places, 7);
    places
}

fn faults_bare(bytes: &[u8], stride: u64, regions: fn(u64) -> Vec<Range<u64>>) -> Duration {
    let regions = regions(bytes.len() as u64);
    let memory = bare::Mapping::new(regions.last().unwrap().end);
    let handler = bare::Handler::start(&memory, &regions, bytes, stride);
    let took = touch(memory.start, &places(&regions, stride));
    drop(handler);
    took
}

fn faults_served(
    reader: &SectionReader,
    stride: u64,
    regions: fn(u64) -> Vec<Range<u64>>,
) -> Duration {
    let ranges = regions(reader.len());
    let memory = bare::Mapping::new(ranges.last().unwrap().end);
    let userfault = Userfault::open().unwrap();
    let mut section_offset = 0;
    let mut regions = Vec::new();
    for range in &ranges {
        let addresses = memory.start + range.start..memory.start + range.end;
        userfault.register(addresses.clone()).unwrap();
        regions.push(Region {
            addresses,
            section_offset,
            page_size: PAGE,
        });
        section_offset += range.end - range.start;
    }
    let mut options = ServeOptions::default();
    options.fill = false;
    let server = MemoryServer::start(userfault, reader.clone(), &regions, options).unwrap();
    let took = touch(memory.start, &places(&ranges, stride));
    drop(server);
    took
}

fn filled(runtime: &tokio::runtime::Runtime, reader: &SectionReader) -> Duration {
    let started = Instant::now();
    let memory = MappedSection::new(reader.clone(), ServeOptions::default()).unwrap();
    runtime.block_on(memory.server().filled()).unwrap();
    let took = started.elapsed();
    drop(memory);
    took
}

fn filled_memfd(runtime: &tokio::runtime::Runtime, reader: &SectionReader) -> Duration {
    let started = Instant::now();
    let memory = SharedMemory::new(reader.clone(), PAGE).unwrap();
    runtime.block_on(memory.fill(&[])).unwrap();
    started.elapsed()
}

/// Touches addresses one after another.
fn touch(base: u64, places: &[u64]) -> Duration {
    let started = Instant::now();
    for place in places {
        read_byte(base + place);
    }
    started.elapsed()
}

fn read_byte(address: u64) -> u8 {
    let pointer = std::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: callers pass addresses of memory that is mapped and served.
    unsafe { pointer.read_volatile() }
}

/// Behind a link.
fn bucket(runtime: &tokio::runtime::Runtime, rounds: usize, wanted: impl Fn(&str) -> bool) {
    let mut config = Config::tenant("bench", "tenant/");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    let server = GcsServer::start(config).expect("a server on loopback");
    let open = || {
        let gcs = GcsOptions {
            bearer_token: Some(AGENT_TOKEN.into()),
            endpoint: Some(server.url()),
            ..GcsOptions::default()
        };
        let options = OpenOptions {
            gcs,
            ..OpenOptions::default()
        };
        Store::open_with("gs://bench/tenant/store", &options, None).unwrap()
    };
    let id = "distant".parse().unwrap();
    runtime.block_on(save(&open(), "distant", noise(2, DISTANT_LEN)));
    let link = |total: u64| {
        server.configure(|c| {
            c.link.first_byte_ms = FIRST_BYTE.as_millis() as u64;
            c.link.stream_bytes_per_s = if total == 0 { 0 } else { STREAM_BYTES_PER_S };
            c.link.total_bytes_per_s = total;
        });
    };
    let snapshot = || -> Snapshot { runtime.block_on(open().snapshot(&id)).unwrap() };
    if wanted("sets") {
        link(TOTAL_BYTES_PER_S);
        sets(runtime, &server, rounds.min(3), &snapshot);
    }
    if wanted("latency") {
        let mut table = Table::new("round trips of 20 ms", &["p50", "p99", "max"]);
        // Latency alone: no bandwidth to wait for.
        link(0);
        for _ in 0..rounds {
            let memory = unfilled(snapshot().reader(0));
            server.clear_log();
            note_latencies(&mut table, "100 faults at once", at_once(&memory, 100));
            let log = server.log();
            let reads = log.of(Operation::GetMedia);
            let [opened, open] = runtime.block_on(plain::repeat(
                server.address(),
                &reads[reads.len().saturating_sub(100)..],
            ));
            note_latencies(
                &mut table,
                "their requests alone, opening connections",
                opened,
            );
            note_latencies(&mut table, "their requests alone, on connections", open);
        }
        link(TOTAL_BYTES_PER_S);
        for _ in 0..rounds.min(3) {
            let reader = snapshot().reader(0);
            let memory = MappedSection::new(reader, ServeOptions::default()).unwrap();
            let label = "one after another beside the filling";
            note_latencies(&mut table, label, beside_filling(&memory));
        }
        table.print("latency of faults", "");
    }
    if wanted("clones") {
        clones(runtime, &server, open());
    }
}

/// All of a section, and the part of it that is touched, with and without knowing before which.
fn sets(
    runtime: &tokio::runtime::Runtime,
    server: &GcsServer,
    rounds: usize,
    snapshot: &dyn Fn() -> Snapshot,
) {
    let mut table = Table::new("seconds and bytes", &["took", "MiB", "requests"]);
    let note_reads = |table: &mut Table, row: &str| {
        let log = server.log();
        let reads = log.of(Operation::GetMedia);
        let bytes: u64 = reads.iter().map(|read| read.bytes_out).sum();
        table.note(row, 1, bytes as f64 / MIB as f64);
        table.note(row, 2, reads.len() as f64);
    };
    for _ in 0..rounds {
        let all = snapshot();
        server.clear_log();
        let started = Instant::now();
        let memory = MappedSection::new(all.reader(0), ServeOptions::default()).unwrap();
        runtime.block_on(memory.server().filled()).unwrap();
        table.note("all of it", 0, started.elapsed().as_secs_f64());
        note_reads(&mut table, "all of it");
        drop(memory);

        let recording = snapshot().record();
        server.clear_log();
        let took = touch_working_set(recording.snapshot().reader(0), Vec::new(), None);
        table.note("working set, not known", 0, took.as_secs_f64());
        note_reads(&mut table, "working set, not known");
        runtime.block_on(recording.store(true)).unwrap();

        let again = snapshot();
        server.clear_log();
        let started = Instant::now();
        let learned = runtime
            .block_on(again.working_set())
            .unwrap()
            .expect("it was stored");
        let first = learned.ranges(0);
        let replay = runtime.spawn(async move { learned.prefetch(&[0]).await });
        let took = touch_working_set(again.reader(0), first, Some(started));
        replay.abort();
        table.note("working set, recorded", 0, took.as_secs_f64());
        note_reads(&mut table, "working set, recorded");
    }
    table.print(
        &format!(
            "{} MiB through 20 ms, 50 MB/s a stream, 400 MB/s in all; working set of {} MiB in pieces of 64 KiB, touched by {TOUCHING} threads at random",
            DISTANT_LEN / MIB,
            WORKING_SET / MIB
        ),
        "",
    );
}

fn unfilled(reader: SectionReader) -> MappedSection {
    let mut options = ServeOptions::default();
    options.fill = false;
    MappedSection::new(reader, options).unwrap()
}

/// Touches the working set; it is filled first if it is known, and nothing else is.
fn touch_working_set(
    reader: SectionReader,
    first: Vec<Range<u64>>,
    started: Option<Instant>,
) -> Duration {
    let started = started.unwrap_or_else(Instant::now);
    let mut options = ServeOptions::default();
    options.fill = !first.is_empty();
    options.first = first;
    let memory = MappedSection::new(reader, options).unwrap();
    let mut pieces: Vec<u64> = (0..DISTANT_LEN / TOUCH_LEN)
        .map(|n| n * TOUCH_LEN)
        .collect();
    shuffle(&mut pieces, 11);
    pieces.truncate((WORKING_SET / TOUCH_LEN) as usize);
    let base = memory.as_ptr().expose_provenance() as u64;
    let share = pieces.len().div_ceil(TOUCHING);
    std::thread::scope(|scope| {
        for pieces in pieces.chunks(share) {
            scope.spawn(move || {
                for piece in pieces {
                    for page in (0..TOUCH_LEN).step_by(PAGE as usize) {
                        read_byte(base + piece + page);
                    }
                }
            });
        }
    });
    started.elapsed()
}

/// So many threads touch a page each, far from one another, at the same moment.
fn at_once(memory: &MappedSection, count: u64) -> Vec<Duration> {
    let base = memory.as_ptr().expose_provenance() as u64;
    let step = memory.len() as u64 / count / PAGE * PAGE;
    // Whatever a section needs besides, before its first read and soon after, is no part of it.
    read_byte(base + step / 2 / PAGE * PAGE);
    std::thread::sleep(Duration::from_millis(500));
    let barrier = Barrier::new(count as usize);
    let latencies = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..count {
            let (barrier, latencies) = (&barrier, &latencies);
            scope.spawn(move || {
                barrier.wait();
                let started = Instant::now();
                read_byte(base + number * step);
                latencies.lock().unwrap().push(started.elapsed());
                // A thread that ends takes a processor from those who wait.
                barrier.wait();
            });
        }
    });
    latencies.into_inner().unwrap()
}

/// Touches pages at random as long as most of the memory is still to be filled.
fn beside_filling(memory: &MappedSection) -> Vec<Duration> {
    let base = memory.as_ptr().expose_provenance() as u64;
    let mut pages: Vec<u64> = (0..DISTANT_LEN / PAGE).map(|n| n * PAGE).collect();
    shuffle(&mut pages, 13);
    let mut latencies = Vec::new();
    for page in pages {
        let progress = memory.server().progress();
        if latencies.len() == 200 || progress.installed_bytes > progress.total_bytes / 2 {
            break;
        }
        let started = Instant::now();
        read_byte(base + page);
        let took = started.elapsed();
        // What was there already was no fault.
        if took > Duration::from_micros(200) {
            latencies.push(took);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    latencies
}

fn note_latencies(table: &mut Table, label: &str, mut latencies: Vec<Duration>) {
    latencies.sort_unstable();
    let trips = |share: f64| {
        let at = ((latencies.len() - 1) as f64 * share).ceil() as usize;
        latencies[at].as_secs_f64() / FIRST_BYTE.as_secs_f64()
    };
    for (column, share) in [0.5, 0.99, 1.0].into_iter().enumerate() {
        table.note(label, column, trips(share));
    }
}

/// Many private mappings of one memfd.
fn clones(runtime: &tokio::runtime::Runtime, server: &GcsServer, store: Store) {
    server.configure(|c| c.link = Default::default());
    runtime.block_on(save(&store, "cloned", noise(3, CLONED_LEN)));
    let snapshot = runtime
        .block_on(store.snapshot(&"cloned".parse().unwrap()))
        .unwrap();
    server.clear_log();
    let before = Memory::now();
    let shared = SharedMemory::new(snapshot.reader(0), PAGE).unwrap();
    let clones: Vec<_> = (0..CLONES)
        .map(|_| MappedSection::of(&shared, ServeOptions::default()).unwrap())
        .collect();
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for clone in &clones {
            let failed = &failed;
            let base = clone.as_ptr().expose_provenance() as u64;
            scope.spawn(move || {
                let mut sum = 0_u64;
                for page in (0..CLONED_LEN).step_by(PAGE as usize) {
                    sum += u64::from(read_byte(base + page));
                }
                failed.fetch_or(sum == 0, SeqCst);
            });
        }
    });
    assert!(!failed.load(SeqCst), "a clone read nothing but zeros");
    let after = Memory::now();
    let read: u64 = server
        .log()
        .of(Operation::GetMedia)
        .iter()
        .map(|e| e.bytes_out)
        .sum();
    let part = |bytes: u64| bytes as f64 / CLONED_LEN as f64;
    println!(
        "{CLONES} clones of {} MiB, every page read: memory {:.3} of one, page tables {:.3} besides; {:.3} times its bytes from the bucket\n",
        CLONED_LEN / MIB,
        part(after.pages - before.pages),
        part(after.tables - before.tables),
        part(read)
    );
}

/// What this process has in memory, in bytes.
struct Memory {
    /// Its own and shared pages, each once.
    pages: u64,
    /// What the kernel needs to map them.
    tables: u64,
}

impl Memory {
    fn now() -> Self {
        let kib = |file: &str, key: &str| -> u64 {
            let text = std::fs::read_to_string(file).unwrap();
            let line = text.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        Self {
            pages: kib("/proc/self/smaps_rollup", "Pss:") * KIB,
            tables: kib("/proc/self/status", "VmPTE:") * KIB,
        }
    }
}

async fn save(store: &Store, id: &str, bytes: Vec<u8>) {
    let mut writer = store
        .save(&id.parse().unwrap(), SaveOptions::default())
        .await
        .unwrap();
    let input = Input::stream(std::io::Cursor::new(bytes), "bench");
    writer
        .add(NewSection::blob(Role::Memory, "", input))
        .await
        .unwrap();
    writer.finish().await.unwrap();
}

/// Xorshift: nothing of it compresses, and no two pages are alike.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len as usize);
    while (bytes.len() as u64) < len {
        state = next(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}

fn shuffle(items: &mut [u64], seed: u64) {
    let mut state = seed;
    for at in (1..items.len()).rev() {
        state = next(state);
        items.swap(at, (state % (at as u64 + 1)) as usize);
    }
}

/// Figures by row and column.
struct Table {
    unit: &'static str,
    columns: &'static [&'static str],
    rows: Vec<(String, Vec<Vec<f64>>)>,
}

impl Table {
    fn new(unit: &'static str, columns: &'static [&'static str]) -> Self {
        Self {
            unit,
            columns,
            rows: Vec::new(),
        }
    }

    fn note(&mut self, row: &str, column: usize, value: f64) {
        let at = match self.rows.iter().position(|(label, _)| label == row) {
            Some(at) => at,
            None => {
                self.rows
                    .push((row.to_owned(), vec![Vec::new(); self.columns.len()]));
                self.rows.len() - 1
            }
        };
        self.rows[at].1[column].push(value);
    }

    /// Prints it as Markdown; `ratio` names a last column of the second over the first.
    fn print(&mut self, title: &str, ratio: &str) {
        println!("{title}; {}\n", self.unit);
        let mut heading = vec![""];
        heading.extend(self.columns);
        if !ratio.is_empty() {
            heading.push(ratio);
        }
        println!("| {} |", heading.join(" | "));
        println!("| --- |{}", " ---: |".repeat(heading.len() - 1));
        for (label, columns) in &mut self.rows {
            let mut cells = vec![label.clone()];
            for values in columns.iter_mut() {
                values.sort_unstable_by(f64::total_cmp);
                let (least, most) = (values[0], values[values.len() - 1]);
                cells.push(format!("{:.2} ({least:.2}..{most:.2})", median(values)));
            }
            if !ratio.is_empty() {
                cells.push(format!("{:.2}", median(&columns[1]) / median(&columns[0])));
            }
            println!("| {} |", cells.join(" | "));
        }
        println!();
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}
