//! Objects written by version 1 once and for all: every later version must read them, and find in them what
//! `contents.txt` says. `PODSNAP_BLESS=1` writes them anew, which is right only as long as version 1 is not released.

mod sample;

use std::fmt::Write;
use std::path::PathBuf;

use podsnap_format::manifest::{ChunkingParams, Extent};
use podsnap_format::scan::Scanned;
use podsnap_format::working_set::Touch;
use podsnap_format::{FrameScanner, HEADER_LEN, Header, Key, Segment, WorkingSet};
use sample::{KEY, METADATA, Read};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/v1")
        .join(name)
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Writes the files anew, once per run, if asked to.
fn bless() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    if std::env::var_os("PODSNAP_BLESS").is_none() {
        return;
    }
    ONCE.call_once(|| {
        let sample = sample::sample();
        let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
        std::fs::create_dir_all(path("")).unwrap();
        write("pack", &sample.packs[0]);
        write("base-pack", &sample.packs[1]);
        write("manifest", &sample.manifest);
        write("export", &sample.export);
        write("working_set", &sample.working_set);
        write_codec_seeds(&sample.export);
        write("contents.txt", describe_all().as_bytes());
    });
}

/// Writes every frame of the export as a seed of the fuzz target `codecs`: codec tag, raw length, payload.
fn write_codec_seeds(export: &[u8]) {
    let seeds = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/codecs");
    std::fs::create_dir_all(&seeds).unwrap();
    let (directory, _) = sample::read_manifest(export).unwrap();
    let frames = &export[HEADER_LEN..directory.packs[0].length as usize];
    for (scanned, (name, _, _)) in FrameScanner::new(frames, 0, true).zip(sample::chunks()) {
        let Scanned::Frame { offset, header } = scanned else {
            panic!("damage in the sample")
        };
        let frame = &frames[offset as usize..offset as usize + header.frame_len()];
        std::fs::write(seeds.join(name), [&frame[1..5], &frame[12..]].concat()).unwrap();
    }
}

/// All that the objects say, as text that does not depend on the names of types.
fn describe_all() -> String {
    let mut out = String::new();
    for name in ["pack", "base-pack"] {
        let (index, _) = sample::read_pack(&golden(name), Some(&Key::new(KEY))).unwrap();
        describe_header(&mut out, name, &index.header);
        for e in &index.entries {
            let tag = e.codec.tag();
            let prefix = e.id_prefix.map(|byte| format!("{byte:02x}")).concat();
            writeln!(
                out,
                "  frame {} codec {tag:02x} {} -> {} {prefix}",
                e.offset, e.raw_len, e.encoded_len
            )
            .unwrap();
        }
    }
    for name in ["manifest", "export"] {
        let read = sample::read_manifest(&golden(name)).unwrap();
        describe_header(&mut out, name, &read.0.header);
        describe(&mut out, &read);
    }
    let set = sample::read_working_set(&golden("working_set")).unwrap();
    describe_header(&mut out, "working set", &set.header);
    describe_working_set(&mut out, &set);
    out
}

fn describe_working_set(out: &mut String, set: &WorkingSet) {
    let (digest, page) = (set.digest, set.page_len);
    writeln!(out, "  digest {digest}, pages of {page}").unwrap();
    for touch in &set.touches {
        let Touch { section, range, at } = touch;
        let (start, end, micros) = (range.start, range.end, at.as_micros());
        writeln!(out, "  section {section} from {start} to {end} at {micros}").unwrap();
    }
}

fn describe_header(out: &mut String, name: &str, header: &Header) {
    let Header {
        kind,
        pack_number,
        attempt,
        snapshot,
        key_check,
        ..
    } = header;
    let check = key_check
        .unwrap()
        .map(|byte| format!("{byte:02x}"))
        .concat();
    writeln!(
        out,
        "{name}: {kind} {pack_number} of {snapshot}, attempt {attempt:016x}, key check {check}"
    )
    .unwrap();
}

fn describe(out: &mut String, (directory, segments): &Read) {
    writeln!(out, "  digest {}", directory.digest).unwrap();
    writeln!(out, "  metadata {}", directory.metadata).unwrap();
    for p in &directory.packs {
        let (snapshot, crc) = (&p.snapshot, p.crc32c);
        writeln!(
            out,
            "  pack {snapshot} {:?} version {:?} length {} crc32c {crc:08x}",
            p.name, p.version, p.length
        )
        .unwrap();
    }
    for (s, segments) in directory.sections.iter().zip(segments) {
        let chunking = match s.chunking {
            ChunkingParams::Cdc { min, avg, max } => format!("cdc {min} {avg} {max}"),
            ChunkingParams::Fixed { size } => format!("fixed {size}"),
        };
        let (title, shape, length, table) = (s.title(), s.shape, s.length, s.table_length);
        writeln!(
            out,
            "  section {title} {shape} {length} table {table} {chunking}"
        )
        .unwrap();
        for r in &s.address_ranges {
            writeln!(
                out,
                "    addresses {:#x} + {} at {}",
                r.start, r.length, r.section_offset
            )
            .unwrap();
        }
        for (info, segment) in s.segments.iter().zip(segments) {
            let (offset, len) = (info.object_offset, info.object_len);
            writeln!(
                out,
                "    segment {} + {} in {offset} + {len}",
                info.section_offset, info.section_len
            )
            .unwrap();
            describe_segment(out, segment);
        }
    }
}

fn describe_segment(out: &mut String, segment: &Segment) {
    for c in &segment.chunks {
        let (l, tag) = (c.location, c.codec.tag());
        let (pack, offset) = (l.pack, l.offset);
        writeln!(
            out,
            "      chunk {} codec {tag:02x} {} -> {} at {pack}:{offset}",
            c.id, c.raw_len, l.encoded_len
        )
        .unwrap();
    }
    for extent in &segment.extents {
        match extent {
            Extent::Zero { len } => writeln!(out, "      zeros {len}"),
            Extent::Chunk { chunk, start, len } => {
                writeln!(out, "      chunk {chunk} from {start} + {len}")
            }
        }
        .unwrap();
    }
}

#[test]
fn golden_objects_say_what_they_always_said() {
    bless();
    assert_eq!(
        describe_all(),
        String::from_utf8(golden("contents.txt")).unwrap()
    );
}

#[test]
fn a_golden_snapshot_restores_from_its_packs_and_from_its_export() {
    bless();
    let key = Key::new(KEY);
    let manifest = sample::read_manifest(&golden("manifest")).unwrap();
    assert_eq!(manifest.0.metadata, METADATA);
    assert!(
        sample::restore(
            &manifest,
            &[&golden("pack"), &golden("base-pack")],
            Some(&key)
        ) == sample::contents()
    );
    let export = golden("export");
    assert!(
        sample::restore(
            &sample::read_manifest(&export).unwrap(),
            &[&export],
            Some(&key)
        ) == sample::contents()
    );
}

#[test]
fn a_golden_working_set_is_of_its_snapshot() {
    bless();
    let (mut directory, _) = sample::read_manifest(&golden("manifest")).unwrap();
    let set = sample::read_working_set(&golden("working_set")).unwrap();
    assert!(set.is_of(&directory));
    directory.digest.0[31] ^= 1;
    assert!(!set.is_of(&directory));
}

#[test]
fn golden_pack_entries_name_the_objects() {
    bless();
    let (directory, _) = sample::read_manifest(&golden("manifest")).unwrap();
    for (info, name) in directory.packs.iter().zip(["pack", "base-pack"]) {
        let object = golden(name);
        let header = Header::parse(&object).unwrap();
        assert_eq!(
            (&info.snapshot, &info.name),
            (&header.snapshot, &header.pack_name().to_string())
        );
        assert_eq!(
            (info.length, info.crc32c),
            (object.len() as u64, sample::crc32c(&object))
        );
    }
}
