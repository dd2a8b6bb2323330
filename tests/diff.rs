//! `podsnap diff`: what it calls equal is equal, every byte of B is in one account, and files are told apart by what changed.

mod support;

use std::{
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    time::{Duration, SystemTime},
};

use podsnap::{
    ErrorKind, Key, NewSection, OpenOptions, Role, SaveOptions, Store, chunking, diff::DiffOptions,
    format::manifest::AddressRange,
};
use serde_json::Value;
use support::provisioned::provisioned;
use support::{tool::*, *};
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

#[track_caller]
fn find<'a>(of: &'a Value, field: &str, value: &str) -> &'a Value {
    let found = list(of).iter().find(|v| v[field] == value);
    found.unwrap_or_else(|| panic!("no {field} {value} in {of}"))
}

const ALL: [&str; 2] = ["--top", "1000000"];

/// What must hold of a blob's comparison, given what its bytes really are.
#[track_caller]
fn assert_true(section: &Value, a: &[u8], b: &[u8]) {
    let account = |name: &str| number(&section[name]);
    let differing = account("zeroed_bytes") + account("moved_bytes") + account("new_bytes");
    assert_eq!(account("equal_bytes") + differing, b.len() as u64);
    let ranges = list(&section["ranges"]);
    assert_eq!(account("changed_ranges"), ranges.len() as u64);
    let mut claimed_equal = vec![true; b.len()];
    for range in ranges {
        let (offset, len) = (number(&range["offset"]), number(&range["len"]));
        let parts = ["zeroed_bytes", "moved_bytes", "new_bytes"].map(|p| number(&range[p]));
        assert_eq!(parts.iter().sum::<u64>(), len, "{range}");
        claimed_equal[offset as usize..][..len as usize].fill(false);
    }
    let equal = claimed_equal.iter().filter(|equal| **equal).count();
    assert_eq!(equal as u64, account("equal_bytes"));
    for (at, claimed) in claimed_equal.into_iter().enumerate() {
        assert!(!claimed || a.get(at) == b.get(at), "byte {at} differs");
    }
}

#[test]
fn what_is_the_same_is_said_to_be() {
    let tool = Tool::new();
    tool.file("ram", &noise(1, 1_000_000));
    tree::make_tree(&tool.path("upper"));
    let sources = ["memory=ram", "rootfs=upper"];
    tool.save("a", &sources);
    tool.save("b", &sources);
    tool.save("c", &[&sources[..], &["--base", "a"]].concat());
    tool.run(&["export", "c", "c.podsnap"]).ok();
    for (a, b) in [("a", "a"), ("a", "b"), ("b", "c"), ("a", "file:c.podsnap")] {
        let report = tool
            .run(&["diff", a, b, "--exit-code", "--json"])
            .ok()
            .json();
        assert_eq!(report["identical"], true, "{report}");
        for section in list(&report["sections"]) {
            assert_eq!(section["identical"], true);
            assert_eq!(section["equal_bytes"], section["b"]["raw_bytes"]);
        }
        let tree = &find(&report["sections"], "section", "rootfs")["tree"];
        for (field, count) in [("added", 0), ("removed", 0), ("undecided", 0)] {
            assert_eq!(number(&tree[field]["count"]), count, "{field}");
        }
        assert_eq!(number(&tree["changed"]), 0);
    }
    let shown = tool.run(&["diff", "a", "b"]).ok();
    assert!(shown.text().starts_with("a and b are the same: "));
    assert_eq!(shown.text().lines().count(), 1);
}

#[test]
fn changed_moved_zeroed_and_new_bytes_are_told_apart() {
    let tool = Tool::new();
    let a = noise(2, 4_000_000);
    let mut b = a.clone();
    b[1_000_000] ^= 1;
    b[2 << 20..(2 << 20) + (256 << 10)].fill(0);
    b.extend_from_slice(&a[100_000..700_000]);
    b.extend(noise(3, 300_000));
    tool.file("a", &a);
    tool.file("b", &b);
    let cut = ["--chunking", "cdc:4K"];
    tool.save("a", &[&["memory=a"][..], &cut].concat());
    tool.save("b", &[&["memory=b"][..], &cut].concat());
    tool.save("b-on-a", &["memory=b", "--base", "a"]);
    for other in ["b", "b-on-a"] {
        let report = tool.json(&[&["diff", "a", other][..], &ALL].concat());
        let section = &report["sections"][0];
        assert_true(section, &a, &b);
        // Chunks of at most 16 KiB, one at either end of everything that happened.
        let close = |name: &str, expected: u64| {
            let found = number(&section[name]);
            assert!(
                found.abs_diff(expected) < 6 * (16 << 10),
                "{other}: {name}: {section}"
            );
        };
        close("zeroed_bytes", 256 << 10);
        close("moved_bytes", 600_000);
        close("new_bytes", 300_000);
        assert!(number(&section["zeroed_bytes"]) <= 256 << 10);
        assert!(number(&section["moved_bytes"]) <= 600_000);
        assert_eq!(section["moved_from"][0]["section"], "memory");
        assert_eq!(section["moved_from"][0]["bytes"], section["moved_bytes"]);
        assert_eq!(section["cut_alike"], true);
        assert_eq!(section["identical"], false);
        assert_eq!(report["new_bytes"], section["new_bytes"]);
    }
    // The other way around nothing is new but what the zeros and the changed byte replaced, and B is longer.
    let back = tool.json(&[&["diff", "b", "a"][..], &ALL].concat());
    assert_true(&back["sections"][0], &b, &a);
    assert!(number(&back["new_bytes"]) < (256 << 10) + 6 * (16 << 10));

    let shown = tool.run(&["diff", "a", "b", "--top", "1"]).ok();
    assert!(
        shown
            .text()
            .contains("memory: 3 changed ranges, the longest 1\n"),
        "{}",
        shown.text()
    );
    let one = tool.json(&["diff", "a", "b", "--top", "1"]);
    let listed = list(&one["sections"][0]["ranges"]);
    assert_eq!(listed.len(), 1);
    assert!(number(&listed[0]["len"]) > 800_000);
}

#[test]
fn a_shorter_section_is_different() {
    let tool = Tool::new();
    // Zeros, so that no chunk at the end differs.
    tool.file("long", &vec![0; 1 << 20]);
    tool.file("short", &vec![0; 1 << 19]);
    tool.save("a", &["memory=long"]);
    tool.save("b", &["memory=short"]);
    let report = tool.json(&["diff", "a", "b"]);
    assert_eq!(report["identical"], false);
    assert_eq!(number(&report["equal_bytes"]), 1 << 19);
    let shown = tool.run(&["diff", "a", "b"]).ok();
    assert!(
        shown.text().contains("memory: shorter in B\n"),
        "{}",
        shown.text()
    );
}

#[test]
fn sections_that_only_one_has_or_that_are_another_thing_are_named() {
    let tool = Tool::new();
    tool.file("x", &noise(4, 100_000));
    fs::create_dir(tool.path("d")).unwrap();
    tool.save("a", &["memory=x", "other:gone=x", "other:thing=x"]);
    fs::write(tool.path("d/f"), noise(5, 1000)).unwrap();
    tool.save("b", &["memory=x", "tmpfs:came=d", "other:thing=d"]);
    let report = tool.json(&["diff", "a", "b"]);
    let sections = &report["sections"];
    assert_eq!(find(sections, "section", "other:gone")["b"], Value::Null);
    let came = find(sections, "section", "tmpfs:came");
    assert_eq!(came["a"], Value::Null);
    assert_eq!(came["new_bytes"], came["b"]["raw_bytes"]);
    assert_eq!(find(sections, "section", "memory")["identical"], true);
    let thing = find(sections, "section", "other:thing");
    assert_eq!(
        (&thing["identical"], &thing["tree"]),
        (&false.into(), &Value::Null)
    );
    let shown = tool.run(&["diff", "a", "b"]).ok();
    for line in [
        "other:gone: only in A\n",
        "tmpfs:came: only in B\n",
        "other:thing: a blob in A, a tree in B\n",
    ] {
        assert!(shown.text().contains(line), "{}", shown.text());
    }
}

#[test]
fn bytes_that_were_cut_differently_are_owned_up_to() {
    let tool = Tool::new();
    tool.file("x", &noise(6, 500_000));
    tool.save("a", &["memory=x", "--chunking", "cdc:8K"]);
    tool.save("b", &["memory=x", "--chunking", "fixed:16K"]);
    let report = tool.json(&["diff", "a", "b"]);
    assert_eq!(report["sections"][0]["cut_alike"], false);
    assert_eq!(report["identical"], false);
    let shown = tool.run(&["diff", "a", "b"]).ok();
    let line = "memory: cut differently in A and B, so equal bytes may be called new\n";
    assert!(shown.text().contains(line), "{}", shown.text());
}

fn set_mtime(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

fn noise_seed(seed: u64, byte: u8) -> u64 {
    seed.wrapping_mul(31).wrapping_add(byte.into())
}

/// A tree of which everything that can happen to a file happens to one.
fn first_tree(top: &Path) {
    let at = |name: &str| top.join(name);
    for dir in ["gone-dir/below", "kept", "turns"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for (name, len) in [
        ("big", 600_000),
        ("gone-dir/file", 5_000),
        ("gone-dir/below/file", 6_000),
        ("kept/chmod", 3_000),
        ("kept/grows", 300_000),
        ("kept/rewritten", 400_000),
        ("kept/same", 200_000),
        ("kept/small-a", 700),
        ("kept/small-b", 700),
        ("kept/small-c", 700),
        ("kept/touched", 250_000),
        ("kept/two-names", 2_000),
        ("turns/inside", 900),
    ] {
        let seed = name.bytes().fold(7, noise_seed);
        fs::write(at(name), noise(seed, len)).unwrap();
        set_mtime(&at(name), 1_000_000);
    }
    symlink("kept", at("link")).unwrap();
    fs::hard_link(at("kept/two-names"), at("kept/two-names-too")).unwrap();
}

fn change_tree(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::remove_dir_all(at("gone-dir")).unwrap();
    fs::remove_dir_all(at("turns")).unwrap();
    fs::write(at("turns"), "a file now").unwrap();
    fs::create_dir(at("came")).unwrap();
    fs::write(at("came/here"), noise(20, 10_000)).unwrap();
    fs::set_permissions(at("kept/chmod"), PermissionsExt::from_mode(0o4711)).unwrap();
    let mut grown = fs::read(at("kept/grows")).unwrap();
    grown.extend(noise(21, 50_000));
    fs::write(at("kept/grows"), grown).unwrap();
    // The size and the time stay: only the chunks can tell.
    let mut rewritten = fs::read(at("kept/rewritten")).unwrap();
    rewritten[100_000..300_000].copy_from_slice(&noise(22, 200_000));
    fs::write(at("kept/rewritten"), rewritten).unwrap();
    set_mtime(&at("kept/rewritten"), 1_000_000);
    fs::write(at("kept/small-b"), noise(23, 700)).unwrap();
    set_mtime(&at("kept/small-b"), 2_000_000);
    set_mtime(&at("kept/touched"), 3_000_000);
    fs::remove_file(at("link")).unwrap();
    symlink("elsewhere", at("link")).unwrap();
    fs::remove_file(at("kept/two-names-too")).unwrap();
    fs::write(
        at("kept/two-names-too"),
        fs::read(at("kept/two-names")).unwrap(),
    )
    .unwrap();
}

fn changed<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    list(&tree["changes"])
        .iter()
        .find(|change| change["b"]["path"] == path)
}

/// In what an entry is said to differ.
fn changes_in(tree: &Value, path: &str) -> Option<Vec<String>> {
    let changes = list(&changed(tree, path)?["changes"]).iter();
    Some(changes.map(|c| c.as_str().unwrap().to_owned()).collect())
}

#[test]
fn files_are_told_apart_by_what_changed() {
    let tool = Tool::new();
    let upper = tool.path("upper");
    first_tree(&upper);
    let source = ["rootfs=upper", "--chunking", "cdc:16K"];
    tool.save("a", &source);
    change_tree(&upper);
    tool.save("b", &source);
    let sure = tool.json(&["diff", "a", "b", "--top", "100", "--read"]);
    let tree = &sure["sections"][0]["tree"];

    let paths = |of: &Value| {
        let mut paths: Vec<_> = list(of)
            .iter()
            .map(|e| e["path"].as_str().unwrap().to_owned())
            .collect();
        paths.sort();
        paths
    };
    let added = ["came", "came/here"];
    assert_eq!(paths(&tree["added"]["largest"]), added);
    assert_eq!(number(&tree["added"]["bytes"]), 10_000);
    let removed = [
        "gone-dir",
        "gone-dir/below",
        "gone-dir/below/file",
        "gone-dir/file",
        "turns/inside",
    ];
    assert_eq!(paths(&tree["removed"]["largest"]), removed);
    assert_eq!(number(&tree["removed"]["bytes"]), 11_900);

    let changes = |path: &str| changes_in(tree, path);
    for (path, expected) in [
        ("kept/chmod", &["mode"][..]),
        ("kept/grows", &["content", "mtime"]),
        ("kept/rewritten", &["content"]),
        ("kept/small-b", &["content", "mtime"]),
        ("kept/touched", &["mtime"]),
        ("link", &["target", "mtime"]),
    ] {
        let found = changes(path).unwrap_or_else(|| panic!("{path} is not in {tree}"));
        assert_eq!(found, expected, "{path}");
    }
    assert!(changes("turns").unwrap().contains(&"type".to_owned()));
    assert!(
        changes("kept/two-names-too")
            .unwrap()
            .contains(&"target".to_owned())
    );
    let same = [
        "big",
        "kept/same",
        "kept/small-a",
        "kept/small-c",
        "kept/two-names",
    ];
    for path in same {
        assert_eq!(changes(path), None, "{path}");
    }
    let rewritten = changed(tree, "kept/rewritten").unwrap();
    let really = noise(22, 200_000);
    assert!(number(&rewritten["changed_bytes"]) > really.len() as u64 * 99 / 100);
    assert!(number(&rewritten["changed_bytes"]) <= really.len() as u64);
    assert_eq!(number(&tree["undecided"]["count"]), 0);

    // Every entry is in one count: the top, directories, files, the symbolic and the hard link.
    let entries = 1 + 4 + 13 + 1 + 1;
    let in_a = |tree: &Value| {
        let counts = [
            &tree["changed"],
            &tree["unchanged"],
            &tree["removed"]["count"],
            &tree["undecided"]["count"],
        ];
        counts.map(number).iter().sum::<u64>()
    };
    assert_eq!(in_a(tree), entries);

    // Without reading, what did not change is never said to have, and what did is never said not to have.
    let quick = tool.json(&["diff", "a", "b", "--top", "100"]);
    let unsure = &quick["sections"][0]["tree"];
    assert_eq!(in_a(unsure), entries);
    let undecided = paths(&unsure["undecided"]["largest"]);
    for path in same {
        assert_eq!(changes_in(unsure, path), None, "{path}");
    }
    for path in [
        "kept/grows",
        "kept/rewritten",
        "kept/small-b",
        "kept/touched",
    ] {
        let found = changes_in(unsure, path).unwrap_or_default();
        let certain = found.contains(&"content".to_owned());
        let perhaps = found.contains(&"perhaps-content".to_owned());
        match path {
            "kept/grows" => assert!(certain),
            "kept/touched" => assert!(!certain && found.contains(&"mtime".to_owned())),
            _ => assert!(
                certain || perhaps || undecided.contains(&path.to_owned()),
                "{path}"
            ),
        }
    }

    let shown = tool.run(&["diff", "a", "b"]).ok();
    for line in [
        "kept/chmod: mode ",
        "came/here\n",
        "-> 4711\n",
        "kept/grows: content (300 kB -> 350 kB), mtime\n",
        "turns: directory -> file",
    ] {
        assert!(shown.text().contains(line), "{line:?}: {}", shown.text());
    }
    let few = tool.run(&["diff", "a", "b", "--top", "1"]).ok();
    assert!(
        few.text().contains("and 4 more\n") && few.text().contains("and 1 more\n"),
        "{}",
        few.text()
    );
}

/// A file behind others is the same file though all of its bytes stand elsewhere in the stream.
#[test]
fn files_are_compared_by_their_own_offsets() {
    let tool = Tool::new();
    fs::create_dir(tool.path("d")).unwrap();
    let file = tool.path("d/m");
    let mut bytes = noise(30, 500_000);
    fs::write(&file, &bytes).unwrap();
    set_mtime(&file, 1);
    let save = |name: &str, more: &[&str]| {
        tool.save(
            name,
            &[&["rootfs=d", "--chunking", "cdc:4K"], more].concat(),
        )
    };
    save("a", &[]);
    fs::write(tool.path("d/in-front"), noise(31, 123_456)).unwrap();
    save("b", &["--base", "a"]);
    let report = tool.json(&["diff", "a", "b"]);
    let section = &report["sections"][0];
    assert_eq!(number(&section["tree"]["added"]["count"]), 1);
    assert!(number(&section["moved_bytes"]) > 450_000, "{section}");
    let changed: Vec<_> = list(&section["tree"]["changes"])
        .iter()
        .map(|c| &c["b"]["path"])
        .collect();
    // The directory got another time with its new entry.
    assert_eq!(changed, [""]);

    // And one byte that is inserted changes what follows, at its offset, though it only moved.
    bytes.insert(250_000, 1);
    fs::write(&file, &bytes).unwrap();
    save("c", &["--base", "b"]);
    let report = tool.json(&["diff", "b", "c"]);
    let change = &report["sections"][0]["tree"]["changes"][0];
    assert_eq!(change["b"]["path"], "m");
    let bytes = number(&change["changed_bytes"]);
    assert!((250_001..250_001 + (32 << 10)).contains(&bytes), "{bytes}");
}

#[test]
fn attributes_that_tar_brings_are_compared() {
    let tool = Tool::new();
    fs::create_dir(tool.path("d")).unwrap();
    fs::write(tool.path("d/f"), "x").unwrap();
    let path = tool.path("d/f");
    let set = |value: &[u8]| {
        rustix::fs::setxattr(&path, "user.note", value, rustix::fs::XattrFlags::empty())
    };
    if set(b"one").is_err() {
        skipped("extended attributes: the file system has none");
        return;
    }
    tool.save("a", &["rootfs=d"]);
    set(b"two").unwrap();
    tool.save("b", &["rootfs=d"]);
    let report = tool.json(&["diff", "a", "b"]);
    let change = &report["sections"][0]["tree"]["changes"][0];
    assert_eq!(change["changes"], serde_json::json!(["xattrs"]));
}

#[test]
fn hostile_names_are_shown_and_not_obeyed() {
    let tool = Tool::new();
    fs::create_dir(tool.path("d")).unwrap();
    tool.save("a", &["rootfs=d"]);
    for name in [
        &b"clear\x1b[2J"[..],
        b"two\nlines",
        b"\xff\x9b31m",
        "c1\u{9b}31m".as_bytes(),
        "\u{202e}gnp".as_bytes(),
    ] {
        fs::write(tool.path("d").join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    tool.save("b", &["rootfs=d"]);
    for args in [["diff", "a", "b"], ["diff", "b", "a"]] {
        for json in [&[][..], &["--json"]] {
            let shown = tool.run(&[&args[..], json].concat()).ok();
            let bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
            assert!(!shown.text().contains(bad), "{:?}", shown.text());
            let escape = match json.is_empty() {
                true => "clear\\u{1b}[2J",
                false => "clear\\\\u{1b}[2J",
            };
            assert!(shown.text().contains(escape), "{}", shown.text());
        }
    }
}

#[test]
fn the_exit_code_says_what_was_asked() {
    let tool = Tool::new();
    tool.file("x", b"x");
    tool.file("y", b"y");
    tool.save("a", &["other=x"]);
    tool.save("b", &["other=y"]);
    tool.run(&["diff", "a", "b"]).ends_with(0);
    let shown = tool.run(&["diff", "a", "b", "--exit-code"]).ends_with(1);
    assert!(shown.text().starts_with("a and b differ: "));
    tool.run(&["diff", "a", "b", "--exit-code", "--json"])
        .ends_with(1);
    tool.run(&["diff", "a", "a", "--exit-code"]).ends_with(0);
    tool.run(&["diff", "a", "nobody"])
        .ends_with(3)
        .says(&["nobody"]);
    tool.run(&["diff", "a"]).ends_with(2);
    let help = tool.run(&["diff", "--help"]).ok();
    assert!(
        help.text().contains("--exit-code it is 1 if anything is"),
        "{}",
        help.text()
    );
}

fn keyed(url: &str, key: Option<u8>) -> Store {
    let key = key.map(|byte| Key::new([byte; 32]));
    Store::open_with(url, &OpenOptions::default(), key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_two_stores_compare_if_their_keys_are_alike() {
    let stores = [
        keyed("memory://diff-one", Some(1)),
        keyed("memory://diff-another-of-the-key", Some(1)),
        keyed("memory://diff-two", Some(2)),
        keyed("memory://diff-none", None),
    ];
    let mut snapshots = Vec::new();
    for store in &stores {
        save_one(store, "s", b"some bytes", SaveOptions::default()).await;
        snapshots.push(store.snapshot(&id("s")).await.unwrap());
    }
    let options = DiffOptions::default();
    let alike = snapshots[0].diff(&snapshots[1], &options).await.unwrap();
    assert!(alike.identical);
    for other in &snapshots[2..] {
        let refused = failure(snapshots[0].diff(other, &options).await);
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        assert!(refused.advice().unwrap().contains("import"));
    }
    let cancel = CancellationToken::new();
    cancel.cancel();
    let options = DiffOptions { cancel, ..options };
    let ended = failure(snapshots[0].diff(&snapshots[1], &options).await);
    assert_eq!(ended.kind(), ErrorKind::Interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_addresses_are_a_difference() {
    let store = Store::open("memory://diff-addresses").unwrap();
    let mut snapshots = Vec::new();
    for (name, start) in [("a", 0x1000), ("b", 0x2000)] {
        let section = NewSection {
            address_ranges: vec![AddressRange {
                start,
                length: 4096,
                section_offset: 0,
            }],
            chunking: Some(chunking::fixed(4096)),
            ..NewSection::blob(Role::Memory, "", input(&noise(50, 4096), Way::Source))
        };
        save(&store, name, vec![section], SaveOptions::default())
            .await
            .unwrap();
        snapshots.push(store.snapshot(&id(name)).await.unwrap());
    }
    let report = snapshots[0]
        .diff(&snapshots[1], &DiffOptions::default())
        .await
        .unwrap();
    assert_eq!(report.equal_bytes, 4096);
    assert!(!report.identical);
}

#[test]
fn real_checkpoints_differ_where_they_do_and_hardly_elsewhere() {
    let (Some(first), Some(second)) = (provisioned("images/R"), provisioned("images/R2")) else {
        return;
    };
    let tool = Tool::new();
    tool.save("r", &[first.to_str().unwrap()]);
    tool.save("r2", &[second.to_str().unwrap(), "--base", "r"]);
    let report = tool.json(&[&["diff", "r", "r2"][..], &ALL].concat());
    let memory = find(&report["sections"], "section", "memory");
    let read = |dir: &Path| fs::read(dir.join("pages.img")).unwrap();
    let (a, b) = (read(&first), read(&second));
    assert_true(memory, &a, &b);
    let differing = a
        .chunks(4096)
        .zip(b.chunks(4096))
        .filter(|(a, b)| a != b)
        .count() as u64;
    let new = number(&memory["new_bytes"]);
    // A changed page costs the chunk around it, of 64 KiB on average, or two.
    assert!(
        new >= differing && new <= differing * (192 << 10) + (1 << 20),
        "{differing} pages, {new} bytes"
    );
    let shown = tool.run(&["diff", "r", "r2", "--exit-code"]).ends_with(1);
    assert!(shown.text().contains("memory: "), "{}", shown.text());
}
