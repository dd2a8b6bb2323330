//! Gives restored entries their owner, extended attributes, mode and time, in the order in which none undoes another:
//! a change of owner clears set-user-id and file capabilities, a read-only mode forbids setting attributes, and
//! everything moves a directory's time.

use std::os::fd::{AsRawFd, OwnedFd};

use podsnap_format::tree::{Attributes, EntryKind};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::dirs::{Directories, READ_FILE, open_beneath};
use super::extract::TreeExtractor;
use super::scan::through_proc;
use super::{Error, to_path};

pub(super) fn apply(extractor: &mut TreeExtractor) -> Result<(), Error> {
    let count = extractor.table.entries().len() as u32;
    let is_directory = |extractor: &TreeExtractor, index: u32| {
        extractor.table.entries()[index as usize].kind == EntryKind::Directory
    };
    for index in 0..count {
        if !is_directory(extractor, index) {
            apply_to(extractor, index)?;
        }
    }
    // In reverse pre-order whatever a directory holds comes before it.
    for index in (0..count).rev() {
        if is_directory(extractor, index) {
            apply_to(extractor, index)?;
        }
    }
    Ok(())
}

fn apply_to(extractor: &mut TreeExtractor, index: u32) -> Result<(), Error> {
    let TreeExtractor {
        table,
        directories,
        report,
        created,
        ..
    } = extractor;
    let entry = &table.entries()[index as usize];
    if !created[index as usize] || matches!(entry.kind, EntryKind::HardLink { .. }) {
        return Ok(());
    }
    let path = || to_path(table.path(index));
    let failed = |action| {
        move |errno: Errno| Error::Io {
            action,
            path: path(),
            source: errno.into(),
        }
    };
    let node = Node::open(directories, table, index).map_err(failed("open"))?;
    let Attributes {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
    } = &entry.attributes;
    let mut mode = *mode;

    let owner = node.set_owner(Uid::from_raw(*uid), Gid::from_raw(*gid));
    if let Err(errno) = owner {
        tolerated(errno).map_err(failed("set the owner of"))?;
        report.missing("set the owner of", path(), errno.into())?;
        // It would run as somebody it was never meant to run as.
        mode &= 0o1777;
    }
    for xattr in xattrs.iter() {
        if let Err(errno) = node.set_xattr(&xattr.name, &xattr.value) {
            tolerated(errno).map_err(failed("set an extended attribute of"))?;
            report.missing(xattr_action(&xattr.name), path(), errno.into())?;
        }
    }
    if let Err(errno) = node.set_mode(Mode::from_raw_mode(mode.into())) {
        tolerated(errno).map_err(failed("set the mode of"))?;
        report.missing("set the mode of", path(), errno.into())?;
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: Timespec {
            tv_sec: mtime.seconds,
            tv_nsec: mtime.nanos.into(),
        },
    };
    if let Err(errno) = node.set_times(&times) {
        tolerated(errno).map_err(failed("set the time of"))?;
        report.missing("set the time of", path(), errno.into())?;
    }
    Ok(())
}

/// Whether a failure says that the process or file system cannot do it, as opposed to that something is broken.
fn tolerated(errno: Errno) -> Result<(), Errno> {
    match errno {
        Errno::PERM
        | Errno::ACCESS
        | Errno::OPNOTSUPP
        | Errno::INVAL
        | Errno::RANGE
        | Errno::TOOBIG
        | Errno::ROFS => Ok(()),
        _ => Err(errno),
    }
}

fn xattr_action(name: &[u8]) -> &'static str {
    match name.split(|&byte| byte == b'.').next() {
        Some(b"trusted") => "set a trusted extended attribute of",
        Some(b"security") => "set a security extended attribute of",
        Some(b"system") => "set an access control list of",
        _ => "set an extended attribute of",
    }
}

/// A restored entry, held so that no name needs to be followed to change it.
enum Node {
    /// A directory or regular file.
    Open(std::sync::Arc<OwnedFd>),
    /// Anything else: it cannot be opened without side effects.
    Named {
        directory: std::sync::Arc<OwnedFd>,
        name: Vec<u8>,
        symlink: bool,
    },
}

impl Node {
    fn open(
        directories: &Directories,
        table: &podsnap_format::tree::TreeTable,
        index: u32,
    ) -> Result<Self, Errno> {
        let entries = table.entries();
        let entry = &entries[index as usize];
        if entry.kind == EntryKind::Directory {
            return Ok(Node::Open(directories.open(entries, index)?));
        }
        let directory = directories.open_parent(entries, index)?;
        if matches!(entry.kind, EntryKind::Regular { .. }) {
            let file = open_beneath(&directory, &entry.name, READ_FILE, Mode::empty())?;
            return Ok(Node::Open(file.into()));
        }
        let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
        Ok(Node::Named {
            directory,
            name: entry.name.clone(),
            symlink,
        })
    }

    fn set_owner(&self, uid: Uid, gid: Gid) -> Result<(), Errno> {
        match self {
            Node::Open(fd) => rustix::fs::fchown(fd, Some(uid), Some(gid)),
            Node::Named {
                directory, name, ..
            } => rustix::fs::chownat(
                directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
        }
    }

    fn set_xattr(&self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Node::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Node::Named {
                directory,
                name: file,
                ..
            } => rustix::fs::lsetxattr(
                through_proc(directory, file),
                name,
                value,
                XattrFlags::empty(),
            ),
        }
    }

    fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        match self {
            Node::Open(fd) => rustix::fs::fchmod(fd, mode),
            // A symbolic link's mode means nothing and cannot be changed.
            Node::Named { symlink: true, .. } => Ok(()),
            Node::Named {
                directory, name, ..
            } => {
                let node = open_beneath(directory, name, OFlags::PATH, Mode::empty())?;
                rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), mode)
            }
        }
    }

    fn set_times(&self, times: &Timestamps) -> Result<(), Errno> {
        match self {
            Node::Open(fd) => rustix::fs::futimens(fd, times),
            Node::Named {
                directory, name, ..
            } => rustix::fs::utimensat(directory, name, times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }
}
