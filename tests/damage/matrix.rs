//! Every action in every place.

use podsnap::Snapshot;

use crate::{
    judge::{Case, Copying, Is},
    support::*,
    world::{World, borders},
};

/// Judges `s` with `new` in the place of one of the store's objects.
async fn judge(world: &World, object: &str, new: Option<&[u8]>, what: String, copying: Copying) {
    world.replace(object, new).await;
    let case = Case {
        world,
        what: format!("{object}: {what}"),
        object,
        is: if object == "s/manifest" {
            Is::Top
        } else {
            Is::Pack
        },
        old: &world.objects[object],
        new,
        copying,
    };
    let opened = world.opened_anew().snapshot(&id("s")).await;
    case.judge(opened, ("s/manifest", &world.objects["s/manifest"]))
        .await;
}

/// Judges the export of `s` with `new` in its place.
async fn judge_export(world: &World, new: Option<&[u8]>, what: String, copying: Copying) {
    let path = world.dir.path().join("s.podsnap");
    match new {
        Some(new) => std::fs::write(&path, new).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    let case = Case {
        world,
        what: format!("export: {what}"),
        object: "s.podsnap",
        is: Is::Top,
        old: &world.export,
        new,
        copying,
    };
    let opened = Snapshot::open_export(&path, None).await;
    case.judge(opened, ("s.podsnap", &world.export)).await;
}

/// The objects that `s` consists of.
fn objects(world: &World) -> Vec<String> {
    let mut objects = world.packs();
    objects.push("s/manifest".into());
    assert!(
        objects.len() >= 4,
        "a borrowed pack, two of its own: {objects:?}"
    );
    objects
}

/// `bytes` with one bit at `at` the other way.
fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << (at * 5 % 8);
    flipped
}

fn copying(number: usize) -> Copying {
    match number % 16 {
        0 => Copying::Tried,
        _ => Copying::Left,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_is_judged_whole() {
    for in_memory in [false, true] {
        let world = World::small(in_memory).await;
        for object in objects(&world) {
            let same = world.objects[&object].clone();
            judge(
                &world,
                &object,
                Some(&same),
                "unchanged".into(),
                Copying::Tried,
            )
            .await;
        }
        let same = world.export.clone();
        judge_export(&world, Some(&same), "unchanged".into(), Copying::Tried).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_byte_of_any_pack() {
    let world = World::small(true).await;
    for object in world.packs() {
        let bytes = world.objects[&object].clone();
        for at in 0..bytes.len() {
            let what = format!("a bit of byte {at} of {}", bytes.len());
            judge(
                &world,
                &object,
                Some(&flipped(&bytes, at)),
                what,
                copying(at),
            )
            .await;
        }
        world.mend(&object).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_byte_of_a_manifest() {
    let world = World::small(false).await;
    let bytes = world.objects["s/manifest"].clone();
    for at in 0..bytes.len() {
        let what = format!("a bit of byte {at} of {}", bytes.len());
        judge(
            &world,
            "s/manifest",
            Some(&flipped(&bytes, at)),
            what,
            copying(at),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_any_byte_of_an_export() {
    let world = World::small(false).await;
    for at in 0..world.export.len() {
        let what = format!("a bit of byte {at} of {}", world.export.len());
        judge_export(&world, Some(&flipped(&world.export, at)), what, copying(at)).await;
    }
}

/// Of a section whose map has several segments, only what the damaged one maps is lost.
#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_in_a_map_of_several_segments() {
    let world = World::of_many_extents().await;
    let bytes = world.objects["s/manifest"].clone();
    for at in (0..bytes.len()).step_by(37) {
        let what = format!("a bit of byte {at} of {}", bytes.len());
        judge(
            &world,
            "s/manifest",
            Some(&flipped(&bytes, at)),
            what,
            copying(at),
        )
        .await;
    }
}

/// Cuts at every border, zeros between all of them, and bytes that follow.
fn mangled(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let borders = borders(bytes);
    let mut all = Vec::new();
    for &at in &borders[..borders.len() - 1] {
        all.push((format!("cut at {at}"), bytes[..at].to_vec()));
        all.push((format!("cut behind {at}"), bytes[..at + 1].to_vec()));
    }
    for pair in borders.windows(2) {
        let mut zeroed = bytes.to_vec();
        zeroed[pair[0]..pair[1]].fill(0);
        all.push((format!("zeros from {} to {}", pair[0], pair[1]), zeroed));
        let without = [&bytes[..pair[0]], &bytes[pair[1]..]].concat();
        all.push((format!("without {} to {}", pair[0], pair[1]), without));
    }
    for len in [1, 80, 5000] {
        all.push((format!("{len} zeros more"), [bytes, &vec![0; len]].concat()));
    }
    // Even a second footer where one is looked for.
    let footer = &bytes[bytes.len() - 80..];
    all.push(("its footer twice".into(), [bytes, footer].concat()));
    all.push(("twice".into(), bytes.repeat(2)));
    all.retain(|(_, mangled)| mangled != bytes);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_cut_zeroed_or_longer() {
    for in_memory in [false, true] {
        let world = World::small(in_memory).await;
        for object in objects(&world) {
            let mangled = mangled(&world.objects[&object]);
            for (number, (what, new)) in mangled.into_iter().enumerate() {
                judge(&world, &object, Some(&new), what, copying(number)).await;
            }
            world.mend(&object).await;
        }
        if !in_memory {
            for (number, (what, new)) in mangled(&world.export).into_iter().enumerate() {
                judge_export(&world, Some(&new), what, copying(number)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_in_the_place_of_others_and_objects_that_are_gone() {
    for in_memory in [false, true] {
        let world = World::small(in_memory).await;
        let mut others: Vec<(String, Vec<u8>)> = world.objects.clone().into_iter().collect();
        others.push(("the export".into(), world.export.clone()));
        others.push(("a text".into(), text(1, 3000)));
        for object in objects(&world) {
            judge(&world, &object, None, "gone".into(), Copying::Tried).await;
            for (other, bytes) in others.iter().filter(|(other, _)| *other != object) {
                let what = format!("{other} in its place");
                judge(&world, &object, Some(bytes), what, Copying::Tried).await;
            }
            world.mend(&object).await;
        }
        judge_export(
            &world,
            Some(&world.export),
            "unchanged".into(),
            Copying::Left,
        )
        .await;
        judge_export(&world, None, "gone".into(), Copying::Left).await;
        for (other, bytes) in others.iter().filter(|(other, _)| other != "the export") {
            judge_export(
                &world,
                Some(bytes),
                format!("{other} in its place"),
                Copying::Tried,
            )
            .await;
        }
    }
}

/// A store that was copied elsewhere has other versions of the same objects.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_store_is_as_good() {
    for in_memory in [false, true] {
        let world = World::small(in_memory).await;
        for object in objects(&world) {
            world.mend(&object).await;
        }
        assert_sound(&world.store, "s").await;
        for ((section, expected), found) in
            world.expected.iter().zip(restored(&world.store, "s").await)
        {
            assert_bytes(&found, expected, section);
        }
    }
}
