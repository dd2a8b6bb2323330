//! Who pays for what is stored: every byte of every chunk is charged to the first owner that uses it.
//!
//! One pass over the extents, in the order of the sections. What is kept is bounded by the number of chunks, extents and
//! files.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use podsnap_format::{Shape, codec::Codec, manifest::Chunk};
use tokio_util::sync::CancellationToken;

use super::{
    owners::{OwnerId, Owners},
    ranges::{Charged, Repeated, Windows, add_repeated},
};
use crate::{
    base::{BaseIndex, Content, PlacedExtent},
    coverage::{Coverage, Part},
    error::{Error, Result},
};

/// Extents gone through between two looks at the cancellation.
const EXTENTS_AT_ONCE: usize = 1024;

/// What an owner is charged and shares.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OwnerCost {
    pub(super) new: u64,
    pub(super) borrowed: u64,
    /// Of the new bytes, those that no other owner uses.
    pub(super) alone: u64,
    /// Bytes that some other owner has too.
    pub(super) shared: u64,
}

/// Raw bytes and the bytes of the frames they take.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Amount {
    pub(super) chunks: u64,
    pub(super) raw: u64,
    pub(super) stored: u64,
}

/// The accounts of one section.
#[derive(Debug, Default)]
pub(super) struct SectionAccount {
    pub(super) zero: u64,
    pub(super) new: Amount,
    /// By pack.
    pub(super) borrowed: BTreeMap<u32, Amount>,
    /// Bytes by the section where they stood first.
    pub(super) repeated: BTreeMap<u32, u64>,
    pub(super) codecs: BTreeMap<u8, Amount>,
    pub(super) extents: u64,
}

/// Where the bytes of a chunk were used first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct First {
    owner: OwnerId,
    section: u32,
    /// Offset in the section of the chunk's first byte, were it all there.
    origin: u64,
}

/// A range of a chunk at its place.
struct Use {
    chunk: u32,
    range: Range<u32>,
    owner: OwnerId,
    section: u32,
    offset: u64,
}

/// What the pass knows so far.
pub(super) struct Attribution<'a> {
    index: &'a BaseIndex,
    owners: &'a Owners,
    /// Whether a pack is the snapshot's own.
    own: Vec<bool>,
    firsts: Vec<Coverage<First>>,
    /// Bytes that more than one owner uses.
    shared: Vec<Coverage<()>>,
    /// The last section in which each chunk was met.
    met_in: Vec<u32>,
    windows: Option<Windows>,
    pub(super) costs: Vec<OwnerCost>,
    /// Shared bytes by owner and one other owner of them.
    pub(super) pairs: HashMap<(OwnerId, OwnerId), u64>,
    pub(super) accounts: Vec<SectionAccount>,
    /// By section.
    pub(super) ranges: Vec<Vec<Charged>>,
    pub(super) repeated: Vec<Repeated>,
}

/// The place of `chunk`'s frame that its first `upto` bytes take: what ranges cost adds up to the frame.
fn charge_upto(chunk: &Chunk, upto: u32) -> u64 {
    chunk.location.frame_len() * u64::from(upto) / u64::from(chunk.raw_len.max(1))
}

fn charge(chunk: &Chunk, range: &Range<u32>) -> u64 {
    charge_upto(chunk, range.end) - charge_upto(chunk, range.start)
}

impl<'a> Attribution<'a> {
    pub(super) fn new(index: &'a BaseIndex, owners: &'a Owners, own: Vec<bool>) -> Self {
        let chunks = index.chunks.len();
        Self {
            index,
            owners,
            own,
            firsts: vec![Coverage::default(); chunks],
            shared: vec![Coverage::default(); chunks],
            met_in: vec![u32::MAX; chunks],
            windows: None,
            costs: vec![OwnerCost::default(); owners.count()],
            pairs: HashMap::new(),
            accounts: Vec::new(),
            ranges: Vec::new(),
            repeated: Vec::new(),
        }
    }

    /// Goes through the next section, which is of this shape and length.
    pub(super) fn section(
        &mut self,
        shape: Shape,
        len: u64,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let section = self.accounts.len();
        self.accounts.push(SectionAccount::default());
        self.windows = (shape == Shape::Blob).then(|| Windows::new(len));
        let index = self.index;
        let mut pieces = Vec::new();
        for some in index.sections[section].extents.chunks(EXTENTS_AT_ONCE) {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            for extent in some {
                self.extent(section, extent, &mut pieces);
            }
        }
        let windows = self.windows.take().map(Windows::finish);
        self.ranges.push(windows.unwrap_or_default());
        Ok(())
    }

    fn extent(
        &mut self,
        section: usize,
        extent: &PlacedExtent,
        pieces: &mut Vec<super::owners::Piece>,
    ) {
        self.accounts[section].extents += 1;
        let Content::Chunk { chunk, start } = extent.content else {
            self.accounts[section].zero += extent.len;
            return;
        };
        self.meet(section, chunk);
        self.owners
            .divide(section, extent.offset, extent.len, pieces);
        let mut parts = Vec::new();
        for piece in &*pieces {
            let from = start + (piece.offset - extent.offset) as u32;
            let used = Use {
                chunk,
                range: from..from + piece.len as u32,
                owner: piece.owner,
                section: section as u32,
                offset: piece.offset,
            };
            self.account(&used, &mut parts);
        }
    }

    /// Counts a chunk once in each section.
    fn meet(&mut self, section: usize, number: u32) {
        let met_in = &mut self.met_in[number as usize];
        if *met_in == section as u32 {
            return;
        }
        *met_in = section as u32;
        let chunk = &self.index.chunks[number as usize];
        let account = &mut self.accounts[section];
        if self.own[chunk.location.pack as usize] {
            account.new.chunks += 1;
        }
        let amount = account.codecs.entry(chunk.codec.tag()).or_default();
        add_chunk(amount, chunk);
    }

    fn account(&mut self, used: &Use, parts: &mut Vec<Part<First>>) {
        self.firsts[used.chunk as usize].divide(used.range.clone(), parts);
        for part in &*parts {
            let offset = used.offset + u64::from(part.range.start - used.range.start);
            match part.value {
                None => self.first_use(used, part.range.clone(), offset),
                Some(first) => self.repeat(used, part.range.clone(), offset, first),
            }
        }
    }

    fn first_use(&mut self, used: &Use, range: Range<u32>, offset: u64) {
        let first = First {
            owner: used.owner,
            section: used.section,
            origin: offset.wrapping_sub(range.start.into()),
        };
        self.firsts[used.chunk as usize].cover(range.clone(), first);
        let chunk = self.index.chunks[used.chunk as usize];
        let (raw, stored) = (u64::from(range.end - range.start), charge(&chunk, &range));
        let own = self.own[chunk.location.pack as usize];
        let account = &mut self.accounts[used.section as usize];
        let cost = &mut self.costs[used.owner as usize];
        let amount = if own {
            cost.new += stored;
            cost.alone += stored;
            &mut account.new
        } else {
            cost.borrowed += stored;
            account.borrowed.entry(chunk.location.pack).or_default()
        };
        amount.raw += raw;
        amount.stored += stored;
        if let Some(windows) = &mut self.windows {
            windows.charge(offset, raw, |upto| {
                let stored = charge(&chunk, &(range.start..range.start + upto as u32));
                if own { (stored, 0) } else { (0, stored) }
            });
        }
    }

    fn repeat(&mut self, used: &Use, range: Range<u32>, offset: u64, first: First) {
        let len = u64::from(range.end - range.start);
        let account = &mut self.accounts[used.section as usize];
        *account.repeated.entry(first.section).or_default() += len;
        let repeated = Repeated {
            section: used.section,
            offset,
            len,
            bytes: len,
            owner: used.owner,
            of_section: first.section,
            of_offset: first.origin.wrapping_add(range.start.into()),
            of_owner: first.owner,
        };
        add_repeated(&mut self.repeated, repeated);
        if used.owner == first.owner {
            return;
        }
        self.costs[used.owner as usize].shared += len;
        *self.pairs.entry((used.owner, first.owner)).or_default() += len;
        // The first owner does not have these bytes for itself any more.
        let mut parts = Vec::new();
        let shared = &mut self.shared[used.chunk as usize];
        shared.divide(range, &mut parts);
        let chunk = &self.index.chunks[used.chunk as usize];
        for part in parts.into_iter().filter(|part| part.value.is_none()) {
            let len = u64::from(part.range.end - part.range.start);
            let cost = &mut self.costs[first.owner as usize];
            cost.shared += len;
            if self.own[chunk.location.pack as usize] {
                cost.alone -= charge(chunk, &part.range);
            }
            *self.pairs.entry((first.owner, used.owner)).or_default() += len;
            shared.cover(part.range, ());
        }
    }
}

/// Adds a whole chunk to a sum.
pub(super) fn add_chunk(amount: &mut Amount, chunk: &Chunk) {
    amount.chunks += 1;
    amount.raw += u64::from(chunk.raw_len);
    amount.stored += chunk.location.frame_len();
}

/// What a codec is called, by its tag.
pub(super) fn codec_name(tag: u8) -> &'static str {
    match Codec::from_tag(tag) {
        Some(Codec::Raw) => "raw",
        Some(Codec::Zstd) => "zstd",
        Some(Codec::Planes(width)) => match width.bytes() {
            2 => "planes2",
            4 => "planes4",
            _ => "planes8",
        },
        None => "unknown",
    }
}
