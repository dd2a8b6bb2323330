//! A directory tree with one of everything an overlay's upper directory may hold, and a description to compare two trees by.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
};

/// Makes the tree. What needs root is left out for others, with a word about it.
pub fn make_tree(top: &Path) {
    let at = |name: &str| top.join(name);
    fs::create_dir_all(at("etc/conf.d")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("etc/hosts"), b"127.0.0.1 localhost\n").unwrap();
    fs::write(at("etc/conf.d/nothing"), b"").unwrap();
    fs::write(at("blob"), super::noise(77, 3_000_001)).unwrap();
    fs::write(top.join(OsStr::from_bytes(b"not utf-8 \xff\n")), b"x").unwrap();
    fs::hard_link(at("etc/hosts"), at("hosts-again")).unwrap();
    symlink("../outside", at("etc/link")).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"an island", 32 << 20).unwrap();
    node(&at("fifo"), FileType::Fifo, (0, 0));
    drop(UnixListener::bind(at("socket")).unwrap());
    set_xattr(&at("blob"), "user.comment", b"a \0 b");
    chmod(&at("blob"), 0o4750);
    chmod(&at("empty"), 0o1777);
    if rustix::process::geteuid().is_root() {
        node(&at("whiteout"), FileType::CharacterDevice, (0, 0));
        node(&at("null"), FileType::CharacterDevice, (1, 3));
        node(&at("disk"), FileType::BlockDevice, (259, 3));
        fs::create_dir(at("opaque")).unwrap();
        set_xattr(&at("opaque"), "trusted.overlay.opaque", b"y");
        for (name, uid, gid) in [
            ("etc/hosts", 1000, 2000),
            ("empty", 3, 4),
            ("etc/link", 5, 6),
        ] {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(CWD, at(name), Some(uid), Some(gid), flags).unwrap();
        }
    } else {
        super::skipped("devices, whiteouts, opaque directories, owners: need root");
    }
    for (name, seconds, nanos) in [
        ("etc/hosts", 1_600_000_000, 123_456_789),
        ("etc/link", 5, 6),
        ("sparse", 0, 1),
        ("etc/conf.d", 7, 999_999_999),
        ("etc", 1_700_000_001, 2),
        ("", 1_700_000_000, 1),
    ] {
        set_mtime(&at(name), seconds, nanos);
    }
}

fn node(path: &Path, kind: FileType, (major, minor): (u32, u32)) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn set_mtime(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec { tv_sec, tv_nsec },
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// What is at each path below `top`, the top included: everything a restore must bring back, a line for each path.
pub fn describe(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut links = BTreeMap::new();
    visit(top, top, &mut all, &mut links);
    all
}

fn visit(
    top: &Path,
    path: &Path,
    all: &mut BTreeMap<PathBuf, String>,
    links: &mut BTreeMap<u64, PathBuf>,
) {
    let stat = fs::symlink_metadata(path).unwrap();
    let below = path.strip_prefix(top).unwrap().to_owned();
    let kind = stat.file_type();
    let mut line = format!(
        "{:o} {}:{} {}.{:09} {:?}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.mtime(),
        stat.mtime_nsec(),
        xattrs(path)
    );
    let is_device = kind.is_char_device() || kind.is_block_device();
    if kind.is_file() {
        let hash = blake3::hash(&fs::read(path).unwrap());
        // Holes stay holes; how a file system rounds them is its own affair.
        let sparse = stat.blocks() * 512 < stat.len() / 2;
        line += &format!(" {} bytes {hash} sparse {sparse}", stat.len());
    } else if kind.is_symlink() {
        line += &format!(" to {:?}", fs::read_link(path).unwrap());
    } else if is_device {
        line += &format!(" device {:x}", stat.rdev());
    }
    if !kind.is_dir() && stat.nlink() > 1 {
        let first = links.entry(stat.ino()).or_insert_with(|| below.clone());
        line += &format!(" linked with {first:?}");
    }
    all.insert(below, line);
    if kind.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        names.sort();
        for name in names {
            visit(top, &name, all, links);
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let name = String::from_utf8(name.to_vec()).unwrap();
            let len = rustix::fs::lgetxattr(path, name.as_str(), &mut value).unwrap();
            value.truncate(len);
            (name, value)
        })
        .collect()
}

/// Panics, showing the differing paths, unless the trees are the same.
#[track_caller]
pub fn assert_same_tree(found: &Path, expected: &BTreeMap<PathBuf, String>) {
    let found = describe(found);
    let lines = |tree: &BTreeMap<PathBuf, String>, other: &BTreeMap<PathBuf, String>| {
        let differing = tree
            .iter()
            .filter(|(path, line)| other.get(*path) != Some(*line));
        differing
            .map(|(path, line)| format!("  {path:?}: {line}\n"))
            .collect::<String>()
    };
    assert!(
        found == *expected,
        "found\n{}expected\n{}",
        lines(&found, expected),
        lines(expected, &found)
    );
}
