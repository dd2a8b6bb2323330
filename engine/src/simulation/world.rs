//! One run of the simulation: savers that borrow from one another, removers, restorers and collectors, each on a machine of its own with a
//! clock of its own, and the judge that knows what each was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, atomic::Ordering::SeqCst},
    time::Duration,
};

use podsnap_format::{Role, SnapshotId, manifest::Extent};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    bucket::{Bucket, Link, Weather},
    chance::Chance,
};
use crate::{
    Catalog, CollectOptions, Input, NewSection, RemoveOptions, SaveOptions, Snapshot, Store,
    chunking,
    error::{Error, ErrorKind, Result},
    holder::Holder,
    host::{Host, Safeguard},
    lazy,
    source::Source,
    store,
};

/// How long collectors wait. Clocks differ by an hour, and nobody but who oversleeps sleeps for more than one.
const GRACE: Duration = Duration::from_secs(4 * 3600);

const PAGE: usize = 4096;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) seed: u64,
    pub(super) lacks: Option<Safeguard>,
}

/// A machine's own clock.
#[derive(Debug)]
struct Clock {
    begun: Instant,
    ahead_ms: u64,
    chance: Arc<Chance>,
    who: String,
    lacks: Option<Safeguard>,
}

impl Host for Clock {
    fn now_unix_ms(&self) -> u64 {
        1_800_000_000_000 + self.ahead_ms + self.begun.elapsed().as_millis() as u64
    }

    fn draw(&self) -> u64 {
        self.chance.word(&format!("{} draws", self.who))
    }

    fn process(&self) -> Option<Holder> {
        None
    }

    fn lacks(&self, safeguard: Safeguard) -> bool {
        self.lacks == Some(safeguard)
    }
}

/// A snapshot that a saver was told is committed.
#[derive(Debug, Clone)]
pub(super) struct Committed {
    pub(super) id: SnapshotId,
    /// Who wrote it: of all that ever had this id, this one.
    pub(super) saver: String,
    /// Seeds of its pages.
    pages: Vec<u64>,
    digest: String,
    borrows_from: BTreeSet<String>,
    /// Whether somebody wanted it gone.
    pub(super) unwanted: bool,
}

#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) committed: Vec<Committed>,
    /// Savers that were told that they have committed.
    pub(super) savers: BTreeSet<String>,
    /// Savers of snapshots that were removed by their name.
    pub(super) removed_by_name: BTreeSet<String>,
    /// Savers of snapshots that have had their time.
    pub(super) retired: BTreeSet<String>,
    /// Savers of snapshots that are pinned.
    pub(super) pinned: BTreeSet<String>,
    /// Removals that are under way, by name.
    removing: BTreeMap<String, u32>,
    /// When removals of each name last ended.
    removed: BTreeMap<String, Instant>,
    /// Snapshots whose packs were wanted gone at once.
    at_once: BTreeSet<String>,
    pub(super) wrong: Vec<String>,
    /// What happened, for the count.
    pub(super) granted: u64,
    pub(super) pins: u64,
    saves: u64,
    failed_saves: u64,
    restores: u64,
    removals: u64,
    crashes: u64,
}

impl Told {
    fn remove_by_name(&mut self, id: &SnapshotId) {
        for one in self.committed.iter_mut().filter(|c| c.id == *id) {
            one.unwanted = true;
            self.removed_by_name.insert(one.saver.clone());
        }
    }
}

pub(super) struct World {
    setting: Setting,
    weather: Weather,
    pub(super) chance: Arc<Chance>,
    pub(super) bucket: Arc<Bucket>,
    begun: Instant,
    pub(super) told: Mutex<Told>,
    /// Whether removers leave packs to collectors.
    gentle: bool,
}

/// What a run was.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) wrong: Vec<String>,
    pub(super) log: Vec<String>,
    pub(super) saves: u64,
    pub(super) restores: u64,
    pub(super) removals: u64,
    pub(super) failed_saves: u64,
    pub(super) crashes: u64,
    pub(super) granted: u64,
    pub(super) retired: u64,
    pub(super) pinned: u64,
}

/// All machines compute on one thread, one thing after another.
fn pool() -> Arc<OnceLock<rayon::ThreadPool>> {
    static POOL: OnceLock<Arc<OnceLock<rayon::ThreadPool>>> = OnceLock::new();
    POOL.get_or_init(|| {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(1);
        Arc::new(threads.build().unwrap().into())
    })
    .clone()
}

/// Waits until everything is computed that was begun. The clock stands still meanwhile, as it does not while the runtime waits for other
/// threads than its own.
async fn computed() {
    let waiting = tokio::task::spawn_blocking(|| {
        let (done, wait) = std::sync::mpsc::channel();
        let pool = pool();
        let threads = pool.get().unwrap();
        threads.spawn_fifo(move || {
            let _ = done.send(());
        });
        wait.recv()
    });
    waiting.await.unwrap().unwrap();
}

/// A runtime whose clock leaps over all waiting.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs a seed to its end.
pub(super) fn run(setting: Setting) -> Outcome {
    runtime().block_on(async {
        let chance = Arc::new(Chance::new(setting.seed));
        let weather = Weather {
            faults: true,
            long_sleeps: chance.one_in("long sleeps", 2),
            backwards: chance.one_in("listings run backwards", 2),
        };
        let world = Arc::new(World {
            setting,
            weather,
            gentle: chance.one_in("gentle removers", 2),
            bucket: Bucket::new(),
            begun: Instant::now(),
            told: Mutex::default(),
            chance,
        });
        world.clone().play().await;
        world.judge().await
    })
}

/// What a machine is made of, but for its link.
pub(super) struct Machine {
    pub(super) begun: Instant,
    pub(super) chance: Arc<Chance>,
    pub(super) lacks: Option<Safeguard>,
}

impl Machine {
    /// The store as it is seen from the machine with that link.
    pub(super) fn store(self, link: &Link) -> Store {
        let who = &link.who;
        let host = Clock {
            begun: self.begun,
            ahead_ms: self.chance.below(&format!("the clock of {who}"), 3_600_000),
            chance: self.chance,
            who: who.clone(),
            lacks: self.lacks,
        };
        Store(Arc::new(crate::Inner {
            url: who.clone(),
            backend: Arc::new(store::Checked(Arc::new(link.clone()))),
            key: None,
            pool: pool(),
            host: Arc::new(host),
            reading: lazy::Shared::new(None),
        }))
    }
}

impl World {
    pub(super) fn store(&self, link: &Link) -> Store {
        let machine = Machine {
            begun: self.begun,
            chance: self.chance.clone(),
            lacks: self.setting.lacks,
        };
        machine.store(link)
    }

    pub(super) fn link(&self, who: &str) -> Link {
        Link::new(&self.bucket, who, &self.chance, self.weather)
    }

    async fn play(self: Arc<Self>) {
        let mut playing = Vec::new();
        for number in 0..3 {
            playing.push(tokio::spawn(self.clone().saver(number)));
        }
        for number in 0..2 {
            playing.push(tokio::spawn(self.clone().collector(number)));
            playing.push(tokio::spawn(self.clone().remover(number)));
            playing.push(tokio::spawn(self.clone().restorer(number)));
            playing.push(tokio::spawn(self.clone().retainer(number)));
            playing.push(tokio::spawn(self.clone().agent(number)));
        }
        playing.push(tokio::spawn(self.clone().pinner()));
        for player in playing {
            player.await.unwrap();
        }
    }

    /// Lets a machine work until it is done, or dies.
    pub(super) async fn on(&self, link: &Link, work: impl Future<Output = ()>) {
        let about = format!("{} dies", link.who);
        let dies = self.chance.one_in(&about, 5);
        let when = self.chance.time(&about, Duration::from_secs(10));
        tokio::pin!(work);
        tokio::select! {
            () = &mut work => return,
            () = sleep(when), if dies => {}
        }
        // One that overslept and dies before it can take back what it did is more than anybody promises.
        if link.overslept.load(SeqCst) {
            return work.await;
        }
        link.dead.store(true, SeqCst);
        self.told.lock().unwrap().crashes += 1;
    }

    async fn saver(self: Arc<Self>, number: u32) {
        for round in 0..6 {
            let who = format!("saver {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(2 * 3600))).await;
            // Ids come again, so that what is late can hit the wrong one.
            let id = format!("s{}", self.chance.below(&who, 4));
            self.save_once(&who, &id.parse().unwrap()).await;
        }
    }

    async fn save_once(&self, who: &str, id: &SnapshotId) {
        let link = self.link(who);
        let store = self.store(&link);
        let group = ["g", "h"][self.chance.below(who, 2) as usize].to_owned();
        let known: Vec<Committed> = self.told.lock().unwrap().committed.clone();
        let base = self.chance.pick(who, &known);
        let mut pages: Vec<u64> = base.map_or(vec![1, 2, 3, 4], |base| base.pages.clone());
        let changed = self.chance.below(who, pages.len() as u64) as usize;
        pages[changed] = self.chance.word(who);
        let options = SaveOptions {
            bases: match base {
                Some(base) if self.chance.one_in(who, 2) => vec![base.id.clone()],
                _ => Vec::new(),
            },
            group: Some(group),
            ..SaveOptions::default()
        };
        let begun = Instant::now();
        let work = async {
            match save(&store, id, &pages, options).await {
                Ok(digest) => self.was_saved(who, id, pages.clone(), digest, begun),
                Err(_) => self.told.lock().unwrap().failed_saves += 1,
            }
        };
        self.on(&link, work).await;
    }

    fn was_saved(
        &self,
        who: &str,
        id: &SnapshotId,
        pages: Vec<u64>,
        digest: String,
        begun: Instant,
    ) {
        let borrows_from = self.bucket.owners_of_packs(id);
        let mut told = self.told.lock().unwrap();
        told.saves += 1;
        // It may have been removed by its name before its saver was told.
        let removed = told.removing.contains_key(id.as_str())
            || told.removed.get(id.as_str()).is_some_and(|at| *at >= begun);
        let unwanted = removed || told.retired.contains(who);
        told.savers.insert(who.to_owned());
        if removed {
            told.removed_by_name.insert(who.to_owned());
        }
        // One that is told so late that it has gone, and another has come, is not the last of its id.
        if unwanted && self.bucket.saver_of_snapshot(id).as_deref() != Some(who) {
            return;
        }
        for older in &mut told.committed {
            // One that could be saved over was gone.
            if older.id == *id && !older.unwanted {
                let wrong = format!("{id} ({}) was lost: it could be saved again", older.digest);
                told.wrong.push(wrong);
                break;
            }
        }
        told.committed.retain(|older| older.id != *id);
        told.committed.push(Committed {
            id: id.clone(),
            saver: who.to_owned(),
            pages,
            digest,
            borrows_from,
            unwanted,
        });
    }

    /// Two controllers remove the same snapshot at once, and somebody saves under its id again.
    async fn remover(self: Arc<Self>, number: u32) {
        for round in 0..4 {
            let who = format!("remover {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
            let known: Vec<SnapshotId> = {
                let told = self.told.lock().unwrap();
                told.committed.iter().map(|c| c.id.clone()).collect()
            };
            let Some(id) = self.chance.pick(&who, &known) else {
                continue;
            };
            let (other, next) = (format!("{who} too"), format!("{who} saves"));
            let second = async {
                if self.chance.one_in(&who, 2) {
                    self.remove_once(&other, id).await;
                }
            };
            tokio::join!(self.remove_once(&who, id), second);
            if self.chance.one_in(&who, 2) {
                self.save_once(&next, id).await;
            }
        }
    }

    async fn remove_once(&self, who: &str, id: &SnapshotId) {
        let link = self.link(who);
        let store = self.store(&link);
        let options = RemoveOptions {
            leave_packs: self.gentle || self.chance.one_in(who, 2),
        };
        {
            let mut told = self.told.lock().unwrap();
            told.removals += 1;
            *told.removing.entry(id.to_string()).or_default() += 1;
            if !options.leave_packs {
                told.at_once.insert(id.to_string());
            }
            told.remove_by_name(id);
        }
        let work = async {
            let _ = store.remove_with(id, &options).await;
        };
        self.on(&link, work).await;
        let mut told = self.told.lock().unwrap();
        // Anything of that name that came while it was being removed is fair game as well; what comes later is not.
        told.remove_by_name(id);
        told.removed.insert(id.to_string(), Instant::now());
        let left = told.removing.get_mut(id.as_str()).unwrap();
        *left -= 1;
        if *left == 0 {
            told.removing.remove(id.as_str());
        }
    }

    async fn collector(self: Arc<Self>, number: u32) {
        for round in 0..5 {
            let who = format!("collector {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(6 * 3600))).await;
            let link = self.link(&who);
            let store = self.store(&link);
            let work = async {
                let options = CollectOptions { grace: GRACE };
                let Ok(plan) = store.plan_collection(&options).await else {
                    return;
                };
                // Somebody looks at the plan before it is carried out.
                if self.chance.one_in(&who, 3) {
                    sleep(self.chance.time(&who, Duration::from_secs(3600))).await;
                }
                let _ = store.collect(plan, &CancellationToken::new()).await;
            };
            self.on(&link, work).await;
        }
    }

    async fn restorer(self: Arc<Self>, number: u32) {
        for round in 0..5 {
            let who = format!("restorer {number}.{round}");
            sleep(self.chance.time(&who, Duration::from_secs(4 * 3600))).await;
            let link = self.link(&who);
            let store = self.store(&link);
            let known: Vec<Committed> = self.told.lock().unwrap().committed.clone();
            let Some(wanted) = self.chance.pick(&who, &known).cloned() else {
                continue;
            };
            let linger = self.chance.time(&who, Duration::from_secs(3600));
            let result = restore(&store, &wanted, linger).await;
            self.was_restored(&wanted, result);
        }
    }

    fn was_restored(&self, wanted: &Committed, result: Result<()>) {
        let mut told = self.told.lock().unwrap();
        told.restores += 1;
        let unwanted = !told
            .committed
            .iter()
            .any(|c| c.digest == wanted.digest && !c.unwanted);
        let at_once = wanted
            .borrows_from
            .iter()
            .any(|owner| told.at_once.contains(owner));
        let Err(e) = result else { return };
        let excused = match e.kind() {
            // The link fails.
            ErrorKind::Store => true,
            // Another one by now, or gone.
            ErrorKind::NotFound => unwanted,
            // It was opened: only who says that it shall go at once may take its packs away.
            _ => unwanted && at_once,
        };
        if !excused {
            let wrong = format!("a restore of {} ({}) failed: {e}", wanted.id, wanted.digest);
            told.wrong.push(wrong);
        }
    }

    /// What nobody needs.
    fn garbage(&self) -> Vec<String> {
        let (needed, names) = (self.bucket.needed(), self.bucket.names());
        let is_needed = |name: &String| match name.split_once('/') {
            Some(("heads", _) | (_, "manifest")) => true,
            Some((id, _)) if is_note(name) => names.contains(&format!("{id}/manifest")),
            _ => needed.contains(name),
        };
        let mut garbage = names.clone();
        garbage.retain(|name| !is_needed(name));
        garbage
    }

    /// Lets the dust settle, collects what is left, and looks at what is there.
    async fn judge(&self) -> Outcome {
        sleep(Duration::from_secs(24 * 3600)).await;
        let link = Link::new(&self.bucket, "judge", &self.chance, Weather::calm());
        let store = self.store(&link);
        let mut wrong = std::mem::take(&mut self.told.lock().unwrap().wrong);
        if let Err(e) = self.retain_quietly(&store).await {
            wrong.push(format!("quiet retention: {e}"));
        }
        let options = CollectOptions { grace: GRACE };
        // Notes beside a lease are garbage when it has gone: in two passes more.
        for pass in 0..4 {
            let collected = async {
                let plan = store.plan_collection(&options).await?;
                store.collect(plan, &CancellationToken::new()).await
            };
            if let Err(e) = collected.await {
                wrong.push(format!("quiet pass {pass}: {e}"));
            }
            sleep(GRACE * 2).await;
            let garbage = self.garbage().into_iter();
            let due = garbage.filter(|name| pass == 3 || pass == 1 && !is_note(name));
            wrong.extend(due.map(|name| format!("{name} is garbage that pass {pass} left")));
        }
        wrong.extend(self.bucket.take_wrong());
        for (manifest, pack) in self.bucket.dangling() {
            wrong.push(format!("{manifest} needs {pack}, which is gone"));
        }
        let committed = self.told.lock().unwrap().committed.clone();
        for one in committed.iter().filter(|one| !one.unwanted) {
            if let Err(e) = restore(&store, one, Duration::ZERO).await {
                wrong.push(format!("{} ({}) was lost: {e}", one.id, one.digest));
            }
        }
        for group in ["g", "h"] {
            match Catalog::new(&store).newest(group).await {
                Ok(Some(_)) => {}
                _ if !self.bucket.has_group(group) => {}
                Ok(None) => wrong.push(format!("{group} has snapshots, but no head")),
                Err(e) => wrong.push(format!("the head of {group}: {e}")),
            }
        }
        let told = self.told.lock().unwrap();
        let there = self.bucket.savers();
        let pinned = told.pinned.difference(&told.removed_by_name);
        for saver in pinned.filter(|saver| told.savers.contains(*saver)) {
            if !there.contains(saver) {
                wrong.push(format!("what {saver} saved was pinned, and is gone"));
            }
        }
        Outcome {
            wrong,
            log: self.bucket.log(),
            saves: told.saves,
            restores: told.restores,
            removals: told.removals,
            failed_saves: told.failed_saves,
            crashes: told.crashes,
            granted: told.granted,
            retired: told.retired.difference(&there).count() as u64,
            pinned: told.pins,
        }
    }
}

/// Whether this is a note, or what collectors know of one.
fn is_note(name: &str) -> bool {
    let note = name.rsplit('/').next();
    matches!(
        note,
        Some("used" | "pinned" | "failed" | "deleting" | "seen")
    )
}

/// The bytes of a page.
fn page(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = (0..PAGE / 8).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state ^ state >> 29).to_le_bytes()
    });
    words.flatten().collect()
}

struct Pages(Vec<u8>);

impl Source for Pages {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

fn bytes_of(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|seed| page(*seed)).collect()
}

pub(super) async fn save(
    store: &Store,
    id: &SnapshotId,
    pages: &[u64],
    options: SaveOptions,
) -> Result<String> {
    let mut writer = store.save(id, options).await?;
    let input = Input::Source(Arc::new(Pages(bytes_of(pages))));
    let section = NewSection {
        chunking: Some(chunking::fixed(PAGE as u32)),
        ..NewSection::blob(Role::Memory, "", input)
    };
    writer.add(section).await?;
    computed().await;
    Ok(writer.finish().await?.digest)
}

/// Restores a snapshot and compares it, lingering between its opening and its reading.
async fn restore(store: &Store, wanted: &Committed, linger: Duration) -> Result<()> {
    let snapshot: Snapshot = store.snapshot(&wanted.id).await?;
    if snapshot.digest().to_string() != wanted.digest {
        return Err(Error::new(ErrorKind::NotFound, "it is another one by now"));
    }
    sleep(linger).await;
    if read_all(&snapshot).await? != bytes_of(&wanted.pages) {
        return Err(Error::new(ErrorKind::Damaged, "its bytes are others"));
    }
    Ok(())
}

/// All bytes of an open snapshot.
pub(super) async fn read_all(snapshot: &Snapshot) -> Result<Vec<u8>> {
    let mut found = Vec::new();
    for segment in snapshot.load_segments(0).await? {
        for extent in &segment.extents {
            let Extent::Chunk { chunk, .. } = extent else {
                return Err(Error::new(ErrorKind::Damaged, "it has zeros"));
            };
            let mut raw = Vec::new();
            snapshot
                .read_chunk(&segment.chunks[*chunk as usize], &mut raw)
                .await?;
            found.extend(raw);
        }
    }
    Ok(found)
}
