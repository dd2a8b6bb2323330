//! A source that changes while it is read is an error that names the path.

use std::fs;
use std::io::Read;
use std::path::Path;

use podsnap_engine::tree::{Error, ScanOptions, TreeReader};

use crate::fixture::pattern;

/// Reads part of `aa` and then the rest, with a change in between; gives back the error's text.
fn read_around(change: impl FnOnce(&Path)) -> String {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("aa"), pattern(5000)).unwrap();
    fs::create_dir(source.path().join("sub")).unwrap();
    fs::write(source.path().join("sub/bb"), pattern(5000)).unwrap();
    let mut reader = TreeReader::open(source.path(), ScanOptions::default()).unwrap();
    reader.read_exact(&mut [0; 100]).unwrap();
    change(source.path());
    let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
    let changed = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert!(matches!(changed, Error::SourceChanged { .. }), "{changed}");
    // What follows an error must not pass for the rest of the stream.
    assert!(reader.read(&mut [0; 100]).is_err());
    error.to_string()
}

#[test]
fn a_file_that_changes_is_noticed() {
    let text = read_around(|top| fs::write(top.join("aa"), pattern(4000)).unwrap());
    assert!(
        text.starts_with("source changed while it was read: aa: "),
        "{text}"
    );
    assert!(
        read_around(|top| fs::write(top.join("sub/bb"), pattern(6000)).unwrap())
            .contains("sub/bb: it has another size")
    );
    assert!(
        read_around(|top| fs::write(top.join("sub/bb"), [1; 5000]).unwrap())
            .contains("sub/bb: it was written")
    );
    assert!(
        read_around(|top| fs::write(top.join("aa"), [1; 5000]).unwrap())
            .contains("aa: it was written")
    );
}

#[test]
fn a_file_that_goes_away_is_noticed() {
    assert!(
        read_around(|top| fs::remove_file(top.join("sub/bb")).unwrap())
            .contains("sub/bb: it vanished")
    );
    let swap = |top: &Path, by: &dyn Fn(&Path)| {
        fs::remove_file(top.join("sub/bb")).unwrap();
        by(&top.join("sub/bb"));
    };
    let text = read_around(|top| {
        swap(top, &|path| {
            std::os::unix::fs::symlink("../aa", path).unwrap()
        })
    });
    assert!(text.contains("sub/bb: it was replaced"), "{text}");
    let text = read_around(|top| {
        swap(top, &|path| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .unwrap()
        });
    });
    assert!(text.contains("sub/bb: it was replaced"), "{text}");
}
