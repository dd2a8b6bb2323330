//! The built controller on a bucket: what it says, what it does, and how it ends.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use podsnap::{NAMESPACE_LABEL, OpenOptions, POLICY_LABEL, SaveOptions, Store};
use podsnap_gcs_server::{
    Config, Fault, FaultKind, GcsServer, Grant, OWNER, OWNER_TOKEN, Permission,
};
use tempfile::TempDir;

const BUCKET: &str = "snapshots";

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bucket, a directory of policies, and what the controller writes.
struct Cluster {
    server: GcsServer,
    dir: TempDir,
}

impl Cluster {
    /// With a storage configuration and a policy for each team.
    fn new(teams: &[&str]) -> Self {
        let mut config = Config::closed(BUCKET);
        config.rules.mutations_per_second = 0.0;
        let cluster = Self {
            server: GcsServer::start(config).expect("a server on loopback"),
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(cluster.policies()).unwrap();
        fs::write(cluster.dir.path().join("token"), OWNER_TOKEN).unwrap();
        for team in teams {
            cluster.apply(&format!("{team}-storage"), &storage(team));
            cluster.apply(&format!("{team}-policy"), &policy(team, team));
        }
        cluster
    }

    fn policies(&self) -> PathBuf {
        self.dir.path().join("policies")
    }

    /// As a file should be written that somebody reads at any time.
    fn apply(&self, name: &str, text: &str) {
        let written = self.dir.path().join("written");
        fs::write(&written, text).unwrap();
        fs::rename(&written, self.policies().join(format!("{name}.yaml"))).unwrap();
    }

    /// Saves a snapshot for the team's policy.
    fn save(&self, team: &str, id: &str) {
        let mut options = OpenOptions::default();
        options.gcs.bearer_token = Some(OWNER_TOKEN.to_owned());
        options.gcs.endpoint = Some(self.server.url());
        let url = format!("gs://{BUCKET}/{team}");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let store = Store::open_with(&url, &options, None).unwrap();
            let id = id.parse().unwrap();
            let labels = [(POLICY_LABEL, "p"), (NAMESPACE_LABEL, team)];
            let options = SaveOptions {
                group: Some("web".to_owned()),
                labels: labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                ..SaveOptions::default()
            };
            let writer = store.save(&id, options).await.unwrap();
            writer.finish().await.unwrap();
        });
    }

    fn has(&self, object: &str) -> bool {
        self.server.object(BUCKET, object).is_some()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podsnap-example-controller"));
        command
            .arg("--policies")
            .arg(self.policies())
            .arg("--token")
            .arg(self.dir.path().join("token"))
            .args(args)
            .env_clear()
            .env("STORAGE_EMULATOR_HOST", self.server.url())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// One round: whether all went well, what was done, and what was wrong.
    fn once(&self, args: &[&str]) -> (bool, String, String) {
        ended(
            self.command(&[args, &["--once"]].concat())
                .output()
                .unwrap(),
        )
    }

    /// Rounds until somebody ends it, so many seconds apart.
    fn start(&self, every_s: &str) -> Running {
        let [did, said] = ["did", "said"].map(|name| self.dir.path().join(name));
        let child = self
            .command(&["--every-s", every_s])
            .stdout(fs::File::create(&did).unwrap())
            .stderr(fs::File::create(&said).unwrap())
            .spawn()
            .unwrap();
        Running { child, did, said }
    }
}

fn ended(output: Output) -> (bool, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

struct Running {
    child: Child,
    /// What it prints on standard output, and on standard error.
    did: PathBuf,
    said: PathBuf,
}

impl Running {
    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn does(&self, words: &str) {
        let did = || fs::read_to_string(&self.did).unwrap();
        wait_until(&format!("{words:?} is done"), || did().contains(words));
    }

    fn says(&self, words: &str) {
        wait_until(&format!("{words:?} is said"), || {
            self.said().contains(words)
        });
    }

    /// How it ends by a signal.
    fn end(&mut self, signal: &str) -> bool {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
        let mut status = None;
        wait_until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.is_some_and(|status| status.success())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn storage(team: &str) -> String {
    format!(
        "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotStorageConfig\nmetadata: {{name: {team}}}\nspec: {{snapshotStorageConfig: {{gcs: {{bucket: {BUCKET}, path: {team}}}}}}}\n"
    )
}

fn policy(team: &str, storage: &str) -> String {
    format!(
        "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotPolicy\nmetadata: {{name: p, namespace: {team}}}\nspec:\n  storageConfigName: {storage}\n  selector: {{}}\n  triggerConfig: {{type: manual}}\n"
    )
}

#[test]
fn a_dry_run_says_what_would_be_deleted() {
    let cluster = Cluster::new(&["team-a", "team-b"]);
    cluster.save("team-b", "web-1");
    let (good, done, wrong) = cluster.once(&["--dry-run", "--delete", "web-1"]);
    assert!(good, "{wrong}");
    assert_eq!(wrong, "");
    assert!(
        done.contains("gs://snapshots/team-b: web-1 would be deleted\n"),
        "{done}"
    );
    assert!(cluster.has("team-b/web-1/manifest"));
    let (good, done, wrong) = cluster.once(&["--delete", "web-1"]);
    assert!(good, "{wrong}");
    assert!(done.contains("team-b: web-1 deleted, "), "{done}");
    assert!(!cluster.has("team-b/web-1/manifest"));
    for dry in [&["--dry-run"][..], &[]] {
        let (good, _, wrong) = cluster.once(&[dry, &["--delete", "web-1"]].concat());
        assert!(!good);
        assert_eq!(
            wrong,
            "controller: there is no snapshot web-1 in any of the policies' buckets\n"
        );
    }
}

#[test]
fn that_a_snapshot_is_nowhere_is_said_only_if_every_store_was_asked() {
    let cluster = Cluster::new(&["team-a", "team-b"]);
    cluster.save("team-a", "web-1");
    cluster.save("team-b", "web-2");
    cluster.server.configure(|config| {
        config.access.principals.remove(OWNER);
        config.grant(OWNER, Grant::new(BUCKET, "team-a/", &Permission::ALL));
    });
    for dry in [&["--dry-run"][..], &[]] {
        for (id, found) in [("web-2", false), ("web-1", true)] {
            let (good, done, wrong) = cluster.once(&[dry, &["--delete", id]].concat());
            assert!(!good);
            assert!(
                wrong.contains("controller: gs://snapshots/team-b: "),
                "{wrong}"
            );
            assert!(!wrong.contains("there is no snapshot"), "{wrong}");
            assert_eq!(done.contains("web-1 "), found, "{done}");
            // And team-a gets what is its due.
            assert!(done.contains("gs://snapshots/team-a: 0 objects"), "{done}");
        }
    }
    assert!(cluster.has("team-b/web-2/manifest"));
    // Not even opened.
    fs::remove_file(cluster.dir.path().join("token")).unwrap();
    let (good, _, wrong) = cluster.once(&["--delete", "web-1"]);
    assert!(!good && !wrong.contains("there is no snapshot"), "{wrong}");
}

#[test]
fn a_broken_file_is_said_once_and_waited_for() {
    let cluster = Cluster::new(&["team-a"]);
    cluster.apply("team-a-policy", "kind: [");
    let (good, done, wrong) = cluster.once(&[]);
    assert!(!good);
    assert_eq!(done, "");
    assert!(wrong.contains("team-a-policy.yaml:1: no YAML"), "{wrong}");
    let mut running = cluster.start("1");
    running.says("team-a-policy.yaml:1: no YAML");
    let requests = cluster.server.log().entries.len();
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(running.said().lines().count(), 1, "{}", running.said());
    assert_eq!(cluster.server.log().entries.len(), requests);
    // Broken in another way, mended, and broken as at first.
    cluster.apply("team-a-policy", "");
    running.says("it holds no document");
    cluster.apply("team-a-policy", &policy("team-a", "team-a"));
    running.does("gs://snapshots/team-a: 0 objects of garbage deleted");
    cluster.apply("team-a-policy", "kind: [");
    wait_until("it is said again", || running.said().lines().count() == 3);
    assert!(running.end("TERM"));
}

#[test]
fn a_policy_without_its_storage_is_reported() {
    let cluster = Cluster::new(&["team-a"]);
    cluster.apply("lost", &policy("team-c", "absent"));
    let (good, done, wrong) = cluster.once(&[]);
    assert!(!good);
    assert!(
        wrong.contains(
            "lost.yaml:5: spec.storageConfigName: there is no PodSnapshotStorageConfig \"absent\""
        ),
        "{wrong}"
    );
    assert!(wrong.contains("policy team-c/p"), "{wrong}");
    assert!(done.contains("gs://snapshots/team-a: 0 objects"), "{done}");
}

#[test]
fn a_collection_that_deletes_nothing_did_not_go_well() {
    let cluster = Cluster::new(&["team-a"]);
    cluster.save("team-a", "web-1");
    assert!(cluster.once(&[]).0);
    cluster
        .server
        .put(BUCKET, "team-a/web-1/manifest", b"rubbish");
    for args in [&["--dry-run"][..], &[]] {
        let (good, _, wrong) = cluster.once(args);
        assert!(!good);
        assert!(
            wrong.contains("controller: gs://snapshots/team-a: nothing is deleted: "),
            "{wrong}"
        );
        assert!(wrong.contains("web-1"), "{wrong}");
    }
}

#[test]
fn a_signal_ends_it_in_the_middle_of_a_round() {
    let cluster = Cluster::new(&["team-a"]);
    let stall = FaultKind::Stall { ms: 600_000 };
    cluster.server.add_fault(Fault::new(stall));
    for signal in ["TERM", "INT"] {
        cluster.server.clear_log();
        let mut running = cluster.start("1000");
        wait_until("the bucket is asked", || {
            !cluster.server.log().entries.is_empty()
        });
        assert!(running.end(signal), "{}", running.said());
    }
    // Between two rounds as well.
    cluster.server.clear_faults();
    let mut running = cluster.start("1000");
    running.does("objects of garbage deleted");
    assert!(running.end("INT"));
    // Who wants one round did not get it.
    cluster
        .server
        .add_fault(Fault::new(FaultKind::Stall { ms: 600_000 }));
    cluster.server.clear_log();
    let child = cluster.command(&["--once"]).spawn().unwrap();
    let (did, said) = (running.did.clone(), running.said.clone());
    let mut once = Running { child, did, said };
    wait_until("the bucket is asked", || {
        !cluster.server.log().entries.is_empty()
    });
    assert!(!once.end("TERM"));
}

#[test]
fn what_a_policy_does_is_said_with_its_full_name() {
    let cluster = Cluster::new(&["team-a"]);
    cluster.save("team-a", "web-1");
    cluster.save("team-a", "web-2");
    let rules = "  snapshotGroupingRules: {groupByLabelValue: {labels: [app], groupRetentionPolicy: {maxSnapshotCountPerGroup: 1}}}\n";
    cluster.apply("team-a-policy", &(policy("team-a", "team-a") + rules));
    let (good, done, wrong) = cluster.once(&[]);
    assert!(good, "{wrong}");
    assert!(
        done.contains("gs://snapshots/team-a: policy team-a/p: web-1 goes: its group has 2"),
        "{done}"
    );
    assert!(!cluster.has("team-a/web-1/manifest"));
    assert!(cluster.has("team-a/web-2/manifest"));
}

#[test]
fn there_is_time_between_rounds() {
    let cluster = Cluster::new(&[]);
    let output = cluster.command(&["--every-s", "0"]).output().unwrap();
    let (good, _, wrong) = ended(output);
    assert!(!good && wrong.contains("--every-s"), "{wrong}");
}
