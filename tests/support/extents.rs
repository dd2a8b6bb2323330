//! A snapshot's extent maps and packs as the format crate reads them from the files of a local store, without the engine.

use std::{fs, path::Path};

use podsnap_format::{
    ChunkId, Digest, Directory, FOOTER_LEN, FRAME_HEADER_LEN, Footer, HEADER_LEN, Header, Kind,
    PackIndex, Segment,
    manifest::{Extent, ManifestBuilder, SectionBuilder, SectionInfo},
};

/// A run of a section: its length, and the chunk and place in it where it comes from unless it is zeros.
pub struct Run {
    pub len: u64,
    pub chunk: Option<(ChunkId, u32)>,
}

/// The end of an object, and what stands before its footer.
fn trailer(bytes: &[u8]) -> (Footer, &[u8]) {
    let footer = Footer::parse(&bytes[bytes.len() - FOOTER_LEN..]).expect("a footer");
    let start = footer.trailer_offset as usize;
    let end = start + footer.trailer_len as usize;
    (footer, &bytes[start..end])
}

/// The directory of a manifest or export.
pub fn directory(bytes: &[u8]) -> Directory {
    let (footer, trailer) = trailer(bytes);
    Directory::parse(&footer, trailer).expect("a directory")
}

/// The segments of each section of a manifest or export.
pub fn segments(bytes: &[u8]) -> Vec<(SectionInfo, Vec<Segment>)> {
    let directory = directory(bytes);
    let of = |section: &SectionInfo| {
        let segments = section.segments.iter().map(|info| {
            let at = info.object_offset as usize;
            let encoded = &bytes[at..at + info.object_len as usize];
            info.open(encoded, &directory.packs).expect("a segment")
        });
        (section.clone(), segments.collect())
    };
    directory.sections.iter().map(of).collect()
}

/// The runs of each section of a manifest or export, in order.
pub fn runs(bytes: &[u8]) -> Vec<Vec<Run>> {
    let runs_of = |segment: &Segment| {
        let run = |extent: &Extent| Run {
            len: extent.len(),
            chunk: match *extent {
                Extent::Zero { .. } => None,
                Extent::Chunk { chunk, start, .. } => {
                    Some((segment.chunks[chunk as usize].id, start))
                }
            },
        };
        segment.extents.iter().map(run).collect::<Vec<_>>()
    };
    segments(bytes)
        .iter()
        .map(|(_, segments)| segments.iter().flat_map(runs_of).collect())
        .collect()
}

/// Number of frames in a pack, and their bytes with their headers.
pub fn frames(pack: &Path) -> (u64, u64) {
    let bytes = fs::read(pack).unwrap();
    let (footer, trailer) = trailer(&bytes);
    let index = PackIndex::parse(&footer, trailer).expect("an index");
    let lens = index
        .entries
        .iter()
        .map(|e| FRAME_HEADER_LEN as u64 + u64::from(e.encoded_len));
    (index.entries.len() as u64, lens.sum())
}

/// Writes a manifest anew with other segments; what it says of itself stays.
pub fn rewrite(
    manifest: &Path,
    change: impl FnOnce(&mut Vec<(SectionInfo, Vec<Segment>)>),
) -> Digest {
    let bytes = fs::read(manifest).unwrap();
    let directory = directory(&bytes);
    let mut sections = segments(&bytes);
    change(&mut sections);
    assert_eq!(directory.header.kind, Kind::Manifest);
    let header: Header = directory.header.clone();
    let mut builder = ManifestBuilder::new(header.clone(), HEADER_LEN as u64);
    for (info, segments) in sections {
        let mut built = SectionBuilder::new();
        segments
            .iter()
            .for_each(|s| built.push(s).expect("a segment that can be written"));
        builder.section(info, built);
    }
    let built = builder
        .finish(&directory.metadata, &directory.packs)
        .expect("a manifest");
    let whole = [header.encode().as_slice(), &built.bytes].concat();
    fs::remove_file(manifest).unwrap();
    fs::write(manifest, whole).unwrap();
    built.digest
}
