//! Reading and writing the primitive fields: fixed-width little-endian integers, LEB128 varints and zigzag. A
//! [`Reader`] never reads past its bytes, never believes a count that the bytes left could not hold, and names what
//! it was reading and where in every error. It knows nothing of the structures made of these fields.

use crate::FormatError;

/// Appends `value` as LEB128: seven bits per byte, lowest first, the top bit set on all bytes but the last.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` as a zigzag varint: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
pub(crate) fn put_zigzag(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a varint length and the bytes of `text`.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// A cursor over the bytes of one structure.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which are a `what`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader {
            what,
            bytes,
            position: 0,
        }
    }

    /// The offset of the next byte.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], FormatError> {
        if count > self.remaining() {
            return Err(self.truncated(count as u64));
        }
        let taken = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self
            .take(N)?
            .try_into()
            .expect("take returns as many bytes as asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A varint of at most 10 bytes that fits into 64 bits.
    #[inline]
    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u64, FormatError> {
        match self.bytes.get(self.position) {
            Some(&byte) if byte < 0x80 => {
                self.position += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(field),
        }
    }

    fn long_varint(&mut self, field: &'static str) -> Result<u64, FormatError> {
        let start = self.position;
        let mut value = 0u64;
        for (i, &byte) in self.bytes[start..].iter().take(10).enumerate() {
            // The tenth byte has room for the 64th bit only.
            if i == 9 && byte > 1 {
                return Err(self.bad(field, start, u64::from(byte), "a varint of at most 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.position = start + i + 1;
                return Ok(value);
            }
        }
        self.position = self.bytes.len();
        Err(self.truncated(1))
    }

    /// A signed zigzag varint.
    pub(crate) fn zigzag(&mut self, field: &'static str) -> Result<i64, FormatError> {
        let value = self.varint(field)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A varint between `min` and `max`, both included.
    #[inline]
    pub(crate) fn bounded(
        &mut self,
        field: &'static str,
        min: u64,
        max: u64,
        expected: &'static str,
    ) -> Result<u64, FormatError> {
        let start = self.position;
        let value = self.varint(field)?;
        if value < min || value > max {
            return Err(self.bad(field, start, value, expected));
        }
        Ok(value)
    }

    /// A varint count of things that take at least `min_len` bytes each: refused if the bytes left cannot hold them,
    /// so that memory for `count` things may be reserved.
    pub(crate) fn count(
        &mut self,
        field: &'static str,
        min_len: usize,
    ) -> Result<usize, FormatError> {
        let start = self.position;
        let count = self.varint(field)?;
        if count > (self.remaining() / min_len) as u64 {
            return Err(self.bad(
                field,
                start,
                count,
                "a count that the remaining bytes can hold",
            ));
        }
        Ok(count as usize)
    }

    /// A varint length of at most `max`, then so many bytes of UTF-8.
    pub(crate) fn text(
        &mut self,
        field: &'static str,
        max: usize,
        expected: &'static str,
    ) -> Result<&'a str, FormatError> {
        let len = self.bounded(field, 0, max as u64, expected)?;
        let start = self.position;
        let bytes = self.take(len as usize)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.bad(field, start + error.valid_up_to(), len, "UTF-8 text"))
    }

    /// Refuses what is left over.
    pub(crate) fn finish(self) -> Result<(), FormatError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(FormatError::LeftOver {
                what: self.what,
                offset: self.position as u64,
                count: count as u64,
            }),
        }
    }

    /// An error about `field`, which begins at `offset`.
    #[cold]
    pub(crate) fn bad(
        &self,
        field: &'static str,
        offset: usize,
        found: u64,
        expected: &'static str,
    ) -> FormatError {
        FormatError::Field {
            what: self.what,
            field,
            offset: offset as u64,
            found,
            expected,
        }
    }

    #[cold]
    fn truncated(&self, needed: u64) -> FormatError {
        FormatError::Truncated {
            what: self.what,
            offset: self.position as u64,
            needed,
            available: self.remaining() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value in any::<u64>(), shift in 0u32..64) {
            let value = value >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_zigzag(&mut out, value as i64);
            let mut reader = Reader::new("test", &out);
            prop_assert_eq!(reader.varint("v").unwrap(), value);
            prop_assert_eq!(reader.zigzag("z").unwrap(), value as i64);
            reader.finish().unwrap();
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Reader::new("test", &max).varint("v").unwrap(), u64::MAX);
        let mut over = max;
        over[9] = 0x02;
        assert!(matches!(
            Reader::new("test", &over).varint("v"),
            Err(FormatError::Field { .. })
        ));
        let mut long = max.to_vec();
        long[9] = 0x81;
        long.push(0);
        assert!(matches!(
            Reader::new("test", &long).varint("v"),
            Err(FormatError::Field { .. })
        ));
    }

    #[test]
    fn a_varint_cut_short_is_truncated() {
        assert!(matches!(
            Reader::new("test", &[0x80]).varint("v"),
            Err(FormatError::Truncated { offset: 1, .. })
        ));
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused() {
        let mut out = Vec::new();
        put_varint(&mut out, 1 << 60);
        out.extend([0; 32]);
        assert!(matches!(
            Reader::new("test", &out).count("n", 8),
            Err(FormatError::Field { .. })
        ));
    }
}
