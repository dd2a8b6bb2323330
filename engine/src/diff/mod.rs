//! Comparison of two snapshots by the ids of their chunks: what is read are manifests and the entry tables of trees.
//!
//! Small files share chunks, and a chunk of which one file changed says nothing of its neighbours. Who wants to be sure of every file lets
//! the chunks in doubt be read; no others are.

mod files;
mod report;
mod stream;
mod tree;

use podsnap_format::{Shape, manifest::SectionInfo, tree::TreeTable};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

pub use report::*;

use self::{
    files::{Data, Tree},
    stream::{Had, StreamDiff},
};
use crate::{
    base::BaseIndex,
    error::{Error, Result},
    inspect::SharedBytes,
    snapshot::Snapshot,
};

/// How two snapshots are compared.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://diff")?;
/// # let mut numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for id in ["monday", "tuesday"] {
/// #     let mut writer = store.save(&id.parse()?, SaveOptions::default()).await?;
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, "", input)).await?;
/// #     writer.finish().await?;
/// #     numbers[40_000] ^= 1;
/// # }
/// use podsnap::diff::DiffOptions;
///
/// // A byte of the pod's memory changed in the meantime.
/// let monday = store.snapshot(&"monday".parse()?).await?;
/// let tuesday = store.snapshot(&"tuesday".parse()?).await?;
/// let report = monday.diff(&tuesday, &DiffOptions::default()).await?;
/// assert!(!report.identical);
/// assert!(monday.diff(&monday, &DiffOptions::default()).await?.identical);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct DiffOptions {
    /// Most ranges and entries of each section that are listed, of each kind.
    pub top: usize,
    /// Whether to read the files that are in other chunks, as far as they are, and so tell for sure whether they changed.
    pub read: bool,
    /// Ends the comparison with [`ErrorKind::Interrupted`](crate::ErrorKind) when it is cancelled.
    pub cancel: CancellationToken,
}

impl Default for DiffOptions {
    fn default() -> Self {
        Self {
            top: 10,
            read: false,
            cancel: CancellationToken::new(),
        }
    }
}

/// What is read before the comparison begins.
struct Read {
    a: Snapshot,
    b: Snapshot,
    /// A's sections, then B's; chunks that both have are one.
    index: BaseIndex,
    /// Tables of the sections that are trees in both, for each section of B: A's and B's.
    tables: Vec<Option<(TreeTable, TreeTable)>>,
}

impl Snapshot {
    /// Says what is different in `other`, which may be in another store.
    pub async fn diff(&self, other: &Snapshot, options: &DiffOptions) -> Result<DiffReport> {
        if self.directory().header.key_check != other.directory().header.key_check {
            return Err(Error::invalid(format!(
                "{} and {} were not written with the same key, so their chunks cannot be compared",
                self.id(),
                other.id()
            ))
            .hint("import one of them into a store with the key of the other"));
        }
        let read = tokio::select! {
            biased;
            () = options.cancel.cancelled() => return Err(Error::interrupted()),
            read = Read::new(self, other) => read?,
        };
        let options = options.clone();
        let comparison = tokio::task::spawn_blocking(move || read.compare(&options));
        comparison.await.expect("comparing does not panic")
    }

    /// Number of the section that is called like `wanted`.
    fn namesake(&self, wanted: &SectionInfo) -> Option<usize> {
        let is = |s: &SectionInfo| s.role == wanted.role && s.name == wanted.name;
        self.sections().iter().position(is)
    }
}

impl Read {
    async fn new(a: &Snapshot, b: &Snapshot) -> Result<Self> {
        let both = [a.clone(), b.clone()];
        let index = BaseIndex::load(&both).await?;
        let mut tables = Vec::new();
        for (in_b, section) in b.sections().iter().enumerate() {
            let in_a = a.namesake(section).filter(|in_a| {
                section.shape == Shape::Tree && a.sections()[*in_a].shape == Shape::Tree
            });
            tables.push(match in_a {
                Some(in_a) => Some((a.tree_table(in_a).await?, b.tree_table(in_b).await?)),
                None => None,
            });
        }
        let [a, b] = both;
        Ok(Self {
            a,
            b,
            index,
            tables,
        })
    }

    fn compare(self, options: &DiffOptions) -> Result<DiffReport> {
        let had = Had::new(&self.index, self.a.sections().len(), &options.cancel)?;
        let mut sections = Vec::new();
        for number in 0..self.b.sections().len() {
            sections.push(self.section(number, &had, options)?);
        }
        let gone = |s: &&SectionInfo| self.b.namesake(s).is_none();
        sections.extend(self.a.sections().iter().filter(gone).map(only_in_a));
        let sum = |of: fn(&SectionDiff) -> u64| sections.iter().map(of).sum::<u64>();
        Ok(DiffReport {
            a: side(&self.a),
            b: side(&self.b),
            identical: sections.iter().all(|s| s.identical),
            equal_bytes: sum(|s| s.equal_bytes),
            zeroed_bytes: sum(|s| s.zeroed_bytes),
            moved_bytes: sum(|s| s.moved_bytes),
            new_bytes: sum(|s| s.new_bytes),
            sections,
        })
    }

    /// Compares a section of B with its namesake.
    fn section(&self, in_b: usize, had: &Had, options: &DiffOptions) -> Result<SectionDiff> {
        let info_b = &self.b.sections()[in_b];
        let in_a = self.a.namesake(info_b);
        let info_a = in_a.map(|in_a| &self.a.sections()[in_a]);
        let section_a = in_a.map(|in_a| &self.index.sections[in_a]);
        let section_b = &self.index.sections[self.a.sections().len() + in_b];
        let stream = StreamDiff::of(section_a, section_b, info_b.length, had, &options.cancel)?;
        let tree = match (&self.tables[in_b], section_a) {
            (Some((table_a, table_b)), Some(section_a)) => {
                let cancel = &options.cancel;
                let data = |snapshot: &Snapshot, section| {
                    let reader = snapshot.reader(section);
                    options
                        .read
                        .then(|| Data::new(reader, Handle::current(), cancel.clone()))
                };
                let data_a = in_a.and_then(|in_a| data(&self.a, in_a));
                let data_b = data(&self.b, in_b);
                let a = Tree {
                    table: table_a,
                    section: section_a,
                    data: data_a.as_ref(),
                };
                let b = Tree {
                    table: table_b,
                    section: section_b,
                    data: data_b.as_ref(),
                };
                let chunks = &self.index.chunks;
                Some(tree::compare(a, b, chunks, options.top, cancel)?)
            }
            _ => None,
        };
        let same_bytes = match &tree {
            Some(tree) => tree.is_empty(),
            None => stream.equal == info_b.length,
        };
        let identical = info_a.is_some_and(|a| {
            same_bytes
                && a.shape == info_b.shape
                && (tree.is_some() || a.length == info_b.length)
                && a.address_ranges == info_b.address_ranges
        });
        let moved_from = stream.moved_from.iter();
        let mut moved_from: Vec<SharedBytes> = moved_from
            .map(|(section, bytes)| SharedBytes {
                section: self.a.sections()[*section as usize].title(),
                path: None,
                bytes: *bytes,
            })
            .collect();
        moved_from.sort_by_key(|shared| std::cmp::Reverse(shared.bytes));
        let is_blob = info_b.shape == Shape::Blob;
        Ok(SectionDiff {
            section: info_b.title(),
            a: info_a.map(section_side),
            b: Some(section_side(info_b)),
            identical,
            cut_alike: info_a.is_none_or(|a| a.chunking == info_b.chunking),
            equal_bytes: stream.equal,
            zeroed_bytes: stream.zeroed,
            moved_bytes: stream.moved,
            moved_from,
            new_bytes: stream.new,
            changed_ranges: if is_blob {
                stream.ranges.len() as u64
            } else {
                0
            },
            // Where a tree's stream changed says nothing to people; what became of its files does.
            ranges: stream.longest(if is_blob { options.top } else { 0 }),
            tree,
        })
    }
}

impl TreeDiff {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.added.count + self.removed.count + self.changed + self.undecided.count == 0
    }
}

fn only_in_a(info: &SectionInfo) -> SectionDiff {
    SectionDiff {
        section: info.title(),
        a: Some(section_side(info)),
        b: None,
        identical: false,
        cut_alike: true,
        equal_bytes: 0,
        zeroed_bytes: 0,
        moved_bytes: 0,
        moved_from: Vec::new(),
        new_bytes: 0,
        changed_ranges: 0,
        ranges: Vec::new(),
        tree: None,
    }
}

fn section_side(info: &SectionInfo) -> SectionSide {
    SectionSide {
        shape: info.shape.to_string(),
        raw_bytes: info.length,
    }
}

fn side(snapshot: &Snapshot) -> Side {
    Side {
        snapshot: snapshot.id().to_string(),
        digest: snapshot.digest().to_string(),
        raw_bytes: snapshot.sections().iter().map(|s| s.length).sum(),
    }
}
