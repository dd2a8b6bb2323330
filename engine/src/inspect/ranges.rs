//! Which ranges of a blob cost most, and which it has twice.
//!
//! Costs are summed up over windows of 1 MiB, and neighbours of about the same density are one range: the weights in a heap
//! become one line, not ninety. Memory is bounded by the number of extents, however long the section is.

use std::cmp::Reverse;

/// Bytes of a section whose costs are summed up.
const WINDOW_LEN: u64 = 1 << 20;

/// Different bytes within a duplicate that do not end it. Chunks at the edges of a change are such.
const MAX_GAP: u64 = 1 << 20;

/// A range of one blob, and what is charged to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Charged {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) new: u64,
    pub(super) borrowed: u64,
}

impl Charged {
    /// What ranges are ranked by: dearest first, in the order of the section.
    pub(super) fn rank(&self) -> (Reverse<(u64, u64)>, u64) {
        (Reverse((self.new, self.borrowed)), self.offset)
    }

    /// Whether a window costs about as much for its length as this range does.
    fn is_like(&self, window: &Self) -> bool {
        let (a, b) = (self.new + self.borrowed, window.new + window.borrowed);
        // Widened: a cost per byte, compared without dividing.
        let (a, b) = (
            u128::from(a) * u128::from(window.len),
            u128::from(b) * u128::from(self.len),
        );
        a <= 2 * b && b <= 2 * a
    }
}

/// The costs of one blob, charged in the order of its bytes.
#[derive(Debug)]
pub(super) struct Windows {
    section_len: u64,
    done: Vec<Charged>,
    current: Option<Charged>,
}

impl Windows {
    pub(super) fn new(section_len: u64) -> Self {
        Self {
            section_len,
            done: Vec::new(),
            current: None,
        }
    }

    /// Charges a range; `cost` says what its first so many bytes cost, in own and in borrowed frames.
    pub(super) fn charge(&mut self, offset: u64, len: u64, cost: impl Fn(u64) -> (u64, u64)) {
        let (mut done, mut charged) = (0, (0, 0));
        while done < len {
            let window = (offset + done) / WINDOW_LEN * WINDOW_LEN;
            let upto = len.min(window + WINDOW_LEN - offset);
            let (new, borrowed) = cost(upto);
            self.charge_window(window, new - charged.0, borrowed - charged.1);
            (done, charged) = (upto, (new, borrowed));
        }
    }

    fn charge_window(&mut self, window: u64, new: u64, borrowed: u64) {
        match &mut self.current {
            Some(current) if current.offset == window => {
                current.new += new;
                current.borrowed += borrowed;
            }
            _ => {
                self.close_window();
                self.current = Some(Charged {
                    offset: window,
                    len: WINDOW_LEN.min(self.section_len - window),
                    new,
                    borrowed,
                });
            }
        }
    }

    fn close_window(&mut self) {
        let Some(window) = self.current.take().filter(|w| w.new + w.borrowed > 0) else {
            return;
        };
        match self.done.last_mut() {
            Some(last) if last.offset + last.len == window.offset && last.is_like(&window) => {
                last.len += window.len;
                last.new += window.new;
                last.borrowed += window.borrowed;
            }
            _ => self.done.push(window),
        }
    }

    /// All ranges that cost anything, in order.
    pub(super) fn finish(mut self) -> Vec<Charged> {
        self.close_window();
        self.done
    }
}

/// A range of one section that equals an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) section: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Bytes that are the same.
    pub(super) bytes: u64,
    pub(super) owner: u32,
    pub(super) of_section: u32,
    pub(super) of_offset: u64,
    pub(super) of_owner: u32,
}

impl Repeated {
    pub(super) fn rank(&self) -> (Reverse<u64>, u32, u64) {
        (Reverse(self.bytes), self.section, self.offset)
    }

    /// Whether `next` goes on where this one ends, there and here alike.
    fn goes_on(&self, next: &Self) -> bool {
        let end = self.offset + self.len;
        self.section == next.section
            && self.owner == next.owner
            && self.of_section == next.of_section
            && self.of_owner == next.of_owner
            && next.offset >= end
            && next.offset - end <= MAX_GAP
            && self.offset.wrapping_sub(self.of_offset) == next.offset.wrapping_sub(next.of_offset)
    }
}

/// Adds a repetition to those before it, or to the last of them.
pub(super) fn add_repeated(all: &mut Vec<Repeated>, next: Repeated) {
    match all.last_mut() {
        Some(last) if last.goes_on(&next) => {
            last.len = next.offset + next.len - last.offset;
            last.bytes += next.bytes;
        }
        _ => all.push(next),
    }
}
