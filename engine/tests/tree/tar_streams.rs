//! Trees from and to tar streams, with GNU tar at the other end.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use podsnap_engine::tree::{ExtractOptions, TarTreeReader, write_tar};
use podsnap_format::tree::TreeTable;

use crate::describe::{assert_same, describe};
use crate::fixture::{make_nasty_tree, restore, save, set_mtime, set_xattr, split};

const STRICT: ExtractOptions = ExtractOptions {
    strict: true,
    into_existing: false,
};

/// What GNU tar makes of a directory.
fn gnu_tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .args(arguments)
        .args([
            "-C".as_ref(),
            directory.as_os_str(),
            "-c".as_ref(),
            ".".as_ref(),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The nasty tree without what GNU tar loses: it writes each name of a named pipe as a pipe of its own.
fn make_tree_for_tar(top: &Path) {
    make_nasty_tree(top);
    fs::remove_file(top.join("a-link-to-fifo")).unwrap();
    set_mtime(top, 1_700_000_000, 123_456_789);
}

fn read_tar(tar: &[u8]) -> std::io::Result<(Vec<u8>, TreeTable)> {
    let mut reader = TarTreeReader::new(tar);
    let mut stream = Vec::new();
    reader.read_to_end(&mut stream)?;
    let table = split(&stream, reader.table_length().unwrap());
    assert_eq!(Some(&table), reader.table());
    Ok((stream, table))
}

#[test]
fn a_pax_stream_of_gnu_tar_restores_as_its_source() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree_for_tar(source.path());
    let wanted = describe(source.path());
    for version in ["1.0", "0.1", "0.0"] {
        let target = target.path().join(version);
        let version = format!("--sparse-version={version}");
        let tar = gnu_tar(
            source.path(),
            &[
                "--format=pax",
                "--xattrs",
                "--xattrs-include=*",
                "--sparse",
                &version,
                "-b1",
            ],
        );
        let (stream, table) = read_tar(&tar).unwrap();
        restore(&stream, table, &target, STRICT);
        assert_same(&describe(&target), &wanted);
    }
}

#[test]
fn a_gnu_stream_restores_all_that_the_format_holds() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree_for_tar(source.path());
    let mut wanted = describe(source.path());
    for described in wanted.values_mut() {
        described.xattrs.clear();
        described.mtime.1 = 0;
    }
    // Many islands need the continuation blocks of the old sparse format.
    let many = fs::File::create(source.path().join("sub/archipelago")).unwrap();
    for island in 0..60 {
        std::os::unix::fs::FileExt::write_all_at(&many, b"x", island << 20).unwrap();
    }
    let tar = gnu_tar(source.path(), &["--format=gnu", "--sparse"]);
    let (stream, table) = read_tar(&tar).unwrap();
    restore(&stream, table, target.path(), STRICT);
    let archipelago = describe(&source.path().join("sub"))[&b"archipelago"[..]]
        .runs
        .clone();
    let mut found = describe(target.path());
    assert_eq!(
        found.remove(&b"sub/archipelago"[..]).unwrap().runs,
        archipelago
    );
    wanted.get_mut(&b"sub"[..]).unwrap().mtime = found[&b"sub"[..]].mtime;
    assert_same(&found, &wanted);
}

#[test]
fn gnu_tar_restores_what_is_written_as_tar() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_nasty_tree(source.path());
    let socket = source.path().join("sub/socket");
    let wanted = describe(source.path());
    let (stream, table) = save(source.path());
    let content = |offset: u64, buf: &mut [u8]| {
        buf.copy_from_slice(&stream[offset as usize..][..buf.len()]);
        Ok(())
    };
    let mut tar = Vec::new();
    let stats = write_tar(&table, &content, &mut tar).unwrap();
    assert_eq!(
        (stats.members, stats.left_out.len()),
        (wanted.len() as u64, 0)
    );
    assert!(
        tar.len() < 5 << 20,
        "holes were written: {} bytes",
        tar.len()
    );
    // Into our own reader: the very same section.
    assert_eq!(read_tar(&tar).unwrap().1.entries(), table.entries());

    let arguments = ["--xattrs", "--xattrs-include=*", "-p", "-x", "-C"];
    let mut child = Command::new("tar")
        .args(arguments)
        .arg(target.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&tar).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_same(&describe(target.path()), &wanted);

    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let left_out = write_tar(&save(source.path()).1, &content, std::io::sink())
        .unwrap()
        .left_out;
    assert_eq!(left_out, [Path::new("sub/socket")]);
}

#[test]
fn later_members_replace_earlier_ones_and_missing_directories_are_made() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir_all(source.path().join("a/b")).unwrap();
    fs::write(source.path().join("a/b/file"), "first").unwrap();
    fs::hard_link(source.path().join("a/b/file"), source.path().join("linked")).unwrap();
    let run = |arguments: &[&str]| {
        let status = Command::new("tar")
            .current_dir(source.path())
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success());
    };
    run(&["-cf", "x.tar", "a/b/file", "linked"]);
    fs::remove_file(source.path().join("linked")).unwrap();
    fs::write(source.path().join("a/b/file"), "second").unwrap();
    run(&["-rf", "x.tar", "a/b/file"]);
    let (stream, table) = read_tar(&fs::read(source.path().join("x.tar")).unwrap()).unwrap();
    let target = tempfile::tempdir().unwrap();
    restore(&stream, table, target.path(), ExtractOptions::default());
    assert_eq!(
        fs::read_to_string(target.path().join("a/b/file")).unwrap(),
        "second"
    );
    // The other name still belongs to what the first member was.
    assert_eq!(
        fs::read_to_string(target.path().join("linked")).unwrap(),
        "first"
    );
}

#[test]
fn a_tar_stream_cut_anywhere_is_refused() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("file"), [7; 1500]).unwrap();
    set_xattr(&source.path().join("file"), "user.comment", b"some");
    let tar = gnu_tar(source.path(), &["--format=pax", "--xattrs", "-b1"]);
    let whole = tar
        .iter()
        .rposition(|&byte| byte != 0)
        .unwrap()
        .next_multiple_of(512)
        + 512;
    for length in (0..whole).step_by(64) {
        let error = read_tar(&tar[..length]).unwrap_err();
        assert!(
            error.to_string().contains("the stream ends"),
            "cut at {length}: {error}"
        );
    }
    assert_eq!(read_tar(&tar[..whole]).unwrap().1.entries().len(), 2);
}
