//! Turns checked entries into the bytes of a table. The layout is drawn in SPEC.md; `parse` is its mirror image.

use std::collections::HashMap;
use std::sync::Arc;

use super::bytes::{put_bytes, put_signed, put_varint};
use super::parse::{Previous, head};
use super::walk::Walk;
use super::{Entry, EntryKind, TABLE_VERSION, Xattr};

pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + entries.len() * 32);
    out.push(TABLE_VERSION);
    put_varint(&mut out, entries.len() as u64);
    // Only follows the directories here; the entries were checked before.
    let mut walk = Walk::new(0);
    let mut previous = Previous::default();
    let mut xattr_sets: HashMap<&Arc<[Xattr]>, u64> = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let head_at = out.len();
        out.push(kind_tag(&entry.kind));
        let mut up = 0;
        if index > 0 {
            up = walk
                .up_to(entry.parent)
                .expect("checked: the parent is open");
            let sibling = walk
                .sibling(up)
                .map_or(&b""[..], |sibling| &entries[sibling as usize].name);
            let shared = sibling
                .iter()
                .zip(&entry.name)
                .take_while(|(a, b)| a == b)
                .count();
            put_varint(&mut out, up as u64);
            put_varint(&mut out, shared as u64);
            put_bytes(&mut out, &entry.name[shared..]);
        }
        walk.enter(index as u32, entry, up);
        if let EntryKind::HardLink { target } = entry.kind {
            put_varint(&mut out, index as u64 - u64::from(target));
            continue;
        }
        let attributes = &entry.attributes;
        let owner = (attributes.mode, attributes.uid, attributes.gid);
        let known = &mut previous.owner[usize::from(out[head_at] & head::KIND)];
        if *known == owner {
            out[head_at] |= head::SAME_OWNER;
        } else {
            put_varint(&mut out, u64::from(owner.0));
            put_varint(&mut out, u64::from(owner.1));
            put_varint(&mut out, u64::from(owner.2));
            *known = owner;
        }
        put_signed(
            &mut out,
            attributes.mtime.seconds.wrapping_sub(previous.seconds),
        );
        put_varint(&mut out, u64::from(attributes.mtime.nanos));
        previous.seconds = attributes.mtime.seconds;
        if !attributes.xattrs.is_empty() {
            out[head_at] |= head::XATTRS;
            let next = xattr_sets.len() as u64 + 1;
            match xattr_sets.get(&attributes.xattrs) {
                Some(&number) => put_varint(&mut out, number),
                None => {
                    xattr_sets.insert(&attributes.xattrs, next);
                    put_xattrs(&mut out, &attributes.xattrs);
                }
            }
        }
        put_kind(&mut out, head_at, &entry.kind, &mut previous);
    }
    out
}

fn put_xattrs(out: &mut Vec<u8>, xattrs: &[Xattr]) {
    put_varint(out, 0);
    put_varint(out, xattrs.len() as u64);
    for xattr in xattrs {
        put_bytes(out, &xattr.name);
        put_bytes(out, &xattr.value);
    }
}

fn put_kind(out: &mut Vec<u8>, head_at: usize, kind: &EntryKind, previous: &mut Previous) {
    match kind {
        EntryKind::Regular { size, ranges } => {
            put_varint(out, *size);
            let dense = match ranges.as_slice() {
                [] => *size == 0,
                [range] => range.length == *size && range.stream_offset == previous.stream_end,
                _ => false,
            };
            if dense {
                out[head_at] |= head::DENSE;
                previous.stream_end += size;
                return;
            }
            put_varint(out, ranges.len() as u64);
            let mut file_end = 0;
            for range in ranges {
                put_varint(out, range.file_offset - file_end);
                put_varint(out, range.length);
                put_signed(
                    out,
                    range.stream_offset.wrapping_sub(previous.stream_end) as i64,
                );
                file_end = range.file_offset + range.length;
                previous.stream_end = range.stream_offset + range.length;
            }
        }
        EntryKind::Symlink { target } => put_bytes(out, target),
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            put_varint(out, u64::from(*major));
            put_varint(out, u64::from(*minor));
        }
        EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket | EntryKind::HardLink { .. } => {
        }
    }
}

fn kind_tag(kind: &EntryKind) -> u8 {
    match kind {
        EntryKind::Directory => head::DIRECTORY,
        EntryKind::Regular { .. } => head::REGULAR,
        EntryKind::Symlink { .. } => head::SYMLINK,
        EntryKind::Fifo => head::FIFO,
        EntryKind::Socket => head::SOCKET,
        EntryKind::CharDevice { .. } => head::CHAR_DEVICE,
        EntryKind::BlockDevice { .. } => head::BLOCK_DEVICE,
        EntryKind::HardLink { .. } => head::HARD_LINK,
    }
}
