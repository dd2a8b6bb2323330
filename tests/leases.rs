//! Who may write and who may delete: leases and heads, between savers and removers that know nothing of each other.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use podsnap::{
    CancellationToken, CollectOptions, CollectStats, CollectionPlan, ErrorKind, RemoveOptions,
    Result, SaveOptions, SnapshotWriter, Store,
    store::{Backend, Condition, LocalBackend, ReadRange, RemoteBackend},
};
use support::{
    backend::{Call, Fate, Watched, names, own_names},
    *,
};
use tokio::sync::watch;

/// A lease as SPEC.md lays it out.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct LeaseRecord {
    attempt: String,
    previous: Vec<String>,
    bases: Vec<String>,
    expires_unix_ms: u64,
    holder: Option<Holder>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Holder {
    host: String,
    boot: String,
    pid_namespace: String,
    pid: u32,
    started: u64,
}

struct Scratch {
    backend: Arc<dyn Backend>,
    store: Store,
    dir: tempfile::TempDir,
}

/// A store in memory and one in a directory.
fn stores() -> [Scratch; 2] {
    let dirs = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let [memory, local] = dirs;
    let in_memory = RemoteBackend::memory(memory.path().to_str().unwrap());
    let in_dir = LocalBackend::new(local.path().join("store"), false).unwrap();
    let scratch = |backend: Arc<dyn Backend>, dir| Scratch {
        store: Store::from_backend("store", backend.clone(), None),
        backend,
        dir,
    };
    [
        scratch(Arc::new(in_memory), memory),
        scratch(Arc::new(in_dir), local),
    ]
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis() as u64
}

const HOUR: u64 = 3_600_000;

/// A lease of somebody who cannot be asked.
fn lease() -> LeaseRecord {
    LeaseRecord {
        attempt: "00000000000000aa".into(),
        previous: Vec::new(),
        bases: Vec::new(),
        expires_unix_ms: now() + HOUR,
        holder: None,
    }
}

fn expired() -> LeaseRecord {
    LeaseRecord {
        expires_unix_ms: now() - 1,
        ..lease()
    }
}

impl Scratch {
    async fn put(&self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.backend.delete(name, None).await.unwrap();
        let bytes: Vec<u8> = bytes.into();
        self.backend
            .put(name, bytes.into(), Condition::Absent)
            .await
            .unwrap();
    }

    async fn put_lease(&self, id: &str, lease: &LeaseRecord) {
        self.put(&format!("{id}/lease"), serde_json::to_vec(lease).unwrap())
            .await;
    }

    async fn read(&self, name: &str) -> Option<Vec<u8>> {
        match self
            .backend
            .read(name, ReadRange::Suffix(1 << 20), None)
            .await
        {
            Ok(read) => Some(read.bytes.to_vec()),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => panic!("{e}"),
        }
    }

    /// What puts an object into the place of another, in a directory, in the middle of a call.
    fn replaces(&self, name: &str, lease: &LeaseRecord) -> impl Fn() + Send + Sync + 'static {
        let object = self.dir.path().join("store").join(name);
        let (json, new) = (
            serde_json::to_vec(lease).unwrap(),
            object.with_extension("new"),
        );
        move || {
            fs::write(&new, &json).unwrap();
            fs::rename(&new, &object).unwrap();
        }
    }

    async fn lease_of(&self, id: &str) -> Option<LeaseRecord> {
        let json = self.read(&format!("{id}/lease")).await?;
        Some(serde_json::from_slice(&json).unwrap())
    }

    async fn head(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_slice(&self.read("heads/g").await?).unwrap();
        Some(json["snapshot"].as_str().unwrap().to_owned())
    }

    async fn names(&self) -> BTreeSet<String> {
        names(&*self.backend).await
    }

    fn watched(&self, hook: impl Fn(Call, &str) -> Fate + Send + Sync + 'static) -> Store {
        Watched::new(self.backend.clone(), hook).store()
    }

    async fn save(&self, name: &str) -> Result<()> {
        let sections = vec![blob("x", &noise(1, 100_000))];
        save(&self.store, name, sections, SaveOptions::default())
            .await
            .map(drop)
    }

    /// `name` is saved, and there is nothing else under its name.
    async fn assert_saved(&self, name: &str) {
        assert_sound(&self.store, name).await;
        let prefix = format!("{name}/");
        let found = self
            .names()
            .await
            .into_iter()
            .filter(|object| object.starts_with(&prefix));
        assert_eq!(
            found.collect::<BTreeSet<_>>(),
            own_names(&self.store, name).await
        );
    }
}

/// The plan of a collector that waits for nothing.
async fn plan(store: &Store) -> CollectionPlan {
    let options = CollectOptions {
        grace: Duration::ZERO,
    };
    store.plan_collection(&options).await.unwrap()
}

async fn carry_out(store: &Store, plan: CollectionPlan) -> CollectStats {
    let cancel = CancellationToken::new();
    store.collect(plan, &cancel).await.unwrap()
}

/// A pass of such a collector.
async fn collect(store: &Store) -> CollectStats {
    carry_out(store, plan(store).await).await
}

fn in_group() -> SaveOptions {
    SaveOptions {
        group: Some("g".into()),
        ..SaveOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_lease_refuses_another_save_of_its_snapshot() {
    for scratch in stores() {
        let theirs = lease();
        scratch.put_lease("s", &theirs).await;
        let e = failure(scratch.save("s").await);
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert!(
            e.to_string().contains("s is being written by somebody"),
            "{e}"
        );
        assert_eq!(
            scratch.names().await,
            BTreeSet::from(["s/lease".to_owned()])
        );
        assert_eq!(scratch.lease_of("s").await, Some(theirs));
        scratch.save("another").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_save_of_this_process_is_refused_and_harms_nothing() {
    for scratch in stores() {
        let mut writer = scratch
            .store
            .save(&id("s"), SaveOptions::default())
            .await
            .unwrap();
        writer.add(blob("x", &noise(1, 100_000))).await.unwrap();
        let e = failure(scratch.save("s").await);
        assert_eq!(e.kind(), ErrorKind::Conflict);
        let this = format!("process {}", std::process::id());
        assert!(e.to_string().contains(&this), "{e}");
        writer.finish().await.unwrap();
        scratch.assert_saved("s").await;
    }
}

/// Packs of the attempts `aa`, two of them, and `bb`, and objects that are nobody's business.
async fn leave_behind(scratch: &Scratch) {
    for object in [
        "s/pack-00000000000000aa-0",
        "s/pack-00000000000000aa-1",
        "s/pack-00000000000000bb-0",
        "s/notes",
        "t/pack-00000000000000aa-0",
    ] {
        scratch.put(object, "left behind").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ran_out_is_taken_over_and_what_it_left_goes() {
    for scratch in stores() {
        leave_behind(&scratch).await;
        let old = LeaseRecord {
            previous: vec!["00000000000000bb".into()],
            ..expired()
        };
        scratch.put_lease("s", &old).await;
        let writer = scratch
            .store
            .save(&id("s"), SaveOptions::default())
            .await
            .unwrap();
        let taken = scratch.lease_of("s").await.unwrap();
        // Only of those that are known to be dead: the one whose time is over may be asleep.
        assert_eq!(taken.previous, ["00000000000000bb"]);
        assert_ne!(taken.attempt, old.attempt);
        assert!(taken.expires_unix_ms > now() + 60_000);
        writer.finish().await.unwrap();
        let mut expected = own_names(&scratch.store, "s").await;
        expected.insert("s/notes".to_owned());
        let mut for_now = expected.clone();
        for pack in [
            "s/pack-00000000000000aa-0",
            "s/pack-00000000000000aa-1",
            "t/pack-00000000000000aa-0",
        ] {
            for_now.insert(pack.to_owned());
        }
        assert_eq!(scratch.names().await, for_now);
        assert_eq!(collect(&scratch.store).await.kept_objects, 3);
        assert_eq!(collect(&scratch.store).await.deleted_objects, 3);
        assert_eq!(scratch.names().await, expected);
        assert_sound(&scratch.store, "s").await;
    }
}

/// The holder of a lease, as the process `pid` of this machine.
fn holder(pid: u32) -> Holder {
    let read = |path: &str| fs::read_to_string(path).unwrap().trim().to_owned();
    let stat = read(&format!("/proc/{pid}/stat"));
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap();
    Holder {
        host: read("/proc/sys/kernel/hostname"),
        boot: read("/proc/sys/kernel/random/boot_id"),
        pid_namespace: namespace.to_str().unwrap().to_owned(),
        pid,
        started: fields[19].parse().unwrap(),
    }
}

fn sleeping() -> Child {
    Command::new("sleep")
        .arg("1000")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_taken_over_at_once_if_its_holder_is_known_to_be_dead() {
    for scratch in stores() {
        let mut child = sleeping();
        let living = holder(child.id());
        let held_by = |holder: Holder| LeaseRecord {
            holder: Some(holder),
            ..lease()
        };
        let other = "another".to_owned();
        let unknown = [
            living.clone(),
            Holder {
                boot: other.clone(),
                pid: 1 << 30,
                ..living.clone()
            },
            Holder {
                pid_namespace: other.clone(),
                pid: 1 << 30,
                ..living.clone()
            },
        ];
        for holder in unknown {
            scratch.put_lease("s", &held_by(holder.clone())).await;
            let e = failure(scratch.save("s").await);
            assert_eq!(e.kind(), ErrorKind::Conflict, "{holder:?}: {e}");
        }
        // Its number was given to another process since.
        let recycled = Holder {
            started: living.started - 1,
            ..living.clone()
        };
        // Dead, but nobody has asked for its exit status yet.
        child.kill().unwrap();
        let stat = format!("/proc/{}/stat", living.pid);
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for holder in [recycled, living.clone()] {
            leave_behind(&scratch).await;
            scratch.put_lease("s", &held_by(holder.clone())).await;
            scratch
                .save("s")
                .await
                .unwrap_or_else(|e| panic!("{holder:?}: {e}"));
            let names = scratch.names().await;
            assert!(
                !names
                    .iter()
                    .any(|name| name.starts_with("s/pack-00000000000000aa-")),
                "{names:?}"
            );
            // Of an attempt that nobody knows anything of, so it stays for a collector.
            assert!(names.contains("s/pack-00000000000000bb-0"), "{names:?}");
            let removed = scratch.store.remove(&id("s")).await.unwrap();
            assert_eq!((removed.kept_objects, removed.needed_by), (1, Vec::new()));
        }
        child.wait().unwrap();
        scratch.put_lease("s", &held_by(living)).await;
        scratch.save("s").await.unwrap();
        assert_sound(&scratch.store, "s").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_no_lease_stops_those_who_would_have_to_heed_it() {
    for scratch in stores() {
        scratch.save("base").await.unwrap();
        let long = [b"{".to_vec(), vec![b' '; 2 << 20], b"}".to_vec()].concat();
        for garbage in [Vec::new(), b"no JSON".to_vec(), b"{}".to_vec(), long] {
            scratch.put("s/lease", garbage.clone()).await;
            let e = failure(scratch.save("s").await);
            assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
            assert!(e.to_string().contains("s/lease"), "{e}");
            let names = scratch.names().await;
            let packs = names.iter().filter(|name| name.contains("/pack-")).count();
            let removed = scratch.store.remove(&id("base")).await.unwrap();
            assert_eq!(removed.kept_objects, packs as u64);
            assert!(
                removed.needed_by[0].contains("perhaps s, which cannot be read"),
                "{removed:?}"
            );
            for _ in 0..2 {
                let stats = collect(&scratch.store).await;
                assert_eq!(stats.deleted_objects, 0);
            }
            scratch.save("base").await.unwrap();
        }
        scratch.backend.delete("s/lease", None).await.unwrap();
        scratch.store.remove(&id("base")).await.unwrap();
        for _ in 0..2 {
            collect(&scratch.store).await;
        }
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saver_whose_lease_was_taken_over_gives_up_and_touches_nothing_of_the_others() {
    for scratch in stores() {
        let mut writer = scratch.store.save(&id("s"), in_group()).await.unwrap();
        writer.add(blob("x", &noise(1, 100_000))).await.unwrap();
        let theirs = lease();
        scratch.put_lease("s", &theirs).await;
        scratch.put("s/pack-00000000000000aa-0", "theirs").await;
        let e = failure(writer.finish().await);
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        assert!(e.to_string().contains("the lease on s was lost"), "{e}");
        let left = ["s/lease", "s/pack-00000000000000aa-0"].map(str::to_owned);
        assert_eq!(scratch.names().await, BTreeSet::from(left));
        assert_eq!(scratch.lease_of("s").await, Some(theirs));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saver_whose_lease_ran_out_or_is_gone_gives_up() {
    for scratch in stores() {
        for gone in [false, true] {
            let mut writer = scratch.store.save(&id("s"), in_group()).await.unwrap();
            writer.add(blob("x", &noise(1, 100_000))).await.unwrap();
            let ours = scratch.lease_of("s").await.unwrap();
            match gone {
                true => scratch.backend.delete("s/lease", None).await.unwrap(),
                // Half a minute is too little to commit in.
                false => {
                    let expires_unix_ms = now() + 30_000;
                    scratch
                        .put_lease(
                            "s",
                            &LeaseRecord {
                                expires_unix_ms,
                                ..ours
                            },
                        )
                        .await;
                }
            }
            let e = failure(writer.finish().await);
            assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
            assert_eq!(scratch.names().await, BTreeSet::new());
        }
        scratch.save("s").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_need_outlives_its_snapshot() {
    for scratch in stores() {
        let store = &scratch.store;
        let bytes = noise(1, 300_000);
        save_one(store, "a", &bytes, in_group()).await;
        let more = [&bytes[..], &noise(2, 100_000)].concat();
        save_one(store, "b", &more, on_base("a")).await;
        save_one(store, "c", &more, on_base("b")).await;
        let packs = scratch.names().await;
        let packs = packs.iter().filter(|name| name.contains("/pack-"));
        for (needed, by) in [
            ("a", &["snapshot b", "snapshot c"][..]),
            ("b", &["snapshot c"]),
        ] {
            let removed = store.remove(&id(needed)).await.unwrap();
            assert_eq!(removed.needed_by, by);
            assert_eq!(
                failure(store.snapshot(&id(needed)).await).kind(),
                ErrorKind::NotFound
            );
            for _ in 0..2 {
                assert_eq!(collect(store).await.deleted_objects, 0);
            }
            let now = scratch.names().await;
            assert!(packs.clone().all(|pack| now.contains(pack)));
            assert_eq!(scratch.head().await, None);
            assert_sound(store, "c").await;
        }
        store.remove(&id("c")).await.unwrap();
        assert_eq!(collect(store).await.deleted_objects, 0);
        let left = packs.clone().filter(|pack| !pack.starts_with("c/"));
        assert_eq!(collect(store).await.deleted_objects, left.count() as u64);
        assert_eq!(scratch.names().await, BTreeSet::new());
        let e = failure(store.remove(&id("a")).await);
        assert_eq!(e.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_base_of_fifty_snapshots_goes_and_all_fifty_restore() {
    for scratch in stores() {
        let store = &scratch.store;
        let bytes = noise(1, 300_000);
        save_one(store, "base", &bytes, in_group()).await;
        for number in 0..50 {
            let own = [&bytes[..], &noise(100 + number, 20_000)].concat();
            // Some borrow from the base itself, some through another one.
            let base = match number % 5 {
                0 => "base".to_owned(),
                _ => format!("s{}", number - 1),
            };
            save_one(store, &format!("s{number}"), &own, on_base(&base)).await;
        }
        let removed = store.remove(&id("base")).await.unwrap();
        assert_eq!(removed.needed_by.len(), 50);
        for _ in 0..2 {
            assert_eq!(collect(store).await.deleted_objects, 0);
        }
        for number in 0..50 {
            let own = [&bytes[..], &noise(100 + number, 20_000)].concat();
            let found = restored(store, &format!("s{number}")).await;
            assert_bytes(&found[0], &own, "one of fifty");
        }
        for number in 0..50 {
            store.remove(&id(&format!("s{number}"))).await.unwrap();
        }
        for _ in 0..2 {
            collect(store).await;
        }
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_heeds_leases_and_takes_away_those_that_are_dead_in_two_passes() {
    for scratch in stores() {
        let store = &scratch.store;
        save_one(store, "base", &noise(1, 300_000), SaveOptions::default()).await;
        let relying = LeaseRecord {
            bases: vec!["base".into()],
            ..lease()
        };
        scratch.put_lease("s", &relying).await;
        scratch.put("s/pack-00000000000000aa-0", "unfinished").await;
        scratch.put("s/notes", "somebody's").await;
        store.remove(&id("base")).await.unwrap();
        let all = scratch.names().await;
        for _ in 0..2 {
            assert_eq!(collect(store).await.deleted_objects, 0);
            assert_eq!(scratch.names().await, all);
        }
        let dead = LeaseRecord {
            expires_unix_ms: now() - 1,
            ..relying
        };
        scratch.put_lease("s", &dead).await;
        assert_eq!(collect(store).await.deleted_objects, 0);
        // Renewed in between, by a holder that slept: it is another one than was seen.
        scratch.put_lease("s", &dead).await;
        assert_eq!(collect(store).await.deleted_objects, 0);
        let options = CollectOptions {
            grace: Duration::from_secs(3600),
        };
        let plan = store.plan_collection(&options).await.unwrap();
        assert!(plan.delete.is_empty(), "{plan:?}");
        assert_eq!(plan.foreign_objects, 1);
        assert_eq!(collect(store).await.deleted_objects, all.len() as u64 - 1);
        assert_eq!(
            scratch.names().await,
            BTreeSet::from(["s/notes".to_owned()])
        );
    }
}

/// The same lease, run out.
fn run_out(lease: LeaseRecord) -> LeaseRecord {
    LeaseRecord {
        expires_unix_ms: now() - 1,
        ..lease
    }
}

/// The lease of the save of `s` runs out, its base goes, and a collection is planned that will end it: the lease as it was, and the plan.
async fn planned_over(scratch: &Scratch) -> (LeaseRecord, CollectionPlan) {
    let ours = scratch.lease_of("s").await.unwrap();
    scratch.put_lease("s", &run_out(ours.clone())).await;
    scratch.store.remove(&id("base")).await.unwrap();
    assert_eq!(collect(&scratch.store).await.deleted_objects, 0);
    let plan = plan(&scratch.store).await;
    assert!(plan.delete.len() >= 2, "{plan:?}");
    (ours, plan)
}

/// A saver of `s` that borrows from `base`, has written everything and has overslept.
async fn overslept(
    scratch: &Scratch,
    bytes: &[u8],
) -> (SnapshotWriter, LeaseRecord, CollectionPlan) {
    save_one(&scratch.store, "base", bytes, SaveOptions::default()).await;
    let s = id("s");
    let mut writer = scratch.store.save(&s, on_base("base")).await.unwrap();
    writer.add(blob("x", bytes)).await.unwrap();
    let (ours, plan) = planned_over(scratch).await;
    (writer, ours, plan)
}

/// The plan is made, then the saver wakes up: it renews its lease, or commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_over_a_saver_that_woke_up_since_deletes_nothing() {
    for scratch in stores() {
        for commits in [false, true] {
            let store = &scratch.store;
            let bytes = noise(1, 300_000);
            let (writer, ours, plan) = overslept(&scratch, &bytes).await;
            scratch.put_lease("s", &ours).await;
            if commits {
                writer.finish().await.unwrap();
                // As if it had been killed before it could drop its lease.
                scratch.put_lease("s", &run_out(ours)).await;
            }
            let stats = carry_out(store, plan).await;
            assert!(stats.stopped.unwrap().contains("the save of s"));
            assert_eq!(stats.deleted_objects, 0);
            if commits {
                assert_bytes(&restored(store, "s").await[0], &bytes, "s");
                store.remove(&id("s")).await.unwrap();
            }
            scratch.backend.delete("s/lease", None).await.unwrap();
            for _ in 0..2 {
                collect(store).await;
            }
            assert_eq!(scratch.names().await, BTreeSet::new());
        }
    }
}

/// The plan is made, then the saver wakes up, commits and is done; what it borrowed is borrowed from it, and it goes. Nothing of it is left to tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_over_a_saver_that_came_and_went_since_deletes_nothing() {
    for scratch in stores() {
        let store = &scratch.store;
        let bytes = noise(1, 300_000);
        let (writer, ours, plan) = overslept(&scratch, &bytes).await;
        scratch.put_lease("s", &ours).await;
        writer.finish().await.unwrap();
        save_one(store, "t", &bytes, on_base("s")).await;
        store.remove(&id("s")).await.unwrap();
        let stats = carry_out(store, plan).await;
        assert!(stats.stopped.unwrap().contains("the save of s"));
        assert_eq!(stats.deleted_objects, 0);
        assert_bytes(&restored(store, "t").await[0], &bytes, "t");
        store.remove(&id("t")).await.unwrap();
        for _ in 0..2 {
            collect(store).await;
        }
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

/// A saver wakes up just before its commit; others borrow from it before it finds that a collector has ended its lease, and takes its snapshot back.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_borrowed_from_a_snapshot_that_is_taken_back_stays() {
    for scratch in stores() {
        let store = &scratch.store;
        let bytes = noise(1, 300_000);
        save_one(store, "base", &bytes, SaveOptions::default()).await;
        let (commit, may_commit) = watch::channel(false);
        let (look, may_look) = watch::channel(false);
        let (reached, mut is_reached) = watch::channel(0);
        let saver = scratch.watched(move |call, name| match (call, name) {
            (Call::Put, "s/manifest") => {
                reached.send_replace(1);
                Fate::Waits(may_commit.clone())
            }
            (Call::Read, "s/lease") if *reached.borrow() > 0 => {
                reached.send_replace(2);
                Fate::Waits(may_look.clone())
            }
            _ => Fate::Done,
        });
        let own = bytes.clone();
        let saving =
            tokio::spawn(
                async move { save(&saver, "s", vec![blob("x", &own)], on_base("base")).await },
            );
        is_reached.wait_for(|reached| *reached == 1).await.unwrap();
        let (_, plan) = planned_over(&scratch).await;
        commit.send_replace(true);
        is_reached.wait_for(|reached| *reached == 2).await.unwrap();
        let mut borrower = store.save(&id("t"), on_base("s")).await.unwrap();
        borrower.add(blob("x", &bytes)).await.unwrap();

        let (hook, open, mut reached) = hold(Call::Head, "s/manifest");
        let collector = scratch.watched(hook);
        let collecting = tokio::spawn(async move { carry_out(&collector, plan).await });
        reached.wait_for(|reached| *reached).await.unwrap();
        look.send_replace(true);
        let e = failure(saving.await.unwrap());
        assert!(e.to_string().contains("the lease on s was lost"), "{e}");
        open.send_replace(true);
        assert_eq!(collecting.await.unwrap().deleted_objects, 1);
        assert_eq!(borrower.finish().await.unwrap().new_bytes, 0);
        assert_bytes(&restored(store, "t").await[0], &bytes, "t");
    }
}

/// Packs of three removed snapshots, noted by a first pass.
async fn noted_garbage(scratch: &Scratch) {
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let bytes = noise(number as u64, 50_000);
        save_one(&scratch.store, name, &bytes, SaveOptions::default()).await;
        let leave = RemoveOptions { leave_packs: true };
        let removed = scratch.store.remove_with(&id(name), &leave).await;
        removed.unwrap();
    }
    assert_eq!(collect(&scratch.store).await.kept_objects, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_deleted_keeps_nothing_else_and_does_not_begin_to_wait_again() {
    for scratch in stores() {
        noted_garbage(&scratch).await;
        let held = scratch.watched(|call, name| match (call, name.starts_with("a/pack-")) {
            (Call::Delete, true) => Fate::Forbidden,
            _ => Fate::Done,
        });
        for deleted in [2, 0] {
            let stats = collect(&held).await;
            assert_eq!((stats.deleted_objects, stats.kept_objects), (deleted, 1));
            assert_eq!(stats.stopped, None);
            let [failed] = &stats.failed[..] else {
                panic!("{stats:?}")
            };
            assert!(failed.object.starts_with("a/pack-"), "{failed:?}");
            assert_eq!(failed.kind, ErrorKind::Forbidden, "{failed:?}");
        }
        assert_eq!(collect(&scratch.store).await.deleted_objects, 1);
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_store_or_a_cancelled_collection_leaves_goes_with_the_next_one() {
    for scratch in stores() {
        noted_garbage(&scratch).await;
        let failing = scratch.watched(|call, name| match (call, name.starts_with("b/pack-")) {
            (Call::Delete, true) => Fate::Refused,
            _ => Fate::Done,
        });
        let stats = collect(&failing).await;
        assert_eq!(stats.stopped.as_deref(), Some("the store failed"));
        assert_eq!(stats.failed.len(), 1);
        let left = 3 - stats.deleted_objects;
        assert_eq!(stats.kept_objects, left);

        let plan = plan(&scratch.store).await;
        assert_eq!(plan.delete.len() as u64, left);
        let cancel = CancellationToken::new();
        cancel.cancel();
        let stats = scratch.store.collect(plan, &cancel).await.unwrap();
        assert_eq!(stats.stopped.as_deref(), Some("interrupted"));
        assert_eq!((stats.deleted_objects, stats.kept_objects), (0, left));

        assert_eq!(collect(&scratch.store).await.deleted_objects, left);
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_collectors_at_once_the_second_stops() {
    for scratch in stores() {
        noted_garbage(&scratch).await;
        let [first, second] = [plan(&scratch.store).await, plan(&scratch.store).await];
        assert_eq!(carry_out(&scratch.store, first).await.deleted_objects, 3);
        let stats = carry_out(&scratch.store, second).await;
        assert!(stats.stopped.unwrap().contains("another collector"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_cannot_be_ended_keeps_what_it_relies_on_and_nothing_else() {
    for scratch in stores() {
        noted_garbage(&scratch).await;
        save_one(&scratch.store, "s", &noise(9, 50_000), in_group()).await;
        let relying = LeaseRecord {
            bases: vec!["a".into()],
            ..expired()
        };
        scratch.put_lease("s", &relying).await;
        scratch.put("heads/g", "nonsense").await;
        // It is found to be garbage, with the rest of what it relied on.
        let stats = collect(&scratch.store).await;
        assert_eq!((stats.deleted_objects, stats.kept_objects), (2, 2));
        let stats = collect(&scratch.store).await;
        assert_eq!((stats.deleted_objects, stats.kept_objects), (0, 2));
        let [failed] = &stats.failed[..] else {
            panic!("{stats:?}")
        };
        assert_eq!(failed.object, "s/lease");
        assert!(failed.reason.contains("heads/g is damaged"), "{failed:?}");
        scratch.backend.delete("heads/g", None).await.unwrap();
        assert_eq!(collect(&scratch.store).await.deleted_objects, 2);
        scratch.assert_saved("s").await;
        assert_eq!(scratch.head().await.as_deref(), Some("s"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_would_hold_for_days_holds_nobody_up() {
    for scratch in stores() {
        let for_days = LeaseRecord {
            expires_unix_ms: u64::MAX,
            ..lease()
        };
        let by_a_clock_ahead = LeaseRecord {
            expires_unix_ms: now() + 2 * HOUR,
            ..lease()
        };
        scratch.put_lease("s", &by_a_clock_ahead).await;
        let e = failure(scratch.save("s").await);
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        scratch.put_lease("s", &for_days).await;
        scratch.save("s").await.unwrap();
        scratch.assert_saved("s").await;
        scratch.put_lease("t", &for_days).await;
        assert_eq!(collect(&scratch.store).await.deleted_objects, 0);
        assert_eq!(collect(&scratch.store).await.deleted_objects, 1);
    }
}

/// A saver sleeps just before its commit, longer than its lease holds and longer than a collector waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_saver_that_commits_after_its_lease_was_taken_away_takes_its_snapshot_back() {
    for scratch in stores() {
        let bytes = noise(1, 300_000);
        save_one(&scratch.store, "base", &bytes, in_group()).await;
        let (hook, open, mut reached) = hold(Call::Put, "s/manifest");
        let store = scratch.watched(hook);
        let saving = tokio::spawn(async move {
            save(&store, "s", vec![blob("x", &noise(1, 300_000))], in_group()).await
        });
        reached.wait_for(|reached| *reached).await.unwrap();
        let expired = LeaseRecord {
            expires_unix_ms: now() - 1,
            ..scratch.lease_of("s").await.unwrap()
        };
        scratch.put_lease("s", &expired).await;
        scratch.store.remove(&id("base")).await.unwrap();
        for _ in 0..2 {
            collect(&scratch.store).await;
        }
        assert_eq!(scratch.names().await, BTreeSet::new());
        open.send_replace(true);
        let e = failure(saving.await.unwrap());
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        assert!(e.to_string().contains("the lease on s was lost"), "{e}");
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_save_left_can_be_removed_and_what_a_living_one_writes_cannot() {
    for scratch in stores() {
        leave_behind(&scratch).await;
        scratch.put_lease("s", &lease()).await;
        let before = scratch.names().await;
        let e = failure(scratch.store.remove(&id("s")).await);
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        assert_eq!(scratch.names().await, before);
        // Perhaps it is only asleep.
        scratch.put_lease("s", &expired()).await;
        let e = failure(scratch.store.remove(&id("s")).await);
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        assert_eq!(scratch.names().await, before);
        let mut child = sleeping();
        let dead = LeaseRecord {
            holder: Some(holder(child.id())),
            ..expired()
        };
        child.kill().unwrap();
        child.wait().unwrap();
        scratch.put_lease("s", &dead).await;
        let removed = scratch.store.remove(&id("s")).await.unwrap();
        assert_eq!((removed.objects, removed.kept_objects), (3, 1));
        // Of one that nobody knows anything of, a manifest may be on its way.
        let left = [
            "s/notes",
            "s/pack-00000000000000bb-0",
            "t/pack-00000000000000aa-0",
        ];
        assert_eq!(scratch.names().await, left.map(str::to_owned).into());
        let e = failure(scratch.store.remove(&id("s")).await);
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(e.to_string().contains("podsnap gc"), "{e}");
    }
}

/// A lease never outlives its manifest.
#[tokio::test(flavor = "multi_thread")]
async fn a_saver_that_wakes_up_while_its_snapshot_is_removed_keeps_it() {
    let [_, scratch] = stores();
    scratch.save("s").await.unwrap();
    scratch.put_lease("s", &expired()).await;
    // As soon as the remover has read the lease, its holder renews it.
    let (wakes_up, calls) = (scratch.replaces("s/lease", &lease()), AtomicUsize::new(0));
    let store = scratch.watched(move |call, name| {
        if name == "s/lease" && calls.fetch_add(1, SeqCst) == 1 {
            assert!(matches!(call, Call::Read | Call::Delete));
            wakes_up();
        }
        Fate::Done
    });
    let e = failure(store.remove(&id("s")).await);
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert_sound(&scratch.store, "s").await;
    assert!(scratch.lease_of("s").await.is_some());
}

/// Somebody else removes the snapshot, gently, while the remover looks who needs it.
#[tokio::test(flavor = "multi_thread")]
async fn packs_that_the_manifest_did_not_name_stay_whoever_removes_it() {
    for scratch in stores() {
        scratch.save("s").await.unwrap();
        // Of one that sleeps between its last check and its commit.
        scratch.put("s/pack-00000000000000aa-0", "asleep").await;
        let (hook, open, mut reached) = hold(Call::List, "");
        let store = scratch.watched(hook);
        let removing = tokio::spawn(async move { store.remove(&id("s")).await });
        reached.wait_for(|reached| *reached).await.unwrap();
        let leave = RemoveOptions { leave_packs: true };
        scratch.store.remove_with(&id("s"), &leave).await.unwrap();
        open.send_replace(true);
        removing.await.unwrap().unwrap();
        let left = BTreeSet::from(["s/pack-00000000000000aa-0".to_owned()]);
        assert_eq!(scratch.names().await, left);
    }
}

/// The lease was not there yet when its name was passed, the pack was when its was.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_save_writes_that_began_during_the_listing_is_not_left_over() {
    let [_, scratch] = stores();
    leave_behind(&scratch).await;
    let before = scratch.names().await;
    let (begins, calls) = (scratch.replaces("s/lease", &lease()), AtomicUsize::new(0));
    let store = scratch.watched(move |call, name| {
        let looks = call == Call::List || (call, name) == (Call::Head, "s/manifest");
        // Whether the snapshot is there is asked first; two listings are a look.
        if looks && calls.fetch_add(1, SeqCst) == 3 {
            begins();
        }
        Fate::Done
    });
    let e = failure(store.remove(&id("s")).await);
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    let mut after = scratch.names().await;
    assert!(after.remove("s/lease"));
    assert_eq!(after, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_lease_that_is_no_lease_nothing_is_left_over() {
    for scratch in stores() {
        leave_behind(&scratch).await;
        scratch.put("s/lease", "no JSON").await;
        let before = scratch.names().await;
        let e = failure(scratch.store.remove(&id("s")).await);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        assert!(e.to_string().contains("delete the object"), "{e}");
        assert_eq!(scratch.names().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aborted_saver_leaves_the_lease_of_who_took_it_over() {
    for scratch in stores() {
        let mut writer = scratch
            .store
            .save(&id("s"), SaveOptions::default())
            .await
            .unwrap();
        writer.add(blob("x", &noise(1, 100_000))).await.unwrap();
        let theirs = lease();
        scratch.put_lease("s", &theirs).await;
        writer.abort().await.unwrap();
        assert_eq!(scratch.lease_of("s").await, Some(theirs));
        assert_eq!(scratch.names().await.len(), 1);
    }
}

/// A hook that holds one call back, the channel that lets it go on, and one that tells when it is reached.
fn hold(
    call: Call,
    object: &'static str,
) -> (
    impl Fn(Call, &str) -> Fate,
    watch::Sender<bool>,
    watch::Receiver<bool>,
) {
    let (open, gate) = watch::channel(false);
    let (reached, is_reached) = watch::channel(false);
    let hook = move |this: Call, name: &str| {
        if this != call || name != object {
            return Fate::Done;
        }
        reached.send_replace(true);
        Fate::Waits(gate.clone())
    };
    (hook, open, is_reached)
}

/// Whoever has stopped a pod for its save need not wait for what others need the lease for.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_does_not_wait_until_its_lease_is_dropped() {
    for scratch in stores() {
        let (hook, open, mut reached) = hold(Call::Delete, "s/lease");
        let store = scratch.watched(hook);
        let mut writer = store.save(&id("s"), in_group()).await.unwrap();
        writer.add(blob("x", &noise(1, 300_000))).await.unwrap();
        let committed = writer.commit().await.unwrap();
        assert_eq!(committed.stats.raw_bytes, 300_000);
        reached.wait_for(|reached| *reached).await.unwrap();
        let snapshot = scratch.store.snapshot(&id("s")).await.unwrap();
        assert_eq!(snapshot.digest().to_string(), committed.stats.digest);
        assert!(scratch.store.head("g").await.unwrap().is_some());
        assert!(names(&*scratch.backend).await.contains("s/lease"));
        open.send_replace(true);
        committed.settled().await;
        assert!(!names(&*scratch.backend).await.contains("s/lease"));
    }
}

/// First order of the race: the base's manifest goes before the saver has its lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_goes_before_the_lease_is_taken_is_not_used() {
    for scratch in stores() {
        for named in [true, false] {
            let bytes = noise(1, 300_000);
            save_one(&scratch.store, "base", &bytes, in_group()).await;
            let (hook, open, mut reached) = hold(Call::Put, "s/lease");
            let store = scratch.watched(hook);
            let options = if named { on_base("base") } else { in_group() };
            let saving = tokio::spawn(async move {
                save(&store, "s", vec![blob("x", &noise(1, 300_000))], options).await
            });
            reached.wait_for(|reached| *reached).await.unwrap();
            scratch.store.remove(&id("base")).await.unwrap();
            open.send_replace(true);
            match (named, saving.await.unwrap()) {
                (true, saved) => {
                    let e = failure(saved);
                    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
                    assert!(
                        e.to_string().contains("the base base does not exist"),
                        "{e}"
                    );
                    assert_eq!(scratch.names().await, BTreeSet::new());
                }
                (false, saved) => {
                    assert!(saved.unwrap().bases.is_empty());
                    scratch.assert_saved("s").await;
                    assert_eq!(scratch.head().await.as_deref(), Some("s"));
                    scratch.store.remove(&id("s")).await.unwrap();
                }
            }
        }
    }
}

/// Second order: the lease is taken between the remover's look and its deletion of the manifest.
#[tokio::test(flavor = "multi_thread")]
async fn packs_stay_for_a_save_that_took_its_lease_in_time() {
    for scratch in stores() {
        let bytes = noise(1, 300_000);
        save_one(&scratch.store, "base", &bytes, SaveOptions::default()).await;
        let packs = own_names(&scratch.store, "base").await;
        let (hook, open, mut reached) = hold(Call::Delete, "base/manifest");
        let store = scratch.watched(hook);
        let removing = tokio::spawn(async move { store.remove(&id("base")).await });
        reached.wait_for(|reached| *reached).await.unwrap();
        let mut writer = scratch.store.save(&id("s"), on_base("base")).await.unwrap();
        open.send_replace(true);
        let removed = removing.await.unwrap().unwrap();
        assert_eq!(removed.needed_by, ["the save of s that is under way"]);
        // Nor can what is left of it be removed now.
        let e = failure(scratch.store.remove(&id("base")).await);
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert!(e.to_string().contains("the save of s"), "{e}");
        writer.add(blob("x", &bytes)).await.unwrap();
        assert_eq!(writer.finish().await.unwrap().new_bytes, 0);
        assert_sound(&scratch.store, "s").await;
        assert_bytes(&restored(&scratch.store, "s").await[0], &bytes, "s");
        assert_eq!(
            failure(scratch.store.snapshot(&id("base")).await).kind(),
            ErrorKind::NotFound
        );
        let e = failure(scratch.store.remove(&id("base")).await);
        assert!(e.to_string().contains("snapshot s"), "{e}");
        scratch.store.remove(&id("s")).await.unwrap();
        assert_eq!(scratch.names().await.len(), packs.len() - 1);
        collect(&scratch.store).await;
        collect(&scratch.store).await;
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_stay_under_a_save_and_under_one_that_borrows_through_another() {
    for scratch in stores() {
        let bytes = noise(1, 300_000);
        save_one(&scratch.store, "a", &bytes, SaveOptions::default()).await;
        save_one(&scratch.store, "b", &bytes, on_base("a")).await;
        let mut writer = scratch.store.save(&id("c"), on_base("b")).await.unwrap();
        for name in ["b", "a"] {
            let removed = scratch.store.remove(&id(name)).await.unwrap();
            assert!(
                removed
                    .needed_by
                    .contains(&"the save of c that is under way".to_owned()),
                "{removed:?}"
            );
            for _ in 0..2 {
                assert_eq!(collect(&scratch.store).await.deleted_objects, 0);
            }
        }
        writer.add(blob("x", &bytes)).await.unwrap();
        assert_eq!(writer.finish().await.unwrap().new_bytes, 0);
        assert_bytes(&restored(&scratch.store, "c").await[0], &bytes, "c");
        scratch.store.remove(&id("c")).await.unwrap();
        for _ in 0..2 {
            collect(&scratch.store).await;
        }
        assert_eq!(scratch.names().await, BTreeSet::new());
    }
}

/// The newest snapshot of the group `g`: those that were begun in the same millisecond are equally new.
async fn newest(store: &Store) -> BTreeSet<String> {
    let listed = store.list().await.unwrap();
    let of_group = listed.iter().filter(|s| s.group.as_deref() == Some("g"));
    let created = of_group.clone().map(|s| s.created_unix_ms).max();
    of_group
        .filter(|s| Some(s.created_unix_ms) == created)
        .map(|s| s.snapshot.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn savers_of_one_group_never_lose_the_newest_head() {
    for scratch in stores() {
        for round in 0..4 {
            let saving = (0..16).map(|number| {
                let store = scratch.store.clone();
                tokio::spawn(async move {
                    // Begun one after another, ended in any order.
                    tokio::time::sleep(Duration::from_millis(number)).await;
                    let name = format!("{round}-{number}");
                    let sections = vec![blob("x", &noise(number, 20_000))];
                    save(&store, &name, sections, in_group()).await
                })
            });
            for saved in saving.collect::<Vec<_>>() {
                saved.await.unwrap().unwrap();
            }
            let head = scratch.head().await.unwrap();
            let newest = newest(&scratch.store).await;
            assert!(
                newest.contains(&head),
                "the head is {head}, not one of {newest:?}"
            );
            assert!(
                scratch
                    .names()
                    .await
                    .iter()
                    .all(|name| !name.ends_with("lease"))
            );
        }
        assert_eq!(scratch.store.list().await.unwrap().len(), 64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn savers_and_removers_of_one_group_leave_its_newest_snapshot_as_head() {
    for scratch in stores() {
        let next = Arc::new(AtomicUsize::new(0));
        let working = (0..4u64).map(|worker| {
            let (store, next) = (scratch.store.clone(), next.clone());
            tokio::spawn(async move {
                let mut own = Vec::new();
                for round in 0..8 {
                    let name = format!("s{}", next.fetch_add(1, SeqCst));
                    let sections = vec![blob("x", &noise(worker * 100 + round, 5_000))];
                    save(&store, &name, sections, in_group()).await.unwrap();
                    own.push(name);
                    if round % 2 == 1 {
                        // The newest of them, often the head. Somebody may be saving on it.
                        let last = own.pop().unwrap();
                        match store.remove(&id(&last)).await {
                            Ok(_) => {}
                            Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{e}"),
                        }
                    }
                }
            })
        });
        for worker in working.collect::<Vec<_>>() {
            worker.await.unwrap();
        }
        let head = scratch.head().await.unwrap();
        let newest = newest(&scratch.store).await;
        assert!(
            newest.contains(&head),
            "the head is {head}, not one of {newest:?}"
        );
        for listed in scratch.store.list().await.unwrap() {
            assert_sound(&scratch.store, &listed.snapshot).await;
        }
    }
}
