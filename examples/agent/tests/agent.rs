//! The agent as a program that is stopped, killed and started again, with real pods.

#[path = "../../../tests/support/provisioned.rs"]
mod provisioned;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use podsnap_gcs_server::{AGENT_TOKEN, Config, GcsServer};
use provisioned::{provisioned, skipped};
use tempfile::TempDir;

const AGENT: &str = env!("CARGO_BIN_EXE_podsnap-example-agent");

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

const STORAGE: &str = "
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotStorageConfig
metadata: {name: team-a}
spec: {snapshotStorageConfig: {gcs: {bucket: bucket, path: tenant}}}
---
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata: {name: on-demand, namespace: team-a}
spec:
  storageConfigName: team-a
  selector: {matchLabels: {app: counter}}
  triggerConfig: {type: manual, postCheckpoint: resume}
";

const TRIGGER: &str = "
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotManualTrigger
metadata: {name: now, namespace: team-a}
spec: {targetPod: counter}
";

fn pod(name: &str, program: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: team-a, labels: {{app: counter}}}}
spec:
  serviceAccountName: account
  containers:
  - name: only
    image: none
    command: [\"python3\", \"-I\", \"-S\", \"-c\", {program:?}]
"
    )
}

const COUNT: &str = "
import time
for count in range(1, 100000):
    print('Count:', count, flush=True)
    time.sleep(0.1)
";

/// A node, whose agent may be killed and started again.
struct Node {
    dir: TempDir,
    server: GcsServer,
    runsc: PathBuf,
}

impl Node {
    /// `None`, having said why, where no sandbox can run.
    fn new() -> Option<Self> {
        let gofer = Path::new(AGENT).with_file_name("checkpointgofer");
        assert!(gofer.exists(), "test the whole workspace, which builds it");
        if !rustix::process::geteuid().is_root() {
            skipped("the agent: runsc needs root");
            return None;
        }
        let runsc = provisioned("bin/runsc")?;
        let dir = tempfile::tempdir().unwrap();
        for name in ["pods", "policies", "run", "gofer", "tokens/team-a"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink(gofer, dir.path().join("gofer/checkpointgofer")).unwrap();
        fs::write(dir.path().join("tokens/team-a/account"), AGENT_TOKEN).unwrap();
        let mut config = Config::tenant("bucket", "tenant/");
        config.rules.mutations_per_second = 0.0;
        config.rules.md5 = false;
        let server = GcsServer::start(config).unwrap();
        Some(Self { dir, server, runsc })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let half = self.path("half");
        fs::write(&half, text).unwrap();
        fs::rename(half, self.path(name)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.path(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', "")
    }

    fn agent(&self) -> Agent<'_> {
        let said = fs::File::create(self.path("said")).unwrap();
        let child = Command::new(AGENT)
            .args(["--tokens".as_ref(), self.path("tokens").as_os_str()])
            .args(["--pods".as_ref(), self.path("pods").as_os_str()])
            .args(["--policies".as_ref(), self.path("policies").as_os_str()])
            .args(["--run".as_ref(), self.path("run").as_os_str()])
            .args(["--gofer".as_ref(), self.path("gofer").as_os_str()])
            .args(["--runsc".as_ref(), self.runsc.as_os_str()])
            .env("STORAGE_EMULATOR_HOST", self.server.url())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .unwrap();
        Agent { child, node: self }
    }

    fn events(&self, with: &str) -> usize {
        let events = self.read("run/events.jsonl");
        events.lines().filter(|line| line.contains(with)).count()
    }

    fn sandboxes(&self) -> usize {
        let listed = Command::new(&self.runsc)
            .arg("--root")
            .arg(self.path("run/state"))
            .args(["list", "-quiet"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&listed.stdout).lines().count()
    }

    #[track_caller]
    fn wait_until(&self, what: &str, mut so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !so() {
            assert!(
                Instant::now() < deadline,
                "it never came to {what}\n{}\n{}",
                self.read("said"),
                self.read("run/events.jsonl")
            );
            thread::sleep(Duration::from_millis(50));
        }
    }
}

struct Agent<'a> {
    child: Child,
    node: &'a Node,
}

impl Agent<'_> {
    /// Ends it as Ctrl-C does.
    fn interrupt(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let node = self.node;
        node.wait_until("the agent's end", || {
            self.child.try_wait().unwrap().is_some()
        });
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // Also when a test fails: it ends its sandboxes then, unless it has ended.
        let pid = rustix::process::Pid::from_child(&self.child);
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn an_agent_that_was_killed_begins_again_and_does_nothing_twice() {
    let Some(node) = Node::new() else {
        return;
    };
    node.put("policies/storage.yaml", STORAGE);
    node.put("pods/counter.yaml", &pod("counter", COUNT));
    let log = "run/team-a_counter.log";
    let agent = node.agent();
    node.wait_until("a count", || node.read(log).contains("Count: 5\n"));
    node.put("policies/trigger.yaml", TRIGGER);
    let saved = "Successfully checkpointed the pod";
    node.wait_until("a snapshot", || node.events(saved) == 1);

    let second = node.agent();
    node.wait_until("a refusal", || {
        node.read("said").contains("another agent works there")
    });
    second.interrupt();
    agent.kill();
    assert_eq!(node.sandboxes(), 1, "nobody ended it");

    // The pod goes on from its snapshot, once, and is not saved for the old trigger.
    let agent = node.agent();
    let restored = "Successfully restored the pod";
    node.wait_until("a restore", || node.events(restored) == 1);
    assert!(node.read("said").contains("is ended"));
    assert_eq!(node.sandboxes(), 1);
    // Another trigger of the same name is a new one.
    fs::remove_file(node.path("policies/trigger.yaml")).unwrap();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(node.events(saved), 1);
    node.put("policies/trigger.yaml", TRIGGER);
    node.wait_until("a second snapshot", || node.events(saved) == 2);

    agent.interrupt();
    assert_eq!(node.sandboxes(), 0);
    let left = fs::read_dir(node.path("run/pods")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn pods_that_end_are_told_apart_and_leave_nothing() {
    let Some(node) = Node::new() else {
        return;
    };
    let agent = node.agent();
    node.put("pods/good.yaml", &pod("good", "print('done')"));
    node.put("pods/bad.yaml", &pod("bad", "import sys; sys.exit(3)"));
    // Of its account there is no token, so nothing is saved or restored with the node's own rights. It runs nevertheless.
    let other = pod("other", COUNT).replace("serviceAccountName: account", "serviceAccountName: b");
    node.put("policies/storage.yaml", STORAGE);
    node.put("pods/other.yaml", &other);
    node.wait_until("their ends", || {
        node.events("\"Completed\"") == 1 && node.events("\"Failed\"") == 1
    });
    node.wait_until("a count", || {
        node.read("run/team-a_other.log").contains("Count: 3\n")
    });
    assert_eq!(node.events("tokens/team-a/b"), 1);
    assert_eq!(node.sandboxes(), 1);
    assert_eq!(fs::read_dir(node.path("run/pods")).unwrap().count(), 1);
    agent.interrupt();
}
