//! Exit codes and messages: every kind of failure has its code, says what, where and what to do, and with `--json` is one document.

mod support;

use std::fs;

use podsnap::format::{FOOTER_LEN, Footer, HEADER_LEN};
use serde_json::{Value, json};
use support::{noise, text, tool::*};

/// Runs it in both forms: the text has the words, the JSON the kind.
#[track_caller]
fn assert_fails(tool: &Tool, args: &[&str], code: i32, kind: &str, words: &[&str]) {
    let plain = tool.run(args).ends_with(code).says(words);
    assert!(plain.stdout.is_empty());
    assert_eq!(plain.stderr.lines().count(), 1, "{}", plain.stderr);
    assert!(plain.stderr.starts_with("podsnap: "));
    let error = tool
        .run(&[args, &["--json"]].concat())
        .ends_with(code)
        .json_error();
    assert_eq!(error["kind"], kind, "{error}");
    let said = format!("{} {}", error["message"], error["hint"]);
    for word in words {
        assert!(
            said.contains(&word.replace('"', "\\\"")),
            "no {word:?}: {error}"
        );
    }
}

#[test]
fn wrong_usage_is_2() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    // Refused by the parser of arguments: several lines of text, but one document.
    for (args, why) in [
        (&[][..], "command"),
        (&["frobnicate"], "frobnicate"),
        (&["save"], "<SNAPSHOT>"),
        (&["save", "s"], "<SOURCE>"),
        (&["save", "../s", "memory=a"], "../s"),
        (&["save", "s", "mem=a"], "roles are memory"),
        (&["save", "s", "memory="], "followed by a path"),
        (&["save", "s", "memory=pid:x"], "no process id"),
        (&["restore", "s"], "<DIR>"),
        (&["restore", "file:", "out"], "followed by a path"),
        (&["verify", "s", "--sample", "200"], "100 percent"),
        (&["ls", "extra"], "extra"),
        (&["completions", "tcsh"], "tcsh"),
    ] {
        tool.run(args).ends_with(2);
        let error = tool
            .run(&[args, &["--json"]].concat())
            .ends_with(2)
            .json_error();
        assert_eq!(error["kind"], "invalid_input", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(why), "no {why:?}: {error}");
    }
    // Refused by what the arguments are applied to.
    for (args, words) in [
        (&["save", "heads", "memory=a"][..], &["heads"][..]),
        (&["save", "s", "memory=a", "--group", "../g"], &["../g"]),
        (
            &["save", "s", "memory=a", "memory=a"],
            &["memory is given twice"],
        ),
        (
            &["save", "s", "memory=-", "other=-"],
            &["only one source can be standard input"],
        ),
        (&["ls", "--store", "ftp://host/path"], &["ftp://host/path"]),
        (
            &["ls", "--store", "file://host/x"],
            &["names no local path"],
        ),
        (&["ls", "--key-file", "nokey"], &["key file nokey"]),
        (
            &["ls", "--key-file", "a"],
            &["a holds no key", "64 hex digits"],
        ),
    ] {
        assert_fails(&tool, args, 2, "invalid_input", words);
    }
    tool.save("s", &["memory=a"]);
    for args in [["restore", "s", "-"], ["export", "s", "-"]] {
        tool.run(&[&args[..], &["--json"]].concat())
            .ends_with(2)
            .json_error();
    }
    assert_fails(
        &tool,
        &["restore", "s", "-", "--salvage"],
        2,
        "invalid_input",
        &["needs a directory"],
    );
}

#[test]
fn what_does_not_exist_is_3() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    let store = tool.path("store").display().to_string();
    // Whether the store exists or not.
    for _ in 0..2 {
        let words = ["there is no snapshot gone", &store];
        for args in [
            &["restore", "gone", "out"][..],
            &["restore", "gone", "-"],
            &["verify", "gone"],
            &["rm", "gone"],
            &["export", "gone", "file"],
        ] {
            assert_fails(&tool, args, 3, "not_found", &words);
        }
        let base = ["save", "t", "memory=a", "--base", "gone"];
        assert_fails(&tool, &base, 3, "not_found", &["gone"]);
        tool.save("s", &["memory=a"]);
        tool.run(&["rm", "s"]).ok();
        fs::create_dir_all(tool.path("store")).unwrap();
    }
    assert_fails(
        &tool,
        &["import", "gone"],
        3,
        "not_found",
        &["no file", "gone"],
    );
    let export = ["restore", "file:gone", "out"];
    assert_fails(&tool, &export, 3, "not_found", &["no file", "gone"]);
    assert!(!tool.path("out").exists() && !tool.path("file").exists());
    assert!(tool.listed().is_empty());
}

#[test]
fn conflicts_are_4() {
    let tool = Tool::new();
    let bytes = noise(1, 1 << 20);
    tool.file("a", &bytes);
    tool.save("s", &["memory=a"]);
    let before = tool.store_files();
    assert_fails(
        &tool,
        &["save", "s", "memory=a"],
        4,
        "conflict",
        &["s exists already", "another id"],
    );
    tool.save("t", &["memory=a", "--base", "s"]);
    tool.save("u", &["memory=a", "--base", "t"]);
    let removed = tool.json(&["rm", "s"]);
    assert_eq!(removed["objects"], 1);
    assert_eq!(removed["needed_by"], json!(["snapshot t", "snapshot u"]));
    assert_eq!(removed["kept_objects"], before.len() - 1);
    let packs = before.iter().filter(|file| *file != "s/manifest");
    assert!(packs.clone().all(|file| tool.store_files().contains(file)));
    tool.run(&["restore", "s", "out"]).ends_with(3);
    // Nobody borrows from t: all of its bytes are in s.
    tool.run(&["rm", "t"]).ok();
    tool.run(&["gc", "--grace", "0s"]).ok();
    tool.run(&["gc", "--grace", "0s"]).ok();
    tool.assert_sound("u");
    assert!(packs.clone().all(|file| tool.store_files().contains(file)));
    let removed = tool.run(&["rm", "u"]).ok();
    assert!(removed.text().starts_with("u removed: 1 object"));
    // One pass sees it, the next one removes it.
    let first = tool.json(&["gc", "--grace", "0s"]);
    assert_eq!(first["done"]["deleted_objects"], 0);
    assert_eq!(first["done"]["kept_objects"], before.len() - 1);
    let early = tool.json(&["gc"]);
    assert_eq!(early["done"]["deleted_objects"], 0);
    let shown = tool.run(&["gc", "--grace", "0s", "--dry-run"]).ok();
    assert!(shown.text().contains("goes"), "{}", shown.text());
    assert!(packs.clone().all(|file| tool.store_files().contains(file)));
    let second = tool.json(&["gc", "--grace", "0s"]);
    assert_eq!(second["done"]["deleted_objects"], before.len() - 1);
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
    assert!(tool.run(&["gc"]).ok().text().contains("no garbage"));
}

#[test]
fn a_store_without_permission_is_4() {
    let tool = Tool::new();
    tool.file("a", &noise(2, 100_000));
    tool.save("s", &["memory=a"]);
    let store = tool.path("store");
    let forbidden = |args: &[&str]| {
        let args = [args, &["--json"]].concat();
        let error = finish(tool.command_as_nobody(&args))
            .ends_with(4)
            .json_error();
        assert_eq!(error["kind"], "forbidden", "{error}");
        let path = store.display().to_string();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&path), "{error}");
    };
    // It may be read and not be written.
    set_mode(&store, 0o555);
    forbidden(&["save", "t", "memory=a"]);
    finish(tool.command_as_nobody(&["verify", "s"])).ok();
    // It may not be read either.
    set_mode(&store, 0o000);
    forbidden(&["ls"]);
    forbidden(&["restore", "s", "out"]);
    forbidden(&["verify", "s"]);
    forbidden(&["rm", "s"]);
    set_mode(&store, 0o755);
    tool.assert_sound("s");
    assert_eq!(tool.store_files().len(), 2);
}

#[test]
fn a_read_only_file_system_is_4() {
    let tool = Tool::new();
    let Some(mounted) = Mounted::tmpfs(&tool.path("store"), 4 << 20) else {
        return;
    };
    tool.file("a", b"bytes");
    tool.save("s", &["memory=a"]);
    mounted.make_read_only();
    let words = ["the store refuses access", "Read-only"];
    for args in [&["save", "t", "memory=a"][..], &["rm", "s"]] {
        assert_fails(&tool, args, 4, "forbidden", &words);
    }
    tool.assert_sound("s");
}

/// A store with the snapshot `s`, one section of text and noise, and where in the pack and in the manifest a flipped bit hurts.
fn damageable() -> Tool {
    let tool = Tool::new();
    tool.file("a", &[noise(3, 600_000), text(4, 600_000)].concat());
    tool.save("s", &["memory=a"]);
    tool
}

#[test]
fn damage_is_5() {
    let tool = damageable();
    let pack = tool.pack("s");
    let name = format!("s/{}", pack.file_name().unwrap().to_str().unwrap());
    flip(&pack, 100_000);
    let words = [&name, "is damaged"];
    assert_fails(&tool, &["restore", "s", "out"], 5, "damaged", &words);
    assert_fails(&tool, &["export", "s", "file"], 5, "damaged", &words);
    assert!(!tool.path("out").exists() && !tool.path("file").exists());
    let stream = tool.run(&["restore", "s", "-"]).ends_with(5);
    stream.says(&words);
    let report = tool.run(&["verify", "s"]).ends_with(5);
    assert!(report.text().contains(&name) && report.text().contains("--salvage"));
    let report = tool.run(&["verify", "s", "--json"]).ends_with(5);
    let json = report.json();
    assert_eq!(
        (&json["sound"], report.stderr.as_str()),
        (&Value::Bool(false), "")
    );
    let lost = &json["damage"][0]["lost"][0];
    assert_eq!(lost["section"], "memory");

    // What is left can be had; what is lost is said and is zeros.
    let salvaged = tool.run(&["restore", "s", "out", "--salvage"]).ends_with(5);
    let salvaged = salvaged.says(&[&name, "of section memory are lost", "zeros"]);
    assert!(salvaged.text().contains("restored"));
    let (found, expected) = (
        fs::read(tool.path("out/memory")).unwrap(),
        fs::read(tool.path("a")).unwrap(),
    );
    let (at, len) = (
        lost["offset"].as_u64().unwrap() as usize,
        lost["len"].as_u64().unwrap() as usize,
    );
    assert!(found[at..at + len].iter().all(|b| *b == 0));
    assert_eq!(found[..at], expected[..at]);
    assert_eq!(found[at + len..], expected[at + len..]);
}

#[test]
fn a_damaged_manifest_is_5_and_hides_nothing_else() {
    let tool = damageable();
    tool.save("t", &["memory=a", "--base", "s"]);
    tool.file("b", b"bytes");
    tool.save("sound", &["memory=b"]);
    let manifest = tool.path("store/s/manifest");
    let length = fs::metadata(&manifest).unwrap().len() as usize;
    flip(&manifest, length - FOOTER_LEN - 10);
    let words = ["s/manifest is damaged"];
    for args in [&["restore", "s", "out"][..], &["verify", "s"]] {
        assert_fails(&tool, args, 5, "damaged", &words);
    }
    let base = ["save", "u", "memory=a", "--base", "s"];
    assert_fails(&tool, &base, 5, "damaged", &words);
    // It is listed, as what it is; the others are as they were. What cannot be read keeps what it may need.
    let listed = tool.json(&["ls"]);
    let broken = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|l| l["snapshot"] == "s");
    let broken = broken.unwrap();
    assert_eq!(broken["status"], "failed");
    assert!(broken["reason"].as_str().unwrap().contains("damaged"));
    tool.assert_sound("t");
    tool.assert_sound("sound");
    let removed = tool.run(&["rm", "sound"]).ok();
    assert!(
        removed.text().contains("perhaps s, which cannot be read"),
        "{}",
        removed.text()
    );
    // Nothing is collected either.
    for _ in 0..2 {
        let collected = tool.json(&["gc", "--grace", "0s"]);
        assert_eq!(collected["done"]["deleted_objects"], 0);
        let blocked = &collected["plan"]["blocked_by"];
        assert!(blocked[0].as_str().unwrap().contains("s/manifest"));
    }
    tool.run(&["rm", "s"]).ok();
    tool.assert_sound("t");
    tool.run(&["rm", "t"]).ok();
    tool.run(&["gc", "--grace", "0s"]).ok();
    tool.run(&["gc", "--grace", "0s"]).ok();
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
}

#[test]
fn a_missing_pack_is_5_and_neither_damaged_nor_not_found() {
    let tool = damageable();
    let pack = tool.pack("s");
    let name = format!("s/{}", pack.file_name().unwrap().to_str().unwrap());
    fs::remove_file(&pack).unwrap();
    let words = [name.as_str(), "is missing"];
    for args in [
        &["restore", "s", "out"][..],
        &["restore", "s", "-"],
        &["export", "s", "file"],
    ] {
        tool.run(args).ends_with(5).says(&words);
    }
    assert_fails(&tool, &["restore", "s", "out"], 5, "missing", &words);
    let report = tool.run(&["verify", "s", "--json"]).ends_with(5);
    let what = report.json()["damage"][0]["what"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        what.contains(&name) && what.contains("is missing"),
        "{what}"
    );
}

#[test]
fn a_pack_without_permission_is_forbidden_and_not_missing() {
    let tool = damageable();
    set_mode(&tool.pack("s"), 0);
    // Where nobody may restore to.
    set_mode(&tool.path("home"), 0o777);
    for args in [
        &["verify", "s"][..],
        &["verify", "s", "--section", "memory"],
        &["restore", "s", "home/out"],
        &["export", "s", "home/file"],
    ] {
        let error = finish(tool.command_as_nobody(&[args, &["--json"]].concat()))
            .ends_with(4)
            .json_error();
        assert_eq!(error["kind"], "forbidden", "{error}");
    }
    assert!(files(&tool.path("home")).is_empty());
}

#[test]
fn a_damaged_export_is_5() {
    let tool = damageable();
    tool.run(&["export", "s", "s.podsnap"]).ok();
    let good = fs::read(tool.path("s.podsnap")).unwrap();
    let bad = tool.path("bad");
    let damage = |bytes: &[u8], words: &[&str]| {
        fs::write(&bad, bytes).unwrap();
        tool.run(&["import", "bad", "--as", "t"])
            .ends_with(5)
            .says(words);
        tool.run(&["restore", "file:bad", "out"])
            .ends_with(5)
            .says(words);
        assert!(!tool.path("out").exists());
        assert!(!tool.path("store/t").exists());
    };
    let mut frame = good.clone();
    frame[5000] ^= 1;
    damage(&frame, &["bad", "damaged"]);
    damage(&good[..good.len() - 1], &["bad is damaged"]);
    damage(&good[..40], &["40 bytes are too few"]);
    damage(b"", &["0 bytes are too few"]);
    damage(
        &fs::read(tool.path("store/s/manifest")).unwrap(),
        &["of the kind manifest, not export"],
    );
    damage(&noise(5, 10_000), &["bad is damaged"]);
}

/// The manifest of `s` with a changed header, in both places where it stands, and with all checksums made to fit.
fn with_header(manifest: &[u8], change: impl Fn(&mut [u8])) -> Vec<u8> {
    let mut bytes = manifest.to_vec();
    let mut footer = Footer::parse(&bytes).unwrap();
    let (from, to) = (
        footer.trailer_offset as usize,
        (footer.trailer_offset + footer.trailer_len) as usize,
    );
    for at in [0, from] {
        let header = &mut bytes[at..at + HEADER_LEN];
        change(header);
        let (fields, crc) = header.split_at_mut(HEADER_LEN - 4);
        crc.copy_from_slice(&crc32(fields).to_le_bytes());
    }
    footer.trailer_hash = *blake3::hash(&bytes[from..to]).as_bytes();
    bytes.truncate(to);
    bytes.extend_from_slice(&footer.encode());
    bytes
}

/// CRC-32 as SPEC.md has it (IEEE, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn what_a_newer_version_wrote_is_refused_by_name() {
    let tool = damageable();
    let path = tool.path("store/s/manifest");
    let manifest = fs::read(&path).unwrap();
    // The helper changes nothing when it is asked to change nothing.
    assert_eq!(with_header(&manifest, |_| {}), manifest);
    let refused = |bytes: &[u8], words: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let words = [words, &["s/manifest", "at least as new"]].concat();
        for args in [
            &["restore", "s", "out"][..],
            &["verify", "s"],
            &["save", "t", "memory=a", "--base", "s"],
        ] {
            assert_fails(&tool, args, 5, "unsupported", &words);
        }
        let reason = tool.json(&["ls"])[0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(words[0]), "{reason}");
        assert_eq!(tool.store_files().len(), 2);
    };
    // Version, a word at offset 8; incompatible features, two words at 16.
    let version = with_header(&manifest, |header| header[8] = 2);
    refused(&version, &["version 2", "only version 1"]);
    let feature = with_header(&manifest, |header| header[16 + 5] = 1);
    refused(&feature, &["incompatible features", "40"]);
    // Features that a reader may ignore are ignored.
    let compatible = with_header(&manifest, |header| header[32] = 1);
    fs::write(&path, compatible).unwrap();
    tool.restore("s", "out");
}
