//! A bucket in memory, as it is seen over bad links: answers get lost, requests arrive late, listings take their time, machines sleep
//! and die. What is done to its objects is checked at the moment at which it is done.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use podsnap_format::{FOOTER_LEN, Footer, SnapshotId, manifest::Directory};
use tokio::time::{Instant, sleep, sleep_until};

use super::chance::Chance;
use crate::{
    error::{Error, ErrorKind, Result},
    metadata::Metadata,
    names,
    store::{
        Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, Version, not_found,
        precondition, too_short,
    },
};

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    version: u64,
}

#[derive(Debug, Default)]
struct Objects {
    by_name: BTreeMap<String, Object>,
    versions: u64,
    /// Packs that each manifest needs.
    needs: HashMap<String, HashSet<String>>,
    /// Everything that was changed, by whom and when.
    log: Vec<String>,
    /// Who changed each object, ever.
    changed_by: BTreeMap<String, BTreeSet<String>>,
    /// Writes of each object that came too late, as another had been there.
    lost_swaps: BTreeMap<String, u64>,
    /// Who wrote each version of a manifest, and of which group it is.
    manifests: HashMap<u64, (String, Option<String>)>,
    /// When each group last lost a snapshot to somebody who did not ask which is the newest.
    lost: HashMap<String, Instant>,
    /// What must not happen, and did.
    wrong: Vec<String>,
}

impl Objects {
    /// Manifests of that group.
    fn of_group(&self, group: &str) -> impl Iterator<Item = &String> {
        self.needs.keys().filter(move |name| {
            let (_, of) = &self.manifests[&self.by_name[*name].version];
            of.as_deref() == Some(group)
        })
    }

    /// A snapshot of that group was removed.
    fn lose(&mut self, who: &str, name: &str, group: &str) {
        let now = Instant::now();
        if !who.starts_with(RETAINER) {
            self.lost.insert(group.to_owned(), now);
            return;
        }
        // Between its last look and the arrival of what it decided, somebody else may remove the newest.
        let excused = |at: &Instant| now - *at < Duration::from_secs(2 * 3600);
        if self.of_group(group).next().is_none() && !self.lost.get(group).is_some_and(excused) {
            let wrong = format!("{who} deletes {name}, the last of {group}");
            self.wrong.push(wrong);
        }
    }
}

/// So are those called who remove what has had its time.
pub(super) const RETAINER: &str = "retainer";

/// The bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    objects: Mutex<Objects>,
    begun: Instant,
}

impl Bucket {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: Mutex::default(),
            begun: Instant::now(),
        })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.objects
            .lock()
            .unwrap()
            .by_name
            .keys()
            .cloned()
            .collect()
    }

    /// Manifests, with packs that they need and that are not there.
    pub(super) fn dangling(&self) -> Vec<(String, String)> {
        let objects = self.objects.lock().unwrap();
        let needs = objects.needs.iter();
        let all =
            needs.flat_map(|(manifest, packs)| packs.iter().map(move |pack| (manifest, pack)));
        all.filter(|(_, pack)| !objects.by_name.contains_key(*pack))
            .map(|(manifest, pack)| (manifest.clone(), pack.clone()))
            .collect()
    }

    /// The snapshots in which the packs of one lie, itself included.
    pub(super) fn owners_of_packs(&self, id: &SnapshotId) -> BTreeSet<String> {
        let objects = self.objects.lock().unwrap();
        let packs = objects.needs.get(&names::object(id, names::MANIFEST));
        let owners = packs.into_iter().flatten();
        owners
            .filter_map(|pack| Some(pack.split_once('/')?.0.to_owned()))
            .chain([id.to_string()])
            .collect()
    }

    /// Who wrote that version of a manifest.
    pub(super) fn saver_of(&self, manifest: &Version) -> Option<String> {
        let objects = self.objects.lock().unwrap();
        let (who, _) = objects.manifests.get(&manifest.0.parse().ok()?)?;
        Some(who.clone())
    }

    /// Who wrote the manifest that a snapshot has now.
    pub(super) fn saver_of_snapshot(&self, id: &SnapshotId) -> Option<String> {
        let manifest = self.get(&names::object(id, names::MANIFEST)).ok()?;
        self.saver_of(&Version(manifest.version.to_string()))
    }

    /// Who wrote the manifests that are there.
    pub(super) fn savers(&self) -> BTreeSet<String> {
        let objects = self.objects.lock().unwrap();
        let manifests = objects.needs.keys().map(|name| &objects.by_name[name]);
        manifests
            .map(|object| objects.manifests[&object.version].0.clone())
            .collect()
    }

    /// Whether there is a snapshot of that group.
    pub(super) fn has_group(&self, group: &str) -> bool {
        let objects = self.objects.lock().unwrap();
        objects.of_group(group).next().is_some()
    }

    /// Packs that manifests need.
    pub(super) fn needed(&self) -> HashSet<String> {
        let objects = self.objects.lock().unwrap();
        objects.needs.values().flatten().cloned().collect()
    }

    pub(super) fn take_wrong(&self) -> Vec<String> {
        std::mem::take(&mut self.objects.lock().unwrap().wrong)
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.objects.lock().unwrap().log.clone()
    }

    pub(super) fn changed_by(&self) -> BTreeMap<String, BTreeSet<String>> {
        self.objects.lock().unwrap().changed_by.clone()
    }

    pub(super) fn lost_swaps(&self) -> BTreeMap<String, u64> {
        self.objects.lock().unwrap().lost_swaps.clone()
    }

    fn note(&self, objects: &mut Objects, who: &str, name: &str, what: String) {
        let at = self.begun.elapsed().as_millis();
        let by = objects.changed_by.entry(name.to_owned()).or_default();
        by.insert(who.to_owned());
        objects.log.push(format!("{at:>9} {who}: {what}"));
    }

    fn put(
        &self,
        who: &str,
        name: &str,
        bytes: Bytes,
        condition: &Condition,
    ) -> Result<ObjectMeta> {
        let mut objects = self.objects.lock().unwrap();
        let found = objects.by_name.get(name).map(|object| object.version);
        let holds = match condition {
            Condition::Absent => found.is_none(),
            Condition::Matches(version) => {
                found.is_some_and(|found| found.to_string() == version.0)
            }
        };
        if !holds {
            *objects.lost_swaps.entry(name.to_owned()).or_default() += 1;
            return Err(precondition(name));
        }
        objects.versions += 1;
        let version = objects.versions;
        if name.ends_with("/manifest") {
            let directory = directory(&bytes);
            objects.needs.insert(name.to_owned(), needs(&directory));
            let metadata: Metadata = serde_json::from_str(&directory.metadata).expect("metadata");
            let saved = (who.to_owned(), metadata.group);
            objects.manifests.insert(version, saved);
        }
        let text = match bytes.len() {
            0..400 => String::from_utf8_lossy(&bytes).split_whitespace().collect(),
            len => format!("{len} bytes"),
        };
        self.note(
            &mut objects,
            who,
            name,
            format!("put {name} {version}: {text}"),
        );
        let meta = meta(name, bytes.len(), version);
        objects
            .by_name
            .insert(name.to_owned(), Object { bytes, version });
        Ok(meta)
    }

    fn delete(&self, who: &str, name: &str, version: Option<&Version>) -> Result<()> {
        let mut objects = self.objects.lock().unwrap();
        let Some(found) = objects.by_name.get(name) else {
            return Ok(());
        };
        if version.is_some_and(|version| found.version.to_string() != version.0) {
            return Err(precondition(name));
        }
        let version = found.version;
        objects.by_name.remove(name);
        objects.needs.remove(name);
        if let Some((_, Some(group))) = objects.manifests.get(&version).cloned() {
            objects.lose(who, name, &group);
        }
        self.note(&mut objects, who, name, format!("delete {name}"));
        let users: Vec<String> = objects
            .needs
            .iter()
            .filter(|(_, packs)| packs.contains(name))
            .map(|(manifest, _)| manifest.clone())
            .collect();
        if !users.is_empty() {
            let wrong = format!("{who} deletes {name}, which {users:?} need");
            objects.wrong.push(wrong);
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Result<Object> {
        let objects = self.objects.lock().unwrap();
        objects
            .by_name
            .get(name)
            .cloned()
            .ok_or_else(|| not_found(name))
    }

    /// The next names of a listing that goes forwards or backwards.
    fn page(
        &self,
        below: &str,
        after: Option<&str>,
        backwards: bool,
        len: usize,
    ) -> Vec<ObjectMeta> {
        use std::ops::Bound::{Excluded, Unbounded};
        let objects = self.objects.lock().unwrap();
        let meta =
            |(name, object): (&String, &Object)| meta(name, object.bytes.len(), object.version);
        let bound = after.map_or(Unbounded, Excluded);
        match backwards {
            false => objects
                .by_name
                .range::<str, _>((bound, Unbounded))
                .filter(|(name, _)| name.starts_with(below))
                .take(len)
                .map(meta)
                .collect(),
            true => objects
                .by_name
                .range::<str, _>((Unbounded, bound))
                .rev()
                .filter(|(name, _)| name.starts_with(below))
                .take(len)
                .map(meta)
                .collect(),
        }
    }
}

fn meta(name: &str, len: usize, version: u64) -> ObjectMeta {
    ObjectMeta {
        name: name.to_owned(),
        len: len as u64,
        version: Version(version.to_string()),
    }
}

fn directory(manifest: &[u8]) -> Directory {
    let footer = Footer::parse(&manifest[manifest.len() - FOOTER_LEN..]).expect("a footer");
    let end = footer.trailer_offset + footer.trailer_len;
    let trailer = &manifest[footer.trailer_offset as usize..end as usize];
    Directory::parse(&footer, trailer).expect("a directory")
}

/// The packs that a manifest names.
fn needs(directory: &Directory) -> HashSet<String> {
    let packs = directory.packs.iter();
    packs
        .map(|pack| names::object(&pack.snapshot, &pack.name))
        .collect()
}

/// How bad links and machines are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// Whether anything goes wrong at all.
    pub(super) faults: bool,
    /// Whether machines sleep for longer than collectors wait.
    pub(super) long_sleeps: bool,
    pub(super) backwards: bool,
}

impl Weather {
    pub(super) fn calm() -> Self {
        Self {
            faults: false,
            long_sleeps: false,
            backwards: false,
        }
    }
}

/// What one machine sees of the bucket. Clones are of the same machine.
#[derive(Clone)]
pub(super) struct Link(Arc<Machine>);

pub(super) struct Machine {
    pub(super) bucket: Arc<Bucket>,
    pub(super) who: String,
    pub(super) chance: Arc<Chance>,
    pub(super) weather: Weather,
    /// Nothing of a dead machine's arrives any more, but what was sent before.
    pub(super) dead: AtomicBool,
    awake_at: Mutex<Instant>,
    /// Whether it slept longer than a collector waits.
    pub(super) overslept: AtomicBool,
}

impl std::ops::Deref for Link {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.who)
    }
}

/// What an operation does to the bucket when it arrives.
type Arrival<T> = Box<dyn FnOnce(&Bucket, &str) -> Result<T> + Send>;

impl Link {
    pub(super) fn new(
        bucket: &Arc<Bucket>,
        who: &str,
        chance: &Arc<Chance>,
        weather: Weather,
    ) -> Self {
        Self(Arc::new(Machine {
            bucket: bucket.clone(),
            who: who.to_owned(),
            chance: chance.clone(),
            weather,
            dead: AtomicBool::new(false),
            awake_at: Mutex::new(Instant::now()),
            overslept: AtomicBool::new(false),
        }))
    }

    /// Waits while the machine is asleep, for ever if it is dead.
    async fn be_awake(&self) {
        loop {
            let awake_at = *self.awake_at.lock().unwrap();
            if self.dead.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            if awake_at <= Instant::now() {
                return;
            }
            sleep_until(awake_at).await;
        }
    }

    /// Perhaps puts the whole machine to sleep.
    fn maybe_sleep(&self, call: &str, name: &str) {
        if !self.weather.faults {
            return;
        }
        let commits = call == "put" && name.ends_with("/manifest");
        let question = format!("{} sleeps", self.who);
        let every = if commits { 6 } else { 150 };
        if !self.chance.one_in(&question, every) {
            return;
        }
        let mut longest = Duration::from_secs(40 * 60);
        if commits && self.weather.long_sleeps && self.chance.one_in(&question, 2) {
            self.overslept.store(true, Ordering::SeqCst);
            longest = Duration::from_secs(12 * 3600);
        }
        let until = Instant::now() + self.chance.time(&question, longest);
        *self.awake_at.lock().unwrap() = until;
    }

    /// Sends one request: it may be refused, arrive late, or arrive without anybody hearing of it.
    async fn send<T: Send + 'static>(
        &self,
        call: &str,
        name: &str,
        changes: bool,
        arrival: Arrival<T>,
    ) -> Result<T> {
        self.be_awake().await;
        self.maybe_sleep(call, name);
        self.be_awake().await;
        let chance = &self.chance;
        // Names of packs have the attempt's number in them.
        let about = format!(
            "{} {call} {}",
            self.who,
            name.split("/pack-").next().unwrap_or(name)
        );
        let way = chance.time(&about, Duration::from_millis(400));
        // Who overslept is not tried any further.
        let overslept = self.overslept.load(Ordering::SeqCst);
        let (refused, lost, late) = match self.weather.faults {
            true => (
                chance.one_in(&about, 120),
                chance.one_in(&about, 80),
                changes
                    && !overslept
                    && chance.one_in(&about, if call == "delete" { 8 } else { 80 }),
            ),
            false => (false, false, false),
        };
        let failed = || {
            Error::new(
                ErrorKind::Store,
                format!("{call} of {name} fails, as the simulation wants it"),
            )
        };
        if refused {
            sleep(way).await;
            return Err(failed());
        }
        let (bucket, who) = (self.bucket.clone(), self.who.clone());
        let way = match late {
            true => way + chance.time(&about, Duration::from_secs(30 * 60)),
            false => way,
        };
        // A request that is on its way arrives, whatever becomes of who sent it.
        let request = tokio::spawn(async move {
            sleep(way).await;
            arrival(&bucket, &who)
        });
        if late {
            sleep(chance.time(&about, Duration::from_millis(400))).await;
            self.be_awake().await;
            return Err(failed());
        }
        let answer = request.await.expect("the bucket does not panic");
        sleep(chance.time(&about, Duration::from_millis(100))).await;
        self.be_awake().await;
        if lost { Err(failed()) } else { answer }
    }
}

#[async_trait]
impl Backend for Link {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let (object, version) = (name.to_owned(), version.cloned());
        let arrival = move |bucket: &Bucket, _: &str| {
            let found = bucket.get(&object)?;
            if version.is_some_and(|version| version.0 != found.version.to_string()) {
                return Err(precondition(&object));
            }
            let len = found.bytes.len() as u64;
            let range = match range {
                ReadRange::Exact(range) => range,
                ReadRange::Suffix(suffix) => len.saturating_sub(suffix)..len,
            };
            if range.end > len {
                return Err(too_short(&object, len, &range));
            }
            Ok(ReadBytes {
                bytes: found.bytes.slice(range.start as usize..range.end as usize),
                offset: range.start,
                meta: meta(&object, found.bytes.len(), found.version),
            })
        };
        self.send("read", name, false, Box::new(arrival)).await
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        let object = name.to_owned();
        let arrival = move |bucket: &Bucket, _: &str| {
            let found = bucket.get(&object)?;
            Ok(meta(&object, found.bytes.len(), found.version))
        };
        self.send("head", name, false, Box::new(arrival)).await
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        let object = name.to_owned();
        let arrival = move |bucket: &Bucket, who: &str| bucket.put(who, &object, bytes, &condition);
        self.send("put", name, true, Box::new(arrival)).await
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        self.be_awake().await;
        Ok(Box::new(Writer {
            link: self.clone(),
            name: name.to_owned(),
            bytes: BytesMut::new(),
        }))
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        let (object, version) = (name.to_owned(), version.cloned());
        let arrival =
            move |bucket: &Bucket, who: &str| bucket.delete(who, &object, version.as_ref());
        self.send("delete", name, true, Box::new(arrival)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let below = match prefix {
            "" => String::new(),
            some => format!("{some}/"),
        };
        let about = format!("{} lists", self.who);
        let slow = self.weather.faults && self.chance.one_in(&about, 10);
        let longest = Duration::from_millis(if slow { 120_000 } else { 50 });
        let mut found: Vec<ObjectMeta> = Vec::new();
        loop {
            let after = found.last().map(|meta| meta.name.clone());
            let backwards = self.weather.backwards;
            let below = below.clone();
            let arrival = move |bucket: &Bucket, _: &str| {
                Ok(bucket.page(&below, after.as_deref(), backwards, 3))
            };
            let page = self.send("list", "", false, Box::new(arrival)).await?;
            if page.is_empty() {
                return Ok(found);
            }
            found.extend(page);
            sleep(self.chance.time(&about, longest)).await;
        }
    }

    fn read_len(&self) -> u64 {
        1 << 20
    }

    fn reads_at_once(&self) -> usize {
        4
    }

    fn pack_len(&self) -> u64 {
        1 << 20
    }
}

struct Writer {
    link: Link,
    name: String,
    bytes: BytesMut,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<ObjectMeta> {
        let bytes = self.bytes.freeze();
        self.link.put(&self.name, bytes, Condition::Absent).await
    }

    async fn abort(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
