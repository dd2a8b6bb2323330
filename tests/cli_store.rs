//! Where the store is and how it is used: URLs, defaults, keys, groups, leases, several saves at once, quiet and unsynced.

mod support;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    process::Stdio,
    sync::Barrier,
    thread,
};

use serde_json::json;
use support::{assert_bytes, noise, text, tool::*};

#[test]
fn the_store_is_named_by_option_environment_or_home() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    let save = ["save", "s", "memory=a"];
    let manifest = |store: &str| tool.path(store).join("s/manifest").exists();

    tool.run(&save).ok();
    assert!(manifest("store"), "PODSNAP_STORE");
    tool.run(&[&save[..], &["--store", "option"]].concat()).ok();
    assert!(manifest("option"), "--store comes before PODSNAP_STORE");
    let url = format!("file://{}", tool.path("a url").display()).replace(' ', "%20");
    tool.run(&[&save[..], &["--store", &url]].concat()).ok();
    assert!(manifest("a url"), "a file:// URL is decoded");

    for unset in [false, true] {
        let mut command = tool.command(&save);
        // Set to nothing is as good as not set.
        match unset {
            true => command.env_remove("PODSNAP_STORE"),
            false => command.env("PODSNAP_STORE", ""),
        };
        match unset {
            true => command.env("XDG_DATA_HOME", tool.path("xdg")),
            // A relative path there is to be ignored, its specification says.
            false => command.env("XDG_DATA_HOME", "relative"),
        };
        finish(command).ok();
    }
    assert!(manifest("home/.local/share/podsnap"));
    assert!(manifest("xdg/podsnap"));
    assert!(!tool.path("relative").exists());

    let mut homeless = tool.command(&["ls"]);
    homeless.env_remove("PODSNAP_STORE").env_remove("HOME");
    finish(homeless)
        .ends_with(2)
        .says(&["no store is named", "--store", "PODSNAP_STORE"]);
}

#[test]
fn a_store_that_was_never_written_is_empty() {
    let tool = Tool::new();
    assert_eq!(tool.json(&["ls"]), json!([]));
    let text = tool.run(&["ls"]).ok();
    assert!(text.text().contains("no snapshots in"));
    assert!(!tool.path("store").exists());
}

#[test]
fn listings_show_what_was_saved_newest_first() {
    let tool = Tool::new();
    tool.file("a", &noise(1, 100_000));
    tool.save("one", &["memory=a", "--group", "web"]);
    tool.save("two", &["memory=a", "--group", "web"]);
    tool.save("three", &["memory=a"]);
    assert_eq!(tool.listed(), ["three", "two", "one"]);
    let listed = tool.json(&["ls", "--group", "web"]);
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(listed[0]["snapshot"], "two");
    assert_eq!(listed[0]["group"], "web");
    assert_eq!(listed[0]["borrows_from"], json!(["one"]));
    assert_eq!(listed[0]["raw_bytes"], 100_000);
    let text = tool.run(&["ls"]).ok();
    let lines: Vec<Vec<_>> = text
        .text()
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], ["NAME", "STATUS", "POLICY", "AGE"]);
    assert_eq!(lines[1][..3], ["three", "Available", "-"]);
    let text = tool.run(&["ls", "--wide"]).ok();
    let lines: Vec<_> = text.text().lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[2].starts_with("two") && lines[2].ends_with("one"));
    // What does not belong to a snapshot is none, and is not touched.
    fs::create_dir(tool.path("store/stray")).unwrap();
    tool.file("store/stray/file", b"mine");
    tool.file("store/one/notes", b"mine too");
    assert_eq!(tool.listed(), ["three", "two", "one"]);
    for id in ["three", "two", "one"] {
        tool.run(&["rm", id]).ok();
    }
    assert_eq!(tool.store_files(), ["one/notes", "stray/file"]);
}

#[test]
fn a_keyed_store_works_with_its_key_and_with_no_other() {
    let tool = Tool::new();
    let bytes = [noise(2, 300_000), text(3, 300_000)].concat();
    tool.file("a", &bytes);
    tool.file("key", "0123456789abcdef".repeat(4).as_bytes());
    let raw: Vec<u8> = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(4);
    tool.file("raw", &raw);
    tool.file("other", &[7; 32]);
    let keyed = ["--key-file", "key"];
    tool.run(&[&["save", "s", "memory=a"][..], &keyed].concat())
        .ok();
    // The same key, as bytes and from the environment.
    let again = ["save", "t", "memory=a", "--base", "s", "--json"];
    let mut command = tool.command(&again);
    command.env("PODSNAP_KEY_FILE", tool.path("raw"));
    assert_eq!(finish(command).ok().json()["new_bytes"], 0);
    for command in [
        &["restore", "s", "out"][..],
        &["verify", "s"],
        &["export", "s", "s.podsnap"],
        &["restore", "file:s.podsnap", "out2"],
        &["import", "s.podsnap", "--as", "u"],
        &["verify", "u"],
        &["ls"],
    ] {
        tool.run(&[command, &keyed].concat()).ok();
    }
    for out in ["out/memory", "out2/memory"] {
        assert_bytes(&fs::read(tool.path(out)).unwrap(), &bytes, out);
    }
    for (key, why) in [
        (&["--key-file", "other"][..], "another key"),
        (&[], "none was given"),
    ] {
        for command in [
            &["restore", "s", "never"][..],
            &["restore", "s", "-"],
            &["verify", "s"],
            &["export", "s", "never"],
            &["restore", "file:s.podsnap", "never"],
            &["import", "s.podsnap", "--as", "v"],
            &["save", "v", "memory=a", "--base", "s"],
        ] {
            tool.run(&[command, key].concat())
                .ends_with(2)
                .says(&[why, "with the key it was written with"]);
        }
    }
    assert!(!tool.path("never").exists() && !tool.path("store/v").exists());
    // Who has no key learns nothing from equal chunks, and shares none.
    let plain = tool.save("plain", &["memory=a"]);
    assert_eq!(plain["new_bytes"], bytes.len());
    tool.run(&[&["verify", "plain"][..], &keyed].concat())
        .ends_with(2)
        .says(&["without a key"]);
}

#[test]
fn a_group_remembers_its_newest_snapshot_as_the_next_base() {
    let tool = Tool::new();
    tool.file("a", &noise(4, 500_000));
    tool.file("b", &noise(5, 500_000));
    let head = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(tool.path("store/heads/web")).unwrap()).unwrap()
    };
    let first = tool.save("one", &["memory=a", "--group", "web"]);
    assert_eq!(first["bases"], json!([]));
    assert_eq!(head()["snapshot"], "one");
    let second = tool.save("two", &["memory=a", "--group", "web"]);
    assert_eq!(second["bases"], json!(["one"]));
    assert_eq!(second["new_bytes"], 0);
    assert_eq!(head()["snapshot"], "two");
    // A named base takes the head's place; the head moves all the same.
    tool.save("alone", &["memory=b"]);
    let third = tool.save("three", &["memory=b", "--group", "web", "--base", "alone"]);
    assert_eq!(third["bases"], json!(["alone"]));
    assert_eq!(third["new_bytes"], 0);
    assert_eq!(head()["snapshot"], "three");
    // Another group, or none, knows nothing of it.
    assert_eq!(
        tool.save("x", &["memory=a", "--group", "db"])["bases"],
        json!([])
    );
    assert_eq!(tool.save("y", &["memory=a"])["bases"], json!([]));
    // When the head goes, the one before it is the newest.
    tool.run(&["rm", "three"]).ok();
    assert_eq!(head()["snapshot"], "two");
    let fourth = tool.save("four", &["memory=a", "--group", "web"]);
    assert_eq!(fourth["bases"], json!(["two"]));
}

#[test]
fn a_save_under_way_keeps_its_id_and_its_bases() {
    let tool = Tool::new();
    tool.file("a", &noise(6, 500_000));
    tool.save("base", &["memory=a"]);
    let fifo = tool.fifo("fifo");
    let mut save = tool.start(&["save", "s", "memory=a", "other=fifo", "--base", "base"]);
    let pid = save.child().id();
    let mut writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    let lease = tool.path("store/s/lease");
    save.wait_until("the lease", || lease.exists());

    let holder = format!("process {pid} on ");
    for args in [
        &["save", "s", "memory=a"][..],
        &["import", "s.podsnap", "--as", "s"],
    ] {
        if args[0] == "import" {
            tool.run(&["export", "base", "s.podsnap"]).ok();
        }
        tool.run(args)
            .ends_with(4)
            .says(&["s is being written by", &holder, "another id"]);
    }
    // What the save relies on stays, whatever is removed and collected.
    let removed = tool.json(&["rm", "base"]);
    assert_eq!(
        removed["needed_by"],
        json!(["the save of s that is under way"])
    );
    for _ in 0..2 {
        let collected = tool.json(&["gc", "--grace", "0s"]);
        assert_eq!(collected["done"]["deleted_objects"], 0, "{collected}");
    }
    tool.run(&["rm", "s"])
        .ends_with(4)
        .says(&["save of s that is under way"]);
    tool.run(&["restore", "s", "out"]).ends_with(3);
    let listed = tool.json(&["ls"]);
    assert_eq!(listed[0]["status"], "saving", "{listed}");
    assert!(tool.listed().is_empty());

    writer.write_all(b"the end").unwrap();
    drop(writer);
    save.finish().ok();
    assert!(!lease.exists());
    tool.assert_sound("s");
    tool.run(&["rm", "s"]).ok();
}

#[test]
fn of_two_saves_of_one_id_one_wins() {
    let tool = Tool::new();
    let sources = [noise(7, 2 << 20), noise(8, 2 << 20)];
    tool.file("0", &sources[0]);
    tool.file("1", &sources[1]);
    for round in 0..8 {
        let id = format!("s{round}");
        let barrier = Barrier::new(2);
        let outcomes: Vec<Outcome> = thread::scope(|scope| {
            let start = |source: &'static str| {
                let (tool, id, barrier) = (&tool, &id, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    tool.run(&["save", "--no-sync", id, source])
                })
            };
            let both = [start("memory=0"), start("memory=1")];
            both.map(|saver| saver.join().unwrap()).into()
        });
        let winners: Vec<usize> = (0..2).filter(|i| outcomes[*i].code == Some(0)).collect();
        assert_eq!(winners.len(), 1, "one of them, and one only");
        for (number, outcome) in outcomes.into_iter().enumerate() {
            if number != winners[0] {
                let lost = outcome.ends_with(4);
                let (held, done) = (
                    format!("{id} is being written by process"),
                    "exists already",
                );
                let said = &lost.stderr;
                assert!(said.contains(&held) || said.contains(done), "{said}");
            }
        }
        let out = tool.run(&["restore", &id, "-"]).ok();
        assert_bytes(&out.stdout, &sources[winners[0]], "the winner's bytes");
        tool.assert_sound(&id);
        assert_eq!(files(&tool.path("store").join(&id)).len(), 2);
    }
}

#[test]
fn saves_into_one_group_at_once_all_come_in() {
    let tool = Tool::new();
    tool.file("a", &noise(9, 200_000));
    thread::scope(|scope| {
        for number in 0..6 {
            let tool = &tool;
            scope.spawn(move || {
                let id = format!("s{number}");
                tool.save(&id, &["memory=a", "--group", "g"]);
            });
        }
    });
    let listed = tool.json(&["ls", "--group", "g"]);
    assert_eq!(listed.as_array().unwrap().len(), 6);
    let head: serde_json::Value =
        serde_json::from_slice(&fs::read(tool.path("store/heads/g")).unwrap()).unwrap();
    assert_eq!(head["created_unix_ms"], listed[0]["created_unix_ms"]);
}

#[test]
fn quiet_says_nothing_but_what_was_asked_for() {
    let tool = Tool::new();
    tool.file("a", &noise(10, 100_000));
    let silent = |args: &[&str]| {
        let outcome = tool.run(&[args, &["--quiet"]].concat()).ok();
        assert_eq!(
            (outcome.text(), outcome.stderr.as_str()),
            ("", ""),
            "{args:?}"
        );
    };
    silent(&["save", "s", "memory=a"]);
    silent(&["restore", "s", "out"]);
    silent(&["verify", "s"]);
    silent(&["export", "s", "file"]);
    silent(&["import", "file", "--as", "t"]);
    silent(&["rm", "t"]);
    assert!(tool.run(&["ls", "--quiet"]).ok().text().contains("s "));
    assert_eq!(
        tool.run(&["restore", "s", "-", "-q"]).ok().stdout.len(),
        100_000
    );
    // Errors and damage are no small talk.
    tool.run(&["rm", "gone", "-q"]).ends_with(3).says(&["gone"]);
    flip(&tool.pack("s"), 50_000);
    let report = tool.run(&["verify", "s", "-q"]).ends_with(5);
    assert!(report.text().contains("is damaged"));
}

#[test]
fn every_json_document_is_one_document() {
    let tool = Tool::new();
    tool.file("a", &noise(11, 100_000));
    for args in [
        &["save", "s", "memory=a"][..],
        &["restore", "s", "out"],
        &["verify", "s"],
        &["export", "s", "file"],
        &["import", "file", "--as", "t"],
        &["ls"],
        &["rm", "t"],
    ] {
        let outcome = tool.run(&[args, &["--json"]].concat()).ok();
        let document = outcome.json();
        assert!(document.is_object() || args[0] == "ls", "{document}");
        assert_eq!(outcome.stderr, "", "{args:?}");
        // Quiet does not hide what a script asked for.
        if args[0] == "verify" {
            tool.run(&[args, &["--json", "--quiet"]].concat())
                .ok()
                .json();
        }
    }
}

#[test]
fn unsynced_saves_are_snapshots_like_others() {
    let tool = Tool::new();
    let bytes = noise(12, 40 << 20);
    tool.file("a", &bytes);
    for args in [&[][..], &["--no-sync"]] {
        tool.run(&[&["save", "s", "memory=a"][..], args].concat())
            .ok();
        tool.assert_sound("s");
        let out = tool.run(&["restore", "s", "-"]).ok();
        assert_bytes(&out.stdout, &bytes, "s");
        tool.run(&["rm", "s"]).ok();
    }
}

/// The memory of a process that is stopped; one that runs is refused.
#[test]
fn a_stopped_process_is_saved() {
    let tool = Tool::new();
    let mut command = std::process::Command::new("sleep");
    let mut sleeper = command.arg("1000").stdin(Stdio::null()).spawn().unwrap();
    let source = format!("memory=pid:{}", sleeper.id());
    let pid = rustix::process::Pid::from_child(&sleeper);
    tool.run(&["save", "s", &source])
        .ends_with(1)
        .says(&["is not stopped", "kill -STOP"]);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let stat = format!("/proc/{}/stat", sleeper.id());
    while !fs::read_to_string(&stat).unwrap().contains(") T ") {
        thread::yield_now();
    }
    let saved = tool.run(&["save", "s", &source, "--json"]);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let saved = saved.ok().json();
    assert!(saved["raw_bytes"].as_u64().unwrap() > 4096, "{saved}");
    // The command's name stands on its stack.
    let out = tool.run(&["restore", "s", "-"]).ok();
    assert!(out.stdout.windows(10).any(|w| w == b"sleep\x001000"));
}
