//! gVisor checkpoint images from the command line: what they cost, that they come back bit-exact, and that runsc restores them.

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use support::provisioned::provisioned;
use support::{assert_bytes, text, tool::*};

const IMAGE_FILES: [&str; 3] = ["checkpoint.img", "pages.img", "pages_meta.img"];

fn assert_same_image(restored: &Path, original: &Path) {
    assert_eq!(files(restored), IMAGE_FILES);
    for file in IMAGE_FILES {
        let (found, expected) = (restored.join(file), original.join(file));
        assert_bytes(
            &fs::read(found).unwrap(),
            &fs::read(expected).unwrap(),
            file,
        );
    }
}

/// Restores the pod in a sandbox, or says why none can run here.
fn restore_pod(image: &Path, flags: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/restore-pod.sh");
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(script)
        .arg(image)
        .args(flags)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stdout);
    match status.code() {
        Some(77) => {
            let why = said.lines().next().unwrap_or_default();
            support::skipped(why.trim_start_matches("SKIPPED: "));
        }
        Some(0) => assert!(said.contains("restored"), "{said}"),
        code => panic!("{code:?}: {said}{}", String::from_utf8_lossy(&stderr)),
    }
}

#[test]
fn a_small_pod_resumes_from_a_restored_image() {
    let Some(image) = provisioned("images/small") else {
        return;
    };
    let tool = Tool::new();
    let saved = tool.save(
        "small",
        &[image.to_str().unwrap(), "--label", "pod=counter"],
    );
    let raw: u64 = IMAGE_FILES
        .iter()
        .map(|f| fs::metadata(image.join(f)).unwrap().len())
        .sum();
    assert_eq!(saved["raw_bytes"], raw);
    let out = tool.restore("small", "out");
    assert_same_image(&out, &image);
    restore_pod(&out, &[]);

    let listed = tool.json(&["ls"]);
    assert_eq!(listed[0]["snapshot"], "small");
    assert_eq!(listed[0]["raw_bytes"], raw);
    assert_eq!(listed[0]["status"], "available");
    assert!(tool.run(&["ls"]).ok().text().contains("small"));
}

#[test]
fn a_pod_with_a_model_costs_what_was_measured_and_resumes() {
    let (Some(r), Some(r2)) = (provisioned("images/R"), provisioned("images/R2")) else {
        return;
    };
    let tool = Tool::new();
    let stored = |saved: &serde_json::Value| saved["stored_bytes"].as_u64().unwrap();
    let first = tool.save("r", &[r.to_str().unwrap()]);
    assert!(stored(&first) <= 85_000_000, "{first}");
    let second = tool.save("r2", &[r2.to_str().unwrap(), "--base", "r"]);
    assert_eq!(second["bases"], serde_json::json!(["r"]));
    assert!(stored(&second) <= 400_000, "{second}");
    assert_same_image(&tool.restore("r", "out"), &r);
    assert_same_image(&tool.restore("r2", "out2"), &r2);
    tool.assert_sound("r2");
    let listed = tool.json(&["ls"]);
    assert_eq!(listed[0]["borrows_from"], serde_json::json!(["r"]));

    if long_tests("restoring the pod with the model") {
        for flags in [&[][..], &["--background"]] {
            restore_pod(&tool.path("out"), flags);
            restore_pod(&tool.path("out2"), flags);
        }
    }
}

/// What runsc writes with its own compression has one file; what else is saved along stays beside it.
#[test]
fn an_image_may_have_one_file_and_other_sections_beside_it() {
    let tool = Tool::new();
    let json = br#"{"runsc_version":"x","container_count":"1"}"#;
    let length = (json.len() as u64).to_be_bytes();
    let checkpoint = [b"gVisorSF", &length[..], json, &text(1, 100_000)].concat();
    fs::create_dir(tool.path("image")).unwrap();
    tool.file("image/checkpoint.img", &checkpoint);
    tool.file("notes", b"notes");
    tool.save("s", &["image", "other:notes=notes"]);
    let out = tool.restore("s", "out");
    assert_eq!(files(&out), ["checkpoint.img", "other.notes"]);
    assert_bytes(
        &fs::read(out.join("checkpoint.img")).unwrap(),
        &checkpoint,
        "checkpoint.img",
    );
    // It stays an image when it was exported and imported.
    tool.run(&["export", "s", "s.podsnap"]).ok();
    tool.run(&["import", "s.podsnap", "--as", "t"]).ok();
    let out = tool.restore("t", "out2");
    assert_eq!(files(&out), ["checkpoint.img", "other.notes"]);
}

#[test]
fn what_is_no_image_is_refused_with_what_a_source_is() {
    let tool = Tool::new();
    fs::create_dir(tool.path("dir")).unwrap();
    tool.file("dir/checkpoint.img", b"not gVisor's");
    tool.file("file", b"");
    let usage = "ROLE[:NAME]=PATH";
    for (source, code, problem) in [
        ("nowhere", 1, "nowhere does not exist"),
        ("dir", 2, "dir is no gVisor image directory"),
        ("file", 2, "file is no directory"),
    ] {
        tool.run(&["save", "s", source])
            .ends_with(code)
            .says(&[problem, usage]);
    }
    let endless = [b"gVisorSF", &u64::MAX.to_be_bytes()[..], b"{}"].concat();
    tool.file("dir/checkpoint.img", &endless);
    tool.run(&["save", "s", "dir"])
        .ends_with(2)
        .says(&["checkpoint.img is not a gVisor checkpoint"]);
    fs::create_dir(tool.path("other")).unwrap();
    let empty = [b"gVisorSF", &2u64.to_be_bytes()[..], b"{}"].concat();
    tool.file("dir/checkpoint.img", &empty);
    tool.file("other/checkpoint.img", &empty);
    tool.run(&["save", "s", "dir", "other"])
        .ends_with(2)
        .says(&["kernel is given twice"]);
    assert!(tool.listed().is_empty());
    assert!(!tool.path("store").exists(), "nothing was begun");
}
