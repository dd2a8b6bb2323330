//! Device memory is saved over all streams of a device and comes back at the same addresses, bit for bit.

mod support;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
};

use podsnap::{
    ErrorKind, NewSection, RestoreOptions, Role, SaveOptions, Snapshot, Store,
    device::DeviceMemory,
    format::manifest::AddressRange,
    gpu::{Allocation, Device, DeviceError, HostDevice, Staging, Stream},
    restore::Target,
    source::Source,
};
use support::*;

/// A device that notes how it is used.
struct Noted {
    inner: HostDevice,
    /// Copies under way on each stream, and all there were.
    streams: Vec<(AtomicBool, AtomicUsize)>,
    buffers: AtomicUsize,
    written: AtomicUsize,
    /// The last allocation is gone.
    freed: AtomicBool,
}

const STREAMS: usize = 3;

impl Noted {
    /// A device with allocations of these lengths, filled with `filling`.
    fn new(lens: &[u64], filling: u8) -> Arc<Self> {
        let inner = HostDevice::new(1 << 30, STREAMS);
        for len in lens {
            inner.allocate(*len).unwrap();
        }
        let device = Self {
            inner,
            streams: (0..STREAMS).map(|_| Default::default()).collect(),
            buffers: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            freed: AtomicBool::new(false),
        };
        let allocations = device.inner.allocations();
        for (allocation, len) in allocations.iter().zip(lens) {
            device.put(allocation, &vec![filling; *len as usize]);
        }
        Arc::new(device)
    }

    fn put(&self, allocation: &Allocation, bytes: &[u8]) {
        let mut staging = self.inner.staging(bytes.len()).unwrap();
        staging.bytes_mut().copy_from_slice(bytes);
        let (address, len) = (allocation.address, bytes.len());
        self.inner
            .copy_to_device(Stream(0), address, &*staging, len)
            .unwrap();
    }

    /// The bytes of all allocations.
    fn bytes(&self) -> Vec<Vec<u8>> {
        let read = |allocation: &Allocation| {
            let len = allocation.len as usize;
            let mut staging = self.inner.staging(len).unwrap();
            self.inner
                .copy_to_host(Stream(0), allocation.address, &mut *staging, len)
                .unwrap();
            staging.bytes().to_vec()
        };
        self.inner.allocations().iter().map(read).collect()
    }

    /// Copies on one stream come one after another.
    fn on_stream<T>(&self, stream: Stream, copy: impl FnOnce() -> T) -> T {
        let (busy, count) = &self.streams[stream.0];
        assert!(!busy.swap(true, SeqCst), "{stream:?} is busy");
        count.fetch_add(1, SeqCst);
        let done = copy();
        busy.store(false, SeqCst);
        done
    }

    fn used_streams(&self) -> usize {
        let used = self.streams.iter();
        used.filter(|(_, count)| count.load(SeqCst) > 0).count()
    }
}

impl Device for Noted {
    fn allocations(&self) -> Vec<Allocation> {
        let mut allocations = self.inner.allocations();
        if self.freed.load(SeqCst) {
            allocations.pop();
        }
        allocations
    }

    fn streams(&self) -> usize {
        self.inner.streams()
    }

    fn staging(&self, len: usize) -> Result<Box<dyn Staging>, DeviceError> {
        self.buffers.fetch_add(1, SeqCst);
        self.inner.staging(len)
    }

    fn copy_to_host(
        &self,
        stream: Stream,
        address: u64,
        staging: &mut dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError> {
        self.on_stream(stream, || {
            self.inner.copy_to_host(stream, address, staging, len)
        })
    }

    fn copy_to_device(
        &self,
        stream: Stream,
        address: u64,
        staging: &dyn Staging,
        len: usize,
    ) -> Result<(), DeviceError> {
        self.written.fetch_add(len, SeqCst);
        self.on_stream(stream, || {
            self.inner.copy_to_device(stream, address, staging, len)
        })
    }
}

const LENS: [u64; 4] = [9 << 20, 1_000_003, 6 << 20, 512];

/// A device with weights, something of odd length, mostly zeros, and little.
fn device() -> Arc<Noted> {
    let device = Noted::new(&LENS, 0);
    let mut zeros = vec![0; LENS[2] as usize];
    zeros[3 << 20..][..100_000].copy_from_slice(&noise(3, 100_000));
    let contents = [
        noise(1, LENS[0] as usize),
        text(2, LENS[1] as usize),
        zeros,
        noise(4, LENS[3] as usize),
    ];
    for (allocation, bytes) in device.inner.allocations().iter().zip(&contents) {
        device.put(allocation, bytes);
    }
    device
}

fn section(device: &Arc<Noted>) -> NewSection {
    DeviceMemory::all(device.clone()).unwrap().section("0")
}

async fn saved(name: &str, device: &Arc<Noted>) -> (Store, Snapshot) {
    let store = Store::open(&format!("memory://device-{name}")).unwrap();
    save(&store, "s", vec![section(device)], SaveOptions::default())
        .await
        .unwrap();
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    (store, snapshot)
}

fn memory(device: &Arc<Noted>, snapshot: &Snapshot) -> Arc<DeviceMemory> {
    Arc::new(DeviceMemory::of_section(device.clone(), &snapshot.sections()[0]).unwrap())
}

fn assert_same(found: &Noted, expected: &Noted) {
    for (number, (found, expected)) in found.bytes().iter().zip(expected.bytes()).enumerate() {
        assert_bytes(found, &expected, &format!("allocation {number}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_comes_back_at_its_addresses() {
    let device = device();
    let (store, snapshot) = saved("whole", &device).await;
    let info = &snapshot.sections()[0];
    assert_eq!((info.role, info.name.as_str()), (Role::Gpu, "0"));
    let mut offset = 0;
    let ranges = device.inner.allocations().into_iter().map(|allocation| {
        offset += allocation.len;
        AddressRange {
            start: allocation.address,
            length: allocation.len,
            section_offset: offset - allocation.len,
        }
    });
    assert_eq!(info.address_ranges, ranges.collect::<Vec<_>>());

    // Fresh device memory holds anything, where zeros belong as well.
    let other = Noted::new(&LENS, 0xaa);
    let target = memory(&other, &snapshot);
    let stats = snapshot
        .restore_to(&store, vec![(0, target)], &RestoreOptions::default())
        .await
        .unwrap();
    assert!(stats.zero_bytes > 4 << 20, "{stats:?}");
    assert_same(&other, &device);
    assert_eq!(
        other.written.load(SeqCst) as u64,
        LENS.iter().sum::<u64>(),
        "every byte crosses once"
    );
    for device in [&device, &other] {
        // Pinning is slow: one buffer for each stream.
        assert_eq!(device.buffers.load(SeqCst), STREAMS);
    }

    // Saved again on itself it costs nothing.
    let again = save(&store, "t", vec![section(&other)], on_base("s"))
        .await
        .unwrap();
    assert_eq!(again.new_bytes, 0, "{again:?}");
}

/// Any part can be copied from any thread, and all streams are used.
#[test]
fn many_threads_copy_over_all_streams() {
    let (device, other) = (device(), Noted::new(&LENS, 0xaa));
    let from = DeviceMemory::all(device.clone()).unwrap();
    let to = DeviceMemory::all(other.clone()).unwrap();
    let len = from.len();
    let (next, order) = (AtomicUsize::new(0), Mutex::new(Noise(5)));
    // Pieces that have nothing to do with allocations or staging buffers, in random order.
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < len {
        let piece = (order.lock().unwrap().below(900_000) as u64 + 1).min(len - at);
        pieces.push((at, piece));
        at += piece;
    }
    for number in (1..pieces.len()).rev() {
        let swapped = order.lock().unwrap().below(number + 1);
        pieces.swap(number, swapped);
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((at, len)) = pieces.get(next.fetch_add(1, SeqCst)) {
                    let mut bytes = vec![0; *len as usize];
                    from.read_at(&mut bytes, *at).unwrap();
                    to.write_at(&bytes, *at).unwrap();
                }
            });
        }
    });
    let before = other.written.load(SeqCst);
    to.finish().unwrap();
    assert_eq!(other.written.load(SeqCst), before, "there was no gap");
    assert_same(&other, &device);
    assert_eq!(device.used_streams(), STREAMS);
    assert_eq!(other.used_streams(), STREAMS);
    let e = failure(from.read_at(&mut [0; 2], len - 1));
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
    let e = failure(to.write_at(&[0], u64::MAX));
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_other_allocations_is_not_written_to() {
    let device = device();
    let (store, snapshot) = saved("other", &device).await;
    for lens in [&LENS[..3], &[9 << 20, 1_000_003, 5 << 20, 512], &[]] {
        let other = Noted::new(lens, 0xaa);
        let opened = DeviceMemory::of_section(other.clone(), &snapshot.sections()[0]);
        let e = failure(opened.map(drop));
        assert_eq!(e.kind(), ErrorKind::Target, "{e}");
        assert!(e.to_string().contains("no allocation of"), "{e}");
        assert_eq!(other.written.load(SeqCst), 0);
    }
    // What has no addresses is no device memory.
    let e = {
        let sections = vec![blob("x", b"bytes")];
        save(&store, "blob", sections, SaveOptions::default())
            .await
            .unwrap();
        let snapshot = store.snapshot(&id("blob")).await.unwrap();
        failure(DeviceMemory::of_section(device, &snapshot.sections()[0]).map(drop))
    };
    assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_is_freed_during_the_save_fails_it() {
    let device = device();
    let store = Store::open("memory://device-freed").unwrap();
    let section = section(&device);
    device.freed.store(true, SeqCst);
    let e = failure(save(&store, "s", vec![section], SaveOptions::default()).await);
    assert_eq!(e.kind(), ErrorKind::Source, "{e}");
    let last = device.inner.allocations().pop().unwrap();
    assert!(
        e.to_string().contains(&format!("{:#x}", last.address)),
        "{e}"
    );
    assert_eq!(store.backend().list("").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_cleared_on_the_device() {
    let device = device();
    let (store, snapshot) = saved("lost", &device).await;
    let pack = format!("s/{}", snapshot.directory().packs[0].name);
    let backend = store.backend();
    let len = backend.head(&pack).await.unwrap().len;
    let whole = podsnap::store::ReadRange::Exact(0..len);
    let mut bytes = backend
        .read(&pack, whole, None)
        .await
        .unwrap()
        .bytes
        .to_vec();
    bytes[5 << 20] ^= 1;
    backend.delete(&pack, None).await.unwrap();
    let absent = podsnap::store::Condition::Absent;
    backend.put(&pack, bytes.into(), absent).await.unwrap();

    let other = Noted::new(&LENS, 0xaa);
    let options = RestoreOptions {
        salvage: true,
        ..RestoreOptions::default()
    };
    let targets = vec![(0, memory(&other, &snapshot) as Arc<dyn Target>)];
    let stats = snapshot
        .restore_to(&store, targets, &options)
        .await
        .unwrap();
    assert_eq!(stats.damage.len(), 1, "{stats:?}");
    let mut expected = device.bytes().concat();
    for lost in &stats.damage[0].lost {
        expected[lost.offset as usize..][..lost.len as usize].fill(0);
    }
    assert_bytes(&other.bytes().concat(), &expected, "the device");
}
