//! What is to be served where: addresses of a process and the bytes of the section that belong there, kept true while the process drops,
//! moves and unmaps pages.

use std::{ops::Range, sync::Arc};

use super::present::Present;
use crate::error::{Error, Result};

/// Most of what a fault installs beside the page it is about, in bytes.
pub(super) const WINDOW: u64 = 64 << 10;

/// The smallest page.
pub(super) const PAGE: u64 = 4096;

/// The largest page that is served.
const MAX_PAGE: u64 = 2 << 20;

/// A stretch of memory that holds a stretch of the section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Where it is in the memory of the process that is served.
    pub addresses: Range<u64>,
    /// Where its bytes begin in the section.
    pub section_offset: u64,
    /// Size of its pages in bytes: 4096, or 2 MiB for huge pages of hugetlbfs.
    pub page_size: u64,
}

/// What belongs into pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The section's bytes from here on.
    Section(u64),
    /// Zeros: the process dropped the pages.
    Zeros,
}

/// Pages one after another that have one content.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub range: Range<u64>,
    pub content: Content,
    pub page_size: u64,
    /// The pages that are there, of this mapping and of others.
    present: Arc<Present>,
    /// Number of its first page among them.
    first_page: u64,
}

/// All mappings of one process, in order.
#[derive(Debug)]
pub(super) struct Table {
    mappings: Vec<Mapping>,
    /// Changes whenever they do.
    pub generation: u64,
}

/// What there is to do about a page.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub page: Range<u64>,
    /// The page and what of its surroundings is not there yet.
    pub window: Range<u64>,
    /// What belongs at the beginning of the window.
    pub content: Content,
    pub page_size: u64,
    pub generation: u64,
}

/// Pages that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Absent {
    /// What belongs there.
    pub section: Range<u64>,
    /// Where that is.
    pub address: u64,
    pub page_size: u64,
}

impl Mapping {
    fn part(&self, range: Range<u64>) -> Self {
        let skipped = range.start - self.range.start;
        Self {
            content: self.content_at(range.start),
            first_page: self.first_page + skipped / self.page_size,
            range,
            ..self.clone()
        }
    }

    fn content_at(&self, address: u64) -> Content {
        match self.content {
            Content::Section(offset) => Content::Section(offset + (address - self.range.start)),
            Content::Zeros => Content::Zeros,
        }
    }

    fn page_number(&self, address: u64) -> u64 {
        self.first_page + (address - self.range.start) / self.page_size
    }

    fn address(&self, page_number: u64) -> u64 {
        self.range.start + (page_number - self.first_page) * self.page_size
    }

    /// The first range within these addresses whose pages are not there.
    pub fn next_absent(&self, within: &Range<u64>) -> Option<Range<u64>> {
        let within = within.start.max(self.range.start)..within.end.min(self.range.end);
        if within.start >= within.end {
            return None;
        }
        let last = self.page_number(within.end - 1) + 1;
        let start = self
            .present
            .find(false, self.page_number(within.start), last);
        let end = self.present.find(true, start, last);
        (start < end).then(|| self.address(start)..self.address(end))
    }
}

impl Table {
    /// The regions of a section of `section_len` bytes. A last page may reach beyond the section's end: there are zeros.
    pub fn new(regions: &[Region], section_len: u64) -> Result<Self> {
        for region in regions {
            check(region, section_len)?;
        }
        let mut sorted: Vec<&Region> = regions.iter().collect();
        sorted.sort_by_key(|region| region.section_offset);
        let section_end = |r: &Region| r.section_offset + (r.addresses.end - r.addresses.start);
        // They share no bytes, so what is kept of them is bounded by the section.
        if let Some(two) = sorted
            .windows(2)
            .find(|two| section_end(two[0]) > two[1].section_offset)
        {
            return Err(bad(
                two[1],
                "has bytes of the section that another has, too",
            ));
        }
        sorted.sort_by_key(|region| region.addresses.start);
        if let Some(two) = sorted
            .windows(2)
            .find(|two| two[0].addresses.end > two[1].addresses.start)
        {
            return Err(bad(two[1], "overlaps another"));
        }
        let pages = |r: &Region| (r.addresses.end - r.addresses.start) / r.page_size;
        let present = Arc::new(Present::new(sorted.iter().map(|r| pages(r)).sum()));
        let mut next_page = 0;
        let mappings = sorted.into_iter().map(|region| {
            let first_page = next_page;
            next_page += pages(region);
            Mapping {
                content: Content::Section(region.section_offset),
                page_size: region.page_size,
                present: present.clone(),
                first_page,
                range: region.addresses.clone(),
            }
        });
        Ok(Self {
            mappings: mappings.collect(),
            generation: 0,
        })
    }

    /// The first pages, in the section's order, that hold any of these bytes of it and are not there.
    pub fn next_absent(&self, section: &Range<u64>) -> Option<Absent> {
        let absent = self.mappings.iter().filter_map(|mapping| {
            let Content::Section(offset) = mapping.content else {
                return None;
            };
            let at = |in_section: u64| {
                mapping
                    .range
                    .start
                    .saturating_add(in_section.saturating_sub(offset))
            };
            let absent = mapping.next_absent(&(at(section.start)..at(section.end)))?;
            let start = offset + (absent.start - mapping.range.start);
            Some(Absent {
                section: start..start + (absent.end - absent.start),
                address: absent.start,
                page_size: mapping.page_size,
            })
        });
        absent.min_by_key(|absent| absent.section.start)
    }

    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn find(&self, address: u64) -> Option<&Mapping> {
        let index = self.mappings.partition_point(|m| m.range.end <= address);
        self.mappings
            .get(index)
            .filter(|m| m.range.start <= address)
    }

    /// What belongs where a thread waits at `address`; `None` if nothing is known of it.
    pub fn place(&self, address: u64) -> Option<Place> {
        let mapping = self.find(address)?;
        let size = mapping.page_size;
        let start = address - (address - mapping.range.start) % size;
        let page = start..start + size;
        let block = address - address % WINDOW;
        let within = block.max(mapping.range.start)..(block + WINDOW).min(mapping.range.end);
        let mut window = page.clone();
        if size < WINDOW {
            let first = mapping.page_number(within.start);
            let (this, last) = (
                mapping.page_number(start),
                mapping.page_number(within.end - 1) + 1,
            );
            let absent = |number: &u64| !mapping.present.has(*number);
            let before = (first..this).rev().take_while(absent).count() as u64;
            let behind = (this + 1..last).take_while(absent).count() as u64;
            window = start - before * size..page.end + behind * size;
        }
        Some(Place {
            content: mapping.content_at(window.start),
            page,
            window,
            page_size: size,
            generation: self.generation,
        })
    }

    /// Notes that pages are there; returns the number of bytes that were not before. They are within one mapping.
    pub fn installed(&self, range: &Range<u64>) -> u64 {
        self.find(range.start).map_or(0, |mapping| {
            let end = range.end.min(mapping.range.end);
            let pages = mapping.page_number(range.start)..mapping.page_number(end - 1) + 1;
            mapping.present.add(pages) * mapping.page_size
        })
    }

    /// The process dropped pages.
    pub fn remove(&mut self, range: &Range<u64>) {
        let cut = self.cut(range);
        self.insert(cut.into_iter().map(|mapping| Mapping {
            content: Content::Zeros,
            ..mapping
        }));
    }

    /// The process unmapped pages.
    pub fn unmap(&mut self, range: &Range<u64>) {
        self.cut(range);
    }

    /// The process moved pages. Where they were is nothing, or if it is kept mapped, zeros.
    pub fn remap(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.cut(&(from..from.saturating_add(len)));
        self.cut(&(to..to.saturating_add(len)));
        self.insert(moved.iter().map(|mapping| Mapping {
            content: Content::Zeros,
            ..mapping.clone()
        }));
        self.insert(moved.into_iter().map(|mapping| {
            let start = to + (mapping.range.start - from);
            Mapping {
                range: start..start + (mapping.range.end - mapping.range.start),
                ..mapping
            }
        }));
    }

    /// The same for a child of the process, which has the pages that are there now.
    pub fn fork(&self) -> Self {
        let first = self.mappings.first();
        let present = first.map(|mapping| Arc::new(mapping.present.copy()));
        let own = |(mapping, present): (&Mapping, &Arc<Present>)| Mapping {
            present: present.clone(),
            ..mapping.clone()
        };
        let all = self.mappings.iter().zip(present.iter().cycle());
        Self {
            mappings: all.map(own).collect(),
            generation: 0,
        }
    }

    /// Takes a range out.
    fn cut(&mut self, range: &Range<u64>) -> Vec<Mapping> {
        self.generation += 1;
        let (mut kept, mut cut) = (Vec::with_capacity(self.mappings.len() + 1), Vec::new());
        for mapping in self.mappings.drain(..) {
            let start = range.start.clamp(mapping.range.start, mapping.range.end);
            let end = range.end.clamp(start, mapping.range.end);
            if start == end {
                kept.push(mapping);
                continue;
            }
            if mapping.range.start < start {
                kept.push(mapping.part(mapping.range.start..start));
            }
            cut.push(mapping.part(start..end));
            if end < mapping.range.end {
                kept.push(mapping.part(end..mapping.range.end));
            }
        }
        self.mappings = kept;
        cut
    }

    fn insert(&mut self, mappings: impl Iterator<Item = Mapping>) {
        self.mappings.extend(mappings);
        self.mappings.sort_by_key(|mapping| mapping.range.start);
    }
}

fn bad(region: &Region, why: &str) -> Error {
    let Range { start, end } = region.addresses;
    Error::invalid(format!("the region {start:#x}..{end:#x} {why}"))
}

/// Regions may come from a stranger.
fn check(region: &Region, section_len: u64) -> Result<()> {
    let Range { start, end } = region.addresses;
    let size = region.page_size;
    if !size.is_power_of_two() || !(PAGE..=MAX_PAGE).contains(&size) {
        return Err(bad(region, &format!("has pages of {size} bytes"))
            .hint("pages of 4096 bytes and of 2 MiB are served"));
    }
    if start >= end {
        return Err(bad(region, "is empty or ends before its beginning"));
    }
    if start % size != 0 || end % size != 0 {
        return Err(bad(
            region,
            &format!("is not made of whole pages of {size} bytes"),
        ));
    }
    let section_end = region.section_offset.checked_add(end - start);
    match section_end {
        Some(section_end) if section_end.div_ceil(size) <= section_len.div_ceil(size) => Ok(()),
        _ => {
            let why = format!(
                "has {} bytes from {} of a section that has {section_len}",
                end - start,
                region.section_offset
            );
            Err(bad(region, &why).hint("the memory is larger than what was saved, or another one"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn region(start: u64, len: u64, section_offset: u64) -> Region {
        Region {
            addresses: start..start + len,
            section_offset,
            page_size: PAGE,
        }
    }

    fn table() -> Table {
        let regions = [
            region(1024 * K, 256 * K, 0),
            region(2048 * K, 64 * K, 256 * K),
        ];
        Table::new(&regions, 320 * K).unwrap()
    }

    fn content(table: &Table, address: u64) -> Option<Content> {
        let place = table.place(address)?;
        Some(match place.content {
            Content::Section(at) => Content::Section(at + (place.page.start - place.window.start)),
            Content::Zeros => Content::Zeros,
        })
    }

    #[test]
    fn a_window_stays_in_its_block_and_beside_what_is_there() {
        let table = table();
        let place = table.place(1024 * K + 70 * K + 5).unwrap();
        assert_eq!(place.page, 1024 * K + 68 * K..1024 * K + 72 * K);
        assert_eq!(place.window, 1024 * K + 64 * K..1024 * K + 128 * K);
        assert_eq!(place.content, Content::Section(64 * K));
        assert_eq!(table.installed(&(1092 * K - 4 * K..1092 * K)), 4 * K);
        assert_eq!(table.installed(&(1100 * K..1104 * K)), 4 * K);
        let place = table.place(1024 * K + 70 * K).unwrap();
        assert_eq!(place.window, 1092 * K..1100 * K);
        assert_eq!(table.place(1024 * K - 1).map(|_| ()), None);
        assert_eq!(table.place(1280 * K).map(|_| ()), None);
    }

    #[test]
    fn dropped_moved_and_unmapped_pages_are_known_as_such() {
        let mut table = table();
        table.remove(&(1040 * K..1056 * K));
        assert_eq!(content(&table, 1036 * K), Some(Content::Section(12 * K)));
        assert_eq!(content(&table, 1040 * K), Some(Content::Zeros));
        assert_eq!(content(&table, 1056 * K), Some(Content::Section(32 * K)));
        table.remap(1024 * K, 4096 * K, 64 * K);
        assert_eq!(
            content(&table, 4096 * K + 12 * K),
            Some(Content::Section(12 * K))
        );
        assert_eq!(content(&table, 4096 * K + 16 * K), Some(Content::Zeros));
        assert_eq!(content(&table, 1036 * K), Some(Content::Zeros));
        table.unmap(&(1024 * K..1088 * K));
        assert_eq!(content(&table, 1036 * K), None);
        assert_eq!(content(&table, 1088 * K), Some(Content::Section(64 * K)));
    }

    #[test]
    fn what_is_there_follows_the_pages() {
        let mut table = table();
        table.installed(&(1028 * K..1032 * K));
        table.remap(1024 * K, 4096 * K, 16 * K);
        let fork = table.fork();
        table.installed(&(4096 * K..4100 * K));
        let moved = table.mappings().last().unwrap();
        assert_eq!(moved.next_absent(&(0..u64::MAX)), Some(4104 * K..4112 * K));
        let moved = fork.mappings().last().unwrap();
        assert_eq!(moved.next_absent(&(0..u64::MAX)), Some(4096 * K..4100 * K));
    }

    #[test]
    fn refuses_regions_that_make_no_sense() {
        let refused = |regions: &[Region]| Table::new(regions, 320 * K).unwrap_err().to_string();
        let bad = [
            (vec![region(1024 * K, 324 * K, 0)], "a section that has"),
            (
                vec![region(1024 * K, 4 * K, u64::MAX - 4095)],
                "a section that has",
            ),
            (vec![region(1024 * K, 0, 0)], "is empty"),
            (vec![region(1024 * K + 1, 4 * K, 0)], "whole pages"),
            (
                vec![region(1024 * K, 8 * K, 0), region(1028 * K, 4 * K, 8 * K)],
                "overlaps",
            ),
            (
                vec![region(1024 * K, 8 * K, 0), region(2048 * K, 8 * K, 4 * K)],
                "another has, too",
            ),
        ];
        for (regions, why) in bad {
            assert!(refused(&regions).contains(why), "{regions:?}");
        }
        for page_size in [0, 1, 2048, 4097, 4 << 20] {
            let region = Region {
                page_size,
                ..region(1024 * K, 8 * K, 0)
            };
            assert!(refused(&[region]).contains("pages of"), "{page_size}");
        }
        // A last page may be cut by the section's end.
        assert!(Table::new(&[region(1024 * K, 320 * K, 0)], 320 * K - 100).is_ok());
    }
}
