//! Pods of other kinds through our gofer: with state in their file systems, with several containers, that save themselves; and file systems alone.

mod support;

use std::path::Path;

use podsnap_engine::Store;
use serde_json::{Value, json};
use support::{Node, wait_until};

fn options(node: &Node, id: &str) -> Value {
    json!({ "store": node.text("store"), "object_prefix": format!("{id}/") })
}

/// Counts in memory, in the root file system and in a tmpfs, and stops when they disagree.
const COUNT_EVERYWHERE: &str = r#"
import os, time
count = 0
files = ["/count-in-root", "/dev/shm/count"]
while True:
    if count > 0:
        found = [open(file).read() for file in files]
        if found != [str(count)] * 2:
            print("lost:", count, found, flush=True)
            break
    count += 1
    for file in files:
        with open(file, "w") as f:
            f.write(str(count))
    print("count", count, flush=True)
    time.sleep(0.1)
"#;

#[test]
fn what_changed_in_root_and_tmpfs_comes_back() {
    let Some(node) = Node::new() else {
        return;
    };
    let bundle = node.bundle("bundle", COUNT_EVERYWHERE, &json!({}));
    let image = node.image("image", &options(&node, "web-1"));
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &[]);
    pod.wait_for_end();
    let args = ["restore", "--image-path", image.to_str().unwrap()];
    for id in ["second", "third"] {
        let mut pod = node.start_bundle(id, &bundle, &args);
        pod.assert_resumed_after(reached);
    }
}

/// What lets a pod save itself into an image path and go on.
fn saves_itself(image: &Path) -> Value {
    json!({
        "dev.gvisor.internal.checkpoint.enable": "true",
        "dev.gvisor.internal.checkpoint.path": image,
        "dev.gvisor.internal.checkpoint.resume": "true",
        "dev.gvisor.internal.checkpoint.compression": "none",
    })
}

/// Saves itself once.
const SAVE_YOURSELF: &str = r#"
import time
count = 0
while True:
    count += 1
    print("count", count, flush=True)
    if count == 5:
        with open("/proc/gvisor/checkpoint", "r+") as f:
            f.write("1")
            f.flush()
            print("said", f.read().strip(), flush=True)
    time.sleep(0.1)
"#;

#[test]
fn a_pod_that_saves_itself_is_told_which_one_it_is() {
    let Some(node) = Node::new() else {
        return;
    };
    let image = node.image("image", &options(&node, "web-1"));
    let bundle = node.bundle("bundle", SAVE_YOURSELF, &saves_itself(&image));
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(8);
    let printed = pod.printed();
    assert!(
        printed.contains("count 5\nsaid resume\ncount 6\n"),
        "{printed}"
    );
    drop(pod);
    let args = ["restore", "--image-path", image.to_str().unwrap()];
    for id in ["second", "third"] {
        let mut pod = node.start_bundle(id, &bundle, &args);
        pod.wait_for_count(8);
        let printed = pod.printed();
        assert!(printed.starts_with("said restore\ncount 6\n"), "{printed}");
    }
}

#[test]
fn a_pod_whose_save_cannot_begin_is_told_and_goes_on() {
    let Some(node) = Node::new() else {
        return;
    };
    // One path is a file where the store should be; the other has no key.
    std::fs::write(node.path("store"), "no directory").unwrap();
    let mut no_key = options(&node, "web-1");
    no_key["key_file"] = node.text("missing").into();
    for (pod, mut options) in [("first", options(&node, "web-1")), ("second", no_key)] {
        options["tell_pod"] = true.into();
        let image = node.image(&format!("image-of-{pod}"), &options);
        let bundle = node.bundle(pod, SAVE_YOURSELF, &saves_itself(&image));
        let mut pod = node.start_bundle(pod, &bundle, &["run"]);
        pod.wait_for_count(8);
        let printed = pod.printed();
        assert!(
            printed.contains("count 5\nsaid error\ncount 6\n"),
            "{printed}"
        );
    }
    let log = node.log();
    for why in ["cannot be saved", "missing"] {
        assert!(log.contains(why), "{why}: {log}");
    }
}

const COUNT: &str = r#"
import time
count = 0
while True:
    count += 1
    print("count", count, flush=True)
    time.sleep(0.1)
"#;

#[test]
fn a_pod_of_several_containers_comes_back_whole() {
    let Some(node) = Node::new() else {
        return;
    };
    let root = |name: &str| {
        let annotations = json!({
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.container-name": "pause",
        });
        node.bundle(name, COUNT, &annotations)
    };
    let other = |name: &str, sandbox: &str| {
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "web",
            "io.kubernetes.cri.sandbox-id": sandbox,
        });
        node.bundle(name, COUNT_EVERYWHERE, &annotations)
    };
    let image = node.image("image", &options(&node, "web-1"));
    let (bundle, beside) = (root("bundle"), other("beside", "first"));
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(2);
    let mut second = node.start_bundle("web-of-first", &beside, &["run"]);
    second.wait_for_count(3);
    let reached = [pod.count(), second.count()];
    pod.checkpoint_ok(&image, &[]);
    pod.wait_for_end();
    drop(second);
    drop(pod);
    let args = ["restore", "--image-path", image.to_str().unwrap()];
    // The same programs, in a new sandbox.
    let beside = node.path("beside/config.json");
    let config = std::fs::read_to_string(&beside).unwrap();
    std::fs::write(&beside, config.replace("\"first\"", "\"again\"")).unwrap();
    let mut pod = node.start_bundle("again", &bundle, &args);
    wait_until("the sandbox", || {
        node.runsc(&["state", "again"]).status.success()
    });
    let mut second = node.start_bundle("web-of-again", beside.parent().unwrap(), &args);
    pod.assert_resumed_after(reached[0]);
    second.assert_resumed_after(reached[1]);
}

/// Goes on where its file says.
const COUNT_IN_A_FILE: &str = r#"
import os, time
count = int(open("/count").read()) if os.path.exists("/count") else 0
print("begins at", count, flush=True)
while True:
    count += 1
    with open("/count.new", "w") as f:
        f.write(str(count))
    os.rename("/count.new", "/count")
    print("count", count, flush=True)
    time.sleep(0.1)
"#;

#[test]
fn file_systems_alone_come_back_too() {
    let Some(mut node) = Node::new() else {
        return;
    };
    node.keep_changes_on_disk();
    let bundle = node.bundle("bundle", COUNT_IN_A_FILE, &json!({}));
    let image = node.image("image", &options(&node, "files-1"));
    let text = image.to_str().unwrap().to_owned();
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    node.runsc_ok(&[
        "fscheckpoint",
        "-leave-running",
        "-image-path",
        &text,
        "first",
    ]);
    pod.wait_for_count(pod.count() + 2);
    drop(pod);
    let store = Store::open(&node.text("store")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let snapshot = runtime
        .block_on(store.snapshot(&"files-1".parse().unwrap()))
        .unwrap();
    let mut titles: Vec<_> = snapshot.sections().iter().map(|s| s.title()).collect();
    titles.sort();
    let expected = [
        "memory",
        "memory:pages_meta",
        "other:fscheckpoint",
        "other:multitar",
    ];
    assert_eq!(titles, expected);
    let args = ["run", "-fs-restore-image-path", &text];
    let mut pod = node.start_bundle("second", &bundle, &args);
    pod.wait_for_count(reached);
    let printed = pod.printed();
    let begins: u64 = printed
        .lines()
        .find_map(|line| line.strip_prefix("begins at ")?.parse().ok())
        .unwrap();
    assert!(begins >= reached, "{printed}");
}
