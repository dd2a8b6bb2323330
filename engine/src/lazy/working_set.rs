//! The working set of a snapshot: recorded while it is read, kept beside its manifest, and found again by the next restore.
//!
//! It is a hint. One that is damaged is an error that callers warn of and go on; one that was learned from another snapshot of
//! the same id counts as none. It needs the rights that saving needs, and no more: what is absent may look forbidden.

use std::{ops::Range, sync::Arc};

use podsnap_format::{Kind, working_set as format};

use super::{ahead, recorder::Recorder};
use crate::{
    error::{Error, ErrorKind, Result},
    names,
    snapshot::{Snapshot, read_tail},
    store::{Condition, Version},
};

/// What a restore touched, as a store keeps it; [`Snapshot::working_set`] finds it.
#[derive(Debug, Clone)]
pub struct WorkingSet {
    set: Arc<format::WorkingSet>,
    snapshot: Snapshot,
    stored_bytes: u64,
}

/// A snapshot whose readers note what is asked for urgently; [`Snapshot::record`] makes one.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://record")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # let input = Input::stream(std::io::Cursor::new(numbers), "numbers");
/// # writer.add(NewSection::blob(Role::Memory, "", input)).await?;
/// # writer.finish().await?;
/// let recording = store.snapshot(&"web-1".parse()?).await?.record();
/// let reader = recording.snapshot().reader(0);
/// reader.read_at(&mut [0; 10], 300_000).await?;
/// reader.read_at(&mut [0; 10], 5000).await?;
/// recording.store(false).await?;
///
/// // The next restore.
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let learned = snapshot.working_set().await?.expect("it was stored");
/// assert_eq!(learned.ranges(0), [299_008..303_104, 4096..8192]);
/// learned.prefetch(&[0]).await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Recording {
    snapshot: Snapshot,
    recorder: Arc<Recorder>,
}

/// What there is in a working set's place.
enum Found {
    Nothing,
    /// Something that is of no use: it is damaged, or of another snapshot.
    Useless(Version),
    Learned(Version),
    /// Something of a newer podsnap, which this one may not replace.
    Newer,
}

impl Snapshot {
    /// The same snapshot, recorded: what its readers are asked for is noted, except in the background.
    pub fn record(&self) -> Recording {
        let recorder = Arc::new(Recorder::new(self.sections()));
        Recording {
            snapshot: self.recorded_by(recorder.clone()),
            recorder,
        }
    }

    /// What an earlier restore of the snapshot touched, if that was recorded. An error if it cannot be read or does not check out; who only wants to be
    /// faster goes on without.
    pub async fn working_set(&self) -> Result<Option<WorkingSet>> {
        if self.is_export() {
            return Ok(None);
        }
        match read(self).await {
            Ok((set, _, stored_bytes)) if set.is_of(self.directory()) => Ok(Some(WorkingSet {
                set: Arc::new(set),
                snapshot: self.clone(),
                stored_bytes,
            })),
            Ok(_) => {
                tracing::debug!(
                    snapshot = self.id().as_str(),
                    "its working set is of another snapshot"
                );
                Ok(None)
            }
            Err(e) if e.is_absence() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Recording {
    /// The snapshot whose readers are recorded.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Stores what was touched so far as the snapshot's working set, unless nothing was or the snapshot is gone. One that is there already stays, unless
    /// it is of no use or `replacing` is set. Returns whether it was stored.
    pub async fn store(&self, replacing: bool) -> Result<bool> {
        let snapshot = &self.snapshot;
        let page_len = self.recorder.page_len();
        let mut set = format::WorkingSet::new(snapshot.directory(), page_len);
        set.touches = self.recorder.touches();
        if set.touches.is_empty() || snapshot.is_export() {
            return Ok(false);
        }
        let name = object(snapshot);
        let bytes = set.encode().map_err(|e| Error::format(&name, e))?;
        let condition = match look(snapshot).await? {
            Found::Nothing => Condition::Absent,
            Found::Useless(version) => Condition::Matches(version),
            Found::Learned(version) if replacing => Condition::Matches(version),
            Found::Learned(_) | Found::Newer => return Ok(false),
        };
        if !snapshot.still_there().await? {
            return Ok(false);
        }
        let backend = &snapshot.backend;
        let written = match backend.put(&name, bytes.into(), condition).await {
            Ok(written) => written,
            // Somebody else has learned one at the same time.
            Err(e) if e.kind() == ErrorKind::Conflict || e.is_absence() => return Ok(false),
            Err(e) => return Err(e),
        };
        // Who deletes a snapshot deletes the manifest first, and then what is beside it.
        if !snapshot.still_there().await? {
            backend.delete(&name, Some(&written.version)).await?;
            return Ok(false);
        }
        Ok(true)
    }
}

impl WorkingSet {
    /// Ranges of a section in the order in which they were first touched, within the section. No two overlap.
    pub fn ranges(&self, section: usize) -> Vec<Range<u64>> {
        let touches = self.touches();
        let of_section = touches.filter(|touch| touch.section as usize == section);
        of_section.map(|touch| touch.range).collect()
    }

    /// What was touched, in order, of all sections; ranges are within their sections.
    pub fn touches(&self) -> impl Iterator<Item = format::Touch> {
        let sections = self.snapshot.sections();
        self.set.touches.iter().map(|touch| {
            let len = sections[touch.section as usize].length;
            let range = touch.range.start..touch.range.end.min(len);
            format::Touch {
                range,
                ..touch.clone()
            }
        })
    }

    /// Fetches what was touched of these sections, or of all if there are none, in that order and in few large reads. It never is much further ahead of those who read than memory and
    /// the node's cache have room for, so it lasts as long as they take to use what was touched: let a task of its own do it, and end it with them.
    pub async fn prefetch(&self, sections: &[usize]) -> Result<()> {
        let readers: Vec<_> = (0..self.snapshot.sections().len())
            .map(|section| self.snapshot.reader(section))
            .collect();
        let ranges = self
            .touches()
            .filter(|touch| sections.is_empty() || sections.contains(&(touch.section as usize)))
            .map(|touch| (readers[touch.section as usize].clone(), touch.range));
        ahead::replay(&self.snapshot, ranges).await
    }

    /// Length in bytes of what is told apart.
    pub fn page_len(&self) -> u64 {
        self.set.page_len
    }

    /// Length of the stored object in bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }
}

fn object(snapshot: &Snapshot) -> String {
    names::object(snapshot.id(), names::WORKING_SET)
}

/// The working set in its place, whosever it is, with its version and length.
async fn read(snapshot: &Snapshot) -> Result<(format::WorkingSet, Version, u64)> {
    let name = object(snapshot);
    let max_len = format::MAX_WORKING_SET_LEN;
    let (footer, trailer, tail) = read_tail(&*snapshot.backend, &name, max_len).await?;
    if footer.kind != Kind::WorkingSet {
        let why = format!("it is of the kind {}, not working-set", footer.kind);
        return Err(Error::damaged(name, why));
    }
    let set = format::WorkingSet::parse(&footer, &trailer).map_err(|e| Error::format(&name, e))?;
    Ok((set, tail.meta.version, tail.meta.len))
}

async fn look(snapshot: &Snapshot) -> Result<Found> {
    match read(snapshot).await {
        Ok((set, ..)) if set.header.read_only_compatible != 0 => Ok(Found::Newer),
        Ok((set, version, _)) if set.is_of(snapshot.directory()) => Ok(Found::Learned(version)),
        Ok((_, version, _)) => Ok(Found::Useless(version)),
        Err(e) if e.kind() == ErrorKind::Unsupported => Ok(Found::Newer),
        Err(e) if e.kind() == ErrorKind::Damaged => {
            let meta = snapshot.backend.head(&object(snapshot)).await?;
            Ok(Found::Useless(meta.version))
        }
        Err(e) if e.is_absence() => Ok(Found::Nothing),
        Err(e) => Err(e),
    }
}
