//! Working sets: what a restore touches is learned in order, kept beside the snapshot as long as that is there, and fetched ahead of the next
//! restore in few large reads, never further than there is room for.

mod support;

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use podsnap::{
    CacheOptions, ErrorKind, SaveOptions, Snapshot, Store,
    store::{Backend, LocalBackend},
};
use support::{
    backend::{Call, Fate, Watched, names},
    *,
};

const PAGE: u64 = 4096;

/// A store with the snapshot `s` of one section of noise.
struct World {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl World {
    async fn new(len: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes = noise(len as u64, len);
        let world = Self { dir, bytes };
        let store = world.watched().store();
        save_one(&store, "s", &world.bytes, SaveOptions::default()).await;
        world
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(LocalBackend::new(self.dir.path().join("store"), false).unwrap())
    }

    fn watched(&self) -> Watched {
        Watched::new(self.backend(), |_, _| Fate::Done)
    }

    fn object(&self) -> PathBuf {
        self.dir.path().join("store/s/working-set")
    }

    /// Reads pages of a snapshot, in that order.
    async fn read(&self, snapshot: &Snapshot, pages: &[u64]) {
        let reader = snapshot.reader(0);
        let mut found = vec![0; PAGE as usize];
        for page in pages {
            let at = page * PAGE;
            reader.read_at(&mut found, at).await.unwrap();
            let expected = &self.bytes[at as usize..][..PAGE as usize];
            assert_bytes(&found, expected, &format!("page {page}"));
        }
    }

    /// Has a working set learned from reading these pages.
    async fn learn(&self, pages: &[u64]) {
        let recording = open(&self.watched().store()).await.record();
        self.read(recording.snapshot(), pages).await;
        assert!(recording.store(false).await.unwrap());
    }
}

async fn open(store: &Store) -> Snapshot {
    store.snapshot(&id("s")).await.unwrap()
}

/// Pages in an order of their own, each once and far from the one before.
fn scattered(count: u64, of: u64) -> Vec<u64> {
    let mut noise = Noise(of);
    let mut pages: Vec<u64> = (0..of).collect();
    for i in 0..count as usize {
        let other = i + noise.below(pages.len() - i);
        pages.swap(i, other);
    }
    pages.truncate(count as usize);
    pages
}

/// Lengths of the reads of packs since the last call.
fn pack_reads(watched: &Watched) -> Vec<u64> {
    let reads = watched.take_reads().into_iter();
    reads
        .filter(|(name, _)| name.contains("/pack-"))
        .map(|(_, len)| len)
        .collect()
}

fn pages_of(ranges: &[Range<u64>]) -> Vec<u64> {
    let pages = ranges.iter().map(|r| r.start / PAGE..r.end.div_ceil(PAGE));
    pages.flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_learned_and_the_next_one_is_ahead_of_its_reads() {
    let world = World::new(32 << 20).await;
    let pages = scattered(200, (32 << 20) / PAGE);
    let watched = world.watched();
    let recording = open(&watched.store()).await.record();
    world.read(recording.snapshot(), &pages).await;
    // Again, and what nobody waits for: neither is a first touch.
    world.read(recording.snapshot(), &pages[50..60]).await;
    let background = recording.snapshot().reader(0).background();
    background.read_at(&mut vec![0; 1 << 20], 0).await.unwrap();
    assert!(recording.store(false).await.unwrap());
    let one_by_one = pack_reads(&watched).len();

    let watched = world.watched();
    let snapshot = open(&watched.store()).await;
    let learned = snapshot
        .working_set()
        .await
        .unwrap()
        .expect("it was stored");
    assert_eq!(pages_of(&learned.ranges(0)), pages);
    assert!(learned.touches().map(|t| t.at).is_sorted());
    learned.prefetch(&[0]).await.unwrap();
    let ahead = pack_reads(&watched);
    assert!(
        !ahead.is_empty() && ahead.len() <= one_by_one / 2,
        "{} reads instead of {one_by_one}",
        ahead.len()
    );
    world.read(&snapshot, &pages).await;
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn page_cursors_and_pages_at_hand_are_noted_too() {
    let world = World::new(4 << 20).await;
    let recording = open(&world.watched().store()).await.record();
    let reader = recording.snapshot().reader(0);
    let mut buf = vec![0; 64 << 10];
    let at = 10 * PAGE;
    reader
        .read_around(&mut buf, at, at + PAGE..at + 2 * PAGE)
        .await
        .unwrap();
    // Nothing comes of this one, so it is asked for again in another way.
    assert!(
        reader
            .read_resident(&mut buf, 1 << 21, 1 << 21..(1 << 21) + PAGE)
            .is_none()
    );
    assert!(reader.read_resident(&mut buf, at, at..at + PAGE).is_some());
    assert!(recording.store(false).await.unwrap());
    let snapshot = open(&world.watched().store()).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    assert_eq!(pages_of(&learned.ranges(0)), [11, 10]);
}

/// A set that fits into memory by far not: it is fetched once all the same, as it waits for what is used.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_larger_than_memory_is_never_further_ahead_than_there_is_room() {
    let len = 160 << 20;
    let world = World::new(len).await;
    let mut blocks: Vec<u64> = scattered(160, 160);
    let pages: Vec<u64> = blocks
        .iter()
        .flat_map(|block| block * 256..(block + 1) * 256)
        .collect();
    world.learn(&pages).await;

    let watched = world.watched();
    let snapshot = open(&watched.store()).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    let ahead = tokio::spawn(async move { learned.prefetch(&[0]).await });
    let read = |reads: &mut u64| *reads += pack_reads(&watched).iter().sum::<u64>();
    let mut fetched = 0;
    let started = Instant::now();
    while fetched < 16 << 20 {
        assert!(started.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(10)).await;
        read(&mut fetched);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    read(&mut fetched);
    assert!(
        fetched < 48 << 20,
        "{fetched} bytes were fetched before any was used"
    );
    assert!(!ahead.is_finished());

    blocks.reverse();
    let reader = snapshot.reader(0);
    let mut found = vec![0; 1 << 20];
    while let Some(block) = blocks.pop() {
        let at = block << 20;
        reader.read_at(&mut found, at).await.unwrap();
        assert_bytes(&found, &world.bytes[at as usize..][..1 << 20], "a block");
        // Who is as fast as what is fetched ahead overtakes it, and fetches what is on its way already.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ahead.await.unwrap().unwrap();
    read(&mut fetched);
    assert!(
        fetched < len as u64 * 5 / 4,
        "{fetched} bytes were fetched of {len}"
    );
}

/// Where the node has a cache, that takes what memory has no room for.
#[tokio::test(flavor = "multi_thread")]
async fn a_nodes_cache_takes_what_memory_has_no_room_for() {
    let world = World::new(96 << 20).await;
    let pages: Vec<u64> = (0..(96 << 20) / PAGE).collect();
    world.learn(&pages).await;
    let cache = CacheOptions {
        dir: world.dir.path().join("cache"),
        max_len: 1 << 30,
    };
    let watched = world.watched();
    let snapshot = open(&watched.store_with_cache(&cache)).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    learned.prefetch(&[0]).await.unwrap();
    let fetched: u64 = pack_reads(&watched).iter().sum();
    assert!(fetched < (96 << 20) * 11 / 10, "{fetched} bytes");
    world.read(&snapshot, &pages).await;
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
    // Another process on the node has nothing to fetch.
    let snapshot = open(&watched.store_with_cache(&cache)).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    learned.prefetch(&[0]).await.unwrap();
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
}

/// A damaged frame does not keep the rest away: whoever needs it learns of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_ahead_is_checked_as_ever() {
    let world = World::new(4 << 20).await;
    let pages: Vec<u64> = (0..(4 << 20) / PAGE).collect();
    world.learn(&pages).await;
    let dir = world.dir.path().join("store/s");
    let packs = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let pack = packs
        .into_iter()
        .find(|p| p.to_str().unwrap().contains("pack-"))
        .unwrap();
    tool::flip(&pack, 2 << 20);
    let snapshot = open(&world.watched().store()).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    assert_eq!(
        failure(learned.prefetch(&[0]).await).kind(),
        ErrorKind::Damaged
    );
    let reader = snapshot.reader(0);
    let mut bad = 0;
    for page in pages {
        let mut found = vec![0; PAGE as usize];
        let at = (page * PAGE) as usize;
        match reader.read_at(&mut found, page * PAGE).await {
            Ok(()) => assert_bytes(&found, &world.bytes[at..at + PAGE as usize], "a page"),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                bad += 1;
            }
        }
    }
    assert!((1..=64).contains(&bad), "{bad} pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_one_is_an_error_and_is_replaced_by_the_next() {
    let world = World::new(1 << 20).await;
    world.learn(&[5, 3]).await;
    let good = fs::read(world.object()).unwrap();
    let mut cases: Vec<Vec<u8>> = (0..good.len())
        .step_by(7)
        .map(|at| {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            bad
        })
        .collect();
    cases.push(Vec::new());
    cases.push(good[..good.len() - 1].to_vec());
    cases.push(vec![0; 40 << 20]);
    cases.push(fs::read(world.dir.path().join("store/s/manifest")).unwrap());
    for bad in cases {
        fs::write(world.object(), &bad).unwrap();
        let snapshot = open(&world.watched().store()).await;
        // What lies before the trailer is a copy that nobody needs.
        match snapshot.working_set().await {
            Ok(found) => {
                assert_eq!(found.unwrap().ranges(0).len(), 2);
                assert_eq!(bad[192..], good[192..]);
            }
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
                assert!(e.to_string().contains("s/working-set"), "{e}");
            }
        }
    }
    world.learn(&[7]).await;
    let snapshot = open(&world.watched().store()).await;
    let learned = snapshot.working_set().await.unwrap().unwrap();
    assert_eq!(pages_of(&learned.ranges(0)), [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_another_snapshot_of_the_id_counts_as_none() {
    let mut world = World::new(1 << 20).await;
    world.learn(&[5, 3]).await;
    let stale = fs::read(world.object()).unwrap();
    let store = world.watched().store();
    store.remove(&id("s")).await.unwrap();
    assert_eq!(names(&*world.backend()).await.len(), 0);
    world.bytes = noise(77, 1 << 20);
    save_one(&store, "s", &world.bytes, SaveOptions::default()).await;
    fs::write(world.object(), stale).unwrap();
    assert!(open(&store).await.working_set().await.unwrap().is_none());
    world.learn(&[9]).await;
    let learned = open(&store).await.working_set().await.unwrap().unwrap();
    assert_eq!(pages_of(&learned.ranges(0)), [9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_there_stays_unless_it_is_to_be_replaced() {
    let world = World::new(1 << 20).await;
    let store = world.watched().store();
    let record = || async { open(&store).await.record() };
    let nothing = record().await;
    assert!(!nothing.store(true).await.unwrap());
    let (first, second) = (record().await, record().await);
    world.read(first.snapshot(), &[1]).await;
    world.read(second.snapshot(), &[2, 7]).await;
    assert!(first.store(false).await.unwrap());
    assert!(!second.store(false).await.unwrap());
    let learned = || async {
        let learned = open(&store).await.working_set().await.unwrap().unwrap();
        pages_of(&learned.ranges(0))
    };
    assert_eq!(learned().await, [1]);
    assert!(second.store(true).await.unwrap());
    assert_eq!(learned().await, [2, 7]);
    // Of a newer podsnap: not ours to replace.
    let mut newer = fs::read(world.object()).unwrap();
    let footer = newer.len() - 80;
    newer[footer + 64] = 2;
    let covered = [&newer[footer..footer + 68], &newer[footer + 72..]].concat();
    newer[footer + 68..footer + 72].copy_from_slice(&crc32(&covered).to_le_bytes());
    fs::write(world.object(), &newer).unwrap();
    let refused = failure(open(&store).await.working_set().await);
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(!second.store(true).await.unwrap());
    assert_eq!(fs::read(world.object()).unwrap(), newer);
}

/// CRC-32 as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn none_is_left_of_a_snapshot_that_goes_meanwhile() {
    // Before it is stored, and while it is.
    for at_last in [false, true] {
        let world = World::new(1 << 20).await;
        let manifest = world.dir.path().join("store/s/manifest");
        let goes = manifest.clone();
        let watched = Watched::new(world.backend(), move |call, name| {
            if call == Call::Put && name.ends_with("working-set") {
                fs::remove_file(&goes).unwrap();
            }
            Fate::Done
        });
        let recording = open(&watched.store()).await.record();
        world.read(recording.snapshot(), &[1]).await;
        if !at_last {
            fs::remove_file(&manifest).unwrap();
        }
        assert!(!recording.store(false).await.unwrap());
        assert!(!manifest.exists());
        assert!(!world.object().exists());
    }
}
