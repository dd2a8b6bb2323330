//! What a restore does when it cannot or should not do all.

use std::fs;
use std::path::Path;

use podsnap_engine::tree::{Error, ExtractOptions, TreeExtractor};
use podsnap_format::tree::{Attributes, Entry, EntryKind, TreeTable, Xattr};

use crate::fixture::{restore, save};

fn with_unknown_xattr() -> TreeTable {
    let xattrs = [Xattr {
        name: b"nonsense.name".to_vec(),
        value: b"1".to_vec(),
    }];
    let attributes = Attributes {
        mode: 0o750,
        xattrs: xattrs.into(),
        ..Default::default()
    };
    let top = Entry {
        parent: 0,
        name: vec![],
        kind: EntryKind::Directory,
        attributes: Attributes {
            mode: 0o755,
            ..Default::default()
        },
    };
    let file = Entry {
        parent: 0,
        name: b"file".to_vec(),
        kind: EntryKind::Regular {
            size: 0,
            ranges: vec![],
        },
        attributes,
    };
    TreeTable::new(vec![top, file], 0).unwrap()
}

#[test]
fn what_cannot_be_restored_is_a_warning_or_if_strict_an_error() {
    let target = tempfile::tempdir().unwrap();
    let stats = restore(
        b"",
        with_unknown_xattr(),
        target.path(),
        ExtractOptions::default(),
    );
    let warnings: Vec<String> = stats.warnings.iter().map(ToString::to_string).collect();
    assert!(
        warnings
            .iter()
            .any(|text| text.starts_with("could not set an extended attribute of file: ")),
        "{warnings:?}"
    );
    // The rest of the attributes is there all the same.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(target.path().join("file"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o7777, 0o750);

    let target = tempfile::tempdir().unwrap();
    let options = ExtractOptions {
        strict: true,
        ..Default::default()
    };
    let error = TreeExtractor::new(target.path(), with_unknown_xattr(), options)
        .unwrap()
        .finish()
        .unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
}

fn sample(top: &Path) {
    fs::create_dir_all(top.join("dir")).unwrap();
    fs::write(top.join("dir/file"), "new").unwrap();
    fs::write(top.join("other"), "new too").unwrap();
}

#[test]
fn a_target_with_something_in_it_is_refused_unless_asked_for() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(source.path());
    let (stream, table) = save(source.path());
    fs::create_dir(target.path().join("dir")).unwrap();
    fs::write(target.path().join("dir/file"), "old and longer").unwrap();
    fs::write(target.path().join("mine"), "stays").unwrap();
    let refused = TreeExtractor::new(target.path(), table.clone(), ExtractOptions::default());
    assert!(matches!(refused, Err(Error::NotEmpty { .. })));
    assert_eq!(
        fs::read(target.path().join("dir/file")).unwrap(),
        b"old and longer"
    );

    restore(
        &stream,
        table,
        target.path(),
        ExtractOptions {
            into_existing: true,
            ..Default::default()
        },
    );
    assert_eq!(fs::read(target.path().join("dir/file")).unwrap(), b"new");
    assert_eq!(fs::read(target.path().join("other")).unwrap(), b"new too");
    assert_eq!(fs::read(target.path().join("mine")).unwrap(), b"stays");
}

#[test]
fn links_that_lie_in_the_target_are_not_followed() {
    let (source, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(source.path());
    fs::write(outside.path().join("file"), "outside").unwrap();
    let (stream, table) = save(source.path());
    let options = ExtractOptions {
        into_existing: true,
        ..Default::default()
    };

    // In the place of a directory: refused.
    let target = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), target.path().join("dir")).unwrap();
    let error = TreeExtractor::new(target.path(), table.clone(), options)
        .err()
        .unwrap();
    assert!(error.to_string().contains("cannot create dir"), "{error}");

    // In the place of a file: replaced. So is a further name of a file outside.
    let target = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path().join("file"), target.path().join("other")).unwrap();
    fs::create_dir(target.path().join("dir")).unwrap();
    fs::hard_link(outside.path().join("file"), target.path().join("dir/file")).unwrap();
    restore(&stream, table, target.path(), options);
    assert_eq!(fs::read(target.path().join("other")).unwrap(), b"new too");
    assert_eq!(fs::read(outside.path().join("file")).unwrap(), b"outside");
}
