//! Makes trees to save, and saves and restores them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use podsnap_engine::tree::{ExtractOptions, ExtractStats, ScanOptions, TreeExtractor, TreeReader};
use podsnap_format::tree::TreeTable;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};

/// Whether the test may make devices and trusted attributes; says so if not.
pub fn privileged(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!(
            "SKIPPED: {what}: needs root for devices, owners and trusted extended attributes"
        );
    }
    root
}

/// A tree with one of everything that is hard to keep.
pub fn make_nasty_tree(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::write(at("plain"), b"hello").unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("large"), pattern(3_000_001)).unwrap();
    fs::create_dir(at("empty-dir")).unwrap();
    fs::create_dir_all(at("sub/dir")).unwrap();
    fs::write(at("sub/dir/file"), pattern(70_000)).unwrap();

    // Names.
    fs::create_dir(at("names")).unwrap();
    let names: [&[u8]; 9] = [
        b"line\nbreak",
        b"\xff\xfe not utf-8",
        b" blank ",
        b"-dash",
        b"a=b%3D%",
        b"\\n",
        b"...",
        "\u{e4}\u{1f980}".as_bytes(),
        &[b'n'; 255],
    ];
    for name in names {
        fs::write(at("names").join(OsStr::from_bytes(name)), name).unwrap();
    }
    symlink(OsStr::from_bytes(b"to \xff\n"), at("names/link")).unwrap();
    make_deep(top, "d", 300);

    // Kinds.
    symlink("/etc/passwd", at("absolute-link")).unwrap();
    symlink("../../..", at("upward-link")).unwrap();
    symlink("x".repeat(180), at("long-link")).unwrap();
    let node = |name: &str, kind, major, minor| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at(name),
            kind,
            Mode::from_raw_mode(0o640),
            rustix::fs::makedev(major, minor),
        )
        .unwrap();
    };
    node("fifo", FileType::Fifo, 0, 0);
    for first in ["plain", "fifo", "absolute-link", "sub/dir/file"] {
        let name = format!("a-link-to-{}", first.replace('/', "-"));
        rustix::fs::linkat(
            rustix::fs::CWD,
            at(first),
            rustix::fs::CWD,
            at(&name),
            AtFlags::empty(),
        )
        .unwrap();
    }

    // Holes: two islands in a gigabyte, a hole only, a hole at the end.
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(&pattern(10_000), 300 << 20).unwrap();
    sparse.write_all_at(b"island", 700 << 20).unwrap();
    File::create(at("only-a-hole"))
        .unwrap()
        .set_len(123_456_789)
        .unwrap();
    let tail = File::create(at("hole-at-end")).unwrap();
    tail.write_all_at(&pattern(8192), 0).unwrap();
    tail.set_len(1 << 20).unwrap();

    set_xattr(&at("plain"), "user.comment", b"line\nbreak = \0 binary");
    set_xattr(&at("plain"), "user.empty", b"");
    set_xattr(&at("plain"), "user.odd=name%", b"1");
    set_xattr(&at("sub"), "user.overlay.opaque", b"y");
    set_xattr(&at("large"), "user.big", &pattern(3000));

    if privileged("devices, whiteouts, opaque directories, owners") {
        node("whiteout", FileType::CharacterDevice, 0, 0);
        node("null", FileType::CharacterDevice, 1, 3);
        node("block", FileType::BlockDevice, 259, 70_000);
        fs::create_dir(at("opaque")).unwrap();
        set_xattr(&at("opaque"), "trusted.overlay.opaque", b"y");
        set_xattr(&at("null"), "trusted.on-a-device", b"d");
        set_xattr(&at("absolute-link"), "trusted.on-a-link", b"l");
        set_xattr(&at("empty"), "security.capability", &CAPABILITY);
        // Only root can read and remove these again.
        for (name, mode) in [("large", 0o000), ("sub/dir", 0o555)] {
            fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        for (name, uid, gid) in [
            ("plain", 1000, 2000),
            ("sub", 3_000_000_000, 4),
            ("upward-link", 5, 6),
            ("fifo", 7, 8),
        ] {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(
                rustix::fs::CWD,
                at(name),
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .unwrap();
        }
    }
    for (name, mode) in [
        ("plain", 0o6755),
        ("fifo", 0o7642),
        ("sub", 0o3711),
        ("empty-dir", 0o1777),
    ] {
        fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    let times = [
        ("plain", 1, 1),
        ("large", -5, 999_999_999),
        ("fifo", 2_000_000_000, 7),
        ("upward-link", 12345, 678),
        ("sparse", 0, 0),
    ];
    for (name, seconds, nanos) in times {
        set_mtime(&at(name), seconds, nanos);
    }
    // Directories last, as making things in them moves their time.
    for (name, seconds, nanos) in [
        ("sub/dir", 99, 98),
        ("sub", 97, 96),
        ("names", -1, 500_000_000),
        ("", 1_700_000_000, 123_456_789),
    ] {
        set_mtime(&at(name), seconds, nanos);
    }
}

/// cap_net_raw+ep, version 2.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A chain of directories with a file at its end, made step by step as its path may be longer than a path can be.
pub fn make_deep(top: &Path, name: &str, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut directory: OwnedFd = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o750)).unwrap();
        directory = rustix::fs::openat(&directory, name, flags, Mode::empty()).unwrap();
    }
    let file = rustix::fs::openat(
        &directory,
        "end",
        OFlags::WRONLY | OFlags::CREATE,
        Mode::from_raw_mode(0o600),
    )
    .unwrap();
    rustix::io::write(&file, b"deep down").unwrap();
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        },
    };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Bytes that are neither zeros nor repeat soon.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The stream of a directory and its table.
pub fn save(directory: &Path) -> (Vec<u8>, TreeTable) {
    let mut reader = TreeReader::open(directory, ScanOptions::default()).unwrap();
    let mut stream = Vec::new();
    reader.read_to_end(&mut stream).unwrap();
    assert_eq!(stream.len() as u64, reader.stream_length());
    let table = split(&stream, reader.table_length());
    assert_eq!(&table, reader.table());
    (stream, table)
}

/// Parses the table at the end of a stream.
pub fn split(stream: &[u8], table_length: u64) -> TreeTable {
    let data_length = stream.len() - table_length as usize;
    TreeTable::parse(&stream[data_length..], data_length as u64).unwrap()
}

/// Restores a stream, the last pieces first and by several threads.
pub fn restore(
    stream: &[u8],
    table: TreeTable,
    target: &Path,
    options: ExtractOptions,
) -> ExtractStats {
    let extractor = TreeExtractor::new(target, table, options).unwrap();
    let pieces: Vec<(usize, &[u8])> = stream.chunks(100_003).enumerate().collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (pieces, extractor) = (&pieces, &extractor);
            scope.spawn(move || {
                for (index, piece) in pieces.iter().rev().skip(thread).step_by(4) {
                    extractor.write_at((index * 100_003) as u64, piece).unwrap();
                }
            });
        }
    });
    extractor.finish().unwrap()
}
