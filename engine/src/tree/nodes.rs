//! A tree built in any order, as the members of a tar stream come, and put into table order at the end. Names are
//! kept apart from what they name, so that a hard link stays one when its first name is replaced by a later member.

use std::collections::BTreeMap;

use podsnap_format::tree::{Attributes, Entry, EntryKind, MAX_DEPTH};

pub(super) struct Nodes {
    nodes: Vec<Node>,
}

/// A directory or a file with one or more names.
struct Node {
    kind: EntryKind,
    attributes: Attributes,
    /// What a directory holds, by name.
    children: BTreeMap<Vec<u8>, usize>,
}

const TOP: usize = 0;

impl Nodes {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![Node::implied()],
        }
    }

    /// Adds a member. A directory that is there already gets the new attributes; any other member replaces what had its
    /// name. Directories on the way that are not there (yet) are implied.
    pub(super) fn insert(
        &mut self,
        path: &[&[u8]],
        kind: EntryKind,
        attributes: Attributes,
    ) -> Result<(), &'static str> {
        let is_directory = kind == EntryKind::Directory;
        let existing = self.find(path);
        if let Some(node) = existing.filter(|&node| is_directory && self.is_directory(node)) {
            self.nodes[node].attributes = attributes;
            return Ok(());
        }
        self.nodes.push(Node {
            kind,
            attributes,
            children: BTreeMap::new(),
        });
        self.name(path, self.nodes.len() - 1)
    }

    /// Gives an earlier member one more name.
    pub(super) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), &'static str> {
        let node = self
            .find(target)
            .ok_or("it is a hard link to a member that did not come before it")?;
        if self.is_directory(node) {
            return Err("it is a hard link to a directory");
        }
        self.name(path, node)
    }

    /// All members in table order.
    pub(super) fn into_entries(mut self) -> Result<Vec<Entry>, &'static str> {
        let mut entries = Vec::with_capacity(self.nodes.len());
        // The entry in which each node appeared first.
        let mut first = vec![None; self.nodes.len()];
        let mut unvisited = vec![(0u32, Vec::new(), TOP)];
        while let Some((parent, name, node)) = unvisited.pop() {
            let index = u32::try_from(entries.len()).map_err(|_| "there are too many members")?;
            if let Some(target) = first[node] {
                entries.push(Entry {
                    parent,
                    name,
                    kind: EntryKind::HardLink { target },
                    attributes: Attributes::default(),
                });
                continue;
            }
            first[node] = Some(index);
            let node = std::mem::replace(&mut self.nodes[node], Node::implied());
            // The last one pushed is visited first.
            unvisited.extend(
                node.children
                    .into_iter()
                    .rev()
                    .map(|(name, child)| (index, name, child)),
            );
            entries.push(Entry {
                parent,
                name,
                kind: node.kind,
                attributes: node.attributes,
            });
        }
        Ok(entries)
    }

    fn is_directory(&self, node: usize) -> bool {
        self.nodes[node].kind == EntryKind::Directory
    }

    fn find(&self, path: &[&[u8]]) -> Option<usize> {
        path.iter().try_fold(TOP, |node, &name| {
            self.nodes[node].children.get(name).copied()
        })
    }

    fn name(&mut self, path: &[&[u8]], node: usize) -> Result<(), &'static str> {
        let (name, directories) = path
            .split_last()
            .ok_or("the top directory cannot be replaced by something else")?;
        if path.len() > MAX_DEPTH {
            return Err("it lies too deep");
        }
        let mut parent = TOP;
        for &name in directories {
            parent = match self.nodes[parent].children.get(name) {
                Some(&child) => child,
                None => {
                    self.nodes.push(Node::implied());
                    let child = self.nodes.len() - 1;
                    self.nodes[parent].children.insert(name.to_vec(), child);
                    child
                }
            };
            if !self.is_directory(parent) {
                return Err("it lies below something that is not a directory");
            }
        }
        let replaced = self.nodes[parent].children.insert(name.to_vec(), node);
        if replaced.is_some_and(|node| !self.nodes[node].children.is_empty()) {
            return Err("it would replace a directory that is not empty");
        }
        Ok(())
    }
}

impl Node {
    /// The directory that a member's path says must be there.
    fn implied() -> Self {
        let attributes = Attributes {
            mode: 0o755,
            ..Attributes::default()
        };
        Self {
            kind: EntryKind::Directory,
            attributes,
            children: BTreeMap::new(),
        }
    }
}
