//! Full disks, closed pipes and sources that change: a clear error, nothing visible, and everything that was there stays sound.

mod support;

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::FileExt,
    process::Stdio,
};

use support::{assert_bytes, noise, tool::*};

#[test]
fn a_full_store_fails_the_save_and_nothing_else() {
    let tool = Tool::new();
    let Some(_mounted) = Mounted::tmpfs(&tool.path("store"), 8 << 20) else {
        return;
    };
    let (small, big) = (noise(1, 1 << 20), noise(2, 16 << 20));
    tool.file("small", &small);
    tool.file("big", &big);
    tool.save("s", &["memory=small"]);
    let before = tool.store_files();
    for base in [&[][..], &["--base", "s"], &["--no-sync"]] {
        let args = [&["save", "t", "memory=big"][..], base].concat();
        tool.run(&args)
            .ends_with(1)
            .says(&["the store is full at", "store/t/pack-", "free space"]);
        assert_eq!(tool.store_files(), before);
    }
    assert_eq!(tool.listed(), ["s"]);
    tool.assert_sound("s");
    tool.run(&["export", "s", "s.podsnap"]).ok();

    // Not a byte free: not even a lease can be written.
    let filler = tool.path("store/filler");
    let mut file = File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    for args in [
        &["save", "t", "memory=small"][..],
        &["import", "s.podsnap", "--as", "t"],
    ] {
        tool.run(args).ends_with(1).says(&["the store is full at"]);
        assert!(!tool.path("store/t").exists());
    }
    tool.assert_sound("s");
    drop(file);
    fs::remove_file(filler).unwrap();
    tool.run(&["save", "t", "memory=small"]).ok();
    tool.assert_sound("t");
}

#[test]
fn a_full_target_fails_the_restore_and_leaves_nothing() {
    let tool = Tool::new();
    let Some(_mounted) = Mounted::tmpfs(&tool.path("target"), 4 << 20) else {
        return;
    };
    let big = noise(3, 16 << 20);
    tool.file("big", &big);
    fs::create_dir(tool.path("tree")).unwrap();
    tool.file("tree/big", &big);
    tool.save("blob", &["memory=big"]);
    tool.save("tree", &["rootfs=tree"]);
    for args in [
        ["restore", "blob", "target/out"],
        ["restore", "tree", "target/out"],
        ["export", "blob", "target/file"],
    ] {
        tool.run(&args).ends_with(1).says(&[
            "cannot write",
            "target/",
            "No space left",
            "free space",
        ]);
        assert!(files(&tool.path("target")).is_empty(), "{args:?}");
    }
    // Holes take no space.
    tool.file(
        "sparse",
        &[&vec![0; 64 << 20][..], &noise(4, 1 << 20)].concat(),
    );
    tool.save("sparse", &["memory=sparse"]);
    tool.run(&["restore", "sparse", "target/out"]).ok();
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure_to_talk_about() {
    let tool = Tool::new();
    let bytes = noise(5, 8 << 20);
    tool.file("a", &bytes);
    fs::create_dir(tool.path("tree")).unwrap();
    tool.file("tree/file", &bytes);
    tool.save("blob", &["memory=a"]);
    tool.save("tree", &["rootfs=tree"]);
    for args in [
        ["restore", "blob", "-"],
        ["restore", "tree", "-"],
        ["export", "blob", "-"],
    ] {
        let mut running = tool.start(&args);
        let mut stdout = running.child().stdout.take().unwrap();
        let mut first = [0; 10];
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let ended = running.finish().ends_with(141);
        assert_eq!(ended.stderr, "", "{args:?}");
    }
    // What it says of itself may be cut short too.
    let mut command = tool.command(&["ls"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(Stdio::from(writer));
    let ended = Running::start(command).finish().ok();
    assert_eq!(ended.stderr, "");
}

#[test]
fn sources_that_are_not_there_are_said_before_anything_is_written() {
    let tool = Tool::new();
    tool.file("a", b"bytes");
    for source in ["memory=gone", "rootfs=gone", "other=gone/below", "gone"] {
        let error = tool
            .run(&["save", "s", "other:a=a", source, "--json"])
            .ends_with(1)
            .json_error();
        assert_eq!(error["kind"], "source", "{error}");
        assert!(
            error["message"].as_str().unwrap().contains("gone"),
            "{error}"
        );
    }
    assert!(!tool.path("store").exists());
}

/// Starts a save whose first section is a pipe and whose others are `sources`, which are thus opened and not read yet. Does
/// `change`, lets the save go on, and expects it to end with a complaint of these words and to leave nothing.
fn changed_meanwhile(tool: &Tool, sources: &[&str], change: impl FnOnce(), words: &[&str]) {
    let fifo = tool.fifo("fifo");
    let mut save = tool.start(&[&["save", "s", "other:first=fifo"], sources].concat());
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    save.wait_until("the lease", || !tool.store_files().is_empty());
    change();
    drop(writer);
    save.finish().ends_with(1).says(words);
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
    fs::remove_file(fifo).unwrap();
}

#[test]
fn a_file_that_is_written_cut_or_grown_while_it_is_saved_fails_the_save() {
    let tool = Tool::new();
    let bytes = noise(6, 6 << 20);
    let changes: [&dyn Fn(&File); 3] = [
        &|file| file.write_all_at(b"x", 5 << 20).unwrap(),
        &|file| file.set_len(1 << 20).unwrap(),
        &|file| file.set_len(7 << 20).unwrap(),
    ];
    for change in changes {
        let path = tool.file("a", &bytes);
        let words = ["a changed while it was read", "save it again"];
        let change = || {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            change(&file);
        };
        changed_meanwhile(&tool, &["memory=a"], change, &words);
    }
    // One that is replaced by rename is saved as it was opened.
    let path = tool.file("a", &bytes);
    let fifo = tool.fifo("fifo");
    let mut save = tool.start(&["save", "s", "other:first=fifo", "memory=a"]);
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    save.wait_until("the lease", || !tool.store_files().is_empty());
    let new = tool.file("new", &noise(7, 1 << 20));
    fs::rename(new, path).unwrap();
    drop(writer);
    save.finish().ok();
    let out = tool.run(&["restore", "s", "-", "--section", "memory"]).ok();
    assert_bytes(&out.stdout, &bytes, "the file as it was opened");
}

#[test]
fn a_tree_that_changes_while_it_is_saved_fails_the_save() {
    let tool = Tool::new();
    let file = tool.path("tree/sub/file");
    let fresh = || {
        let _ = fs::remove_dir_all(tool.path("tree"));
        fs::create_dir_all(tool.path("tree/sub")).unwrap();
        fs::write(tool.path("tree/first"), noise(8, 10_000)).unwrap();
        fs::write(&file, noise(9, 10_000)).unwrap();
    };
    let changes: [(&dyn Fn(), &str); 4] = [
        (&|| fs::remove_file(&file).unwrap(), "vanished"),
        (
            &|| {
                fs::remove_dir_all(tool.path("tree/sub")).unwrap();
            },
            "vanished",
        ),
        (&|| fs::write(&file, b"short").unwrap(), "another size"),
        (
            &|| {
                fs::remove_file(&file).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
            },
            "replaced",
        ),
    ];
    for (change, why) in changes {
        fresh();
        changed_meanwhile(&tool, &["rootfs=tree"], change, &["tree", "sub/file", why]);
    }
    fresh();
    tool.save("s", &["rootfs=tree"]);
    tool.assert_sound("s");
}
