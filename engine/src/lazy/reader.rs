//! Random access to a section: any range, reading only the extent maps and frames it touches.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use podsnap_format::{
    ChunkId,
    manifest::{Chunk, SectionInfo},
};

use super::{
    Priority, ahead,
    fetch::{Fetched, fetch},
    map::{Content, Maps, Piece, SharedMaps},
};
use crate::{
    error::{Error, Result},
    snapshot::Snapshot,
};

/// A read that is no longer than this, in bytes, costs little more than its latency.
const LEAST_READ_LEN: u64 = 256 << 10;

/// Bytes of a section that are read at once, however many are asked for: what bounds a reader's memory.
const MAX_PART_LEN: usize = 16 << 20;

/// A stretch of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Its bytes in the section.
    pub range: Range<u64>,
    /// Whether all of them are known to be zero without reading any.
    pub zeros: bool,
}

/// Reads ranges of one section; [`Snapshot::reader`] makes one. Only what a range touches is fetched, and it is checked before it is handed out.
///
/// Clones are cheap. All readers of a store share what they have fetched and what they are fetching.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://reader")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let section = snapshot.find_section(Role::Memory, "")?;
/// let reader = snapshot.reader(section);
/// let mut number = [0; 4];
/// reader.read_at(&mut number, 4 * 1234).await?;
/// assert_eq!(u32::from_le_bytes(number), 1234);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct SectionReader {
    snapshot: Snapshot,
    section: usize,
    maps: Arc<Maps>,
    priority: Priority,
}

impl SectionReader {
    pub(crate) fn new(snapshot: Snapshot, section: usize) -> Self {
        Self {
            maps: SharedMaps::of(&snapshot, section),
            snapshot,
            section,
            priority: Priority::Urgent,
        }
    }

    /// The same section, but what it reads gives way to what others wait for: for filling memory and reading ahead.
    #[must_use]
    pub fn background(&self) -> Self {
        Self {
            priority: Priority::Background,
            ..self.clone()
        }
    }

    /// Length of the section in bytes.
    pub fn len(&self) -> u64 {
        self.info().length
    }

    /// Whether the section has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the snapshot says of the section.
    pub fn info(&self) -> &SectionInfo {
        &self.snapshot.sections()[self.section]
    }

    /// The snapshot it belongs to.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Fills `buf` from `offset` of the section.
    pub async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let whole = self.range(offset, buf.len())?;
        self.note(&whole);
        let mut at = whole.start;
        for part in buf.chunks_mut(MAX_PART_LEN) {
            let range = at..at + part.len() as u64;
            at = range.end;
            let pieces = self.maps.pieces(range.clone()).await?;
            let fetched = self.fetch(&pieces, range.clone()).await?;
            for piece in &pieces {
                fill(part, range.start, piece, |key| fetched.get(&key));
            }
        }
        Ok(())
    }

    /// Fills `wanted` in `buf`, which stands for the section's bytes from `offset` on, and beside it whatever of `buf` adjoins and
    /// is at hand without fetching anything for it. Returns the range that was filled, in the section's offsets.
    ///
    /// # Panics
    /// If `wanted` is not within what `buf` stands for.
    pub async fn read_around(
        &self,
        buf: &mut [u8],
        offset: u64,
        wanted: Range<u64>,
    ) -> Result<Range<u64>> {
        let window = self.range(offset, buf.len())?;
        assert!(window.start <= wanted.start && wanted.end <= window.end);
        self.note(&wanted);
        let pieces = self.maps.pieces(window).await?;
        let needed: Vec<_> = overlapping(&pieces, &wanted).cloned().collect();
        let fetched = self.fetch(&needed, wanted.clone()).await?;
        let filled = self.fill_around(buf, offset, &wanted, &pieces, &fetched);
        Ok(filled.expect("what is wanted was fetched"))
    }

    /// [`read_around`](Self::read_around) without waiting: `None` if not all of `wanted` is in memory.
    ///
    /// # Panics
    /// If `wanted` is not within what `buf` stands for.
    pub fn read_resident(
        &self,
        buf: &mut [u8],
        offset: u64,
        wanted: Range<u64>,
    ) -> Option<Range<u64>> {
        let window = self.range(offset, buf.len()).ok()?;
        assert!(window.start <= wanted.start && wanted.end <= window.end);
        let pieces = self.maps.kept_pieces(window)?;
        let filled = self.fill_around(buf, offset, &wanted, &pieces, &Fetched::new())?;
        self.note(&wanted);
        Some(filled)
    }

    /// The bytes of `window` as they are kept in memory, if one chunk has all of them; `wanted` are those that somebody waits for.
    pub(crate) fn lend(&self, window: Range<u64>, wanted: &Range<u64>) -> Option<Bytes> {
        let window = self
            .range(window.start, (window.end - window.start) as usize)
            .ok()?;
        let pieces = self.maps.kept_pieces(window)?;
        let [
            Piece {
                range,
                content: Content::Chunk { chunk, skip },
            },
        ] = &pieces[..]
        else {
            return None;
        };
        let bytes = self.snapshot.shared.chunks.get(chunk)?;
        self.note(wanted);
        Some(bytes.slice(*skip..*skip + (range.end - range.start) as usize))
    }

    /// What a range consists of: stretches of zeros and stretches of bytes, in order. Reads extent maps, and no bytes.
    pub async fn runs(&self, range: Range<u64>) -> Result<Vec<Run>> {
        let len = range.end.saturating_sub(range.start);
        let mut runs: Vec<Run> = Vec::new();
        let mut at = self.range(range.start, len as usize)?.start;
        while at < range.end {
            // Piece by piece: the maps of a large section are not all needed at once.
            let end = range.end.min(at + MAX_PART_LEN as u64);
            for piece in self.maps.pieces(at..end).await? {
                let zeros = piece.content == Content::Zeros;
                match runs.last_mut() {
                    Some(last) if last.zeros == zeros => last.range.end = piece.range.end,
                    _ => runs.push(Run {
                        range: piece.range,
                        zeros,
                    }),
                }
            }
            at = end;
        }
        Ok(runs)
    }

    /// Brings ranges nearer, in that order and in few large reads, so that reading them takes no time later: into memory as far as there is room, then to
    /// the node's disk, if there is a cache there. What there is no room for is left where it is.
    pub async fn prefetch(&self, ranges: &[Range<u64>]) -> Result<()> {
        ahead::prefetch(self, ranges).await
    }

    /// Loads the extent maps, as many as are kept: what is read for the first time then takes one round trip less.
    pub(crate) async fn load_maps(&self) {
        let all = 0..self.len();
        self.maps.load_ahead(std::slice::from_ref(&all)).await;
    }

    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Whether both read the same section of the same open snapshot.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.maps, &other.maps)
    }

    /// An error unless the range is within the section.
    pub(super) fn check(&self, range: &Range<u64>) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        self.range(range.start, len as usize).map(drop)
    }

    /// Tells who records, if anybody does, what somebody waits for.
    fn note(&self, range: &Range<u64>) {
        if let Some(recorder) = &self.snapshot.recorder
            && self.priority == Priority::Urgent
        {
            recorder.note(self.section, range);
        }
    }

    /// The range, if it is within the section.
    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        let end = offset.checked_add(len as u64);
        match end.filter(|end| *end <= self.len()) {
            Some(end) => Ok(offset..end),
            None => Err(Error::invalid(format!(
                "{len} bytes at {offset} are outside of {}, which has {}",
                self.info().title(),
                self.len()
            ))),
        }
    }

    /// Gets the chunks of pieces that are `range`.
    async fn fetch(&self, pieces: &[Piece], range: Range<u64>) -> Result<Fetched> {
        let longest = (range.end - range.start)
            .min(self.snapshot.backend.read_len())
            .max(LEAST_READ_LEN);
        fetch(&self.snapshot, chunks(pieces), self.priority, longest).await
    }

    /// Fills what is wanted and what adjoins it, as far as it is among what was fetched or is kept; `None` if what is wanted is not.
    fn fill_around(
        &self,
        buf: &mut [u8],
        offset: u64,
        wanted: &Range<u64>,
        pieces: &[Piece],
        fetched: &Fetched,
    ) -> Option<Range<u64>> {
        let kept = &self.snapshot.shared.chunks;
        let mut fill_one = |piece: &Piece| match &piece.content {
            Content::Zeros => {
                fill(buf, offset, piece, |_| None);
                true
            }
            Content::Chunk { chunk, .. } => {
                let bytes = fetched.get(&(chunk.id, chunk.raw_len)).cloned();
                let bytes = bytes.or_else(|| kept.get(chunk));
                fill(buf, offset, piece, |_| bytes.as_ref())
            }
        };
        let first = pieces.partition_point(|piece| piece.range.end <= wanted.start);
        let behind = pieces.partition_point(|piece| piece.range.start < wanted.end);
        if !pieces[first..behind].iter().all(&mut fill_one) {
            return None;
        }
        let (before, rest) = pieces.split_at(first);
        let (within, after) = rest.split_at(behind - first);
        let mut filled = wanted.clone();
        if let (Some(first), Some(last)) = (within.first(), within.last()) {
            filled = first.range.start..last.range.end;
        }
        let mut fills = |piece: &&Piece| fill_one(piece);
        if let Some(first) = before.iter().rev().take_while(&mut fills).last() {
            filled.start = first.range.start;
        }
        if let Some(last) = after.iter().take_while(&mut fills).last() {
            filled.end = last.range.end;
        }
        Some(filled)
    }
}

/// The pieces that have bytes of `range`.
fn overlapping<'a>(pieces: &'a [Piece], range: &Range<u64>) -> impl Iterator<Item = &'a Piece> {
    let range = range.clone();
    let overlaps =
        move |piece: &&Piece| piece.range.start < range.end && range.start < piece.range.end;
    pieces.iter().filter(overlaps)
}

/// The chunks that pieces are of.
pub(super) fn chunks(pieces: &[Piece]) -> impl Iterator<Item = Chunk> {
    pieces.iter().filter_map(|piece| match piece.content {
        Content::Zeros => None,
        Content::Chunk { chunk, .. } => Some(chunk),
    })
}

/// Copies one piece into `buf`, which begins at `offset` of the section, if its chunk is there.
fn fill<'a>(
    buf: &mut [u8],
    offset: u64,
    piece: &Piece,
    chunk: impl FnOnce((ChunkId, u32)) -> Option<&'a Bytes>,
) -> bool {
    let target = (piece.range.start - offset) as usize..(piece.range.end - offset) as usize;
    match piece.content {
        Content::Zeros => buf[target].fill(0),
        Content::Chunk { chunk: of, skip } => match chunk((of.id, of.raw_len)) {
            None => return false,
            Some(bytes) => {
                let bytes = &bytes[skip..][..target.len()];
                buf[target].copy_from_slice(bytes);
            }
        },
    }
    true
}
