//! What is where in a mounted snapshot: the numbers of files and directories, their attributes, and what directories hold.
//!
//! Number 1 is the top. Each section has a run of numbers behind it: a blob one, a tree one for each entry of its table. Nothing is built for an entry
//! but its place in its directory, so that a tree of millions of files costs little more than its table.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{FileAttr, FileType, INodeNo};
use podsnap_format::{
    Shape,
    tree::{Entry, EntryKind, Timestamp, TreeTable, Xattr},
};

use crate::{error::Result, snapshot::Snapshot};

/// The size of a block in `st_blocks`, in bytes.
const BLOCK_LEN: u64 = 512;

pub(super) struct Nodes {
    tops: Vec<Top>,
    /// Owner of the top and of blobs: whoever mounts.
    owner: (u32, u32),
    made: SystemTime,
}

/// One section.
pub(super) struct Top {
    name: String,
    pub(super) section: usize,
    /// Number of its first node.
    first: u64,
    pub(super) body: Body,
}

pub(super) enum Body {
    Blob { len: u64 },
    Tree(Tree),
}

pub(super) struct Tree {
    pub(super) table: TreeTable,
    /// What each directory holds, by ascending name.
    children: HashMap<u32, Vec<u32>>,
    /// How many names entries with more than one have.
    links: HashMap<u32, u32>,
}

/// What a number stands for.
#[derive(Clone, Copy)]
pub(super) enum Node<'a> {
    Top,
    Blob {
        top: &'a Top,
        len: u64,
    },
    Entry {
        top: &'a Top,
        tree: &'a Tree,
        index: u32,
    },
}

impl Nodes {
    /// Reads the entry tables of the sections that are trees.
    pub(super) async fn load(snapshot: &Snapshot, sections: &[usize]) -> Result<Self> {
        let mut tops = Vec::with_capacity(sections.len());
        let mut next = INodeNo::ROOT.0 + 1;
        for section in sections {
            let info = &snapshot.sections()[*section];
            let (body, count) = match info.shape {
                Shape::Blob => (Body::Blob { len: info.length }, 1),
                Shape::Tree => {
                    let table = snapshot.tree_table(*section).await?;
                    let count = table.entries().len() as u64;
                    (Body::Tree(Tree::new(table)), count)
                }
            };
            tops.push(Top {
                name: snapshot.file_name(*section),
                section: *section,
                first: next,
                body,
            });
            next += count;
        }
        let made = Duration::from_millis(snapshot.metadata().created_unix_ms);
        Ok(Self {
            tops,
            owner: (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
            made: UNIX_EPOCH.checked_add(made).unwrap_or(UNIX_EPOCH),
        })
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = usize> {
        self.tops.iter().map(|top| top.section)
    }

    pub(super) fn get(&self, number: INodeNo) -> Option<Node<'_>> {
        if number == INodeNo::ROOT {
            return Some(Node::Top);
        }
        let behind = self.tops.partition_point(|top| top.first <= number.0);
        let top = self.tops.get(behind.checked_sub(1)?)?;
        let index = number.0 - top.first;
        match &top.body {
            Body::Blob { len } => (index == 0).then_some(Node::Blob { top, len: *len }),
            Body::Tree(tree) => {
                (index < tree.table.entries().len() as u64).then_some(Node::Entry {
                    top,
                    tree,
                    index: index as u32,
                })
            }
        }
    }

    /// The number of a name in a directory.
    pub(super) fn find(&self, directory: Node<'_>, name: &[u8]) -> Option<INodeNo> {
        match directory {
            Node::Top => {
                let found = self.tops.iter().find(|top| top.name.as_bytes() == name)?;
                Some(INodeNo(found.first))
            }
            Node::Blob { .. } => None,
            Node::Entry { top, tree, index } => {
                let entries = tree.table.entries();
                let children = tree.children.get(&index)?;
                let at = children
                    .binary_search_by(|child| entries[*child as usize].name.as_slice().cmp(name))
                    .ok()?;
                Some(top.number(tree.itself(children[at])))
            }
        }
    }

    /// The `at`th thing in a directory.
    pub(super) fn nth<'a>(&'a self, directory: Node<'a>, at: usize) -> Option<(INodeNo, &'a [u8])> {
        match directory {
            Node::Top => {
                let top = self.tops.get(at)?;
                Some((INodeNo(top.first), top.name.as_bytes()))
            }
            Node::Blob { .. } => None,
            Node::Entry { top, tree, index } => {
                let child = *tree.children.get(&index)?.get(at)?;
                let name = &tree.table.entries()[child as usize].name;
                Some((top.number(tree.itself(child)), name))
            }
        }
    }

    /// The directory that holds a directory.
    pub(super) fn parent(&self, node: Node<'_>) -> INodeNo {
        match node {
            Node::Entry { top, tree, index } if index > 0 => {
                top.number(tree.table.entries()[index as usize].parent)
            }
            _ => INodeNo::ROOT,
        }
    }

    pub(super) fn attributes(&self, node: Node<'_>) -> FileAttr {
        let of = |ino, kind, perm, size| FileAttr {
            ino,
            size,
            blocks: size.div_ceil(BLOCK_LEN),
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            crtime: self.made,
            kind,
            perm,
            nlink: 1,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        match node {
            // A pod's memory is for who mounted it, and for nobody else.
            Node::Top => of(INodeNo::ROOT, FileType::Directory, 0o500, 0),
            Node::Blob { top, len } => of(INodeNo(top.first), FileType::RegularFile, 0o400, len),
            Node::Entry { top, tree, index } => {
                let entry = &tree.table.entries()[index as usize];
                let (kind, size) = kind_of(entry);
                let attributes = &entry.attributes;
                let mtime = time(attributes.mtime);
                FileAttr {
                    blocks: blocks(entry),
                    atime: mtime,
                    mtime,
                    ctime: mtime,
                    crtime: mtime,
                    nlink: tree.links.get(&index).copied().unwrap_or(1),
                    uid: attributes.uid,
                    gid: attributes.gid,
                    rdev: device(&entry.kind),
                    ..of(top.number(index), kind, attributes.mode, size)
                }
            }
        }
    }
}

impl Top {
    fn number(&self, index: u32) -> INodeNo {
        INodeNo(self.first + u64::from(index))
    }
}

impl Tree {
    fn new(table: TreeTable) -> Self {
        let (mut children, mut links) = (HashMap::<u32, Vec<u32>>::new(), HashMap::new());
        for (index, entry) in table.entries().iter().enumerate().skip(1) {
            children.entry(entry.parent).or_default().push(index as u32);
            if let EntryKind::HardLink { target } = entry.kind {
                *links.entry(target).or_insert(1) += 1;
            }
        }
        Self {
            table,
            children,
            links,
        }
    }

    /// The entry that another is one more name of, or itself.
    fn itself(&self, index: u32) -> u32 {
        match self.table.entries()[index as usize].kind {
            EntryKind::HardLink { target } => target,
            _ => index,
        }
    }
}

impl<'a> Node<'a> {
    /// The entry of a tree, if it is one.
    pub(super) fn entry(self) -> Option<&'a Entry> {
        match self {
            Node::Entry { tree, index, .. } => Some(&tree.table.entries()[index as usize]),
            _ => None,
        }
    }

    pub(super) fn is_directory(self) -> bool {
        match self {
            Node::Top => true,
            Node::Blob { .. } => false,
            Node::Entry { .. } => self
                .entry()
                .is_some_and(|entry| entry.kind == EntryKind::Directory),
        }
    }

    pub(super) fn xattrs(self) -> &'a [Xattr] {
        self.entry().map_or(&[], |entry| &entry.attributes.xattrs)
    }
}

fn kind_of(entry: &Entry) -> (FileType, u64) {
    match &entry.kind {
        EntryKind::Directory => (FileType::Directory, 0),
        EntryKind::Regular { size, .. } => (FileType::RegularFile, *size),
        EntryKind::Symlink { target } => (FileType::Symlink, target.len() as u64),
        EntryKind::Fifo => (FileType::NamedPipe, 0),
        EntryKind::Socket => (FileType::Socket, 0),
        EntryKind::CharDevice { .. } => (FileType::CharDevice, 0),
        EntryKind::BlockDevice { .. } => (FileType::BlockDevice, 0),
        EntryKind::HardLink { .. } => unreachable!("a hard link has the number of its target"),
    }
}

/// Holes take no blocks.
fn blocks(entry: &Entry) -> u64 {
    match &entry.kind {
        EntryKind::Regular { ranges, .. } => ranges
            .iter()
            .map(|range| range.length.div_ceil(BLOCK_LEN))
            .sum(),
        _ => 0,
    }
}

/// A device's number as the kernel's interface packs it into 32 bits.
fn device(kind: &EntryKind) -> u32 {
    match kind {
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
        }
        _ => 0,
    }
}

fn time(of: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(of.seconds.unsigned_abs());
    let whole = if of.seconds < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(of.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}
