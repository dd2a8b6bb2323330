//! What tests of other people's programs share.

use std::{
    env,
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use podsnap_gcs_server::{Config, GcsServer, OWNER};

pub const B: &str = "bucket";

/// Says why a test checked nothing. `./test` shows these lines at its end.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Where `tests/provision.sh` puts things.
pub fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache");
    let in_cache = || env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    env::var_os("PODSNAP_CACHE").map_or_else(|| in_cache().join("podsnap"), PathBuf::from)
}

/// A server for clients that mutate one name more often than a strict reader of the rules would.
pub fn patient(mut config: Config) -> GcsServer {
    config.rules.mutation_burst = 3;
    GcsServer::start(config).expect("a server")
}

/// A service account's key file, in JSON, that takes its tokens from `server`. Its RSA key is a new one each time.
pub fn service_account(server: &GcsServer) -> String {
    let key = KeyPair::generate(KeySize::Rsa2048).expect("a key");
    let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&key).expect("its encoding");
    let encoded = STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = (0..encoded.len())
        .step_by(64)
        .map(|at| &encoded[at..encoded.len().min(at + 64)])
        .collect();
    let kind = "PRIVATE KEY";
    let pem = format!(
        "-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n",
        lines.join("\n")
    );
    serde_json::json!({
        "type": "service_account",
        "project_id": "podsnap-test",
        "private_key_id": "k",
        "private_key": pem,
        "client_email": OWNER,
        "client_id": "1",
        "token_uri": format!("{}/token", server.url()),
        "universe_domain": "googleapis.com",
    })
    .to_string()
}

/// Bytes of a length that repeat nowhere near.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a program to its end, in a clean environment; panics, showing what it said, unless it succeeds.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
