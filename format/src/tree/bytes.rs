//! Reading and writing the few primitive things a table is made of. Nothing here knows what they mean.

use super::TreeError;

/// Appends `value` as a LEB128 varint.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` zigzag-coded, so that small negative numbers stay short.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and that many bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A place in the table.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    pub(super) fn byte(&mut self, what: &'static str) -> Result<u8, TreeError> {
        Ok(self.take(1, what)?[0])
    }

    pub(super) fn take(
        &mut self,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], TreeError> {
        let left = &self.bytes[self.position..];
        let taken = left.get(..length).ok_or(TreeError::Truncated {
            offset: self.position,
            what,
        })?;
        self.position += length;
        Ok(taken)
    }

    pub(super) fn varint(&mut self, what: &'static str) -> Result<u64, TreeError> {
        let offset = self.position;
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(TreeError::Overflow { offset, what })
    }

    pub(super) fn signed(&mut self, what: &'static str) -> Result<i64, TreeError> {
        let value = self.varint(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A varint that must not exceed `limit`.
    pub(super) fn bounded(&mut self, limit: u64, what: &'static str) -> Result<u64, TreeError> {
        let offset = self.position;
        let value = self.varint(what)?;
        if value > limit {
            Err(TreeError::Overflow { offset, what })
        } else {
            Ok(value)
        }
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, TreeError> {
        Ok(self.bounded(u64::from(u32::MAX), what)? as u32)
    }

    /// A count of things of which each takes at least `least` bytes, so that no count can exceed what is there.
    pub(super) fn count(&mut self, least: usize, what: &'static str) -> Result<usize, TreeError> {
        let offset = self.position;
        let count = self.varint(what)?;
        if count > (self.remaining() / least) as u64 {
            return Err(TreeError::Truncated { offset, what });
        }
        Ok(count as usize)
    }

    /// A length of at most `limit` and that many bytes.
    pub(super) fn counted(
        &mut self,
        limit: usize,
        what: &'static str,
    ) -> Result<&'a [u8], TreeError> {
        let length = self.bounded(limit as u64, what)? as usize;
        self.take(length, what)
    }
}
