//! What the library counts reaches whoever installs a recorder.

mod support;

use std::{collections::BTreeMap, time::Duration};

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use podsnap::{
    CacheOptions, CancellationToken, Catalog, CollectOptions, RetentionRules, SaveOptions, Store,
};
use support::{blob, id, noise, save};

/// Everything that was counted, by its name; of a histogram, how often.
fn counted(snapshotter: &Snapshotter) -> BTreeMap<String, u64> {
    let all = snapshotter.snapshot().into_vec().into_iter();
    all.map(|(key, _, _, value)| {
        let value = match value {
            DebugValue::Counter(value) => value,
            DebugValue::Gauge(value) => value.0 as u64,
            DebugValue::Histogram(values) => values.len() as u64,
        };
        (key.key().name().to_owned(), value)
    })
    .collect()
}

#[test]
fn saves_restores_retention_and_garbage_are_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runtime = support::runtime();
    let counts = runtime.block_on(async {
        let cache = CacheOptions {
            dir: dir.path().join("cache"),
            max_len: 1 << 30,
        };
        let url = dir.path().join("store").to_str().unwrap().to_owned();
        let store = Store::open(&url).unwrap().with_cache(&cache);
        let bytes = noise(1, 500_000);
        let in_group = || SaveOptions {
            group: Some("g".to_owned()),
            ..SaveOptions::default()
        };
        for snapshot in ["one", "two"] {
            tokio::time::sleep(Duration::from_millis(3)).await;
            save(&store, snapshot, vec![blob("x", &bytes)], in_group())
                .await
                .unwrap();
        }
        let cancelled = SaveOptions::default();
        cancelled.cancel.cancel();
        save(&store, "three", vec![blob("x", &bytes)], cancelled)
            .await
            .unwrap_err();

        // Two processes of one node.
        let catalog = Catalog::new(&store);
        for _ in 0..2 {
            let store = Store::open(&url).unwrap().with_cache(&cache);
            let snapshot = store.snapshot(&id("two")).await.unwrap();
            let mut page = [0; 4096];
            snapshot
                .reader(0)
                .read_at(&mut page, 100_000)
                .await
                .unwrap();
        }
        catalog.begin_restore(&id("two")).await.unwrap();
        let rules = RetentionRules {
            max_per_group: Some(1),
            ..RetentionRules::default()
        };
        let plan = catalog.plan_retention(&rules).await.unwrap();
        catalog.retain(&plan, &CancellationToken::new()).await;
        let grace = Duration::ZERO;
        for _ in 0..2 {
            let plan = store
                .plan_collection(&CollectOptions { grace })
                .await
                .unwrap();
            store
                .collect(plan, &podsnap::CancellationToken::new())
                .await
                .unwrap();
        }
        counted(&snapshotter)
    });
    let is = |name: &str, expected: u64| {
        let found = counts.get(&format!("podsnap_{name}"));
        assert_eq!(found, Some(&expected), "{name}: {counts:?}");
    };
    is("saved_snapshots_total", 2);
    is("failed_saves_total", 1);
    is("save_raw_bytes_total", 1_000_000);
    is("save_deduplicated_bytes_total", 500_000);
    is("save_seconds", 2);
    let stored = counts["podsnap_save_stored_bytes_total"];
    assert!((500_000..600_000).contains(&stored), "{stored}");
    is("restores_begun_total", 1);
    is("retention_removed_total", 1);
    is("node_cache_misses_total", 1);
    is("node_cache_hits_total", 1);
    // The mark of the removal; the pack is needed by the other.
    is("collected_objects_total", 1);
    is("garbage_waiting_bytes", 0);
}
