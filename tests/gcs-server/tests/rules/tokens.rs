//! Whom requests speak for.

use std::{
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use podsnap_gcs_server::{AGENT, Config, GcsServer, OWNER, Operation};
use serde_json::{Value, json};

use crate::raw::*;

fn bucket(server: &GcsServer, token: &str) -> Answer {
    ask(server, "GET", &format!("/storage/v1/b/{B}"))
        .token(token)
        .send()
}

#[test]
fn without_a_token_nobody_may_anything_unless_configured() {
    let server = started(Config::closed(B));
    let get = || ask(&server, "GET", &format!("/storage/v1/b/{B}")).send();
    let refused = get().expect(401);
    assert_eq!(refused.reason(), "required");
    assert!(refused.header("www-authenticate").is_some());
    server.configure(|c| c.access.anonymous = Some(OWNER.into()));
    get().expect(200);
    // A token that is wrong is worse than none.
    assert_eq!(bucket(&server, "wrong").expect(401).reason(), "authError");
    ask(&server, "GET", "/bucket/o")
        .header("Authorization", "Basic eDp5")
        .send()
        .expect(401);
}

#[test]
fn tokens_of_the_metadata_server_expire() {
    let server = started(Config::tenant(B, "t/"));
    server.configure(|c| c.access.token_ttl_ms = 1000);
    let get = |path: &str| {
        let ask = ask(&server, "GET", &format!("/computeMetadata/v1/{path}"));
        ask.header("Metadata-Flavor", "Google").send()
    };
    let account = "instance/service-accounts/default";
    let token = get(&format!("{account}/token")).expect(200).json();
    assert_eq!(token["token_type"], "Bearer");
    let token = token["access_token"].as_str().unwrap();
    bucket(&server, token).expect(200);
    assert_eq!(
        server.log().of(Operation::BucketGet)[0]
            .principal
            .as_deref(),
        Some(AGENT)
    );
    sleep(Duration::from_millis(1020));
    bucket(&server, token).expect(401);
    assert_eq!(get(&format!("{account}/email")).expect(200).text(), AGENT);
    assert_eq!(get("project/project-id").expect(200).text(), "podsnap-test");
    assert!(
        get("instance/zone")
            .expect(200)
            .text()
            .ends_with("/zones/us-east1-b")
    );
    assert_eq!(
        get("universe/universe-domain").expect(200).text(),
        "googleapis.com"
    );
    let whole = get(&format!("{account}/?recursive=true"))
        .expect(200)
        .json();
    assert_eq!(whole["email"], AGENT);
    // A browser that was tricked sends no such header.
    ask(
        &server,
        "GET",
        &format!("/computeMetadata/v1/{account}/token"),
    )
    .send()
    .expect(403);

    server.configure(|c| c.access.token_ttl_ms = 60_000);
    let token = server.issue_token(AGENT, Duration::from_secs(60));
    bucket(&server, &token).expect(200);
    server.revoke_tokens();
    bucket(&server, &token).expect(401);
}

fn jwt(issuer: &str, life_s: i64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": issuer, "iat": now, "exp": now + life_s, "scope": "x"});
    format!(
        "{}.{}.c2ln",
        part(json!({"alg": "RS256", "typ": "JWT"})),
        part(claims)
    )
}

#[test]
fn the_token_endpoint_takes_jwts_and_refresh_tokens() {
    let server = started(Config::closed(B));
    server.configure(|c| {
        c.access.refresh_tokens.insert("r1".into(), OWNER.into());
    });
    let post = |form: String| {
        let ask = ask(&server, "POST", "/token");
        ask.header("Content-Type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
    };
    let by_jwt = |jwt: String| {
        post(format!(
            "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={jwt}"
        ))
    };
    let good = by_jwt(jwt(OWNER, 3600)).expect(200).json();
    bucket(&server, good["access_token"].as_str().unwrap()).expect(200);
    assert_eq!(
        by_jwt(jwt("stranger@x", 3600)).expect(400).json()["error"],
        "invalid_grant"
    );
    by_jwt(jwt(OWNER, -5)).expect(400);
    by_jwt(jwt(OWNER, 7200)).expect(400);
    by_jwt("a.b.c".into()).expect(400);
    let refreshed = post("grant_type=refresh_token&refresh_token=r1".into())
        .expect(200)
        .json();
    bucket(&server, refreshed["access_token"].as_str().unwrap()).expect(200);
    post("grant_type=refresh_token&refresh_token=r2".into()).expect(400);
    // A service account may also sign its own bearer token.
    bucket(&server, &jwt(OWNER, 3600)).expect(200);
    bucket(&server, &jwt(OWNER, -5)).expect(401);
    bucket(&server, &jwt("stranger@x", 3600)).expect(401);
}

#[test]
fn permissions_can_be_asked_for() {
    let server = started(Config::tenant(B, "t/"));
    let target = format!(
        "/storage/v1/b/{B}/iam/testPermissions?permissions=storage.buckets.get&permissions=storage.objects.list"
    );
    let answer = ask(&server, "GET", &target)
        .token(podsnap_gcs_server::AGENT_TOKEN)
        .send()
        .expect(200);
    assert_eq!(answer.json()["permissions"], json!(["storage.buckets.get"]));
}
