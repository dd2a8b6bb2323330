//! `podsnap inspect`: the accounts add up, the sharing is what it was made to be, and what a file is said to cost is what saving
//! without it would spare.

mod support;

use std::{collections::HashMap, fs, os::unix::ffi::OsStrExt, path::Path};

use podsnap::{
    ErrorKind, NewSection, Role, SaveOptions, Store, chunking, format::ChunkId,
    format::manifest::AddressRange, inspect::InspectOptions,
};
use serde_json::Value;
use support::provisioned::provisioned;
use support::{extents, tool::*, *};
use tokio_util::sync::CancellationToken;

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn list(value: &Value) -> &Vec<Value> {
    value
        .as_array()
        .unwrap_or_else(|| panic!("{value} is no list"))
}

fn sum(list: &Value, field: &str) -> u64 {
    list.as_array()
        .unwrap()
        .iter()
        .map(|v| number(&v[field]))
        .sum()
}

#[track_caller]
fn find<'a>(of: &'a Value, field: &str, value: &str) -> &'a Value {
    let found = list(of).iter().find(|v| v[field] == value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {of}"))
}

/// Where the weights begin in the memory of [`pod`].
const WEIGHTS_AT: usize = 1_234_567;

fn weights() -> Vec<u8> {
    noise(41, 3_000_000)
}

fn memory() -> Vec<u8> {
    let mut memory = noise(42, WEIGHTS_AT);
    memory.extend(weights());
    memory.extend(vec![0; 2 << 20]);
    memory.extend(text(43, 700_000));
    memory
}

/// A volume with the weights, a file of its own, many small ones, and a file that has two names; and memory that has the weights too.
fn pod(tool: &Tool) {
    tool.file("ram", &memory());
    let shm = tool.path("shm");
    fs::create_dir_all(shm.join("sub")).unwrap();
    fs::write(shm.join("weights.bin"), weights()).unwrap();
    fs::write(shm.join("own.bin"), noise(44, 500_000)).unwrap();
    for n in 0..40 {
        fs::write(
            shm.join(format!("sub/{n}")),
            noise(100 + n, 1000 + 37 * n as usize),
        )
        .unwrap();
    }
    fs::hard_link(shm.join("own.bin"), shm.join("sub/own-again.bin")).unwrap();
}

const TREE_FIRST: [&str; 4] = ["tmpfs:shm=shm", "memory=ram", "--chunking", "cdc:8K"];
const MEMORY_FIRST: [&str; 4] = ["memory=ram", "tmpfs:shm=shm", "--chunking", "cdc:8K"];

/// The accounts, made up byte by byte from the extent maps.
#[derive(Debug, Default, PartialEq, Eq)]
struct Accounts {
    zero: u64,
    new: u64,
    borrowed: u64,
    deduplicated: HashMap<String, u64>,
}

fn accounts(tool: &Tool, snapshot: &str) -> Vec<(String, Accounts)> {
    let bytes = fs::read(tool.path("store").join(snapshot).join("manifest")).unwrap();
    let directory = extents::directory(&bytes);
    let mut own: HashMap<ChunkId, bool> = HashMap::new();
    for (_, segments) in extents::segments(&bytes) {
        for chunk in segments.iter().flat_map(|s| &s.chunks) {
            let pack = &directory.packs[chunk.location.pack as usize];
            own.insert(chunk.id, pack.snapshot.as_ref() == snapshot);
        }
    }
    // For every byte of every chunk, the section that had it first.
    let mut first: HashMap<ChunkId, Vec<Option<usize>>> = HashMap::new();
    let mut all = Vec::new();
    for (number, runs) in extents::runs(&bytes).iter().enumerate() {
        let mut accounts = Accounts::default();
        let mut repeated = vec![0; directory.sections.len()];
        for run in runs {
            let Some((id, start)) = run.chunk else {
                accounts.zero += run.len;
                continue;
            };
            let bytes = first.entry(id).or_default();
            let own = own[&id];
            let end = start as usize + run.len as usize;
            bytes.resize(bytes.len().max(end), None);
            for byte in &mut bytes[start as usize..end] {
                match byte {
                    Some(section) => repeated[*section] += 1,
                    None if own => accounts.new += 1,
                    None => accounts.borrowed += 1,
                }
                byte.get_or_insert(number);
            }
        }
        let titled = |section: usize| directory.sections[section].title();
        let shared = (0..).zip(repeated).filter(|(_, bytes)| *bytes > 0);
        accounts.deduplicated = shared
            .map(|(section, bytes)| (titled(section), bytes))
            .collect();
        all.push((titled(number), accounts));
    }
    all
}

fn reported_accounts(report: &Value) -> Vec<(String, Accounts)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let of = |section: &Value| {
        let shared = list(&section["deduplicated"]).iter();
        let deduplicated: HashMap<String, u64> = shared
            .map(|s| (text(&s["section"]), number(&s["bytes"])))
            .collect();
        assert_eq!(
            deduplicated.values().sum::<u64>(),
            number(&section["deduplicated_bytes"])
        );
        assert_eq!(
            sum(&section["borrowed"], "raw_bytes"),
            number(&section["borrowed_bytes"])
        );
        let accounts = Accounts {
            zero: number(&section["zero_bytes"]),
            new: number(&section["new_bytes"]),
            borrowed: number(&section["borrowed_bytes"]),
            deduplicated,
        };
        (text(&section["section"]), accounts)
    };
    list(&report["sections"]).iter().map(of).collect()
}

/// What must hold of every report on a snapshot in the store, whatever is in it.
#[track_caller]
fn assert_adds_up(tool: &Tool, report: &Value) {
    let snapshot = report["snapshot"].as_str().unwrap();
    for of in list(&report["sections"]).iter().chain([report]) {
        let parts = [
            "zero_bytes",
            "new_bytes",
            "borrowed_bytes",
            "deduplicated_bytes",
        ];
        let parts: u64 = parts.iter().map(|part| number(&of[part])).sum();
        assert_eq!(parts, number(&of["raw_bytes"]), "{}", of["section"]);
        assert_eq!(sum(&of["codecs"], "chunks"), number(&of["chunks"]));
    }
    for total in [
        "raw_bytes",
        "zero_bytes",
        "new_bytes",
        "new_stored_bytes",
        "deduplicated_bytes",
    ] {
        assert_eq!(
            sum(&report["sections"], total),
            number(&report[total]),
            "{total}"
        );
    }
    // Every frame in the packs of the snapshot is charged to somebody, to the byte.
    let dir = tool.path("store").join(snapshot);
    let (mut frames, mut frame_bytes) = (0, 0);
    let is_pack = |file: &String| file.starts_with("pack-");
    for file in files(&dir).into_iter().filter(is_pack) {
        let path = dir.join(&file);
        let (count, bytes) = extents::frames(&path);
        (frames, frame_bytes) = (frames + count, frame_bytes + bytes);
        let pack = find(&report["packs"], "object", &format!("{snapshot}/{file}"));
        assert_eq!(number(&pack["bytes"]), fs::metadata(&path).unwrap().len());
        assert_eq!(number(&pack["used_bytes"]), bytes);
        assert_eq!(pack["borrowed"], false);
    }
    assert_eq!(number(&report["new_chunks"]), frames);
    let charged = number(&report["new_stored_bytes"]) + number(&report["unused_stored_bytes"]);
    assert_eq!(charged, frame_bytes);
    assert_eq!(
        number(&report["manifest_bytes"]),
        fs::metadata(dir.join("manifest")).unwrap().len()
    );
    for (reported, counted) in reported_accounts(report)
        .iter()
        .zip(accounts(tool, snapshot))
    {
        assert_eq!(*reported, counted);
    }
}

#[test]
fn every_byte_is_in_one_account_and_every_frame_is_charged() {
    let tool = Tool::new();
    pod(&tool);
    for (snapshot, sources) in [("tree-first", TREE_FIRST), ("memory-first", MEMORY_FIRST)] {
        let saved = tool.save(snapshot, &sources);
        let report = tool.json(&["inspect", snapshot]);
        assert_adds_up(&tool, &report);
        // The save counted the same things while it ran.
        assert_eq!(report["raw_bytes"], saved["raw_bytes"]);
        assert_eq!(report["zero_bytes"], saved["zero_bytes"]);
        assert_eq!(report["new_bytes"], saved["new_bytes"]);
        assert_eq!(
            report["deduplicated_bytes"],
            saved["deduplicated_own_bytes"]
        );
        assert_eq!(report["digest"], saved["digest"]);
        assert_eq!(number(&report["borrowed_bytes"]), 0);
        assert!(number(&report["zero_bytes"]) > (2 << 20) - 8192);
    }
}

#[test]
fn what_a_base_stores_is_borrowed_and_what_is_there_twice_is_not() {
    let tool = Tool::new();
    pod(&tool);
    tool.save("base", &TREE_FIRST);
    // An insertion, so that only parts of some chunks are used.
    let mut changed = memory();
    changed.splice(700_000..700_100, noise(45, 5_000));
    tool.file("ram", &changed);
    fs::write(tool.path("shm/new.bin"), noise(46, 200_000)).unwrap();
    let saved = tool.save("next", &["tmpfs:shm=shm", "memory=ram", "--base", "base"]);
    let report = tool.json(&["inspect", "next"]);
    assert_adds_up(&tool, &report);
    assert_eq!(report["new_bytes"], saved["new_bytes"]);
    assert_eq!(report["zero_bytes"], saved["zero_bytes"]);
    let borrowed = find(&report["borrowed"], "snapshot", "base");
    assert_eq!(borrowed["raw_bytes"], report["borrowed_bytes"]);
    assert!(number(&borrowed["raw_bytes"]) > 4_000_000);
    let pack = tool.pack("base");
    let object = format!("base/{}", pack.file_name().unwrap().to_str().unwrap());
    let pack = find(&report["packs"], "object", &object);
    assert_eq!(pack["borrowed"], true);
    assert_eq!(report["metadata"]["bases"], serde_json::json!(["base"]));
    let text = tool.run(&["inspect", "next"]).ok();
    assert!(
        text.text().contains("tmpfs:shm borrows 3."),
        "{}",
        text.text()
    );
    assert!(text.text().contains("from base, stored there as"));

    // The same once more borrows nearly everything, from both: what grew out of another section may be cut anew.
    let saved = tool.save("again", &["tmpfs:shm=shm", "memory=ram", "--base", "next"]);
    let report = tool.json(&["inspect", "again"]);
    assert_adds_up(&tool, &report);
    assert_eq!(report["new_bytes"], saved["new_bytes"]);
    assert!(number(&report["new_bytes"]) < 64 << 10);
    assert_eq!(list(&report["borrowed"]).len(), 2);
}

/// Whatever stands first is charged; deleting the file spares nothing but what memory does not have.
#[test]
fn a_file_that_memory_has_too_is_found_whichever_was_saved_first() {
    let tool = Tool::new();
    pod(&tool);
    for (snapshot, sources) in [("tree-first", TREE_FIRST), ("memory-first", MEMORY_FIRST)] {
        tool.save(snapshot, &sources);
        let report = tool.json(&["inspect", snapshot]);
        let weights = find(&report["shared_files"], "path", "weights.bin");
        assert_eq!(number(&weights["size"]), 3_000_000);
        // All but what lies in a chunk with something else at either end.
        assert!(
            number(&weights["shared_bytes"]) > 3_000_000 - 2 * (32 << 10),
            "{weights}"
        );
        assert_eq!(weights["shared_with"][0]["section"], "memory");
        assert_eq!(weights["shared_with"][0]["bytes"], weights["shared_bytes"]);
        assert!(
            number(&weights["spared_bytes"]) <= 2 * (32 << 10),
            "{weights}"
        );
        let charged = number(&weights["new_stored_bytes"]);
        match snapshot {
            "tree-first" => assert!(charged > 2_950_000, "{weights}"),
            _ => assert!(charged < 64 << 10, "{weights}"),
        }
        let longest = &report["duplicates"][0];
        assert!(number(&longest["bytes"]) > 2_900_000, "{longest}");
        let (file, range) = match snapshot {
            "tree-first" => (&longest["of"], &longest["at"]),
            _ => (&longest["at"], &longest["of"]),
        };
        assert_eq!(file["path"], "weights.bin");
        assert_eq!(file["section"], "tmpfs:shm");
        assert_eq!(range["section"], "memory");
        let offset = number(&range["offset"]) - number(&file["offset"]);
        assert_eq!(offset, WEIGHTS_AT as u64);
        let text = tool.run(&["inspect", snapshot]).ok();
        let advice = "deleting tmpfs:shm/weights.bin before saving would save ";
        let line = text.text().lines().find(|l| l.starts_with(advice));
        assert!(
            line.unwrap().ends_with(" of its 3.00 MB are in memory too"),
            "{line:?}"
        );
        let (second, first) = match snapshot {
            "tree-first" => ("memory", "tmpfs:shm"),
            _ => ("tmpfs:shm", "memory"),
        };
        let shares = |l: &str| {
            l.starts_with(&format!("{second} shares ")) && l.ends_with(&format!(" MB with {first}"))
        };
        assert!(text.text().lines().any(shares), "{}", text.text());
    }
}

/// The truth about a file's cost: save without it.
#[test]
fn a_file_spares_what_a_save_without_it_spares() {
    let tool = Tool::new();
    pod(&tool);
    fs::write(tool.path("shm/zz"), text(47, 400_000)).unwrap();
    let stored = |snapshot: &str| extents::frames(&tool.pack(snapshot)).1;
    tool.save("with", &TREE_FIRST);
    let report = tool.json(&["inspect", "with", "--top", "100"]);
    for (path, other_name) in [
        ("weights.bin", None),
        ("own.bin", Some("sub/own-again.bin")),
        ("zz", None),
    ] {
        let file = find(&report["files"], "path", path);
        assert_eq!(number(&file["names"]), 1 + other_name.iter().len() as u64);
        let away = |name: &str| {
            fs::rename(
                tool.path("shm").join(name),
                tool.path(&name.replace('/', "-")),
            )
            .unwrap()
        };
        let back = |name: &str| {
            fs::rename(
                tool.path(&name.replace('/', "-")),
                tool.path("shm").join(name),
            )
            .unwrap()
        };
        [path].iter().chain(&other_name).for_each(|name| away(name));
        let without = format!("without-{path}");
        tool.save(&without, &TREE_FIRST);
        [path].iter().chain(&other_name).for_each(|name| back(name));
        let spared = stored("with") - stored(&without).min(stored("with"));
        let said = number(&file["spared_bytes"]);
        // The neighbours are cut anew: a chunk or two at either end.
        assert!(
            said.abs_diff(spared) < 40_000,
            "{path}: said {said}, spared {spared}"
        );
    }
    // Every file is charged for its own bytes, and the list of files for the rest of the section.
    let section = find(&report["sections"], "section", "tmpfs:shm");
    let charged = sum(&report["files"], "new_stored_bytes");
    let rest = number(&section["new_stored_bytes"]) - charged;
    assert!(rest > 0 && rest < 8_000, "{rest}");
    assert_eq!(number(&section["files"]), 43);
    assert_eq!(number(&section["entries"]), 43 + 1 + 2);
}

#[test]
fn two_copies_in_one_volume_spare_nothing_alone() {
    let tool = Tool::new();
    fs::create_dir(tool.path("d")).unwrap();
    for name in ["a", "b"] {
        fs::write(tool.path("d").join(name), noise(50, 1 << 20)).unwrap();
    }
    // A file that repeats itself shares with nobody.
    fs::write(tool.path("d/c"), noise(51, 300_000).repeat(3)).unwrap();
    tool.save("s", &["rootfs=d"]);
    let report = tool.json(&["inspect", "s"]);
    assert_adds_up(&tool, &report);
    for (file, other) in [("a", "b"), ("b", "a")] {
        let file = find(&report["shared_files"], "path", file);
        assert!(number(&file["spared_bytes"]) < 300_000, "{file}");
        assert_eq!(file["shared_with"][0]["path"], other);
        assert_eq!(file["shared_with"][0]["section"], "rootfs");
    }
    let own = find(&report["files"], "path", "c");
    assert!(number(&own["shared_bytes"]) == 0 && own["spared_bytes"] == own["new_stored_bytes"]);
    let text = tool.run(&["inspect", "s"]).ok();
    assert!(text.text().contains("rootfs has 1.") && text.text().contains(" MB twice"));
    assert!(
        text.text().contains("are in rootfs/b too"),
        "{}",
        text.text()
    );
}

#[test]
fn ranges_of_blobs_are_ranked_by_what_they_cost() {
    let tool = Tool::new();
    let mut bytes = text(60, 3 << 20);
    bytes.extend(vec![0; 8 << 20]);
    bytes.extend(noise(61, 5 << 20));
    bytes.extend(vec![0; 3 << 20]);
    bytes.extend(text(62, 2 << 20));
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram", "--chunking", "fixed:64K"]);
    let report = tool.json(&["inspect", "s"]);
    assert_adds_up(&tool, &report);
    let ranges = list(&report["ranges"]);
    let place = |n: usize| (number(&ranges[n]["offset"]), number(&ranges[n]["len"]));
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert_eq!(place(0), (11 << 20, 5 << 20));
    assert_eq!(place(1), (0, 3 << 20));
    assert_eq!(place(2), (19 << 20, 2 << 20));
    // Noise is stored as it is, in 80 frames.
    assert_eq!(number(&ranges[0]["new_stored_bytes"]), (5 << 20) + 80 * 12);
    assert_eq!(
        sum(&report["ranges"], "new_stored_bytes"),
        number(&report["new_stored_bytes"])
    );
    let codecs = &report["codecs"];
    assert_eq!(number(&find(codecs, "codec", "raw")["chunks"]), 80);
    assert_eq!(number(&find(codecs, "codec", "zstd")["chunks"]), 80);
    let chunking = &report["sections"][0]["chunking"];
    assert_eq!(
        *chunking,
        serde_json::json!({ "kind": "fixed", "size": 65536 })
    );
    let one = tool.json(&["inspect", "s", "--top", "1"]);
    assert_eq!(list(&one["ranges"]), &ranges[..1]);
    let none = tool.json(&["inspect", "s", "--top", "0"]);
    assert!(list(&none["ranges"]).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_with_addresses_say_so_and_a_cancelled_inspection_ends() {
    let store = Store::open("memory://inspect-addresses").unwrap();
    let range = |start, length, section_offset| AddressRange {
        start,
        length,
        section_offset,
    };
    let section = NewSection {
        address_ranges: vec![
            range(0x7f00_0000_0000, 1 << 20, 0),
            range(0x5500_0000_0000, 2 << 20, 1 << 20),
        ],
        chunking: Some(chunking::fixed(4096)),
        ..NewSection::blob(Role::Memory, "", {
            let mut bytes = vec![0; 2 << 20];
            bytes.extend(noise(63, 1 << 20));
            input(&bytes, Way::Source)
        })
    };
    save(&store, "s", vec![section], SaveOptions::default())
        .await
        .unwrap();
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    let report = snapshot.inspect(&InspectOptions::default()).await.unwrap();
    assert_eq!(report.ranges[0].offset, 2 << 20);
    assert_eq!(report.ranges[0].address, Some(0x5500_0010_0000));
    assert_eq!(report.sections[0].address_ranges, 2);

    let cancel = CancellationToken::new();
    cancel.cancel();
    let options = InspectOptions {
        cancel,
        ..Default::default()
    };
    assert_eq!(
        failure(snapshot.inspect(&options).await).kind(),
        ErrorKind::Interrupted
    );
}

/// Whoever named a file or wrote a label must not be able to talk to the terminal.
#[test]
fn hostile_names_are_shown_and_not_obeyed() {
    let tool = Tool::new();
    fs::create_dir(tool.path("d")).unwrap();
    let names: [&[u8]; 5] = [
        b"clear\x1b[2J\x07",
        b"two\nlines\r",
        b"not utf-8 \xff\x9b31m",
        "c1 \u{9b}31m".as_bytes(),
        "turned \u{202e}gnp.exe".as_bytes(),
    ];
    for (n, name) in (0..).zip(names) {
        let path = tool.path("d").join(std::ffi::OsStr::from_bytes(name));
        fs::write(path, noise(70 + n, 100_000)).unwrap();
    }
    let label = "k=\u{1b}]0;title\u{7}\u{9b}31m";
    tool.save("s", &["rootfs=d", "--label", label]);
    for args in [&["inspect", "s"][..], &["inspect", "s", "--json"]] {
        let shown = tool.run(args).ok();
        let bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        match args.len() {
            2 => assert!(!shown.text().contains(bad), "{:?}", shown.text()),
            _ => assert!(!shown.text().contains(|c: char| c.is_control() && c != '\n')),
        }
    }
    let report = tool.json(&["inspect", "s"]);
    // In JSON a label is what it was.
    assert_eq!(report["metadata"]["labels"]["k"], label[2..]);
    let paths: Vec<_> = list(&report["files"])
        .iter()
        .map(|f| f["path"].as_str().unwrap())
        .collect();
    for shown in [
        "clear\\u{1b}[2J\\u{7}",
        "two\\nlines\\r",
        "not utf-8 \\xff\\x9b31m",
        "c1 \\u{9b}31m",
        "turned \\u{202e}gnp.exe",
    ] {
        assert!(paths.contains(&shown), "{shown} is not in {paths:?}");
    }
}

#[test]
fn long_descriptions_are_shortened_for_people_only() {
    let tool = Tool::new();
    tool.file("x", b"x");
    let value = "v".repeat(5000);
    tool.save(
        "s",
        &[
            "other=x",
            "--label",
            &format!("long={value}"),
            "--label",
            "short=1",
        ],
    );
    let shown = tool.run(&["inspect", "s"]).ok();
    assert!(shown.text().contains("short: 1\n"));
    assert!(
        shown.text().contains("vvv... (5.00 kB)\n"),
        "{}",
        shown.text()
    );
    assert!(shown.text().lines().all(|line| line.len() < 200));
    assert_eq!(
        tool.json(&["inspect", "s"])["metadata"]["labels"]["long"],
        value
    );
}

#[test]
fn an_export_holds_everything_itself() {
    let tool = Tool::new();
    pod(&tool);
    tool.save("base", &["memory=ram"]);
    tool.save("s", &["memory=ram", "tmpfs:shm=shm", "--base", "base"]);
    tool.run(&["export", "s", "s.podsnap"]).ok();
    let stored = tool.json(&["inspect", "s"]);
    let exported = tool.json(&["inspect", "file:s.podsnap"]);
    assert_eq!(exported["exported"], true);
    assert_eq!(number(&exported["borrowed_bytes"]), 0);
    let new = number(&stored["new_bytes"]) + number(&stored["borrowed_bytes"]);
    assert_eq!(number(&exported["new_bytes"]), new);
    assert_eq!(exported["deduplicated_bytes"], stored["deduplicated_bytes"]);
    let len = fs::metadata(tool.path("s.podsnap")).unwrap().len();
    let frames = number(&exported["packs"][0]["bytes"]);
    assert_eq!(number(&exported["manifest_bytes"]), len - frames);
    assert_eq!(exported["working_set_bytes"], Value::Null);
}

#[test]
fn what_is_no_working_set_is_mentioned() {
    let tool = Tool::new();
    tool.file("x", b"x");
    tool.save("s", &["other=x"]);
    assert_eq!(
        tool.json(&["inspect", "s"])["working_set_bytes"],
        Value::Null
    );
    fs::write(tool.path("store/s/working-set"), [0; 777]).unwrap();
    assert_eq!(
        number(&tool.json(&["inspect", "s"])["working_set_bytes"]),
        777
    );
    // It is none, which is no reason not to show the rest.
    let shown = tool.run(&["inspect", "s"]).ok();
    assert!(
        shown
            .text()
            .contains("working set  777 B that are of no use\n"),
        "{}",
        shown.text()
    );
    shown.says(&["s/working-set is damaged"]);
}

/// The manifest says enough about everything but the names of files.
#[test]
fn a_lost_pack_hides_the_names_of_files_only() {
    let tool = Tool::new();
    pod(&tool);
    tool.save("s", &TREE_FIRST);
    let whole = tool.json(&["inspect", "s"]);
    fs::remove_file(tool.pack("s")).unwrap();
    let outcome = tool.run(&["inspect", "s", "--json"]).ok();
    let report = outcome.json();
    assert_eq!(list(&report["problems"]).len(), 1);
    assert!(outcome.stderr.contains("pack-"), "{}", outcome.stderr);
    for field in [
        "raw_bytes",
        "new_bytes",
        "deduplicated_bytes",
        "new_stored_bytes",
        "codecs",
    ] {
        assert_eq!(report[field], whole[field], "{field}");
    }
    assert!(list(&report["files"]).is_empty());
    assert_eq!(report["sections"][0]["files"], Value::Null);
}

#[test]
fn what_is_not_there_is_not_found() {
    let tool = Tool::new();
    tool.file("x", b"x");
    tool.save("s", &["other=x"]);
    tool.run(&["inspect", "nobody"])
        .ends_with(3)
        .says(&["nobody"]);
    tool.run(&["inspect", "file:nothing.podsnap"]).ends_with(3);
    tool.run(&["inspect", "s", "--top", "many"]).ends_with(2);
    let help = tool.run(&["inspect", "--help"]).ok();
    assert!(help.text().contains("podsnap inspect web-2"));
}

/// What podsnap would never write, and a stranger may have.
#[test]
fn a_manifest_that_contradicts_itself_is_damaged_to_everybody() {
    let tool = Tool::new();
    // Two segments of one section, so that the second can speak of the first one's chunks.
    let words = text(80, 300_000);
    tool.file("a", &words);
    tool.save("one-id", &["memory=a", "--chunking", "fixed:64K"]);
    tool.save("one-frame", &["memory=a", "--chunking", "fixed:64K"]);
    for (snapshot, same_id) in [("one-id", true), ("one-frame", false)] {
        let manifest = tool.path("store").join(snapshot).join("manifest");
        extents::rewrite(&manifest, |sections| {
            let mut second = sections[0].1[0].clone();
            let chunk = &mut second.chunks[0];
            if !same_id {
                chunk.id = ChunkId([7; 32]);
            }
            chunk.raw_len += 1000;
            let podsnap::format::manifest::Extent::Chunk { len, .. } = &mut second.extents[0]
            else {
                panic!("the section begins with a chunk");
            };
            *len += 1000;
            sections[0].1.push(second);
        });
        let restored = tool.run(&["restore", snapshot, &format!("{snapshot}-dir")]);
        restored.ends_with(5).says(&["damaged"]);
        let verified = tool.run(&["verify", snapshot]).ends_with(5);
        assert!(verified.text().contains("damaged"), "{}", verified.text());
        tool.run(&["export", snapshot, &format!("{snapshot}.podsnap")])
            .ends_with(5);
    }
    let says = [
        "one-id",
        "has 65536 bytes in one place and 66536 in another",
    ];
    tool.run(&["inspect", "one-id"]).ends_with(5).says(&says);
    let based = ["save", "next", "memory=a", "--base", "one-id"];
    tool.run(&based).ends_with(5).says(&says);
    tool.run(&["diff", "one-id", "one-frame"])
        .ends_with(5)
        .says(&says);
    // Two ids for one frame cannot be told without reading it.
    tool.run(&["inspect", "one-frame"]).ok();
}

#[test]
fn real_checkpoints_have_their_weights_twice_and_borrow_nearly_all() {
    let (Some(first), Some(second)) = (provisioned("images/R"), provisioned("images/R2")) else {
        return;
    };
    let tool = Tool::new();
    let path = |dir: &Path| dir.to_str().unwrap().to_owned();
    tool.save("r", &[&path(&first)]);
    tool.save("r2", &[&path(&second), "--base", "r"]);
    for (snapshot, image) in [("r", &first), ("r2", &second)] {
        let report = tool.json(&["inspect", snapshot]);
        assert_adds_up(&tool, &report);
        let pages = fs::metadata(image.join("pages.img")).unwrap().len();
        let memory = find(&report["sections"], "section", "memory");
        assert_eq!(number(&memory["raw_bytes"]), pages);
        // The pod holds its model of 91 MB in a volume and in its heap; both are in its memory.
        assert!(
            number(&memory["deduplicated_bytes"]) > 85_000_000,
            "{memory}"
        );
        assert_eq!(memory["deduplicated"][0]["section"], "memory");
        let longest = &report["duplicates"][0];
        let read = |place: &Value, len: usize| {
            let bytes = fs::read(image.join("pages.img")).unwrap();
            bytes[number(&place["offset"]) as usize..][..len].to_vec()
        };
        let len = number(&longest["len"]) as usize;
        assert!(
            len > 10_000_000 && longest["bytes"] == longest["len"],
            "{longest}"
        );
        assert_bytes(
            &read(&longest["at"], len),
            &read(&longest["of"], len),
            "the duplicate",
        );
        let version = &report["metadata"]["gvisor"]["runsc_version"];
        assert!(version.is_string());
        assert!(number(&report["manifest_bytes"]) < pages / 1000);
        let shown = tool.run(&["inspect", snapshot]).ok();
        assert!(
            shown.text().contains("gvisor    runsc_version: "),
            "{}",
            shown.text()
        );
        assert!(shown.text().contains("container_count: 1"));
        assert!(shown.text().lines().all(|line| line.len() < 200));
    }
    let report = tool.json(&["inspect", "r2"]);
    assert!(number(&report["new_stored_bytes"]) < 2_000_000, "{report}");
    assert!(number(&report["borrowed_bytes"]) > 100_000_000);
}
