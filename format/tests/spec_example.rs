//! The example in SPEC.md: made anew and compared with the text there. `PODSNAP_BLESS=1` writes it into SPEC.md.

mod sample;

use std::fmt::Write;
use std::path::Path;

use podsnap_format::codec::{Encoder, Policy};
use podsnap_format::frame::append_frame;
use podsnap_format::manifest::{Chunk, ChunkingParams, Extent, Location, PackInfo, SectionBuilder};
use podsnap_format::{
    ChunkId, HEADER_LEN, Header, Kind, ManifestBuilder, PackIndexBuilder, Role, SectionInfo,
    Segment, Shape,
};

const BEGIN: &str = "<!-- example: begin -->\n";
const END: &str = "<!-- example: end -->\n";

const HEADER: &[(usize, &str)] = &[
    (8, "magic"),
    (2, "version 1"),
    (2, "kind"),
    (4, "pack number"),
    (8, "incompatible features: none"),
    (8, "read-only-compatible features: none"),
    (8, "compatible features: none"),
    (8, "attempt"),
    (16, "key check: no key"),
    (1, "length of the snapshot id"),
    (120, "snapshot id \"tiny\""),
    (3, "reserved"),
    (4, "CRC-32 of the header"),
];

const FOOTER: &[(usize, &str)] = &[
    (8, "offset of the trailer"),
    (8, "length of the trailer"),
    (8, "length of the object"),
    (32, "BLAKE3 of the trailer"),
    (8, "end of the frames"),
    (2, "version 1"),
    (2, "kind"),
    (4, "CRC-32 of the footer"),
    (8, "magic"),
];

/// The objects of the example: a pack and a manifest.
fn objects() -> (Vec<u8>, Vec<u8>) {
    let content = b"hello, podsnap\n";
    let header = Header::new(
        Kind::Manifest,
        "tiny".parse().unwrap(),
        0x1122_3344_5566_7788,
    );
    let pack_header = header.pack(0);
    let id = ChunkId::of(content, None);
    let len = content.len() as u32;

    let mut pack = pack_header.encode().to_vec();
    let codec = append_frame(&mut pack, content, &mut Encoder::new(Policy::None), None);
    let mut index = PackIndexBuilder::new(pack_header.clone());
    index.push(&id, codec, len, len);
    pack.extend(index.finish(pack.len() as u64).unwrap());

    let location = Location {
        pack: 0,
        offset: HEADER_LEN as u64,
        encoded_len: len,
    };
    let segment = Segment {
        chunks: vec![Chunk {
            id,
            raw_len: len,
            codec,
            location,
        }],
        extents: vec![
            Extent::Chunk {
                chunk: 0,
                start: 0,
                len,
            },
            Extent::Zero {
                len: 4096 - u64::from(len),
            },
        ],
    };
    let info = PackInfo {
        snapshot: header.snapshot.clone(),
        name: pack_header.pack_name().to_string(),
        version: "1".into(),
        length: pack.len() as u64,
        crc32c: sample::crc32c(&pack),
    };
    let mut section = SectionBuilder::new();
    section.push(&segment).unwrap();
    let chunking = ChunkingParams::Cdc {
        min: 32 << 10,
        avg: 64 << 10,
        max: 256 << 10,
    };
    let mut builder = ManifestBuilder::new(header.clone(), HEADER_LEN as u64);
    builder.section(
        SectionInfo::new(Role::Memory, "", Shape::Blob, chunking),
        section,
    );
    let mut manifest = header.encode().to_vec();
    manifest.extend(builder.finish("{}", &[info]).unwrap().bytes);
    (pack, manifest)
}

/// The bytes of an object, field by field; the fields must cover it exactly.
fn dump(title: &str, object: &[u8], fields: &[&[(usize, &str)]]) -> String {
    let mut out = format!("{title}, {} bytes:\n\n```text\n", object.len());
    let mut at = 0;
    for (len, meaning) in fields.concat() {
        let mut meaning = meaning;
        for (i, line) in object[at..at + len].chunks(16).enumerate() {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = format!("{:04x}  {:<47}  {meaning}", at + 16 * i, hex.join(" "));
            writeln!(out, "{}", text.trim_end()).unwrap();
            meaning = "";
        }
        at += len;
    }
    assert_eq!(at, object.len(), "the fields of {title}");
    out + "```\n"
}

fn example() -> String {
    let (pack, manifest) = objects();
    let pack = dump(
        "`tiny/pack-1122334455667788-0`",
        &pack,
        &[
            HEADER,
            &[
                (1, "frame: sync"),
                (1, "codec: raw"),
                (3, "raw length 15"),
                (3, "encoded length 15"),
                (4, "CRC-32 of the frame"),
                (15, "payload \"hello, podsnap\\n\""),
                (192, "index: copy of the header"),
                (1, "frame count 1"),
                (1, "codecs: raw"),
                (1, "raw lengths: 15"),
                (1, "savings: 0"),
                (8, "id prefixes"),
            ],
            FOOTER,
        ],
    );
    let manifest = dump(
        "`tiny/manifest`",
        &manifest,
        &[
            HEADER,
            &[
                (1, "segment: chunk count 1"),
                (32, "ids"),
                (1, "raw lengths: 15"),
                (1, "savings: 0"),
                (2, "codecs: raw, a run of 1"),
                (2, "packs: 0, a run of 1"),
                (1, "offsets: a run of 1 as expected"),
                (1, "operation count 2"),
                (1, "kind 0: 1 whole chunk, the next"),
                (2, "kind 1: 4,081 zeros"),
                (192, "directory: copy of the header"),
                (3, "metadata: \"{}\""),
                (1, "pack count 1"),
                (5, "snapshot id \"tiny\""),
                (24, "name \"pack-1122334455667788-0\""),
                (2, "version \"1\""),
                (2, "length of the pack"),
                (4, "CRC-32C of the pack"),
                (1, "section count 1"),
                (1, "role: memory"),
                (1, "shape: blob"),
                (1, "name \"\""),
                (2, "length 4,096"),
                (1, "table length 0"),
                (1, "chunking: content-defined"),
                (3, "minimum 32 KiB"),
                (3, "average 64 KiB"),
                (3, "maximum 256 KiB"),
                (1, "address range count 0"),
                (1, "segment count 1"),
                (2, "section length 4,096"),
                (1, "length in the object"),
                (32, "BLAKE3 of the segment"),
            ],
            FOOTER,
        ],
    );
    format!("{pack}\n{manifest}")
}

#[test]
fn the_example_in_the_specification_is_what_the_code_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../SPEC.md");
    let spec = std::fs::read_to_string(&path).unwrap();
    let begin = spec.find(BEGIN).expect("the marker before the example") + BEGIN.len();
    let end = spec.find(END).expect("the marker after the example");
    if std::env::var_os("PODSNAP_BLESS").is_some() {
        std::fs::write(&path, [&spec[..begin], &example(), &spec[end..]].concat()).unwrap();
    } else {
        assert_eq!(&spec[begin..end], example());
    }
}
