//! Folders of hierarchical buckets.

use podsnap_gcs_server::{Config, GcsServer, OWNER_TOKEN as T};
use serde_json::json;

use crate::raw::*;

fn hierarchical() -> GcsServer {
    let mut config = Config::open(B);
    config.bucket(B).hierarchical_namespace = true;
    started(config)
}

fn folder(server: &GcsServer, method: &str, name: &str) -> Answer {
    ask(
        server,
        method,
        &format!("/storage/v1/b/{B}/folders/{}", encoded(name)),
    )
    .send()
}

fn make(server: &GcsServer, name: &str, recursive: bool) -> Answer {
    let target = format!("/storage/v1/b/{B}/folders?recursive={recursive}");
    ask(server, "POST", &target)
        .body(json!({"name": name}).to_string())
        .send()
}

#[test]
fn objects_bring_their_folders() {
    let server = hierarchical();
    insert(&server, T, "a%2Fb%2Fo", "", b"1").expect(200);
    assert_eq!(server.folders(B), ["a/", "a/b/"]);
    assert_eq!(
        folder(&server, "GET", "a/b/").expect(200).json()["name"],
        "a/b/"
    );
    folder(&server, "GET", "a/c/").expect(404);
    // They stay when the object goes.
    ask(&server, "DELETE", &object("a/b/o")).send().expect(204);
    assert_eq!(server.folders(B), ["a/", "a/b/"]);
}

#[test]
fn only_empty_folders_are_deleted() {
    let server = hierarchical();
    insert(&server, T, "a%2Fb%2Fo", "", b"1").expect(200);
    folder(&server, "DELETE", "a/b/").expect(409);
    folder(&server, "DELETE", "a/").expect(409);
    ask(&server, "DELETE", &object("a/b/o")).send().expect(204);
    folder(&server, "DELETE", "a/").expect(409);
    folder(&server, "DELETE", "a/b/").expect(204);
    folder(&server, "DELETE", "a/").expect(204);
    folder(&server, "DELETE", "a/").expect(404);
}

#[test]
fn folders_are_made_with_parents_on_request() {
    let server = hierarchical();
    make(&server, "x/y/", false).expect(404);
    make(&server, "x/y/", true).expect(200);
    make(&server, "x/y/", true).expect(409);
    make(&server, "x/z", false).expect(200);
    assert_eq!(server.folders(B), ["x/", "x/y/", "x/z/"]);
    let listed = ask(
        &server,
        "GET",
        &format!("/storage/v1/b/{B}/folders?prefix=x/y"),
    )
    .send()
    .expect(200)
    .json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
}

#[test]
fn depth_and_length_are_limited() {
    let server = hierarchical();
    make(&server, &"d/".repeat(50), true).expect(200);
    make(&server, &"d/".repeat(51), true).expect(400);
    insert(&server, T, &"e%2F".repeat(51), "", b"1").expect(400);
    let put = |name: String| {
        ask(&server, "PUT", &format!("/bucket/{name}"))
            .body("1")
            .send()
    };
    put("l".repeat(513)).expect(400);
    put("l".repeat(512)).expect(200);
    put(format!("{}/o", "l".repeat(513))).expect(400);
}

#[test]
fn a_flat_bucket_has_none() {
    let server = open();
    make(&server, "x/", true).expect(409);
    insert(&server, T, "a%2Fb", "", b"1").expect(200);
    assert!(server.folders(B).is_empty());
    ask(&server, "PUT", &format!("/bucket/{}", "l".repeat(1024)))
        .body("1")
        .send()
        .expect(200);
    ask(&server, "PUT", &format!("/bucket/{}", "l".repeat(1025)))
        .body("1")
        .send()
        .expect(400);
}

#[test]
fn a_move_is_one_step_and_makes_folders() {
    let server = hierarchical();
    server.configure(|c| c.bucket(B).soft_delete_s = 60);
    insert(&server, T, "from%2Fo", "", b"1").expect(200);
    insert(&server, T, "there", "", b"2").expect(200);
    let rename = |from: &str, to: &str, query: &str| {
        ask(
            &server,
            "POST",
            &format!("{}/moveTo/o/{}{query}", object(from), encoded(to)),
        )
        .send()
    };
    rename("from/o", "there", "?ifGenerationMatch=0").expect(412);
    rename("from/o", "to/x/o", "?ifGenerationMatch=0").expect(200);
    rename("from/o", "to/x/o", "").expect(404);
    assert_eq!(server.bytes(B, "to/x/o").unwrap(), b"1");
    assert!(server.folders(B).contains(&"to/x/".to_owned()));
    assert_eq!(server.billing(B).soft_deleted_objects, 0);
}
