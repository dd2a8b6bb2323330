//! The entry table of tree sections: what goes in comes out, and nothing hostile gets through.

use podsnap_format::tree::*;
use proptest::prelude::*;

fn entry(parent: u32, name: &[u8], kind: EntryKind) -> Entry {
    Entry {
        parent,
        name: name.to_vec(),
        kind,
        attributes: Attributes::default(),
    }
}

fn regular(size: u64, ranges: &[(u64, u64, u64)]) -> EntryKind {
    let range = |&(file_offset, length, stream_offset)| DataRange {
        file_offset,
        length,
        stream_offset,
    };
    EntryKind::Regular {
        size,
        ranges: ranges.iter().map(range).collect(),
    }
}

fn top() -> Entry {
    entry(0, b"", EntryKind::Directory)
}

/// What is wrong with a top directory and these entries, in a stream of 100 bytes of contents.
fn problem(entries: &[Entry]) -> String {
    TreeTable::new([&[top()], entries].concat(), 100)
        .unwrap_err()
        .to_string()
}

#[test]
fn names_that_are_no_names_are_refused() {
    for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'a'; 256]] {
        assert!(
            problem(&[entry(0, name, EntryKind::Fifo)]).contains("name"),
            "{}",
            name.escape_ascii()
        );
    }
    for name in [&b"..."[..], b"-", b"\n", b"\xff", &[b'a'; 255]] {
        TreeTable::new(vec![top(), entry(0, name, EntryKind::Fifo)], 0).unwrap();
    }
}

#[test]
fn an_entry_lies_in_an_earlier_directory_once() {
    let link = || EntryKind::Symlink {
        target: b"/tmp/x".to_vec(),
    };
    assert!(
        problem(&[entry(0, b"a", link()), entry(1, b"b", EntryKind::Fifo)])
            .contains("entry 2 (b): its parent")
    );
    assert!(problem(&[entry(1, b"a", EntryKind::Directory)]).contains("parent"));
    assert!(problem(&[entry(7, b"a", EntryKind::Directory)]).contains("parent"));
    let twice = [entry(0, b"a", EntryKind::Directory), entry(0, b"a", link())];
    assert!(problem(&twice).contains("ascend"));
    // Left directories cannot be gone back to, which is how a path could come twice unnoticed.
    let back = [
        entry(0, b"a", EntryKind::Directory),
        entry(0, b"b", EntryKind::Directory),
        entry(1, b"c", EntryKind::Fifo),
    ];
    assert!(problem(&back).contains("parent"));
    let chain = |depth: u32| {
        (0..depth)
            .map(|i| entry(i, b"d", EntryKind::Directory))
            .collect::<Vec<_>>()
    };
    assert!(problem(&chain(MAX_DEPTH as u32 + 1)).contains("too deep"));
    TreeTable::new([vec![top()], chain(MAX_DEPTH as u32)].concat(), 0).unwrap();
    assert_eq!(TreeTable::new(vec![], 0), Err(TreeError::Empty));
    assert!(TreeTable::new(vec![entry(0, b"", EntryKind::Fifo)], 0).is_err());
}

#[test]
fn ranges_lie_in_their_file_and_in_the_stream() {
    let one = |kind| problem(&[entry(0, b"f", kind)]);
    assert!(one(regular(10, &[(0, 11, 0)])).contains("outside the file"));
    assert!(one(regular(200, &[(0, 101, 0)])).contains("outside the stream"));
    assert!(one(regular(10, &[(5, 2, 0), (6, 2, 2)])).contains("ascend"));
    assert!(one(regular(10, &[(5, 2, 0), (0, 2, 2)])).contains("ascend"));
    assert!(one(regular(10, &[(5, 0, 0)])).contains("empty"));
    assert!(one(regular(10, &[(u64::MAX, 2, 0)])).contains("overflows"));
    assert!(one(regular(10, &[(0, 2, u64::MAX)])).contains("overflows"));
    assert!(one(regular(u64::MAX, &[])).contains("larger"));
    let both = [
        entry(0, b"f", regular(10, &[(0, 10, 0)])),
        entry(0, b"g", regular(10, &[(0, 10, 9)])),
    ];
    assert_eq!(
        TreeTable::new([&[top()], &both[..]].concat(), 100),
        Err(TreeError::Overlap {
            first: 1,
            second: 2,
            stream_offset: 9
        })
    );
}

#[test]
fn a_hard_link_names_an_earlier_file() {
    let link = |target| EntryKind::HardLink { target };
    for target in [0, 2, 3, u32::MAX] {
        assert!(
            problem(&[
                entry(0, b"a", EntryKind::Fifo),
                entry(0, b"b", link(target))
            ])
            .contains("hard link"),
            "{target}"
        );
    }
    let chain = [
        entry(0, b"a", EntryKind::Fifo),
        entry(0, b"b", link(1)),
        entry(0, b"c", link(2)),
    ];
    assert!(problem(&chain).contains("hard link"));
    let mut owned = entry(0, b"b", link(1));
    owned.attributes.mode = 1;
    assert!(problem(&[chain[0].clone(), owned]).contains("attributes of its own"));
}

#[test]
fn attributes_keep_to_their_limits() {
    let with = |change: &dyn Fn(&mut Attributes)| {
        let mut fifo = entry(0, b"f", EntryKind::Fifo);
        change(&mut fifo.attributes);
        problem(&[fifo])
    };
    let xattr = |name: &[u8], length| Xattr {
        name: name.to_vec(),
        value: vec![0; length],
    };
    assert!(with(&|a| a.mode = 0o10000).contains("12 bits"));
    assert!(with(&|a| a.mtime.nanos = 1_000_000_000).contains("nanoseconds"));
    assert!(with(&|a| a.xattrs = [xattr(b"b", 0), xattr(b"a", 0)].into()).contains("ascend"));
    assert!(with(&|a| a.xattrs = [xattr(b"a", 0), xattr(b"a", 0)].into()).contains("ascend"));
    assert!(with(&|a| a.xattrs = [xattr(b"a\0", 0)].into()).contains("NUL"));
    assert!(with(&|a| a.xattrs = [xattr(b"a", 65537)].into()).contains("64 KiB"));
    assert!(
        problem(&[entry(
            0,
            b"l",
            EntryKind::Symlink {
                target: b"a\0b".to_vec()
            }
        )])
        .contains("NUL")
    );
}

#[test]
fn hostile_bytes_are_refused_by_what_is_wrong_with_them() {
    let parse = |bytes: &[u8]| TreeTable::parse(bytes, 100).unwrap_err();
    assert_eq!(parse(&[9, 1, 0x10, 0, 0]), TreeError::Version { found: 9 });
    // 2^60 entries; 2^60 ranges; 2^60 attributes: refused before anything is reserved for them.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    let many = |front: &[u8]| parse(&[front, &huge, &[0; 64]].concat());
    assert!(matches!(
        many(&[1]),
        TreeError::Truncated {
            what: "the number of entries",
            ..
        }
    ));
    let file = [1, 2, 0x10, 0, 0, 0x11, 0, 0, 1, b'f', 0, 0];
    assert!(matches!(
        many(&[&file[..], &[200, 1]].concat()),
        TreeError::Truncated {
            what: "the number of data ranges",
            ..
        }
    ));
    assert!(matches!(
        many(&[1, 1, 0x30, 0, 0, 0]),
        TreeError::Truncated {
            what: "the number of extended attributes",
            ..
        }
    ));
    let mut dense = file;
    dense[5] = 0x51;
    let vast = parse(&[&dense[..], &huge].concat()).to_string();
    assert!(vast.contains("outside the stream"), "{vast}");
    assert!(matches!(
        parse(&[1, 1, 0x10, 0, 0, 7]),
        TreeError::LeftOver {
            offset: 5,
            count: 1
        }
    ));
    assert!(parse(&[1, 1, 0x90, 0, 0]).to_string().contains("flag"));
    assert!(parse(&[1, 1, 0x08, 0, 0]).to_string().contains("kind"));
    // The way up to a directory leads past the top, or a name is put together as "..".
    assert!(matches!(
        parse(&[1, 2, 0x10, 0, 0, 0x13, 1, 0, 1, b'f', 0, 0]),
        TreeError::Overflow { .. }
    ));
    let dots = [
        1, 3, 0x10, 0, 0, 0x13, 0, 0, 2, b'.', b'+', 0, 0, 0x13, 0, 1, 1, b'.', 0, 0,
    ];
    assert!(
        parse(&dots).to_string().contains("are no names"),
        "{}",
        parse(&dots)
    );
    let cut = TreeTable::new(sample(), 100).unwrap().encode();
    for length in 0..cut.len() {
        TreeTable::parse(&cut[..length], 100).unwrap_err();
    }
    assert_eq!(
        parse(&vec![0; MAX_TABLE_LEN as usize + 1]),
        TreeError::TooLong {
            length: MAX_TABLE_LEN + 1
        }
    );
}

fn sample() -> Vec<Entry> {
    let whiteout = EntryKind::CharDevice { major: 0, minor: 0 };
    let mut opaque = entry(0, b"opaque", EntryKind::Directory);
    opaque.attributes = Attributes {
        mode: 0o1777,
        uid: u32::MAX,
        gid: 3,
        mtime: Timestamp {
            seconds: i64::MIN,
            nanos: 999_999_999,
        },
        xattrs: [Xattr {
            name: b"trusted.overlay.opaque".to_vec(),
            value: b"y".to_vec(),
        }]
        .into(),
    };
    vec![
        top(),
        entry(0, b"a", regular(10, &[(0, 10, 0)])),
        entry(
            0,
            b"ab",
            regular(1 << 40, &[(4096, 10, 10), (1 << 39, 30, 60)]),
        ),
        entry(0, b"b", EntryKind::HardLink { target: 1 }),
        opaque,
        entry(4, b"gone", whiteout),
        entry(
            0,
            b"z",
            EntryKind::Symlink {
                target: b"../\xff".to_vec(),
            },
        ),
    ]
}

#[test]
fn the_table_is_encoded_as_specified() {
    // The example of SPEC.md.
    let mut file = entry(0, b"a.txt", regular(5, &[(0, 5, 0)]));
    file.attributes = Attributes {
        mode: 0o644,
        uid: 1,
        gid: 2,
        mtime: Timestamp {
            seconds: 1,
            nanos: 0,
        },
        ..Default::default()
    };
    let whiteout = entry(0, b"a.z", EntryKind::CharDevice { major: 0, minor: 0 });
    let table = TreeTable::new(
        vec![
            top(),
            file,
            whiteout,
            entry(0, b"b", EntryKind::HardLink { target: 1 }),
        ],
        5,
    )
    .unwrap();
    let bytes = [
        0x01, 0x04, 0x10, 0x00, 0x00, 0x41, 0x00, 0x00, 0x05, 0x61, 0x2e, 0x74, 0x78, 0x74, 0xa4,
        0x03, 0x01, 0x02, 0x02, 0x00, 0x05, 0x15, 0x00, 0x02, 0x01, 0x7a, 0x01, 0x00, 0x00, 0x00,
        0x07, 0x00, 0x00, 0x01, 0x62, 0x02,
    ];
    assert_eq!(table.encode(), bytes);
    assert_eq!(TreeTable::parse(&bytes, 5), Ok(table));
}

#[test]
fn a_hundred_thousand_files_take_few_bytes_each() {
    let mut entries = vec![top()];
    let mut stream = 0;
    for package in 0..1000u32 {
        let parent = entries.len() as u32;
        entries.push(entry(
            0,
            format!("package-{package:04}").as_bytes(),
            EntryKind::Directory,
        ));
        for module in 0..100u64 {
            let size = 500 + 37 * module;
            let mut file = entry(
                parent,
                format!("module_{module:02}.py").as_bytes(),
                regular(size, &[(0, size, stream)]),
            );
            file.attributes.mode = 0o644;
            file.attributes.mtime = Timestamp {
                seconds: 1_700_000_000 + module as i64,
                nanos: 123_456_789,
            };
            entries.push(file);
            stream += size;
        }
    }
    let table = TreeTable::new(entries, stream).unwrap();
    let per_entry = table.encode().len() as f64 / table.entries().len() as f64;
    println!("{per_entry:.1} bytes an entry");
    assert!(per_entry < 16.0, "{per_entry} bytes an entry");
}

/// Any valid table, from a list of instructions: where to put an entry and what it is.
fn tables() -> impl Strategy<Value = TreeTable> {
    let attributes = (
        0u16..0o10000,
        any::<u32>(),
        0u32..3,
        any::<i64>(),
        0u32..1_000_000_000,
        0usize..4,
    )
        .prop_map(|(mode, uid, gid, seconds, nanos, count)| Attributes {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanos },
            xattrs: (0..count)
                .map(|i| Xattr {
                    name: vec![b'a' + i as u8],
                    value: vec![i as u8; i * 50],
                })
                .collect(),
        });
    let step = (
        0usize..4,
        any::<u8>(),
        0u8..9,
        prop::collection::vec((0u64..5000, 1u64..5000, 0u64..50), 0..4),
        attributes,
    );
    prop::collection::vec(step, 0..60).prop_map(|steps| {
        let mut entries = vec![top()];
        let mut open = vec![(0u32, 0u32)];
        let mut stream_end = 0;
        let mut files = Vec::new();
        for (up, byte, kind, runs, attributes) in steps {
            open.truncate((open.len() - up.min(open.len() - 1)).max(1));
            let (parent, children) = open.last_mut().unwrap();
            *children += 1;
            let mut name = format!("{children:04}").into_bytes();
            name.push(byte.max(b'0'));
            let index = entries.len() as u32;
            let kind = match kind {
                0 | 1 => EntryKind::Directory,
                2 => EntryKind::Symlink {
                    target: vec![byte.max(1); 9],
                },
                3 => EntryKind::Fifo,
                4 => EntryKind::Socket,
                5 => EntryKind::CharDevice {
                    major: byte.into(),
                    minor: 0,
                },
                6 => EntryKind::BlockDevice {
                    major: u32::MAX,
                    minor: byte.into(),
                },
                7 if !files.is_empty() => EntryKind::HardLink {
                    target: files[byte as usize % files.len()],
                },
                _ => {
                    let (mut size, mut ranges) = (0, Vec::new());
                    for (gap, length, skipped) in runs {
                        ranges.push(DataRange {
                            file_offset: size + gap,
                            length,
                            stream_offset: stream_end + skipped,
                        });
                        size += gap + length;
                        stream_end += skipped + length;
                    }
                    EntryKind::Regular {
                        size: size + u64::from(byte % 2),
                        ranges,
                    }
                }
            };
            let parent = *parent;
            match kind {
                EntryKind::Directory => open.push((index, 0)),
                EntryKind::HardLink { .. } => {}
                _ => files.push(index),
            }
            let attributes = if matches!(kind, EntryKind::HardLink { .. }) {
                Attributes::default()
            } else {
                attributes
            };
            entries.push(Entry {
                parent,
                name,
                kind,
                attributes,
            });
        }
        TreeTable::new(entries, stream_end).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_table_comes_back(table in tables()) {
        prop_assert_eq!(TreeTable::parse(&table.encode(), table.data_length()), Ok(table));
    }

    #[test]
    fn no_damage_makes_a_reader_panic(
        table in tables(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = table.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(parsed) = TreeTable::parse(&bytes, table.data_length()) {
            // What passed is sound: it goes through once more and no path leaves the tree.
            prop_assert_eq!(TreeTable::parse(&parsed.encode(), table.data_length()), Ok(parsed.clone()));
            for index in 1..parsed.entries().len() as u32 {
                let path = parsed.path(index);
                prop_assert!(path.split(|&b| b == b'/').all(|name| !matches!(name, b"" | b"." | b"..")));
            }
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), data_length in any::<u64>()) {
        let _ = TreeTable::parse(&[&[TABLE_VERSION], &bytes[..]].concat(), data_length);
    }
}
