//! Understands what precedes a member's contents in a tar stream: the header block and the PAX records, GNU long names
//! and sparse maps that amend it. Does no reading of its own; every number in here is hostile.
//!
//! The crate `tar` decodes the header's fields. Its iterator is not used: it knows no PAX sparse files, and PAX records whose
//! value contains a newline (names and binary attributes may) come out of it cut.

use std::collections::BTreeMap;

use podsnap_format::tree::{Attributes, Timestamp, Xattr};
use tar::Header;

pub(super) const BLOCK: usize = 512;
/// Most bytes of records that global headers may add up to.
const MAX_RECORDS_LEN: usize = 16 << 20;

/// PAX records, by key. `GNU.sparse.offset` and `GNU.sparse.numbytes` may come many times and are kept as a map.
#[derive(Clone, Default)]
pub(super) struct Pax {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Offsets and lengths of the oldest PAX sparse format, in turn.
    sparse: Vec<u64>,
    /// Bytes of records taken over.
    length: usize,
}

impl Pax {
    /// Takes over the records of an extended header; later ones win.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        self.length += bytes.len();
        if self.length > MAX_RECORDS_LEN {
            return Err("there are too many extended header records".into());
        }
        // Some writers pad with NULs.
        while !bytes.is_empty() && bytes[0] != 0 {
            let space = bytes
                .iter()
                .take(20)
                .position(|&b| b == b' ')
                .ok_or("an extended header record has no length")?;
            let length = decimal(&bytes[..space])? as usize;
            let record = bytes
                .get(space + 1..length)
                .ok_or("an extended header record is longer than its header")?;
            let record = record
                .strip_suffix(b"\n")
                .ok_or("an extended header record does not end with a newline")?;
            let equals = record
                .iter()
                .position(|&b| b == b'=')
                .ok_or("an extended header record has no '='")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.push(decimal(value)?),
                // By the standard an empty value takes the record back; an attribute's value may be empty.
                _ if value.is_empty() && !key.starts_with(XATTR_PREFIX) => {
                    self.records.remove(key);
                }
                _ => {
                    self.records.insert(key.to_vec(), value.to_vec());
                }
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// These records, and those of `global` that they do not amend.
    pub(super) fn over(mut self, global: &Pax) -> Self {
        for (key, value) in &global.records {
            self.records
                .entry(key.clone())
                .or_insert_with(|| value.clone());
        }
        self
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key).map(decimal).transpose()
    }

    /// Where a sparse file has data, as (offset, length), for the formats that keep the map in the records.
    pub(super) fn sparse_map(&self) -> Result<Option<Vec<(u64, u64)>>, String> {
        let numbers = match self.get("GNU.sparse.map") {
            Some(map) => map
                .split(|&b| b == b',')
                .map(decimal)
                .collect::<Result<Vec<_>, _>>()?,
            None if self.get("GNU.sparse.size").is_some() => self.sparse.clone(),
            None => return Ok(None),
        };
        if numbers.len() % 2 != 0 {
            return Err("its sparse map is incomplete".into());
        }
        Ok(Some(
            numbers
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
        ))
    }

    fn xattrs(&self) -> Vec<Xattr> {
        let mut xattrs: Vec<Xattr> = self
            .records
            .iter()
            .filter_map(|(key, value)| {
                let name = unescape(key.strip_prefix(XATTR_PREFIX)?);
                Some(Xattr {
                    name,
                    value: value.clone(),
                })
            })
            .collect();
        xattrs.sort_by(|a, b| a.name.cmp(&b.name));
        xattrs
    }
}

pub(super) const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// GNU tar writes '=' and '%' in an attribute's name as %3D and %25.
fn unescape(key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match (byte, after) {
            (b'%', [b'3', b'D' | b'd', after @ ..]) => (b'=', after),
            (b'%', [b'2', b'5', after @ ..]) => (b'%', after),
            _ => (byte, after),
        };
        name.push(byte);
        rest = after;
    }
    name
}

/// A number in decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Result<u64, String> {
    let text = std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("'{}' is not a number", digits.escape_ascii()))
}

/// A time in seconds with an optional fraction, as PAX writes it: -1.25 is a quarter before -1.
fn time(text: &[u8]) -> Result<Timestamp, String> {
    let wrong = || format!("'{}' is not a time", text.escape_ascii());
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let seconds = i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| wrong())?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(wrong());
    }
    let nanos = (0..9).fold(0, |nanos, i| {
        nanos * 10 + u32::from(fraction.get(i).map_or(0, |digit| digit - b'0'))
    });
    Ok(match (negative, nanos) {
        (false, _) => Timestamp { seconds, nanos },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanos,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

/// Whether a header block's checksum is right.
pub(super) fn checksum_fits(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let own: u32 = bytes[148..156].iter().map(|&byte| u32::from(byte)).sum();
    header
        .cksum()
        .is_ok_and(|stored| stored == sum - own + 8 * u32::from(b' '))
}

/// A member's attributes, its PAX records before its header's fields.
pub(super) fn attributes(header: &Header, pax: &Pax) -> Result<Attributes, String> {
    let text = |error: std::io::Error| error.to_string();
    let id = |key: &str, field: std::io::Result<u64>| {
        let value = match pax.number(key)? {
            Some(value) => value,
            None => field.map_err(text)?,
        };
        u32::try_from(value).map_err(|_| format!("its {key} {value} is too large"))
    };
    Ok(Attributes {
        mode: (header.mode().map_err(text)? & 0o7777) as u16,
        uid: id("uid", header.uid())?,
        gid: id("gid", header.gid())?,
        mtime: match pax.get("mtime") {
            Some(value) => time(value)?,
            // GNU tar writes times before 1970 in two's complement.
            None => Timestamp {
                seconds: header.mtime().map_err(text)? as i64,
                nanos: 0,
            },
        },
        xattrs: pax.xattrs().into(),
    })
}

/// Splits a member's path into names. Doubled slashes, one at the end, and `.` are dropped as tar does; what would lead
/// elsewhere is refused.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    if path.starts_with(b"/") {
        return Err("its path is absolute; make the archive with relative paths".into());
    }
    let names: Vec<&[u8]> = path
        .split(|&b| b == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect();
    if names.contains(&&b".."[..]) {
        return Err("its path contains '..'".into());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        assert_eq!(
            time(b"-1.25").unwrap(),
            Timestamp {
                seconds: -2,
                nanos: 750_000_000
            }
        );
        assert_eq!(
            time(b"-3").unwrap(),
            Timestamp {
                seconds: -3,
                nanos: 0
            }
        );
        assert_eq!(
            time(b"5.0000000019").unwrap(),
            Timestamp {
                seconds: 5,
                nanos: 1
            }
        );
        assert!(
            time(b"--5").is_err()
                && time(b"5.x").is_err()
                && time(b"99999999999999999999").is_err()
        );
    }

    #[test]
    fn damaged_extended_headers_are_refused() {
        for bytes in [
            &b"9999999999999999999999 a=b\n"[..],
            b"30 path=x\n",
            b"8 pathx\n",
            b"3 a=b\n",
            b"1 \n",
            b"0 \n",
            b"9 path=x",
        ] {
            assert!(
                Pax::default().add(bytes).is_err(),
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
