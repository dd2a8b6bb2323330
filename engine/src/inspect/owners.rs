//! Who owns the bytes of a snapshot's sections: the files of its trees, and of blobs the section itself.

use std::collections::HashMap;

use podsnap_format::{
    manifest::SectionInfo,
    tree::{EntryKind, TreeTable},
};

use super::report::{Place, SharedBytes};
use crate::printable;

/// A file, or a section as far as it is nobody else's.
pub(super) type OwnerId = u32;

/// All owners of a snapshot, numbered through.
pub(super) struct Owners {
    sections: Vec<SectionOwners>,
    count: u32,
}

struct SectionOwners {
    title: String,
    /// The section itself; the entries of its tree follow.
    first: OwnerId,
    tree: Option<Tree>,
}

struct Tree {
    table: TreeTable,
    /// Data of files, ascending in the section, none overlapping.
    ranges: Vec<Owned>,
    /// Names of files that have more than one.
    names: HashMap<u32, u64>,
}

#[derive(Clone, Copy)]
struct Owned {
    offset: u64,
    len: u64,
    entry: u32,
    file_offset: u64,
}

/// A part of a section's range that is one owner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) owner: OwnerId,
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A file of a tree.
pub(super) struct File<'a> {
    pub(super) owner: OwnerId,
    pub(super) title: &'a str,
    pub(super) path: String,
    pub(super) names: u64,
    pub(super) size: u64,
    pub(super) data_bytes: u64,
}

impl Owners {
    /// The owners of these sections; of trees without a table, the sections.
    pub(super) fn new(sections: &[SectionInfo], tables: Vec<Option<TreeTable>>) -> Self {
        let mut owners = Self {
            sections: Vec::new(),
            count: 0,
        };
        for (info, table) in sections.iter().zip(tables) {
            let entries = table.as_ref().map_or(0, |t| t.entries().len() as u32);
            owners.sections.push(SectionOwners {
                title: info.title(),
                first: owners.count,
                tree: table.map(Tree::new),
            });
            owners.count = owners.count.saturating_add(1).saturating_add(entries);
        }
        owners
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    pub(super) fn title(&self, section: usize) -> &str {
        &self.sections[section].title
    }

    /// Divides a range of a section among its owners, in order.
    pub(super) fn divide(&self, section: usize, offset: u64, len: u64, pieces: &mut Vec<Piece>) {
        pieces.clear();
        let owners = &self.sections[section];
        let (mut at, end) = (offset, offset + len);
        if let Some(tree) = &owners.tree {
            let first = tree.ranges.partition_point(|r| r.offset + r.len <= offset);
            for range in tree.ranges[first..].iter().take_while(|r| r.offset < end) {
                let (from, to) = (range.offset.max(at), (range.offset + range.len).min(end));
                if at < from {
                    pieces.push(Piece {
                        owner: owners.first,
                        offset: at,
                        len: from - at,
                    });
                }
                pieces.push(Piece {
                    owner: owners.first + 1 + range.entry,
                    offset: from,
                    len: to - from,
                });
                at = to;
            }
        }
        if at < end {
            pieces.push(Piece {
                owner: owners.first,
                offset: at,
                len: end - at,
            });
        }
    }

    fn section_of(&self, owner: OwnerId) -> &SectionOwners {
        let after = self.sections.partition_point(|s| s.first <= owner);
        &self.sections[after - 1]
    }

    /// The path of the file that the owner is, if it is one.
    fn path(&self, owner: OwnerId) -> Option<String> {
        let section = self.section_of(owner);
        let entry = (owner - section.first).checked_sub(1)?;
        let tree = section.tree.as_ref()?;
        Some(printable(tree.table.path(entry)))
    }

    /// Bytes shared with this owner, in words.
    pub(super) fn shared(&self, owner: OwnerId, bytes: u64) -> SharedBytes {
        SharedBytes {
            section: self.section_of(owner).title.clone(),
            path: self.path(owner),
            bytes,
        }
    }

    /// The byte at `offset` of a section, in words.
    pub(super) fn place(&self, section: usize, offset: u64) -> Place {
        let owners = &self.sections[section];
        let file = owners.tree.as_ref().and_then(|tree| {
            let after = tree.ranges.partition_point(|r| r.offset <= offset);
            let range = tree.ranges[..after].last()?;
            (offset - range.offset < range.len).then_some((tree, range))
        });
        Place {
            section: owners.title.clone(),
            path: file.map(|(tree, range)| printable(tree.table.path(range.entry))),
            offset: file.map_or(offset, |(_, range)| {
                range.file_offset + (offset - range.offset)
            }),
        }
    }

    /// Number of files and of all entries of a section that is a tree.
    pub(super) fn counts(&self, section: usize) -> Option<(u64, u64)> {
        let entries = self.sections[section].tree.as_ref()?.table.entries();
        let files = entries
            .iter()
            .filter(|e| matches!(e.kind, EntryKind::Regular { .. }));
        Some((files.count() as u64, entries.len() as u64))
    }

    /// All files.
    pub(super) fn files(&self) -> impl Iterator<Item = OwnerId> {
        self.sections.iter().flat_map(|section| {
            let entries = section.tree.as_ref().map_or(&[][..], |t| t.table.entries());
            let numbered = (section.first + 1..).zip(entries);
            numbered
                .filter(|(_, e)| matches!(e.kind, EntryKind::Regular { .. }))
                .map(|(owner, _)| owner)
        })
    }

    /// The file that the owner is, which must be one.
    pub(super) fn file(&self, owner: OwnerId) -> Option<File<'_>> {
        let section = self.section_of(owner);
        let tree = section.tree.as_ref()?;
        let entry = (owner - section.first).checked_sub(1)?;
        let EntryKind::Regular { size, ranges } = &tree.table.entries()[entry as usize].kind else {
            return None;
        };
        Some(File {
            owner,
            title: &section.title,
            path: printable(tree.table.path(entry)),
            names: 1 + tree.names.get(&entry).copied().unwrap_or(0),
            size: *size,
            data_bytes: ranges.iter().map(|r| r.length).sum(),
        })
    }
}

impl Tree {
    fn new(table: TreeTable) -> Self {
        let (mut ranges, mut names) = (Vec::new(), HashMap::new());
        for (entry, held) in (0..).zip(table.entries()) {
            match &held.kind {
                EntryKind::Regular { ranges: data, .. } => {
                    ranges.extend(data.iter().map(|range| Owned {
                        offset: range.stream_offset,
                        len: range.length,
                        entry,
                        file_offset: range.file_offset,
                    }));
                }
                EntryKind::HardLink { target } => *names.entry(*target).or_insert(0) += 1,
                _ => {}
            }
        }
        ranges.sort_unstable_by_key(|range| range.offset);
        Self {
            table,
            ranges,
            names,
        }
    }
}
