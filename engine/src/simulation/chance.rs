//! Chance that a seed repeats: every question has a name, and the answer depends on nothing but the seed, the name and how often it was
//! asked. So two threads that ask different questions at the same moment do not disturb each other.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Mutex,
    time::Duration,
};

#[derive(Debug)]
pub(super) struct Chance {
    seed: u64,
    asked: Mutex<HashMap<String, u64>>,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            asked: Mutex::default(),
        }
    }

    pub(super) fn word(&self, question: &str) -> u64 {
        let mut asked = self.asked.lock().unwrap();
        let times = asked.entry(question.to_owned()).or_default();
        *times += 1;
        // Of fixed keys, so the same in every process.
        let mut hasher = std::hash::DefaultHasher::new();
        (self.seed, question, *times).hash(&mut hasher);
        hasher.finish()
    }

    pub(super) fn below(&self, question: &str, end: u64) -> u64 {
        self.word(question) % end
    }

    /// True once in `every` times.
    pub(super) fn one_in(&self, question: &str, every: u64) -> bool {
        self.below(question, every) == 0
    }

    /// A time below `longest`.
    pub(super) fn time(&self, question: &str, longest: Duration) -> Duration {
        Duration::from_millis(self.below(question, longest.as_millis() as u64))
    }

    pub(super) fn pick<'a, T>(&self, question: &str, from: &'a [T]) -> Option<&'a T> {
        match from.len() as u64 {
            0 => None,
            len => from.get(self.below(question, len) as usize),
        }
    }
}
