//! Which bytes of a chunk are accounted for: values over disjoint ranges of it.
//!
//! Nearly every chunk is used whole and first in one place, so one range is kept in place and a map is only made for more.

use std::{collections::BTreeMap, ops::Range};

/// Values over disjoint ranges of one chunk.
#[derive(Debug, Clone, Default)]
pub(crate) enum Coverage<V> {
    #[default]
    Nothing,
    One(Range<u32>, V),
    /// By the start of the range: its end and its value.
    Many(BTreeMap<u32, (u32, V)>),
}

/// A part of a range of a chunk, and the value it has, if it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part<V> {
    pub(crate) range: Range<u32>,
    pub(crate) value: Option<V>,
}

impl<V: Copy + PartialEq> Coverage<V> {
    /// Divides `range` into what is covered and what is not, in order, into `parts`.
    pub(crate) fn divide(&self, range: Range<u32>, parts: &mut Vec<Part<V>>) {
        parts.clear();
        let mut at = range.start;
        let mut covered = |start: u32, end: u32, value: V| {
            let (start, end) = (start.max(range.start), end.min(range.end));
            if start >= end {
                return;
            }
            if at < start {
                parts.push(Part {
                    range: at..start,
                    value: None,
                });
            }
            parts.push(Part {
                range: start..end,
                value: Some(value),
            });
            at = end;
        };
        match self {
            Self::Nothing => {}
            Self::One(one, value) => covered(one.start, one.end, *value),
            Self::Many(map) => {
                let reaching_in = map.range(..=range.start).next_back();
                let first = reaching_in.map_or(range.start, |(start, _)| *start);
                for (start, (end, value)) in map.range(first..range.end) {
                    covered(*start, *end, *value);
                }
            }
        }
        if at < range.end {
            parts.push(Part {
                range: at..range.end,
                value: None,
            });
        }
    }

    /// Gives `value` to a range of which no byte is covered yet.
    pub(crate) fn cover(&mut self, range: Range<u32>, value: V) {
        match self {
            Self::Nothing => *self = Self::One(range, value),
            Self::One(one, held) if *held == value && one.end == range.start => one.end = range.end,
            Self::One(one, held) => {
                let mut map = BTreeMap::from([(one.start, (one.end, *held))]);
                map.insert(range.start, (range.end, value));
                *self = Self::Many(map);
            }
            Self::Many(map) => {
                if let Some((_, (end, held))) = map.range_mut(..range.start).next_back()
                    && *end == range.start
                    && *held == value
                {
                    *end = range.end;
                } else {
                    map.insert(range.start, (range.end, value));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a table of bytes.
        #[test]
        fn every_byte_has_the_first_value_it_was_given(uses in prop::collection::vec((0..200u32, 1..60u32, 0..3u8), 1..40)) {
            let mut coverage = Coverage::default();
            let mut table = vec![None; 300];
            let mut parts = Vec::new();
            for (start, len, value) in uses {
                let range = start..start + len;
                coverage.divide(range.clone(), &mut parts);
                let mut at = range.start;
                for part in &parts {
                    prop_assert_eq!(part.range.start, at);
                    prop_assert!(!part.range.is_empty());
                    for byte in part.range.clone() {
                        prop_assert_eq!(table[byte as usize], part.value);
                    }
                    at = part.range.end;
                }
                prop_assert_eq!(at, range.end);
                for part in parts.iter().filter(|part| part.value.is_none()) {
                    coverage.cover(part.range.clone(), value);
                }
                for byte in &mut table[start as usize..(start + len) as usize] {
                    byte.get_or_insert(value);
                }
            }
        }
    }
}
