//! What a directory holds comes back as it was.

use std::io::Read;
use std::os::unix::net::UnixListener;

use podsnap_engine::tree::{ExtractOptions, ScanOptions, TreeReader};
use podsnap_format::tree::EntryKind;

use crate::describe::{assert_same, describe};
use crate::fixture::{make_deep, make_nasty_tree, restore, save};

#[test]
fn a_nasty_tree_comes_back_in_every_detail() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _socket = UnixListener::bind(source.path().join("socket")).unwrap();
    make_nasty_tree(source.path());
    let wanted = describe(source.path());
    let (stream, table) = save(source.path());
    assert!(
        stream.len() < 4 << 20,
        "holes were read: {} bytes",
        stream.len()
    );
    let stats = restore(
        &stream,
        table,
        target.path(),
        ExtractOptions {
            strict: true,
            ..Default::default()
        },
    );
    assert_same(&describe(target.path()), &wanted);
    assert!(stats.warnings.is_empty());
    assert_eq!(stats.entries, wanted.len() as u64);
    // The same tree gives the same bytes.
    assert_eq!(save(target.path()).0, stream);
}

#[test]
fn a_path_longer_than_the_kernel_takes_comes_back() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_deep(source.path(), "a-name-of-twenty-byt", 300);
    let wanted = describe(source.path());
    let (stream, table) = save(source.path());
    restore(
        &stream,
        table,
        target.path(),
        ExtractOptions {
            strict: true,
            ..Default::default()
        },
    );
    assert_same(&describe(target.path()), &wanted);
}

#[test]
fn many_small_files_read_the_same_in_small_and_large_reads_and_cost_little() {
    let source = tempfile::tempdir().unwrap();
    for directory in 0..10 {
        let directory = source.path().join(format!("package-{directory}"));
        std::fs::create_dir(&directory).unwrap();
        for file in 0..200 {
            std::fs::write(
                directory.join(format!("module_{file}.py")),
                format!("contents of {file}"),
            )
            .unwrap();
        }
    }
    let (stream, table) = save(source.path());
    let mut reader = TreeReader::open(source.path(), ScanOptions::default()).unwrap();
    let mut slowly = Vec::new();
    let mut buf = [0; 7];
    loop {
        match reader.read(&mut buf).unwrap() {
            0 => break,
            read => slowly.extend_from_slice(&buf[..read]),
        }
    }
    assert_eq!(slowly, stream);
    // One read crosses files.
    let mut reader = TreeReader::open(source.path(), ScanOptions::default()).unwrap();
    let mut whole = vec![0; stream.len() + 1];
    assert_eq!(reader.read(&mut whole).unwrap(), stream.len());
    let per_entry = reader.table_length() as f64 / table.entries().len() as f64;
    assert!(per_entry < 30.0, "{per_entry} bytes an entry");
}

#[test]
fn one_file_system_stays_out_of_mounts() {
    // /dev has mounts below it wherever there is a /dev/pts or /dev/shm.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let Some(mount) = ["pts", "shm"]
        .into_iter()
        .find(|name| mounts.contains(&format!(" /dev/{name} ")))
    else {
        eprintln!("SKIPPED: staying out of mounts: nothing is mounted below /dev");
        return;
    };
    let reader = TreeReader::open(
        "/dev".as_ref(),
        ScanOptions {
            one_file_system: true,
        },
    )
    .unwrap();
    let entries = reader.table().entries();
    let index = entries
        .iter()
        .position(|entry| entry.parent == 0 && entry.name == mount.as_bytes())
        .unwrap();
    assert_eq!(entries[index].kind, EntryKind::Directory);
    assert!(
        entries
            .iter()
            .skip(1)
            .all(|entry| entry.parent != index as u32)
    );
}
