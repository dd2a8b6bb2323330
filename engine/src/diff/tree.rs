//! Two trees: which entries came, went and changed.
//!
//! Both tables are in pre-order with ascending names, so one pass over both pairs the entries up; paths are only put together for
//! what is listed.

use std::cmp::{Ordering, Reverse};

use podsnap_format::{manifest::Chunk, tree::EntryKind};
use tokio_util::sync::CancellationToken;

use super::{
    files::{Tree, size},
    report::{Change, ChangedEntry, Entries, TreeDiff},
};
use crate::{
    base::Content,
    error::{Error, Result},
};

/// Entries gone through between two looks at the cancellation.
const ENTRIES_AT_ONCE: usize = 1024;

/// An entry of A has no partner in B.
const NONE: u32 = u32::MAX;

/// How the contents of two files compare.
#[derive(Debug, Clone, Copy, Default)]
struct ContentDiff {
    /// Bytes of B that are different or not known to be the same.
    unequal: u64,
    /// Whether some are known to be different.
    proven: bool,
}

/// Compares two trees.
pub(super) fn compare(
    a: Tree<'_>,
    b: Tree<'_>,
    chunks: &[Chunk],
    top: usize,
    cancel: &CancellationToken,
) -> Result<TreeDiff> {
    let mut comparison = Comparison {
        a,
        b,
        chunks,
        partners: vec![NONE; a.len() as usize],
        added: Vec::new(),
        removed: Vec::new(),
        undecided: Vec::new(),
        changed: Vec::new(),
        unchanged: 0,
    };
    comparison.run(cancel)?;
    comparison.finish(top)
}

struct Comparison<'a> {
    a: Tree<'a>,
    b: Tree<'a>,
    chunks: &'a [Chunk],
    /// For each entry of A, the entry of B with the same path.
    partners: Vec<u32>,
    added: Vec<u32>,
    removed: Vec<u32>,
    undecided: Vec<u32>,
    /// Changed bytes, entry of A, entry of B.
    changed: Vec<(Reverse<u64>, u32, u32)>,
    unchanged: u64,
}

impl Comparison<'_> {
    fn run(&mut self, cancel: &CancellationToken) -> Result<()> {
        let (depths_a, depths_b) = (self.a.depths(), self.b.depths());
        let (mut in_a, mut in_b) = (0u32, 0u32);
        let mut done = 0;
        while in_a < self.a.len() || in_b < self.b.len() {
            done += 1;
            if done % ENTRIES_AT_ONCE == 0 && cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let (depth_a, depth_b) = (
                depths_a.get(in_a as usize).copied(),
                depths_b.get(in_b as usize).copied(),
            );
            // All before the two was paired up or was in one tree only, so at one depth they are in the same directory, and
            // the deeper one is in a directory that the other tree has left already.
            let order = match depth_b.cmp(&depth_a) {
                Ordering::Equal => {
                    let (a, b) = (self.a.entry(in_a), self.b.entry(in_b));
                    a.name.cmp(&b.name)
                }
                deeper => deeper,
            };
            match order {
                Ordering::Less => {
                    self.removed.push(in_a);
                    in_a = self.skip(&depths_a, in_a, true);
                }
                Ordering::Greater => {
                    self.added.push(in_b);
                    in_b = self.skip(&depths_b, in_b, false);
                }
                Ordering::Equal => {
                    self.pair(in_a, in_b)?;
                    in_a += 1;
                    in_b += 1;
                }
            }
        }
        Ok(())
    }

    /// Takes all that is below an entry of one tree only along; gives back what follows.
    fn skip(&mut self, depths: &[u16], entry: u32, removed: bool) -> u32 {
        let mut next = entry + 1;
        while depths
            .get(next as usize)
            .is_some_and(|depth| *depth > depths[entry as usize])
        {
            let list = if removed {
                &mut self.removed
            } else {
                &mut self.added
            };
            list.push(next);
            next += 1;
        }
        next
    }

    fn pair(&mut self, in_a: u32, in_b: u32) -> Result<()> {
        self.partners[in_a as usize] = in_b;
        let (changes, content) = self.changes(in_a, in_b)?;
        if !changes.is_empty() {
            let rank = if changes.contains(&Change::Content) {
                content.unequal
            } else {
                0
            };
            self.changed.push((Reverse(rank), in_a, in_b));
        } else if content.unequal > 0 {
            self.undecided.push(in_b);
        } else {
            self.unchanged += 1;
        }
        Ok(())
    }

    /// In what two entries of the same path differ.
    fn changes(&self, in_a: u32, in_b: u32) -> Result<(Vec<Change>, ContentDiff)> {
        let (of_a, of_b) = (self.a.resolved(in_a), self.b.resolved(in_b));
        let linked = of_a != in_a || of_b != in_b;
        let mut changes = Vec::new();
        if linked {
            if of_a != in_a && of_b != in_b && self.partners[of_a as usize] == of_b {
                // Whatever changed is said of the first name.
                return Ok((changes, ContentDiff::default()));
            }
            changes.push(Change::Target);
        }
        let (a, b) = (self.a.entry(of_a), self.b.entry(of_b));
        let mut content = ContentDiff::default();
        match (&a.kind, &b.kind) {
            (EntryKind::Regular { size: len_a, .. }, EntryKind::Regular { size: len_b, .. }) => {
                content = self.content(of_a, of_b)?;
                if content.proven || len_a != len_b {
                    changes.push(Change::Content);
                } else if content.unequal > 0 && a.attributes.mtime != b.attributes.mtime {
                    changes.push(Change::PerhapsContent);
                }
            }
            (EntryKind::Symlink { target: a }, EntryKind::Symlink { target: b }) => {
                if a != b {
                    changes.push(Change::Target);
                }
            }
            (EntryKind::CharDevice { .. }, EntryKind::CharDevice { .. })
            | (EntryKind::BlockDevice { .. }, EntryKind::BlockDevice { .. }) => {
                if a.kind != b.kind {
                    changes.push(Change::Device);
                }
            }
            (a, b) => {
                if a != b {
                    changes.push(Change::Type);
                }
            }
        }
        let (a, b) = (&a.attributes, &b.attributes);
        for (differs, change) in [
            (a.mode != b.mode, Change::Mode),
            ((a.uid, a.gid) != (b.uid, b.gid), Change::Owner),
            (a.mtime != b.mtime, Change::Mtime),
            (a.xattrs != b.xattrs, Change::Xattrs),
        ] {
            if differs {
                changes.push(change);
            }
        }
        Ok((changes, content))
    }

    fn content(&self, in_a: u32, in_b: u32) -> Result<ContentDiff> {
        let mut diff = ContentDiff::default();
        let (mut bytes_a, mut bytes_b) = (Vec::new(), Vec::new());
        let mut at = 0;
        while let Some((content_b, left_b)) = self.b.content_at(in_b, at) {
            let Some((content_a, left_a)) = self.a.content_at(in_a, at) else {
                diff.unequal += size(&self.b.entry(in_b).kind) - at;
                break;
            };
            let len = left_a.min(left_b);
            if content_a != content_b {
                // One of them is in a chunk, so this is no longer than a chunk.
                bytes_a.resize(len as usize, 0);
                bytes_b.resize(len as usize, 0);
                if self.a.read(in_a, at, &mut bytes_a)? && self.b.read(in_b, at, &mut bytes_b)? {
                    let differ = bytes_a.iter().zip(&bytes_b).filter(|(a, b)| a != b);
                    let differing = differ.count() as u64;
                    diff.unequal += differing;
                    diff.proven |= differing > 0;
                } else {
                    diff.unequal += len;
                    diff.proven |= self.are_whole_chunks(content_a, content_b, len);
                }
            }
            at += len;
        }
        Ok(diff)
    }

    /// Whether both are one whole chunk of this length: then their ids tell that they differ.
    fn are_whole_chunks(&self, a: Content, b: Content, len: u64) -> bool {
        let is_whole = |content| match content {
            Content::Chunk { chunk, start: 0 } => {
                u64::from(self.chunks[chunk as usize].raw_len) == len
            }
            _ => false,
        };
        is_whole(a) && is_whole(b)
    }

    fn finish(mut self, top: usize) -> Result<TreeDiff> {
        self.changed.sort_unstable();
        let mut listed = Vec::new();
        for (_, in_a, in_b) in self.changed.iter().take(top) {
            let (changes, content) = self.changes(*in_a, *in_b)?;
            listed.push(ChangedEntry {
                a: self.a.state(*in_a, self.a.resolved(*in_a)),
                b: self.b.state(*in_b, self.b.resolved(*in_b)),
                changes,
                changed_bytes: content.unequal,
            });
        }
        Ok(TreeDiff {
            changes: listed,
            added: entries(self.b, &self.added, top),
            removed: entries(self.a, &self.removed, top),
            changed: self.changed.len() as u64,
            undecided: entries(self.b, &self.undecided, top),
            unchanged: self.unchanged,
        })
    }
}

fn entries(tree: Tree<'_>, which: &[u32], top: usize) -> Entries {
    let mut ranked: Vec<(Reverse<u64>, u32)> = which
        .iter()
        .map(|index| (Reverse(size(&tree.entry(*index).kind)), *index))
        .collect();
    ranked.sort_unstable();
    Entries {
        count: ranked.len() as u64,
        bytes: ranked
            .iter()
            .fold(0, |sum, (Reverse(size), _)| sum.saturating_add(*size)),
        largest: ranked
            .iter()
            .take(top)
            .map(|(_, index)| tree.state(*index, *index))
            .collect(),
    }
}
