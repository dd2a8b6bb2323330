//! Agents and controllers on one store: which snapshot a pod is restored from, what is known of each, and which go.

mod support;

use std::{future::Future, sync::Arc, time::Duration};

use podsnap::{
    CancellationToken, Catalog, ErrorKind, NAMESPACE_LABEL, POLICY_LABEL, RemoveOptions,
    Requirements, RetentionPlan, RetentionRules, RetentionStats, SaveOptions, SnapshotId, Status,
    Store,
    store::{Condition, ReadRange},
};
use serde_json::json;
use support::{
    backend::{Call, Fate, Watched},
    blob, id, noise, save,
};
use tokio::sync::watch;

const HOUR_MS: u64 = 3_600_000;

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap().as_millis() as u64
}

struct Scratch {
    store: Store,
    _dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store").to_str().unwrap()).unwrap();
        Self { store, _dir: dir }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(&self.store)
    }

    /// Saves a snapshot of a group, for a policy.
    async fn save(&self, snapshot: &str, group: &str, policy: &str) {
        // So that each is newer than the last.
        tokio::time::sleep(Duration::from_millis(3)).await;
        let labels = [("policy", policy), ("namespace", "default")];
        let options = SaveOptions {
            group: Some(group.to_owned()),
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..SaveOptions::default()
        };
        let noise = noise(snapshot.len() as u64, 50_000);
        save(&self.store, snapshot, vec![blob("x", &noise)], options)
            .await
            .unwrap();
    }

    /// Puts an object there, whatever was there.
    async fn put(&self, name: &str, text: &str) {
        let backend = self.store.backend();
        backend.delete(name, None).await.unwrap();
        let bytes = text.to_owned().into();
        backend.put(name, bytes, Condition::Absent).await.unwrap();
    }

    async fn get(&self, name: &str) -> Option<serde_json::Value> {
        let read = self
            .store
            .backend()
            .read(name, ReadRange::Suffix(1 << 16), None)
            .await;
        match read {
            Ok(read) => Some(serde_json::from_slice(&read.bytes).unwrap()),
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::NotFound);
                None
            }
        }
    }

    async fn used(&self, snapshot: &str, hours_ago: u64) {
        let then = now() - hours_ago * HOUR_MS;
        let note = json!({ "unix_ms": then }).to_string();
        self.put(&format!("{snapshot}/used"), &note).await;
    }

    /// Marks a snapshot to be removed, some hours ago.
    async fn mark(&self, snapshot: &str, unix_ms: u64) {
        let manifest = format!("{snapshot}/manifest");
        let manifest = self.store.backend().head(&manifest).await.unwrap();
        let manifest = manifest.version.0;
        let mark = json!({ "manifest": manifest, "reason": "too old", "unix_ms": unix_ms });
        self.put(&format!("{snapshot}/deleting"), &mark.to_string())
            .await;
    }

    /// The same store, in which the test decides what becomes of each call.
    fn watched(&self, hook: impl Fn(Call, &str) -> Fate + Send + Sync + 'static) -> Catalog {
        Catalog::new(&Watched::new(self.store.backend().clone(), hook).store())
    }

    /// Carries a plan out, and something else when it comes to that call.
    async fn retain_and(
        &self,
        plan: &RetentionPlan,
        at: (Call, &'static str),
        meanwhile: impl Future<Output = ()>,
    ) -> RetentionStats {
        let (open, gate) = watch::channel(false);
        let (reached, mut is_reached) = watch::channel(false);
        let catalog = self.watched(move |call, name| {
            if (call, name) != at {
                return Fate::Done;
            }
            reached.send_replace(true);
            Fate::Waits(gate.clone())
        });
        let meanwhile = async {
            is_reached.wait_for(|reached| *reached).await.unwrap();
            meanwhile.await;
            open.send_replace(true);
        };
        let cancel = CancellationToken::new();
        tokio::join!(catalog.retain(plan, &cancel), meanwhile).0
    }

    async fn newest(&self, group: &str) -> Option<String> {
        let newest = self.catalog().newest(group).await.unwrap();
        newest.map(|snapshot| snapshot.id().to_string())
    }

    async fn status(&self, snapshot: &str) -> Option<Status> {
        let state = self.store.state(&id(snapshot)).await.unwrap();
        let listed = self.store.list().await.unwrap();
        let listed = listed.into_iter().find(|l| l.snapshot == snapshot);
        // Both ways of asking agree.
        let both = (state.map(|s| s.status), listed.map(|l| l.status));
        assert_eq!(both.0, both.1);
        both.0
    }

    async fn available(&self) -> Vec<String> {
        let listed = self.store.list().await.unwrap().into_iter();
        let available = listed.filter(|l| l.status == Status::Available);
        let mut ids: Vec<_> = available.map(|l| l.snapshot).collect();
        ids.sort();
        ids
    }
}

fn at_most(max: u32) -> RetentionRules {
    RetentionRules {
        max_per_group: Some(max),
        ..RetentionRules::default()
    }
}

fn ids(verdicts: &[podsnap::Verdict]) -> Vec<&str> {
    verdicts.iter().map(|v| v.snapshot.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_that_fits_is_found_and_what_does_not_fit_is_said() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    let spec = json!({ "containers": [{ "image": "a" }], "volumes": [] });
    let same = json!({ "volumes": [], "containers": [{ "image": "a" }] });
    let here = Requirements::of_this_node(&spec, "v1");
    let group = here.group("ns", "p");
    assert_eq!(
        Requirements::of_this_node(&same, "v1").group("ns", "p"),
        group
    );
    assert!(group.starts_with("p.") && group.parse::<SnapshotId>().is_ok());
    let mut other_features = here.clone();
    other_features.cpu_features = "fpu imaginary".to_owned();
    let mut other_driver = here.clone();
    other_driver.gpu_driver = "580".to_owned();
    let mut grouped = here.clone();
    grouped.grouping.insert("tenant".to_owned(), "t".to_owned());
    let other_spec = json!({ "containers": [{ "image": "b" }], "volumes": [] });
    let others = [
        Requirements::of_this_node(&other_spec, "v1"),
        Requirements::of_this_node(&spec, "v2"),
        other_features.clone(),
        other_driver,
        grouped,
    ];
    for other in &others {
        assert_ne!(other.group("ns", "p"), group);
    }
    assert_ne!(here.group("ns2", "p"), group);
    assert_ne!(here.group("ns", "p2"), group);
    let long = "p".repeat(253);
    assert!(here.group("ns", &long).parse::<SnapshotId>().is_ok());

    assert!(catalog.newest(&group).await.unwrap().is_none());
    for snapshot in ["one", "two"] {
        let options = SaveOptions {
            group: Some(group.clone()),
            labels: here.labels(),
            ..SaveOptions::default()
        };
        tokio::time::sleep(Duration::from_millis(3)).await;
        save(&scratch.store, snapshot, vec![blob("x", b"x")], options)
            .await
            .unwrap();
    }
    let newest = catalog.newest(&group).await.unwrap().unwrap();
    assert_eq!(newest.id().as_str(), "two");
    let pinned = catalog.pinned(&id("one"), &here).await.unwrap();
    assert_eq!(pinned.id().as_str(), "one");
    let refused = catalog.pinned(&id("one"), &others[1]).await.unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains(r#"its runsc is "v1", here it is "v2""#),
        "{said}"
    );
    let refused = catalog
        .pinned(&id("one"), &other_features)
        .await
        .unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("only here imaginary"), "{said}");
    let refused = catalog.pinned(&id("three"), &here).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_points_nowhere_is_said_and_mended() {
    let scratch = Scratch::new();
    scratch.save("one", "g", "p").await;
    scratch.save("two", "g", "p").await;
    scratch.save("other", "g2", "p").await;
    let newest = || async { scratch.catalog().newest("g").await };
    let head = |snapshot: &str| json!({ "snapshot": snapshot, "created_unix_ms": 1 }).to_string();
    for (head, why) in [
        (head("gone"), "heads/g in"),
        (
            head("gone"),
            "names the snapshot gone, which is not there (podsnap gc",
        ),
        (
            head("other"),
            "names the snapshot other, which is of another group",
        ),
        ("nonsense".to_owned(), "heads/g is damaged"),
        (head("../x"), "heads/g is damaged"),
    ] {
        scratch.put("heads/g", &head).await;
        let said = newest().await.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
    for wrong in ["gone", "other"] {
        scratch.put("heads/g", &head(wrong)).await;
        let store = &scratch.store;
        let plan = store.plan_collection(&Default::default()).await.unwrap();
        let stats = store.collect(plan, &CancellationToken::new()).await;
        assert_eq!(stats.unwrap().moved_heads, 1);
        assert_eq!(newest().await.unwrap().unwrap().id().as_str(), "two");
    }
    let head = scratch.store.head("g2").await.unwrap().unwrap();
    assert_eq!(head.snapshot.as_str(), "other");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_each_snapshot_is_known() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    assert_eq!(scratch.status("s").await, None);
    let labels = [(POLICY_LABEL, "p"), (NAMESPACE_LABEL, "n"), ("more", "x")];
    let options = SaveOptions {
        labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        ..SaveOptions::default()
    };
    let writer = scratch.store.save(&id("s"), options).await.unwrap();
    assert_eq!(scratch.status("s").await, Some(Status::Saving));
    // What it is for is known already.
    let listed = scratch.store.list().await.unwrap().remove(0);
    assert_eq!(listed.policy.as_deref(), Some("p"));
    assert_eq!(listed.namespace.as_deref(), Some("n"));
    assert!(listed.created_unix_ms > 0);
    writer.finish().await.unwrap();
    assert_eq!(scratch.status("s").await, Some(Status::Available));

    // Whoever saved it died, or said why it did not.
    let expired = json!({ "attempt": "00000000000000aa", "expires_unix_ms": 1 });
    scratch.put("dead/lease", &expired.to_string()).await;
    assert_eq!(scratch.status("dead").await, Some(Status::Failed));
    catalog
        .note_failure(&id("f"), "ns", "p", "no room\nleft")
        .await
        .unwrap();
    assert_eq!(scratch.status("f").await, Some(Status::Failed));
    let listed = scratch.store.list().await.unwrap();
    let f = listed.iter().find(|l| l.snapshot == "f").unwrap();
    assert_eq!(f.reason.as_deref(), Some("no room\nleft"));
    assert_eq!(
        (f.policy.as_deref(), f.namespace.as_deref()),
        (Some("p"), Some("ns"))
    );
    // It is saved after all.
    let writer = scratch
        .store
        .save(&id("f"), SaveOptions::default())
        .await
        .unwrap();
    writer.finish().await.unwrap();
    assert_eq!(scratch.status("f").await, Some(Status::Available));

    // Notes go with their snapshot.
    catalog.pin(&id("f"), "for the demo").await.unwrap();
    catalog.begin_restore(&id("f")).await.unwrap();
    scratch.store.remove(&id("f")).await.unwrap();
    assert_eq!(scratch.status("f").await, None);
    for note in ["used", "pinned", "failed"] {
        assert_eq!(scratch.get(&format!("f/{note}")).await, None);
    }
    // Without a snapshot they are garbage.
    catalog
        .note_failure(&id("late"), "ns", "p", "why")
        .await
        .unwrap();
    let options = podsnap::CollectOptions {
        grace: Duration::ZERO,
    };
    for _ in 0..2 {
        let plan = scratch.store.plan_collection(&options).await.unwrap();
        scratch
            .store
            .collect(plan, &CancellationToken::new())
            .await
            .unwrap();
    }
    assert_eq!(scratch.status("late").await, None);
    assert_eq!(scratch.available().await, ["s"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_makes_no_sense_matters_only_without_a_manifest() {
    let scratch = Scratch::new();
    scratch.save("s", "g", "p").await;
    scratch.put("s/lease", "edited").await;
    scratch.put("t/lease", "edited").await;
    assert_eq!(scratch.status("s").await, Some(Status::Available));
    assert_eq!(scratch.status("t").await, Some(Status::Failed));
    let cancel = CancellationToken::new();
    scratch.store.wait(&id("s"), &cancel).await.unwrap();
    let refused = scratch.store.wait(&id("t"), &cancel).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_committed_while_it_is_listed_is_listed() {
    let scratch = Scratch::new();
    let writer = scratch.store.save(&id("s"), SaveOptions::default()).await;
    let (open, gate) = tokio::sync::watch::channel(false);
    let (reached, mut is_reached) = tokio::sync::watch::channel(false);
    let watched = Watched::new(scratch.store.backend().clone(), move |call, name| {
        if (call, name) != (Call::Read, "s/lease") {
            return Fate::Done;
        }
        reached.send_replace(true);
        Fate::Waits(gate.clone())
    });
    let listing = tokio::spawn(async move { watched.store().list().await });
    is_reached.wait_for(|reached| *reached).await.unwrap();
    writer.unwrap().finish().await.unwrap();
    open.send_replace(true);
    let listed = listing.await.unwrap().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].status, Status::Available);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_does_not_make_available_what_is_being_removed() {
    let scratch = Scratch::new();
    scratch.save("s", "g", "p").await;
    scratch.put("s/deleting", "edited").await;
    assert_eq!(scratch.status("s").await, Some(Status::Available));
    let failing = Watched::new(scratch.store.backend().clone(), |call, name| {
        match (call, name) {
            (Call::Read, "s/deleting") => Fate::Refused,
            _ => Fate::Done,
        }
    })
    .store();
    for failed in [
        failing.list().await.map(drop),
        failing.state(&id("s")).await.map(drop),
    ] {
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Store);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn use_is_noted_cheaply_and_by_the_later_clock() {
    let scratch = Scratch::new();
    scratch.save("s", "g", "p").await;
    let catalog = scratch.catalog();
    let unix_ms = || async {
        scratch.get("s/used").await.unwrap()["unix_ms"]
            .as_u64()
            .unwrap()
    };
    catalog.begin_restore(&id("s")).await.unwrap();
    let first = unix_ms().await;
    assert!(now() - first < HOUR_MS);
    tokio::time::sleep(Duration::from_millis(5)).await;
    catalog.begin_restore(&id("s")).await.unwrap();
    assert_eq!(unix_ms().await, first, "it was noted just now");
    scratch.used("s", 1).await;
    catalog.begin_restore(&id("s")).await.unwrap();
    assert!(unix_ms().await >= first);
    // A clock that is an hour ahead.
    let ahead = now() + HOUR_MS;
    scratch
        .put("s/used", &json!({ "unix_ms": ahead }).to_string())
        .await;
    catalog.begin_restore(&id("s")).await.unwrap();
    assert_eq!(unix_ms().await, ahead);
    // What is nobody's clock, and what is no note.
    for nonsense in [
        json!({ "unix_ms": u64::MAX }).to_string(),
        "edited".to_owned(),
    ] {
        scratch.put("s/used", &nonsense).await;
        catalog.begin_restore(&id("s")).await.unwrap();
        assert!(unix_ms().await <= now());
    }
    let gone = catalog.begin_restore(&id("gone")).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert_eq!(scratch.get("gone/used").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_group_the_oldest_unused_go_and_never_the_last() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    for n in 1..=5 {
        scratch.save(&format!("a{n}"), "a", "p").await;
    }
    scratch.save("b1", "b", "p").await;
    scratch.save("c1", "c", "other").await;
    scratch.save("c2", "c", "other").await;
    // The first is used again and again, and the second is kept by somebody.
    scratch.used("a1", 3).await;
    catalog.pin(&id("a2"), "the auditor's").await.unwrap();
    let rules = RetentionRules {
        policy: Some("p".to_owned()),
        ..at_most(3)
    };
    let plan = catalog.plan_retention(&rules).await.unwrap();
    // Used three hours ago is later than saved just now? No: it was saved just now.
    assert_eq!(ids(&plan.remove), ["a1", "a3"]);
    let kept: Vec<_> = plan
        .keep
        .iter()
        .map(|v| (v.snapshot.as_str(), v.reason.as_str()))
        .collect();
    assert!(
        kept.contains(&("a5", "it is the newest of its group")),
        "{kept:?}"
    );
    assert!(
        kept.contains(&("a2", "it is pinned: the auditor's")),
        "{kept:?}"
    );
    assert!(
        kept.contains(&("b1", "it is the newest of its group")),
        "{kept:?}"
    );
    assert!(!kept.iter().any(|(id, _)| id.starts_with('c')));
    // Nobody uses anything for a long time: all but the newest and the pinned go.
    let unused = RetentionRules {
        unused_for: Some(Duration::from_millis(1)),
        ..RetentionRules::default()
    };
    let plan = catalog.plan_retention(&unused).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a1", "a3", "a4", "c1"]);
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert_eq!(stats.removed, ["a1", "a3", "a4", "c1"]);
    assert_eq!(scratch.available().await, ["a2", "a5", "b1", "c2"]);
    assert_eq!(
        catalog.newest("a").await.unwrap().unwrap().id().as_str(),
        "a5"
    );
    catalog.unpin(&id("a2")).await.unwrap();
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_restored_stays_whoever_was_first() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    for n in 1..=3 {
        scratch.save(&format!("a{n}"), "a", "p").await;
    }
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a1", "a2"]);
    // Restored and pinned after the plan was made.
    catalog.begin_restore(&id("a1")).await.unwrap();
    catalog.pin(&id("a2"), "mine").await.unwrap();
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert!(stats.removed.is_empty());
    assert!(
        stats.retained[0].reason.contains("being restored"),
        "{stats:?}"
    );
    assert!(
        stats.retained[1].reason.contains("pinned: mine"),
        "{stats:?}"
    );
    assert_eq!(
        scratch.available().await,
        ["a1", "a2", "a3"],
        "no mark is left"
    );
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(ids(&plan.remove), [""; 0]);
    // A clock an hour behind noted it: it is still protected.
    catalog.unpin(&id("a2")).await.unwrap();
    scratch.used("a1", 1).await;
    scratch.used("a2", 3).await;
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a2"]);
    // What says when it was used cannot be read: that is no reason to remove it.
    scratch.put("a2/used", "edited by hand").await;
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert!(
        stats.retained[0].reason.contains("a2/used is damaged"),
        "{stats:?}"
    );
    // The newest of the group goes before the plan is carried out.
    scratch.used("a1", 3).await;
    scratch.used("a2", 3).await;
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(plan.remove.len(), 2);
    scratch.store.remove(&id("a3")).await.unwrap();
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert!(stats.removed.is_empty(), "{stats:?}");
    assert_eq!(scratch.available().await, ["a1", "a2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_removed_is_not_restored_and_is_finished_by_somebody() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    scratch.save("a1", "a", "p").await;
    scratch.save("a2", "a", "p").await;
    let version = scratch
        .store
        .backend()
        .head("a1/manifest")
        .await
        .unwrap()
        .version
        .0;
    let mark = |manifest: &str, hours_ago: u64| {
        let then = now() - hours_ago * HOUR_MS;
        json!({ "manifest": manifest, "reason": "too old", "unix_ms": then }).to_string()
    };
    scratch.put("a1/deleting", &mark(&version, 1)).await;
    assert_eq!(scratch.status("a1").await, Some(Status::Deleting));
    let refused = catalog.begin_restore(&id("a1")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let refused = catalog.pin(&id("a1"), "no").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    scratch
        .store
        .backend()
        .delete("a1/pinned", None)
        .await
        .unwrap();
    scratch.used("a1", 5).await;
    // Somebody has just begun, an hour ago by a clock that may be wrong.
    let plan = catalog.plan_retention(&at_most(9)).await.unwrap();
    assert_eq!(plan.remove[0].reason, "its removal was begun: too old");
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert_eq!(
        stats.retained[0].reason,
        "another controller is removing it"
    );
    // Whoever it was has died.
    scratch.put("a1/deleting", &mark(&version, 3)).await;
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert_eq!(stats.removed, ["a1"]);
    assert_eq!(scratch.status("a1").await, Some(Status::Deleting));
    // The mark of an earlier snapshot of that name is none.
    scratch
        .put("a2/deleting", &mark("of another manifest", 9))
        .await;
    assert_eq!(scratch.status("a2").await, Some(Status::Available));
    catalog.begin_restore(&id("a2")).await.unwrap();
    let plan = catalog.plan_retention(&at_most(9)).await.unwrap();
    assert!(plan.remove.is_empty(), "{plan:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn controllers_and_agents_at_once_lose_nothing() {
    let scratch = Arc::new(Scratch::new());
    for n in 0..12 {
        scratch.save(&format!("a{n:02}"), "a", "p").await;
    }
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let catalog = scratch.catalog();
        tasks.spawn(async move {
            let plan = catalog.plan_retention(&at_most(2)).await.unwrap();
            catalog.retain(&plan, &CancellationToken::new()).await;
            Vec::new()
        });
    }
    for agent in 0..4 {
        let catalog = scratch.catalog();
        tasks.spawn(async move {
            let mut restored = Vec::new();
            for n in (agent..12).step_by(4) {
                let snapshot = format!("a{n:02}");
                if catalog.begin_restore(&id(&snapshot)).await.is_ok() {
                    restored.push(snapshot);
                }
            }
            restored
        });
    }
    let restored: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    let available = scratch.available().await;
    for snapshot in &restored {
        assert!(
            available.contains(snapshot),
            "{snapshot} is gone: {available:?}"
        );
    }
    assert!(available.contains(&"a11".to_owned()));
    let newest = scratch.catalog().newest("a").await.unwrap().unwrap();
    assert_eq!(newest.id().as_str(), "a11");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_judged_is_removed_and_no_other_of_its_name() {
    let scratch = Scratch::new();
    let again = || async {
        scratch.store.remove(&id("a1")).await.unwrap();
        scratch.save("a1", "a", "p").await;
    };
    // Since the plan; since it was found that nobody needs it; just before its manifest goes.
    for at in [
        (Call::Head, "a1/manifest"),
        (Call::List, "a1"),
        (Call::Delete, "a1/manifest"),
    ] {
        for snapshot in ["a1", "a2"] {
            let _ = scratch.store.remove(&id(snapshot)).await;
            scratch.save(snapshot, "a", "p").await;
        }
        let plan = scratch.catalog().plan_retention(&at_most(1)).await.unwrap();
        assert_eq!(ids(&plan.remove), ["a1"]);
        let stats = scratch.retain_and(&plan, at, again()).await;
        assert_eq!(stats.retained.len(), 1, "{at:?}: {stats:?}");
        assert_eq!(scratch.status("a1").await, Some(Status::Available));
        assert_eq!(scratch.newest("a").await.as_deref(), Some("a1"));
        scratch.catalog().begin_restore(&id("a1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_took_too_long_is_not_carried_out() {
    let scratch = Scratch::new();
    for snapshot in ["a1", "a2"] {
        scratch.save(snapshot, "a", "p").await;
    }
    let plan = scratch.catalog().plan_retention(&at_most(1)).await.unwrap();
    // Meanwhile somebody else takes it over, finds it pinned and lifts the mark.
    let meanwhile = async {
        let backend = scratch.store.backend();
        backend.delete("a1/deleting", None).await.unwrap();
        scratch.catalog().begin_restore(&id("a1")).await.unwrap();
    };
    let at = (Call::List, "a1");
    let stats = scratch.retain_and(&plan, at, meanwhile).await;
    assert!(
        stats.retained[0].reason.contains("called it off"),
        "{stats:?}"
    );
    assert_eq!(scratch.available().await, ["a1", "a2"]);
    // The newest of its group goes while it sleeps.
    scratch.used("a1", 5).await;
    let meanwhile = async {
        scratch.store.remove(&id("a2")).await.unwrap();
    };
    let stats = scratch.retain_and(&plan, at, meanwhile).await;
    assert!(
        stats.retained[0].reason.contains("is gone since"),
        "{stats:?}"
    );
    assert_eq!(scratch.available().await, ["a1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_one_snapshot_is_not_anothers_trouble() {
    let scratch = Scratch::new();
    for snapshot in ["a1", "a2", "b1", "b2"] {
        scratch.save(snapshot, &snapshot[..1], "p").await;
    }
    let catalog = scratch.catalog();
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a1", "b1"]);
    // Whether it is used cannot be found out: it is marked no more.
    let failing = scratch.watched(|call, name| match (call, name) {
        (Call::Read, "a1/used") => Fate::Refused,
        _ => Fate::Done,
    });
    let stats = failing.retain(&plan, &CancellationToken::new()).await;
    assert_eq!(stats.removed, ["b1"]);
    let failed = stats.failed().unwrap();
    assert_eq!(
        (failed.snapshot.as_str(), failed.error),
        ("a1", Some(ErrorKind::Store))
    );
    assert_eq!(scratch.available().await, ["a1", "a2", "b2"]);
    // Nothing of a group goes before somebody has looked at its head.
    scratch.save("b3", "b", "p").await;
    scratch.put("heads/a", "edited by hand").await;
    let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    assert_eq!(stats.removed, ["b2"]);
    let why = &stats.retained[0].reason;
    assert!(why.contains("heads/a is damaged"), "{why}");
    assert_eq!(scratch.available().await, ["a1", "a2", "b3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_a_group_is_usable_again_when_nobody_finishes_its_removal() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    scratch.save("a1", "a", "p").await;
    scratch.save("a2", "a", "p").await;
    for (unix_ms, then) in [
        (now() - HOUR_MS, Status::Deleting),
        (now() - 3 * HOUR_MS, Status::Available),
        (u64::MAX, Status::Available),
    ] {
        scratch.mark("a1", unix_ms).await;
        let _ = scratch.store.remove(&id("a2")).await;
        let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
        assert!(plan.remove.is_empty(), "{plan:?}");
        catalog.retain(&plan, &CancellationToken::new()).await;
        assert_eq!(scratch.status("a1").await, Some(then));
    }
    assert_eq!(scratch.newest("a").await.as_deref(), Some("a1"));
    // A removal that died when it had moved the head away, and one that left it where it was.
    let elsewhere = json!({ "snapshot": "b1", "created_unix_ms": now() }).to_string();
    scratch.save("b1", "b", "p").await;
    for head in [None, Some(elsewhere)] {
        let backend = scratch.store.backend();
        backend.delete("heads/a", None).await.unwrap();
        if let Some(head) = head {
            scratch.put("heads/a", &head).await;
        }
        let plan = catalog.plan_retention(&at_most(1)).await.unwrap();
        catalog.retain(&plan, &CancellationToken::new()).await;
        assert_eq!(scratch.newest("a").await.as_deref(), Some("a1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_note_is_found_by_the_next_snapshot_of_the_same_id() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    scratch.save("a1", "a", "p").await;
    catalog.pin(&id("a1"), "for a while").await.unwrap();
    catalog.begin_restore(&id("a1")).await.unwrap();
    let leave = RemoveOptions { leave_packs: true };
    let stats = scratch.store.remove_with(&id("a1"), &leave).await.unwrap();
    assert_eq!((stats.objects, stats.kept_objects), (3, 1), "{stats:?}");
    scratch.save("a1", "a", "p").await;
    let listed = scratch.store.list().await.unwrap();
    assert_eq!(
        (&listed[0].pinned, listed[0].last_used_unix_ms),
        (&None, None)
    );
    // One that is refused as the snapshot goes leaves nothing either.
    scratch.mark("a1", now()).await;
    let refused = catalog.pin(&id("a1"), "too late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert_eq!(scratch.get("a1/pinned").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_are_nonsense_hold_nothing() {
    let scratch = Scratch::new();
    let catalog = scratch.catalog();
    scratch.save("a1", "a", "p").await;
    let head = json!({ "snapshot": "a1", "created_unix_ms": u64::MAX }).to_string();
    scratch.put("heads/a", &head).await;
    scratch.save("a2", "a", "p").await;
    assert_eq!(scratch.newest("a").await.as_deref(), Some("a2"));
    let used = json!({ "unix_ms": u64::MAX }).to_string();
    scratch.put("a1/used", &used).await;
    let forever = RetentionRules {
        restoring: Duration::MAX,
        ..at_most(1)
    };
    let plan = catalog.plan_retention(&forever).await.unwrap();
    assert_eq!(ids(&plan.remove), ["a1"]);
    // A mark that nobody has written yet is nobody's.
    scratch.mark("a1", u64::MAX).await;
    assert_eq!(
        catalog
            .retain(&plan, &CancellationToken::new())
            .await
            .removed,
        ["a1"]
    );
}

/// What was removed is not looked for in the whole store.
#[tokio::test(flavor = "multi_thread")]
async fn retention_lists_no_more_than_it_removes() {
    let scratch = Scratch::new();
    for n in 0..6 {
        scratch.save(&format!("a{n}"), "a", "p").await;
    }
    let plan = scratch.catalog().plan_retention(&at_most(1)).await.unwrap();
    let catalog = scratch.watched(|call, name| match (call, name) {
        (Call::List, "") => Fate::Refused,
        _ => Fate::Done,
    });
    assert_eq!(
        catalog
            .retain(&plan, &CancellationToken::new())
            .await
            .removed
            .len(),
        5
    );
}
