//! A store whose n-th call fails, or is carried out and fails all the same, or never comes back: for every n of every operation,
//! nothing half-done is visible, what was there stays whole, and doing it again works and leaves nothing over.

mod support;

use std::{
    collections::BTreeSet,
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use podsnap::{
    CollectOptions, ErrorKind, Input, NewSection, Progress, Result, Role, SaveOptions, Snapshot,
    Store,
    restore::{RestoreOptions, Target},
    source::Source,
    store::{Backend, LocalBackend, RemoteBackend},
    verify::VerifyOptions,
};
use support::{
    backend::{CALLS, Call, Fate, Watched, names, own_names},
    *,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Packs are closed at this length, so that a save has some.
const PACK_LEN: u64 = 100_000;

/// Nothing here takes so long unless it hangs.
const HANGS: Duration = Duration::from_secs(60);

/// A store that holds `base`, the head of group `g`, and `other`, which borrows from nobody.
struct World {
    backend: Arc<dyn Backend>,
    store: Store,
    _dir: Option<tempfile::TempDir>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Memory,
    Directory,
}

const PLACES: [Place; 2] = [Place::Memory, Place::Directory];

fn base_bytes() -> Vec<u8> {
    [noise(1, 300_000), vec![0; 50_000], text(2, 100_000)].concat()
}

fn next_bytes() -> [Vec<u8>; 2] {
    let changed = [noise(3, 120_000), base_bytes(), text(4, 50_000)].concat();
    [changed, noise(5, 150_000)]
}

fn next_sections() -> Vec<NewSection> {
    let [x, y] = next_bytes();
    vec![blob("x", &x), blob("y", &y)]
}

fn in_group() -> SaveOptions {
    SaveOptions {
        group: Some("g".into()),
        ..SaveOptions::default()
    }
}

impl World {
    async fn new(place: Place) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let (backend, dir): (Arc<dyn Backend>, _) = match place {
            Place::Memory => {
                let name = format!("faults-{}", COUNT.fetch_add(1, SeqCst));
                (Arc::new(RemoteBackend::memory(&name)), None)
            }
            Place::Directory => {
                let dir = tempfile::tempdir().unwrap();
                let backend = LocalBackend::new(dir.path(), false).unwrap();
                (Arc::new(backend), Some(dir))
            }
        };
        let watched = Watched::new(backend.clone(), |_, _| Fate::Done).with_pack_len(PACK_LEN);
        let store = watched.store();
        save_one(&store, "other", &text(9, 10_000), SaveOptions::default()).await;
        save_one(&store, "base", &base_bytes(), in_group()).await;
        Self {
            backend,
            store,
            _dir: dir,
        }
    }

    fn watched(&self, hook: impl Fn(Call, &str) -> Fate + Send + Sync + 'static) -> Store {
        Watched::new(self.backend.clone(), hook)
            .with_pack_len(PACK_LEN)
            .store()
    }

    /// `next` in the store, as if nothing had ever failed.
    async fn with_next(place: Place, options: SaveOptions) -> Self {
        let world = Self::new(place).await;
        save(&world.store, "next", next_sections(), options)
            .await
            .unwrap();
        world
    }

    async fn assert_older_are_whole(&self) {
        assert_sound(&self.store, "base").await;
        assert_sound(&self.store, "other").await;
        assert_bytes(
            &restored(&self.store, "base").await[0],
            &base_bytes(),
            "base",
        );
    }

    /// Whether `next` is visible, and if so, whole.
    async fn next_is_there(&self) -> bool {
        match self.store.snapshot(&id("next")).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => return false,
            Err(e) => panic!("{e}"),
        }
        assert_sound(&self.store, "next").await;
        let expected = next_bytes();
        for (found, expected) in restored(&self.store, "next").await.iter().zip(&expected) {
            assert_bytes(found, expected, "next");
        }
        true
    }

    /// Saves `next` again, if it is not there, and checks that the store then holds what it must and no more.
    async fn save_again(&self, way: Saving, what: &str) {
        let there = self.next_is_there().await;
        match way.run(&self.store).await {
            Ok(()) => assert!(!there, "{what}: saved twice"),
            Err(e) => assert!(
                there && e.kind() == ErrorKind::Conflict,
                "{what}, again: {e}"
            ),
        }
        assert!(self.next_is_there().await, "{what}");
        let mut expected = BTreeSet::from(["heads/g".to_owned()]);
        for id in ["base", "other", "next"] {
            expected.extend(own_names(&self.store, id).await);
        }
        assert_eq!(names(&*self.backend).await, expected, "{what}");
        let head = if way == Saving::Group { "next" } else { "base" };
        assert_eq!(self.head().await.as_deref(), Some(head), "{what}");
    }

    async fn head(&self) -> Option<String> {
        let range = podsnap::store::ReadRange::Suffix(1000);
        match self.backend.read("heads/g", range, None).await {
            Ok(read) => {
                let json: serde_json::Value = serde_json::from_slice(&read.bytes).unwrap();
                Some(json["snapshot"].as_str().unwrap().to_owned())
            }
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => panic!("{e}"),
        }
    }
}

/// A hook that meets the `n`-th call of a kind with `fate`, and tells whether there was one.
fn at_nth(call: Call, n: usize, fate: Fate) -> (impl Fn(Call, &str) -> Fate, Arc<AtomicBool>) {
    let (count, fired) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let tell = fired.clone();
    let hook = move |this: Call, _: &str| {
        if this != call || count.fetch_add(1, SeqCst) != n {
            return Fate::Done;
        }
        tell.store(true, SeqCst);
        fate.clone()
    };
    (hook, fired)
}

/// Runs `with(store, what, fired)` for every call that an operation makes, refused and with its answer lost.
async fn for_every_call<F: Future<Output = ()>>(
    mut with: impl FnMut(
        Call,
        usize,
        Fate,
        Arc<AtomicBool>,
        Box<dyn Fn(Call, &str) -> Fate + Send + Sync>,
    ) -> F,
) -> usize {
    let mut faults = 0;
    for call in CALLS {
        for fate in [Fate::Refused, Fate::AnswerLost] {
            for n in 0.. {
                let (hook, fired) = at_nth(call, n, fate.clone());
                with(call, n, fate.clone(), fired.clone(), Box::new(hook)).await;
                if !fired.load(SeqCst) {
                    break;
                }
                faults += 1;
            }
        }
    }
    faults
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANGS, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} hangs"),
    }
}

/// The ways in which `next` comes into a store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Saving {
    Plain,
    Base,
    Group,
    Import,
}

impl Saving {
    async fn run(self, store: &Store) -> Result<()> {
        let options = match self {
            Self::Plain | Self::Import => SaveOptions::default(),
            Self::Base => on_base("base"),
            Self::Group => in_group(),
        };
        if self != Self::Import {
            return save(store, "next", next_sections(), options)
                .await
                .map(drop);
        }
        let (file, _dir) = exported().await;
        let export = Snapshot::open_export(&file, None).await.unwrap();
        export.copy_to(store, &id("next"), options).await.map(drop)
    }
}

/// `next` as a file.
async fn exported() -> (std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("next.podsnap");
    let world = World::with_next(Place::Memory, SaveOptions::default()).await;
    let snapshot = world.store.snapshot(&id("next")).await.unwrap();
    export(&world.store, &snapshot, &file).await.unwrap();
    (file, dir)
}

async fn export(store: &Store, snapshot: &Snapshot, file: &Path) -> Result<()> {
    let (progress, never) = (Progress::default(), CancellationToken::new());
    let exported = snapshot.export(store, file, &progress, &never);
    exported.await.map(drop)
}

async fn saves_survive(way: Saving) {
    for place in PLACES {
        let faults = for_every_call(|call, n, fate, fired, hook| async move {
            let what = format!("{way:?} in {place:?}, {call:?} {n} {fate:?}");
            let world = World::new(place).await;
            let store = world.watched(hook);
            let saved = in_time(&what, way.run(&store)).await;
            world.assert_older_are_whole().await;
            let there = world.next_is_there().await;
            match &saved {
                Ok(()) => assert!(there, "{what}"),
                Err(e) => {
                    assert!(fired.load(SeqCst), "{what}: {e}");
                    assert_eq!(e.kind(), ErrorKind::Store, "{what}: {e}");
                    // Only a save that says so may fail behind its commit.
                    let text = e.to_string();
                    let said =
                        text.contains("is committed, but") || text.contains("not known whether");
                    assert!(!there || said, "{what}: {text}");
                }
            }
            // The manifest is put after the lease: that write is the commit, whether or not anybody hears of it.
            if call == Call::Put && n == 1 && matches!(fate, Fate::AnswerLost) {
                assert!(saved.is_ok(), "{what}: {saved:?}");
            }
            drop(store);
            world.save_again(way, &what).await;
        })
        .await;
        assert!(faults > 20, "only {faults} faults");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_survives_a_fault_at_any_call() {
    saves_survive(Saving::Plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_on_a_base_survives_a_fault_at_any_call() {
    saves_survive(Saving::Base).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_into_a_group_survives_a_fault_at_any_call() {
    saves_survive(Saving::Group).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_survives_a_fault_at_any_call() {
    saves_survive(Saving::Import).await;
}

/// The answer to the commit is lost, and for a moment the store cannot be asked whether it was made: nothing may be removed then.
#[tokio::test(flavor = "multi_thread")]
async fn packs_stay_while_it_is_unknown_whether_they_are_committed() {
    for place in PLACES {
        for lost in [Fate::AnswerLost, Fate::Refused] {
            let world = World::new(place).await;
            let (commit, reads) = (lost.clone(), AtomicUsize::new(usize::MAX));
            let store = world.watched(move |call, name| match (call, name) {
                (Call::Put, "next/manifest") => {
                    reads.store(1, SeqCst);
                    commit.clone()
                }
                (Call::Read, _) if reads.load(SeqCst) == 1 => {
                    reads.store(0, SeqCst);
                    Fate::Refused
                }
                _ => Fate::Done,
            });
            let what = format!("{place:?}, {lost:?}");
            let e = failure(save(&store, "next", next_sections(), in_group()).await);
            assert!(e.to_string().contains("not known whether"), "{what}: {e}");
            let there = matches!(lost, Fate::AnswerLost);
            assert_eq!(world.next_is_there().await, there, "{what}");
            world.save_again(Saving::Group, &what).await;
        }
    }
}

/// From some call on, all fail.
fn gone_from(n: usize) -> (impl Fn(Call, &str) -> Fate, Arc<AtomicBool>) {
    let (count, gone) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
    let tell = gone.clone();
    let hook = move |_: Call, _: &str| {
        if count.fetch_add(1, SeqCst) < n {
            return Fate::Done;
        }
        tell.store(true, SeqCst);
        Fate::Refused
    };
    (hook, gone)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_and_stays_away_ends_a_save_with_an_error() {
    for way in [Saving::Plain, Saving::Group, Saving::Import] {
        for n in 0.. {
            let what = format!("{way:?}, gone from call {n} on");
            let world = World::new(Place::Directory).await;
            let (hook, gone) = gone_from(n);
            let saved = in_time(&what, way.run(&world.watched(hook))).await;
            if !gone.load(SeqCst) {
                saved.unwrap();
                break;
            }
            world.assert_older_are_whole().await;
            // Where only the lease could not be dropped any more, the save has succeeded.
            if let Err(e) = saved {
                assert_eq!(e.kind(), ErrorKind::Store, "{what}: {e}");
            }
            world.save_again(way, &what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_ends_every_reader_with_an_error() {
    let world = World::with_next(Place::Memory, on_base("base")).await;
    let before = names(&*world.backend).await;
    let dir = tempfile::tempdir().unwrap();
    for n in 0.. {
        let mut any_gone = false;
        for reading in READINGS {
            let what = format!("{reading:?}, gone from call {n} on");
            let (hook, gone) = gone_from(n);
            let done = in_time(&what, reading.run(&world.watched(hook), dir.path())).await;
            assert_eq!(done.is_err(), gone.load(SeqCst), "{what}: {done:?}");
            any_gone |= done.is_err();
            assert_eq!(left_in(dir.path()), Vec::<String>::new(), "{what}");
        }
        if !any_gone {
            break;
        }
    }
    assert_eq!(names(&*world.backend).await, before);
}

/// What reads `next` and must not go through without all of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reading {
    Restore,
    Salvage,
    Directory,
    Verify,
    Pages,
    Export,
}

const READINGS: [Reading; 6] = [
    Reading::Restore,
    Reading::Salvage,
    Reading::Directory,
    Reading::Verify,
    Reading::Pages,
    Reading::Export,
];

impl Reading {
    /// Reads all of `next`, compares it, and removes what it put into `dir`.
    async fn run(self, store: &Store, dir: &Path) -> Result<()> {
        let snapshot = store.snapshot(&id("next")).await?;
        let expected = next_bytes();
        let compare = |found: &[Vec<u8>]| {
            for (found, expected) in found.iter().zip(&expected) {
                assert_bytes(found, expected, "next");
            }
        };
        match self {
            Self::Restore | Self::Salvage => {
                let options = RestoreOptions {
                    salvage: self == Self::Salvage,
                    ..RestoreOptions::default()
                };
                let (found, stats) = restore_all(store, &snapshot, &options).await?;
                assert_eq!(stats.damage, []);
                compare(&found);
            }
            Self::Directory => {
                let to = dir.join("restored");
                snapshot
                    .restore(store, &to, &RestoreOptions::default())
                    .await?;
                let read = |name: &str| std::fs::read(to.join(name)).unwrap();
                compare(&[read("other.x"), read("other.y")]);
                std::fs::remove_dir_all(&to).unwrap();
            }
            Self::Verify => {
                let report = snapshot.verify(store, &VerifyOptions::default()).await?;
                assert_eq!(report.damage, []);
            }
            Self::Pages => {
                for (number, expected) in expected.iter().enumerate() {
                    let reader = snapshot.reader(number);
                    let mut page = [0; 5000];
                    for at in [0, expected.len() / 2, expected.len() - page.len()] {
                        reader.read_at(&mut page, at as u64).await?;
                        assert_bytes(&page, &expected[at..at + page.len()], "a page");
                    }
                }
            }
            Self::Export => {
                let file = dir.join("export");
                export(store, &snapshot, &file).await?;
                let exported = Snapshot::open_export(&file, None).await.unwrap();
                compare(
                    &restore_all(store, &exported, &RestoreOptions::default())
                        .await?
                        .0,
                );
                std::fs::remove_file(&file).unwrap();
            }
        }
        Ok(())
    }
}

fn left_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_fail_with_the_store_and_leave_nothing() {
    for place in PLACES {
        let world = &World::with_next(place, on_base("base")).await;
        let before = names(&*world.backend).await;
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for reading in READINGS {
            let faults = for_every_call(|call, n, fate, fired, hook| async move {
                let what = format!("{reading:?} in {place:?}, {call:?} {n} {fate:?}");
                let done = in_time(&what, reading.run(&world.watched(hook), dir)).await;
                match (done, fired.load(SeqCst)) {
                    (Ok(()), fired) => assert!(!fired, "{what} went through"),
                    (Err(e), fired) => {
                        assert!(fired && e.kind() == ErrorKind::Store, "{what}: {e}")
                    }
                }
                assert_eq!(left_in(dir), Vec::<String>::new(), "{what}");
            })
            .await;
            assert!(faults >= 4, "{reading:?}: only {faults} faults");
        }
        assert_eq!(names(&*world.backend).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_another_length_than_asked_for_are_errors() {
    let world = &World::with_next(Place::Memory, on_base("base")).await;
    let dir = tempfile::tempdir().unwrap();
    for reading in READINGS {
        for change in [-1, 1, -100_000_000, 70_000] {
            for n in 0.. {
                let (hook, fired) = at_nth(Call::Read, n, Fate::Length(change));
                let what = format!("{reading:?}, read {n} longer by {change}");
                let done = in_time(&what, reading.run(&world.watched(hook), dir.path())).await;
                if !fired.load(SeqCst) {
                    done.unwrap();
                    break;
                }
                let e = failure(done);
                assert_eq!(e.kind(), ErrorKind::Store, "{what}: {e}");
                assert!(e.to_string().contains("the store sent"), "{what}: {e}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_fails_anywhere_can_be_repeated() {
    for place in PLACES {
        let faults = for_every_call(|call, n, fate, fired, hook| async move {
            let what = format!("in {place:?}, {call:?} {n} {fate:?}");
            let world = World::with_next(place, in_group()).await;
            assert_eq!(world.head().await.as_deref(), Some("next"));
            let removed = in_time(&what, world.watched(hook).remove(&id("next"))).await;
            world.assert_older_are_whole().await;
            world.next_is_there().await;
            if let Err(e) = removed {
                assert!(fired.load(SeqCst), "{what}: {e}");
                match world.store.remove(&id("next")).await {
                    Ok(_) => {}
                    // Its manifest has gone; whatever else is left is a collector's.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => panic!("{what}, again: {e}"),
                }
                let options = CollectOptions {
                    grace: Duration::ZERO,
                };
                for _ in 0..2 {
                    let plan = world.store.plan_collection(&options).await.unwrap();
                    let cancel = CancellationToken::new();
                    let collected = world.store.collect(plan, &cancel).await.unwrap();
                    assert_eq!(collected.failed, [], "{what}");
                }
            }
            let mut expected = BTreeSet::from(["heads/g".to_owned()]);
            expected.extend(own_names(&world.store, "base").await);
            expected.extend(own_names(&world.store, "other").await);
            assert_eq!(names(&*world.backend).await, expected, "{what}");
            assert_eq!(world.head().await.as_deref(), Some("base"), "{what}");
            world.assert_older_are_whole().await;
        })
        .await;
        assert!(faults > 20, "only {faults} faults");
    }
}

/// The caller loses patience at every call in turn, while the call is under way; what it asked for is carried out later.
#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_nobody_waits_for_is_undone_or_whole() {
    for way in [Saving::Plain, Saving::Group, Saving::Import] {
        for call in CALLS {
            for n in 0.. {
                let what = format!("{way:?}, nobody waits at {call:?} {n}");
                let world = World::new(Place::Directory).await;
                let (open, gate) = watch::channel(false);
                let (hook, fired) = at_nth(call, n, Fate::Waits(gate));
                let store = world.watched(hook);
                let reached = async {
                    while !fired.load(SeqCst) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let saving = way.run(&store);
                let done = tokio::select! {
                    done = in_time(&what, saving) => Some(done),
                    () = reached => None,
                };
                open.send_replace(true);
                if let Some(done) = done {
                    assert!(!fired.load(SeqCst) || done.is_ok(), "{what}: {done:?}");
                    done.unwrap();
                    if !fired.load(SeqCst) {
                        break;
                    }
                }
                in_time(&what, until_nobody_writes(&world)).await;
                world.assert_older_are_whole().await;
                world.save_again(way, &what).await;
            }
        }
    }
}

/// Until no lease is held: tried with a save that the lease refuses, and that is given up otherwise.
async fn until_nobody_writes(world: &World) {
    loop {
        match world.store.save(&id("next"), SaveOptions::default()).await {
            Ok(writer) => return writer.abort().await.unwrap(),
            Err(e) if e.to_string().contains("exists already") => return,
            Err(e) if e.to_string().contains("is being written") => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_that_are_dropped_or_aborted_leave_nothing() {
    for abort in [true, false] {
        let world = World::new(Place::Directory).await;
        let before = names(&*world.backend).await;
        let mut writer = world.store.save(&id("next"), in_group()).await.unwrap();
        writer.add(next_sections().remove(0)).await.unwrap();
        assert_ne!(
            names(&*world.backend).await,
            before,
            "packs are written meanwhile"
        );
        match abort {
            true => writer.abort().await.unwrap(),
            false => drop(writer),
        }
        in_time("the end of the save", until_nobody_writes(&world)).await;
        assert_eq!(names(&*world.backend).await, before);
        world.save_again(Saving::Group, "after it").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_save_leaves_nothing() {
    for n in 0..12 {
        let world = World::new(Place::Memory).await;
        let before = names(&*world.backend).await;
        let options = in_group();
        let (cancel, count) = (options.cancel.clone(), AtomicUsize::new(0));
        let store = world.watched(move |_, _| {
            if count.fetch_add(1, SeqCst) == n {
                cancel.cancel();
            }
            Fate::Done
        });
        let saved = save(&store, "next", next_sections(), options).await;
        match saved {
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::Interrupted, "at call {n}: {e}");
                assert_eq!(names(&*world.backend).await, before, "at call {n}");
            }
            Ok(_) => assert!(world.next_is_there().await, "at call {n}"),
        }
        world
            .save_again(Saving::Group, &format!("cancelled at call {n}"))
            .await;
    }
}

/// Waits that put answers out of order.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_store_changes_nothing_but_the_time() {
    let world = World::new(Place::Memory).await;
    let random = Arc::new(Mutex::new(Noise(7)));
    let store = world.watched(move |_, _| {
        let (open, gate) = watch::channel(false);
        let wait = random.lock().unwrap().below(8) as u64;
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            open.send_replace(true);
            open.closed().await;
        });
        Fate::Waits(gate)
    });
    Saving::Group.run(&store).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    for reading in READINGS {
        reading.run(&store, dir.path()).await.unwrap();
    }
    world.save_again(Saving::Group, "slow").await;
}

struct Panics;

impl Source for Panics {
    fn len(&self) -> u64 {
        10 << 20
    }

    fn read_at(&self, _: &mut [u8], offset: u64) -> Result<()> {
        assert!(offset < 5 << 20, "as the test wants it");
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

impl std::io::Read for Panics {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("as the test wants it")
    }
}

impl Target for Panics {
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        panic!("as the test wants it")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_source_or_target_panics_gets_an_error() {
    let world = World::new(Place::Memory).await;
    let before = names(&*world.backend).await;
    for input in [
        Input::Source(Arc::new(Panics)),
        Input::stream(Panics, "a stream"),
    ] {
        let section = NewSection::blob(Role::Other, "x", input);
        let e = failure(
            in_time(
                "a save",
                save(&world.store, "next", vec![section], in_group()),
            )
            .await,
        );
        assert_eq!(e.kind(), ErrorKind::Source, "{e}");
        in_time("the end of the save", until_nobody_writes(&world)).await;
        assert_eq!(names(&*world.backend).await, before);
    }
    let base = world.store.snapshot(&id("base")).await.unwrap();
    let targets = vec![(0, Arc::new(Panics) as Arc<dyn Target>)];
    let options = RestoreOptions::default();
    let restore = base.restore_to(&world.store, targets, &options);
    let e = failure(in_time("a restore", restore).await);
    assert_eq!(e.kind(), ErrorKind::Target, "{e}");
    // The threads that panicked go on with the next job.
    world.save_again(Saving::Group, "after panics").await;
}
