//! Requests as a hostile sentry may write them: whatever the words are, what is accepted is within the limits.

use checkpointgofer::request::{Limits, Mode, Submission, Words, parse_request, parse_submissions};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    max_io_bytes: 1 << 20,
    max_ranges: 5,
    max_parallel: 8,
};

/// The two files that are registered.
const FILES: [u64; 2] = [64 << 20, 4096];

struct Memory(Vec<u32>);

impl Words for Memory {
    fn u32_at(&self, at: usize) -> Option<u32> {
        assert!(at.is_multiple_of(4));
        self.0.get(at / 4).copied()
    }
}

fn file_len(number: u32) -> Option<u64> {
    FILES.get(number as usize).copied()
}

fn write(mode: Mode, submissions: &[Submission]) -> Memory {
    let halves = |word: u64| [word as u32, (word >> 32) as u32];
    let mut words = match mode {
        Mode::Read => vec![3, 0],
        Mode::Write => vec![3, 0, 0, 0],
    };
    for s in submissions {
        let count = s.ranges.len() as u32;
        match mode {
            Mode::Read => {
                let [low, high] = halves(s.offset);
                words.extend([s.id, 9, low, high, s.file, count]);
            }
            Mode::Write => words.extend([s.id, s.file, count, 9]),
        }
        for range in &s.ranges {
            words.extend(halves(range.start));
            words.extend(halves(range.end));
        }
    }
    Memory(words)
}

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Read), Just(Mode::Write)]
}

fn sound_submissions() -> impl Strategy<Value = Vec<Submission>> {
    let range = (0_u64..63 << 20, 1_u64..200_000).prop_map(|(start, len)| start..start + len);
    let ranges = prop::collection::vec(range, 1..=5);
    let submission =
        (0..LIMITS.max_parallel, 0..=i64::MAX as u64, ranges).prop_map(|(id, offset, ranges)| {
            let len = ranges.iter().map(|r| (r.end - r.start) as u32).sum();
            Submission {
                id,
                offset,
                file: 0,
                ranges,
                len,
            }
        });
    prop::collection::vec(submission, 0..8)
}

/// Words that are likely to mean something.
fn words() -> impl Strategy<Value = Vec<u32>> {
    let word = prop_oneof![
        0_u32..10,
        Just(4096),
        Just(1 << 20),
        Just(u32::MAX),
        any::<u32>()
    ];
    prop::collection::vec(word, 0..200)
}

proptest! {
    #[test]
    fn what_a_sentry_means_is_understood(mode in modes(), submissions in sound_submissions()) {
        let memory = write(mode, &submissions);
        let request = parse_request(&memory, mode).unwrap();
        prop_assert_eq!((request.least, request.finalize), (3, false));
        let count = submissions.len() as u32;
        let mut found = Vec::new();
        let parsed = parse_submissions(&memory, mode, LIMITS, count, file_len, |s| {
            found.push(s);
            Ok(())
        });
        prop_assert_eq!(parsed, Ok(()));
        let mut expected = submissions;
        for s in &mut expected {
            if mode == Mode::Write {
                s.offset = 0;
            }
        }
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn whatever_the_words_are_what_is_accepted_is_sound(mode in modes(), words in words(), count in 0_u32..100) {
        let memory = Memory(words);
        let _ = parse_request(&memory, mode);
        let mut accepted = 0;
        let parsed = parse_submissions(&memory, mode, LIMITS, count, file_len, |s| {
            accepted += 1;
            assert!(s.id < LIMITS.max_parallel);
            assert!(i64::try_from(s.offset).is_ok());
            assert!((1..=LIMITS.max_ranges as usize).contains(&s.ranges.len()));
            let file_len = file_len(s.file).expect("a registered file");
            assert!(s.ranges.iter().all(|r| r.start < r.end && r.end <= file_len));
            let len: u64 = s.ranges.iter().map(|r| r.end - r.start).sum();
            assert_eq!(len, u64::from(s.len));
            assert!(s.len <= LIMITS.max_io_bytes);
            Ok(())
        });
        prop_assert_eq!(parsed.is_ok(), accepted == count);
    }
}

/// A request that ends within a submission, and one that is refused.
#[test]
fn requests_that_end_too_soon_are_rejected() {
    let submission = Submission {
        id: 1,
        offset: 0,
        file: 1,
        ranges: vec![0..4096, 0..1],
        len: 4097,
    };
    for mode in [Mode::Read, Mode::Write] {
        let whole = write(mode, std::slice::from_ref(&submission)).0;
        for len in 0..whole.len() {
            let cut = Memory(whole[..len].to_vec());
            let parsed = parse_submissions(&cut, mode, LIMITS, 1, file_len, |_| Ok(()));
            assert!(parsed.is_err(), "{len} of {} words", whole.len());
        }
        let memory = Memory(whole);
        assert_eq!(
            parse_submissions(&memory, mode, LIMITS, 1, file_len, |_| Ok(())),
            Ok(())
        );
        // Nor does the first one that is refused let others through.
        let mut seen = 0;
        let refused = parse_submissions(&memory, mode, LIMITS, 2, file_len, |_| {
            seen += 1;
            Err("no".to_owned())
        });
        assert_eq!((refused.unwrap_err().id, seen), (1, 1));
    }
}
