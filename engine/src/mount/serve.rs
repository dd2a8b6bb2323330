//! Answers the kernel. Names and attributes are answered at once, from memory; a read is a task of its own on the runtime, so that any
//! number of them wait for the store at the same time and none holds up another.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, time::Duration};

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use podsnap_format::tree::EntryKind;
use tokio::runtime::Handle;

use super::{
    content::{self, Read, Readers},
    nodes::Nodes,
};
use crate::snapshot::Snapshot;

/// How long the kernel may remember what it was told. Nothing ever changes.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads that the kernel has under way on its own account, as it reads ahead.
const MAX_BACKGROUND: u16 = 64;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(super) struct FileSystem {
    snapshot: Snapshot,
    nodes: Nodes,
    readers: Readers,
    runtime: Handle,
}

impl FileSystem {
    pub(super) fn new(snapshot: &Snapshot, nodes: Nodes, runtime: Handle) -> Self {
        Self {
            readers: Readers::new(snapshot, &nodes),
            snapshot: snapshot.clone(),
            nodes,
            runtime,
        }
    }
}

impl Filesystem for FileSystem {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an old kernel lacks makes it slower only.
        for wanted in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.nodes.get(parent).and_then(|directory| {
            let number = self.nodes.find(directory, name.as_bytes())?;
            self.nodes.get(number)
        });
        match found {
            Some(node) => reply.entry(&FOR_GOOD, &self.nodes.attributes(node), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.nodes.get(number) {
            Some(node) => reply.attr(&FOR_GOOD, &self.nodes.attributes(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _request: &Request, number: INodeNo, reply: ReplyData) {
        match self.nodes.get(number).and_then(|node| node.entry()) {
            Some(entry) => match &entry.kind {
                EntryKind::Symlink { target } => reply.data(target),
                _ => reply.error(Errno::EINVAL),
            },
            None => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps writers out: the mount is read-only.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let planned = self
            .nodes
            .get(number)
            .and_then(|node| Read::plan(node, offset, size));
        let Some(read) = planned else {
            return reply.error(Errno::EINVAL);
        };
        let Some(reader) = self.readers.get(read.section) else {
            return reply.error(Errno::EIO);
        };
        let section = self.snapshot.sections()[read.section].title();
        self.runtime.spawn(async move {
            match read.run(&reader).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => {
                    let offset = read.section_offset();
                    tracing::error!(section, offset, "a read of a mounted file fails: {error}");
                    reply.error(Errno::EIO);
                }
            }
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        if !matches!(whence, SEEK_DATA | SEEK_HOLE) {
            return reply.error(Errno::EINVAL);
        }
        let found = u64::try_from(offset)
            .ok()
            .zip(self.nodes.get(number))
            .and_then(|(offset, node)| content::seek(node, offset, whence == SEEK_HOLE));
        match found {
            Some(found) => reply.offset(found as i64),
            None => reply.error(Errno::ENXIO),
        }
    }

    fn opendir(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(directory) = self.nodes.get(number).filter(|node| node.is_directory()) else {
            return reply.error(Errno::ENOTDIR);
        };
        for at in offset.. {
            let listed = match at {
                0 => Some((number, &b"."[..])),
                1 => Some((self.nodes.parent(directory), &b".."[..])),
                _ => self.nodes.nth(directory, (at - 2) as usize),
            };
            let Some((number, name)) = listed else { break };
            let Some(node) = self.nodes.get(number) else {
                break;
            };
            let kind = self.nodes.attributes(node).kind;
            if reply.add(number, at + 1, kind, OsStr::from_bytes(name)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        let bytes: u64 = self.snapshot.sections().iter().map(|s| s.length).sum();
        reply.statfs(bytes.div_ceil(4096), 0, 0, 0, 0, 4096, 255, 4096);
    }

    fn getxattr(
        &self,
        _request: &Request,
        number: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let xattrs = self.nodes.get(number).map_or(&[][..], |node| node.xattrs());
        match xattrs.iter().find(|x| x.name == name.as_bytes()) {
            Some(xattr) => give(&xattr.value, size, reply),
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let xattrs = self.nodes.get(number).map_or(&[][..], |node| node.xattrs());
        let names: Vec<u8> = xattrs
            .iter()
            .flat_map(|xattr| xattr.name.iter().copied().chain([0]))
            .collect();
        give(&names, size, reply);
    }
}

/// Gives a value, or its length to who asks with no room.
fn give(value: &[u8], room: u32, reply: ReplyXattr) {
    if room == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > room as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
