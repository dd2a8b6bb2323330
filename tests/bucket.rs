//! `podsnap bucket`, and what a save says at its start of a bucket that is not as it should be.

mod support;

use std::process::{Command, Output};

use podsnap_gcs_server::{
    AGENT, AGENT_TOKEN, Config, Fault, FaultKind, GcsServer, Grant, OWNER_TOKEN, Operation,
    Permission,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::tool::*;

const BUCKET: &str = "snapshots";
const STORE: &str = "gs://snapshots/tenant/store";

/// A bucket as `create-command` makes it, and an agent with what saving needs below `tenant/`.
fn perfect() -> GcsServer {
    let mut config = Config::tenant(BUCKET, "tenant/");
    config.bucket(BUCKET).lifecycle = Some(json!({"rule": [
        {"action": {"type": "Delete"}, "condition": {"age": 2, "matchesSuffix": [".part"]}}
    ]}));
    GcsServer::start(config).expect("a server on loopback")
}

/// `podsnap` as a process on a machine in the region us-east1.
fn command(tool: &Tool, server: &GcsServer, args: &[&str]) -> Command {
    let mut command = tool.command(args);
    command
        .env("PODSNAP_STORE", STORE)
        .env("STORAGE_EMULATOR_HOST", server.url())
        .env("GCE_METADATA_HOST", server.address().to_string())
        .env("CLOUDSDK_AUTH_ACCESS_TOKEN", AGENT_TOKEN);
    command
}

fn run(tool: &Tool, server: &GcsServer, args: &[&str]) -> Outcome {
    finish(command(tool, server, args))
}

fn check(tool: &Tool, server: &GcsServer) -> (i32, Value) {
    let outcome = run(tool, server, &["bucket", "check", "--json"]);
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    (outcome.code.unwrap(), outcome.json())
}

fn kinds(check: &Value) -> Vec<&str> {
    let findings = check["findings"].as_array().expect("a list").iter();
    findings.map(|f| f["kind"].as_str().unwrap()).collect()
}

fn access<'a>(check: &'a Value, permission: &str) -> &'a str {
    let mut all = check["permissions"].as_array().expect("a list").iter();
    let found = all.find(|p| p["name"] == permission);
    found.unwrap_or_else(|| panic!("no {permission}: {check}"))["access"]
        .as_str()
        .unwrap()
}

#[track_caller]
fn assert_empty(server: &GcsServer) {
    assert_eq!(server.objects(BUCKET), [], "something is left");
    let scratch = |f: &&String| f.contains("podsnap-");
    assert_eq!(server.folders(BUCKET).iter().find(scratch), None);
}

#[test]
fn nothing_is_wrong_with_a_bucket_as_it_should_be() {
    let (tool, server) = (Tool::new(), perfect());
    let (code, found) = check(&tool, &server);
    assert_eq!(kinds(&found), [""; 0], "{found}");
    assert_eq!((code, &found["fine"]), (0, &json!(true)));
    assert_eq!(found["region"], "us-east1");
    assert_eq!(found["bucket"]["hierarchical_namespace"], true);
    for needed in [
        "storage.objects.get",
        "storage.objects.create",
        "storage.objects.delete",
        "storage.folders.create",
        "storage.buckets.get",
    ] {
        assert_eq!(access(&found, needed), "granted", "{needed}");
    }
    assert_eq!(access(&found, "storage.objects.list"), "refused");
    assert_empty(&server);
    // They were not guessed.
    let log = server.log();
    for operation in [
        Operation::InsertMultipart,
        Operation::GetMedia,
        Operation::Compose,
        Operation::Delete,
        Operation::FolderInsert,
    ] {
        assert!(log.count(operation) > 0, "{operation:?} was not tried");
    }
    let text = run(&tool, &server, &["bucket", "check"]).ok();
    for words in [
        "Nothing is wrong",
        "this machine: us-east1",
        "storage.objects.list    absent",
    ] {
        assert!(text.text().contains(words), "no {words:?}: {}", text.text());
    }
    server.configure(|c| {
        c.grant(
            AGENT,
            Grant::new(BUCKET, "tenant/", &[Permission::ObjectsList]),
        )
    });
    let (_, found) = check(&tool, &server);
    assert_eq!(access(&found, "storage.objects.list"), "granted");
}

#[test]
fn the_first_level_of_a_bucket_can_be_checked_too() {
    let (tool, server) = (Tool::new(), perfect());
    let mut command = command(&tool, &server, &["bucket", "check", "--json"]);
    command
        .env("PODSNAP_STORE", "gs://snapshots")
        .env("CLOUDSDK_AUTH_ACCESS_TOKEN", OWNER_TOKEN);
    let found = finish(command).ok().json();
    assert_eq!(access(&found, "storage.folders.create"), "granted");
    assert_empty(&server);
    assert_eq!(server.folders(BUCKET), [""; 0]);
}

/// A change of a bucket's settings, the finding that it must give, its command, and whether it slows saves.
type Wrong = (fn(&mut Config), &'static str, &'static str, bool);

const WRONG: [Wrong; 9] = [
    (
        |c| c.bucket(BUCKET).hierarchical_namespace = false,
        "flat-namespace",
        "gcloud storage buckets create gs://NEW-BUCKET --location=us-east1 --default-storage-class=STANDARD --uniform-bucket-level-access --enable-hierarchical-namespace --soft-delete-duration=0",
        true,
    ),
    (
        |c| c.bucket(BUCKET).soft_delete_s = 604_800,
        "soft-delete",
        "gcloud storage buckets update gs://snapshots --clear-soft-delete",
        true,
    ),
    (
        |c| c.bucket(BUCKET).retention_s = Some(3600),
        "retention-policy",
        "gcloud storage buckets update gs://snapshots --clear-retention-period",
        true,
    ),
    (
        |c| c.bucket(BUCKET).default_event_based_hold = true,
        "default-hold",
        "gcloud storage buckets update gs://snapshots --no-default-event-based-hold",
        true,
    ),
    (
        |c| c.bucket(BUCKET).storage_class = "NEARLINE".into(),
        "storage-class",
        "gcloud storage buckets update gs://snapshots --default-storage-class=STANDARD",
        true,
    ),
    (
        |c| c.bucket(BUCKET).location = "EUROPE-WEST4".into(),
        "other-region",
        "gcloud storage buckets create gs://NEW-BUCKET --location=us-east1 --default-storage-class=STANDARD --uniform-bucket-level-access --enable-hierarchical-namespace --soft-delete-duration=0",
        true,
    ),
    (
        |c| c.bucket(BUCKET).lifecycle = None,
        "no-lifecycle",
        r#"echo '{"rule":[{"action":{"type":"Delete"},"condition":{"age":2,"matchesSuffix":[".part"]}}]}' > parts.json && gcloud storage buckets update gs://snapshots --lifecycle-file=parts.json"#,
        false,
    ),
    (
        |c| c.bucket(BUCKET).uniform_bucket_level_access = false,
        "fine-grained-access",
        "gcloud storage buckets update gs://snapshots --uniform-bucket-level-access",
        false,
    ),
    (
        |c| c.revoke(AGENT, Permission::BucketsGet),
        "unknown-settings",
        "gcloud storage buckets add-iam-policy-binding gs://snapshots --member=serviceAccount:agent@podsnap-test.iam.gserviceaccount.com --role=roles/storage.bucketViewer",
        true,
    ),
];

#[test]
fn each_wrong_setting_is_found_with_the_command_that_mends_it() {
    let tool = Tool::new();
    for (change, kind, command, slows) in WRONG {
        let server = perfect();
        server.configure(|c| {
            change(c);
            c.rules.mutations_per_second = 0.0;
        });
        let (code, found) = check(&tool, &server);
        assert_eq!(kinds(&found), [kind], "{found}");
        assert_eq!(found["findings"][0]["command"], command, "{kind}");
        assert_eq!(found["fine"], !slows, "{kind}");
        assert_eq!(code, i32::from(slows), "{kind}");
        assert_empty(&server);
        for needed in ["get", "create", "delete"] {
            let access = access(&found, &format!("storage.objects.{needed}"));
            // Where objects are kept, none is written, and a refusal to read may mean that there is none.
            let kept = ["retention-policy", "default-hold"].contains(&kind);
            let expected = if kept && needed == "get" {
                "unknown"
            } else {
                "granted"
            };
            assert_eq!(access, expected, "{kind}: {needed}");
        }
        let text = run(&tool, &server, &["bucket", "check"]);
        assert!(text.text().contains(command), "{}", text.text());
    }
}

#[test]
fn a_bucket_of_several_regions_that_has_ours_is_near() {
    let (tool, server) = (Tool::new(), perfect());
    for (location, near) in [("US", true), ("NAM4", true), ("EU", false)] {
        server.configure(|c| c.bucket(BUCKET).location = location.into());
        let (code, found) = check(&tool, &server);
        assert_eq!(code == 0, near, "{location}: {found}");
    }
    // Without a metadata server nobody knows where we are.
    let mut alone = command(&tool, &server, &["bucket", "check", "--json"]);
    alone.env("GCE_METADATA_HOST", "127.0.0.1:1");
    let found = finish(alone).ok().json();
    assert_eq!(found["region"], Value::Null);
}

#[test]
fn each_missing_permission_is_named_and_nothing_is_left() {
    let tool = Tool::new();
    for permission in [
        Permission::ObjectsGet,
        Permission::ObjectsCreate,
        Permission::ObjectsDelete,
        Permission::FoldersCreate,
    ] {
        for missing_without_list in [403, 404] {
            let server = perfect();
            server.configure(|c| {
                c.revoke(AGENT, permission);
                c.rules.mutations_per_second = 0.0;
                c.rules.missing_without_list = missing_without_list;
            });
            let (code, found) = check(&tool, &server);
            assert_eq!(
                (code, kinds(&found)),
                (1, vec!["missing-permission"]),
                "{found}"
            );
            assert_eq!(access(&found, permission.name()), "refused");
            let finding = &found["findings"][0];
            let problem = finding["problem"].as_str().unwrap();
            assert!(problem.contains(permission.name()), "{problem}");
            let command = finding["command"].as_str().unwrap();
            for part in [
                permission.name(),
                "gcloud storage managed-folders add-iam-policy-binding gs://snapshots/tenant/store/ ",
                "--member=serviceAccount:agent@podsnap-test.iam.gserviceaccount.com ",
            ] {
                assert!(command.contains(part), "no {part:?}: {command}");
            }
            for other in [
                "storage.objects.get",
                "storage.objects.create",
                "storage.objects.delete",
            ] {
                if other != permission.name() {
                    assert_ne!(access(&found, other), "refused", "{other}: {found}");
                    assert!(!problem.contains(other), "{problem}");
                }
            }
            assert_empty(&server);
        }
    }
    // All of them at once are one finding; without any nothing can be known of the bucket either.
    let server = perfect();
    server.configure(|c| c.access.principals.get_mut(AGENT).unwrap().clear());
    let (code, found) = check(&tool, &server);
    assert_eq!(code, 1);
    assert_eq!(kinds(&found), ["missing-permission", "unknown-settings"]);
    assert_empty(&server);
}

#[test]
fn what_is_no_finding_is_an_error() {
    let (tool, server) = (Tool::new(), perfect());
    let refused = run(&tool, &server, &["bucket", "check", "--store", "some/dir"]);
    refused.ends_with(2).says(&["some/dir", "gs://BUCKET/PATH"]);
    let absent = run(
        &tool,
        &server,
        &["bucket", "check", "--store", "gs://none/x"],
    );
    absent
        .ends_with(1)
        .says(&["no bucket gs://none", "create-command"]);
    let mut stale = command(&tool, &server, &["bucket", "check"]);
    stale.env("CLOUDSDK_AUTH_ACCESS_TOKEN", "stale");
    finish(stale).ends_with(4).says(&["token"]);
    assert_empty(&server);
}

#[test]
fn an_interrupted_check_leaves_nothing() {
    let (tool, server) = (Tool::new(), perfect());
    server.add_fault(Fault::new(FaultKind::Stall { ms: 4000 }).on(&[Operation::GetMedia]));
    let mut running = Running::start(command(&tool, &server, &["bucket", "check"]));
    running.wait_until("the probe", || !server.objects(BUCKET).is_empty());
    running.signal(Signal::INT);
    running.finish().ends_with(130);
    assert_empty(&server);
}

#[test]
fn a_fault_in_the_middle_of_a_check_is_survived_or_cleaned_up_after() {
    let (tool, server) = (Tool::new(), perfect());
    for lost in [
        Operation::InsertMultipart,
        Operation::Compose,
        Operation::Delete,
    ] {
        let fault = FaultKind::LoseAnswer { status: Some(503) };
        server.add_fault(Fault::new(fault).on(&[lost]).nth(1));
    }
    let (code, found) = check(&tool, &server);
    assert_eq!(code, 0, "{found}");
    assert_empty(&server);
    server.clear_faults();
    let broken = FaultKind::Status {
        status: 400,
        retry_after_s: None,
    };
    server.add_fault(Fault::new(broken).on(&[Operation::Compose]));
    run(&tool, &server, &["bucket", "check"])
        .ends_with(1)
        .says(&["compose"]);
    assert_empty(&server);
}

#[test]
fn the_commands_that_make_a_bucket_are_printed_for_a_shell() {
    let tool = Tool::new();
    let create = [
        "bucket",
        "create-command",
        "my-bucket",
        "--location",
        "europe-west4",
    ];
    let printed = tool.run(&create).ok();
    for line in [
        "gcloud storage buckets create gs://my-bucket --location=europe-west4 --default-storage-class=STANDARD --uniform-bucket-level-access --enable-hierarchical-namespace --soft-delete-duration=0\n",
        "> parts.json && gcloud storage buckets update gs://my-bucket --lifecycle-file=parts.json\n",
        "gcloud storage buckets add-iam-policy-binding gs://my-bucket --member=PRINCIPAL --role=projects/PROJECT/roles/podsnapAgent\n",
    ] {
        assert!(
            printed.text().contains(line),
            "no {line:?}: {}",
            printed.text()
        );
    }
    // What a shell makes of it, with a gcloud that shows its arguments.
    let shell = |script: &str| -> Output {
        let script = format!("gcloud() {{ printf '<%s>' \"$@\"; echo; }}\n{script}");
        let mut bash = Command::new("bash");
        bash.args(["-euc", &script]).current_dir(tool.dir());
        bash.output().expect("bash")
    };
    let with_path = [&create[..], &["--path", "tenant's 7"]].concat();
    let script = tool.run(&with_path).ok();
    let seen = shell(script.text());
    assert!(seen.status.success(), "{seen:?}");
    let seen = String::from_utf8(seen.stdout).unwrap();
    assert!(
        seen.contains("<managed-folders><create><gs://my-bucket/tenant's 7/>"),
        "{seen}"
    );
    let rule = std::fs::read(tool.path("parts.json")).unwrap();
    let rule: Value = serde_json::from_slice(&rule).unwrap();
    assert_eq!(
        rule["rule"][0]["condition"]["matchesSuffix"],
        json!([".part"])
    );
    let steps = tool.json(&create);
    assert_eq!(steps.as_array().unwrap().len(), 5);
    for bad in ["A", "a;b", "", "$(x)"] {
        tool.run(&["bucket", "create-command", bad, "--location", "us"])
            .ends_with(2);
        tool.run(&["bucket", "create-command", "good", "--location", bad])
            .ends_with(if bad == "A" { 0 } else { 2 });
    }
}

#[test]
fn a_save_says_once_at_its_start_what_slows_it() {
    let tool = Tool::new();
    let mut noise = support::Noise(1);
    let bytes: Vec<u8> = (0..300_000)
        .flat_map(|_| noise.word().to_le_bytes())
        .collect();
    tool.file("ram", &bytes);
    for (change, kind, command, slows) in WRONG {
        let server = perfect();
        server.configure(|c| {
            change(c);
            c.rules.mutations_per_second = 0.0;
        });
        let saved = run(&tool, &server, &["save", "a", "memory=ram"]);
        // Only a bucket that keeps every object refuses to let a lease go.
        let kept = ["retention-policy", "default-hold"].contains(&kind);
        assert_eq!(saved.code, Some(0), "{kind}: {}", saved.stderr);
        assert!(
            !saved.stderr.contains('\u{1b}'),
            "colours without a terminal"
        );
        let warnings: Vec<_> = saved
            .stderr
            .lines()
            .filter(|l| l.contains(command))
            .collect();
        assert_eq!(
            warnings.len(),
            usize::from(slows),
            "{kind}: {}",
            saved.stderr
        );
        if slows {
            assert!(warnings[0].contains("WARN") && warnings[0].contains("gs://snapshots"));
            assert!(
                saved.stderr.lines().next() == Some(warnings[0]),
                "{}",
                saved.stderr
            );
        }
        if !kept {
            assert_eq!(
                saved.stderr.lines().count(),
                warnings.len(),
                "{}",
                saved.stderr
            );
        }
        run(&tool, &server, &["verify", "a"]).ok();
    }
    let server = perfect();
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    let saved = run(&tool, &server, &["save", "a", "memory=ram"]).ok();
    assert_eq!(saved.stderr, "");
}
