//! `podsnap retain`: what goes is shown, then goes.

mod support;

use serde_json::json;
use support::{noise, tool::Tool};

fn three() -> Tool {
    let tool = Tool::new();
    tool.file("a", &noise(1, 100_000));
    for id in ["one", "two", "three"] {
        let labels = ["--label", "policy=example", "--label", "namespace=team-a"];
        tool.save(id, &[&["memory=a", "--group", "web"][..], &labels].concat());
    }
    tool
}

#[test]
fn a_plan_is_shown_and_carried_out() {
    let tool = three();
    let args = ["retain", "--max-per-group", "2"];
    let dry = tool.run(&[&args[..], &["--dry-run"]].concat()).ok();
    let line = |text: &str, id: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{id} ")));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let one = line(dry.text(), "one");
    assert!(
        one.contains("goes") && one.contains("its group has 3, more than 2"),
        "{one}"
    );
    assert!(line(dry.text(), "three").contains("it is the newest of its group"));
    assert_eq!(tool.listed(), ["three", "two", "one"]);
    let done = tool.run(&args).ok();
    assert!(
        done.text().ends_with("1 snapshot removed\n"),
        "{}",
        done.text()
    );
    // Its data waits for a collector, and is shown to do so.
    let listed = tool.json(&["ls"]);
    assert_eq!(listed[2]["status"], "deleting", "{listed}");
    tool.assert_sound("two");
    tool.assert_sound("three");
    let again = tool.json(&args);
    assert_eq!(again[0]["plan"]["remove"], json!([]));
    assert_eq!(again[0]["done"]["removed"], json!([]));
    tool.run(&["restore", "one", "out"]).ends_with(3);
}

const POLICY: &str = "apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata: {name: example, namespace: team-a}
spec:
  storageConfigName: s
  selector: {matchLabels: {app: web}}
  triggerConfig: {type: workload}
  snapshotGroupingRules:
    groupByLabelValue:
      labels: []
      groupRetentionPolicy: {maxSnapshotCountPerGroup: 1}
";

#[test]
fn rules_come_from_policies_too() {
    let tool = three();
    tool.file("policy.yaml", POLICY.as_bytes());
    tool.file(
        "elsewhere.yaml",
        POLICY.replace("team-a", "team-b").as_bytes(),
    );
    let plan = tool.json(&["retain", "--policies", "elsewhere.yaml", "--dry-run"]);
    assert_eq!(
        plan[0]["plan"]["remove"],
        json!([]),
        "they are of another namespace"
    );
    let plan = tool.json(&["retain", "--policies", "policy.yaml"]);
    assert_eq!(plan[0]["policy"], "example");
    assert_eq!(plan[0]["done"]["removed"], json!(["one", "two"]));
    let text = tool.run(&["ls"]).ok();
    let first: Vec<_> = text
        .text()
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(first[..3], ["three", "Available", "example"]);

    let bad = POLICY.replace("type: workload", "type: cron");
    tool.file("bad.yaml", bad.as_bytes());
    let words = ["bad.yaml:7", "spec.triggerConfig.type", "workload, manual"];
    tool.run(&["retain", "--policies", "bad.yaml"])
        .ends_with(2)
        .says(&words);
    tool.run(&["retain"])
        .ends_with(2)
        .says(&["no rule", "--max-per-group"]);
    tool.run(&["retain", "--max-per-group", "0"]).ends_with(2);
}

#[test]
fn what_others_left_in_the_path_is_not_touched() {
    let tool = three();
    tool.file("store/one/notes", b"mine");
    tool.file("store/two/used", b"edited");
    let done = tool.json(&["retain", "--max-per-group", "1"]);
    assert_eq!(done[0]["done"]["removed"], json!(["one"]), "{done}");
    let why = done[0]["done"]["retained"][0]["reason"].as_str().unwrap();
    assert!(why.contains("two/used is damaged"), "{why}");
    assert!(tool.path("store/one/notes").exists());
    // A head that makes no sense: nothing of its group goes before somebody has looked at it.
    tool.file("store/two/used", br#"{"unix_ms": 1}"#);
    tool.file("store/heads/web", b"nonsense");
    let done = tool.json(&["retain", "--max-per-group", "1"]);
    let why = done[0]["done"]["retained"][0]["reason"].as_str().unwrap();
    for words in ["heads/web is damaged", "delete the object"] {
        assert!(why.contains(words), "{why}");
    }
    let listed = tool.json(&["ls"]);
    assert_eq!(listed[0]["status"], "available", "{listed}");
    assert_eq!(listed[1]["status"], "available", "{listed}");
}
