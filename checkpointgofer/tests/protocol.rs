//! Both protocols from the sentry's side: what is written comes back, and a sentry that breaks them harms nobody but itself.

mod support;

use std::{fs, net::UdpSocket, path::Path};

use podsnap_engine::{ErrorKind, Store};
use serde_json::{Value, json};
use support::{
    noise::Noise,
    sentry::{Memory, READ, Sentry, Submission, WRITE},
};
use tempfile::TempDir;

const EINVAL: i32 = 22;
const EFAULT: i32 = 14;
const END_OF_FILE: i32 = -1;

const SAVE: &str = "-allow-checkpoint-writes";
const RESTORE: &str = "-allow-checkpoint-reads";

fn options(dir: &Path, id: &str) -> Value {
    json!({ "store": dir.join("store"), "object_prefix": format!("{id}/") })
}

/// A `checkpoint.img` as far as anybody but gVisor knows.
fn checkpoint() -> Vec<u8> {
    let description = br#"{"compression":"none","runsc_version":"test"}"#;
    let len = (description.len() as u64).to_be_bytes();
    [b"gVisorSF", &len[..], description, b"threads and files"].concat()
}

/// Saves a checkpoint with this memory as a sentry does; whether it is committed.
fn save(dir: &Path, id: &str, checkpoint: &[u8], memory: &Memory) -> bool {
    save_with(dir, &options(dir, id), checkpoint, memory)
}

fn save_with(dir: &Path, options: &Value, checkpoint: &[u8], memory: &Memory) -> bool {
    let sentry = Sentry::start(dir, SAVE, options);
    let files = ["checkpoint.img", "pages_meta.img", "pages.img"];
    let [state, meta, pages] = files.map(|name| sentry.open(name, WRITE).unwrap());
    let number = sentry.register(&pages, memory).unwrap();
    pages.write_all(number, memory.len);
    let kept = Memory::new(b"what belongs where");
    let number = sentry.register(&meta, &kept).unwrap();
    meta.write_all(number, kept.len);
    assert_eq!(
        meta.finalize(),
        Some(0),
        "it is answered before the pages are whole"
    );
    let kept = Memory::new(checkpoint);
    let number = sentry.register(&state, &kept).unwrap();
    state.write_all(number, kept.len);
    assert_eq!(
        pages.finalize(),
        Some(0),
        "it is answered before the others are whole"
    );
    let committed = state.finalize().unwrap();
    let closed = sentry.close(&state);
    assert_eq!(closed.is_ok(), committed == 0, "{closed:?}");
    let content = sentry.hang_up();
    assert_eq!(content, committed == 0);
    committed == 0
}

/// Memory of `len` bytes that nothing compresses.
fn noise(len: usize) -> Memory {
    Memory::new(&support::noise::noise(1, len))
}

/// A directory with a store that has the checkpoint `s` of so many bytes, these, and a sentry that restores it.
fn restoring(len: usize) -> (TempDir, Memory, Sentry) {
    let dir = tempfile::tempdir().unwrap();
    let memory = noise(len);
    assert!(save(dir.path(), "s", &checkpoint(), &memory));
    let sentry = restore(dir.path());
    (dir, memory, sentry)
}

fn restore(dir: &Path) -> Sentry {
    Sentry::start(dir, RESTORE, &options(dir, "s"))
}

fn kind_of_opening(dir: &Path, id: &str) -> Option<ErrorKind> {
    let store = Store::open(dir.join("store").to_str().unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let opened = runtime.block_on(store.snapshot(&id.parse().unwrap()));
    opened.err().map(|e| e.kind())
}

/// Nothing of a save is left but what the store itself keeps.
fn assert_nothing_left(dir: &Path, id: &str) {
    assert_eq!(kind_of_opening(dir, id), Some(ErrorKind::NotFound));
    let left = fs::read_dir(dir.join("store").join(id));
    let left: Vec<_> = left
        .into_iter()
        .flatten()
        .map(|e| e.unwrap().path())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_written_comes_back_at_any_offset_in_any_ranges() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut bytes = support::noise::noise(1, 9_000_001);
    bytes[1_000_000..3_000_000].fill(0);
    assert!(save(dir, "s", &checkpoint(), &Memory::new(&bytes)));
    let sentry = restore(dir);
    let state = sentry.open("checkpoint.img", READ).unwrap();
    // Longer than the file, which is how the sentry finds its end.
    let memory = Memory::new(&[7; 4096]);
    let number = sentry.register(&state, &memory).unwrap();
    let answer = state.submit(&[Submission::new(0, 0, number, &[(0, 4096)])], 1);
    let len = checkpoint().len();
    let answer = answer.unwrap();
    assert_eq!(
        (answer.errno, &answer.completions[..]),
        (0, &[(0, len as u32, END_OF_FILE)][..])
    );
    assert_eq!(memory.bytes()[..len], checkpoint());
    assert_eq!(memory.bytes()[len..], vec![7; 4096 - len]);
    let pages = sentry.open("pages.img", READ).unwrap();
    let memory = Memory::new(&vec![7; 10_000_000]);
    let number = sentry.register_with(&pages, &memory, Value::Null).unwrap();
    // Backwards in the memory, many at once, each in two ranges.
    let mut expected = vec![7; 10_000_000];
    let mut submissions = Vec::new();
    for id in 0..32_u32 {
        let (at, len) = (u64::from(id) * 280_000, 280_000_u64);
        let to = 9_900_000 - (u64::from(id) + 1) * 300_000;
        let ranges = [(to + 100_000, to + 100_001), (to, to + len - 1)];
        submissions.push(Submission::new(id, at as i64, number, &ranges));
        let (at, to) = (at as usize, to as usize);
        expected[to..to + len as usize - 1].copy_from_slice(&bytes[at + 1..at + len as usize]);
    }
    // Where both ranges have a byte, either may win.
    let answer = pages.submit(&submissions, 32).unwrap();
    let mut completions = answer.completions;
    completions.sort_unstable();
    let all: Vec<_> = (0..32).map(|id| (id, 280_000, 0)).collect();
    assert_eq!(completions, all);
    let mut found = memory.bytes();
    for id in 0..32 {
        let twice = 9_900_000 - (id + 1) * 300_000 + 100_000;
        found[twice] = expected[twice];
    }
    assert!(found == expected, "other bytes came back");
    // Behind the end there is nothing.
    let answer = pages.submit(&[Submission::new(3, 9_000_000, number, &[(0, 4096)])], 1);
    assert_eq!(answer.unwrap().completions, [(3, 1, END_OF_FILE)]);
    let answer = pages.submit(&[Submission::new(3, i64::MAX, number, &[(0, 4096)])], 1);
    assert_eq!(answer.unwrap().completions, [(3, 0, END_OF_FILE)]);
    sentry.close(&pages).unwrap();
    assert!(sentry.close(&pages).is_err());
    assert!(sentry.hang_up());
}

#[test]
fn a_checkpoint_that_is_none_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let memory = noise(100_000);
    assert!(!save(dir.path(), "s", b"", &memory));
    assert!(!save(dir.path(), "s", b"gVisorSF but no more", &memory));
    assert!(!save(
        dir.path(),
        "s",
        &support::noise::noise(2, 5000),
        &memory
    ));
    assert_nothing_left(dir.path(), "s");
    assert!(save(dir.path(), "s", &checkpoint(), &memory));
}

#[test]
fn a_sentry_that_goes_away_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let memory = noise(6 << 20);
    // A file is closed before it is whole, and the others are declared whole.
    let sentry = Sentry::start(dir, SAVE, &options(dir, "s"));
    let state = sentry.open("checkpoint.img", WRITE).unwrap();
    let pages = sentry.open("pages.img", WRITE).unwrap();
    let number = sentry.register(&pages, &memory).unwrap();
    pages.write_all(number, memory.len);
    let kept = Memory::new(&checkpoint());
    let number = sentry.register(&state, &kept).unwrap();
    state.write_all(number, kept.len);
    let _ = sentry.close(&pages);
    assert_ne!(state.finalize(), Some(0));
    assert!(!sentry.hang_up());
    assert_nothing_left(dir, "s");
    // The socket is closed in the middle.
    let sentry = Sentry::start(dir, SAVE, &options(dir, "s"));
    let _state = sentry.open("checkpoint.img", WRITE).unwrap();
    let pages = sentry.open("pages.img", WRITE).unwrap();
    let number = sentry.register(&pages, &memory).unwrap();
    pages.write_all(number, memory.len);
    pages.finalize();
    assert!(!sentry.hang_up());
    assert_nothing_left(dir, "s");
}

/// Submissions that break the protocol, for a file of 1 MiB that is registered as 0.
fn violations(max_io_bytes: u32, max_ranges: u32, max_parallel: u32) -> Vec<Submission> {
    let with = |id, file, ranges: &[(u64, u64)]| Submission::new(id, 0, file, ranges);
    let counted = |count, ranges: &[(u64, u64)]| Submission {
        count,
        ..with(0, 0, ranges)
    };
    let too_much = u64::from(max_io_bytes) + 1;
    vec![
        with(max_parallel, 0, &[(0, 4096)]),
        with(u32::MAX, 0, &[(0, 4096)]),
        with(0, 1, &[(0, 4096)]),
        with(0, u32::MAX, &[(0, 4096)]),
        counted(0, &[(0, 4096)]),
        counted(max_ranges + 1, &[(0, 4096)]),
        counted(u32::MAX, &[(0, 4096)]),
        with(0, 0, &[(4096, 4096)]),
        with(0, 0, &[(8192, 4096)]),
        with(0, 0, &[(0, (1 << 20) + 1)]),
        with(0, 0, &[(1 << 20, (1 << 20) + 4096)]),
        with(0, 0, &[(u64::MAX - 1, u64::MAX)]),
        with(0, 0, &[(0, u64::MAX)]),
        with(0, 0, &[(0, 4096), (4096, 4096)]),
        with(0, 0, &vec![(0, 1 << 20); 1 + (too_much >> 20) as usize]),
        Submission {
            offset: -1,
            ..with(0, 0, &[(0, 4096)])
        },
    ]
}

#[test]
fn a_submission_that_is_not_sound_is_the_last() {
    let (_dir, memory, reading) = restoring(1 << 20);
    for number in 0.. {
        let pages = reading.open("pages.img", READ).unwrap();
        let limits = (pages.max_io_bytes, pages.max_ranges, pages.max_parallel);
        let Some(bad) = violations(limits.0, limits.1, limits.2)
            .into_iter()
            .nth(number)
        else {
            break;
        };
        if bad.ranges.len() as u32 > limits.1 {
            continue;
        }
        let target = Memory::new(&[7; 1 << 20]);
        assert_eq!(reading.register(&pages, &target), Ok(0));
        let good = Submission::new(1, 0, 0, &[(0, 4096)]);
        let answer = pages.submit(std::slice::from_ref(&good), 1).unwrap();
        assert_eq!(answer.completions, [(1, 4096, 0)]);
        let answer = pages.submit(std::slice::from_ref(&bad), 1).unwrap();
        assert_eq!(answer.errno, EINVAL, "{bad:?}");
        assert_eq!(answer.completions, [(bad.id, 0, EINVAL)], "{bad:?}");
        let mut expected = vec![7; 1 << 20];
        expected[..4096].copy_from_slice(&memory.bytes()[..4096]);
        assert!(target.bytes() == expected, "{bad:?} was obeyed");
        let _ = reading.close(&pages);
    }
    // Others are not harmed.
    let pages = reading.open("pages.img", READ).unwrap();
    let target = Memory::new(&[7; 1 << 20]);
    assert_eq!(reading.register(&pages, &target), Ok(0));
    let all = Submission::new(1, 0, 0, &[(0, 1 << 20)]);
    pages.submit(&[all], 1).unwrap();
    assert!(target.bytes() == memory.bytes());
    assert!(reading.hang_up());
}

#[test]
fn a_save_does_not_outlive_a_submission_that_is_not_sound() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let memory = noise(1 << 20);
    for number in 0.. {
        let sentry = Sentry::start(dir, SAVE, &options(dir, "s"));
        let pages = sentry.open("pages.img", WRITE).unwrap();
        let limits = (pages.max_io_bytes, pages.max_ranges, pages.max_parallel);
        let violations = violations(limits.0, limits.1, limits.2);
        let writable = violations.into_iter().filter(|bad| bad.offset == 0);
        let Some(bad) = writable.into_iter().nth(number) else {
            break;
        };
        assert_eq!(sentry.register(&pages, &memory), Ok(0));
        pages.write_all(0, memory.len);
        let answer = pages.submit(std::slice::from_ref(&bad), 1).unwrap();
        assert_eq!(answer.errno, EINVAL, "{bad:?}");
        let _ = sentry.close(&pages);
        assert!(!sentry.hang_up(), "{bad:?}");
        assert_nothing_left(dir, "s");
    }
}

#[test]
fn an_id_is_used_once_at_a_time_and_counts_are_bounded() {
    let (_dir, memory, sentry) = restoring(1 << 20);
    let pages = sentry.open("pages.img", READ).unwrap();
    sentry.register(&pages, &memory).unwrap();
    let one = Submission::new(5, 0, 0, &[(0, 4096)]);
    let answer = pages.submit(&[one.clone(), one.clone()], 2).unwrap();
    assert_eq!(answer.errno, EINVAL);
    // More than there are under way are not waited for.
    let pages = sentry.open("pages.img", READ).unwrap();
    sentry.register(&pages, &memory).unwrap();
    let answer = pages.submit(&[one], u32::MAX).unwrap();
    assert_eq!(answer.completions.len(), 1);
    assert_eq!(pages.submit(&[], 9).unwrap().completions, []);
    for count in [pages.max_parallel + 1, u32::MAX] {
        let pages = sentry.open("pages.img", READ).unwrap();
        assert_eq!(pages.exchange(count), None);
        let _ = sentry.close(&pages);
    }
    assert!(sentry.hang_up());
}

#[test]
fn a_file_that_shrinks_under_the_gofer_is_an_error() {
    let (dir, memory, sentry) = restoring(4 << 20);
    // Written through its mapping, and as a file.
    for settings in [
        json!([{ "Start": 0, "End": memory.len, "Property": 1 }]),
        Value::Null,
    ] {
        let pages = sentry.open("pages.img", READ).unwrap();
        memory.file.set_len(memory.len).unwrap();
        sentry.register_with(&pages, &memory, settings).unwrap();
        memory.file.set_len(1 << 20).unwrap();
        let across = (1 << 19, (1 << 19) + (1 << 20));
        let answer = pages.submit(&[Submission::new(0, 0, 0, &[across])], 1);
        assert_eq!(answer.unwrap().completions, [(0, 0, EFAULT)]);
        assert_eq!(memory.bytes().len(), 1 << 20, "it was not made longer");
        let answer = pages.submit(&[Submission::new(0, 0, 0, &[(0, 1 << 20)])], 1);
        assert_eq!(answer.unwrap().completions, [(0, 1 << 20, 0)]);
    }
    sentry.hang_up();
    let memory = noise(4 << 20);
    let dir = dir.path();
    let sentry = Sentry::start(dir, SAVE, &options(dir, "t"));
    let pages = sentry.open("pages.img", WRITE).unwrap();
    sentry.register(&pages, &memory).unwrap();
    memory.file.set_len(1 << 20).unwrap();
    let answer = pages.submit(&[Submission::new(0, 0, 0, &[(0, 2 << 20)])], 1);
    assert_eq!(answer.unwrap().completions, [(0, 0, EFAULT)]);
    assert!(!sentry.hang_up());
    assert_nothing_left(dir, "t");
}

#[test]
fn what_is_no_memory_is_not_registered() {
    let (dir, memory, sentry) = restoring(1 << 20);
    let pages = sentry.open("pages.img", READ).unwrap();
    let arg = |size: u64, writable: bool, settings: Value| json!({ "handle": pages.handle, "size": size, "writable": writable, "settings": settings });
    let (reader, _writer) = std::io::pipe().unwrap();
    let register = |arg: Value, fds: &[&dyn std::os::fd::AsFd]| {
        let refused = sentry.call("RegisterClientFile", arg, fds).unwrap_err();
        assert!(!refused.is_empty());
    };
    let size = 1 << 20;
    register(arg(size, true, Value::Null), &[]);
    register(arg(size, true, Value::Null), &[&memory.file, &memory.file]);
    register(arg(size, true, Value::Null), &[&reader]);
    register(
        arg(size, true, Value::Null),
        &[&fs::File::open("/dev/zero").unwrap()],
    );
    register(arg(size + 1, true, Value::Null), &[&memory.file]);
    register(arg(u64::MAX, true, Value::Null), &[&memory.file]);
    register(arg(size, false, Value::Null), &[&memory.file]);
    // Read-only, which the sentry's memory never is.
    let path = dir.path().join("file");
    fs::write(&path, memory.bytes()).unwrap();
    register(
        arg(size, true, Value::Null),
        &[&fs::File::open(&path).unwrap()],
    );
    for (start, end, property) in [
        (0, size + 1, 1),
        (4096, 4096, 1),
        (8192, 4096, 2),
        (0, 4096, 3),
    ] {
        let settings = json!([{ "Start": start, "End": end, "Property": property }]);
        register(arg(size, true, settings), &[&memory.file]);
    }
    let other = json!({ "handle": 99, "size": size, "writable": true });
    register(other, &[&memory.file]);
    assert!(sentry.register(&pages, &memory).is_ok());
    assert!(sentry.hang_up());
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let (dir, _memory, sentry) = restoring(5000);
    for (method, arg) in [
        ("Open", json!({ "path": "pages.img", "mode": WRITE })),
        ("Open", json!({ "path": "pages.img", "mode": 0 })),
        ("Open", json!({ "path": "../../etc/passwd", "mode": READ })),
        ("Open", json!({ "path": "", "mode": READ })),
        ("Open", json!({ "path": 5 })),
        ("Open", json!([])),
        ("Open", Value::Null),
        ("Close", json!({ "handle": 7 })),
        ("Close", json!({ "handle": -1 })),
        ("Remove", json!({})),
    ] {
        let refused = sentry.call(method, arg.clone(), &[]);
        assert!(refused.is_err(), "{method} {arg}");
    }
    // As many as there may be, and one more.
    let open: Vec<_> = std::iter::from_fn(|| sentry.open("pages.img", READ).ok()).collect();
    assert!((4..1000).contains(&open.len()), "{}", open.len());
    sentry.close(&open[0]).unwrap();
    assert!(sentry.open("pages.img", READ).is_ok());
    // A call in pieces.
    let call = json!({ "method": "AsyncFileServer.Close", "arg": { "handle": open[1].handle } });
    for byte in call.to_string().as_bytes() {
        sentry.send(&[*byte], &[]);
    }
    assert_eq!(sentry.receive().unwrap().0["success"], true);
    // What is no JSON ends the conversation, not the gofer by a crash.
    sentry.send(b"}{}{}{", &[]);
    sentry.send(b"}", &[]);
    assert!(sentry.receive().is_none());
    assert!(sentry.hang_up());
    // So does what never ends.
    let sentry = restore(dir.path());
    sentry.send(b"{\"method\": \"", &[]);
    assert!(sentry.hang_up());
}

#[test]
fn a_window_that_is_scribbled_on_harms_nobody() {
    let (_dir, memory, mut sentry) = restoring(1 << 20);
    let guarded = Memory::new(&[7; 1 << 20]);
    let mut random = Noise(1);
    let mut word = move || random.word() as u32;
    for round in 0..60 {
        let pages = sentry.open("pages.img", READ).unwrap();
        let target = Memory::new(&[7; 1 << 20]);
        sentry.register(&pages, &target).unwrap();
        let submissions: Vec<_> = (0..pages.max_parallel)
            .map(|id| Submission::new(id, i64::from(id) * 8192, 0, &[(0, 4096), (8192, 12288)]))
            .collect();
        pages.write(&submissions, pages.max_parallel);
        if round % 3 == 0 {
            // The state too.
            pages.window.give(pages.max_parallel);
            for _ in 0..200 {
                pages
                    .window
                    .word(0)
                    .store(word() % 4, std::sync::atomic::Ordering::SeqCst);
            }
        } else {
            pages.window.give(pages.max_parallel);
            for _ in 0..20_000 {
                let at = 4 * (word() as usize % (pages.window.len / 4 - 4)).min(2000);
                let value = match word() % 4 {
                    0 => u32::MAX,
                    1 => 0,
                    2 => word() % 8192,
                    _ => word(),
                };
                pages.window.set_u32(at, value);
            }
        }
        let _ = sentry.close(&pages);
    }
    assert_eq!(sentry.gofer.try_wait().unwrap(), None, "the gofer is alive");
    assert!(guarded.bytes() == vec![7; 1 << 20]);
    let pages = sentry.open("pages.img", READ).unwrap();
    sentry.register(&pages, &guarded).unwrap();
    pages
        .submit(&[Submission::new(0, 0, 0, &[(0, 1 << 20)])], 1)
        .unwrap();
    assert!(guarded.bytes() == memory.bytes());
    sentry.hang_up();
}

#[test]
fn a_statsd_server_hears_what_gofers_count() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut options = options(dir, "s");
    options["statsd"] = server.local_addr().unwrap().to_string().into();
    let memory = noise(3 << 20);
    assert!(save_with(dir, &options, &checkpoint(), &memory));
    let sentry = Sentry::start(dir, RESTORE, &options);
    let pages = sentry.open("pages.img", READ).unwrap();
    let number = sentry.register(&pages, &memory).unwrap();
    // Two pages that a thread waits for, and one with which filling the memory begins.
    for (id, start) in [(0, 1 << 20), (1, 8192), (2, 0)] {
        let asked = Submission::new(id, start, number, &[(0, 4096)]);
        let answer = pages.submit(&[asked], 1).unwrap();
        assert_eq!(answer.completions, [(id, 4096, 0)]);
    }
    assert!(sentry.hang_up());

    // Both have ended, and have said everything.
    server.set_nonblocking(true).unwrap();
    let (mut heard, mut datagram) = (String::new(), [0; 2048]);
    while let Ok(len) = server.recv(&mut datagram) {
        heard += std::str::from_utf8(&datagram[..len]).unwrap();
        heard.push('\n');
    }
    let total = |name: &str| -> u64 {
        let all = heard.lines().filter_map(|line| {
            let value = line.strip_prefix("podsnap_")?.strip_prefix(name)?;
            let (value, _) = value.strip_prefix(':')?.split_once('|')?;
            value.parse::<u64>().ok()
        });
        all.sum()
    };
    assert_eq!(total("saved_snapshots_total"), 1, "{heard}");
    let raw = total("save_raw_bytes_total");
    assert!((3 << 20..4 << 20).contains(&raw), "{heard}");
    assert_eq!(total("faults_total"), 2, "{heard}");
    assert_eq!(total("restored_bytes_total"), 3 * 4096, "{heard}");
    let frozen = heard
        .lines()
        .filter(|line| line.starts_with("podsnap_freeze_seconds:") && line.ends_with("|ms"));
    assert_eq!(frozen.count(), 1, "{heard}");
}

#[test]
fn whoever_starts_it_by_hand_is_told_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_checkpointgofer"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("runsc starts it"), "{said}");
}
