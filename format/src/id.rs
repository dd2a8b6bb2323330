//! Names: chunk ids and the key that may go into them, snapshot digests, and snapshot ids. This module says what the
//! names are made of and how they are written; what they name is the business of the other modules.

use std::fmt;
use std::str::FromStr;

use crate::FormatError;

/// Longest snapshot id, in bytes.
pub const MAX_SNAPSHOT_ID_LEN: usize = 120;

/// What the key check is the keyed hash of.
const KEY_CHECK_INPUT: &[u8] = b"podsnap key check v1";

/// The identity of a chunk: BLAKE3-256 of its uncompressed bytes, keyed if the store has a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The id of the chunk that consists of `bytes`.
    pub fn of(bytes: &[u8], key: Option<&Key>) -> ChunkId {
        ChunkId(match key {
            None => *blake3::hash(bytes).as_bytes(),
            Some(key) => *blake3::keyed_hash(&key.0, bytes).as_bytes(),
        })
    }

    /// The first 8 bytes, which stand for the id in a pack's index.
    pub fn prefix(&self) -> [u8; 8] {
        self.0[..8].try_into().expect("an id has 32 bytes")
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

/// The secret of a store: makes chunk ids that say nothing about content to those who do not have it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A key made of 32 secret, uniformly random bytes.
    pub fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// What an object's header holds so that a wrong key is noticed: 16 bytes that do not reveal the key.
    pub fn key_check(&self) -> [u8; 16] {
        let hash = blake3::keyed_hash(&self.0, KEY_CHECK_INPUT);
        hash.as_bytes()[..16]
            .try_into()
            .expect("a hash has 32 bytes")
    }
}

/// Never shows the key.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What a whole snapshot hashes to: BLAKE3-256 of its directory, which covers everything else by its hashes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl FromStr for Digest {
    type Err = FormatError;

    /// Reads 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Digest, FormatError> {
        let refused = || FormatError::text("digest", "text", text, "64 hexadecimal digits");
        let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| refused())?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(refused);
            *byte = (digit(0)? << 4 | digit(1)?) as u8;
        }
        Ok(Digest(digest))
    }
}

/// The name of a snapshot: 1 to 120 of the characters `A-Z a-z 0-9 . _ -`, the first not a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotId {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<SnapshotId, FormatError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let valid = (1..=MAX_SNAPSHOT_ID_LEN).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(allowed);
        match valid {
            true => Ok(SnapshotId(text.to_owned())),
            false => Err(FormatError::text(
                "snapshot id",
                "text",
                text,
                "1 to 120 of the characters A-Z a-z 0-9 . _ -, the first not a dot",
            )),
        }
    }
}

impl AsRef<str> for SnapshotId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_every_id_and_its_check_differs_from_other_keys() {
        let key = Key::new([7; 32]);
        assert_ne!(ChunkId::of(b"page", Some(&key)), ChunkId::of(b"page", None));
        assert_ne!(key.key_check(), Key::new([8; 32]).key_check());
        assert_eq!(format!("{key:?}"), "Key(..)");
    }

    #[test]
    fn a_digest_reads_what_it_writes_and_nothing_else() {
        let digest = Digest(*blake3::hash(b"").as_bytes());
        let text = digest.to_string();
        assert_eq!(
            text,
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert!(text[1..].parse::<Digest>().is_err());
        assert!(text.replace('a', "g").parse::<Digest>().is_err());
        assert!(text.replacen("af", "é", 1).parse::<Digest>().is_err());
    }

    #[test]
    fn a_snapshot_id_cannot_name_anything_outside_its_directory() {
        for good in ["a", "0b0f-4d.x_Y", &"x".repeat(120)] {
            assert_eq!(good.parse::<SnapshotId>().unwrap().as_ref(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\0",
            "é",
            "a b",
            &"x".repeat(121),
        ] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad:?}");
        }
    }
}
