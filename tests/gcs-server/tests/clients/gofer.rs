//! The checkpoint gofer that Google wrote for gVisor, inside a real runsc.

use std::process::{Command, Stdio};

use podsnap_gcs_server::{AGENT_TOKEN, Config, Log, Operation};

use crate::programs::*;

/// Each of the files is one part, which is renamed or, for want of the right to, copied.
#[test]
fn checkpoint_of_a_small_pod() {
    if let Some(log) = checkpoint_and_restore("small") {
        assert!(
            log.count(Operation::InsertMultipart) > 0,
            "{:?}",
            log.counts()
        );
    }
}

/// Its pages are many parts, which are composed.
#[test]
fn checkpoint_of_a_pod_with_a_model() {
    if let Some(log) = checkpoint_and_restore("model") {
        assert!(log.count(Operation::Compose) > 0, "{:?}", log.counts());
    }
}

fn checkpoint_and_restore(pod: &str) -> Option<Log> {
    // With an agent's rights only, as on a node.
    let server = patient(Config::tenant(B, "tenant/"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/gofer.sh");
    let output = Command::new("bash")
        .args([script, AGENT_TOKEN, pod])
        .env("STORAGE_EMULATOR_HOST", server.url())
        .stdin(Stdio::null())
        .output()
        .expect("bash");
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) {
        skipped(said.trim());
        return None;
    }
    let log = server.log();
    assert!(output.status.success(), "{said}\n{:?}", log.entries);
    let names: Vec<_> = server.objects(B).into_iter().map(|o| o.name).collect();
    let files = ["checkpoint.img", "pages.img", "pages_meta.img"];
    for file in files {
        assert!(names.contains(&format!("tenant/snap/{file}")), "{names:?}");
    }
    assert_eq!(names.len(), files.len(), "parts are left: {names:?}");
    assert!(
        log.count(Operation::GetMedia) + log.count(Operation::XmlGet) > 0,
        "{:?}",
        log.counts()
    );
    println!("{} {:?}", said.trim(), log.counts());
    Some(log)
}
