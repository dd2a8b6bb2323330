//! What goes into a store comes out again, bit for bit, whatever its shape and whatever it shares with other bytes; and what
//! is shared is stored once.

mod support;

use podsnap::{
    ErrorKind, Input, Key, NewSection, OpenOptions, Policy, Role, SaveOptions, SaveStats, Snapshot,
    Store,
    chunking::{self, ChunkingParams},
};
use proptest::prelude::*;
use support::*;
use tokio_util::sync::CancellationToken;

/// Bytes of many shapes.
fn shapes() -> Vec<(&'static str, Vec<u8>)> {
    let mut islands = vec![0; 3 << 20];
    for at in [0, 5_000, 1 << 20, (2 << 20) - 1, (3 << 20) - 1] {
        islands[at] = 7;
    }
    islands[700_000..900_000].copy_from_slice(&noise(1, 200_000));
    let repeated = noise(2, 100_001).repeat(20);
    vec![
        ("nothing", vec![]),
        ("a byte", vec![1]),
        ("a zero", vec![0]),
        ("zeros", vec![0; 5 << 20]),
        ("zeros that end within a page", vec![0; 12_345]),
        ("islands", islands),
        ("repeated", repeated),
        ("text", text(3, 1_500_000)),
        ("noise", noise(4, 2_000_003)),
        ("ones", vec![255; 3_000_000]),
    ]
}

/// Many of the segments that are cut as one task, of data that runs on over their borders.
fn long() -> Vec<u8> {
    let mut bytes = noise(5, 18 << 20);
    bytes.extend(vec![0; 15 << 20]);
    bytes.extend(text(6, 5 << 20));
    bytes.extend_from_within((3 << 20) + 17..(5 << 20) + 23);
    bytes
}

struct Scratch {
    store: Store,
    _dir: Option<tempfile::TempDir>,
}

fn in_memory() -> Scratch {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    Scratch {
        store: Store::open(&format!("memory://round-trip-{number}")).unwrap(),
        _dir: None,
    }
}

fn in_directory(key: Option<Key>) -> Scratch {
    let dir = tempfile::tempdir().unwrap();
    let options = OpenOptions {
        sync: false,
        ..OpenOptions::default()
    };
    Scratch {
        store: Store::open_with(dir.path().to_str().unwrap(), &options, key).unwrap(),
        _dir: Some(dir),
    }
}

fn sections(
    shapes: &[(&str, Vec<u8>)],
    way: Way,
    chunking: Option<ChunkingParams>,
) -> Vec<NewSection> {
    let section = |(name, bytes): &(&str, Vec<u8>)| NewSection {
        chunking,
        ..NewSection::blob(Role::Memory, *name, input(bytes, way))
    };
    shapes.iter().map(section).collect()
}

async fn assert_restores(store: &Store, name: &str, shapes: &[(&str, Vec<u8>)]) {
    for ((section, expected), found) in shapes.iter().zip(restored(store, name).await) {
        assert_bytes(&found, expected, &format!("{section} of {name}"));
    }
}

/// All shapes, by each way of reading, chunking, codec and kind of store.
#[tokio::test(flavor = "multi_thread")]
async fn every_shape_comes_back_from_every_store_and_codec() {
    let shapes = shapes();
    let raw: u64 = shapes.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let chunkings = [
        None,
        Some(chunking::fixed(4096)),
        Some(chunking::fixed(100_000)),
        Some(chunking::content_defined(12)),
    ];
    let key = || Some(Key::new([9; 32]));
    for (kind, scratch) in [
        ("memory", in_memory()),
        ("directory", in_directory(None)),
        ("keyed", in_directory(key())),
    ] {
        let store = &scratch.store;
        for (number, chunking) in chunkings.into_iter().enumerate() {
            for codec in [Policy::None, Policy::Zstd(1), Policy::Auto] {
                for way in [Way::Source, Way::Stream] {
                    let name = format!("{kind}-{number}-{codec}-{way:?}").replace(':', "-");
                    let options = SaveOptions {
                        codec,
                        ..SaveOptions::default()
                    };
                    let stats = save(store, &name, sections(&shapes, way, chunking), options)
                        .await
                        .unwrap();
                    assert_eq!(stats.raw_bytes, raw);
                    let parts = [
                        stats.zero_bytes,
                        stats.deduplicated_own_bytes,
                        stats.new_bytes,
                    ];
                    assert_eq!(
                        parts.iter().sum::<u64>(),
                        raw,
                        "{name}: every byte is counted once"
                    );
                    assert_restores(store, &name, &shapes).await;
                }
            }
        }
        assert_sound(store, &format!("{kind}-0-auto-Stream")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sections_of_several_segments_come_back_by_every_way_of_reading() {
    let scratch = in_directory(None);
    let (store, bytes) = (&scratch.store, long());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, &bytes).unwrap();
    let inputs = [
        ("source", input(&bytes, Way::Source)),
        ("stream", input(&bytes, Way::Stream)),
        ("file", Input::file(&file).unwrap()),
    ];
    for (name, input) in inputs {
        save(
            store,
            name,
            vec![NewSection::blob(Role::Memory, "", input)],
            SaveOptions::default(),
        )
        .await
        .unwrap();
        let snapshot = store.snapshot(&id(name)).await.unwrap();
        assert_bytes(&restored(store, name).await[0], &bytes, name);

        let whole = dir.path().join(format!("{name}-restored"));
        snapshot
            .restore(store, &whole, &Default::default())
            .await
            .unwrap();
        assert_bytes(&std::fs::read(whole.join("memory")).unwrap(), &bytes, name);

        let mut streamed = Vec::new();
        snapshot
            .restore_stream(0, &mut streamed, &CancellationToken::new())
            .await
            .unwrap();
        assert_bytes(&streamed, &bytes, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_of_a_section_can_be_read() {
    let scratch = in_directory(None);
    let (store, bytes) = (&scratch.store, long());
    save_one(store, "s", &bytes, SaveOptions::default()).await;
    let reader = store.snapshot(&id("s")).await.unwrap().reader(0);
    let mut random = Noise(8);
    for _ in 0..60 {
        let start = random.below(bytes.len());
        let len = random.below(300_000).min(bytes.len() - start);
        let mut buf = vec![0xee; len];
        reader.read_at(&mut buf, start as u64).await.unwrap();
        assert_bytes(
            &buf,
            &bytes[start..start + len],
            &format!("{len} bytes at {start}"),
        );
    }
    reader.read_at(&mut [], bytes.len() as u64).await.unwrap();
    let beyond = failure(reader.read_at(&mut [0], bytes.len() as u64).await);
    assert_eq!(beyond.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_hold_what_the_snapshot_borrows() {
    let scratch = in_directory(None);
    let (store, shapes) = (&scratch.store, shapes());
    save_one(store, "base", &shapes[8].1, SaveOptions::default()).await;
    save(
        store,
        "s",
        sections(&shapes, Way::Source, None),
        on_base("base"),
    )
    .await
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.podsnap");
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    assert!(
        snapshot
            .directory()
            .packs
            .iter()
            .any(|p| p.snapshot == id("base")),
        "it borrows"
    );
    snapshot
        .export(store, &file, &Default::default(), &CancellationToken::new())
        .await
        .unwrap();

    let other = in_memory();
    let export = Snapshot::open_export(&file, None).await.unwrap();
    let (found, _) = restore_all(&other.store, &export, &Default::default())
        .await
        .unwrap();
    for ((name, expected), found) in shapes.iter().zip(found) {
        assert_bytes(&found, expected, &format!("{name} of the export"));
    }
    export
        .copy_to(&other.store, &id("imported"), SaveOptions::default())
        .await
        .unwrap();
    assert_restores(&other.store, "imported", &shapes).await;
    assert_sound(&other.store, "imported").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_store_opens_with_its_key_only() {
    let dir = tempfile::tempdir().unwrap();
    let open = |key: Option<[u8; 32]>| {
        let options = OpenOptions {
            sync: false,
            ..OpenOptions::default()
        };
        Store::open_with(dir.path().to_str().unwrap(), &options, key.map(Key::new)).unwrap()
    };
    save_one(
        &open(Some([1; 32])),
        "keyed",
        b"secret",
        SaveOptions::default(),
    )
    .await;
    save_one(&open(None), "plain", b"public", SaveOptions::default()).await;
    for (key, name) in [
        (Some([2; 32]), "keyed"),
        (None, "keyed"),
        (Some([1; 32]), "plain"),
    ] {
        let refused = failure(open(key).snapshot(&id(name)).await);
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    }
    // Equal bytes have other names there: nothing tells from outside that two stores share them.
    let chunk = |store: Store, name: &'static str| async move {
        let snapshot = store.snapshot(&id(name)).await.unwrap();
        snapshot.sections()[0].segments[0].hash
    };
    save_one(
        &open(None),
        "plain-secret",
        b"secret",
        SaveOptions::default(),
    )
    .await;
    assert_ne!(
        chunk(open(Some([1; 32])), "keyed").await,
        chunk(open(None), "plain-secret").await
    );
}

/// Saves `changed` on top of `original` in a fresh store, checks the bytes of both, and returns what the second save did.
async fn resave(original: &[u8], changed: &[u8]) -> SaveStats {
    let scratch = in_directory(None);
    save_one(&scratch.store, "a", original, SaveOptions::default()).await;
    let stats = save_one(&scratch.store, "b", changed, on_base("a")).await;
    assert_bytes(&restored(&scratch.store, "b").await[0], changed, "b");
    assert_bytes(&restored(&scratch.store, "a").await[0], original, "a");
    stats
}

/// A chunk is at most 256 KiB long by default. A change costs a chunk or two at its place; what it shifts is found again, across
/// the borders of segments too, but for a page at either end of the zeros, which no longer lie on the grid.
const AROUND_A_CHANGE: u64 = 2 * (256 << 10);

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_section_costs_nothing_but_its_map() {
    let bytes = long();
    let stats = resave(&bytes, &bytes).await;
    assert_eq!((stats.new_bytes, stats.pack_bytes, stats.packs), (0, 0, 0));
    assert!(stats.manifest_bytes * 1000 < stats.raw_bytes, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn insertions_cost_what_they_insert() {
    let bytes = long();
    for (at, len) in [
        (0, 4096),
        (0, 1),
        (5 << 20, 3 * 4096),
        (4 * chunking::SEGMENT_LEN - 1000, 4097),
        (12_345_678, 1_234_567),
    ] {
        let changed = [&bytes[..at], &noise(99, len), &bytes[at..]].concat();
        let stats = resave(&bytes, &changed).await;
        assert!(
            stats.new_bytes <= len as u64 + AROUND_A_CHANGE,
            "{len} at {at}: {stats:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_cost_next_to_nothing() {
    let bytes = long();
    for (at, len) in [
        (0, 4096),
        (7_777_777, 1),
        (4 * chunking::SEGMENT_LEN - 1000, 123_457),
    ] {
        let changed = [&bytes[..at], &bytes[at + len..]].concat();
        let stats = resave(&bytes, &changed).await;
        assert!(
            stats.new_bytes <= AROUND_A_CHANGE,
            "{len} at {at}: {stats:?}"
        );
    }
}

/// The weights of one process stand in its heap and in tmpfs, at different offsets.
#[tokio::test(flavor = "multi_thread")]
async fn duplicates_at_odd_offsets_are_stored_once_within_and_across_sections() {
    let weights = noise(11, 6 << 20);
    let heap = [
        &noise(12, 12_345)[..],
        &weights,
        &noise(13, 777),
        &weights[..3 << 20],
    ]
    .concat();
    let tmpfs = [&noise(14, 4096 + 13)[..], &weights].concat();
    let scratch = in_directory(None);
    let sections = vec![blob("heap", &heap), blob("tmpfs", &tmpfs)];
    let stats = save(&scratch.store, "s", sections, SaveOptions::default())
        .await
        .unwrap();
    // Grown byte by byte, the duplicates cost less than a kilobyte at each of their ends.
    let unique = (weights.len() + 12_345 + 777 + 4096 + 13) as u64;
    assert!(
        stats.new_bytes <= unique + 4 * 1024,
        "{} of {unique}: {stats:?}",
        stats.new_bytes
    );
    let found = restored(&scratch.store, "s").await;
    assert_bytes(&found[0], &heap, "heap");
    assert_bytes(&found[1], &tmpfs, "tmpfs");
    // The same save on top of it finds the ranges inside chunks again.
    let again = vec![blob("heap", &heap), blob("tmpfs", &tmpfs)];
    let stats = save(&scratch.store, "t", again, on_base("s"))
        .await
        .unwrap();
    assert_eq!(stats.new_bytes, 0, "{stats:?}");
    let found = restored(&scratch.store, "t").await;
    assert_bytes(&found[0], &heap, "heap");
    assert_bytes(&found[1], &tmpfs, "tmpfs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_is_stored_once() {
    let bytes = noise(15, 1_000_003).repeat(12);
    let scratch = in_directory(None);
    let stats = save_one(&scratch.store, "s", &bytes, SaveOptions::default()).await;
    assert!(stats.new_bytes <= 1_000_003 + AROUND_A_CHANGE, "{stats:?}");
    assert_bytes(&restored(&scratch.store, "s").await[0], &bytes, "s");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_bases_are_used_at_once_and_their_packs_named() {
    let (a, b) = (noise(16, 2 << 20), noise(17, 2 << 20));
    let scratch = in_directory(None);
    let store = &scratch.store;
    save_one(store, "a", &a, SaveOptions::default()).await;
    save_one(store, "b", &b, on_base("a")).await;
    let both = [&a[..], &b].concat();
    let options = SaveOptions {
        bases: vec![id("a"), id("b")],
        ..SaveOptions::default()
    };
    let stats = save_one(store, "c", &both, options).await;
    assert!(stats.new_bytes <= AROUND_A_CHANGE, "{stats:?}");
    assert_bytes(&restored(store, "c").await[0], &both, "c");
    // Each manifest is complete: what d borrows through c it names as a's and b's.
    let stats = save_one(store, "d", &both, on_base("c")).await;
    assert_eq!(stats.new_bytes, 0);
    assert_bytes(&restored(store, "d").await[0], &both, "d");
    assert_sound(store, "d").await;
}

/// A change to some bytes.
#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, usize),
    Remove(usize, usize),
    Overwrite(usize, usize),
    Zero(usize, usize),
    /// A part of the bytes again, elsewhere.
    Copy(usize, usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<usize>;
    let len = || {
        prop_oneof![
            1..100usize,
            1..60_000usize,
            (1..12usize).prop_map(|pages| pages * 4096)
        ]
    };
    prop_oneof![
        (at(), len()).prop_map(|(a, l)| Edit::Insert(a, l)),
        (at(), len()).prop_map(|(a, l)| Edit::Remove(a, l)),
        (at(), len()).prop_map(|(a, l)| Edit::Overwrite(a, l)),
        (at(), len()).prop_map(|(a, l)| Edit::Zero(a, l)),
        (at(), at(), len()).prop_map(|(a, b, l)| Edit::Copy(a, b, l)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit, seed: u64) {
    let place = |at: usize, len: usize, bytes: &[u8]| {
        let at = at % (bytes.len() + 1);
        at..(at + len).min(bytes.len())
    };
    match *edit {
        Edit::Insert(at, len) => {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, noise(seed, len));
        }
        Edit::Remove(at, len) => drop(bytes.drain(place(at, len, bytes))),
        Edit::Overwrite(at, len) => {
            let range = place(at, len, bytes);
            let new = noise(seed, range.len());
            bytes[range].copy_from_slice(&new);
        }
        Edit::Zero(at, len) => {
            let range = place(at, len, bytes);
            bytes[range].fill(0);
        }
        Edit::Copy(from, to, len) => {
            let copied = bytes[place(from, len, bytes)].to_vec();
            let to = to % (bytes.len() + 1);
            bytes.splice(to..to, copied);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// Predicted cuts and grown duplicates never change a byte, and an edit never costs more than itself and what stands around it.
    #[test]
    fn edits_come_back_bit_exact_and_cost_what_they_change(
        seed in any::<u64>(),
        len in 1..900_000usize,
        first in prop::collection::vec(edit(), 0..6),
        second in prop::collection::vec(edit(), 0..6),
        fixed in any::<bool>(),
        way in prop_oneof![4 => Just(Way::Source), 1 => Just(Way::Stream)],
    ) {
        // Small chunks, so that there are many borders; every other part repeats.
        let chunking = if fixed { chunking::fixed(4096) } else { chunking::content_defined(12) };
        let mut bytes = noise(seed, len);
        let repeat = bytes[..len / 3].to_vec();
        bytes.extend(repeat);
        let runtime = runtime();
        let scratch = in_memory();
        let store = &scratch.store;
        let new = |bytes: &[u8], way| NewSection { chunking: Some(chunking), ..NewSection::blob(Role::Memory, "", input(bytes, way)) };
        runtime.block_on(async {
            save(store, "0", vec![new(&bytes, Way::Source)], SaveOptions::default()).await.unwrap();
            for (number, edits) in [first, second].iter().enumerate() {
                for (i, edit) in edits.iter().enumerate() {
                    apply(&mut bytes, edit, seed ^ (100 * number + i + 1) as u64);
                }
                let (name, base) = (format!("{}", number + 1), format!("{number}"));
                let stats = save(store, &name, vec![new(&bytes, way)], on_base(&base)).await.unwrap();
                assert_bytes(&restored(store, &name).await[0], &bytes, &name);
                if !fixed {
                    let changed: usize = edits.iter().map(|edit| match *edit {
                        Edit::Insert(_, len) | Edit::Overwrite(_, len) => len,
                        _ => 0,
                    }).sum();
                    let around = (edits.len() as u64 * 2 + 2) * 2 * (16 << 10);
                    assert!(stats.new_bytes <= changed as u64 + around, "{edits:?}: {stats:?}");
                }
            }
            assert_sound(store, "2").await;
        });
    }
}
