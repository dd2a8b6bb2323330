//! The lists of an inspection: the first so many of what costs or shares most.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
};

use podsnap_format::manifest::{AddressRange, SectionInfo};

use super::{
    attribution::Attribution,
    owners::{OwnerId, Owners},
    ranges::Charged,
    report::{Duplicate, FileCost, RangeCost},
};

/// Most sharers of a file that are named.
const SHARERS_NAMED: usize = 3;

pub(super) fn dearest_files(
    owners: &Owners,
    attribution: &Attribution<'_>,
    top: usize,
) -> Vec<FileCost> {
    let rank = |owner: OwnerId| {
        let cost = attribution.costs[owner as usize];
        (cost.new + cost.borrowed > 0).then_some((Reverse(cost.new), Reverse(cost.borrowed), owner))
    };
    let mut ranked: Vec<_> = owners.files().filter_map(rank).collect();
    ranked.sort_unstable();
    ranked.truncate(top);
    let chosen: Vec<OwnerId> = ranked.into_iter().map(|(_, _, owner)| owner).collect();
    file_costs(owners, attribution, &chosen)
}

pub(super) fn most_shared_files(
    owners: &Owners,
    attribution: &Attribution<'_>,
    top: usize,
) -> Vec<FileCost> {
    let rank = |owner: OwnerId| {
        let shared = attribution.costs[owner as usize].shared;
        (shared > 0).then_some((Reverse(shared), owner))
    };
    let mut ranked: Vec<_> = owners.files().filter_map(rank).collect();
    ranked.sort_unstable();
    ranked.truncate(top);
    let chosen: Vec<OwnerId> = ranked.into_iter().map(|(_, owner)| owner).collect();
    file_costs(owners, attribution, &chosen)
}

fn file_costs(owners: &Owners, attribution: &Attribution<'_>, chosen: &[OwnerId]) -> Vec<FileCost> {
    let wanted: HashSet<OwnerId> = chosen.iter().copied().collect();
    let mut sharers: HashMap<OwnerId, Vec<(Reverse<u64>, OwnerId)>> = HashMap::new();
    for ((owner, other), bytes) in &attribution.pairs {
        if wanted.contains(owner) {
            let of_owner = sharers.entry(*owner).or_default();
            of_owner.push((Reverse(*bytes), *other));
        }
    }
    let files = chosen.iter().filter_map(|owner| owners.file(*owner));
    files
        .map(|file| {
            let cost = attribution.costs[file.owner as usize];
            let mut with = sharers.remove(&file.owner).unwrap_or_default();
            with.sort_unstable();
            FileCost {
                section: file.title.to_owned(),
                path: file.path,
                names: file.names,
                size: file.size,
                data_bytes: file.data_bytes,
                new_stored_bytes: cost.new,
                borrowed_stored_bytes: cost.borrowed,
                spared_bytes: cost.alone,
                shared_bytes: cost.shared,
                shared_with: with
                    .iter()
                    .take(SHARERS_NAMED)
                    .map(|(Reverse(bytes), other)| owners.shared(*other, *bytes))
                    .collect(),
            }
        })
        .collect()
}

pub(super) fn dearest_ranges(
    sections: &[SectionInfo],
    ranges: &[Vec<Charged>],
    top: usize,
) -> Vec<RangeCost> {
    let mut all: Vec<(usize, Charged)> = Vec::new();
    for (section, of_section) in ranges.iter().enumerate() {
        all.extend(of_section.iter().map(|charged| (section, *charged)));
    }
    all.sort_unstable_by_key(|(section, charged)| (charged.rank().0, *section, charged.offset));
    all.truncate(top);
    all.into_iter()
        .map(|(section, charged)| RangeCost {
            section: sections[section].title(),
            offset: charged.offset,
            len: charged.len,
            address: address_of(&sections[section].address_ranges, charged.offset),
            new_stored_bytes: charged.new,
            borrowed_stored_bytes: charged.borrowed,
        })
        .collect()
}

/// The address that a byte of the section belongs to.
fn address_of(ranges: &[AddressRange], offset: u64) -> Option<u64> {
    let holds = |range: &&AddressRange| {
        offset >= range.section_offset && offset - range.section_offset < range.length
    };
    let range = ranges.iter().find(holds)?;
    Some(range.start + (offset - range.section_offset))
}

pub(super) fn longest_duplicates(
    owners: &Owners,
    attribution: &mut Attribution<'_>,
    top: usize,
) -> Vec<Duplicate> {
    attribution.repeated.sort_unstable_by_key(|r| r.rank());
    let longest = attribution.repeated.iter().take(top);
    longest
        .map(|repeated| Duplicate {
            at: owners.place(repeated.section as usize, repeated.offset),
            of: owners.place(repeated.of_section as usize, repeated.of_offset),
            len: repeated.len,
            bytes: repeated.bytes,
        })
        .collect()
}
