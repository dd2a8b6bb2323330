//! What a bucket's settings and the service's own limits forbid.

use std::{thread::sleep, time::Duration};

use podsnap_gcs_server::{Config, GcsServer, OWNER_TOKEN as T};
use serde_json::{Value, json};

use crate::raw::*;

fn delete(server: &GcsServer, name: &str) -> Answer {
    ask(server, "DELETE", &object(name)).token(T).send()
}

#[test]
fn one_mutation_of_a_name_at_a_time() {
    let server = GcsServer::start(Config::open(B)).unwrap();
    server.configure(|c| c.rules.mutations_per_second = 0.01);
    insert(&server, T, "o", "", b"1").expect(200);
    let refused = insert(&server, T, "o", "", b"2").expect(429);
    assert_eq!(refused.reason(), "rateLimitExceeded");
    let refused = ask(&server, "PUT", "/bucket/o")
        .body("2")
        .send()
        .expect(429);
    assert!(refused.text().contains("<Code>SlowDown</Code>"));
    delete(&server, "o").expect(429);
    // What is refused anyhow is not counted, and other names are other names.
    insert(&server, T, "p", "&ifGenerationMatch=7", b"1").expect(412);
    insert(&server, T, "p", "", b"1").expect(200);
    // Sources that a compose deletes are not rated.
    insert(&server, T, "fresh", "", b"1").expect(200);
    let body = json!({"sourceObjects": sources(&["fresh"]), "deleteSourceObjects": true});
    compose(&server, T, "whole", "", body).expect(200);
    server.configure(|c| c.rules.mutation_burst = 2);
    insert(&server, T, "twice", "", b"1").expect(200);
    insert(&server, T, "twice", "", b"1").expect(200);
    insert(&server, T, "twice", "", b"1").expect(429);
    // Faster, the wait is over; without the rule there is none.
    server.configure(|c| c.rules.mutations_per_second = 1000.0);
    sleep(Duration::from_millis(5));
    insert(&server, T, "twice", "", b"1").expect(200);
    server.configure(|c| c.rules.mutations_per_second = 0.0);
    insert(&server, T, "twice", "", b"1").expect(200);
}

#[test]
fn a_mutation_repeated_with_its_token_is_answered_as_before() {
    let server = open();
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name=o&ifGenerationMatch=0");
    let insert = |token: &str| {
        let ask = ask(&server, "POST", &target).header("x-goog-gcs-idempotency-token", token);
        ask.body("1").send()
    };
    let first = insert("t1").expect(200);
    let again = insert("t1").expect(200);
    assert_eq!(first.json(), again.json());
    insert("t2").expect(412);
    let log = server.log();
    let replayed: Vec<bool> = log.entries.iter().map(|e| e.replayed).collect();
    assert_eq!(replayed, [false, true, false]);
    assert_eq!(server.billing(B).class_a, 1);

    let compose = || {
        let body = json!({"sourceObjects": sources(&["o"]), "deleteSourceObjects": true});
        let target = format!("{}/compose?ifGenerationMatch=0", object("whole"));
        let ask = ask(&server, "POST", &target).header("x-goog-gcs-idempotency-token", "t3");
        ask.body(body.to_string()).send()
    };
    assert_eq!(compose().expect(200).json(), compose().expect(200).json());
}

#[test]
fn what_soft_delete_keeps_is_billed_but_not_sources_of_a_compose() {
    let server = open();
    server.configure(|c| c.bucket(B).soft_delete_s = 3600);
    let old = insert(&server, T, "o", "", b"old").generation();
    insert(&server, T, "o", "", b"newer").expect(200);
    let billing = server.billing(B);
    assert_eq!((billing.live_bytes, billing.soft_deleted_bytes), (5, 3));
    delete(&server, "o").expect(204);
    let billing = server.billing(B);
    assert_eq!((billing.live_bytes, billing.soft_deleted_bytes), (0, 8));
    insert(&server, T, "p", "", b"part").expect(200);
    let body = json!({"sourceObjects": sources(&["p"]), "deleteSourceObjects": true});
    compose(&server, T, "c", "", body).expect(200);
    let billing = server.billing(B);
    assert_eq!((billing.live_bytes, billing.soft_deleted_bytes), (4, 8));

    let list = format!("/storage/v1/b/{B}/o?softDeleted=true");
    let listed = ask(&server, "GET", &list).send().expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
    let restore = format!("{}/restore?generation={old}", object("o"));
    ask(&server, "POST", &restore).send().expect(200);
    assert_eq!(server.bytes(B, "o").unwrap(), b"old");
    server.configure(|c| c.bucket(B).soft_delete_s = 0);
    assert_eq!(server.billing(B).soft_deleted_bytes, 0);
}

#[test]
fn retention_and_holds_keep_objects() {
    let server = open();
    insert(&server, T, "o", "", b"1").expect(200);
    server.configure(|c| c.bucket(B).retention_s = Some(3600));
    let reason = |answer: Answer| answer.expect(403).reason();
    assert_eq!(reason(delete(&server, "o")), "retentionPolicyNotMet");
    assert_eq!(
        reason(insert(&server, T, "o", "", b"2")),
        "retentionPolicyNotMet"
    );
    let body = json!({"sourceObjects": sources(&["o"]), "deleteSourceObjects": true});
    assert_eq!(
        reason(compose(&server, T, "c", "", body)),
        "retentionPolicyNotMet"
    );
    assert!(server.object(B, "c").is_none());
    let made = insert(&server, T, "new", "", b"1").expect(200).json();
    assert!(made["retentionExpirationTime"].is_string());
    server.configure(|c| {
        c.bucket(B).retention_s = None;
        c.bucket(B).default_event_based_hold = true;
    });
    delete(&server, "o").expect(204);
    let made = insert(&server, T, "held", "", b"1").expect(200).json();
    assert_eq!(made["eventBasedHold"], true);
    assert_eq!(reason(delete(&server, "held")), "objectUnderActiveHold");
    let release = ask(&server, "PATCH", &object("held")).body("{\"eventBasedHold\": false}");
    assert_eq!(release.send().expect(200).json()["metageneration"], "2");
    delete(&server, "held").expect(204);
}

#[test]
fn bucket_metadata_says_what_is_enforced() {
    let server = open();
    let get = || -> Value {
        ask(&server, "GET", &format!("/storage/v1/b/{B}"))
            .send()
            .expect(200)
            .json()
    };
    let plain = get();
    assert_eq!(plain["softDeletePolicy"]["retentionDurationSeconds"], "0");
    assert_eq!(plain["hierarchicalNamespace"], Value::Null);
    assert_eq!(plain["retentionPolicy"], Value::Null);
    server.configure(|c| {
        let bucket = c.bucket(B);
        bucket.soft_delete_s = 604_800;
        bucket.hierarchical_namespace = true;
        bucket.retention_s = Some(60);
        bucket.default_event_based_hold = true;
        bucket.location = "EU".into();
        bucket.location_type = "multi-region".into();
        bucket.storage_class = "NEARLINE".into();
        bucket.lifecycle = Some(json!({"rule": []}));
    });
    let full = get();
    assert_eq!(
        full["softDeletePolicy"]["retentionDurationSeconds"],
        "604800"
    );
    assert_eq!(full["hierarchicalNamespace"]["enabled"], true);
    assert_eq!(
        full["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"],
        true
    );
    assert_eq!(full["retentionPolicy"]["retentionPeriod"], "60");
    assert_eq!(full["defaultEventBasedHold"], true);
    assert_eq!(full["location"], "EU");
    assert_eq!(full["locationType"], "multi-region");
    assert_eq!(full["storageClass"], "NEARLINE");
    assert_eq!(full["lifecycle"], json!({"rule": []}));
    assert_eq!(
        insert(&server, T, "o", "", b"1").json()["storageClass"],
        "NEARLINE"
    );
    let absent = ask(&server, "GET", "/storage/v1/b/absent")
        .send()
        .expect(404);
    assert_eq!(absent.reason(), "notFound");
}

#[test]
fn buckets_are_made_with_the_services_defaults() {
    let server = open();
    let make = |body: Value| {
        ask(&server, "POST", "/storage/v1/b?project=p")
            .body(body.to_string())
            .send()
    };
    make(json!({"name": "new"})).expect(200);
    make(json!({"name": "new"})).expect(409);
    let made = ask(&server, "GET", "/storage/v1/b/new")
        .send()
        .expect(200)
        .json();
    assert_eq!(
        made["softDeletePolicy"]["retentionDurationSeconds"],
        "604800"
    );
    assert_eq!(made["location"], "US");
    make(json!({"name": "h", "hierarchicalNamespace": {"enabled": true}})).expect(400);
    let uniform = json!({"uniformBucketLevelAccess": {"enabled": true}});
    make(json!({"name": "h", "hierarchicalNamespace": {"enabled": true}, "iamConfiguration": uniform})).expect(200);
    let listed = ask(&server, "GET", "/storage/v1/b?project=p")
        .send()
        .expect(200)
        .json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
}

#[test]
fn acls_are_refused_where_access_is_uniform() {
    let server = open();
    insert(&server, T, "o", "&predefinedAcl=private", b"1").expect(400);
    let put = ask(&server, "PUT", "/bucket/o").header("x-goog-acl", "private");
    put.body("1").send().expect(400);
    server.configure(|c| c.bucket(B).uniform_bucket_level_access = false);
    insert(&server, T, "o", "&predefinedAcl=private", b"1").expect(200);
}

#[test]
fn composites_have_one_storage_class() {
    let server = open();
    insert(&server, T, "standard", "", b"1").expect(200);
    server.configure(|c| c.bucket(B).storage_class = "NEARLINE".into());
    insert(&server, T, "nearline", "", b"1").expect(200);
    let both = json!({"sourceObjects": sources(&["standard", "nearline"])});
    compose(&server, T, "c", "", both).expect(400);
}

#[test]
fn memory_is_bounded_and_given_back() {
    let server = open();
    server.configure(|c| c.rules.memory_limit_bytes = 3 << 20);
    let megabyte = vec![7; 1 << 20];
    insert(&server, T, "a", "", &megabyte).expect(200);
    insert(&server, T, "b", "", &megabyte).expect(200);
    assert_eq!(server.held_bytes(), 2 << 20);
    // A composite shares its sources' bytes.
    compose(
        &server,
        T,
        "c",
        "",
        json!({"sourceObjects": sources(&["a", "b", "a"])}),
    )
    .expect(200);
    assert_eq!(server.held_bytes(), 2 << 20);
    insert(&server, T, "d", "", &vec![7; 2 << 20]).expect(507);
    assert_eq!(server.held_bytes(), 2 << 20);
    for name in ["a", "b", "c"] {
        delete(&server, name).expect(204);
    }
    assert_eq!(server.held_bytes(), 0);
}
