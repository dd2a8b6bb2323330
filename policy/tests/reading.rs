//! The YAML of GKE's guide is read verbatim; what makes no sense is an error that says file, line and field.

use std::{
    collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, process::Command, time::Duration,
};

use podsnap_policy::{
    AfterCheckpoint, Error, PodSnapshotPolicy, Resources, TokenSource, TriggerType,
};

const STORAGE: &str = r#"apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotStorageConfig
metadata:
  name: example-pod-snapshot-storage-config
spec:
  snapshotStorageConfig:
    gcs:
      bucket: "my-bucket"
      path: "my-folder"
"#;

const POLICY: &str = r#"apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata:
  name: example-pod-snapshot-policy
  namespace: team-a
spec:
  storageConfigName: example-pod-snapshot-storage-config
  selector:
    matchLabels:
      app: my-app
  triggerConfig:
    type: workload
    postCheckpoint: resume
  retentionConfig:
    lastAccessTimeout: 7d
  snapshotGroupingRules:
    groupByLabelValue:
      labels: ["tenant-id", "user-id"]
      groupRetentionPolicy:
        maxSnapshotCountPerGroup: 2
"#;

const POD: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: my-app
  namespace: team-a
  labels:
    app: my-app
spec:
  serviceAccountName: pod-snapshot-sa
  runtimeClassName: gvisor
  containers:
  - name: my-container
    image: python:3.10-slim
    command: ["python3", "-c"]
    args:
      - |
        import time
        time.sleep(1)
    env:
    - name: MODE
      value: "fast"
"#;

fn parse(text: &str) -> Result<Resources, Error> {
    Resources::parse(Path::new("dir/it.yaml"), text)
}

fn policy(text: &str) -> PodSnapshotPolicy {
    parse(text).unwrap().policies.remove(0)
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect()
}

#[test]
fn the_guide_is_read_verbatim() {
    let all = parse(&[STORAGE, POLICY, POD].join("---\n")).unwrap();
    let storage = &all.storage_configs[0];
    assert_eq!(storage.store_url(), "gs://my-bucket/my-folder");
    assert_eq!(storage.token_source, TokenSource::Pod);
    let policy = &all.policies[0];
    assert_eq!(
        policy.metadata.full_name(),
        "team-a/example-pod-snapshot-policy"
    );
    assert_eq!(policy.trigger, TriggerType::Workload);
    assert_eq!(policy.after, AfterCheckpoint::Resume);
    assert_eq!(
        policy.retention.unused_for,
        Some(Duration::from_secs(7 * 86400))
    );
    assert_eq!(policy.retention.max_per_group, Some(2));
    let pod = &all.pods[0];
    assert_eq!(pod.service_account, "pod-snapshot-sa");
    let command = &pod.containers[0].command;
    assert_eq!(command[2], "import time\ntime.sleep(1)\n");
    assert_eq!(pod.containers[0].env["MODE"], "fast");
    assert_eq!(all.policy_for(pod), Some(policy));
    assert_eq!(all.storage_of(policy).unwrap(), storage);
    let missing = policy
        .grouping_of(&labels(&[("user-id", "u")]))
        .unwrap_err();
    assert_eq!(missing, ["tenant-id"]);
    let both = labels(&[("user-id", "u"), ("tenant-id", "t"), ("app", "x")]);
    let values = policy.grouping_of(&both).unwrap();
    assert_eq!(values, labels(&[("tenant-id", "t"), ("user-id", "u")]));
}

#[test]
fn what_kubectl_prints_is_read_as_well() {
    let printed = r#"
apiVersion: podsnapshot.gke.io/v1alpha1
kind: PodSnapshotPolicy
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"podsnapshot.gke.io/v1"}
  creationTimestamp: "2026-05-01T12:00:00Z"
  generation: 1
  name: p
  resourceVersion: "12"
  uid: x
spec:
  selector: {}
  storageConfigName: s
  triggerConfig: {type: manual, postCheckpoint: stop}
  snapshotScope: whole-pod
  snapshotGroupingRules:
    groupByLabelValue:
      labels: [a]
      groupRetentionPolicy: {maxSnapshotCountPerGroup: 0}
status:
  conditions: []
"#;
    let policy = policy(printed);
    assert_eq!(policy.metadata.namespace, "default");
    assert_eq!(policy.trigger, TriggerType::Manual);
    assert_eq!(policy.after, AfterCheckpoint::Stop);
    assert_eq!(policy.retention.max_per_group, None, "0 lifts the limit");
    assert_eq!(policy.retention.unused_for, None);
    let trigger = "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotManualTrigger\nmetadata: {name: t}\nspec: {targetPod: my-app}\n";
    assert_eq!(parse(trigger).unwrap().triggers[0].target_pod, "my-app");
    let storage = STORAGE.replace(
        "path: \"my-folder\"",
        "path: /\n      tokenSource: federatedP4SA",
    );
    let storage = parse(&storage).unwrap().storage_configs.remove(0);
    assert_eq!(storage.store_url(), "gs://my-bucket");
    assert_eq!(storage.token_source, TokenSource::Node);
}

#[test]
fn selectors_match_as_kubernetes_says() {
    let with = |selector: &str| {
        let text = POLICY.replace("    matchLabels:\n      app: my-app\n", selector);
        policy(&text).selector
    };
    let all = with("    {}\n");
    assert!(all.matches(&labels(&[])));
    let expressions = with(
        "    matchLabels: {app: a}\n    matchExpressions:\n    - {key: tier, operator: In, values: [x, y]}\n    - {key: old, operator: DoesNotExist}\n    - {key: zone, operator: NotIn, values: [z]}\n    - {key: app, operator: Exists}\n",
    );
    let good = [("app", "a"), ("tier", "x")];
    assert!(expressions.matches(&labels(&good)));
    for bad in [
        &[("app", "b"), ("tier", "x")][..],
        &[("app", "a")],
        &[("app", "a"), ("tier", "z")],
        &[("app", "a"), ("tier", "y"), ("old", "")],
        &[("app", "a"), ("tier", "y"), ("zone", "z")],
    ] {
        assert!(!expressions.matches(&labels(bad)), "{bad:?}");
    }
}

#[test]
fn pods_of_other_namespaces_are_nobodys() {
    let elsewhere = POD.replace("namespace: team-a", "namespace: team-b");
    let all = parse(&[POLICY, &elsewhere].join("---\n")).unwrap();
    assert_eq!(all.policy_for(&all.pods[0]), None);
}

#[test]
fn of_a_pod_only_what_matters_for_restoring_is_distilled() {
    let pod = |text: &str| parse(text).unwrap().pods.remove(0);
    let first = pod(POD);
    for (from, to) in [
        ("value: \"fast\"", "value: \"slow\""),
        ("name: my-app\n", "name: my-app-2\n"),
        (
            "  runtimeClassName",
            "  nodeSelector: {zone: a}\n  runtimeClassName",
        ),
    ] {
        let same = pod(&POD.replacen(from, to, 1));
        assert_eq!(same.distilled_spec(), first.distilled_spec(), "{to}");
    }
    for (from, to) in [
        ("time.sleep(1)", "time.sleep(2)"),
        ("python:3.10-slim", "python:3.11-slim"),
        ("MODE", "MODUS"),
    ] {
        let other = pod(&POD.replacen(from, to, 1));
        assert_ne!(other.distilled_spec(), first.distilled_spec(), "{to}");
    }
    // No environment can be said in three ways.
    let env = &POD[POD.find("    env:").unwrap()..];
    let none = pod(&POD.replace(env, "")).distilled_spec();
    assert_ne!(none, first.distilled_spec());
    for same in ["    env: []\n", "    env:\n"] {
        assert_eq!(pod(&POD.replace(env, same)).distilled_spec(), none);
    }
    // What runs before the containers is treated as they are.
    let init = "  initContainers:\n  - name: init\n    image: busybox\n";
    let with_init = |env: &str| pod(&format!("{POD}{init}{env}")).distilled_spec();
    let fast = with_init("    env: [{name: MODE, value: fast}]\n");
    assert_eq!(with_init("    env: [{name: MODE, value: slow}]\n"), fast);
    assert_ne!(with_init("    env: [{name: MODUS, value: fast}]\n"), fast);
    assert_eq!(with_init("    env: []\n"), with_init(""));
    let odd = pod(&format!("{POD}  initContainers: [7, {{env: 7}}]\n"));
    assert_eq!(
        odd.distilled_spec()["initContainers"],
        odd.spec["initContainers"]
    );
}

#[test]
fn what_makes_no_sense_is_said_with_file_line_and_field() {
    let cases: &[(&str, &str, &str, &str)] = &[
        (
            POLICY,
            "    type: workload",
            "    typ: workload",
            "dir/it.yaml:11: spec.triggerConfig.type: it is missing",
        ),
        (
            POLICY,
            "    type: workload",
            "    type: workload\n    when: now",
            "dir/it.yaml:13: spec.triggerConfig.when: there is no such field; there are type, postCheckpoint",
        ),
        (
            POLICY,
            "    type: workload",
            "    type: cron",
            "dir/it.yaml:12: spec.triggerConfig.type: \"cron\" is not one of workload, manual",
        ),
        (
            POLICY,
            "postCheckpoint: resume",
            "postCheckpoint: pause",
            "dir/it.yaml:13: spec.triggerConfig.postCheckpoint: \"pause\" is not one of resume, stop",
        ),
        (
            POLICY,
            "lastAccessTimeout: 7d",
            "lastAccessTimeout: 7w",
            "dir/it.yaml:15: spec.retentionConfig.lastAccessTimeout: \"7w\" is no time",
        ),
        (
            POLICY,
            "lastAccessTimeout: 7d",
            "lastAccessTimeout: 0min",
            "too old at once",
        ),
        (
            POLICY,
            "lastAccessTimeout: 7d",
            "lastAccessTimeout: 99999999999999999999y",
            "is no time",
        ),
        (
            POLICY,
            "lastAccessTimeout: 7d",
            "lastAccessTimeout: 7",
            "put it into quotes",
        ),
        (
            POLICY,
            "PerGroup: 2",
            "PerGroup: -2",
            "dir/it.yaml:20: spec.snapshotGroupingRules.groupByLabelValue.groupRetentionPolicy.maxSnapshotCountPerGroup: -2 is no count",
        ),
        (
            POLICY,
            "PerGroup: 2",
            "PerGroup: many",
            "a number is expected, not a text",
        ),
        (
            POLICY,
            "      app: my-app",
            "      app: 7",
            "dir/it.yaml:10: spec.selector.matchLabels.app: a text is expected, not a number: put it into quotes",
        ),
        (
            POLICY,
            "  storageConfigName: example-pod-snapshot-storage-config\n",
            "",
            "dir/it.yaml:6: spec.storageConfigName: it is missing",
        ),
        (
            POLICY,
            "    matchLabels:",
            "    matchExpressions: [{key: a, operator: In}]\n    matchLabels:",
            "dir/it.yaml:9: spec.selector.matchExpressions[0].operator: it needs values",
        ),
        (
            POLICY,
            "spec:",
            "specs: 1\nspec:",
            "dir/it.yaml:6: specs: there is no such field",
        ),
        (
            POLICY,
            "  namespace: team-a",
            "  namespace: ../etc",
            "dir/it.yaml:5: metadata.namespace: \"../etc\" is no name",
        ),
        (
            POLICY,
            "podsnapshot.gke.io/v1",
            "podsnapshot.gke.io/v2",
            "dir/it.yaml:1: apiVersion: \"podsnapshot.gke.io/v2\" is not podsnapshot.gke.io/v1",
        ),
        (
            POLICY,
            "kind: PodSnapshotPolicy",
            "kind: Deployment",
            "dir/it.yaml:2: kind: \"Deployment\" is not one of",
        ),
        (
            POLICY,
            "  triggerConfig:",
            "  snapshotScope: rootfs-only\n  triggerConfig:",
            "spec.snapshotScope: rootfs-only is not supported",
        ),
        (
            STORAGE,
            "bucket: \"my-bucket\"",
            "bucket: \"my/bucket\"",
            "dir/it.yaml:8: spec.snapshotStorageConfig.gcs.bucket: \"my/bucket\" is no name of a bucket",
        ),
        (STORAGE, "my-folder", "a/../b", "is no path in a bucket"),
        (
            STORAGE,
            "    gcs:",
            "    s3:",
            "spec.snapshotStorageConfig.gcs: it is missing",
        ),
        (
            STORAGE,
            "      path",
            "      path2: x\n      path",
            "dir/it.yaml:9: spec.snapshotStorageConfig.gcs.path2: there is no such field; there are bucket, path",
        ),
        (
            POD,
            "  containers:\n  - name",
            "  containers:\n  - nom",
            "dir/it.yaml:12: spec.containers[0].name: it is missing",
        ),
        (
            POD,
            "serviceAccountName: pod-snapshot-sa",
            "serviceAccountName: ../../etc/shadow",
            "dir/it.yaml:9: spec.serviceAccountName: \"../../etc/shadow\" is no name",
        ),
        (POLICY, "metadata:", "metadata: [", "dir/it.yaml:"),
        (
            POLICY,
            "kind: PodSnapshotPolicy",
            "kind: PodSnapshotPolicy\nkind: PodSnapshotPolicy",
            "dir/it.yaml:3: no YAML: duplicate mapping key `kind` is not allowed here",
        ),
    ];
    for (text, from, to, expected) in cases {
        assert!(text.contains(from), "{from}");
        let error = parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = parse("just text").unwrap_err().to_string();
    assert_eq!(error, "dir/it.yaml:1: a map is expected, not a text");
}

/// What errors say of a file, they say in one line, of which no terminal takes harm, however long the file's texts are.
#[test]
fn texts_of_files_are_shown_and_not_obeyed() {
    let long = "x".repeat(500_000);
    for (text, from, to, expected) in [
        (
            POLICY,
            "      app: my-app",
            r#"      "a\nb\e[2J": 7"#,
            r"dir/it.yaml:10: spec.selector.matchLabels.a\nb\u{1b}[2J: a text is expected",
        ),
        (
            POLICY,
            "spec:",
            "\"specs\\u202e\": 1\nspec:",
            r"specs\u{202e}: there is no such field",
        ),
        (
            POLICY,
            "type: workload",
            r#"type: "\e]0;x\a""#,
            r#""\u{1b}]0;x\u{7}" is not one of"#,
        ),
        (
            POLICY,
            "spec:",
            "\"\\e[2J\": 1\n\"\\e[2J\": 1\nspec:",
            r"duplicate mapping key `\u{1b}[2J`",
        ),
        (
            POLICY,
            "spec:",
            &format!("? {long}\n: 1\nspec:"),
            "xxx...: there is no such field",
        ),
        (
            POLICY,
            "spec:",
            &format!("? {long}\n: 1\n? {long}\n: 1\nspec:"),
            "duplicate mapping key `xxx",
        ),
        (POLICY, "workload", &long, "xxx...\" is not one of workload"),
        (POLICY, "team-a", &long, "xxx...\" is no name"),
        (POLICY, "7d", &long, "xxx...\" is no time"),
        (
            POLICY,
            "podsnapshot.gke.io/v1",
            &long,
            "xxx...\" is not podsnapshot.gke.io/v1",
        ),
        (
            STORAGE,
            "my-bucket",
            &long,
            "xxx...\" is no name of a bucket",
        ),
        (
            STORAGE,
            "my-folder",
            &format!("{long}?"),
            "xxx...\" is no path",
        ),
    ] {
        let error = parse(&text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:.1000}");
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(error.len() < 500, "{error:.1000}");
    }
    let error = Resources::parse(Path::new("a\nb.yaml"), "x").unwrap_err();
    assert!(error.to_string().starts_with("a\\nb.yaml:1: "), "{error}");
}

/// Somebody has only begun to write such a file. It must not be taken for the wish that there be nothing.
#[test]
fn a_file_without_a_document_is_an_error() {
    for text in ["", "\n", "# a comment\n", "---\n", "---\n...\n# end\n"] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.starts_with("dir/it.yaml: it holds no document"),
            "{error}"
        );
        assert!(error.contains("rename"), "{error}");
    }
    let half = &POD[..POD.find("  containers").unwrap()];
    parse(half).unwrap_err();
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(Resources::read(empty.path()).unwrap(), Resources::default());
}

#[test]
fn lists_as_kubectl_prints_them_are_read() {
    let item = |text: &str| format!("- {}\n", text.trim_end().replace('\n', "\n  "));
    let list = |items: &str| {
        format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
    };
    let all = parse(&list(&(item(STORAGE) + &item(POLICY) + &item(POD)))).unwrap();
    let separate = parse(&[STORAGE, POLICY, POD].join("---\n")).unwrap();
    assert_eq!(all.storage_configs, separate.storage_configs);
    assert_eq!(all.pods, separate.pods);
    assert_eq!(all.policies[0].selector, separate.policies[0].selector);
    let none = parse(&list("").replace("items:", "items: []")).unwrap();
    assert_eq!(none, Resources::default());
    for (text, expected) in [
        (
            list(&item(&POLICY.replace("type: workload", "type: cron"))),
            "dir/it.yaml:14: items[0].spec.triggerConfig.type: \"cron\" is not one of",
        ),
        (
            list(&(item(POLICY) + &item(POLICY))),
            "dir/it.yaml:26: items[1].metadata.name: the PodSnapshotPolicy team-a/example-pod-snapshot-policy is in dir/it.yaml:6 already",
        ),
        (
            list(&item(&list(&item(POD)))),
            "items[0].kind: \"List\" is not one of",
        ),
        (list(""), "items: it is missing"),
        (
            list(&item(POD)) + "next: 1\n",
            "next: there is no such field",
        ),
        (
            list(&item(POD)).replacen("v1", "v2", 1),
            "apiVersion: \"v2\" is not v1",
        ),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn hostile_yaml_ends_soon() {
    let mut bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for (i, c) in ('b'..='k').enumerate() {
        let before = (b'a' + i as u8) as char;
        let list = vec![format!("*{before}"); 9].join(",");
        bomb.push_str(&format!("{c}: &{c} [{list}]\n"));
    }
    for hostile in [
        bomb,
        "[".repeat(100_000),
        "- ".repeat(100_000),
        "x".repeat(2 << 20),
        "---\n".repeat(200_000) + "a: b",
        "a: *a".to_owned(),
        "\u{0}".to_owned(),
        "? [a]\n: b".to_owned(),
        "apiVersion: !!binary aGk=".to_owned(),
    ] {
        let begin: String = hostile.chars().take(20).collect();
        let error = parse(&hostile).expect_err(&begin).to_string();
        assert!(error.len() < 1000, "{error}");
        // Such names are for those who wrote the parser, and for those who call it.
        for inner in ["Options", "breach", " {", "total_replayed"] {
            assert!(!error.contains(inner), "{error}");
        }
    }
}

#[test]
fn a_directory_is_read_file_by_file_and_names_are_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("10-storage.yaml", STORAGE);
    write("20-policy.yml", POLICY);
    write("notes.txt", "not YAML: [");
    let all = Resources::read(dir.path()).unwrap();
    assert_eq!((all.storage_configs.len(), all.policies.len()), (1, 1));
    write("30-again.yaml", POLICY);
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("30-again.yaml:4: metadata.name"), "{error}");
    assert!(error.contains("20-policy.yml:4 already"), "{error}");
    let absent = Resources::read(&dir.path().join("absent")).unwrap_err();
    assert!(absent.to_string().contains("absent: it cannot be read"));
    fs::write(dir.path().join("30-again.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("30-again.yaml"), "{error}");
    // A policy whose storage nobody described.
    let alone = parse(POLICY).unwrap();
    let error = alone.storage_of(&alone.policies[0]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("dir/it.yaml:7: spec.storageConfigName: there is no"),
        "{error}"
    );
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("x.yaml");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("x.yaml: it is no regular file"), "{error}");
    fs::remove_file(&fifo).unwrap();
    fs::create_dir(&fifo).unwrap();
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("x.yaml: it is no regular file"), "{error}");
    fs::remove_dir(&fifo).unwrap();
    // Config maps are mounted as links.
    fs::write(dir.path().join("data"), POLICY).unwrap();
    symlink("data", &fifo).unwrap();
    assert_eq!(Resources::read(dir.path()).unwrap().policies.len(), 1);
}

#[test]
fn a_directory_is_read_with_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let file = |i: usize| dir.path().join(format!("{i}.yaml"));
    // As many as there may be, in as few files as they fit.
    let trigger = |i: usize| {
        format!(
            "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotManualTrigger\nmetadata: {{name: t{i}}}\nspec: {{targetPod: p}}\n"
        )
    };
    for i in 0..10 {
        let triggers: Vec<String> = (0..1000).map(|j| trigger(i * 1000 + j)).collect();
        fs::write(file(i), triggers.join("---\n")).unwrap();
    }
    let all = Resources::read(dir.path()).unwrap();
    assert_eq!(all.triggers.len(), 10_000);
    for i in 0..10 {
        fs::remove_file(file(i)).unwrap();
    }
    // 64 files of 1 MiB are read, and not one byte more.
    for i in 0..64 {
        let mut text = trigger(i) + "#";
        text.push_str(&"x".repeat((1 << 20) - text.len()));
        fs::write(file(i), text).unwrap();
    }
    assert_eq!(Resources::read(dir.path()).unwrap().triggers.len(), 64);
    fs::write(file(64), trigger(64)).unwrap();
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("longer than 64 MiB together"), "{error}");
    for i in 0..10_001 {
        fs::write(file(i), "").unwrap();
    }
    let error = Resources::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("more than 10000 files"), "{error}");
}
