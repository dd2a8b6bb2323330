//! What must come of damage: known exactly, from which bytes changed.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use podsnap::format::{Footer, HEADER_LEN};
use podsnap::{
    Error, ErrorKind, Result, SaveOptions, Snapshot, Store,
    restore::{Damage, RestoreOptions},
    verify::VerifyOptions,
};

use crate::{
    support::*,
    world::{Part, World, parts},
};

/// Section, offset, length.
type Lost = BTreeSet<(String, u64, u64)>;

fn lost_by(damage: &[Damage]) -> Lost {
    let ranges = damage.iter().flat_map(|damage| &damage.lost);
    ranges
        .map(|range| (range.section.clone(), range.offset, range.len))
        .collect()
}

/// What an object is to the snapshot that is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Is {
    Pack,
    /// The manifest, or the export.
    Top,
}

/// How thoroughly to look: copying takes longest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Copying {
    Tried,
    Left,
}

pub struct Case<'a> {
    pub world: &'a World,
    pub what: String,
    /// The damaged object, how it was and how it is.
    pub object: &'a str,
    pub is: Is,
    pub old: &'a [u8],
    pub new: Option<&'a [u8]>,
    pub copying: Copying,
}

impl Case<'_> {
    /// Tries everything on the snapshot that `opened` is.
    pub async fn judge(&self, opened: Result<Snapshot>, top: (&str, &[u8])) {
        let what = &self.what;
        let snapshot = match opened {
            Ok(snapshot) => snapshot,
            Err(e) => {
                assert!(!self.can_be_opened(), "{what}: {e}");
                return self.assert_named(&e);
            }
        };
        assert!(self.can_be_opened(), "{what}: it was opened");
        let (frames, maps) = parts(top.0, top.1);
        let is_lost = |part: &&Part| part.object == self.object && self.differs(part);
        let hit: Vec<&Part> = frames.iter().chain(&maps).filter(is_lost).collect();
        let lost: Lost = hit
            .iter()
            .map(|part| {
                let len = part.range.end - part.range.start;
                (part.section.clone(), part.range.start, len)
            })
            .collect();
        self.restores(&snapshot, &lost, &hit).await;
        self.reads_pages(&snapshot, &lost).await;
        self.verifies(&snapshot, &lost).await;
        let exported = self.world.exported(&snapshot).await;
        self.is_lost_or_right(&lost, "export", exported.as_ref().err());
        if let Ok(exported) = exported {
            assert!(exported == self.world.export, "{what}: another export");
        }
        if self.copying == Copying::Tried {
            self.copies(&snapshot, &lost).await;
        }
    }

    /// An object is read from its end: what must be whole of a manifest to open it is its directory and footer.
    fn can_be_opened(&self) -> bool {
        let (Is::Top, old) = (self.is, self.old) else {
            return true;
        };
        let from = Footer::parse(old).unwrap().trailer_offset as usize;
        self.new
            .is_some_and(|new| new.len() == old.len() && new[from..] == old[from..])
    }

    fn differs(&self, part: &Part) -> bool {
        let bytes = part.bytes.start as usize..part.bytes.end as usize;
        self.new.and_then(|new| new.get(bytes.clone())) != Some(&self.old[bytes])
    }

    /// An error must say of which kind it is, of which object, and where in it.
    fn assert_named(&self, e: &Error) {
        let gone = self.new.is_none();
        let expected: &[ErrorKind] = match (gone, self.is) {
            (true, Is::Pack) => &[ErrorKind::Missing],
            (true, Is::Top) => &[ErrorKind::NotFound],
            (false, _) => &[ErrorKind::Damaged, ErrorKind::Unsupported],
        };
        let what = &self.what;
        assert!(expected.contains(&e.kind()), "{what}: {e:?}");
        // Without its manifest a snapshot does not exist, and has no objects to name.
        let name = match (gone, self.is) {
            (true, Is::Top) if self.object == "s/manifest" => "snapshot s",
            _ => self.object,
        };
        assert!(e.to_string().contains(name), "{what}: {e}");
    }

    fn is_lost_or_right(&self, lost: &Lost, doing: &str, error: Option<&Error>) {
        match error {
            Some(e) => {
                assert!(!lost.is_empty(), "{}: {doing}: {e}", self.what);
                self.assert_named(e);
            }
            None => assert!(lost.is_empty(), "{}: {doing} went through", self.what),
        }
    }

    async fn restores(&self, snapshot: &Snapshot, lost: &Lost, hit: &[&Part]) {
        let (store, what) = (&self.world.store, &self.what);
        let strict = restore_all(store, snapshot, &RestoreOptions::default()).await;
        self.is_lost_or_right(lost, "restore", strict.as_ref().err());
        match strict {
            Ok((found, _)) => self.assert_bytes(&found, lost),
            Err(e) if self.new.is_some() => {
                // One of the places that were hit.
                let e = e.to_string();
                let named = hit
                    .iter()
                    .any(|part| e.contains(&format!("at byte {}", part.bytes.start)));
                assert!(named || e.contains("bytes"), "{what}: no place: {e}");
                assert!(e.contains("are lost"), "{what}: nothing is lost: {e}");
            }
            Err(_) => {}
        }
        let options = RestoreOptions {
            salvage: true,
            ..RestoreOptions::default()
        };
        let (found, stats) = restore_all(store, snapshot, &options).await.unwrap();
        assert_eq!(lost_by(&stats.damage), *lost, "{what}: salvage");
        self.assert_bytes(&found, lost);
        for damage in &stats.damage {
            assert!(damage.what.contains(self.object), "{what}: {damage:?}");
        }
    }

    /// The right bytes, but zeros where they are lost.
    fn assert_bytes(&self, found: &[Vec<u8>], lost: &Lost) {
        for ((section, expected), found) in self.world.expected.iter().zip(found) {
            let mut expected = expected.clone();
            for (_, offset, len) in lost.iter().filter(|(name, ..)| name == section) {
                expected[*offset as usize..][..*len as usize].fill(0);
            }
            assert_bytes(found, &expected, &format!("{}: {section}", self.what));
        }
    }

    async fn reads_pages(&self, snapshot: &Snapshot, lost: &Lost) {
        const PAGE: usize = 700;
        for (number, (section, expected)) in self.world.expected.iter().enumerate() {
            let reader = snapshot.reader(number);
            // A few pages of a long section, all of a short one.
            for at in (0..expected.len()).step_by(PAGE.max(expected.len() / 32)) {
                let mut page = vec![0xee; PAGE.min(expected.len() - at)];
                let range = at as u64..(at + page.len()) as u64;
                let touches_lost = lost.iter().any(|(name, offset, len)| {
                    name == section && *offset < range.end && range.start < offset + len
                });
                let what = format!("{}: page at {at} of {section}", self.what);
                match reader.read_at(&mut page, at as u64).await {
                    Ok(()) => {
                        assert!(!touches_lost, "{what} was read");
                        assert_bytes(&page, &expected[at..at + page.len()], &what);
                    }
                    Err(e) => {
                        assert!(touches_lost, "{what}: {e}");
                        self.assert_named(&e);
                    }
                }
            }
        }
    }

    /// A whole verification notices every change of every object, and says what is lost by it.
    async fn verifies(&self, snapshot: &Snapshot, lost: &Lost) {
        let what = &self.what;
        let report = snapshot
            .verify(&self.world.store, &VerifyOptions::default())
            .await
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let changed = self.new != Some(self.old);
        assert_eq!(report.is_sound(), !changed, "{what}: {:?}", report.damage);
        assert_eq!(
            lost_by(&report.damage),
            *lost,
            "{what}: {:?}",
            report.damage
        );
        for damage in &report.damage {
            assert!(damage.what.contains(self.object), "{what}: {damage:?}");
        }
        // The index is made anew where it, or the header it repeats, is not what it was.
        let frames_end = Footer::parse(self.old).unwrap().frames_end as usize;
        let ends = |bytes: &[u8]| {
            let header = bytes.get(..HEADER_LEN)?.to_vec();
            Some([header, bytes.get(frames_end..)?.to_vec()])
        };
        let rebuilt = match (self.is, self.new) {
            (Is::Pack, Some(new)) => ends(new) != ends(self.old),
            _ => false,
        };
        let expected: &[&str] = if rebuilt { &[self.object] } else { &[] };
        assert_eq!(report.rebuilt_indexes, expected, "{what}");
    }

    async fn copies(&self, snapshot: &Snapshot, lost: &Lost) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let url = format!("memory://damage-{}", COUNT.fetch_add(1, SeqCst));
        let to = Store::open(&url).unwrap();
        let copied = snapshot
            .copy_to(&to, &id("copy"), SaveOptions::default())
            .await;
        self.is_lost_or_right(lost, "copy", copied.as_ref().err());
        match copied {
            Ok(_) => self.assert_bytes(&restored(&to, "copy").await, lost),
            Err(_) => assert_eq!(to.backend().list("").await.unwrap(), [], "{}", self.what),
        }
    }
}
