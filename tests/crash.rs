//! A save that is killed at any moment leaves nothing that looks like a snapshot, harms none that is there, and what it leaves
//! is removed by the next save of the same id.

mod support;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use podsnap::{ErrorKind, Input, NewSection, Role, SaveOptions, Store};
use support::*;

/// Names the store for the child process that saves.
const STORE: &str = "PODSNAP_TEST_CRASH_STORE";
const KILLS: usize = 110;

/// Not a test of its own: what the child processes run, saving until they are killed.
#[tokio::test(flavor = "multi_thread")]
async fn saver() {
    let Ok(dir) = env::var(STORE) else { return };
    let dir = PathBuf::from(dir);
    let store = Store::open(dir.join("store").to_str().unwrap()).unwrap();
    save_changed(&store, &dir).await.unwrap();
}

/// Saves two sections as `next` into the group `g`, on its head.
async fn save_changed(store: &Store, dir: &Path) -> podsnap::Result<podsnap::SaveStats> {
    let options = SaveOptions {
        group: Some("g".into()),
        ..SaveOptions::default()
    };
    let section = |name: &str| {
        Ok(NewSection::blob(
            Role::Other,
            name,
            Input::file(dir.join(name))?,
        ))
    };
    save(
        store,
        "next",
        vec![section("first")?, section("second")?],
        options,
    )
    .await
}

fn start(dir: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "saver", "--nocapture"])
        .env(STORE, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every file below `dir`, by its path there.
fn files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(
                files(&entry.path())
                    .iter()
                    .map(|below| format!("{name}/{below}")),
            ),
            false => found.push(name),
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_saves_leave_nothing_visible_and_the_next_one_goes_through() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path();
    let first = [text(1, 1 << 20), noise(2, 4 << 20), vec![0; 1 << 20]].concat();
    let second = noise(3, 2 << 20);
    let base = noise(2, 3 << 20);
    fs::write(dir.join("first"), &first).unwrap();
    fs::write(dir.join("second"), &second).unwrap();
    let open = || Store::open(dir.join("store").to_str().unwrap()).unwrap();
    let group = SaveOptions {
        group: Some("g".into()),
        ..SaveOptions::default()
    };
    save(&open(), "base", vec![blob("first", &base)], group)
        .await
        .unwrap();
    let before = files(&dir.join("store"));

    // How long a save takes when nobody kills it, process start included. The shortest of some, as other work may hold one up.
    let mut whole = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        assert!(start(dir).wait().unwrap().success());
        whole = whole.min(started.elapsed());
        open().remove(&id("next")).await.unwrap();
        assert_eq!(files(&dir.join("store")), before);
    }

    let (mut committed, mut cut_short, mut leftovers) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut child = start(dir);
        // Kills are spread over the whole save and somewhat beyond, never twice at the same moment.
        thread::sleep(whole.mul_f64(1.2 * kill as f64 / KILLS as f64));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = open();
        let visible = match store.snapshot(&id("next")).await {
            Ok(_) => true,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => panic!("kill {kill}: {e}"),
        };
        assert_sound(&store, "base").await;
        let left = files(&dir.join("store"));
        match save_changed(&store, dir).await {
            Ok(_) => assert!(!visible, "kill {kill}: saved twice"),
            Err(e) => {
                assert!(
                    visible && e.kind() == ErrorKind::Conflict,
                    "kill {kill}: {e}"
                );
                committed += 1;
            }
        }
        cut_short += usize::from(!visible);
        leftovers += usize::from(!visible && left != before);

        // By now the snapshot is there, whole, and nothing else beside what it consists of.
        assert_sound(&store, "next").await;
        let found = restored(&store, "next").await;
        assert_bytes(&found[0], &first, "first");
        assert_bytes(&found[1], &second, "second");
        let snapshot = store.snapshot(&id("next")).await.unwrap();
        let own = snapshot
            .directory()
            .packs
            .iter()
            .filter(|p| p.snapshot == id("next"));
        let mut expected: Vec<String> = own.map(|p| format!("next/{}", p.name)).collect();
        expected.push("next/manifest".into());
        expected.extend(before.iter().cloned());
        expected.sort();
        assert_eq!(files(&dir.join("store")), expected, "kill {kill}");
        let head = fs::read_to_string(dir.join("store/heads/g")).unwrap();
        assert!(head.contains("\"next\""), "kill {kill}: the head is {head}");
        store.remove(&id("next")).await.unwrap();
        assert_eq!(files(&dir.join("store")), before, "kill {kill}");
    }
    // The kills hit what they were meant to hit.
    assert!(
        cut_short >= KILLS / 4,
        "{cut_short} of {KILLS} saves were cut short"
    );
    assert!(
        leftovers >= 5,
        "only {leftovers} of {KILLS} kills left anything behind"
    );
    println!(
        "{KILLS} kills over {whole:?}: {cut_short} before the commit, {leftovers} with leftovers, {committed} after it"
    );
}
