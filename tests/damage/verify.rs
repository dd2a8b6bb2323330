//! What a verification looks at and what it says.

use podsnap::{
    ErrorKind, NewSection, Role, SaveOptions, Snapshot, Store, chunking,
    format::Footer,
    verify::{VerifyOptions, VerifyReport},
};

use crate::{
    support::*,
    world::{World, parts},
};

async fn snapshot(world: &World) -> Snapshot {
    world.store.snapshot(&id("s")).await.unwrap()
}

async fn verify(world: &World, options: VerifyOptions) -> VerifyReport {
    let snapshot = snapshot(world).await;
    snapshot.verify(&world.store, &options).await.unwrap()
}

fn with_byte(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    changed[at] ^= 0x55;
    changed
}

#[tokio::test(flavor = "multi_thread")]
async fn one_section_is_verified_alone() {
    let world = World::small(false).await;
    let (frames, _) = parts("s/manifest", &world.objects["s/manifest"]);
    let of_y = frames
        .iter()
        .find(|part| part.section == "other:y")
        .unwrap();
    let bytes = with_byte(&world.objects[&of_y.object], of_y.bytes.start as usize + 20);
    world.replace(&of_y.object, Some(&bytes)).await;
    let section = |number| VerifyOptions {
        sections: vec![number],
        ..VerifyOptions::default()
    };
    let x = verify(&world, section(0)).await;
    assert!(x.is_sound() && x.chunks == 3, "{x:?}");
    let y = verify(&world, section(1)).await;
    assert_eq!(y.damage.len(), 1, "{y:?}");
    assert!(y.damage[0].what.contains(&of_y.object), "{y:?}");
    let e = failure(
        snapshot(&world)
            .await
            .verify(&world.store, &section(2))
            .await,
    );
    assert_eq!(e.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_of_the_size_that_was_asked_for() {
    let store = Store::open("memory://damage-sample").unwrap();
    let bytes = noise(1, 400 * 512);
    let section = NewSection {
        chunking: Some(chunking::fixed(512)),
        ..NewSection::blob(Role::Other, "x", input(&bytes, Way::Source))
    };
    save(&store, "s", vec![section], SaveOptions::default())
        .await
        .unwrap();
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    // By chance it leaves these bounds once in billions of runs.
    for (share, chunks) in [(0.0, 0..=0), (0.5, 130..=270), (1.0, 400..=400)] {
        let options = VerifyOptions {
            sample: Some(share),
            ..VerifyOptions::default()
        };
        let report = snapshot.verify(&store, &options).await.unwrap();
        assert!(
            report.is_sound() && chunks.contains(&report.chunks),
            "{share}: {report:?}"
        );
        assert_eq!(report.raw_bytes, report.chunks * 512);
    }
    // A pack that is gone is noticed by any sample.
    let pack = format!("s/{}", snapshot.directory().packs[0].name);
    store.backend().delete(&pack, None).await.unwrap();
    let options = VerifyOptions {
        sample: Some(0.5),
        ..VerifyOptions::default()
    };
    let report = snapshot.verify(&store, &options).await.unwrap();
    assert!(
        (130..=270).contains(&report.damage.len()),
        "{}",
        report.damage.len()
    );
    assert!(
        report
            .damage
            .iter()
            .all(|damage| damage.what.contains(&pack))
    );
}

/// A whole verification counts all chunks of all packs, its own and borrowed ones, needed or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_index_is_made_anew_from_the_frames() {
    let world = World::small(false).await;
    let whole = verify(&world, VerifyOptions::default()).await;
    assert!(whole.chunks > 6 && whole.packs == 3, "{whole:?}");
    let borrowed = world
        .packs()
        .into_iter()
        .find(|pack| pack.starts_with("base/"))
        .unwrap();
    let old = world.objects[&borrowed].clone();
    let index = Footer::parse(&old).unwrap().trailer_offset as usize;
    let without_index = [&old[..index], &vec![0; old.len() - index]].concat();
    world.replace(&borrowed, Some(&without_index)).await;
    let report = verify(&world, VerifyOptions::default()).await;
    assert_eq!(report.chunks, whole.chunks);
    assert_eq!(report.rebuilt_indexes, std::slice::from_ref(&borrowed));
    assert!(
        !report.is_sound() && report.damage.iter().all(|damage| damage.lost.is_empty()),
        "{report:?}"
    );

    // With a frame damaged as well, that one is missed, whether or not this snapshot needs it.
    let (frames, _) = parts("s/manifest", &world.objects["s/manifest"]);
    let needed: Vec<_> = frames
        .iter()
        .filter(|part| part.object == borrowed)
        .collect();
    assert_eq!(needed.len(), 2);
    for (at, lost) in [(needed[0].bytes.start as usize, 1), (192 + 524, 0)] {
        assert_eq!(
            needed.iter().any(|part| part.bytes.contains(&(at as u64))),
            lost == 1
        );
        // In its header and in its payload.
        for within in [3, 100] {
            world
                .replace(&borrowed, Some(&with_byte(&without_index, at + within)))
                .await;
            let report = verify(&world, VerifyOptions::default()).await;
            assert_eq!(report.chunks, whole.chunks - 1, "{report:?}");
            let ranges = report
                .damage
                .iter()
                .map(|damage| damage.lost.len())
                .sum::<usize>();
            assert_eq!(ranges, lost, "{report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_demanded() {
    let world = World::small(false).await;
    let s = snapshot(&world).await;
    let digest = s.digest().to_string();
    s.demand_digest(&digest).unwrap();
    s.demand_digest(&digest.to_uppercase()).unwrap();
    for wrong in [&digest[1..], "", &digest.replace('0', "1"), &"0".repeat(64)] {
        let e = failure(s.demand_digest(wrong));
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        assert!(
            e.to_string().contains("s/manifest") && e.to_string().contains(&digest),
            "{e}"
        );
    }
    // Somebody puts a whole snapshot of other bytes in its place: nothing but the digest tells.
    let forged = Store::open("memory://damage-forged").unwrap();
    save_one(&forged, "s", b"other bytes", SaveOptions::default()).await;
    for object in forged.backend().list("").await.unwrap() {
        let range = podsnap::store::ReadRange::Exact(0..object.len);
        let read = forged
            .backend()
            .read(&object.name, range, None)
            .await
            .unwrap();
        world.replace(&object.name, Some(&read.bytes)).await;
    }
    assert_sound(&world.store, "s").await;
    let e = failure(snapshot(&world).await.demand_digest(&digest));
    assert_eq!(e.kind(), ErrorKind::Damaged);
}
