//! Device memory as a section: read by a save, written by a restore, through staging buffers and over all streams of the device.
//!
//! A section of device memory is the device's allocations one after another, with their addresses. It comes back at the same
//! addresses: whoever restores makes the allocations first. What a device is, [`podsnap_gpu`] says.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use podsnap_format::{
    Role,
    manifest::{AddressRange, SectionInfo},
};
use podsnap_gpu::{Allocation, Device, DeviceError, Staging, Stream};

use crate::{
    error::{Error, ErrorKind, Result},
    restore::Target,
    save::NewSection,
    source::{Input, Source},
    tree::RestoreWarning,
};

/// Bytes of pinned memory for each stream: what a save reads at once.
const STAGING_LEN: usize = 4 << 20;

/// Memory of a device, as the source of a save or the target of a restore.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use podsnap::{RestoreOptions, SaveOptions, Store, device::DeviceMemory, gpu::HostDevice};
///
/// let store = Store::open("memory://device")?;
/// # let id = "gpu-1".parse()?;
/// let device = Arc::new(HostDevice::new(1 << 30, 2));
/// device.allocate(1 << 20)?;
/// let mut writer = store.save(&id, SaveOptions::default()).await?;
/// writer.add(DeviceMemory::all(device)?.section("0")).await?;
/// writer.finish().await?;
///
/// // Elsewhere, on a device with the same allocations.
/// let device = Arc::new(HostDevice::new(1 << 30, 2));
/// device.allocate(1 << 20)?;
/// let snapshot = store.snapshot(&id).await?;
/// let memory = Arc::new(DeviceMemory::of_section(device, &snapshot.sections()[0])?);
/// snapshot.restore_to(&store, vec![(0, memory)], &RestoreOptions::default()).await?;
/// # Ok(()) }
/// ```
pub struct DeviceMemory {
    device: Arc<dyn Device>,
    /// In the order of the section, without gaps.
    ranges: Vec<AddressRange>,
    len: u64,
    staging: Ring,
    written: Mutex<Written>,
}

impl DeviceMemory {
    /// All allocations of a device, in the order of their addresses.
    pub fn all(device: Arc<dyn Device>) -> Result<Self> {
        let (mut ranges, mut len) = (Vec::new(), 0);
        for allocation in device.allocations().iter().filter(|a| a.len > 0) {
            ranges.push(AddressRange {
                start: allocation.address,
                length: allocation.len,
                section_offset: len,
            });
            len += allocation.len;
        }
        Self::new(device, ranges, len)
    }

    /// The memory that `section` was saved from, at the same addresses of `device`; an error unless all of it is allocated there.
    pub fn of_section(device: Arc<dyn Device>, section: &SectionInfo) -> Result<Self> {
        let mut ranges = section.address_ranges.clone();
        ranges.sort_unstable_by_key(|range| range.section_offset);
        let mut end = 0;
        for range in &ranges {
            if range.section_offset != end {
                break;
            }
            end += range.length;
        }
        if end != section.length {
            return Err(Error::invalid(format!(
                "{} is no device memory: its bytes from {end} on have no address, or several",
                section.title()
            )));
        }
        let memory = Self::new(device, ranges, section.length)?;
        memory.check_allocated(ErrorKind::Target)?;
        Ok(memory)
    }

    fn new(device: Arc<dyn Device>, ranges: Vec<AddressRange>, len: u64) -> Result<Self> {
        let staging = Ring::new(&*device)
            .map_err(|e| Error::new(ErrorKind::Source, "no memory can be pinned").because(e))?;
        Ok(Self {
            device,
            ranges,
            len,
            staging,
            written: Mutex::default(),
        })
    }

    /// It as a section of role `gpu`, with its addresses.
    pub fn section(self, name: impl Into<String>) -> NewSection {
        let address_ranges = self.ranges.clone();
        NewSection {
            address_ranges,
            ..NewSection::blob(Role::Gpu, name, Input::Source(Arc::new(self)))
        }
    }

    fn check_allocated(&self, kind: ErrorKind) -> Result<()> {
        let allocations = self.device.allocations();
        let covers = |allocation: &Allocation, range: &AddressRange| {
            let skip = range.start.checked_sub(allocation.address);
            skip.and_then(|skip| skip.checked_add(range.length))
                .is_some_and(|end| end <= allocation.len)
        };
        match self
            .ranges
            .iter()
            .find(|range| !allocations.iter().any(|a| covers(a, range)))
        {
            None => Ok(()),
            Some(range) => Err(Error::new(
                kind,
                format!(
                    "the device has no allocation of {} bytes at {:#x}",
                    range.length, range.start
                ),
            )
            .hint("its memory must be allocated at the same addresses as when it was saved")),
        }
    }

    /// Goes through `range` of the section in pieces that lie in one allocation and fit a staging buffer: calls `copy` with the place of
    /// each piece within the range, its address, and a buffer.
    fn pieces(
        &self,
        range: Range<u64>,
        mut copy: impl FnMut(Range<usize>, u64, Stream, &mut dyn Staging) -> Result<(), DeviceError>,
    ) -> Result<(), (u64, DeviceError)> {
        let mut at = range.start;
        let mut number = self
            .ranges
            .partition_point(|r| r.section_offset + r.length <= at);
        let mut slot = self.staging.take();
        while at < range.end {
            let part = &self.ranges[number];
            let skip = at - part.section_offset;
            let len = (part.length - skip)
                .min(range.end - at)
                .min(STAGING_LEN as u64);
            let from = (at - range.start) as usize;
            let address = part.start + skip;
            let (stream, staging) = slot.parts();
            copy(from..from + len as usize, address, stream, staging).map_err(|e| (address, e))?;
            at += len;
            number += usize::from(skip + len == part.length);
        }
        Ok(())
    }

    fn check_within(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(offset..end),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset} are outside of device memory of {} bytes",
                self.len
            ))),
        }
    }

    fn failed_to_write((address, e): (u64, DeviceError)) -> Error {
        Error::new(
            ErrorKind::Target,
            format!("cannot write device memory at {address:#x}"),
        )
        .because(e)
    }
}

impl Source for DeviceMemory {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = self.check_within(offset, buf.len())?;
        let read = self.pieces(range, |place, address, stream, staging| {
            let len = place.len();
            self.device.copy_to_host(stream, address, staging, len)?;
            buf[place].copy_from_slice(&staging.bytes()[..len]);
            Ok(())
        });
        read.map_err(|(address, e)| {
            Error::new(
                ErrorKind::Source,
                format!("cannot read device memory at {address:#x}"),
            )
            .because(e)
        })
    }

    /// That everything is still allocated. Whether its bytes changed cannot be told: the device must be at rest.
    fn check_unchanged(&self) -> Result<()> {
        self.check_allocated(ErrorKind::Source)
    }
}

impl Target for DeviceMemory {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let range = self.check_within(offset, bytes.len())?;
        self.pieces(range.clone(), |place, address, stream, staging| {
            let len = place.len();
            staging.bytes_mut()[..len].copy_from_slice(&bytes[place]);
            self.device.copy_to_device(stream, address, staging, len)
        })
        .map_err(Self::failed_to_write)?;
        self.written.lock().expect("no panic while held").add(range);
        Ok(())
    }

    /// Clears what was not written: fresh device memory holds anything.
    fn finish(&self) -> Result<Vec<RestoreWarning>> {
        let gaps = self
            .written
            .lock()
            .expect("no panic while held")
            .gaps(self.len);
        for gap in gaps {
            self.pieces(gap, |place, address, stream, staging| {
                let len = place.len();
                staging.bytes_mut()[..len].fill(0);
                self.device.copy_to_device(stream, address, staging, len)
            })
            .map_err(Self::failed_to_write)?;
        }
        Ok(Vec::new())
    }
}

/// The ranges that were written, joined where they meet.
#[derive(Default)]
struct Written(BTreeMap<u64, u64>);

impl Written {
    fn add(&mut self, range: Range<u64>) {
        let Range { mut start, mut end } = range;
        if let Some((before, before_end)) = self.0.range(..=start).next_back()
            && *before_end >= start
        {
            (start, end) = (*before, end.max(*before_end));
        }
        while let Some((next, next_end)) = self.0.range(start..=end).next() {
            let (next, next_end) = (*next, *next_end);
            end = end.max(next_end);
            self.0.remove(&next);
        }
        self.0.insert(start, end);
    }

    /// What was not written of `len` bytes.
    fn gaps(&self, len: u64) -> Vec<Range<u64>> {
        let starts = [0].into_iter().chain(self.0.values().copied());
        let ends = self.0.keys().copied().chain([len]);
        starts
            .zip(ends)
            .map(|(start, end)| start..end)
            .filter(|gap| !gap.is_empty())
            .collect()
    }
}

/// One staging buffer for each stream; who copies takes one and waits if there is none.
struct Ring {
    free: Receiver<(Stream, Box<dyn Staging>)>,
    back: Sender<(Stream, Box<dyn Staging>)>,
}

impl Ring {
    fn new(device: &dyn Device) -> Result<Self, DeviceError> {
        let streams = device.streams().max(1);
        let (back, free) = bounded(streams);
        for stream in 0..streams {
            let slot = (Stream(stream), device.staging(STAGING_LEN)?);
            let _ = back.try_send(slot);
        }
        Ok(Self { free, back })
    }

    fn take(&self) -> Slot<'_> {
        Slot {
            parts: self.free.recv().ok(),
            ring: self,
        }
    }
}

struct Slot<'a> {
    /// Taken only when it is dropped.
    parts: Option<(Stream, Box<dyn Staging>)>,
    ring: &'a Ring,
}

impl Slot<'_> {
    fn parts(&mut self) -> (Stream, &mut dyn Staging) {
        let (stream, staging) = self.parts.as_mut().expect("the ring keeps a sender");
        (*stream, &mut **staging)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            let _ = self.ring.back.try_send(parts);
        }
    }
}
