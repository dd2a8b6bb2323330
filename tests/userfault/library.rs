//! What a program that links the library has: a section as memory of its own, and as a memfd that many share.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use podsnap::{
    ErrorKind, Role, SectionReader, Store,
    store::{Backend, LocalBackend},
    userfault::{MappedSection, MemoryServer, Region, ServeOptions, SharedMemory, Userfault},
};
use tokio::sync::watch;

use crate::{
    HugePages, MIB,
    guest::{PAGE, can_serve, content},
    support::{
        Noise, assert_bytes,
        backend::{Call, Fate, Watched},
        id,
        tool::*,
    },
};

/// A store with a snapshot of [`content`], whose reads of packs wait while they are told to.
struct World {
    tool: Tool,
    watched: Watched,
    store: Store,
    go_on: watch::Sender<bool>,
    /// Reads of packs that need not wait.
    passes: Arc<AtomicUsize>,
    expected: Arc<Vec<u8>>,
}

impl World {
    fn new(len: usize) -> Self {
        let tool = Tool::new();
        let expected = content(len);
        tool.file("ram", &expected);
        tool.save("s", &["memory=ram"]);
        let (go_on, may) = watch::channel(true);
        let backend: Arc<dyn Backend> =
            Arc::new(LocalBackend::new(tool.path("store"), false).unwrap());
        let passes = Arc::new(AtomicUsize::new(0));
        let left = passes.clone();
        let watched = Watched::new(backend, move |call, name| match call {
            Call::Read if name.contains("/pack-") => {
                let passes = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
                passes.map_or_else(|_| Fate::Waits(may.clone()), |_| Fate::Done)
            }
            _ => Fate::Done,
        });
        Self {
            store: watched.store(),
            tool,
            watched,
            go_on,
            passes,
            expected: Arc::new(expected),
        }
    }

    async fn reader(&self) -> SectionReader {
        let snapshot = self.store.snapshot(&id("s")).await.unwrap();
        let section = snapshot.find_section(Role::Memory, "").unwrap();
        snapshot.reader(section)
    }

    /// Bytes of packs that were read since this was last asked.
    fn bytes_read(&self) -> u64 {
        let reads = self.watched.take_reads();
        reads
            .iter()
            .filter(|(name, _)| name.contains("/pack-"))
            .map(|(_, len)| len)
            .sum()
    }
}

/// Looks at bytes of memory that is served, on a thread that serves nothing.
async fn look(memory: &MappedSection, offset: usize, len: usize) -> Vec<u8> {
    let start = memory.as_ptr().expose_provenance() + offset;
    let looking = thread::spawn(move || {
        // SAFETY: the tests keep the memory until this has ended.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(start), len) }
            .to_vec()
    });
    tokio::task::spawn_blocking(|| looking.join().unwrap())
        .await
        .unwrap()
}

fn write(memory: &MappedSection, offset: usize, byte: u8) {
    // SAFETY: within the memory, which nobody looks at meanwhile. The page is there.
    unsafe { memory.as_ptr().add(offset).write(byte) };
}

fn unfilled() -> ServeOptions {
    let mut options = ServeOptions::default();
    options.fill = false;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_is_memory_of_this_process() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB + 77;
    let world = World::new(len);
    let memory = MappedSection::new(world.reader().await, ServeOptions::default()).unwrap();
    assert_eq!(memory.len(), len);
    let found = look(&memory, 0, len).await;
    assert_bytes(&found, &world.expected, "memory");
    memory.server().filled().await.unwrap();
    let progress = memory.server().progress();
    assert_eq!(progress.installed_bytes, progress.total_bytes);
    assert_eq!(
        progress.total_bytes,
        (len as u64).next_multiple_of(PAGE as u64)
    );
    assert_eq!(progress.failures, 0);
    // What is behind the section's end in its last page is zeros.
    assert!(look(&memory, len, PAGE - 77).await.iter().all(|b| *b == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_touched_is_fetched_and_what_came_along_is_installed() {
    if !can_serve() {
        return;
    }
    let world = World::new(32 * MIB);
    let memory = MappedSection::new(world.reader().await, unfilled()).unwrap();
    let mut noise = Noise(3);
    for _ in 0..20 {
        let page = noise.below(32 * MIB / PAGE) * PAGE;
        let found = look(&memory, page, PAGE).await;
        assert_bytes(&found, &world.expected[page..page + PAGE], "a page");
    }
    let read = world.bytes_read();
    assert!(read < 8 << 20, "{read} bytes were fetched for 20 pages");
    // A neighbour that is at hand comes with the first page's fault.
    let before = memory.server().progress();
    let zeros = (0..32 * MIB / PAGE / 16).map(|block| block * 16 * PAGE);
    let whole = |at: &usize| world.expected[*at..*at + 16 * PAGE].iter().all(|b| *b == 0);
    let block = zeros.clone().find(whole).expect("a block of zeros");
    look(&memory, block, 16 * PAGE).await;
    let after = memory.server().progress();
    assert!(after.faults <= before.faults + 1, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_store_holds_up_nobody_else() {
    if !can_serve() {
        return;
    }
    let world = World::new(16 * MIB);
    let reader = world.reader().await;
    // At hand, and not installed.
    let mut at_hand = vec![0; 2 * MIB];
    reader.read_at(&mut at_hand, 8 << 20).await.unwrap();
    let memory = MappedSection::new(reader, unfilled()).unwrap();
    world.go_on.send_replace(false);
    let start = memory.as_ptr().expose_provenance();
    let waiters: Vec<_> = (0..50)
        .map(|number| {
            thread::spawn(move || {
                let page = start + number * 32 * PAGE;
                // SAFETY: the memory is there until they have ended.
                unsafe { std::ptr::with_exposed_provenance::<u8>(page).read_volatile() }
            })
        })
        .collect();
    until("somebody reads", || world.watched.waiting() > 0).await;
    let found = look(&memory, 8 * MIB, 2 * MIB).await;
    assert_bytes(&found, &at_hand, "what was at hand");
    assert!(world.watched.waiting() > 0);
    world.go_on.send_replace(true);
    for (number, waiter) in waiters.into_iter().enumerate() {
        let found = tokio::task::spawn_blocking(|| waiter.join().unwrap())
            .await
            .unwrap();
        assert_eq!(found, world.expected[number * 32 * PAGE]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_named_is_filled_first() {
    if !can_serve() {
        return;
    }
    let world = World::new(16 * MIB);
    let reader = world.reader().await;
    let mut options = ServeOptions::default();
    options.first.push(0..1 << 40);
    let refused = MappedSection::new(reader.clone(), options.clone()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    options.first = vec![12 << 20..13 << 20, 4 << 20..(4 << 20) + 100];
    // Far fewer reads than all of it takes.
    world.passes.store(4, SeqCst);
    world.go_on.send_replace(false);
    let memory = MappedSection::new(reader.clone(), options).unwrap();
    until("the fill stalls", || world.watched.waiting() > 0).await;
    until("what came is there", || is_present(&memory, 12 * MIB)).await;
    assert!(!is_present(&memory, 0) && !is_present(&memory, 8 * MIB));
    world.go_on.send_replace(true);
    memory.server().filled().await.unwrap();
    let found = look(&memory, 0, 16 * MIB).await;
    assert_bytes(&found, &world.expected, "memory");
}

/// Whether a page is there, without touching it.
fn is_present(memory: &MappedSection, offset: usize) -> bool {
    let page = (memory.as_ptr().expose_provenance() + offset) / PAGE;
    let mut entry = [0; 8];
    let pagemap = fs::File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entry, page as u64 * 8).unwrap();
    u64::from_ne_bytes(entry) >> 63 == 1
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: never");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_that_waits_for_long_does_not_stop_the_fill() {
    if !can_serve() {
        return;
    }
    let len = 16 * MIB;
    let world = World::new(len);
    let shared = SharedMemory::new(world.reader().await, PAGE as u64).unwrap();
    let memory = MappedSection::of(&shared, unfilled()).unwrap();
    let data = |page: &usize| {
        world.expected[page * PAGE..][..PAGE]
            .iter()
            .any(|b| *b != 0)
    };
    let page = (0..len / PAGE).rev().find(data).expect("a page of data");
    world.go_on.send_replace(false);
    let start = memory.as_ptr().expose_provenance() + page * PAGE;
    let waiter = thread::spawn(move || {
        // SAFETY: the memory is there until this has ended.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(start), PAGE) }
            .to_vec()
    });
    until("it waits", || world.watched.waiting() > 0).await;
    // All reads but that one are answered.
    world.passes.store(1 << 40, SeqCst);
    let filled = shared.clone();
    let filling = tokio::spawn(async move { filled.fill(&[]).await });
    until("much is filled", || shared.filled_bytes() > 3 << 20).await;
    assert!(!waiter.is_finished() && !shared.is_filled());
    world.go_on.send_replace(true);
    filling.await.unwrap().unwrap();
    assert!(shared.is_filled());
    let found = tokio::task::spawn_blocking(|| waiter.join().unwrap())
        .await
        .unwrap();
    assert_bytes(&found, &world.expected[page * PAGE..][..PAGE], "a page");
}

/// Bytes of memory that private mappings of memfds have for themselves.
fn own_bytes() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut own = 0;
    let mut ours = false;
    for line in smaps.lines() {
        if line.contains(" rw-p ") || line.contains(" rw-s ") {
            ours = line.contains(" rw-p ") && line.contains("memfd:podsnap");
        } else if let (true, Some(rest)) = (ours, line.strip_prefix("Anonymous:")) {
            own += rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        }
    }
    own
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_a_memfd_share_what_they_do_not_write() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB + 5;
    let world = World::new(len);
    let shared = SharedMemory::new(world.reader().await, PAGE as u64).unwrap();
    let clones: Vec<_> = (0..6)
        .map(|number| {
            let mut options = ServeOptions::default();
            options.fill = number == 5;
            MappedSection::of(&shared, options).unwrap()
        })
        .collect();
    world.bytes_read();
    for clone in &clones {
        let found = look(clone, 0, len).await;
        assert_bytes(&found, &world.expected, "a clone");
    }
    clones[5].server().filled().await.unwrap();
    assert!(shared.is_filled());
    assert_eq!(shared.filled_bytes(), shared.len());
    let (read, stored) = (world.bytes_read(), stored_len(&world));
    assert!(
        read <= stored + stored / 4,
        "{read} bytes were read of {stored}"
    );
    let own = own_bytes();
    assert!(
        own <= len as u64 / 50,
        "clones have {own} bytes for themselves"
    );
    write(&clones[0], 5 * PAGE, !world.expected[5 * PAGE]);
    assert_eq!(
        look(&clones[0], 5 * PAGE, 1).await,
        [!world.expected[5 * PAGE]]
    );
    assert_bytes(
        &look(&clones[1], 0, len).await,
        &world.expected,
        "another clone",
    );
    assert_eq!(own_bytes(), own + PAGE as u64);
    // Nobody can change what they share.
    let writable = map_writable(&shared);
    assert_eq!(writable, Err(rustix::io::Errno::PERM));
    assert_eq!(
        rustix::io::pwrite(shared.as_fd(), b"x", 0),
        Err(rustix::io::Errno::PERM)
    );
    drop(clones);
    let late = MappedSection::of(&shared, ServeOptions::default()).unwrap();
    late.server().filled().await.unwrap();
    assert_bytes(&look(&late, 0, len).await, &world.expected, "a late clone");
    assert_eq!(world.bytes_read(), 0);
}

fn stored_len(world: &World) -> u64 {
    let pack = world.tool.pack("s");
    fs::metadata(pack).unwrap().len()
}

fn map_writable(shared: &SharedMemory) -> rustix::io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags};
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, of which nothing is made.
    unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            PAGE,
            protection,
            MapFlags::SHARED,
            shared.as_fd(),
            0,
        )
    }
    .map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memfd_of_huge_pages_is_shared_as_well() {
    let len = 10 * MIB;
    if !can_serve() {
        return;
    }
    let Some(_pages) = HugePages::new(8) else {
        return;
    };
    let world = World::new(len);
    let shared = SharedMemory::new(world.reader().await, 2 << 20).unwrap();
    let clones: Vec<_> = (0..2)
        .map(|_| MappedSection::of(&shared, unfilled()).unwrap())
        .collect();
    assert_bytes(
        &look(&clones[0], 5 * MIB, 4 * MIB).await,
        &world.expected[5 * MIB..9 * MIB],
        "a clone",
    );
    shared.fill(&[]).await.unwrap();
    for clone in &clones {
        assert_bytes(&look(clone, 0, len).await, &world.expected, "a clone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    if !can_serve() {
        return;
    }
    let world = World::new(MIB);
    let reader = world.reader().await;
    for page_size in [0, 1, 8192, 1 << 30] {
        let refused = SharedMemory::new(reader.clone(), page_size).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{page_size}");
    }
    let nothing = Userfault::open().unwrap();
    let refused = nothing.register(4096..8192).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Target);
    assert!(refused.to_string().contains("must be mapped"), "{refused}");
    let region = |start: u64, end: u64, page_size: u64| Region {
        addresses: start..end,
        section_offset: 0,
        page_size,
    };
    for (bad, why) in [
        (region(0, 2 << 20, 4096), "a section that has"),
        (region(100, 4196, 4096), "whole pages"),
        (region(0, 4096, 1000), "pages of 1000"),
    ] {
        let userfault = Userfault::open().unwrap();
        let refused = MemoryServer::start(userfault, reader.clone(), &[bad], unfilled());
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}
