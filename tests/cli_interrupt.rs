//! SIGINT and SIGTERM at any command: exit code 130, nothing left behind, and the same command goes through the next time.
//!
//! Each operation is held open by something that never goes on (a pipe without a writer, a reader that does not read), so that
//! the signal always meets it in the middle.

mod support;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use support::{noise, text, tool::*};

const SIGNALS: [Signal; 2] = [Signal::INT, Signal::TERM];

/// Ends it and expects what an interrupted command says.
#[track_caller]
fn interrupt(mut running: Running, signal: Signal) {
    running.signal(signal);
    running.finish().ends_with(130).says(&["interrupted"]);
}

#[test]
fn a_save_that_waits_for_a_silent_pipe() {
    for signal in SIGNALS {
        let tool = Tool::new();
        let fifo = tool.fifo("fifo");
        tool.file("big", &noise(1, 8 << 20));
        let mut save = tool.start(&["save", "s", "memory=big", "other=fifo"]);
        // The first section is taken in, the second one has begun: there are a lease and a pack to be removed.
        let mut writer = OpenOptions::new().write(true).open(&fifo).unwrap();
        writer.write_all(&text(2, 10_000)).unwrap();
        save.wait_until("the lease and a pack", || tool.store_files().len() >= 2);
        assert!(tool.store_files().contains(&"s/lease".to_owned()));
        interrupt(save, signal);
        assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
        drop(writer);
        tool.save("s", &["memory=big"]);
        tool.assert_sound("s");
    }
}

#[test]
fn a_save_whose_pipe_nobody_opens() {
    for source in ["memory=fifo", "rootfs=fifo"] {
        let tool = Tool::new();
        tool.fifo("fifo");
        let mut save = tool.start(&["save", "s", source]);
        save.wait_until("the lease", || !tool.store_files().is_empty());
        interrupt(save, Signal::INT);
        assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
    }
}

#[test]
fn a_save_from_a_silent_standard_input() {
    for source in ["memory=-", "tmpfs=-"] {
        let tool = Tool::new();
        let mut command = tool.command(&["save", "s", source, "--json"]);
        command.stdin(Stdio::piped());
        let mut save = Running::start(command);
        save.wait_until("the lease", || !tool.store_files().is_empty());
        save.signal(Signal::INT);
        let error = save.finish().ends_with(130).json_error();
        assert_eq!(error["kind"], "interrupted");
        assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
    }
}

#[test]
fn a_restore() {
    for signal in SIGNALS {
        let tool = Tool::new();
        let bytes = noise(3, 4 << 20);
        tool.file("a", &bytes);
        tool.save("s", &["memory=a"]);
        // A pack that takes for ever to open.
        let (pack, away) = (tool.pack("s"), tool.path("away"));
        fs::rename(&pack, &away).unwrap();
        make_fifo(&pack);
        let mut restore = tool.start(&["restore", "s", "out"]);
        let partial = |name: &String| name.contains("out.partial");
        restore.wait_until("something to be removed", || {
            files(tool.dir()).iter().any(partial)
        });
        interrupt(restore, signal);
        assert!(!files(tool.dir()).iter().any(partial));
        assert!(!tool.path("out").exists());
        fs::rename(away, &pack).unwrap();
        tool.restore("s", "out");
    }
}

#[test]
fn an_export_to_a_file() {
    for signal in SIGNALS {
        let tool = Tool::new();
        tool.file("a", &noise(4, 4 << 20));
        tool.save("s", &["memory=a"]);
        let (pack, away) = (tool.pack("s"), tool.path("away"));
        fs::rename(&pack, &away).unwrap();
        make_fifo(&pack);
        let mut export = tool.start(&["export", "s", "s.podsnap"]);
        let partial = |name: &String| name.starts_with("s.podsnap");
        export.wait_until("something to be removed", || {
            files(tool.dir()).iter().any(partial)
        });
        interrupt(export, signal);
        assert!(!files(tool.dir()).iter().any(partial));
        fs::rename(away, &pack).unwrap();
        tool.run(&["export", "s", "s.podsnap"]).ok();
    }
}

/// Whoever reads the pipe is asleep.
#[test]
fn an_export_and_a_restore_to_a_pipe_that_is_full() {
    let tool = Tool::new();
    tool.file("a", &noise(5, 4 << 20));
    fs::create_dir(tool.path("tree")).unwrap();
    tool.file("tree/file", &noise(6, 4 << 20));
    tool.save("s", &["memory=a"]);
    tool.save("tree", &["rootfs=tree"]);
    for args in [
        ["export", "s", "-"],
        ["restore", "s", "-"],
        ["restore", "tree", "-"],
    ] {
        let mut writing = tool.start(&args);
        let fd = writing.child().stdout.take().unwrap();
        writing.wait_until("a full pipe", || {
            rustix::io::ioctl_fionread(&fd).unwrap() >= 60_000
        });
        interrupt(writing, Signal::INT);
        drop(fd);
    }
}

#[test]
fn a_verification() {
    let tool = Tool::new();
    tool.file("a", &noise(7, 1 << 20));
    tool.save("s", &["memory=a"]);
    let (pack, away) = (tool.pack("s"), tool.path("away"));
    fs::rename(&pack, &away).unwrap();
    make_fifo(&pack);
    let interrupted = (0..20).any(|_| {
        // Of a part only: a whole verification looks at the pack's length first.
        let mut verify = tool.start(&["verify", "s", "--section", "memory"]);
        // It has opened the snapshot when it waits for the pipe, and waits until somebody opens the other end, which then succeeds.
        let opened = || {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
            rustix::fs::open(&pack, flags, rustix::fs::Mode::empty()).ok()
        };
        let mut writer = None;
        verify.wait_until("it to wait for the pack", || {
            writer = opened();
            writer.is_some()
        });
        verify.signal(Signal::INT);
        let ended = verify.finish();
        // On a busy machine it may go on from there to its end, with a pack that is empty, before the signal comes.
        if ended.code == Some(5) && ended.text().contains("it ends at 0") {
            return false;
        }
        ended.ends_with(130).says(&["interrupted"]);
        true
    });
    assert!(interrupted);
    fs::remove_file(&pack).unwrap();
    fs::rename(away, &pack).unwrap();
    tool.assert_sound("s");
}

/// An import is stopped (by SIGSTOP) once it has begun to write, so that it cannot end before the interrupt arrives.
#[test]
fn an_import() {
    for signal in SIGNALS {
        let tool = Tool::new();
        tool.file("big", &noise(8, 96 << 20));
        tool.save("s", &["memory=big", "--codec", "none"]);
        tool.run(&["export", "s", "s.podsnap"]).ok();
        tool.run(&["rm", "s"]).ok();
        let mut import = tool.start(&["import", "s.podsnap"]);
        import.wait_until("a pack", || tool.store_files().len() >= 2);
        import.signal(Signal::STOP);
        let left = tool.store_files();
        assert!(!left.contains(&"s/manifest".to_owned()), "{left:?}");
        import.signal(signal);
        import.signal(Signal::CONT);
        import.finish().ends_with(130).says(&["interrupted"]);
        assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
        tool.run(&["import", "s.podsnap"]).ok();
        tool.assert_sound("s");
    }
}

/// The second signal does not wait for anything.
#[test]
fn two_signals_end_it_at_once() {
    let tool = Tool::new();
    let fifo = tool.fifo("fifo");
    let mut save = tool.start(&["save", "s", "memory=fifo"]);
    let _writer = File::options().write(true).open(&fifo).unwrap();
    save.wait_until("the lease", || !tool.store_files().is_empty());
    save.signal(Signal::STOP);
    save.signal(Signal::INT);
    save.signal(Signal::TERM);
    save.signal(Signal::CONT);
    save.finish().ends_with(130);
    // Whatever it could not remove, the next save of the id does.
    tool.file("a", b"bytes");
    tool.save("s", &["memory=a"]);
    tool.assert_sound("s");
    let names = tool.store_files();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Holds the lock that whoever changes a directory of the store takes.
fn locked(dir: &Path) -> File {
    let file = File::open(dir).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

#[test]
fn a_collection_ends_between_two_objects_says_what_it_did_and_goes_on_next_time() {
    let tool = Tool::new();
    fs::create_dir_all(tool.path("store/s")).unwrap();
    for number in 0..40 {
        tool.file(&format!("store/s/pack-00000000000000aa-{number}"), b"left");
    }
    // What a write that was cut short left is nobody's.
    tool.file("store/s/.tmp-left", b"");
    let gc = ["gc", "--grace", "0s"];
    let noted = tool.json(&[&gc[..], &["--dry-run"]].concat());
    assert_eq!(noted["plan"]["foreign_objects"], 0, "{noted}");
    tool.run(&gc).ok();
    let seen = tool.path("store/.garbage/seen");
    let inode = || fs::metadata(&seen).unwrap().ino();
    let before = inode();
    let lock = locked(&tool.path("store/s"));
    let mut collecting = tool.start(&gc);
    collecting.wait_until("the deletions", || inode() != before);
    // The first of them wait for the lock by then.
    std::thread::sleep(Duration::from_millis(500));
    collecting.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(500));
    drop(lock);
    let outcome = collecting.finish().ends_with(130).says(&["interrupted"]);
    let said = outcome.text();
    assert!(said.contains("stopped: interrupted"), "{said}");
    let left = tool.store_files().len() - 1;
    assert!((1..40).contains(&left), "{left} are left");
    assert!(said.contains(&format!("{left} wait")), "{said}");
    let done = tool.json(&gc);
    assert_eq!(done["done"]["deleted_objects"], left as u64, "{done}");
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
}

#[test]
fn a_removal() {
    let tool = Tool::new();
    tool.file("a", &noise(7, 100_000));
    tool.save("s", &["memory=a"]);
    let lock = locked(&tool.path("store/s"));
    let removing = tool.start(&["rm", "s"]);
    std::thread::sleep(Duration::from_millis(500));
    interrupt(removing, Signal::INT);
    drop(lock);
    tool.assert_sound("s");
    tool.run(&["rm", "s"]).ok();
    assert!(tool.store_files().is_empty(), "{:?}", tool.store_files());
}

#[test]
fn retention_ends_between_two_snapshots_and_says_what_went() {
    let tool = Tool::new();
    tool.file("a", &noise(7, 100_000));
    for id in ["one", "two", "three", "four"] {
        tool.save(id, &["memory=a", "--group", "g"]);
    }
    let lock = locked(&tool.path("store/two"));
    let mut removing = tool.start(&["retain", "--max-per-group", "1"]);
    let first = tool.path("store/one/manifest");
    removing.wait_until("the first removal", || !first.exists());
    std::thread::sleep(Duration::from_millis(500));
    removing.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(500));
    drop(lock);
    let outcome = removing.finish().ends_with(130).says(&["interrupted"]);
    let said = outcome.text();
    assert!(said.contains("2 snapshots removed"), "{said}");
    assert_eq!(tool.listed()[..2], ["four", "three"]);
    tool.assert_sound("three");
}
