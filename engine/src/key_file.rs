//! Files that hold a store's key.

use std::{fs, path::Path};

use podsnap_format::Key;

use crate::error::{Error, Result};

/// Reads a key from a file: 64 hex digits, or 32 bytes.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("key");
/// std::fs::write(&path, [7; 32])?;
/// let key = podsnap_engine::read_key(&path)?;
/// assert_eq!(key.key_check(), podsnap_engine::Key::new([7; 32]).key_check());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_key(path: impl AsRef<Path>) -> Result<Key> {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|e| {
        Error::invalid(format!("cannot read the key file {}", path.display())).because(e)
    })?;
    let bad = || {
        Error::invalid(format!("{} holds no key", path.display()))
            .hint("a key file holds 64 hex digits or 32 bytes; make one by: head -c 32 /dev/urandom > FILE")
    };
    if let Ok(raw) = <[u8; 32]>::try_from(bytes.as_slice()) {
        return Ok(Key::new(raw));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| bad())?.trim();
    let digits: Vec<u32> = text
        .chars()
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    if digits.len() != 64 {
        return Err(bad());
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    Ok(Key::new(key))
}
