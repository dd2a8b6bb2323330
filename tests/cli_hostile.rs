//! Crafted snapshots from the command line: whatever names an export or a manifest holds, nothing is written outside the target, and
//! nothing in it steers a terminal.

mod support;

use std::{fs, path::Path};

use podsnap::format::{
    ChunkId, HEADER_LEN, Header, Kind, ManifestBuilder, Role, SectionInfo, Segment, Shape,
    codec::{Encoder, Policy},
    frame::append_frame,
    manifest::{Chunk, ChunkingParams, Extent, Location, PackInfo, SectionBuilder},
    tree::{Attributes, Entry, EntryKind, Timestamp, TreeTable},
};
use support::{id, tool::*};

/// A section of an export to be crafted.
struct Crafted {
    role: Role,
    name: String,
    shape: Shape,
    bytes: Vec<u8>,
    table_length: u64,
}

fn blob(role: Role, name: &str) -> Crafted {
    Crafted {
        role,
        name: name.to_owned(),
        shape: Shape::Blob,
        bytes: format!("contents of {name}").into_bytes(),
        table_length: 0,
    }
}

/// An export of these sections, one chunk each, in which every checksum fits.
fn export(metadata: &str, sections: &[Crafted]) -> Vec<u8> {
    let header = Header::new(Kind::Export, id("crafted"), 1);
    let mut object = header.encode().to_vec();
    let mut encoder = Encoder::new(Policy::None);
    let mut built = Vec::new();
    for section in sections {
        let offset = object.len() as u64;
        let codec = append_frame(&mut object, &section.bytes, &mut encoder, None);
        let len = section.bytes.len() as u32;
        let chunk = Chunk {
            id: ChunkId::of(&section.bytes, None),
            raw_len: len,
            codec,
            location: Location {
                pack: 0,
                offset,
                encoded_len: len,
            },
        };
        let whole = Extent::Chunk {
            chunk: 0,
            start: 0,
            len,
        };
        let segment = Segment {
            chunks: vec![chunk],
            extents: vec![whole],
        };
        let mut builder = SectionBuilder::new();
        builder.push(&segment).unwrap();
        let chunking = ChunkingParams::Fixed { size: 4096 };
        let info = SectionInfo {
            table_length: section.table_length,
            ..SectionInfo::new(section.role, &section.name, section.shape, chunking)
        };
        built.push((info, builder));
    }
    let frames = PackInfo {
        snapshot: id("crafted"),
        name: String::new(),
        version: String::new(),
        length: object.len() as u64,
        crc32c: crc32c(&object),
    };
    let mut manifest = ManifestBuilder::new(header, object.len() as u64);
    for (info, builder) in built {
        manifest.section(info, builder);
    }
    let end = manifest.finish(metadata, &[frames]).unwrap();
    assert!(object.len() >= HEADER_LEN);
    object.extend_from_slice(&end.bytes);
    object
}

/// CRC-32C as SPEC.md has it (Castagnoli, reflected).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// Everything below the directory, by path.
fn everything(dir: &Path) -> Vec<String> {
    files(dir)
}

#[test]
fn names_of_sections_never_leave_the_target() {
    let tool = Tool::new();
    let names = [
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "..\\x",
        "%2e%2e%2f",
        "~",
        "\u{202e}txt",
    ];
    let mut sections: Vec<_> = names.iter().map(|name| blob(Role::Other, name)).collect();
    // In a gVisor image too, where sections are called after its files.
    sections.push(blob(Role::Kernel, ""));
    sections.push(blob(Role::Memory, "../pages.img"));
    for metadata in ["{}", r#"{"gvisor":{"runsc_version":"../../x"}}"#] {
        tool.file("bad", &export(metadata, &sections));
        tool.run(&["verify", "file:bad"]).ok();
        fs::create_dir_all(tool.path("deep/er")).unwrap();
        let before = everything(tool.dir());
        tool.run(&["restore", "file:bad", "deep/er/out"]).ok();
        let out = tool.path("deep/er/out");
        let restored = files(&out);
        assert_eq!(restored.len(), sections.len(), "{restored:?}");
        assert!(
            restored.iter().all(|name| !name.contains('/')),
            "{restored:?}"
        );
        let contents: Vec<_> = restored
            .iter()
            .map(|name| fs::read(out.join(name)).unwrap())
            .collect();
        for section in &sections {
            assert!(contents.contains(&section.bytes), "{}", section.name);
        }
        // One at a time, by the very name.
        let one = ["restore", "file:bad", "-", "--section", "other:../../x"];
        assert_eq!(tool.run(&one).ok().text(), "contents of ../../x");
        fs::remove_dir_all(&out).unwrap();
        let mut after = everything(tool.dir());
        after.retain(|name| name != "deep/er/");
        let before: Vec<_> = before.into_iter().filter(|n| n != "deep/er/").collect();
        assert_eq!(after, before);
        // Nor do they in the store, which an import goes through.
        let id = format!("imported-{}", metadata.len());
        tool.run(&["import", "bad", "--as", &id]).ok();
        assert_eq!(files(&tool.path("store").join(id)).len(), 2);
    }
}

/// An entry of a tree below the entry `parent`.
fn entry(parent: u32, name: &str, kind: EntryKind) -> Entry {
    let mode = match kind {
        EntryKind::Directory => 0o755,
        _ => 0o644,
    };
    Entry {
        parent,
        name: name.into(),
        kind,
        attributes: Attributes {
            mode,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            mtime: Timestamp {
                seconds: 0,
                nanos: 0,
            },
            xattrs: [].into(),
        },
    }
}

#[test]
fn links_in_a_tree_are_never_followed() {
    let tool = Tool::new();
    let outside = tool.path("outside");
    fs::create_dir(&outside).unwrap();
    let link = EntryKind::Symlink {
        target: outside.to_str().unwrap().into(),
    };
    let entries = vec![
        entry(0, "", EntryKind::Directory),
        entry(0, "link", link),
        entry(0, "zz\u{1b}[2J", EntryKind::Directory),
    ];
    let table = TreeTable::new(entries, 0).unwrap().encode();
    let tree = Crafted {
        role: Role::Rootfs,
        name: String::new(),
        shape: Shape::Tree,
        table_length: table.len() as u64,
        bytes: table,
    };
    tool.file("bad", &export("{}", &[tree]));
    tool.run(&["restore", "file:bad", "out"]).ok();
    assert!(tool.path("out/rootfs/link").is_symlink());
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

/// A table that says it begins before the section does, or is none at all.
#[test]
fn tables_that_are_none_are_damage() {
    let tool = Tool::new();
    for (bytes, table_length) in [(&b"no table at all"[..], 15), (b"data", 1)] {
        let tree = Crafted {
            role: Role::Tmpfs,
            name: String::new(),
            shape: Shape::Tree,
            bytes: bytes.to_vec(),
            table_length,
        };
        tool.file("bad", &export("{}", &[tree]));
        for target in ["out", "-"] {
            tool.run(&["restore", "file:bad", target])
                .ends_with(5)
                .says(&["the entry table of tmpfs", "bad"]);
        }
        assert!(!tool.path("out").exists());
    }
}

#[test]
fn metadata_that_makes_no_sense_is_damage() {
    let tool = Tool::new();
    for metadata in [
        "",
        "[]",
        "{",
        r#"{"created_unix_ms":"now"}"#,
        r#"{"labels":[1]}"#,
    ] {
        tool.file("bad", &export(metadata, &[blob(Role::Other, "")]));
        tool.run(&["restore", "file:bad", "out"])
            .ends_with(5)
            .says(&["bad", "metadata"]);
    }
    // A time beyond all calendars is shown somehow, and nothing panics.
    let (far, group) = (u64::MAX, "\\u001b[2J");
    let metadata = format!(r#"{{"created_unix_ms":{far},"group":"{group}","unknown":[1]}}"#);
    tool.file("odd", &export(&metadata, &[blob(Role::Other, "")]));
    tool.run(&["import", "odd"]).ok();
    assert!(tool.json(&["ls"])[0]["raw_bytes"].as_u64().unwrap() > 0);
    let shown = tool.run(&["ls"]).ok();
    assert!(!shown.text().contains('\u{1b}'), "{:?}", shown.text());
}
