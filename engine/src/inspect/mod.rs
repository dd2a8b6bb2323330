//! Inspection: what a snapshot consists of, what it has twice, what it borrows, and what of it costs most.
//!
//! Reads the manifest, the working set, and of tree sections the entry tables; nothing else. What it says of costs follows from where chunks are used:
//! see [`InspectReport`] for the accounts.

mod attribution;
mod learned;
mod listing;
mod owners;
mod ranges;
mod report;

use std::{cmp::Reverse, collections::BTreeMap};

use podsnap_format::{
    Shape,
    manifest::{PackInfo, SectionInfo},
    tree::TreeTable,
};
use tokio_util::sync::CancellationToken;

pub use report::*;

use self::{
    attribution::{Amount, Attribution, SectionAccount, add_chunk, codec_name},
    owners::Owners,
};
use crate::{
    WorkingSet,
    base::BaseIndex,
    error::{Error, ErrorKind, Result},
    names,
    snapshot::Snapshot,
};

/// How a snapshot is inspected.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://inspect")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
/// use podsnap::inspect::InspectOptions;
///
/// // A snapshot that has the same bytes in two sections.
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let report = snapshot.inspect(&InspectOptions::default()).await?;
/// assert_eq!(report.deduplicated_bytes, report.raw_bytes / 2);
/// let longest = &report.duplicates[0];
/// assert_eq!(longest.at.section, "memory:second");
/// assert_eq!(longest.of.section, "memory");
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct InspectOptions {
    /// Most files, ranges and duplicates that are listed.
    pub top: usize,
    /// Ends the inspection with [`ErrorKind::Interrupted`] when it is cancelled.
    pub cancel: CancellationToken,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self {
            top: 10,
            cancel: CancellationToken::new(),
        }
    }
}

/// What is read before the reckoning begins.
struct Inspected {
    snapshot: Snapshot,
    index: BaseIndex,
    tables: Vec<Option<TreeTable>>,
    working_set_bytes: Option<u64>,
    learned: Option<WorkingSet>,
    problems: Vec<String>,
}

impl Snapshot {
    /// Says what the snapshot consists of and what of it costs most.
    pub async fn inspect(&self, options: &InspectOptions) -> Result<InspectReport> {
        let inspected = tokio::select! {
            biased;
            () = options.cancel.cancelled() => return Err(Error::interrupted()),
            read = self.read_for_inspection() => read?,
        };
        let options = options.clone();
        let reckoning = tokio::task::spawn_blocking(move || inspected.report(&options));
        reckoning.await.expect("reckoning does not panic")
    }

    async fn read_for_inspection(&self) -> Result<Inspected> {
        let index = BaseIndex::load(std::slice::from_ref(self)).await?;
        let (mut tables, mut problems) = (Vec::new(), Vec::new());
        for (number, section) in self.sections().iter().enumerate() {
            let table = match section.shape {
                Shape::Blob => None,
                // The rest can be told without the names of its files.
                Shape::Tree => match self.tree_table(number).await {
                    Ok(table) => Some(table),
                    Err(e) if concerns_one_object(&e) => {
                        problems.push(e.to_string());
                        None
                    }
                    Err(e) => return Err(e),
                },
            };
            tables.push(table);
        }
        let working_set_bytes = if self.is_export() {
            None
        } else {
            let name = names::object(self.id(), names::WORKING_SET);
            match self.backend.head(&name).await {
                Ok(meta) => Some(meta.len),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                // Without the right to list, a bucket does not tell absence from secrecy.
                Err(e) if e.kind() == ErrorKind::Forbidden => None,
                Err(e) => return Err(e),
            }
        };
        let learned = match working_set_bytes {
            None => None,
            Some(_) => match self.working_set().await {
                Ok(learned) => learned,
                Err(e) if concerns_one_object(&e) => {
                    problems.push(e.to_string());
                    None
                }
                Err(e) => return Err(e),
            },
        };
        Ok(Inspected {
            snapshot: self.clone(),
            index,
            tables,
            working_set_bytes,
            learned,
            problems,
        })
    }

    /// Whether it was opened from an export, which holds its frames itself.
    pub(crate) fn is_export(&self) -> bool {
        self.directory().header.kind == podsnap_format::Kind::Export
    }
}

fn concerns_one_object(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Damaged
            | ErrorKind::Missing
            | ErrorKind::NotFound
            | ErrorKind::Forbidden
            | ErrorKind::Unsupported
    )
}

impl Inspected {
    fn report(self, options: &InspectOptions) -> Result<InspectReport> {
        let Self {
            snapshot,
            index,
            tables,
            working_set_bytes,
            learned,
            problems,
        } = self;
        let sections = snapshot.sections();
        let owners = Owners::new(sections, tables);
        let is_own = |pack: &PackInfo| pack.snapshot == *snapshot.id();
        let own: Vec<bool> = index.packs.iter().map(is_own).collect();
        let mut attribution = Attribution::new(&index, &owners, own.clone());
        for section in sections {
            attribution.section(section.shape, section.length, &options.cancel)?;
        }
        let reports: Vec<SectionReport> = sections
            .iter()
            .enumerate()
            .map(|(number, info)| {
                let account = &attribution.accounts[number];
                describe(number, info, account, &index, &owners)
            })
            .collect();

        let mut all = Totals::default();
        let mut packs = vec![Amount::default(); index.packs.len()];
        for chunk in &index.chunks {
            let pack = chunk.location.pack as usize;
            add_chunk(&mut all.chunks, chunk);
            add_chunk(&mut packs[pack], chunk);
            add_chunk(all.codecs.entry(chunk.codec.tag()).or_default(), chunk);
            if own[pack] {
                add_chunk(&mut all.own, chunk);
            }
        }
        let sum = |of: fn(&SectionReport) -> u64| reports.iter().map(of).sum::<u64>();
        let new_stored_bytes = sum(|s| s.new_stored_bytes);
        let mut borrowed = BTreeMap::new();
        for account in &attribution.accounts {
            for (pack, amount) in &account.borrowed {
                let known: &mut Amount = borrowed.entry(*pack).or_default();
                known.raw += amount.raw;
                known.stored += amount.stored;
            }
        }
        let directory = snapshot.directory();
        let frames = if snapshot.is_export() {
            directory.packs.iter().map(|p| p.length).sum()
        } else {
            0
        };
        let packs = directory.packs.iter().zip(&packs).zip(&own);
        Ok(InspectReport {
            snapshot: snapshot.id().to_string(),
            digest: snapshot.digest().to_string(),
            exported: snapshot.is_export(),
            keyed: directory.header.key_check.is_some(),
            metadata: snapshot.metadata().clone(),
            raw_bytes: sum(|s| s.raw_bytes),
            zero_bytes: sum(|s| s.zero_bytes),
            new_bytes: sum(|s| s.new_bytes),
            borrowed_bytes: sum(|s| s.borrowed_bytes),
            deduplicated_bytes: sum(|s| s.deduplicated_bytes),
            new_stored_bytes,
            unused_stored_bytes: all.own.stored - new_stored_bytes,
            borrowed: borrowed_by_snapshot(&borrowed, &index),
            manifest_bytes: snapshot.object_len().saturating_sub(frames),
            working_set_bytes,
            working_set: learned.map(|set| learned::describe(&set, sections, options.top)),
            chunks: all.chunks.chunks,
            new_chunks: all.own.chunks,
            average_chunk_bytes: all.chunks.raw / all.chunks.chunks.max(1),
            codecs: codecs(&all.codecs),
            packs: packs
                .map(|((pack, used), own)| PackUse {
                    object: snapshot.pack_object(pack),
                    snapshot: pack.snapshot.to_string(),
                    borrowed: !own,
                    bytes: pack.length,
                    used_chunks: used.chunks,
                    used_bytes: used.stored,
                })
                .collect(),
            files: listing::dearest_files(&owners, &attribution, options.top),
            shared_files: listing::most_shared_files(&owners, &attribution, options.top),
            ranges: listing::dearest_ranges(sections, &attribution.ranges, options.top),
            duplicates: listing::longest_duplicates(&owners, &mut attribution, options.top),
            sections: reports,
            problems,
        })
    }
}

#[derive(Default)]
struct Totals {
    chunks: Amount,
    own: Amount,
    codecs: BTreeMap<u8, Amount>,
}

fn codecs(amounts: &BTreeMap<u8, Amount>) -> Vec<CodecUse> {
    amounts
        .iter()
        .map(|(tag, amount)| CodecUse {
            codec: codec_name(*tag),
            chunks: amount.chunks,
            raw_bytes: amount.raw,
            stored_bytes: amount.stored,
        })
        .collect()
}

fn borrowed_by_snapshot(by_pack: &BTreeMap<u32, Amount>, index: &BaseIndex) -> Vec<Borrowed> {
    let mut by_snapshot: BTreeMap<String, Amount> = BTreeMap::new();
    for (pack, amount) in by_pack {
        let snapshot = index.packs[*pack as usize].snapshot.to_string();
        let known = by_snapshot.entry(snapshot).or_default();
        known.raw += amount.raw;
        known.stored += amount.stored;
    }
    let mut borrowed: Vec<Borrowed> = by_snapshot
        .into_iter()
        .map(|(snapshot, amount)| Borrowed {
            snapshot,
            raw_bytes: amount.raw,
            stored_bytes: amount.stored,
        })
        .collect();
    borrowed.sort_by_key(|b| Reverse(b.raw_bytes));
    borrowed
}

fn describe(
    number: usize,
    info: &SectionInfo,
    account: &SectionAccount,
    index: &BaseIndex,
    owners: &Owners,
) -> SectionReport {
    let chunks = account
        .codecs
        .values()
        .fold(Amount::default(), |sum, a| Amount {
            chunks: sum.chunks + a.chunks,
            raw: sum.raw + a.raw,
            stored: sum.stored + a.stored,
        });
    let mut deduplicated: Vec<SharedBytes> = account
        .repeated
        .iter()
        .map(|(section, bytes)| SharedBytes {
            section: owners.title(*section as usize).to_owned(),
            path: None,
            bytes: *bytes,
        })
        .collect();
    deduplicated.sort_by_key(|s| Reverse(s.bytes));
    let counts = owners.counts(number);
    SectionReport {
        section: info.title(),
        role: info.role.to_string(),
        name: info.name.clone(),
        shape: info.shape.to_string(),
        raw_bytes: info.length,
        zero_bytes: account.zero,
        new_bytes: account.new.raw,
        borrowed_bytes: account.borrowed.values().map(|a| a.raw).sum(),
        deduplicated_bytes: account.repeated.values().sum(),
        new_stored_bytes: account.new.stored,
        borrowed: borrowed_by_snapshot(&account.borrowed, index),
        deduplicated,
        chunks: chunks.chunks,
        new_chunks: account.new.chunks,
        average_chunk_bytes: chunks.raw / chunks.chunks.max(1),
        codecs: codecs(&account.codecs),
        chunking: info.chunking.into(),
        extents: account.extents,
        map_bytes: info.segments.iter().map(|s| s.object_len).sum(),
        address_ranges: info.address_ranges.len() as u64,
        files: counts.map(|(files, _)| files),
        entries: counts.map(|(_, entries)| entries),
    }
}
