//! `podsnap wait`: it ends when somebody else's save does, and says how that ended.

mod support;

use std::{fs, io::Write, time::Duration};

use rustix::process::Signal;
use support::tool::*;

/// A save that waits for the end of what it reads, and the end that it reads from.
fn unfinished(tool: &Tool, id: &str) -> (Running, fs::File) {
    let fifo = format!("{id}.fifo");
    tool.fifo(&fifo);
    let mut saving = tool.start(&["save", "--no-sync", id, &format!("memory={fifo}")]);
    let mut source = fs::File::options()
        .write(true)
        .open(tool.path(&fifo))
        .unwrap();
    source.write_all(b"some memory").unwrap();
    let lease = tool.path("store").join(id).join("lease");
    saving.wait_until("the lease", || lease.exists());
    (saving, source)
}

#[test]
fn it_ends_when_the_save_is_committed() {
    let tool = Tool::new();
    let (saving, source) = unfinished(&tool, "web-1");
    tool.run(&["wait", "web-1", "--timeout", "1"])
        .ends_with(1)
        .says(&["still being saved"]);
    let waiting = tool.start(&["wait", "web-1", "--json"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(!tool.path("store/web-1/manifest").exists());
    drop(source);
    saving.finish().ok();
    let said = waiting.finish().ok().json();
    assert_eq!(said["snapshot"], "web-1");
    assert_eq!(said["digest"], tool.json(&["inspect", "web-1"])["digest"]);
    // Nor does it wait for what is there.
    tool.run(&["wait", "web-1"]).ok();
}

#[test]
fn a_save_that_dies_is_not_waited_for() {
    let tool = Tool::new();
    tool.run(&["wait", "web-1"])
        .ends_with(3)
        .says(&["nobody saves web-1"]);
    let (mut saving, _source) = unfinished(&tool, "web-1");
    let waiting = tool.start(&["wait", "web-1"]);
    std::thread::sleep(Duration::from_millis(300));
    saving.signal(Signal::KILL);
    saving.child().wait().unwrap();
    waiting.finish().ends_with(3).says(&["its process died"]);
}
