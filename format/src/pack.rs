//! The index of a pack: which frames it holds, in the order in which they stand. It lets a pack be used without its
//! manifest (verification, collection, deduplication); restoring needs only manifests. Reading and decoding the
//! frames themselves is [`crate::frame`]'s.

use crate::codec::Codec;
use crate::frame::{FRAME_HEADER_LEN, check_lengths};
use crate::varint::{Reader, put_varint};
use crate::{ChunkId, Footer, FormatError, HEADER_LEN, Header, Kind};

const WHAT: &str = "index";

/// One frame, as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackIndexEntry {
    /// How the payload is encoded.
    pub codec: Codec,
    /// Length of the chunk in bytes.
    pub raw_len: u32,
    /// Length of the payload in bytes.
    pub encoded_len: u32,
    /// The first bytes of the chunk's id.
    pub id_prefix: [u8; 8],
    /// Offset of the frame in the pack.
    pub offset: u64,
}

impl PackIndexEntry {
    /// Length of the frame in bytes.
    pub fn frame_len(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.encoded_len)
    }
}

/// Collects what an index holds while a pack is written, column by column.
#[derive(Debug)]
pub struct PackIndexBuilder {
    header: Header,
    count: u64,
    frames_end: u64,
    codecs: Vec<u8>,
    raw_lens: Vec<u8>,
    savings: Vec<u8>,
    prefixes: Vec<u8>,
}

impl PackIndexBuilder {
    /// The index of the pack that begins with `header`.
    pub fn new(header: Header) -> PackIndexBuilder {
        PackIndexBuilder {
            header,
            count: 0,
            frames_end: HEADER_LEN as u64,
            codecs: Vec::new(),
            raw_lens: Vec::new(),
            savings: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    /// Adds the next frame, which stands right behind the one before.
    ///
    /// # Panics
    /// If no frame can have these lengths.
    pub fn push(&mut self, id: &ChunkId, codec: Codec, raw_len: u32, encoded_len: u32) {
        check_lengths(codec, raw_len, encoded_len).expect("lengths that a frame can have");
        self.count += 1;
        self.frames_end += FRAME_HEADER_LEN as u64 + u64::from(encoded_len);
        self.codecs.push(codec.tag());
        put_varint(&mut self.raw_lens, raw_len.into());
        put_varint(&mut self.savings, (raw_len - encoded_len).into());
        self.prefixes.extend_from_slice(&id.prefix());
    }

    /// How many frames were added.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether no frame was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The index and the footer, which follow the last frame.
    ///
    /// `frames_end` is where the writer stands; an error if the frames added do not end there, if the header is not
    /// a pack's, or if the index is longer than a reader would accept.
    pub fn finish(self, frames_end: u64) -> Result<Vec<u8>, FormatError> {
        if self.header.kind != Kind::Pack {
            return Err(FormatError::WrongKind {
                what: WHAT,
                expected: "pack",
                found: self.header.kind,
            });
        }
        if frames_end != self.frames_end {
            return Err(FormatError::Unwritable {
                what: WHAT,
                field: "end of frames",
                found: frames_end,
                expected: "the sum of the frames added",
            });
        }
        let columns = [self.codecs, self.raw_lens, self.savings, self.prefixes];
        let mut bytes =
            Vec::with_capacity(HEADER_LEN + 10 + columns.iter().map(Vec::len).sum::<usize>() + 80);
        bytes.extend_from_slice(&self.header.encode());
        put_varint(&mut bytes, self.count);
        for column in &columns {
            bytes.extend_from_slice(column);
        }
        let footer = Footer::of(Kind::Pack, frames_end, frames_end, &bytes)?;
        bytes.extend_from_slice(&footer.encode());
        Ok(bytes)
    }
}

/// A parsed index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    /// The copy of the pack's header.
    pub header: Header,
    /// The frames, in the order of their offsets; together they fill the pack from header to index.
    pub entries: Vec<PackIndexEntry>,
}

impl PackIndex {
    /// Reads an index that `footer` was found behind: `bytes` must be exactly the trailer that it describes.
    pub fn parse(footer: &Footer, bytes: &[u8]) -> Result<PackIndex, FormatError> {
        if footer.kind != Kind::Pack {
            return Err(FormatError::WrongKind {
                what: WHAT,
                expected: "pack",
                found: footer.kind,
            });
        }
        footer.check_trailer(WHAT, bytes)?;
        let mut reader = Reader::new(WHAT, bytes);
        let header = Header::parse(reader.take(HEADER_LEN)?)?;
        if header.kind != Kind::Pack {
            return Err(FormatError::WrongKind {
                what: WHAT,
                expected: "pack",
                found: header.kind,
            });
        }
        // A frame takes a codec, two varints and a prefix.
        let count = reader.count("frame count", 1 + 1 + 1 + 8)?;
        let codecs_at = reader.position();
        let tags = reader.take(count)?;
        let mut entries = Vec::with_capacity(count);
        for (i, &tag) in tags.iter().enumerate() {
            let codec = Codec::from_tag(tag).ok_or_else(|| {
                reader.bad("codec", codecs_at + i, tag.into(), "a codec of version 1")
            })?;
            let raw_len = reader.bounded("raw length", 1, u32::MAX.into(), "1 to 4 MiB")? as u32;
            entries.push(PackIndexEntry {
                codec,
                raw_len,
                encoded_len: 0,
                id_prefix: [0; 8],
                offset: 0,
            });
        }
        let mut offset = HEADER_LEN as u64;
        for entry in &mut entries {
            let at = reader.position();
            let saving =
                reader.bounded("saving", 0, entry.raw_len.into(), "at most the raw length")?;
            entry.encoded_len = entry.raw_len - saving as u32;
            entry.offset = offset;
            check_lengths(entry.codec, entry.raw_len, entry.encoded_len).map_err(|misfit| {
                reader.bad(misfit.field, at, misfit.found.into(), misfit.expected)
            })?;
            offset += entry.frame_len();
        }
        for entry in &mut entries {
            entry.id_prefix = reader.array()?;
        }
        if offset != footer.frames_end {
            return Err(reader.bad(
                "sum of frames",
                HEADER_LEN,
                offset,
                "the end of frames in the footer",
            ));
        }
        reader.finish()?;
        Ok(PackIndex { header, entries })
    }

    /// The frame that begins at `offset` of the pack.
    pub fn at_offset(&self, offset: u64) -> Option<&PackIndexEntry> {
        let found = self
            .entries
            .binary_search_by_key(&offset, |entry| entry.offset);
        found.ok().map(|i| &self.entries[i])
    }
}
