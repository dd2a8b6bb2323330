//! An unpatched runsc checkpoints through our gofer and restores through it.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
};

use podsnap_engine::{
    CancellationToken, ErrorKind, OpenOptions, Progress, Snapshot, Store, VerifyOptions,
};
use podsnap_gcs_server::{AGENT_TOKEN, Config, GcsServer, OWNER_TOKEN};
use serde_json::{Value, json};
use support::{Node, wait_until};

const BUCKET: &str = "bucket";

/// A bucket in which an agent may write below `tenant/`, whose names may be changed as often as one likes.
fn bucket() -> GcsServer {
    let mut config = Config::tenant(BUCKET, "tenant/");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    GcsServer::start(config).expect("a server on loopback")
}

/// The image path of the checkpoint `web-1` in a local store.
fn local_image(node: &Node) -> PathBuf {
    let options = json!({ "store": node.text("store"), "object_prefix": "web-1/" });
    node.image("image", &options)
}

/// Options as they are for Google's gofer.
fn in_bucket(snapshot: &str) -> Value {
    json!({
        "token": { "access_token": AGENT_TOKEN, "token_type": "Bearer" },
        "bucket": BUCKET,
        "object_prefix": format!("tenant/store/{snapshot}/"),
        "parallel_composite_upload": "force",
    })
}

fn bucket_store(server: &GcsServer) -> Store {
    let mut options = OpenOptions::default();
    options.gcs.endpoint = Some(server.url());
    options.gcs.bearer_token = Some(OWNER_TOKEN.to_owned());
    Store::open_with("gs://bucket/tenant/store", &options, None).unwrap()
}

fn open(store: &Store, id: &str) -> podsnap_engine::Result<Snapshot> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(store.snapshot(&id.parse().unwrap()))
}

/// Panics unless the snapshot is there, whole, and has what `podsnap save` would have made of an image directory.
#[track_caller]
fn assert_checkpoint(store: &Store, id: &str) {
    let snapshot = open(store, id).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let report = runtime.block_on(snapshot.verify(store, &VerifyOptions::default()));
    assert!(report.unwrap().is_sound());
    let mut titles: Vec<_> = snapshot.sections().iter().map(|s| s.title()).collect();
    titles.sort();
    assert_eq!(titles, ["kernel", "memory", "memory:pages_meta"]);
    assert_eq!(snapshot.metadata().gvisor["compression"], "none");
    assert!(snapshot.metadata().gvisor.contains_key("runsc_version"));
}

/// Restores the pod in the ways that runsc has.
#[track_caller]
fn assert_restores(node: &Node, image: &Path, reached: u64) {
    let image = image.to_str().unwrap();
    for (id, flags) in [("again", &[][..]), ("background", &["--background"])] {
        let args = [&["restore", "--image-path", image], flags].concat();
        let mut pod = node.start(id, &args);
        pod.assert_resumed_after(reached);
    }
}

#[test]
fn a_pod_goes_on_from_a_local_store() {
    let Some(node) = Node::new() else {
        return;
    };
    let image = local_image(&node);
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &[]);
    assert!(pod.wait_for_end(), "{}", pod.said());
    assert_eq!(fs::read_dir(&image).unwrap().count(), 1, "only the options");
    let log = node.log();
    assert!(log.contains("the checkpoint is committed"), "{log}");
    assert_checkpoint(&Store::open(&node.text("store")).unwrap(), "web-1");
    assert_restores(&node, &image, reached);
}

#[test]
fn a_pod_is_saved_again_and_again_in_a_bucket_and_goes_on() {
    let Some(mut node) = Node::new() else {
        return;
    };
    let server = bucket();
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    let image = |id| {
        let mut options = in_bucket(id);
        options["group"] = json!("web");
        node.image(id, &options)
    };
    let (first, second) = (image("web-1"), image("web-2"));
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&first, &["-leave-running"]);
    pod.wait_for_count(pod.count() + 3);
    let reached = pod.count();
    pod.checkpoint_ok(&second, &["-leave-running"]);
    pod.wait_for_count(reached + 3);
    drop(pod);
    let store = bucket_store(&server);
    assert_checkpoint(&store, "web-1");
    assert_checkpoint(&store, "web-2");
    let snapshot = open(&store, "web-2").unwrap();
    assert_eq!(snapshot.metadata().bases, ["web-1"]);
    // The second one borrows nearly everything.
    let stored = |id: &str| {
        let of_snapshot = format!("tenant/store/{id}/");
        let objects = server.objects(BUCKET).into_iter();
        let objects = objects.filter(|o| o.name.starts_with(&of_snapshot));
        objects.map(|o| o.size).sum::<u64>()
    };
    let (once, again) = (stored("web-1"), stored("web-2"));
    assert!(again * 3 < once, "{again} bytes after {once}");
    assert_restores(&node, &second, reached);
}

#[test]
fn a_checkpoint_that_gvisor_compresses_is_one_file() {
    let Some(node) = Node::new() else {
        return;
    };
    let image = local_image(&node);
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &["-compression=flate-best-speed"]);
    pod.wait_for_end();
    let snapshot = open(&Store::open(&node.text("store")).unwrap(), "web-1").unwrap();
    assert_eq!(snapshot.sections().len(), 1);
    let compression = &snapshot.metadata().gvisor["compression"];
    assert_eq!(compression, "flate-best-speed");
    let image = image.to_str().unwrap();
    let mut pod = node.start("again", &["restore", "--image-path", image]);
    pod.assert_resumed_after(reached);
}

#[test]
fn what_cannot_be_saved_is_said_and_the_pod_goes_on() {
    let Some(node) = Node::new() else {
        return;
    };
    let image = local_image(&node);
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&image, &["-leave-running"]);
    let digest = open(&Store::open(&node.text("store")).unwrap(), "web-1").unwrap();
    // The same again.
    let output = pod.checkpoint(&image, &["-leave-running"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &pod.said();
    assert!(said.contains("web-1 exists already"), "{said}");
    let found = open(&Store::open(&node.text("store")).unwrap(), "web-1").unwrap();
    assert_eq!(found.digest(), digest.digest());
    // Options that make no sense.
    let nonsense = json!({ "store": node.text("store"), "object_prefix": "web-2" });
    let nonsense = node.image("nonsense", &nonsense);
    let output = pod.checkpoint(&nonsense, &["-leave-running"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &pod.said();
    assert!(said.contains("failed to open state file"), "{said}");
    assert!(said.contains("slash at the end"), "{said}");
    let before = pod.count();
    pod.wait_for_count(before + 3);
}

#[test]
fn what_cannot_be_restored_is_said() {
    let Some(node) = Node::new() else {
        return;
    };
    let options =
        |id: &str| json!({ "store": node.text("store"), "object_prefix": format!("{id}/") });
    let image = node.image("image", &options("web-1"));
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&image, &["-leave-running"]);
    drop(pod);
    // One that is not there.
    let absent = node.image("absent", &options("web-2"));
    let absent = absent.to_str().unwrap();
    let mut pod = node.start("second", &["restore", "--image-path", absent]);
    assert!(!pod.wait_for_end());
    let said = pod.said();
    assert!(said.contains("there is no snapshot web-2 in"), "{said}");
    drop(pod);
    // One whose memory is damaged.
    let pack = fs::read_dir(node.path("store/web-1")).unwrap();
    let mut pack = pack.map(|entry| entry.unwrap().path());
    let pack = pack.find(|path| path.to_str().unwrap().contains("pack-"));
    let pack = pack.unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    // Wherever the sandbox looks.
    for at in (1000..bytes.len() - 10_000).step_by(20_000) {
        bytes[at] ^= 1;
    }
    fs::write(&pack, bytes).unwrap();
    let image = image.to_str().unwrap();
    let mut pod = node.start("third", &["restore", "--image-path", image]);
    assert!(!pod.wait_for_end(), "{}", pod.printed());
    let said = pod.said();
    assert!(said.contains("is damaged"), "{said}");
    assert_eq!(pod.printed(), "");
}

#[test]
fn a_gofer_that_is_killed_in_a_save_leaves_nothing_to_see() {
    let Some(mut node) = Node::new() else {
        return;
    };
    let server = bucket();
    server.configure(|config| config.link.total_bytes_per_s = 300_000);
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    node.set_env("PODSNAP_LOG", "checkpointgofer=debug");
    let image = node.image("image", &in_bucket("web-1"));
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Not before all three files are open: this runsc does not survive that its third file cannot be opened.
            wait_until("the memory", || {
                node.log().matches("RegisterClientFile").count() >= 3
            });
            node.kill_gofer();
        });
        pod.checkpoint(&image, &["-leave-running"])
    });
    assert!(!output.status.success());
    let before = pod.count();
    pod.wait_for_count(before + 3);
    let store = bucket_store(&server);
    assert_eq!(
        open(&store, "web-1").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(
        server
            .object(BUCKET, "tenant/store/web-1/manifest")
            .is_none()
    );
    // The next save under the same id is whole.
    server.configure(|config| config.link.total_bytes_per_s = 0);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &["-leave-running"]);
    drop(pod);
    assert_checkpoint(&store, "web-1");
    assert_restores(&node, &image, reached);
}

#[test]
fn a_gofer_that_is_killed_in_a_restore_ends_the_sandbox() {
    let Some(mut node) = Node::new() else {
        return;
    };
    let server = bucket();
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    let image = node.image("image", &in_bucket("web-1"));
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&image, &[]);
    pod.wait_for_end();
    server.clear_log();
    server.configure(|config| config.link.total_bytes_per_s = 100_000);
    let image = image.to_str().unwrap();
    let mut pod = node.start("second", &["restore", "--image-path", image]);
    wait_until("a read of a pack", || {
        let log = server.log();
        log.entries
            .iter()
            .any(|e| format!("{e:?}").contains("pack-"))
    });
    node.kill_gofer();
    assert!(!pod.wait_for_end());
    assert_eq!(pod.printed(), "");
    // All that is left to see it is the sandbox, which has lost what it was restored from.
    let said = pod.said();
    assert!(said.contains("restoring container \"second\""), "{said}");
}

#[test]
fn a_pod_with_a_model_costs_little_the_second_time_and_goes_on_while_it_comes_back() {
    let (Some(node), Some(bundle)) = (Node::new(), support::bundle("model")) else {
        return;
    };
    let image = |id: &str| {
        let options = json!({
            "store": node.text("store"), "object_prefix": format!("{id}/"), "group": "web",
        });
        node.image(id, &options)
    };
    let (first, second) = (image("web-1"), image("web-2"));
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&first, &["-leave-running"]);
    pod.wait_for_count(pod.count() + 1);
    let reached = pod.count();
    pod.checkpoint_ok(&second, &[]);
    pod.wait_for_end();
    let store = Store::open(&node.text("store")).unwrap();
    assert_checkpoint(&store, "web-2");
    let stored = |id: &str| {
        let files = fs::read_dir(node.path("store").join(id)).unwrap();
        let lengths = files.map(|file| file.unwrap().metadata().unwrap().len());
        lengths.sum::<u64>()
    };
    let (once, again) = (stored("web-1"), stored("web-2"));
    assert!(again * 50 < once, "{again} bytes after {once}");
    let image = second.to_str().unwrap();
    let args = ["restore", "--image-path", image, "--background"];
    let mut pod = node.start_bundle("again", &bundle, &args);
    pod.assert_resumed_after(reached);
}

#[test]
fn a_pod_moves_from_the_gofer_of_google_to_ours_and_back() {
    let Some(mut node) = Node::new() else {
        return;
    };
    let server = bucket();
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    let image = node.image("image", &in_bucket("web-1"));
    node.use_gofer_of_google(true);
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &[]);
    pod.wait_for_end();
    drop(pod);
    assert!(
        server
            .object(BUCKET, "tenant/store/web-1/pages.img")
            .is_some()
    );
    assert!(!node.log().contains("checkpointgofer:"), "{}", node.log());
    // What it left is restored as it is.
    node.use_gofer_of_google(false);
    assert_restores(&node, &image, reached);
    assert!(node.log().contains("restoring raw files"), "{}", node.log());
    // A checkpoint of ours, written as raw files, is restored by the other.
    let ours = node.image("ours", &in_bucket("web-2"));
    let args = ["restore", "--image-path", image.to_str().unwrap()];
    let mut pod = node.start("second", &args);
    pod.assert_resumed_after(reached);
    let reached = pod.count();
    pod.checkpoint_ok(&ours, &[]);
    drop(pod);
    let store = bucket_store(&server);
    let snapshot = open(&store, "web-2").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (progress, cancel) = (Progress::default(), CancellationToken::new());
    let id = "web-3".parse().unwrap();
    let exported = snapshot.export_raw(&store, &id, &progress, &cancel);
    runtime.block_on(exported).unwrap();
    node.use_gofer_of_google(true);
    let exported = node.image("exported", &in_bucket("web-3"));
    let before = node.log().len();
    let args = ["restore", "--image-path", exported.to_str().unwrap()];
    let mut pod = node.start("third", &args);
    pod.assert_resumed_after(reached);
    assert!(
        !node.log()[before..].contains("restoring"),
        "{}",
        node.log()
    );
}

#[test]
fn a_pod_goes_on_when_it_is_captured_and_is_committed_behind_it() {
    let Some(mut node) = Node::new() else {
        return;
    };
    let server = bucket();
    server.configure(|config| config.link.total_bytes_per_s = 400_000);
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    let captured = |id: &str| {
        let mut options = in_bucket(id);
        options["acknowledge"] = json!("captured");
        // Most of it goes through the disk.
        options["spill"] = json!(node.text("spill"));
        options["spill_after_bytes"] = json!(1 << 20);
        options
    };
    let image = node.image("image", &captured("web-1"));
    let mut pod = node.start("first", &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &[]);
    // The sandbox has ended, and the snapshot is still on its way.
    pod.wait_for_end();
    drop(pod);
    assert!(
        server
            .object(BUCKET, "tenant/store/web-1/manifest")
            .is_none()
    );
    assert_eq!(node.gofers().len(), 1);
    let store = bucket_store(&server);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let id = "web-1".parse().unwrap();
    let cancel = CancellationToken::new();
    runtime.block_on(store.wait(&id, &cancel)).unwrap();
    server.configure(|config| config.link.total_bytes_per_s = 0);
    assert_checkpoint(&store, "web-1");
    wait_until("the end of the gofer", || node.gofers().is_empty());
    assert_eq!(fs::read_dir(node.path("spill")).unwrap().count(), 0);
    assert_restores(&node, &image, reached);
    // Killed behind the checkpoint: nothing is visible, who waits is told, and the next save is whole.
    server.configure(|config| config.link.total_bytes_per_s = 400_000);
    let image = node.image("again-1", &captured("web-2"));
    let mut pod = node.start("second", &["run"]);
    pod.wait_for_count(3);
    pod.checkpoint_ok(&image, &["-leave-running"]);
    let reached = pod.count();
    node.kill_gofer();
    wait_until("the end of the gofer", || node.gofers().is_empty());
    let id = "web-2".parse().unwrap();
    let told = runtime.block_on(store.wait(&id, &cancel)).unwrap_err();
    assert_eq!(told.kind(), ErrorKind::NotFound, "{told}");
    server.configure(|config| config.link.total_bytes_per_s = 0);
    pod.checkpoint_ok(&image, &["-leave-running"]);
    runtime.block_on(store.wait(&id, &cancel)).unwrap();
    assert_checkpoint(&store, "web-2");
    pod.wait_for_count(reached + 3);
}

#[test]
fn what_a_pod_waits_for_is_learned_and_what_the_node_has_is_not_fetched_again() {
    let (Some(mut node), Some(bundle)) = (Node::new(), support::bundle("model")) else {
        return;
    };
    let server = bucket();
    node.set_env("STORAGE_EMULATOR_HOST", &server.url());
    let mut options = in_bucket("web-1");
    options["cache"] = json!(node.text("cache"));
    let image = node.image("image", &options);
    let mut pod = node.start_bundle("first", &bundle, &["run"]);
    pod.wait_for_count(3);
    let reached = pod.count();
    pod.checkpoint_ok(&image, &[]);
    pod.wait_for_end();
    drop(pod);
    let learned = || {
        server
            .object(BUCKET, "tenant/store/web-1/working-set")
            .is_some()
    };
    let reads_of_packs = || {
        let entries = server.log().entries;
        let packs = entries
            .iter()
            .filter(|e| format!("{e:?}").contains("pack-"));
        packs.count()
    };
    let image = image.to_str().unwrap();
    let args = ["restore", "--image-path", image, "--background"];
    // So slow that the pod has to wait for pages.
    server.configure(|config| config.link.total_bytes_per_s = 40_000_000);
    server.clear_log();
    let mut pod = node.start_bundle("second", &bundle, &args);
    pod.assert_resumed_after(reached);
    wait_until("the end of the gofer", || node.gofers().is_empty());
    assert!(reads_of_packs() > 0);
    assert!(learned(), "{}", node.log());
    drop(pod);
    server.clear_log();
    let mut pod = node.start_bundle("third", &bundle, &args);
    pod.assert_resumed_after(reached);
    wait_until("the end of the gofer", || node.gofers().is_empty());
    assert_eq!(reads_of_packs(), 0);
}
