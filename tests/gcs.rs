//! Snapshots in a bucket of Google Cloud Storage: everything an agent does, with an agent's rights, on a server that enforces them.

mod support;

use std::time::Duration;

use podsnap::{
    CollectOptions, ErrorKind, NewSection, OpenOptions, Role, SaveOptions, Snapshot, Store,
    store::{GcsOptions, gcs::RetryPolicy},
};
use podsnap_gcs_server::{
    AGENT_TOKEN, Config, Fault, FaultKind, GcsServer, OWNER_TOKEN, Operation,
};
use support::*;
use tokio_util::sync::CancellationToken;

const BUCKET: &str = "snapshots";

/// A hierarchical bucket with an agent that may write below `tenant/` only.
fn server() -> GcsServer {
    let config = Config::tenant(BUCKET, "tenant/");
    GcsServer::start(config).expect("a server on loopback")
}

/// Parts of a megabyte, so that a few megabytes are composed of many, and little patience.
fn options(server: &GcsServer, token: &str) -> GcsOptions {
    GcsOptions {
        part_len: 1 << 20,
        parts_at_once: 4,
        read_len: 1 << 20,
        retry: RetryPolicy {
            give_up_after: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_millis(300),
            first_backoff: Duration::from_millis(20),
            longest_backoff: Duration::from_secs(1),
        },
        bearer_token: Some(token.into()),
        endpoint: Some(server.url()),
        ..GcsOptions::default()
    }
}

fn open_as(server: &GcsServer, token: &str) -> Store {
    open_with(options(server, token))
}

fn open_with(gcs: GcsOptions) -> Store {
    let options = OpenOptions {
        gcs,
        ..OpenOptions::default()
    };
    Store::open_with(&format!("gs://{BUCKET}/tenant/store"), &options, None).expect("a store")
}

fn agent(server: &GcsServer) -> Store {
    open_as(server, AGENT_TOKEN)
}

/// Names of the objects in the bucket, without what all of them begin with.
fn objects(server: &GcsServer) -> Vec<String> {
    let all = server.objects(BUCKET);
    all.iter()
        .map(|o| {
            o.name
                .strip_prefix("tenant/store/")
                .expect("below the store")
                .to_owned()
        })
        .collect()
}

fn is_part(name: &str) -> bool {
    name.ends_with(".part")
}

/// What an agent's rights suffice for.
const AGENTS_OPERATIONS: [Operation; 6] = [
    Operation::InsertMultipart,
    Operation::GetMetadata,
    Operation::GetMedia,
    Operation::Delete,
    Operation::Compose,
    Operation::BucketGet,
];

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_needs_no_more_than_its_four_permissions() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let store = agent(&server);
    let first = [noise(1, 5 << 20), text(2, 1 << 20), vec![0; 1 << 20]].concat();
    let second = [&first[..2 << 20], &noise(3, 3 << 20), &first[2 << 20..]].concat();
    let group = |cancel: CancellationToken| SaveOptions {
        group: Some("g".into()),
        cancel,
        ..SaveOptions::default()
    };
    let stats = save(
        &store,
        "a",
        vec![blob("x", &first)],
        group(CancellationToken::new()),
    )
    .await
    .unwrap();
    assert!(stats.pack_bytes > 5 << 20);
    let on_head = save(
        &store,
        "b",
        vec![blob("x", &second)],
        group(CancellationToken::new()),
    )
    .await
    .unwrap();
    assert_eq!(on_head.bases, ["a"]);
    assert!(on_head.new_bytes < 4 << 20, "{on_head:?}");
    for (name, bytes) in [("a", &first), ("b", &second)] {
        assert_bytes(&restored(&store, name).await[0], bytes, name);
        assert_sound(&store, name).await;
    }
    let composed = server.objects(BUCKET);
    let packs = composed.iter().filter(|o| o.name.contains("/pack-"));
    assert!(packs.clone().count() == 2 && packs.clone().all(|o| o.components > Some(2)));

    // A save that is given up leaves nothing.
    let before = objects(&server);
    let mut writer = store.save(&id("c"), SaveOptions::default()).await.unwrap();
    writer.add(blob("x", &noise(4, 6 << 20))).await.unwrap();
    writer.abort().await.unwrap();
    assert_eq!(objects(&server), before);
    assert!(!before.iter().any(|name| is_part(name)), "{before:?}");

    server.log().assert_only(&AGENTS_OPERATIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_depends_on_the_buckets_own_settings_being_readable() {
    let server = server();
    server.configure(|c| {
        c.rules.missing_without_list = 404;
        c.revoke(
            podsnap_gcs_server::AGENT,
            podsnap_gcs_server::Permission::BucketsGet,
        );
    });
    let store = agent(&server);
    let bytes = noise(5, 3 << 20);
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_save_left_is_removed_by_the_next_without_a_listing() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let store = agent(&server);
    let owner = open_as(&server, OWNER_TOKEN);
    let bytes = noise(6, 7 << 20);
    save_one(&owner, "a", &bytes, SaveOptions::default()).await;
    let manifest = server
        .objects(BUCKET)
        .into_iter()
        .find(|o| o.name.ends_with("/manifest"))
        .unwrap();
    let pack = server
        .objects(BUCKET)
        .into_iter()
        .find(|o| o.name.contains("/pack-"))
        .unwrap();
    let attempt = pack
        .name
        .split("pack-")
        .nth(1)
        .unwrap()
        .split('-')
        .next()
        .unwrap()
        .to_owned();
    server.remove(BUCKET, &manifest.name);
    // One pack was being finished and the next one filled.
    for part in ["1.1", "1.2", "1.5", "2.0", "2.3"] {
        let name = format!("tenant/store/a/pack-{attempt}-{part}.part");
        server.put(BUCKET, &name, b"a part");
    }
    // Of a process of this machine that is no more. (What one left that may be asleep on another is a collector's, who may list.)
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let lease = serde_json::json!({
        "attempt": attempt,
        "expires_unix_ms": 1,
        "holder": {
            "host": "here",
            "boot": std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim(),
            "pid_namespace": namespace.to_str().unwrap(),
            "pid": 1 << 30,
            "started": 1,
        },
    });
    server.put(BUCKET, "tenant/store/a/lease", lease.to_string().as_bytes());
    server.clear_log();
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    let left = objects(&server);
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(!left.iter().any(|name| name.contains(&attempt)), "{left:?}");
    server.log().assert_only(&AGENTS_OPERATIONS);
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_of_more_parts_than_one_compose_takes_are_joined_twice() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let gcs = GcsOptions {
        part_len: 64 << 10,
        ..options(&server, AGENT_TOKEN)
    };
    let store = open_with(gcs);
    // One batch of a megabyte does not fit beside what is in the pack already.
    let bytes = noise(7, 5 << 20);
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
    assert!(
        !objects(&server).iter().any(|name| is_part(name)),
        "{:?}",
        objects(&server)
    );
    let packs = server.objects(BUCKET);
    let most = packs.iter().filter_map(|o| o.components).max();
    assert!(most > Some(32), "{most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_bytes_of_a_pack_do_not_wait_for_the_pack_before_it() {
    let server = server();
    let store = agent(&server);
    // One pack of some 30 MiB, and a little more.
    let bytes = noise(11, 34 << 20);
    server.add_fault(Fault::new(FaultKind::Stall { ms: 1500 }).on(&[Operation::Compose]));
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    let log = server.log();
    let composed: Vec<_> = log.of(Operation::Compose);
    let first = composed.iter().find(|e| e.name.ends_with("-0")).unwrap();
    let mut parts = log.entries.iter().filter(|e| is_part(&e.name));
    let last = parts
        .rfind(|e| e.name.contains("-1.") && e.bytes_in > 0)
        .unwrap();
    let composed_at = first.at_ms + first.took_ms;
    assert!(
        last.at_ms < composed_at,
        "{} not {}",
        last.at_ms,
        composed_at
    );
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_fault_is_survived() {
    let (rounds, sections) = if std::env::var_os("PODSNAP_LONG_TESTS").is_some() {
        (100, 3 << 20)
    } else {
        (12, 3 << 20)
    };
    let server = server();
    server.configure(|c| {
        c.rules.mutations_per_second = 0.0;
        c.bucket(BUCKET).soft_delete_s = 604_800;
    });
    let kinds = [
        FaultKind::Status {
            status: 429,
            retry_after_s: None,
        },
        FaultKind::Status {
            status: 503,
            retry_after_s: None,
        },
        FaultKind::Reset,
        FaultKind::ResetUpload { after_bytes: None },
        FaultKind::ResetDownload { after_bytes: None },
        FaultKind::Stall { ms: 400 },
        FaultKind::StallDownload {
            ms: 600,
            after_bytes: None,
        },
        FaultKind::Truncate { after_bytes: None },
        FaultKind::Corrupt { at: None },
        FaultKind::CorruptUpload { at: None },
        FaultKind::LoseAnswer { status: None },
        FaultKind::LoseAnswer { status: Some(503) },
    ];
    let each = 1.0 - 0.8f64.powf(1.0 / kinds.len() as f64);
    for (number, kind) in kinds.iter().enumerate() {
        server.add_fault(Fault::new(kind.clone()).with_probability(each, number as u64 + 1));
    }
    let store = agent(&server);
    let mut expected: Vec<String> = Vec::new();
    for round in 0..rounds {
        let name = format!("s{round}");
        let bytes = [noise(round, sections), noise(1000, 1 << 20)].concat();
        let options = match expected.last() {
            Some(base) => on_base(base),
            None => SaveOptions::default(),
        };
        save(&store, &name, vec![blob("x", &bytes)], options)
            .await
            .unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert_bytes(&restored(&store, &name).await[0], &bytes, &name);
        assert_sound(&store, &name).await;
        expected.push(name);
    }
    let stats = server.faults();
    for (fault, happened) in &stats {
        assert!(*happened > 0, "{fault:?} never happened");
    }
    server.clear_faults();
    // What is left is a manifest and a pack for each, and nothing was deleted in a way that is billed.
    let left = objects(&server);
    assert_eq!(left.len(), 2 * expected.len(), "{left:?}");
    // Parts went with the composes that used them; only leases were deleted in a way that soft delete bills.
    let billed = server.billing(BUCKET);
    assert!(billed.soft_deleted_objects <= rounds, "{billed:?}");
    assert!(billed.soft_deleted_bytes <= rounds * 1024, "{billed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_never_answers_is_given_up_in_time() {
    let server = server();
    server.add_fault(Fault::new(FaultKind::Stall { ms: 3_600_000 }));
    let mut gcs = options(&server, AGENT_TOKEN);
    gcs.retry.give_up_after = Duration::from_secs(2);
    gcs.retry.answer_timeout = Duration::from_millis(500);
    let store = open_with(gcs);
    let started = std::time::Instant::now();
    let error = failure(store.snapshot(&id("a")).await);
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    assert!(
        error.to_string().contains("tenant/store/a/manifest"),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_request_the_object_and_the_permission() {
    let server = server();
    let store = agent(&server);
    let missing = failure(store.snapshot(&id("none")).await);
    assert_eq!(missing.kind(), ErrorKind::Forbidden, "{missing}");
    for part in [
        "gs://snapshots/tenant/store/none/manifest",
        "does not exist",
        "storage.objects.get",
    ] {
        assert!(missing.to_string().contains(part), "{part} in {missing}");
    }
    let elsewhere = |path: &str, token: &str| {
        let options = OpenOptions {
            gcs: options(&server, token),
            ..OpenOptions::default()
        };
        Store::open_with(path, &options, None).unwrap()
    };
    let other = elsewhere("gs://snapshots/another-tenant", AGENT_TOKEN);
    let refused = failure(save(&other, "a", vec![blob("x", b"x")], SaveOptions::default()).await);
    assert_eq!(refused.kind(), ErrorKind::Forbidden, "{refused}");
    for part in [
        "gs://snapshots/another-tenant/a/lease",
        "storage.objects.create",
    ] {
        assert!(refused.to_string().contains(part), "{part} in {refused}");
    }
    // What is absent need not be deleted, though the store does not tell these credentials that it is. A refusal stays one.
    let gone = store.backend().delete("none/lease", None).await;
    gone.unwrap();
    let refused = failure(other.backend().delete("none/lease", None).await);
    let said = refused.to_string();
    assert!(said.contains("storage.objects.delete"), "{said}");
    let nowhere = elsewhere("gs://no-such-bucket/tenant", AGENT_TOKEN);
    let refused = failure(save(&nowhere, "a", vec![blob("x", b"x")], SaveOptions::default()).await);
    assert!(refused.to_string().contains("no-such-bucket"), "{refused}");
    let expired = elsewhere("gs://snapshots/tenant/store", "an-old-token");
    let refused = failure(expired.snapshot(&id("a")).await);
    assert_eq!(refused.kind(), ErrorKind::Forbidden, "{refused}");
    assert!(refused.to_string().contains("401"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn collecting_without_the_right_to_list_names_it_and_changes_nothing() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let store = agent(&server);
    for name in ["a", "b"] {
        let sections = vec![blob("x", &noise(1, 100_000))];
        save(&store, name, sections, SaveOptions::default())
            .await
            .unwrap();
    }
    // Without the right to list, its packs are left to who has it.
    store.remove(&id("a")).await.unwrap();
    let before = objects(&server);
    assert_eq!(before.len(), 3, "{before:?}");
    let options = CollectOptions {
        grace: Duration::ZERO,
    };
    for missing_without_list in [403, 404] {
        server.configure(|c| c.rules.missing_without_list = missing_without_list);
        let refused = failure(store.plan_collection(&options).await);
        assert_eq!(refused.kind(), ErrorKind::Forbidden, "{refused}");
        assert!(
            refused.to_string().contains("storage.objects.list"),
            "{refused}"
        );
        assert_eq!(objects(&server), before);
    }
    let owner = open_as(&server, OWNER_TOKEN);
    for deleted in [0, 1] {
        let plan = owner.plan_collection(&options).await.unwrap();
        assert_eq!(
            owner
                .collect(plan, &podsnap::CancellationToken::new())
                .await
                .unwrap()
                .deleted_objects,
            deleted
        );
    }
    assert_eq!(objects(&server).len(), 2);
    assert_sound(&store, "b").await;
}

/// Such a store says of the lease no more than that it may not be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_saver_without_the_right_to_list_sees_that_its_lease_is_gone() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let store = agent(&server);
    let mut writer = store.save(&id("a"), SaveOptions::default()).await.unwrap();
    writer.add(blob("x", &noise(1, 100_000))).await.unwrap();
    server.remove(BUCKET, "tenant/store/a/lease");
    let lost = failure(writer.finish().await);
    assert_eq!(lost.kind(), ErrorKind::Conflict, "{lost}");
    assert_eq!(objects(&server), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_lengths_and_checksums_are_errors() {
    for lie in [
        FaultKind::WrongLength { by: 1000 },
        FaultKind::WrongLength { by: -1000 },
        FaultKind::WrongHash,
    ] {
        let server = server();
        let store = agent(&server);
        let bytes = noise(8, 3 << 20);
        save_one(&store, "a", &bytes, SaveOptions::default()).await;
        server.add_fault(Fault::new(lie.clone()).on(&[Operation::GetMedia]));
        let mut gcs = options(&server, AGENT_TOKEN);
        gcs.retry.give_up_after = Duration::from_secs(2);
        let store = open_with(gcs);
        let read = async {
            let snapshot: Snapshot = store.snapshot(&id("a")).await?;
            restore_all(&store, &snapshot, &Default::default()).await
        };
        match tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .expect("no hang")
        {
            Ok((found, _)) => assert_bytes(&found[0], &bytes, "what came in spite of it"),
            Err(e) => assert!(e.to_string().contains("tenant/store/a/"), "{lie:?}: {e}"),
        }
        // An upload whose stored checksum is said to be another one is no success, and a compose neither.
        if lie == FaultKind::WrongHash {
            for operation in [Operation::InsertMultipart, Operation::Compose] {
                server.clear_faults();
                let lies = Fault::new(lie.clone()).on(&[operation]);
                server.add_fault(lies.containing("/pack-"));
                let section = NewSection::blob(Role::Other, "x", input(&bytes, Way::Source));
                let refused =
                    failure(save(&store, "b", vec![section], SaveOptions::default()).await);
                assert!(refused.to_string().contains("CRC-32C"), "{refused}");
                server.clear_faults();
                assert!(
                    !objects(&server).iter().any(|name| name.starts_with("b/")),
                    "{:?}",
                    objects(&server)
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_are_billed_are_few_in_a_save_of_several_packs() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let store = agent(&server);
    let stats = save_one(&store, "a", &noise(11, 70 << 20), SaveOptions::default()).await;
    assert_eq!(stats.packs, 3, "{stats:?}");
    // One for 30 MB and ten besides, where parts are 32 times as long as here.
    let (writes, bytes) = (server.billing(BUCKET).class_a, stats.stored_bytes());
    assert!(
        writes <= bytes * 32 / 30_000_000 + 10,
        "{writes}: {stats:?}"
    );
    // A pack begins with short parts: several streams are there soon.
    let log = server.log();
    let first = log.entries.iter().find(|e| e.name.ends_with("-0.0.part"));
    assert!(first.unwrap().bytes_in < 300 << 10, "{first:?}");
    let most = server
        .objects(BUCKET)
        .iter()
        .filter_map(|o| o.components)
        .max();
    assert!(most <= Some(32), "one compose is enough: {most:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pack_is_filled_while_one_is_finished() {
    let server = server();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let slow = Fault::new(FaultKind::Stall { ms: 1000 }).on(&[Operation::Compose]);
    server.add_fault(slow.containing("-0"));
    let store = agent(&server);
    let bytes = noise(12, 40 << 20);
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    let log = server.log();
    let composed = log.of(Operation::Compose)[0];
    let part = log.entries.iter().find(|e| e.name.ends_with("-1.0.part"));
    let part = part.expect("a second pack");
    assert!(
        part.at_ms < composed.at_ms + composed.took_ms,
        "{part:?} after {composed:?}"
    );
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");

    // If it cannot be finished, neither of them stays.
    server.clear_faults();
    server.configure(|c| c.link.first_byte_ms = 200);
    let lies = Fault::new(FaultKind::WrongHash).on(&[Operation::Compose]);
    server.add_fault(lies.containing("-0"));
    let section = blob("x", &noise(13, 40 << 20));
    let failed = failure(save(&store, "b", vec![section], SaveOptions::default()).await);
    assert!(failed.to_string().contains("CRC-32C"), "{failed}");
    let log = server.log();
    let begun = log.about("tenant/store/b/");
    assert!(
        begun.iter().any(|e| e.name.contains("-1.")),
        "a second pack was begun"
    );
    let left = objects(&server);
    assert!(!left.iter().any(|name| name.starts_with("b/")), "{left:?}");
}

/// Most downloads that were under way at once, by the log.
fn downloads_at_once(server: &GcsServer) -> usize {
    let log = server.log();
    let mut changes: Vec<(u64, isize)> = Vec::new();
    for read in log.of(Operation::GetMedia) {
        changes.push((read.at_ms, 1));
        changes.push((read.at_ms + read.took_ms.max(1), -1));
    }
    changes.sort();
    let (mut now, mut most) = (0, 0);
    for (_, change) in changes {
        now += change;
        most = most.max(now);
    }
    most as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_throttles_is_asked_for_less_at_once_and_for_more_again_later() {
    const BORNE: u64 = 4;
    let server = server();
    server.configure(|c| c.link.first_byte_ms = 30);
    let gcs = GcsOptions {
        read_len: 64 << 10,
        reads_at_once: 24,
        ..options(&server, AGENT_TOKEN)
    };
    let store = open_with(gcs);
    let bytes = noise(9, 20 << 20);
    save_one(&store, "a", &bytes, SaveOptions::default()).await;

    server.configure(|c| c.rules.downloads_at_once = BORNE);
    server.clear_log();
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
    let log = server.log();
    let reads = log.of(Operation::GetMedia);
    let refused = reads.iter().filter(|e| e.status == 429).count();
    let well = reads.len() - refused;
    assert!(refused > 0 && well > 100, "{refused} of {}", reads.len());
    // All of the first 24 but four, and then one now and then.
    assert!(refused < well / 3, "{refused} refused, {well} not");

    server.configure(|c| c.rules.downloads_at_once = 0);
    server.clear_log();
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
    let most = downloads_at_once(&server);
    assert!((12..=24).contains(&most), "{most} at once in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_few_however_many_reads_are_allowed() {
    let server = server();
    server.configure(|c| c.link.first_byte_ms = 50);
    let gcs = GcsOptions {
        read_len: 16 << 10,
        reads_at_once: 1000,
        ..options(&server, AGENT_TOKEN)
    };
    let store = open_with(gcs);
    let bytes = noise(10, 12 << 20);
    save_one(&store, "a", &bytes, SaveOptions::default()).await;
    assert_bytes(&restored(&store, "a").await[0], &bytes, "a");
    // 128 requests; a connection that was begun for one of them, which then got another's, is open beside theirs for a while.
    let most = server.connections().most;
    assert!((64..=136).contains(&most), "{most} connections at once");
}

/// A pod that holds its model, saved twice: what a bucket bills for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_save_makes_few_requests() {
    let images = support::provisioned::cache().join("images");
    if !images.join("R2/pages.img").exists() {
        return skipped("the images R and R2 are not there (tests/provision.sh)");
    }
    let server = server();
    let options = OpenOptions {
        gcs: GcsOptions {
            bearer_token: Some(AGENT_TOKEN.into()),
            endpoint: Some(server.url()),
            ..GcsOptions::default()
        },
        ..OpenOptions::default()
    };
    let store = Store::open_with(&format!("gs://{BUCKET}/tenant/store"), &options, None).unwrap();
    let image = |name: &str| podsnap::gvisor::sections(&images.join(name)).unwrap();
    let stats = save(&store, "r", image("R"), SaveOptions::default())
        .await
        .unwrap();
    let writes = server.billing(BUCKET).class_a;
    assert!(
        writes <= stats.stored_bytes() / 30_000_000 + 10,
        "{writes} writes: {stats:?}"
    );
    server.clear_log();
    save(&store, "r2", image("R2"), on_base("r")).await.unwrap();
    let log = server.log();
    let made = log.entries.iter();
    let made: Vec<_> = made
        .map(|e| format!("{} {} {}", e.method, e.target, e.status))
        .collect();
    assert!(made.len() <= 12, "{} requests: {made:#?}", made.len());
    assert!(server.connections().most <= 64);
}
