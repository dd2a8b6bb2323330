//! Device memory for podsnap: what a GPU looks like to a save and a restore, and a device made of host memory.
//!
//! A [`Device`] has allocations at device addresses and copies bytes between them and pinned host memory on streams, in order
//! within a stream and in any order between streams. This crate knows nothing of snapshots; the engine's `DeviceMemory` is a
//! section source and a target over any device. [`HostDevice`] behaves like a device to the byte, so that everything
//! above can be tested on machines without one. A device behind CUDA's driver will implement the same trait.
#![forbid(unsafe_code)]

mod host;

pub use host::HostDevice;

/// An allocation in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allocation {
    /// Device address of its first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A queue of copies that happen one after another. Numbers from 0 up to [`Device::streams`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

/// What can go wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A copy outside of every allocation.
    #[error("{len} bytes at device address {address:#x} are in no allocation")]
    OutOfBounds {
        /// First address of the copy.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The device has no such stream.
    #[error("the device has {streams} streams, there is no number {stream}")]
    NoSuchStream {
        /// The stream asked for.
        stream: usize,
        /// Streams there are.
        streams: usize,
    },
    /// An allocation that does not fit.
    #[error("the device has no room for {len} bytes")]
    OutOfMemory {
        /// Length in bytes.
        len: u64,
    },
}

/// Pinned host memory that a device can copy to and from.
pub trait Staging: Send {
    /// The bytes. Valid to read once the copy into them was waited for.
    fn bytes(&self) -> &[u8];

    /// The bytes, to be filled before they are copied to the device.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// A device with memory of its own. All calls may come from any thread.
pub trait Device: Send + Sync {
    /// Every allocation, in ascending order of addresses.
    fn allocations(&self) -> Vec<Allocation>;

    /// How many streams there are; at least one.
    fn streams(&self) -> usize;

    /// Pinned host memory of `len` bytes. Pinning is slow: allocate a few and use them again.
    fn staging(&self, len: usize) -> Result<Box<dyn Staging>, DeviceError>;

    /// Copies `len` bytes at `address` into the start of `staging` and waits for them.
    fn copy_to_host(
        &self,
        stream: Stream,
        address: u64,
        staging: &mut dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError>;

    /// Copies the first `len` bytes of `staging` to `address` and waits until they are there.
    fn copy_to_device(
        &self,
        stream: Stream,
        address: u64,
        staging: &dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError>;
}
