//! A snapshot `s` that borrows from `base`, as small as one with all parts can be; its export; and where everything stands in them.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use podsnap::{
    NewSection, Progress, Role, SaveOptions, Store,
    chunking::{self, ChunkingParams},
    format::{
        FOOTER_LEN, Footer, HEADER_LEN, PackIndex,
        manifest::{Directory, Extent},
    },
    store::{Backend, Condition, LocalBackend, ReadRange, RemoteBackend},
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    backend::{Fate, Watched},
    *,
};

pub struct World {
    pub backend: Arc<dyn Backend>,
    pub store: Store,
    /// Every object of the store, as it should be.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// The sections of `s`.
    pub expected: Vec<(String, Vec<u8>)>,
    /// What an export of `s` is.
    pub export: Vec<u8>,
    pub dir: tempfile::TempDir,
}

/// Sections of one chunk size.
fn sections(chunking: ChunkingParams, sections: &[(String, Vec<u8>)]) -> Vec<NewSection> {
    let section = |(name, bytes): &(String, Vec<u8>)| NewSection {
        chunking: Some(chunking),
        ..NewSection::blob(
            Role::Other,
            &name["other:".len()..],
            input(bytes, Way::Source),
        )
    };
    sections.iter().map(section).collect()
}

/// Of three chunks, the base has two; of the base's three, one is not needed.
fn small() -> [Vec<(String, Vec<u8>)>; 2] {
    let x = |middle| [noise(1, 512), noise(middle, 512), text(2, 512)].concat();
    let y = [noise(3, 300), vec![0; 20_000], text(4, 600)].concat();
    [
        vec![("other:x".into(), x(8))],
        vec![("other:x".into(), x(9)), ("other:y".into(), y)],
    ]
}

/// A section of two segments of the extent map.
fn of_many_extents() -> [Vec<(String, Vec<u8>)>; 2] {
    let m = [noise(5, 512), noise(6, 512)].concat().repeat(1050);
    [
        vec![("other:m".into(), noise(5, 512))],
        vec![("other:m".into(), m)],
    ]
}

impl World {
    pub async fn small(in_memory: bool) -> Self {
        Self::new(in_memory, small()).await
    }

    pub async fn of_many_extents() -> Self {
        Self::new(false, of_many_extents()).await
    }

    async fn new(in_memory: bool, [base, s]: [Vec<(String, Vec<u8>)>; 2]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backend: Arc<dyn Backend> = match in_memory {
            true => Arc::new(RemoteBackend::memory(dir.path().to_str().unwrap())),
            false => Arc::new(LocalBackend::new(dir.path().join("store"), false).unwrap()),
        };
        // Packs of one byte at least: each section has its own.
        let watched = Watched::new(backend.clone(), |_, _| Fate::Done).with_pack_len(1);
        let store = watched.store();
        let chunking = chunking::fixed(512);
        let options = SaveOptions::default();
        save(&store, "base", sections(chunking, &base), options)
            .await
            .unwrap();
        save(&store, "s", sections(chunking, &s), on_base("base"))
            .await
            .unwrap();
        let mut objects = BTreeMap::new();
        for object in backend.list("").await.unwrap() {
            let read = backend.read(&object.name, ReadRange::Exact(0..object.len), None);
            let bytes = read.await.unwrap().bytes.to_vec();
            objects.insert(object.name, bytes);
        }
        let mut world = Self {
            backend,
            store,
            objects,
            expected: s,
            export: Vec::new(),
            dir,
        };
        world.export = world
            .exported(&world.store.snapshot(&id("s")).await.unwrap())
            .await
            .unwrap();
        world
    }

    /// The store as another process opens it, which has nothing of it in memory.
    pub fn opened_anew(&self) -> Store {
        Store::from_backend("anew", self.store.backend().clone(), None)
    }

    /// The bytes of an export.
    pub async fn exported(&self, snapshot: &podsnap::Snapshot) -> podsnap::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let never = CancellationToken::new();
        snapshot
            .export_to(&self.store, &mut bytes, &Progress::default(), &never)
            .await?;
        Ok(bytes)
    }

    /// Puts other bytes in the place of an object, or none.
    pub async fn replace(&self, object: &str, bytes: Option<&[u8]>) {
        self.backend.delete(object, None).await.unwrap();
        if let Some(bytes) = bytes {
            let bytes = bytes.to_vec().into();
            self.backend
                .put(object, bytes, Condition::Absent)
                .await
                .unwrap();
        }
    }

    /// Makes an object again what it should be.
    pub async fn mend(&self, object: &str) {
        self.replace(object, Some(&self.objects[object])).await;
    }

    pub fn packs(&self) -> Vec<String> {
        let named = |name: &&String| name.contains("/pack-");
        self.objects.keys().filter(named).cloned().collect()
    }
}

/// A part of a section: where it is in the section, and which bytes of which object it depends on.
#[derive(Debug, Clone)]
pub struct Part {
    pub section: String,
    pub range: Range<u64>,
    pub object: String,
    pub bytes: Range<u64>,
}

/// What a manifest or export called `name` is made of: frames that parts of sections depend on, and segments of their maps.
pub fn parts(name: &str, manifest: &[u8]) -> (Vec<Part>, Vec<Part>) {
    let footer = Footer::parse(manifest).unwrap();
    let directory = Directory::parse(&footer, footer.trailer_in(manifest).unwrap()).unwrap();
    let (mut frames, mut maps) = (Vec::new(), Vec::new());
    for section in &directory.sections {
        for info in &section.segments {
            let bytes = info.object_offset..info.object_offset + info.object_len;
            let segment = &manifest[bytes.start as usize..bytes.end as usize];
            let mut at = info.section_offset;
            maps.push(Part {
                section: section.title(),
                range: at..at + info.section_len,
                object: name.to_owned(),
                bytes,
            });
            let segment = info.open(segment, &directory.packs).unwrap();
            for extent in &segment.extents {
                if let Extent::Chunk { chunk, .. } = extent {
                    let location = &segment.chunks[*chunk as usize].location;
                    let pack = &directory.packs[location.pack as usize];
                    frames.push(Part {
                        section: section.title(),
                        range: at..at + extent.len(),
                        object: match pack.name.is_empty() {
                            true => name.to_owned(),
                            false => format!("{}/{}", pack.snapshot, pack.name),
                        },
                        bytes: location.offset..location.offset + location.frame_len(),
                    });
                }
                at += extent.len();
            }
        }
    }
    (frames, maps)
}

/// Where the parts of an object begin and end.
pub fn borders(object: &[u8]) -> Vec<usize> {
    let footer = Footer::parse(object).unwrap();
    let trailer = footer.trailer_offset as usize;
    let len = object.len();
    let mut borders = vec![
        0,
        8,
        HEADER_LEN,
        trailer,
        trailer + HEADER_LEN,
        len - FOOTER_LEN,
        len - 8,
        len,
    ];
    match PackIndex::parse(&footer, footer.trailer_in(object).unwrap()) {
        Ok(index) => {
            let columns = trailer + HEADER_LEN;
            // Count, codecs, and the first of the columns that follow; prefixes stand at the end.
            let count = index.entries.len();
            borders.extend([
                columns + 1,
                columns + 1 + count,
                len - FOOTER_LEN - 8 * count,
            ]);
            for entry in &index.entries {
                let start = entry.offset as usize;
                borders.extend([start, start + 12, start + entry.frame_len() as usize]);
            }
        }
        Err(_) => {
            let (frames, maps) = parts("", object);
            for part in frames
                .iter()
                .filter(|part| part.object.is_empty())
                .chain(&maps)
            {
                borders.extend([part.bytes.start as usize, part.bytes.end as usize]);
            }
            // Metadata, pack table and sections: within the directory every few bytes.
            borders.extend((trailer + HEADER_LEN..len - FOOTER_LEN).step_by(23));
        }
    }
    borders.sort_unstable();
    borders.dedup();
    borders
}
