//! What `podsnap mount` learns from being read and the next one makes of it, what `podsnap inspect` shows of it, and the node's cache
//! between processes.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use podsnap_gcs_server::{AGENT, AGENT_TOKEN, Config, Entry, GcsServer, Operation, Permission};
use rustix::process::Signal;
use serde_json::Value;
use support::{Noise, assert_bytes, mounting::*, noise, tool::*};

/// A bucket in which the tool has an agent's rights: no listing.
struct Bucket {
    server: GcsServer,
}

impl Bucket {
    fn new() -> Self {
        let mut config = Config::tenant("snapshots", "tenant/");
        config.rules.mutations_per_second = 0.0;
        config.rules.md5 = false;
        let server = GcsServer::start(config).expect("a server on loopback");
        Self { server }
    }

    fn command(&self, tool: &Tool, args: &[&str]) -> Command {
        let mut command = tool.command(args);
        command
            .env("PODSNAP_STORE", "gs://snapshots/tenant/store")
            .env("STORAGE_EMULATOR_HOST", self.server.url())
            .env("CLOUDSDK_AUTH_ACCESS_TOKEN", AGENT_TOKEN);
        command
    }

    /// Reads of packs since the log was cleared.
    fn pack_reads(&self) -> Vec<Entry> {
        let log = self.server.log();
        let reads = log.of(Operation::GetMedia).into_iter();
        reads
            .filter(|entry| entry.name.contains("/pack-"))
            .cloned()
            .collect()
    }

    /// Waits until the tool has read something and then reads no more.
    fn wait_until_quiet(&self) {
        let started = Instant::now();
        let mut seen = (0, Instant::now());
        while seen.0 == 0 || seen.1.elapsed() < Duration::from_millis(700) {
            assert!(started.elapsed() < Duration::from_secs(60), "never quiet");
            thread::sleep(Duration::from_millis(10));
            let reads = self.pack_reads();
            if reads.len() != seen.0 || reads.iter().any(|read| !read.ended) {
                seen = (reads.len(), Instant::now());
            }
        }
    }
}

/// Offsets of blocks far from each other, in an order of their own; none is the first, which the kernel takes for the start of a file read whole.
fn scattered(count: usize, len: usize) -> Vec<usize> {
    let mut noise = Noise(count as u64);
    let mut offsets: Vec<usize> = (1..=count)
        .map(|i| (i * (len / (count + 1))) & !0xfff)
        .collect();
    for i in 0..count {
        offsets.swap(i, i + noise.below(count - i));
    }
    offsets
}

fn read_blocks(path: &Path, offsets: &[usize], bytes: &[u8]) {
    let file = File::open(path).unwrap();
    let mut found = vec![0; 16 << 10];
    for at in offsets {
        file.read_exact_at(&mut found, *at as u64).unwrap();
        assert_bytes(&found, &bytes[*at..at + found.len()], "a block");
    }
}

fn touches(report: &Value) -> Vec<u64> {
    let touches = report["working_set"]["first_touches"].as_array().unwrap();
    touches
        .iter()
        .map(|touch| touch["offset"].as_u64().unwrap())
        .collect()
}

#[test]
fn what_a_mount_is_read_the_next_one_has_fetched_before() {
    if !can_mount() {
        return;
    }
    let (tool, bucket) = (Tool::new(), Bucket::new());
    let bytes = noise(1, 24 << 20);
    tool.file("ram", &bytes);
    let command = |args: &[&str]| bucket.command(&tool, args);
    finish(command(&["save", "s", "memory=ram"])).ok();
    let offsets = scattered(180, bytes.len());
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt"]));
    bucket.server.clear_log();
    read_blocks(&mounted.dir().join("memory"), &offsets, &bytes);
    let one_by_one = bucket.pack_reads().len();
    assert_eq!(mounted.umount().ok().stderr, "");

    let inspected = || finish(command(&["inspect", "s", "--top", "500", "--json"])).ok();
    let report = inspected().json();
    let expected: Vec<u64> = offsets.iter().map(|at| *at as u64).collect();
    assert_eq!(touches(&report), expected);
    let set = &report["working_set"];
    assert_eq!(set["ranges"], 180);
    assert_eq!(set["bytes"], 180 * (16 << 10));
    assert_eq!(set["page_bytes"], 4096);
    assert_eq!(set["sections"][0]["section"], "memory");
    assert_eq!(set["sections"][0]["bytes"], set["bytes"]);
    let shown = finish(command(&["inspect", "s"])).ok();
    let text = shown.text();
    assert!(
        text.contains("2.95 MB in 180 ranges, 11.7 % of the raw bytes"),
        "{text}"
    );
    assert!(text.contains("What it touched first"), "{text}");

    bucket.server.configure(|c| c.link.first_byte_ms = 20);
    let ways = ["--no-replay", "--no-record"];
    bucket.server.clear_log();
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt", ways[1]]));
    bucket.wait_until_quiet();
    let ahead = bucket.pack_reads().len();
    assert!(
        ahead <= one_by_one / 10,
        "{ahead} reads instead of {one_by_one}"
    );
    bucket.server.clear_log();
    read_blocks(&mounted.dir().join("memory"), &offsets, &bytes);
    assert_eq!(bucket.pack_reads().len(), 0);
    mounted.umount().ok();

    // One that serves memory fills it in the same order, which it is told once.
    bucket.server.clear_log();
    let socket = tool.path("guest.sock");
    let mut server = Running::start(command(&["serve-uffd", "s", "--socket", "guest.sock"]));
    server.wait_until("the socket", || socket.exists());
    bucket.wait_until_quiet();
    let log = bucket.server.log();
    let reads = log.of(Operation::GetMedia).into_iter();
    let of_the_set = reads.filter(|read| read.name.ends_with("/working-set"));
    assert_eq!(of_the_set.count(), 1);
    assert!(bucket.pack_reads().len() <= one_by_one / 10);
    server.signal(Signal::TERM);
    server.finish().ok();

    // And without it, nothing is fetched before it is read.
    bucket.server.clear_log();
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt", ways[0]]));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(bucket.pack_reads().len(), 0);
    let before = inspected().stdout;
    read_blocks(&mounted.dir().join("memory"), &offsets[..3], &bytes);
    mounted.umount().ok();
    // What is known stays, unless it is to be replaced.
    assert_eq!(inspected().stdout, before);
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt", "--record", ways[0]]));
    read_blocks(&mounted.dir().join("memory"), &offsets[..3], &bytes);
    mounted.umount().ok();
    assert_eq!(touches(&inspected().json()), expected[..3]);
}

#[test]
fn a_store_that_takes_no_working_set_is_a_warning() {
    if !can_mount() {
        return;
    }
    let (tool, bucket) = (Tool::new(), Bucket::new());
    tool.file("ram", &noise(1, 1 << 20));
    let command = |args: &[&str]| bucket.command(&tool, args);
    finish(command(&["save", "s", "memory=ram"])).ok();
    bucket
        .server
        .configure(|c| c.revoke(AGENT, Permission::ObjectsCreate));
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt"]));
    fs::read(mounted.dir().join("memory")).unwrap();
    let said = mounted.end(Signal::TERM).ok();
    let said = said.says(&["what was read is not recorded", "working-set"]);
    assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    let mounted = Mounting::of(&tool, command(&["mount", "s", "mnt", "--no-record"]));
    fs::read(mounted.dir().join("memory")).unwrap();
    assert_eq!(mounted.end(Signal::TERM).ok().stderr, "");
}

#[test]
fn a_damaged_working_set_is_a_warning_and_rm_leaves_none() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    let bytes = noise(3, 2 << 20);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram"]);
    tool.save("t", &["memory=ram", "--base", "s"]);
    let object = tool.path("store/s/working-set");
    let read = |mounted: Mounting| {
        let found = fs::read(mounted.dir().join("memory")).unwrap();
        assert_bytes(&found, &bytes, "memory");
        mounted.end(Signal::INT).ok()
    };
    read(Mounting::start(&tool, "s", &["--no-record"]));
    assert!(!object.exists());
    assert_eq!(read(Mounting::start(&tool, "s", &[])).stderr, "");
    assert!(object.exists());
    flip(&object, 300);
    let said = read(Mounting::start(&tool, "s", &["--no-record"]));
    said.says(&[
        "going on without fetching ahead",
        "s/working-set is damaged",
    ]);
    read(Mounting::start(&tool, "s", &[])).says(&["s/working-set is damaged"]);
    // That one has put a good one in its place.
    assert_eq!(read(Mounting::start(&tool, "s", &[])).stderr, "");
    let report = tool.json(&["inspect", "s"]);
    assert_eq!(report["working_set"]["bytes"], 2 << 20);
    assert_eq!(report["problems"], serde_json::json!([]));

    // One that was learned from another snapshot is none.
    fs::copy(&object, tool.path("store/t/working-set")).unwrap();
    assert_eq!(tool.json(&["inspect", "t"])["working_set"], Value::Null);
    assert_eq!(read(Mounting::start(&tool, "t", &[])).stderr, "");
    let report = tool.json(&["inspect", "t"]);
    assert_eq!(report["working_set"]["bytes"], 2 << 20);

    tool.assert_sound("s");
    assert_eq!(tool.listed(), ["t", "s"]);
    tool.run(&["export", "s", "s.podsnap"]).ok();
    let exported = Mounting::start(&tool, "file:s.podsnap", &[]);
    assert_eq!(read(exported).stderr, "");
    tool.run(&["mount", "file:s.podsnap", "mnt", "--record"])
        .ends_with(2)
        .says(&["cannot be recorded"]);
    tool.run(&["rm", "t"]).ok();
    tool.run(&["rm", "s"]).ok();
    assert_eq!(tool.store_files(), [""; 0]);
}

/// A snapshot that is removed while it is mounted: nothing is left of it, and nothing comes after it.
#[test]
fn a_mount_of_a_snapshot_that_went_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    tool.file("ram", &noise(3, 1 << 20));
    tool.save("s", &["memory=ram"]);
    let mounted = Mounting::start(&tool, "s", &[]);
    fs::read(mounted.dir().join("memory")).unwrap();
    tool.run(&["rm", "s"]).ok();
    assert_eq!(mounted.end(Signal::INT).ok().stderr, "");
    assert_eq!(tool.store_files(), [""; 0]);
}

fn cached<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let ways = ["--cache", "cache", "--no-record", "--no-replay"];
    [&["mount", "s"], more, &ways].concat()
}

/// Two processes at once, each reading everything in its own order, from a bucket some way off: its bytes come once.
#[test]
fn two_processes_with_one_cache_read_the_bucket_once() {
    if !can_mount() {
        return;
    }
    let (tool, bucket) = (Tool::new(), Bucket::new());
    let bytes = noise(5, 24 << 20);
    tool.file("ram", &bytes);
    let command = |args: &[&str]| bucket.command(&tool, args);
    finish(command(&["save", "s", "memory=ram"])).ok();
    bucket.server.configure(|c| c.link.first_byte_ms = 10);
    let dirs = ["a", "b"].map(|dir| tool.path(dir));
    let mounted = ["a", "b"].map(|dir| Mounting::on(&tool.path(dir), command(&cached(&[dir]))));
    bucket.server.clear_log();
    thread::scope(|scope| {
        for dir in &dirs {
            let (bytes, path) = (&bytes, dir.join("memory"));
            scope.spawn(move || assert_bytes(&fs::read(path).unwrap(), bytes, "memory"));
        }
    });
    let sent: u64 = bucket.pack_reads().iter().map(|read| read.bytes_out).sum();
    assert!(
        sent >= bytes.len() as u64 && sent <= bytes.len() as u64 * 11 / 10,
        "{sent} bytes were sent of {}",
        bytes.len()
    );
    for mounted in mounted {
        mounted.umount().ok();
    }
    // A third one later on has all of it on the node's disk.
    bucket.server.clear_log();
    let mounted = Mounting::of(&tool, command(&cached(&["mnt"])));
    assert_bytes(
        &fs::read(mounted.dir().join("memory")).unwrap(),
        &bytes,
        "memory",
    );
    assert_eq!(bucket.pack_reads().len(), 0);
    mounted.umount().ok();
}

/// Processes that are killed while they write the cache: the next ones read what is right, go on where those stopped, and the directory does not grow.
#[test]
fn killed_writers_of_a_cache_leave_nothing_wrong_and_no_debris() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    let bytes = noise(6, 32 << 20);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram"]);
    let cache = tool.path("cache");
    let held = || -> u64 {
        let files = fs::read_dir(&cache).into_iter().flatten().flatten();
        files.map(|f| f.metadata().map_or(0, |m| m.len())).sum()
    };
    for round in 1..=6u64 {
        let mut mounted = Mounting::start(&tool, "s", &cached(&["mnt"])[3..]);
        let path = mounted.dir().join("memory");
        let reading = thread::spawn(move || {
            // It is cut off.
            let file = File::open(path)?;
            let mut buf = vec![0; 64 << 10];
            for at in (0..32 << 20).step_by(buf.len()) {
                file.read_exact_at(&mut buf, at as u64)?;
            }
            std::io::Result::Ok(())
        });
        let started = Instant::now();
        while held() < round * (4 << 20) && !reading.is_finished() {
            assert!(started.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
        mounted.kill();
        drop(mounted);
        let _ = reading.join().unwrap();
    }
    let mounted = Mounting::start(&tool, "s", &cached(&["mnt"])[3..]);
    assert_bytes(
        &fs::read(mounted.dir().join("memory")).unwrap(),
        &bytes,
        "memory",
    );
    mounted.umount().ok();
    let files = files(&cache);
    assert!(files.len() <= 3, "{files:?}");
    assert!(held() < (32 << 20) * 21 / 20, "{} bytes", held());
}
