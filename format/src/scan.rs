//! Scanning for frames where no index says where they are: for rebuilding the index of a pack and for salvage. A
//! scanner walks frame after frame; where a frame is damaged, it searches for the next offset at which a frame with
//! plausible lengths and a right CRC stands. It only finds frames: decoding them and computing their ids is the
//! caller's.

use crate::frame::{self, FRAME_HEADER_LEN, FrameHeader};
use crate::header::{HEADER_LEN, HEADER_MAGIC};
use crate::{Header, MAX_CHUNK_LEN};

/// Bytes that wrong CRCs may cover per byte passed over.
const BUDGET_PER_BYTE: u64 = 64;

/// What a scanner found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    /// A frame whose CRC is right.
    Frame {
        /// Its offset in the object.
        offset: u64,
        /// Its header.
        header: FrameHeader,
    },
    /// Bytes that are not frames, or damaged ones.
    Damaged {
        /// Where they begin in the object.
        offset: u64,
        /// How many.
        len: u64,
    },
}

/// Walks the frames in a part of an object.
///
/// The part (the *window*) may be the whole range of frames or a piece of it; pieces are scanned one after another,
/// each from where the one before [stopped](FrameScanner::reached), and overlap by what was not consumed. A piece of
/// at least [`FrameScanner::MIN_WINDOW`] bytes is always consumed in part. A damaged region that crosses windows is
/// reported in adjacent parts.
///
/// Where the object's own header is found again right after a frame, the trailer begins and the scan
/// [ends](FrameScanner::trailer_found).
///
/// Where a frame's header is plausible but its CRC is wrong, and another frame stands right after it, the whole frame is
/// taken for damaged: what looks like a frame inside a payload (a stored copy of a pack, say) is not reported. Where a
/// frame's header is damaged, it may be; its id will be right for its content all the same.
///
/// The work is bounded: CRCs that turn out wrong cover at most 64 bytes for every byte passed over (and 8 MiB more).
/// Damage made up to look like the start of many long frames can thereby hide a frame that follows it; random damage
/// cannot.
#[derive(Debug)]
pub struct FrameScanner<'a> {
    window: &'a [u8],
    start: u64,
    last: bool,
    at: usize,
    /// Bytes that may yet be covered by CRCs that turn out wrong.
    budget: u64,
    trailer_found: bool,
    stopped: bool,
}

enum Candidate {
    Frame(FrameHeader),
    /// A frame may begin here but ends, if so, beyond the window.
    BeyondWindow,
    Nothing,
}

impl<'a> FrameScanner<'a> {
    /// A window of this length always holds a whole frame, or damage.
    pub const MIN_WINDOW: usize = FRAME_HEADER_LEN + MAX_CHUNK_LEN;

    /// Scans `window`, which begins at `offset` of the object; `last` says that no window follows it.
    pub fn new(window: &'a [u8], offset: u64, last: bool) -> FrameScanner<'a> {
        FrameScanner {
            window,
            start: offset,
            last,
            at: 0,
            budget: 2 * MAX_CHUNK_LEN as u64,
            trailer_found: false,
            stopped: false,
        }
    }

    /// The offset in the object up to which everything was reported: where the next window must begin.
    pub fn reached(&self) -> u64 {
        self.start + self.at as u64
    }

    /// Whether the scan ended because the trailer begins at [`position`](FrameScanner::reached).
    pub fn trailer_found(&self) -> bool {
        self.trailer_found
    }

    /// What stands at `at`.
    fn candidate(&mut self, at: usize) -> Candidate {
        let rest = &self.window[at..];
        if rest.len() < FRAME_HEADER_LEN {
            return match !self.last && rest.first() == Some(&frame::SYNC) {
                true => Candidate::BeyondWindow,
                false => Candidate::Nothing,
            };
        }
        let Ok(header) = FrameHeader::parse(rest) else {
            return Candidate::Nothing;
        };
        if header.frame_len() > rest.len() {
            return if self.last {
                Candidate::Nothing
            } else {
                Candidate::BeyondWindow
            };
        }
        let Some(budget) = self.budget.checked_sub(header.encoded_len.into()) else {
            return Candidate::Nothing;
        };
        match frame::crc(rest, &rest[FRAME_HEADER_LEN..header.frame_len()]) == header.crc {
            true => Candidate::Frame(header),
            false => {
                self.budget = budget;
                Candidate::Nothing
            }
        }
    }

    /// Whether the object's header stands at `at`, and whether that can be told within the window.
    fn trailer_at(&self, at: usize) -> Option<bool> {
        let rest = &self.window[at..];
        let magic = &rest[..rest.len().min(HEADER_MAGIC.len())];
        if !HEADER_MAGIC.starts_with(magic) {
            return Some(false);
        }
        if rest.len() < HEADER_LEN && !self.last {
            return None;
        }
        Some(Header::parse(rest).is_ok())
    }

    fn frame(&mut self, header: FrameHeader) -> Scanned {
        let offset = self.reached();
        self.at += header.frame_len();
        self.budget += header.frame_len() as u64 * BUDGET_PER_BYTE;
        Scanned::Frame { offset, header }
    }

    /// The end of the damage that begins at the current position.
    fn end_of_damage(&mut self) -> usize {
        // Most damage is within a payload: then the header still tells where the next frame stands.
        if let Ok(header) = FrameHeader::parse(&self.window[self.at..]) {
            let next = self.at + header.frame_len();
            let at_end = next == self.window.len() && self.last;
            if at_end || next < self.window.len() && self.frame_or_trailer(next) {
                return next;
            }
        }
        let mut at = self.at + 1;
        while let Some(skip) = self.window[at..]
            .iter()
            .position(|&byte| byte == frame::SYNC)
        {
            // What is passed over in this search counts as soon as it is passed over.
            self.budget += (skip as u64 + 1) * BUDGET_PER_BYTE;
            at += skip;
            match self.candidate(at) {
                Candidate::Frame(_) => return at,
                Candidate::BeyondWindow => {
                    self.stopped = true;
                    return at;
                }
                Candidate::Nothing => at += 1,
            }
        }
        self.window.len()
    }

    fn frame_or_trailer(&mut self, at: usize) -> bool {
        self.trailer_at(at) == Some(true) || !matches!(self.candidate(at), Candidate::Nothing)
    }
}

impl Iterator for FrameScanner<'_> {
    type Item = Scanned;

    fn next(&mut self) -> Option<Scanned> {
        if self.stopped || self.at == self.window.len() {
            return None;
        }
        match self.trailer_at(self.at) {
            Some(false) => {}
            known => {
                self.stopped = true;
                self.trailer_found = known == Some(true);
                return None;
            }
        }
        match self.candidate(self.at) {
            Candidate::Frame(header) => Some(self.frame(header)),
            Candidate::BeyondWindow => {
                self.stopped = true;
                None
            }
            Candidate::Nothing => {
                let offset = self.reached();
                let end = self.end_of_damage();
                let len = (end - self.at) as u64;
                self.at = end;
                Some(Scanned::Damaged { offset, len })
            }
        }
    }
}
