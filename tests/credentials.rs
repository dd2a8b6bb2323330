//! Who is asking a bucket, on a server that hands tokens out and takes them back: tokens that are renewed, and errors where they cannot be.

mod support;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use podsnap_gcs_server::{AGENT, Config, Fault, FaultKind, GcsServer, Operation};
use support::{noise, tool::*};

const BUCKET: &str = "snapshots";
const STORE: &str = "gs://snapshots/tenant/store";

fn server() -> GcsServer {
    let config = Config::tenant(BUCKET, "tenant/");
    GcsServer::start(config).expect("a server on loopback")
}

fn command(tool: &Tool, server: &GcsServer, args: &[&str]) -> Command {
    let mut command = tool.command(args);
    command
        .env("PODSNAP_STORE", STORE)
        .env("STORAGE_EMULATOR_HOST", server.url());
    command
}

/// On a virtual machine whose metadata server is the bucket's.
fn on_machine(tool: &Tool, server: &GcsServer, args: &[&str]) -> Command {
    let mut command = command(tool, server, args);
    let host = server.address().to_string();
    command
        .env("GCE_METADATA_HOST", &host)
        .env("GCE_METADATA_IP", &host);
    command
}

/// With the key file of the agent's service account.
fn with_key(tool: &Tool, server: &GcsServer, args: &[&str]) -> Command {
    let file = tool.path("key.json");
    if !file.exists() {
        let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).expect("its encoding");
        let kind = "PRIVATE KEY";
        let key = BASE64.encode(der.as_ref());
        let key = serde_json::json!({
            "type": "service_account",
            "private_key_id": "k",
            "private_key": format!("-----BEGIN {kind}-----\n{key}\n-----END {kind}-----\n"),
            "client_email": AGENT,
            "client_id": "1",
        });
        tool.file("key.json", key.to_string().as_bytes());
    }
    let mut command = command(tool, server, args);
    command.env("GOOGLE_APPLICATION_CREDENTIALS", file);
    command
}

fn with_token(tool: &Tool, server: &GcsServer, token: &str, args: &[&str]) -> Command {
    let mut command = command(tool, server, args);
    command.env("CLOUDSDK_AUTH_ACCESS_TOKEN", token);
    command
}

fn refused(times: u64) -> Fault {
    let refusal = FaultKind::Status {
        status: 401,
        retry_after_s: None,
    };
    Fault::new(refusal).on(&[Operation::GetMedia]).times(times)
}

/// When tokens were fetched, in milliseconds.
fn fetches(server: &GcsServer) -> Vec<u64> {
    let log = server.log();
    let entries = log.entries.iter();
    entries
        .filter(|e| e.operation == Operation::MetadataServer && e.target.contains("/token"))
        .map(|e| e.at_ms)
        .collect()
}

fn reads(server: &GcsServer) -> usize {
    server.log().of(Operation::GetMedia).len()
}

#[test]
fn tokens_of_a_machine_that_end_early_are_replaced_once_each() {
    const LIFE_MS: u64 = 400;
    let (tool, server) = (Tool::new(), server());
    server.configure(|c| {
        c.access.token_ttl_ms = LIFE_MS;
        c.access.stated_token_ttl_ms = Some(3_600_000);
        c.rules.mutations_per_second = 0.0;
        // Some seconds in all.
        c.link.total_bytes_per_s = 12_000_000;
    });
    let bytes = noise(1, 16 << 20);
    tool.file("x", &bytes);
    let settings = ["--upload-parts", "256K:4", "--download-ranges", "256K:4"];
    let with = |args: &[&'static str]| [&settings[..], args].concat();
    finish(on_machine(&tool, &server, &with(&["save", "a", "other=x"]))).ok();
    finish(on_machine(&tool, &server, &with(&["restore", "a", "out"]))).ok();
    assert!(std::fs::read(tool.path("out/other")).unwrap() == bytes);
    let fetched = fetches(&server);
    assert!(fetched.len() >= 6, "{fetched:?}");
    // Each of two processes fetches when it starts; after that, only what had ended is replaced, by all who hear of it together.
    let early = fetched.windows(2).filter(|w| w[1] - w[0] < LIFE_MS - 5);
    assert!(early.count() <= 1, "{fetched:?}");
}

#[test]
fn a_refused_token_is_renewed_once_and_no_more() {
    let (tool, server) = (Tool::new(), server());
    tool.file("x", &noise(2, 1 << 20));
    finish(on_machine(&tool, &server, &["save", "a", "other=x"])).ok();
    for credentials in [on_machine, with_key] {
        server.clear_log();
        server.add_fault(refused(1));
        finish(credentials(&tool, &server, &["verify", "a"])).ok();
        assert_eq!(server.faults()[0].1, 1);
        server.clear_faults();
        let well = reads(&server);

        server.clear_log();
        server.add_fault(refused(u64::MAX));
        finish(credentials(&tool, &server, &["verify", "a"]))
            .ends_with(4)
            .says(&[
                "gs://snapshots/tenant/store/a/manifest",
                "401",
                "storage.objects.get",
                "a new token was refused as well",
            ]);
        assert_eq!(reads(&server), 2, "of {well}");
        server.clear_faults();
    }
    assert!(
        fetches(&server).is_empty(),
        "a key needs no metadata server"
    );
    let log = server.log();
    let agents = log
        .entries
        .iter()
        .all(|e| e.principal.as_deref().is_none_or(|p| p == AGENT));
    assert!(agents, "{:?}", log.entries);
}

#[test]
fn a_given_token_that_ends_is_an_error_at_once() {
    let (tool, server) = (Tool::new(), server());
    server.configure(|c| c.link.total_bytes_per_s = 8_000_000);
    tool.file("x", &noise(3, 16 << 20));
    let token = server.issue_token(AGENT, Duration::from_millis(700));
    let args = ["--upload-parts", "1M:2", "save", "a", "other=x"];
    let says = [
        "gs://snapshots/tenant/store/a/",
        "401",
        "the token that was given has expired",
        "gcloud auth print-access-token",
    ];
    finish(with_token(&tool, &server, &token, &args))
        .ends_with(4)
        .says(&says);
    let log = server.log();
    let written = log
        .entries
        .iter()
        .any(|e| e.status == 200 && e.bytes_in > 1 << 20);
    assert!(written, "it ended in the middle: {:?}", log.counts());
    let committed = server
        .objects(BUCKET)
        .into_iter()
        .any(|o| o.name.ends_with("/manifest"));
    assert!(!committed, "a partial snapshot");

    server.clear_log();
    finish(with_token(&tool, &server, &token, &["verify", "a"]))
        .ends_with(4)
        .says(&says);
    assert_eq!(reads(&server), 1, "there is no point in asking again");
}

#[test]
fn a_wrong_clock_is_named_where_tokens_depend_on_it() {
    let (tool, server) = (Tool::new(), server());
    tool.file("x", &noise(4, 1 << 20));
    for (ahead, says) in [
        (
            3600,
            "this machine's clock is 60 minutes behind the store's",
        ),
        (
            -3600,
            "this machine's clock is 60 minutes ahead of the store's",
        ),
    ] {
        server.configure(|c| c.rules.clock_ahead_s = ahead);
        finish(with_key(&tool, &server, &["save", "a", "other=x"]))
            .ends_with(4)
            .says(&[
                "gs://snapshots/tenant/store/a/",
                "401",
                says,
                "set the clock",
            ]);
        assert_eq!(server.objects(BUCKET), []);
        // Where somebody else made the token, the clock is no matter.
        finish(on_machine(&tool, &server, &["save", "a", "other=x"])).ok();
        finish(on_machine(&tool, &server, &["verify", "a"])).ok();
        for object in server.objects(BUCKET) {
            server.remove(BUCKET, &object.name);
        }
    }
}

#[test]
fn a_metadata_server_that_never_answers_is_given_up_in_time() {
    let (tool, server) = (Tool::new(), server());
    let stall = FaultKind::Stall { ms: 3_600_000 };
    server.add_fault(Fault::new(stall).on(&[Operation::MetadataServer]));
    let started = Instant::now();
    finish(on_machine(&tool, &server, &["verify", "a"]))
        .ends_with(4)
        .says(&[
            "no credentials for Google Cloud Storage",
            "no token came in 15 s",
        ]);
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(reads(&server), 0);
}
