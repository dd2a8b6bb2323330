//! Writes a tree as a tar stream: ustar headers, amended by PAX records where those cannot say it (long names, large
//! numbers, nanoseconds, extended attributes as `SCHILY.xattr.*`). Files with holes are written in PAX sparse format
//! 1.0, which GNU tar, bsdtar, Go and Python read, so that a sparse gigabyte stays small. Sockets are left out, as every
//! tar does.

use std::io::{self, Write};
use std::path::PathBuf;

use podsnap_format::tree::{Attributes, DataRange, Entry, EntryKind, Timestamp, TreeTable};
use tar::{EntryType, Header};

use super::tar_header::{BLOCK, XATTR_PREFIX};
use super::{Error, to_path};

/// How much of the contents is asked for at a time, in bytes.
const COPY_LEN: usize = 1 << 20;

/// Where the contents of a tree section come from.
pub trait ContentSource {
    /// Fills `buf` with the stream's bytes from `stream_offset` on, wholly.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being had; it is passed on.
    fn read_at(&self, stream_offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl<F: Fn(u64, &mut [u8]) -> io::Result<()>> ContentSource for F {
    fn read_at(&self, stream_offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self(stream_offset, buf)
    }
}

/// What was written.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct TarStats {
    /// Members written.
    pub members: u64,
    /// Paths left out because tar has no such member: sockets, and further names of them.
    pub left_out: Vec<PathBuf>,
}

/// Writes `table` with the contents of `source` to `out`, end mark included.
///
/// # Errors
/// [`Error::Io`] naming the entry at which reading or writing failed.
pub fn write_tar<W: Write>(
    table: &TreeTable,
    source: &dyn ContentSource,
    out: W,
) -> Result<TarStats, Error> {
    let mut writer = Writer {
        table,
        source,
        out,
        buf: vec![0; COPY_LEN],
    };
    let mut stats = TarStats::default();
    for (index, entry) in table.entries().iter().enumerate() {
        let index = index as u32;
        let at_entry = |source| Error::Io {
            action: "write to the tar stream",
            path: to_path(table.path(index)),
            source,
        };
        if writer.member(index, entry).map_err(at_entry)? {
            stats.members += 1;
        } else {
            stats.left_out.push(to_path(table.path(index)));
        }
    }
    let end = writer
        .out
        .write_all(&[0; 2 * BLOCK])
        .and_then(|()| writer.out.flush());
    end.map_err(|source| Error::Io {
        action: "write to the tar stream",
        path: PathBuf::new(),
        source,
    })?;
    Ok(stats)
}

struct Writer<'a, W> {
    table: &'a TreeTable,
    source: &'a dyn ContentSource,
    out: W,
    buf: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    /// Writes one entry; false if it cannot be written as a member.
    fn member(&mut self, index: u32, entry: &Entry) -> io::Result<bool> {
        let mut member = Member::new(self.member_path(index, entry.kind == EntryKind::Directory));
        member.attributes(&entry.attributes);
        match &entry.kind {
            EntryKind::Socket => return Ok(false),
            EntryKind::Directory => member.header.set_entry_type(EntryType::Directory),
            EntryKind::Fifo => member.header.set_entry_type(EntryType::Fifo),
            EntryKind::Symlink { target } => {
                member.header.set_entry_type(EntryType::Symlink);
                member.link(target);
            }
            EntryKind::HardLink { target } => {
                let first = &self.table.entries()[*target as usize];
                if first.kind == EntryKind::Socket {
                    return Ok(false);
                }
                member.attributes(&first.attributes);
                member.pax.clear();
                member.header.set_entry_type(EntryType::Link);
                member.link(&self.member_path(*target, false));
            }
            EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
                let is_char = matches!(entry.kind, EntryKind::CharDevice { .. });
                member.header.set_entry_type(if is_char {
                    EntryType::Char
                } else {
                    EntryType::Block
                });
                if (*major).max(*minor) > 0o7777777 {
                    return Ok(false);
                }
                member.header.set_device_major(*major)?;
                member.header.set_device_minor(*minor)?;
            }
            EntryKind::Regular { size, ranges } => {
                self.file(member, *size, ranges)?;
                return Ok(true);
            }
        }
        member.write_header(&mut self.out, 0)?;
        Ok(true)
    }

    fn file(&mut self, mut member: Member, size: u64, ranges: &[DataRange]) -> io::Result<()> {
        let data: u64 = ranges.iter().map(|range| range.length).sum();
        let mut archived = size;
        if data < size {
            // As GNU tar does: the map precedes the contents, its last run ends where the file does.
            let mut map = format!("{}\n", ranges.len() + 1);
            for range in ranges {
                map.push_str(&format!("{}\n{}\n", range.file_offset, range.length));
            }
            map.push_str(&format!("{size}\n0\n"));
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            archived = map.len() as u64 + data;
            member.sparse(size);
            member.write_header(&mut self.out, archived)?;
            self.out.write_all(&map)?;
        } else {
            member.write_header(&mut self.out, size)?;
        }
        for range in ranges {
            let mut done = 0;
            while done < range.length {
                let count = (range.length - done).min(COPY_LEN as u64) as usize;
                self.source
                    .read_at(range.stream_offset + done, &mut self.buf[..count])?;
                self.out.write_all(&self.buf[..count])?;
                done += count as u64;
            }
        }
        self.out
            .write_all(&[0; BLOCK][..(archived.wrapping_neg() % BLOCK as u64) as usize])
    }

    /// A leading `./` keeps names from looking like anything else, and names the top directory.
    fn member_path(&self, index: u32, is_directory: bool) -> Vec<u8> {
        let mut path = b"./".to_vec();
        path.extend(self.table.path(index));
        if is_directory && index != 0 {
            path.push(b'/');
        }
        path
    }
}

/// A member's header in the making.
struct Member {
    header: Header,
    /// Name the header gets; that of a sparse file stands in a record.
    path: Vec<u8>,
    /// PAX records of attributes.
    pax: Vec<u8>,
    /// PAX records of names and sizes.
    names: Vec<u8>,
}

impl Member {
    fn new(path: Vec<u8>) -> Self {
        let mut member = Self {
            header: Header::new_ustar(),
            path,
            pax: Vec::new(),
            names: Vec::new(),
        };
        member.header.set_size(0);
        member
    }

    fn attributes(&mut self, attributes: &Attributes) {
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        } = attributes;
        self.header.set_mode((*mode).into());
        self.header.set_uid((*uid).min(0o7777777).into());
        self.header.set_gid((*gid).min(0o7777777).into());
        for (key, id) in [("uid", *uid), ("gid", *gid)] {
            if id > 0o7777777 {
                put_record(&mut self.pax, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        let in_header = u64::try_from(mtime.seconds)
            .ok()
            .filter(|&seconds| seconds < 1 << 33);
        self.header.set_mtime(in_header.unwrap_or(0));
        if in_header.is_none() || mtime.nanos > 0 {
            put_record(&mut self.pax, b"mtime", decimal_time(*mtime).as_bytes());
        }
        for xattr in xattrs.iter() {
            let mut key = XATTR_PREFIX.to_vec();
            for &byte in &xattr.name {
                match byte {
                    b'=' => key.extend(b"%3D"),
                    b'%' => key.extend(b"%25"),
                    _ => key.push(byte),
                }
            }
            put_record(&mut self.pax, &key, &xattr.value);
        }
    }

    fn link(&mut self, target: &[u8]) {
        if !put_field(&mut self.header.as_old_mut().linkname, target) {
            put_record(&mut self.names, b"linkpath", target);
        }
    }

    fn sparse(&mut self, size: u64) {
        put_record(&mut self.names, b"GNU.sparse.major", b"1");
        put_record(&mut self.names, b"GNU.sparse.minor", b"0");
        put_record(&mut self.names, b"GNU.sparse.name", &self.path);
        put_record(
            &mut self.names,
            b"GNU.sparse.realsize",
            size.to_string().as_bytes(),
        );
        // Who does not know sparse files sees that this is none.
        self.path = b"./GNUSparseFile.0/sparse".to_vec();
    }

    fn write_header(mut self, out: &mut impl Write, size: u64) -> io::Result<()> {
        if !put_field(&mut self.header.as_old_mut().name, &self.path) {
            put_record(&mut self.names, b"path", &self.path);
        }
        if size < 1 << 33 {
            self.header.set_size(size);
        } else {
            put_record(&mut self.names, b"size", size.to_string().as_bytes());
        }
        let records = [self.names, self.pax].concat();
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.set_mode(0o644);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(records.len() as u64);
            put_field(&mut extended.as_old_mut().name, b"./PaxHeaders/0");
            extended.set_cksum();
            out.write_all(extended.as_bytes())?;
            out.write_all(&records)?;
            out.write_all(&[0; BLOCK][..records.len().wrapping_neg() % BLOCK])?;
        }
        self.header.set_cksum();
        out.write_all(self.header.as_bytes())
    }
}

/// Puts a text into a header field, as much of it as fits; says whether that is all.
fn put_field(field: &mut [u8], text: &[u8]) -> bool {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
    count == text.len()
}

/// A PAX record: its length, which counts its own digits, then key and value.
fn put_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend(format!("{length} ").bytes());
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn decimal_time(time: Timestamp) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    format!(
        "{sign}{}.{:09}",
        nanos / 1_000_000_000,
        nanos % 1_000_000_000
    )
}
