//! The first bytes of `checkpoint.img`, which say what the checkpoint is of, kept while the file goes by.

use podsnap_engine::gvisor::MAX_METADATA_LEN;

/// Bytes before the description: the magic and its length.
const FIXED_LEN: usize = 16;

/// The beginning of a file, as far as its description goes.
#[derive(Debug, Default)]
pub struct Head(Vec<u8>);

impl Head {
    /// Takes what is wanted of the file's next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() && self.0.len() < self.wanted() {
            let (now, later) = rest.split_at(rest.len().min(self.wanted() - self.0.len()));
            self.0.extend_from_slice(now);
            rest = later;
        }
    }

    /// Bytes that are wanted in all, as far as is known.
    fn wanted(&self) -> usize {
        let Some(len) = self.0.get(8..FIXED_LEN) else {
            return FIXED_LEN;
        };
        let len = u64::from_be_bytes(len.try_into().expect("eight bytes"));
        FIXED_LEN + len.min(MAX_METADATA_LEN) as usize
    }

    /// What was taken.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_description_and_no_more() {
        let file = [b"gVisorSF", &5_u64.to_be_bytes()[..], b"{   }", b"more"].concat();
        for step in 1..file.len() {
            let mut head = Head::default();
            for bytes in file.chunks(step) {
                head.add(bytes);
            }
            assert_eq!(head.bytes(), &file[..21]);
        }
    }

    #[test]
    fn a_length_that_is_none_is_bounded() {
        let mut head = Head::default();
        head.add(&[0xff; 16]);
        assert_eq!(head.wanted(), FIXED_LEN + (16 << 20));
        head.add(&[1; 100]);
        assert_eq!(head.bytes().len(), 116);
    }
}
