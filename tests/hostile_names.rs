//! Trees whose entry tables nobody's save wrote: restoring them neither writes nor changes anything outside of the target.

mod support;

use std::{
    fs,
    io::{Cursor, Read},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use podsnap::{
    ErrorKind, Input, NewSection, RestoreOptions, Role, SaveOptions, Store,
    format::tree::{Attributes, DataRange, Entry, EntryKind, TreeTable},
    source::SectionStream,
};
use support::*;

/// A tree's stream with any bytes as its table.
struct Made {
    bytes: Cursor<Vec<u8>>,
    table_length: u64,
}

impl Read for Made {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.bytes.read(buf)
    }
}

impl SectionStream for Made {
    fn table_length(&self) -> u64 {
        self.table_length
    }
}

fn entry(parent: u32, name: &str, kind: EntryKind) -> Entry {
    let mode = match kind {
        EntryKind::HardLink { .. } => 0,
        _ => 0o777,
    };
    Entry {
        parent,
        name: name.into(),
        kind,
        attributes: Attributes {
            mode,
            ..Attributes::default()
        },
    }
}

fn file() -> EntryKind {
    let range = DataRange {
        file_offset: 0,
        length: CONTENTS.len() as u64,
        stream_offset: 0,
    };
    EntryKind::Regular {
        size: range.length,
        ranges: vec![range],
    }
}

fn link(target: &Path) -> EntryKind {
    EntryKind::Symlink {
        target: target.to_str().unwrap().into(),
    }
}

const CONTENTS: &[u8] = b"hostile";

fn table(entries: Vec<Entry>) -> Vec<u8> {
    let top = entry(0, "", EntryKind::Directory);
    let entries = [vec![top], entries].concat();
    TreeTable::new(entries, CONTENTS.len() as u64)
        .unwrap()
        .encode()
}

/// Restores a tree with this table into `dir/target`.
async fn restore(dir: &Path, table: &[u8], strict: bool) -> podsnap::Result<()> {
    let store = Store::open(&format!("memory://{}", dir.display())).unwrap();
    let stream = Made {
        bytes: Cursor::new([CONTENTS, table].concat()),
        table_length: table.len() as u64,
    };
    let input = Input::Stream(Box::new(stream), "a made-up tree".into());
    let sections = vec![NewSection::tree(Role::Rootfs, "", input)];
    save(&store, "s", sections, SaveOptions::default())
        .await
        .unwrap();
    let options = RestoreOptions {
        strict,
        ..RestoreOptions::default()
    };
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    let restored = snapshot
        .restore(&store, &dir.join("target"), &options)
        .await;
    store.remove(&id("s")).await.unwrap();
    restored.map(drop)
}

/// Everything below `dir`, with what it is and holds.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        let contents = match stat.is_file() {
            true => fs::read(&path).unwrap(),
            false => Vec::new(),
        };
        found.push(format!(
            "{path:?} {:o} {} {contents:?}",
            stat.mode(),
            stat.uid()
        ));
        if stat.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

/// `bytes` with the name `from` replaced by another of its length.
fn renamed(bytes: &[u8], from: &str, to: &[u8]) -> Vec<u8> {
    let (from, mut bytes) = (from.as_bytes(), bytes.to_vec());
    let at = bytes
        .windows(from.len())
        .position(|part| part == from)
        .unwrap();
    bytes[at..at + from.len()].copy_from_slice(to);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("outside")).unwrap();
    let before = listing(dir);
    let names: [(&str, &[u8]); 6] = [
        ("XX", b".."),
        ("X", b"."),
        ("XXXXXXXXXX", b"../outside"),
        ("XXXXXXXX", b"/tmp/own"),
        ("XXX", b"a/b"),
        ("XXX", b"a\0b"),
    ];
    for (placeholder, hostile) in names {
        for directory in [false, true] {
            let kind = if directory {
                EntryKind::Directory
            } else {
                file()
            };
            let mut entries = vec![entry(0, placeholder, kind)];
            if directory {
                entries.push(entry(1, "own", file()));
            }
            let table = renamed(&table(entries), placeholder, hostile);
            let e = failure(restore(dir, &table, false).await);
            assert_eq!(e.kind(), ErrorKind::Damaged, "{hostile:?}: {e}");
            assert!(e.to_string().contains("entry table of rootfs"), "{e}");
            assert_eq!(listing(dir), before, "{hostile:?}");
        }
    }
    // The same with names that are names.
    let plain = table(vec![
        entry(0, "d", EntryKind::Directory),
        entry(1, "own", file()),
    ]);
    restore(dir, &plain, false).await.unwrap();
    assert_eq!(fs::read(dir.join("target/rootfs/d/own")).unwrap(), CONTENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn symbolic_links_are_restored_and_never_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let (outside, victim) = (dir.join("outside"), dir.join("outside/victim"));
    fs::create_dir(&outside).unwrap();
    fs::write(&victim, "untouched").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
    let stat = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        (
            stat.mode(),
            stat.uid(),
            stat.nlink(),
            stat.mtime(),
            stat.mtime_nsec(),
        )
    };
    let before = (listing(&outside), stat(&victim), stat(&outside));
    let entries = vec![
        // Modes, owners and times of links are their own, not those of what they point to.
        entry(0, "a-file", link(&victim)),
        entry(0, "b-directory", link(&outside)),
        entry(0, "c-up", link(Path::new("../../outside/victim"))),
        entry(0, "d", EntryKind::Directory),
        entry(4, "victim", link(&victim)),
        // Further names of links.
        entry(0, "e", EntryKind::HardLink { target: 1 }),
        entry(0, "f", EntryKind::HardLink { target: 2 }),
    ];
    restore(dir, &table(entries), false).await.unwrap();
    assert_eq!((listing(&outside), stat(&victim), stat(&outside)), before);
    let at = |name: &str| dir.join("target/rootfs").join(name);
    for (name, target) in [
        ("a-file", &victim),
        ("b-directory", &outside),
        ("e", &victim),
        ("f", &outside),
    ] {
        assert_eq!(&fs::read_link(at(name)).unwrap(), target, "{name}");
    }
    assert_eq!(stat(&at("a-file")).2, 2, "two names of one link");
}

/// A name that is a link cannot be a directory as well, whatever its order: what would lie below it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_lies_below_a_link_and_no_name_comes_twice() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("outside")).unwrap();
    let before = listing(dir);
    let outside = dir.join("outside");
    let made = table(vec![
        entry(0, "b", link(&outside)),
        entry(0, "c", EntryKind::Directory),
        entry(2, "own", file()),
    ]);
    for second in [b'b', b'a'] {
        let mut made = made.clone();
        let name = made.windows(2).rposition(|part| part == [1, b'c']).unwrap();
        made[name + 1] = second;
        let e = failure(restore(dir, &made, false).await);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        assert_eq!(listing(dir), before);
    }
    restore(dir, &made, false).await.unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// Whoever owns the directory that holds the target may prepare it.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_a_link_is_not_written_through() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    fs::create_dir(dir.join("outside")).unwrap();
    fs::write(dir.join("outside/kept"), "kept").unwrap();
    symlink(dir.join("outside"), dir.join("target")).unwrap();
    let before = listing(&dir.join("outside"));
    let e = failure(restore(dir, &table(vec![entry(0, "own", file())]), false).await);
    assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e}");
    assert_eq!(listing(&dir.join("outside")), before);
}

/// Counts of things that are not there, in every place of a table that has one.
#[tokio::test(flavor = "multi_thread")]
async fn huge_counts_are_refused_through_a_restore() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let before = listing(dir);
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    // Entries; data ranges of a file of 200 bytes; extended attributes.
    let fronts: [&[u8]; 3] = [
        &[1],
        &[1, 2, 0x10, 0, 0, 0x11, 0, 0, 1, b'f', 0, 0, 200, 1],
        &[1, 1, 0x30, 0, 0, 0],
    ];
    for front in fronts {
        let table = [front, &huge, &[0; 64]].concat();
        let e = failure(restore(dir, &table, true).await);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        assert_eq!(listing(dir), before);
    }
}
