//! A small snapshot that uses most of the format, and a reader that checks everything the format lets it check. Used
//! by several tests, none of which uses all of it.
#![allow(dead_code)]

use podsnap_format::codec::{Codec, Decoder, Dtype, Encoder, Policy};
use podsnap_format::frame::{append_frame, decode_frame, parse_frame};
use podsnap_format::manifest::{
    AddressRange, Chunk, ChunkingParams, Extent, Location, PackInfo, SectionBuilder,
};
use podsnap_format::scan::Scanned;
use podsnap_format::{
    ChunkId, Directory, Footer, FormatError, FrameScanner, HEADER_LEN, Header, Key, Kind,
    ManifestBuilder, PackIndex, PackIndexBuilder, Role, SectionInfo, Segment, Shape, WorkingSet,
    working_set::Touch,
};

pub const METADATA: &str = r#"{"runsc":"release-20260101.0","note":"größer"}"#;
pub const KEY: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

/// The chunks of the sample, by name, each with the hint for its codec. Add here what new codecs need.
pub fn chunks() -> Vec<(&'static str, Option<Dtype>, Vec<u8>)> {
    let text: Vec<u8> = (0..2_000u32)
        .flat_map(|i| format!("line {}\n", i % 97).into_bytes())
        .collect();
    let mut noise = Noise(1);
    let floats = |mut noise: Noise, exponents: [u8; 4]| {
        move || [noise.byte(), exponents[usize::from(noise.byte() & 3)]]
    };
    let mut bf16 = floats(Noise(2), [0x3e, 0x3f, 0xbe, 0xbf]);
    let mut f32_high = floats(Noise(3), [0x3d, 0x3e, 0xbd, 0xbe]);
    vec![
        ("text", None, text),
        ("noise", None, (0..4_096).map(|_| noise.byte()).collect()),
        (
            "bf16",
            Some(Dtype::Bf16),
            (0..8_192).flat_map(|_| bf16()).collect(),
        ),
        (
            "f32",
            Some(Dtype::F32),
            (0..2_049)
                .flat_map(|_| [f32_high(), f32_high()].concat())
                .collect(),
        ),
        ("short", None, b"?".to_vec()),
    ]
}

/// A generator of bytes that nothing compresses (splitmix64).
pub struct Noise(pub u64);

impl Noise {
    pub fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    }
}

/// CRC-32C, bit by bit: the format stores it, but leaves computing it to the stores.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// A snapshot in all its objects.
pub struct Sample {
    pub packs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub export: Vec<u8>,
    pub working_set: Vec<u8>,
}

/// Frames as they are written, and what is known about each.
struct Frames {
    bytes: Vec<u8>,
    chunks: Vec<Chunk>,
}

fn write_frames(header: &Header, pack: u32, contents: &[(&str, Option<Dtype>, Vec<u8>)]) -> Frames {
    let key = Key::new(KEY);
    let mut frames = Frames {
        bytes: header.encode().to_vec(),
        chunks: Vec::new(),
    };
    let mut encoder = Encoder::new(Policy::Auto);
    for (_, hint, raw) in contents {
        let offset = frames.bytes.len() as u64;
        let codec = append_frame(&mut frames.bytes, raw, &mut encoder, *hint);
        let encoded_len = (frames.bytes.len() as u64 - offset) as u32 - 12;
        frames.chunks.push(Chunk {
            id: ChunkId::of(raw, Some(&key)),
            raw_len: raw.len() as u32,
            codec,
            location: Location {
                pack,
                offset,
                encoded_len,
            },
        });
    }
    frames
}

fn finish_pack(header: &Header, frames: Frames, version: &str) -> (Vec<u8>, PackInfo, Vec<Chunk>) {
    let mut index = PackIndexBuilder::new(header.clone());
    for chunk in &frames.chunks {
        index.push(
            &chunk.id,
            chunk.codec,
            chunk.raw_len,
            chunk.location.encoded_len,
        );
    }
    let mut bytes = frames.bytes;
    bytes.extend(index.finish(bytes.len() as u64).unwrap());
    let info = PackInfo {
        snapshot: header.snapshot.clone(),
        name: header.pack_name().to_string(),
        version: version.into(),
        length: bytes.len() as u64,
        crc32c: crc32c(&bytes),
    };
    (bytes, info, frames.chunks)
}

/// Sections over the chunks `[text, noise, bf16, f32, short]`: every kind of extent, several segments, an empty one.
fn sections(c: &[Chunk]) -> Vec<(SectionInfo, SectionBuilder)> {
    let whole = |chunks: &[Chunk], i: u32| Extent::Chunk {
        chunk: i,
        start: 0,
        len: chunks[i as usize].raw_len,
    };
    let cdc = ChunkingParams::Cdc {
        min: 16 << 10,
        avg: 64 << 10,
        max: 256 << 10,
    };

    let first = vec![c[0], c[1], c[2]];
    let first = Segment {
        extents: vec![
            whole(&first, 0),
            Extent::Zero { len: 3 * 4096 },
            whole(&first, 1),
            Extent::Chunk {
                chunk: 0,
                start: 100,
                len: 5_000,
            },
            whole(&first, 0),
            whole(&first, 2),
            Extent::Zero { len: 1 },
        ],
        chunks: first,
    };
    let second = vec![c[4], c[3]];
    let second = Segment {
        extents: vec![whole(&second, 1), whole(&second, 0)],
        chunks: second,
    };
    let mut memory = SectionInfo::new(Role::Memory, "", Shape::Blob, cdc);
    memory.address_ranges = vec![
        AddressRange {
            start: 0x7f00_0000_0000,
            length: 8192,
            section_offset: 4096,
        },
        AddressRange {
            start: u64::MAX - 4095,
            length: 4096,
            section_offset: 0,
        },
    ];
    let mut memory_segments = SectionBuilder::new();
    memory_segments.push(&first).unwrap();
    memory_segments.push(&second).unwrap();

    let zeros = Segment {
        chunks: vec![],
        extents: vec![Extent::Zero { len: 1 << 20 }],
    };
    let mut gpu_segments = SectionBuilder::new();
    gpu_segments.push(&zeros).unwrap();
    let gpu = SectionInfo::new(
        Role::Gpu,
        "GPU 0/größer",
        Shape::Blob,
        ChunkingParams::Fixed { size: 65_536 },
    );

    let kernel = SectionInfo::new(Role::Kernel, "", Shape::Blob, cdc);
    vec![
        (memory, memory_segments),
        (gpu, gpu_segments),
        (kernel, SectionBuilder::new()),
    ]
}

/// What the sample's sections hold, by title, in order.
pub fn contents() -> Vec<(String, Vec<u8>)> {
    let chunks = chunks();
    let c = |i: usize| &chunks[i].2[..];
    let memory = [
        c(0),
        &[0; 3 * 4096],
        c(1),
        &c(0)[100..5_100],
        c(0),
        c(2),
        &[0],
        c(3),
        c(4),
    ]
    .concat();
    vec![
        ("memory".into(), memory),
        ("gpu:GPU 0/größer".into(), vec![0; 1 << 20]),
        ("kernel".into(), vec![]),
    ]
}

pub fn sample() -> Sample {
    let contents = chunks();
    let header = |snapshot: &str, kind, attempt| Header {
        key_check: Some(Key::new(KEY).key_check()),
        ..Header::new(kind, snapshot.parse().unwrap(), attempt)
    };
    let manifest_header = header("sample-2", Kind::Manifest, 0x0123_4567_89ab_cdef);
    // The base holds the first two chunks, the snapshot's own pack the others.
    let base_header = header("sample-1", Kind::Manifest, 0xfeed).pack(7);
    let own_header = manifest_header.pack(0);
    let (own, own_info, own_chunks) = finish_pack(
        &own_header,
        write_frames(&own_header, 0, &contents[2..]),
        "1700000000000001",
    );
    let (base, base_info, base_chunks) = finish_pack(
        &base_header,
        write_frames(&base_header, 1, &contents[..2]),
        "",
    );

    let mut builder = ManifestBuilder::new(manifest_header.clone(), HEADER_LEN as u64);
    for (info, built) in sections(&[base_chunks, own_chunks].concat()) {
        builder.section(info, built);
    }
    let mut manifest = manifest_header.encode().to_vec();
    manifest.extend(
        builder
            .finish(METADATA, &[own_info, base_info])
            .unwrap()
            .bytes,
    );

    let export_header = Header {
        kind: Kind::Export,
        ..manifest_header
    };
    let frames = write_frames(&export_header, 0, &contents);
    let mut export = frames.bytes;
    let mut builder = ManifestBuilder::new(export_header.clone(), export.len() as u64);
    for (info, built) in sections(&frames.chunks) {
        builder.section(info, built);
    }
    let itself = PackInfo {
        snapshot: export_header.snapshot,
        name: String::new(),
        version: String::new(),
        length: export.len() as u64,
        crc32c: crc32c(&export),
    };
    export.extend(builder.finish(METADATA, &[itself]).unwrap().bytes);
    let working_set = working_set(&manifest).encode().unwrap();
    Sample {
        packs: vec![own, base],
        manifest,
        export,
        working_set,
    }
}

/// Touches of the first two sections: forwards, backwards, at once, after a while, beyond the end by less than a page.
fn working_set(manifest: &[u8]) -> WorkingSet {
    let (directory, _) = read_manifest(manifest).unwrap();
    let touch = |section, pages: std::ops::Range<u64>, micros| Touch {
        section,
        range: pages.start * 4096..pages.end * 4096,
        at: std::time::Duration::from_micros(micros),
    };
    let last_page = (directory.sections[0].length - 1) / 4096;
    let mut set = WorkingSet::new(&directory, 4096);
    set.touches = vec![
        touch(0, 5..7, 0),
        touch(1, 0..1, 17),
        touch(0, 1..4, 17),
        touch(0, last_page..last_page + 1, 1_000_017),
    ];
    set
}

/// Reads a working set.
pub fn read_working_set(object: &[u8]) -> Result<WorkingSet, FormatError> {
    let (header, footer) = open(object)?;
    let trailer = footer.trailer_in(object).expect("a whole object");
    let set = WorkingSet::parse(&footer, trailer)?;
    match set.header == header {
        true => Ok(set),
        false => Err(FormatError::Hash { what: "header" }),
    }
}

/// Reads the trailer's footer and checks what only a holder of the whole object can check.
fn open(object: &[u8]) -> Result<(Header, Footer), FormatError> {
    let header = Header::parse(object)?;
    let footer = Footer::parse(object)?;
    if footer.total_len != object.len() as u64 {
        return Err(FormatError::LeftOver {
            what: "object",
            offset: 0,
            count: object.len() as u64,
        });
    }
    Ok((header, footer))
}

/// Decodes all frames between `HEADER_LEN` and `end`, which they must fill.
fn read_frames(object: &[u8], end: u64) -> Result<Vec<(u64, Codec, Vec<u8>)>, FormatError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    for scanned in FrameScanner::new(&object[HEADER_LEN..end as usize], HEADER_LEN as u64, true) {
        match scanned {
            Scanned::Frame { offset, header } => {
                let mut raw = Vec::new();
                let frame = &object[offset as usize..offset as usize + header.frame_len()];
                decode_frame(frame, &mut decoder, &mut raw)?;
                frames.push((offset, header.codec, raw));
            }
            Scanned::Damaged { offset, .. } => {
                parse_frame(&object[offset as usize..end as usize])?;
                return Err(FormatError::Hash { what: "frame" });
            }
        }
    }
    Ok(frames)
}

/// Reads a pack and checks that index and frames agree.
pub fn read_pack(
    object: &[u8],
    key: Option<&Key>,
) -> Result<(PackIndex, Vec<Vec<u8>>), FormatError> {
    let (header, footer) = open(object)?;
    let index = PackIndex::parse(&footer, footer.trailer_in(object).expect("a whole object"))?;
    let frames = read_frames(object, footer.frames_end)?;
    let agree = index.header == header
        && frames.len() == index.entries.len()
        && frames
            .iter()
            .zip(&index.entries)
            .all(|((offset, codec, raw), entry)| {
                (*offset, *codec, raw.len()) == (entry.offset, entry.codec, entry.raw_len as usize)
                    && ChunkId::of(raw, key).prefix() == entry.id_prefix
            });
    match agree {
        true => Ok((index, frames.into_iter().map(|(_, _, raw)| raw).collect())),
        false => Err(FormatError::Hash { what: "index" }),
    }
}

/// A manifest or export with its segments, section by section.
pub type Read = (Directory, Vec<Vec<Segment>>);

/// Reads a manifest, or an export with its frames.
pub fn read_manifest(object: &[u8]) -> Result<Read, FormatError> {
    let (header, footer) = open(object)?;
    let directory = Directory::parse(&footer, footer.trailer_in(object).expect("a whole object"))?;
    if directory.header != header {
        return Err(FormatError::Hash { what: "header" });
    }
    read_frames(object, footer.frames_end)?;
    let mut segments = Vec::new();
    for section in &directory.sections {
        let open = |info: &podsnap_format::SegmentInfo| {
            let start = info.object_offset as usize;
            info.open(
                &object[start..start + info.object_len as usize],
                &directory.packs,
            )
        };
        segments.push(
            section
                .segments
                .iter()
                .map(open)
                .collect::<Result<_, _>>()?,
        );
    }
    Ok((directory, segments))
}

/// Restores every section out of the packs of the table.
pub fn restore(
    (directory, segments): &Read,
    packs: &[&[u8]],
    key: Option<&Key>,
) -> Vec<(String, Vec<u8>)> {
    let mut decoder = Decoder::new();
    let mut restored = Vec::new();
    for (section, segments) in directory.sections.iter().zip(segments) {
        let mut bytes = Vec::new();
        for segment in segments {
            for extent in &segment.extents {
                match *extent {
                    Extent::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
                    Extent::Chunk { chunk, start, len } => {
                        let chunk = segment.chunks[chunk as usize];
                        let at = chunk.location.offset as usize;
                        let frame = &packs[chunk.location.pack as usize]
                            [at..at + chunk.location.frame_len() as usize];
                        let mut raw = Vec::new();
                        assert_eq!(
                            decode_frame(frame, &mut decoder, &mut raw).unwrap(),
                            chunk.codec
                        );
                        assert_eq!(ChunkId::of(&raw, key), chunk.id);
                        bytes.extend(&raw[start as usize..(start + len) as usize]);
                    }
                }
            }
        }
        assert_eq!(bytes.len() as u64, section.length);
        restored.push((section.title(), bytes));
    }
    restored
}
