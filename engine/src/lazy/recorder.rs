//! Notes which pages of a snapshot's sections are asked for, in the order in which each is for the first time.
//!
//! A page that was noted before costs a look at one bit and takes no lock. What is noted is bounded: by the pages that sections are divided
//! into, which grow with the snapshot, and by the number of ranges, after which nothing more is noted. What becomes of the notes is the business
//! of [`working_set`](super::working_set).

use std::{
    ops::Range,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use podsnap_format::{
    manifest::SectionInfo,
    working_set::{MAX_TOUCHES, Touch},
};

/// Shortest page, in bytes.
const LEAST_PAGE_LEN: u64 = 4096;

/// Most pages of all sections together: 16 MiB of bits. A snapshot of 512 GiB still has pages of 4 KiB.
const MAX_PAGES: u64 = 1 << 27;

/// A range is not made longer than this, in bytes, nor over a longer time: its order among others would be lost.
const MAX_TOUCH_LEN: u64 = 16 << 20;
const MAX_TOUCH_TIME: Duration = Duration::from_secs(1);

/// So many of the last ranges are looked at for one that goes on: readers that run side by side.
const NEIGHBOURS: usize = 8;

const BITS: u64 = u64::BITS as u64;

/// The pages of a snapshot that were touched.
#[derive(Debug)]
pub(crate) struct Recorder {
    page_len: u64,
    sections: Vec<Section>,
    started: Instant,
    touches: Mutex<Vec<Touch>>,
    /// Whether no more ranges are taken.
    full: AtomicBool,
}

#[derive(Debug)]
struct Section {
    pages: u64,
    /// A bit for each page.
    touched: OnceLock<Box<[AtomicU64]>>,
}

impl Recorder {
    pub(crate) fn new(sections: &[SectionInfo]) -> Self {
        let total: u128 = sections.iter().map(|s| u128::from(s.length)).sum();
        let mut page_len = LEAST_PAGE_LEN;
        while total.div_ceil(page_len.into()) > MAX_PAGES.into() {
            page_len *= 2;
        }
        let section = |info: &SectionInfo| Section {
            pages: info.length.div_ceil(page_len),
            touched: OnceLock::new(),
        };
        Self {
            page_len,
            sections: sections.iter().map(section).collect(),
            started: Instant::now(),
            touches: Mutex::default(),
            full: AtomicBool::new(false),
        }
    }

    /// Length of a page, in bytes.
    pub(crate) fn page_len(&self) -> u64 {
        self.page_len
    }

    /// Notes that bytes of a section were asked for; they must be within it.
    pub(crate) fn note(&self, section: usize, range: &Range<u64>) {
        if range.is_empty() || self.full.load(Relaxed) {
            return;
        }
        let pages = range.start / self.page_len..range.end.div_ceil(self.page_len);
        let touched = self.sections[section].touched();
        let mut new = None::<Range<u64>>;
        for word in pages.start / BITS..pages.end.div_ceil(BITS) {
            let base = word * BITS;
            let mask = bits(pages.start.max(base) - base..pages.end.min(base + BITS) - base);
            let touched = &touched[word as usize];
            if touched.load(Relaxed) & mask == mask {
                continue;
            }
            let mut first = mask & !touched.fetch_or(mask, Relaxed);
            while first != 0 {
                let start = first.trailing_zeros() as u64;
                let len = (first >> start).trailing_ones() as u64;
                first &= !bits(start..start + len);
                let run = base + start..base + start + len;
                match &mut new {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ => {
                        if let Some(last) = new.replace(run) {
                            self.append(section, last);
                        }
                    }
                }
            }
        }
        if let Some(last) = new {
            self.append(section, last);
        }
    }

    /// What was noted so far.
    pub(crate) fn touches(&self) -> Vec<Touch> {
        self.touches.lock().expect("no panic while held").clone()
    }

    fn append(&self, section: usize, pages: Range<u64>) {
        let range = pages.start * self.page_len..pages.end * self.page_len;
        let mut touches = self.touches.lock().expect("no panic while held");
        let micros = self.started.elapsed().as_micros();
        let at = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        let goes_on = |last: &&mut Touch| {
            last.section as usize == section
                && last.range.end == range.start
                && range.end - last.range.start <= MAX_TOUCH_LEN
                && at - last.at <= MAX_TOUCH_TIME
        };
        if let Some(last) = touches.iter_mut().rev().take(NEIGHBOURS).find(goes_on) {
            last.range.end = range.end;
            return;
        }
        if touches.len() == MAX_TOUCHES {
            if !self.full.swap(true, Relaxed) {
                tracing::debug!("{MAX_TOUCHES} ranges were touched: no more are recorded");
            }
            return;
        }
        touches.push(Touch {
            section: section as u32,
            range,
            at,
        });
    }
}

impl Section {
    fn touched(&self) -> &[AtomicU64] {
        self.touched.get_or_init(|| {
            let words = self.pages.div_ceil(BITS);
            std::iter::repeat_with(AtomicU64::default)
                .take(words as usize)
                .collect()
        })
    }
}

/// Ones at these places of a word.
fn bits(places: Range<u64>) -> u64 {
    let len = places.end - places.start;
    (u64::MAX >> (BITS - len)) << places.start
}

#[cfg(test)]
mod tests {
    use podsnap_format::{Role, Shape, manifest::ChunkingParams};

    use super::*;

    const PAGE: u64 = 4096;

    fn recorder(lengths: &[u64]) -> Recorder {
        let section = |length: &u64| {
            let chunking = ChunkingParams::Fixed { size: 65_536 };
            let info = SectionInfo::new(Role::Memory, "", Shape::Blob, chunking);
            SectionInfo {
                length: *length,
                ..info
            }
        };
        Recorder::new(&lengths.iter().map(section).collect::<Vec<_>>())
    }

    fn ranges(recorder: &Recorder) -> Vec<(u32, Range<u64>)> {
        let touches = recorder.touches();
        assert!(touches.is_sorted_by_key(|touch| touch.at));
        let of_pages = |touch: Touch| {
            let pages = touch.range.start / PAGE..touch.range.end / PAGE;
            (touch.section, pages)
        };
        touches.into_iter().map(of_pages).collect()
    }

    #[test]
    fn the_first_touch_of_a_page_counts_and_neighbours_become_one() {
        let recorder = recorder(&[1000 * PAGE - 5, 200 * PAGE]);
        recorder.note(0, &(70 * PAGE + 1..70 * PAGE + 2));
        recorder.note(1, &(0..PAGE));
        recorder.note(0, &(60 * PAGE..80 * PAGE));
        recorder.note(0, &(0..1000 * PAGE - 5));
        recorder.note(1, &(PAGE..PAGE));
        recorder.note(1, &(PAGE..3 * PAGE));
        recorder.note(0, &(5..1000 * PAGE - 5));
        let expected = [(0, 70..1000), (1, 0..3), (0, 60..70), (0, 0..60)];
        assert_eq!(ranges(&recorder), expected);
    }

    #[test]
    fn many_threads_note_every_page_once() {
        let recorder = recorder(&[64 * 1024 * PAGE]);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let recorder = &recorder;
                scope.spawn(move || {
                    for i in 0..20_000 {
                        let start = (i * 7919 + thread * 104_729) % (64 * 1024 - 8);
                        recorder.note(0, &(start * PAGE..(start + 1 + i % 8) * PAGE));
                    }
                });
            }
        });
        let mut all = vec![0; 64 * 1024];
        for (_, pages) in ranges(&recorder) {
            for page in pages {
                all[page as usize] += 1;
            }
        }
        assert!(all.iter().all(|count| *count <= 1));
        assert!(all.iter().sum::<i32>() > 50_000);
    }

    #[test]
    fn memory_is_bounded_however_long_a_section_says_it_is() {
        let recorder = recorder(&[(1 << 62) - 1; 4]);
        assert!(recorder.page_len() >= 1 << 37);
        recorder.note(3, &((1 << 62) - 2..(1 << 62) - 1));
        assert_eq!(recorder.touches().len(), 1);

        let scattered = self::recorder(&[4 * MAX_TOUCHES as u64 * PAGE]);
        for i in 0..MAX_TOUCHES as u64 + 10 {
            scattered.note(0, &(2 * i * PAGE..(2 * i + 1) * PAGE));
        }
        assert_eq!(scattered.touches().len(), MAX_TOUCHES);
    }
}
