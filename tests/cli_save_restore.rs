//! Saving and restoring from the command line: files, pipes, several sections, one section, standard output, exports.

mod support;

use std::{fs, io::Write, thread};

use support::provisioned::provisioned;
use support::{assert_bytes, noise, text, tool::*};

#[test]
fn files_come_back_bit_exact_under_their_sections_names() {
    let tool = Tool::new();
    let memory = [&noise(1, 3 << 20)[..], &vec![0; 2 << 20], &text(2, 1 << 20)].concat();
    tool.file("ram.bin", &memory);
    tool.file("regs", b"registers");
    tool.file("nothing", b"");
    let saved = tool.save(
        "job",
        &["memory=ram.bin", "kernel=regs", "other:odd/name=nothing"],
    );
    assert_eq!(saved["raw_bytes"], memory.len() + 9);
    assert_eq!(saved["zero_bytes"], 2 << 20);
    let out = tool.restore("job", "out");
    assert_eq!(files(&out), ["kernel", "memory", "other.odd%2Fname"]);
    assert_bytes(&fs::read(out.join("memory")).unwrap(), &memory, "memory");
    assert_eq!(fs::read(out.join("kernel")).unwrap(), b"registers");
    assert_eq!(fs::read(out.join("other.odd%2Fname")).unwrap(), b"");
    tool.assert_sound("job");
}

#[test]
fn sections_come_from_pipes_and_go_to_standard_output() {
    let tool = Tool::new();
    let (first, second) = (noise(3, 9 << 20), text(4, 5 << 20));
    let fifo = tool.fifo("fifo");
    let written = second.clone();
    let writer = thread::spawn(move || fs::write(fifo, written).unwrap());
    tool.run_with_input(&["save", "piped", "memory=-", "gpu:0=fifo"], &first)
        .ok();
    writer.join().unwrap();
    let memory = tool
        .run(&["restore", "piped", "-", "--section", "memory"])
        .ok();
    assert_bytes(&memory.stdout, &first, "memory");
    let gpu = tool
        .run(&["restore", "piped", "-", "--section", "gpu:0"])
        .ok();
    assert_bytes(&gpu.stdout, &second, "gpu:0");
    // Which of the two is not for the tool to guess.
    tool.run(&["restore", "piped", "-"])
        .ends_with(2)
        .says(&["exactly one section", "memory, gpu:0"]);
}

/// Somebody who writes to two pipes in turn opens the second one when the first is done.
#[test]
fn pipes_are_opened_one_after_the_other() {
    let tool = Tool::new();
    let (first, second) = (tool.fifo("first"), tool.fifo("second"));
    let bytes = noise(5, 1 << 20);
    let written = bytes.clone();
    let writer = thread::spawn(move || {
        fs::write(first, &written).unwrap();
        fs::write(second, b"short").unwrap();
    });
    tool.save("s", &["other:first=first", "other:second=second"]);
    writer.join().unwrap();
    let out = tool.restore("s", "out");
    assert_bytes(&fs::read(out.join("other.first")).unwrap(), &bytes, "first");
    assert_eq!(fs::read(out.join("other.second")).unwrap(), b"short");
}

#[test]
fn a_pipe_that_ends_early_is_saved_as_far_as_it_came() {
    let tool = Tool::new();
    let fifo = tool.fifo("fifo");
    let writer = thread::spawn(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(fifo).unwrap();
        pipe.write_all(b"as far as it came").unwrap();
    });
    tool.save("s", &["other=fifo"]);
    writer.join().unwrap();
    let out = tool.run(&["restore", "s", "-"]).ok();
    assert_eq!(out.text(), "as far as it came");
    // A pipe without any bytes is an empty section.
    tool.run_with_input(&["save", "empty", "other=-"], b"").ok();
    assert_eq!(tool.run(&["restore", "empty", "-"]).ok().text(), "");
}

#[test]
fn only_the_named_sections_are_restored() {
    let tool = Tool::new();
    tool.file("a", b"first");
    tool.file("b", b"second");
    tool.file("c", b"third");
    tool.save("s", &["other:a=a", "other:b=b", "kernel=c"]);
    let stats = tool.json(&[
        "restore",
        "s",
        "out",
        "--section",
        "other:b",
        "--section",
        "kernel",
    ]);
    assert_eq!(stats["raw_bytes"], 11);
    assert_eq!(files(&tool.path("out")), ["kernel", "other.b"]);
    let missing = tool.run(&["restore", "s", "out2", "--section", "other:x"]);
    missing
        .ends_with(3)
        .says(&["no section other:x", "other:a, other:b, kernel"]);
    assert!(!tool.path("out2").exists());
}

#[test]
fn restores_go_into_new_or_empty_directories_only() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    tool.save("s", &["other=a"]);
    fs::create_dir(tool.path("empty")).unwrap();
    let empty = tool.restore("s", "empty");
    assert_eq!(files(&empty), ["other"]);
    let full = tool.run(&["restore", "s", "empty"]);
    full.ends_with(2).says(&["is not empty", "new directory"]);
    // Parents are made; a link to an empty directory leads there.
    assert_eq!(files(&tool.restore("s", "new/below/it")), ["other"]);
    fs::create_dir(tool.path("real")).unwrap();
    std::os::unix::fs::symlink("real", tool.path("link")).unwrap();
    tool.restore("s", "link");
    assert_eq!(files(&tool.path("real")), ["other"]);
    tool.file("plain", b"");
    tool.run(&["restore", "s", "plain"]).ends_with(1);
    assert_eq!(fs::read(tool.path("plain")).unwrap(), b"");
}

#[test]
fn a_restore_onto_a_mount_point_is_refused_before_it_begins() {
    let tool = Tool::new();
    let Some(_mounted) = Mounted::tmpfs(&tool.path("volume"), 1 << 20) else {
        return;
    };
    tool.file("a", b"bytes");
    tool.save("s", &["other=a"]);
    let refused = tool.run(&["restore", "s", "volume"]);
    refused
        .ends_with(2)
        .says(&["is a mount point", "a new one below it"]);
    assert_eq!(files(&tool.restore("s", "volume/new")), ["other"]);
}

#[test]
fn names_of_any_length_can_be_restored_and_told_apart() {
    let tool = Tool::new();
    tool.file("a", b"first");
    tool.file("b", b"second");
    let name = "/".repeat(254);
    let sources = [format!("other:{name}1=a"), format!("other:{name}2=b")];
    tool.save("s", &[&sources[0], &sources[1]]);
    let out = tool.restore("s", "out");
    let mut contents: Vec<_> = files(&out)
        .iter()
        .map(|name| fs::read_to_string(out.join(name)).unwrap())
        .collect();
    contents.sort();
    assert_eq!(contents, ["first", "second"]);
    let too_long = format!("other:{}=a", "n".repeat(256));
    tool.run(&["save", "t", &too_long])
        .ends_with(2)
        .says(&["at most 255 bytes"]);
}

#[test]
fn labels_codec_and_chunking_reach_the_engine() {
    let tool = Tool::new();
    let bytes = text(6, 4 << 20);
    tool.file("a", &bytes);
    let stored = |name: &str, args: &[&str]| {
        let saved = tool.save(name, &[&["memory=a"], args].concat());
        let out = tool.run(&["restore", name, "-"]).ok();
        assert_bytes(&out.stdout, &bytes, name);
        saved["pack_bytes"].as_u64().unwrap()
    };
    let none = stored("none", &["--codec", "none"]);
    assert!(none as usize >= bytes.len());
    assert!(stored("zstd", &["--codec", "zstd:9"]) * 2 < none);
    let fixed = tool.save("fixed", &["memory=a", "--chunking", "fixed:4K"]);
    // Text of 5000 different lines has no two equal pages.
    assert_eq!(fixed["chunks"], 1024);
    for (args, why) in [
        (["--codec", "gzip"], "gzip"),
        (["--chunking", "cdc:100"], "power of two"),
        (["--dtype", "int8"], "bf16"),
        (["--label", "novalue"], "KEY=VALUE"),
    ] {
        tool.run(&[&["save", "bad", "memory=a"][..], &args].concat())
            .ends_with(2)
            .says(&[why]);
    }
}

#[test]
fn noise_costs_next_to_nothing_on_top() {
    let tool = Tool::new();
    let bytes = noise(7, 64 << 20);
    tool.file("noise", &bytes);
    let saved = tool.save("s", &["memory=noise"]);
    let stored = saved["stored_bytes"].as_u64().unwrap();
    assert!(stored * 1000 <= bytes.len() as u64 * 1001, "{saved}");
}

#[test]
fn a_bf16_model_is_stored_at_seven_tenths() {
    let Some(model) = provisioned("model-bf16.safetensors") else {
        return;
    };
    let tool = Tool::new();
    let source = format!("gpu={}", model.display());
    let saved = tool.save("model", &[&source]);
    let (stored, raw) = (
        saved["stored_bytes"].as_u64().unwrap(),
        saved["raw_bytes"].as_u64().unwrap(),
    );
    assert!(stored * 10 <= raw * 7, "{saved}");
    let out = tool.run(&["restore", "model", "-"]).ok();
    assert_bytes(&out.stdout, &fs::read(model).unwrap(), "the model");
}

#[test]
fn exports_hold_everything_and_come_back_anywhere() {
    let tool = Tool::new();
    let (first, second) = (
        noise(8, 2 << 20),
        [noise(8, 2 << 20), text(9, 1 << 20)].concat(),
    );
    tool.file("a", &first);
    tool.file("b", &second);
    tool.save("one", &["memory=a"]);
    tool.save("two", &["memory=b", "--base", "one", "--label", "k=v"]);
    let exported = tool.json(&["export", "two", "two.podsnap"]);
    let length = fs::metadata(tool.path("two.podsnap")).unwrap().len();
    assert_eq!(exported["bytes"], length);
    let streamed = tool.run(&["export", "two", "-"]).ok();
    assert_bytes(
        &streamed.stdout,
        &fs::read(tool.path("two.podsnap")).unwrap(),
        "the streamed export",
    );
    tool.run(&["export", "two", "two.podsnap"])
        .ends_with(1)
        .says(&["two.podsnap", "choose another file"]);

    // It needs no store: neither to be read, nor to be verified.
    let away = ["--store", "/nonexistent/store"];
    let restored = tool.run(&[&["restore", "file:two.podsnap", "-"][..], &away].concat());
    assert_bytes(&restored.ok().stdout, &second, "the export");
    tool.run(&[&["verify", "file:two.podsnap"][..], &away].concat())
        .ok();

    let elsewhere = ["--store", "elsewhere"];
    let imported = tool.json(&[&["import", "two.podsnap"][..], &elsewhere].concat());
    assert_eq!(imported["snapshot"], "two");
    assert_eq!(imported["raw_bytes"], second.len());
    let back = tool.run(&[&["restore", "two", "-"][..], &elsewhere].concat());
    assert_bytes(&back.ok().stdout, &second, "the import");
    let listed = tool.json(&[&["ls"][..], &elsewhere].concat());
    assert_eq!(listed[0]["borrows_from"], serde_json::json!([]));

    // Under its own id it is in the way of itself; under another one it is a snapshot like any other.
    tool.run(&["import", "two.podsnap"])
        .ends_with(4)
        .says(&["two exists already"]);
    let group = ["--as", "three", "--group", "g"];
    tool.run(&[&["import", "two.podsnap"][..], &group].concat())
        .ok();
    tool.assert_sound("three");
    let on_head = tool.save("four", &["memory=b", "--group", "g"]);
    assert_eq!(on_head["bases"], serde_json::json!(["three"]));
    assert_eq!(on_head["new_bytes"], 0);
}

#[test]
fn a_digest_can_be_demanded() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    let digest = tool.save("s", &["other=a"])["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    tool.run(&["restore", "s", "out", "--digest", &digest]).ok();
    tool.run(&["verify", "s", "--digest", &digest]).ok();
    let other = "0".repeat(64);
    tool.run(&["restore", "s", "out2", "--digest", &other])
        .ends_with(5)
        .says(&[&digest, &other]);
    assert!(!tool.path("out2").exists());
}
