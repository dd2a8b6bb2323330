//! Says what is in a directory by asking the kernel, without the code under test.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom};

/// Everything about one name that a tree must keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u64),
    pub device: u64,
    /// First path, in order, of the same inode.
    pub same_as: String,
    pub size: i64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Runs of data, with a hash of each: (start, end, hash).
    pub runs: Vec<(u64, u64, String)>,
}

pub fn describe(top: &Path) -> BTreeMap<Vec<u8>, Described> {
    let mut all = BTreeMap::new();
    let top = rustix::fs::open(top, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut inodes = BTreeMap::new();
    add(&top, b".", b"", &mut all, &mut inodes);
    all
}

/// Compares two descriptions name by name, so that a difference can be read.
pub fn assert_same(found: &BTreeMap<Vec<u8>, Described>, wanted: &BTreeMap<Vec<u8>, Described>) {
    for (path, described) in wanted {
        assert!(
            found.get(path) == Some(described),
            "{}\nis    {:?}\nnot {described:?}",
            path.escape_ascii(),
            found.get(path)
        );
    }
    assert_eq!(
        found.len(),
        wanted.len(),
        "there are more names than there should be"
    );
}

type All = BTreeMap<Vec<u8>, Described>;

fn add(
    directory: &OwnedFd,
    name: &[u8],
    path: &[u8],
    all: &mut All,
    inodes: &mut BTreeMap<u64, String>,
) {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let kind = stat.st_mode & 0o170000;
    let is_directory = kind == 0o040000;
    let same_as = inodes
        .entry(stat.st_ino)
        .or_insert_with(|| path.escape_ascii().to_string())
        .clone();
    let open = |flags| {
        rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty()).unwrap()
    };
    let target = match kind {
        0o120000 => rustix::fs::readlinkat(directory, name, Vec::new())
            .unwrap()
            .into_bytes(),
        _ => Vec::new(),
    };
    let described = Described {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, stat.st_mtime_nsec),
        device: stat.st_rdev,
        same_as,
        size: if is_directory { 0 } else { stat.st_size },
        target,
        xattrs: xattrs(directory, name),
        runs: if kind == 0o100000 {
            runs(open(OFlags::RDONLY), stat.st_size as u64)
        } else {
            Vec::new()
        },
    };
    all.insert(path.to_vec(), described);
    if is_directory {
        let opened = open(OFlags::RDONLY | OFlags::DIRECTORY);
        let mut names: Vec<Vec<u8>> = rustix::fs::Dir::read_from(&opened)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_bytes().to_vec())
            .filter(|name| !matches!(name.as_slice(), b"." | b".."))
            .collect();
        names.sort();
        for name in names {
            let below = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            add(&opened, &name, &below, all, inodes);
        }
    }
}

fn xattrs(directory: &OwnedFd, name: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = [
        format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(),
        name,
    ]
    .concat();
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path.as_slice(), &mut list[..]).unwrap_or(0);
    let names = list[..length]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path.as_slice(), name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

fn runs(file: impl AsFd, size: u64) -> Vec<(u64, u64, String)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        let mut data = vec![0; (at - start) as usize];
        rustix::io::pread(&file, &mut data[..], start).unwrap();
        runs.push((start, at.min(size), blake3::hash(&data).to_string()));
    }
    runs
}
