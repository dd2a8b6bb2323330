//! A device made of host memory, with addresses, allocations and bounds like a real one.

use std::sync::{Mutex, PoisonError};

use crate::{Allocation, Device, DeviceError, Staging, Stream};

/// Where the first allocation lies; nothing of a device is at address zero.
const FIRST_ADDRESS: u64 = 0x7f00_0000_0000;

/// Allocations start at multiples of this many bytes, as those of the CUDA driver do.
const ALIGNMENT: u64 = 2 << 20;

/// Device memory in host memory.
#[derive(Debug)]
pub struct HostDevice {
    capacity: u64,
    streams: usize,
    memory: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl HostDevice {
    /// A device of `capacity` bytes with that many streams (at least one).
    pub fn new(capacity: u64, streams: usize) -> Self {
        Self {
            capacity,
            streams: streams.max(1),
            memory: Mutex::default(),
        }
    }

    /// Allocates `len` bytes of zeros.
    pub fn allocate(&self, len: u64) -> Result<Allocation, DeviceError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let used: u64 = memory.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if len > self.capacity.saturating_sub(used) {
            return Err(DeviceError::OutOfMemory { len });
        }
        let end = memory
            .last()
            .map_or(FIRST_ADDRESS, |(start, bytes)| start + bytes.len() as u64);
        let address = end.next_multiple_of(ALIGNMENT);
        memory.push((address, vec![0; len as usize]));
        Ok(Allocation { address, len })
    }

    /// Runs `copy` on the `len` bytes at `address`, which must lie in one allocation.
    fn with(
        &self,
        stream: Stream,
        address: u64,
        len: usize,
        copy: impl FnOnce(&mut [u8]),
    ) -> Result<(), DeviceError> {
        if stream.0 >= self.streams {
            return Err(DeviceError::NoSuchStream {
                stream: stream.0,
                streams: self.streams,
            });
        }
        let out_of_bounds = DeviceError::OutOfBounds {
            address,
            len: len as u64,
        };
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = memory.partition_point(|(start, _)| *start <= address);
        let Some((start, bytes)) = behind.checked_sub(1).map(|i| &mut memory[i]) else {
            return Err(out_of_bounds);
        };
        let from = (address - *start) as usize;
        let range = from..from.saturating_add(len);
        copy(bytes.get_mut(range).ok_or(out_of_bounds)?);
        Ok(())
    }
}

struct HostStaging(Vec<u8>);

impl Staging for HostStaging {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Device for HostDevice {
    fn allocations(&self) -> Vec<Allocation> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory
            .iter()
            .map(|(address, bytes)| Allocation {
                address: *address,
                len: bytes.len() as u64,
            })
            .collect()
    }

    fn streams(&self) -> usize {
        self.streams
    }

    fn staging(&self, len: usize) -> Result<Box<dyn Staging>, DeviceError> {
        Ok(Box::new(HostStaging(vec![0; len])))
    }

    fn copy_to_host(
        &self,
        stream: Stream,
        address: u64,
        staging: &mut dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError> {
        self.with(stream, address, len, |bytes| {
            staging.bytes_mut()[..len].copy_from_slice(bytes)
        })
    }

    fn copy_to_device(
        &self,
        stream: Stream,
        address: u64,
        staging: &dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError> {
        self.with(stream, address, len, |bytes| {
            bytes.copy_from_slice(&staging.bytes()[..len])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_reach_the_right_bytes_and_nothing_else() {
        let device = HostDevice::new(1 << 20, 2);
        let (a, b) = (
            device.allocate(1000).unwrap(),
            device.allocate(2000).unwrap(),
        );
        let mut staging = device.staging(512).unwrap();
        staging.bytes_mut().fill(7);
        device
            .copy_to_device(Stream(1), b.address + 100, &*staging, 300)
            .unwrap();
        for (from, expected) in [
            (a.address, 0),
            (b.address, 0),
            (b.address + 100, 7),
            (b.address + 400, 0),
        ] {
            device
                .copy_to_host(Stream(0), from, &mut *staging, 100)
                .unwrap();
            assert!(
                staging.bytes()[..100].iter().all(|byte| *byte == expected),
                "at {from:#x}"
            );
        }
    }

    #[test]
    fn what_is_outside_is_refused() {
        let device = HostDevice::new(4096, 1);
        let a = device.allocate(1000).unwrap();
        let mut staging = device.staging(4096).unwrap();
        let outside = |address, len| Err(DeviceError::OutOfBounds { address, len });
        assert_eq!(
            device.copy_to_host(Stream(0), a.address + 999, &mut *staging, 2),
            outside(a.address + 999, 2)
        );
        assert_eq!(
            device.copy_to_host(Stream(0), a.address - 1, &mut *staging, 1),
            outside(a.address - 1, 1)
        );
        assert_eq!(
            device.copy_to_host(Stream(1), a.address, &mut *staging, 1),
            Err(DeviceError::NoSuchStream {
                stream: 1,
                streams: 1
            })
        );
        assert_eq!(
            device.allocate(4000),
            Err(DeviceError::OutOfMemory { len: 4000 })
        );
    }
}
