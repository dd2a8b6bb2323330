//! What an inspection says of the snapshot's working set.

use std::time::Duration;

use podsnap_format::manifest::SectionInfo;

use super::report::{LearnedReport, LearnedSection, LearnedTouch};
use crate::WorkingSet;

/// The account of a working set, with the first `top` of its ranges.
pub(super) fn describe(learned: &WorkingSet, infos: &[SectionInfo], top: usize) -> LearnedReport {
    let mut sections: Vec<Option<LearnedSection>> = infos.iter().map(|_| None).collect();
    let (mut ranges, mut bytes, mut last) = (0, 0, Duration::ZERO);
    let mut first = None;
    for touch in learned.touches() {
        let info = &infos[touch.section as usize];
        let len = touch.range.end - touch.range.start;
        ranges += 1;
        bytes += len;
        last = touch.at;
        first.get_or_insert(touch.at);
        let section = sections[touch.section as usize].get_or_insert_with(|| LearnedSection {
            section: info.title(),
            raw_bytes: info.length,
            ranges: 0,
            bytes: 0,
            first_ms: millis(touch.at),
            last_ms: 0.0,
        });
        section.ranges += 1;
        section.bytes += len;
        section.last_ms = millis(touch.at);
    }
    let first_touches = learned.touches().take(top).map(|touch| LearnedTouch {
        section: infos[touch.section as usize].title(),
        offset: touch.range.start,
        len: touch.range.end - touch.range.start,
        at_ms: millis(touch.at),
    });
    LearnedReport {
        ranges,
        bytes,
        page_bytes: learned.page_len(),
        span_ms: millis(last - first.unwrap_or(last)),
        first_touches: first_touches.collect(),
        sections: sections.into_iter().flatten().collect(),
    }
}

fn millis(at: Duration) -> f64 {
    at.as_micros() as f64 / 1000.0
}
