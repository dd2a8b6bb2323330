//! Directory trees from the command line: from a directory, a tar file or a tar on standard input, and back to a directory or a
//! tar on standard output, with everything that an overlay's upper directory has.

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use support::{assert_bytes, noise, tool::*, tree::*};

/// A scratch directory with the tree `upper` in it.
fn tool_with_tree() -> Tool {
    let tool = Tool::new();
    fs::create_dir(tool.path("upper")).unwrap();
    make_tree(&tool.path("upper"));
    tool
}

/// Runs the system's tar; `None`, having said so, if there is none.
fn tar(dir: &Path, args: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new("tar")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        support::skipped("tar is not installed");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join();
    assert!(output.status.success(), "tar {args:?}");
    Some(output.stdout)
}

const PACK: [&str; 9] = [
    "-c",
    "--format=posix",
    "--sparse",
    "--xattrs",
    "--xattrs-include=*",
    "--numeric-owner",
    "-C",
    "upper",
    ".",
];

#[test]
fn a_directory_comes_back_with_everything_it_had() {
    let tool = tool_with_tree();
    let expected = describe(&tool.path("upper"));
    for (role, section) in [
        ("rootfs", "rootfs"),
        ("tmpfs:shm", "tmpfs.shm"),
        ("other:tree", "other.tree"),
    ] {
        let id = section.replace('.', "-");
        tool.save(&id, &[&format!("{role}=upper")]);
        let out = tool.run(&["restore", &id, &format!("{id}-out"), "--strict"]);
        assert_eq!(out.ok().stderr, "");
        assert_same_tree(&tool.path(&format!("{id}-out/{section}")), &expected);
        tool.assert_sound(&id);
    }
    assert_same_tree(&tool.path("upper"), &expected);
}

#[test]
fn trees_and_blobs_stand_side_by_side() {
    let tool = tool_with_tree();
    let expected = describe(&tool.path("upper"));
    let bytes = noise(1, 1 << 20);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram", "rootfs=upper", "tmpfs:a=upper"]);
    let out = tool.restore("s", "out");
    assert_same_tree(&out.join("rootfs"), &expected);
    assert_same_tree(&out.join("tmpfs.a"), &expected);
    assert_bytes(&fs::read(out.join("memory")).unwrap(), &bytes, "memory");
    let out = tool.path("only");
    tool.run(&["restore", "s", "only", "--section", "tmpfs:a"])
        .ok();
    assert_same_tree(&out.join("tmpfs.a"), &expected);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn tars_come_in_from_a_file_a_pipe_and_standard_input() {
    let tool = tool_with_tree();
    // A socket is nothing that tar can hold.
    fs::remove_file(tool.path("upper/socket")).unwrap();
    let Some(archive) = tar(tool.dir(), &PACK, b"") else {
        return;
    };
    let expected = describe(&tool.path("upper"));
    tool.file("upper.tar", &archive);
    tool.save("file", &["rootfs=upper.tar"]);
    tool.run_with_input(&["save", "stdin", "tmpfs=-"], &archive)
        .ok();
    let fifo = tool.fifo("fifo");
    let writer = std::thread::spawn(move || fs::write(fifo, archive).unwrap());
    tool.save("pipe", &["rootfs=fifo"]);
    writer.join().unwrap();
    for (id, section) in [("file", "rootfs"), ("stdin", "tmpfs"), ("pipe", "rootfs")] {
        let out = tool.restore(id, &format!("{id}-out"));
        assert_same_tree(&out.join(section), &expected);
    }
}

#[test]
fn a_tree_goes_to_standard_output_as_a_tar() {
    let tool = tool_with_tree();
    fs::remove_file(tool.path("upper/socket")).unwrap();
    let expected = describe(&tool.path("upper"));
    tool.save("s", &["rootfs=upper"]);
    let archive = tool.run(&["restore", "s", "-"]).ok().stdout;
    // Read by us.
    tool.run_with_input(&["save", "again", "rootfs=-"], &archive)
        .ok();
    let out = tool.restore("again", "again-out");
    assert_same_tree(&out.join("rootfs"), &expected);
    // Read by the system's tar.
    fs::create_dir(tool.path("unpacked")).unwrap();
    let unpack = [
        "-x",
        "-p",
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "-C",
        "unpacked",
    ];
    if tar(tool.dir(), &unpack, &archive).is_some() {
        assert_same_tree(&tool.path("unpacked"), &expected);
    }
}

#[test]
fn a_tree_saved_again_costs_next_to_nothing() {
    let tool = tool_with_tree();
    tool.save("s", &["rootfs=upper"]);
    tool.file("upper/new", b"a file more");
    let again = tool.save("t", &["rootfs=upper", "--base", "s"]);
    let new = again["new_bytes"].as_u64().unwrap();
    assert!(new <= 512 << 10, "{again}");
    let out = tool.restore("t", "out");
    assert_same_tree(&out.join("rootfs"), &describe(&tool.path("upper")));
}

#[test]
fn what_is_no_tree_is_refused() {
    let tool = Tool::new();
    tool.file("noise", &noise(2, 10_000));
    fs::create_dir(tool.path("dir")).unwrap();
    tool.run(&["save", "s", "rootfs=noise"])
        .ends_with(1)
        .says(&["noise", "not a tar stream"]);
    tool.run_with_input(&["save", "s", "rootfs=-"], b"short")
        .ends_with(1)
        .says(&["standard input", "end"]);
    tool.run(&["save", "s", "memory=dir"])
        .ends_with(2)
        .says(&["dir is a directory", "rootfs and tmpfs"]);
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
}

/// What a user may not set is said, and with --strict it is an error.
#[test]
fn what_a_user_cannot_restore_is_a_warning_or_an_error() {
    if !rustix::process::geteuid().is_root() {
        support::skipped("restoring less than was saved: saving it needs root");
        return;
    }
    let tool = tool_with_tree();
    tool.save("s", &["rootfs=upper"]);
    fs::create_dir(tool.path("theirs")).unwrap();
    let theirs = tool.path("theirs");
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    let lenient = finish(tool.command_as_nobody(&["restore", "s", "theirs/out"]));
    let lenient = lenient
        .ok()
        .says(&["warning: could not create disk", "more of the kind"]);
    assert!(lenient.text().contains("restored"));
    // Names stay on their line, whatever is in them.
    assert!(lenient.stderr.contains("not utf-8 \u{fffd}\\n"));
    assert!(
        lenient
            .stderr
            .lines()
            .all(|line| line.starts_with("podsnap: warning: "))
    );
    let hosts = fs::read(theirs.join("out/rootfs/etc/hosts")).unwrap();
    assert_eq!(hosts, b"127.0.0.1 localhost\n");
    let strict = finish(tool.command_as_nobody(&["restore", "s", "theirs/strict", "--strict"]));
    strict.ends_with(1).says(&["Operation not permitted"]);
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 1);
    // As JSON the warnings are part of the document, and standard error is silent.
    let json = finish(tool.command_as_nobody(&["restore", "s", "theirs/json", "--json"])).ok();
    assert_eq!(json.stderr, "");
    let warnings = json.json()["warnings"].to_string();
    for what in [
        "create null",
        "a trusted extended attribute of opaque",
        "owner of etc/hosts",
        "owner of .:",
    ] {
        assert!(warnings.contains(what), "no {what:?}: {warnings}");
    }
}
