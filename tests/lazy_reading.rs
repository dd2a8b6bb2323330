//! Reading ranges of a section: each byte fetched once however many ask for it, from the nearest place there is, and faults before
//! what is read in the background.

mod support;

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use podsnap::{
    CacheOptions, ErrorKind, Input, NewSection, Role, SaveOptions, SectionReader, Store,
    source::Source,
    store::{Backend, LocalBackend},
};
use support::{
    backend::{Call, Fate, Watched},
    pages::Pages,
    *,
};
use tokio::{sync::watch, task::JoinSet};

const LEN: u64 = 32 << 20;

/// A store of one section that is hard to compress, with holes in it.
struct World {
    dir: tempfile::TempDir,
    pages: Arc<Pages>,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            pages: Arc::new(Pages::new(LEN)),
            dir,
        };
        let section = NewSection::blob(Role::Memory, "", Input::Source(world.pages.clone()));
        let store = Store::open(world.dir.path().join("store").to_str().unwrap()).unwrap();
        save(&store, "s", vec![section], SaveOptions::default())
            .await
            .unwrap();
        world
    }

    fn backend(&self) -> Arc<dyn Backend> {
        Arc::new(LocalBackend::new(self.dir.path().join("store"), false).unwrap())
    }

    fn cache(&self) -> CacheOptions {
        CacheOptions {
            dir: self.dir.path().join("cache"),
            max_len: 1 << 30,
        }
    }

    fn assert_range(&self, found: &[u8], offset: u64) {
        let mut expected = vec![0; found.len()];
        self.pages.read_at(&mut expected, offset).unwrap();
        assert_bytes(found, &expected, &format!("bytes at {offset}"));
    }

    async fn assert_reads(&self, reader: &SectionReader, range: Range<u64>) {
        let mut found = vec![0xee; (range.end - range.start) as usize];
        reader.read_at(&mut found, range.start).await.unwrap();
        self.assert_range(&found, range.start);
    }
}

async fn reader(store: &Store) -> SectionReader {
    store.snapshot(&id("s")).await.unwrap().reader(0)
}

/// Lengths of the reads of packs.
fn pack_reads(watched: &Watched) -> Vec<u64> {
    let of_pack = |(name, _): &(String, u64)| name.contains("/pack-");
    let reads = watched.take_reads();
    reads
        .iter()
        .filter(|r| of_pack(r))
        .map(|(_, len)| *len)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_many_ask_for_is_fetched_once() {
    let world = World::new().await;
    let watched = Watched::new(world.backend(), |_, _| Fate::Done);
    let store = watched.store();
    let mut asking = JoinSet::new();
    let world = Arc::new(world);
    for _ in 0..20 {
        // Two snapshots opened apart, as two restores of one process are.
        let (store, world) = (store.clone(), world.clone());
        asking.spawn(async move {
            let reader = reader(&store).await;
            world.assert_reads(&reader, 5 << 20..6 << 20).await;
        });
    }
    asking.join_all().await;
    let stored: u64 = pack_reads(&watched).iter().sum();
    assert!(
        stored > 0 && stored <= 3 << 19,
        "{stored} bytes were read for 1 MiB"
    );

    // And what is in memory not even once.
    let reader = reader(&store).await;
    watched.take_reads();
    world.assert_reads(&reader, 5 << 20..6 << 20).await;
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_adjoins_a_page_is_filled_if_it_came_along_and_nothing_is_fetched_for_it() {
    let world = World::new().await;
    let watched = Watched::new(world.backend(), |_, _| Fate::Done);
    let reader = reader(&watched.store()).await;
    let mut random = Noise(7);
    for _ in 0..50 {
        let page = random.below((LEN / 4096) as usize) as u64 * 4096;
        let window = page & !0xffff;
        let mut buf = vec![0xee; 64 << 10];
        let filled = reader
            .read_around(&mut buf, window, page..page + 4096)
            .await
            .unwrap();
        assert!(
            filled.start <= page && page + 4096 <= filled.end,
            "{filled:?}"
        );
        let within = (filled.start - window) as usize..(filled.end - window) as usize;
        world.assert_range(&buf[within.clone()], filled.start);
        assert!(
            buf[..within.start].iter().all(|b| *b == 0xee),
            "something before {filled:?} was filled"
        );
        assert!(
            buf[within.end..].iter().all(|b| *b == 0xee),
            "something behind {filled:?} was filled"
        );

        // Now all of that is at hand.
        let mut again = vec![0; 4096];
        let found = reader.read_resident(&mut again, page, page..page + 4096);
        assert_eq!(found, Some(page..page + 4096));
        world.assert_range(&again, page);
    }
    // A page may lie in two chunks; nothing else was fetched.
    let reads = pack_reads(&watched);
    assert!(reads.len() <= 100, "{} reads for 50 pages", reads.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_tell_holes_from_bytes_without_reading_any() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = noise(3, 4 << 20);
    bytes[1 << 20..2 << 20].fill(0);
    let backend = Arc::new(LocalBackend::new(dir.path(), false).unwrap());
    let watched = Watched::new(backend, |_, _| Fate::Done);
    save_one(&watched.store(), "s", &bytes, SaveOptions::default()).await;
    watched.take_reads();
    let reader = reader(&watched.store()).await;
    let runs = reader.runs(0..4 << 20).await.unwrap();
    let found: Vec<_> = runs
        .iter()
        .map(|run| (run.range.clone(), run.zeros))
        .collect();
    let expected = [
        (0..1 << 20, false),
        (1 << 20..2 << 20, true),
        (2 << 20..4 << 20, false),
    ];
    assert_eq!(found, expected);
    assert_eq!(reader.runs((1 << 20) + 1..2 << 20).await.unwrap().len(), 1);
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
    let e = failure(reader.runs(0..(4 << 20) + 1).await);
    assert_eq!(e.kind(), ErrorKind::InvalidInput, "{e}");
}

/// What is fetched in the background is held up; whoever needs a page of it now does not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_overtakes_what_is_read_in_the_background() {
    let world = Arc::new(World::new().await);
    let (open, opened) = watch::channel(false);
    let held = Arc::new(AtomicBool::new(true));
    let holding = held.clone();
    let watched = Watched::new(world.backend(), move |call, name| {
        match call == Call::Read && name.contains("/pack-") && holding.load(Relaxed) {
            true => Fate::Waits(opened.clone()),
            false => Fate::Done,
        }
    });
    let reader = reader(&watched.store()).await;
    let (background, whole) = (reader.background(), world.clone());
    let filling = tokio::spawn(async move { whole.assert_reads(&background, 0..LEN).await });
    // The reads of the background hang.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!filling.is_finished());
    held.store(false, Relaxed);
    world.assert_reads(&reader, 1 << 20..(1 << 20) + 4096).await;
    assert!(!filling.is_finished());
    open.send(true).unwrap();
    filling.await.unwrap();
}

/// A hundred pages at once on a store of 20 ms take little longer than one.
#[tokio::test(flavor = "multi_thread")]
async fn faults_do_not_wait_for_one_another() {
    let world = Arc::new(World::new().await);
    let (open, opened) = watch::channel(false);
    let watched = Watched::new(world.backend(), move |call, name| {
        match call == Call::Read && name.contains("/pack-") {
            true => Fate::Waits(opened.clone()),
            false => Fate::Done,
        }
    });
    let reader = reader(&watched.store()).await;
    let mut faults = JoinSet::new();
    let mut random = Noise(11);
    for _ in 0..100 {
        let page = random.below((LEN / 4096) as usize) as u64 * 4096;
        let (reader, world) = (reader.clone(), world.clone());
        faults.spawn(async move { world.assert_reads(&reader, page..page + 4096).await });
    }
    // All of them are on their way before any is answered.
    let under_way = || watched.waiting();
    let start = Instant::now();
    while under_way() < 60 {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{} reads are under way",
            under_way()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    open.send(true).unwrap();
    faults.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_restore_on_a_node_reads_nothing_from_the_store() {
    let world = World::new().await;
    let watched = Watched::new(world.backend(), |_, _| Fate::Done);
    let store = |watched: &Watched| watched.store_with_cache(&world.cache());
    world
        .assert_reads(&reader(&store(&watched)).await, 0..LEN)
        .await;
    assert!(!pack_reads(&watched).is_empty());
    // Another process: nothing in memory.
    world
        .assert_reads(&reader(&store(&watched)).await, 0..LEN)
        .await;
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
}

/// Two processes that begin at once share what each of them reads.
#[tokio::test(flavor = "multi_thread")]
async fn restores_at_once_on_a_node_read_the_store_once() {
    let world = Arc::new(World::new().await);
    let watched = Watched::new(world.backend(), |_, _| Fate::Done);
    let mut restores = JoinSet::new();
    for _ in 0..10 {
        let store = watched.store_with_cache(&world.cache());
        let world = world.clone();
        restores.spawn(async move {
            let reader = reader(&store).await.background();
            world.assert_reads(&reader, 0..LEN).await;
        });
    }
    restores.join_all().await;
    let read: u64 = pack_reads(&watched).iter().sum();
    let stored: u64 = packs(&world.dir.path().join("store")).iter().sum();
    assert!(
        read <= stored * 11 / 10,
        "{read} bytes were read of {stored}"
    );
}

/// Lengths of all packs of a store.
fn packs(store: &Path) -> Vec<u64> {
    let files = fs::read_dir(store.join("s")).unwrap().map(|f| f.unwrap());
    let packs = files.filter(|f| f.file_name().to_string_lossy().starts_with("pack-"));
    packs.map(|f| f.metadata().unwrap().len()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scribbled_cache_costs_reads_and_nothing_else() {
    let world = World::new().await;
    let watched = Watched::new(world.backend(), |_, _| Fate::Done);
    let whole = || reader_of(&watched, &world);
    world.assert_reads(&whole().await, 0..LEN).await;
    let files = |extension: &str| -> Vec<_> {
        let files = fs::read_dir(world.cache().dir).unwrap();
        let paths = files.map(|f| f.unwrap().path());
        paths
            .filter(|p| p.extension().is_some_and(|e| e == extension))
            .collect()
    };
    for extension in ["frames", "index"] {
        let scribbled = files(extension);
        assert!(!scribbled.is_empty(), "there are no {extension}");
        for path in scribbled {
            let mut bytes = fs::read(&path).unwrap();
            for at in (0..bytes.len()).step_by(501) {
                bytes[at] ^= 0x40;
            }
            fs::write(&path, bytes).unwrap();
        }
        watched.take_reads();
        world.assert_reads(&whole().await, 0..LEN).await;
        assert!(
            !pack_reads(&watched).is_empty(),
            "scribbled {extension} were used"
        );
    }
    // Cut, emptied, strange.
    for path in files("frames") {
        fs::write(path, "").unwrap();
    }
    fs::write(world.cache().dir.join("strange.index"), "x".repeat(1000)).unwrap();
    fs::write(world.cache().dir.join("stranger"), "").unwrap();
    world.assert_reads(&whole().await, 0..LEN).await;
}

async fn reader_of(watched: &Watched, world: &World) -> SectionReader {
    reader(&watched.store_with_cache(&world.cache())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_used_is_done_without() {
    let world = World::new().await;
    let file = world.dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let full = Path::new("/dev/full");
    for dir in [
        file.clone(),
        file.join("below"),
        full.to_owned(),
        "/proc/nothing".into(),
    ] {
        let cache = CacheOptions {
            dir,
            max_len: 1 << 30,
        };
        let url = world.dir.path().join("store");
        let store = Store::open(url.to_str().unwrap())
            .unwrap()
            .with_cache(&cache);
        world.assert_reads(&reader(&store).await, 0..1 << 20).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_stays_within_its_bounds_and_keeps_what_is_used() {
    let len = 160 << 20;
    let dir = tempfile::tempdir().unwrap();
    let backend = Arc::new(LocalBackend::new(dir.path().join("store"), false).unwrap());
    let watched = Watched::new(backend, |_, _| Fate::Done);
    let bytes = noise(9, len);
    save_one(&watched.store(), "s", &bytes, SaveOptions::default()).await;
    let options = CacheOptions {
        dir: dir.path().join("cache"),
        max_len: 64 << 20,
    };
    let reader = reader(&watched.store_with_cache(&options)).await;
    let mut buf = vec![0; 4 << 20];
    for at in (0..len).step_by(buf.len()) {
        reader.read_at(&mut buf, at as u64).await.unwrap();
        assert_bytes(&buf, &bytes[at..at + buf.len()], &format!("at {at}"));
        let files = fs::read_dir(&options.dir).unwrap();
        let held: u64 = files.map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(
            held <= options.max_len,
            "the cache holds {held} bytes at {at}"
        );
    }
    // What was read last is still there.
    let anew = self::reader(&watched.store_with_cache(&options)).await;
    watched.take_reads();
    anew.read_at(&mut buf, (len - (4 << 20)) as u64)
        .await
        .unwrap();
    assert_eq!(pack_reads(&watched), [0_u64; 0]);
}
