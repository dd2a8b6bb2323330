//! Every fault does what it says, to the requests it is meant for, and the log tells.

use std::time::{Duration, Instant};

use podsnap_gcs_server::{Fault, FaultKind, GcsServer, OWNER_TOKEN as T, Operation};
use serde_json::json;

use crate::raw::*;

const LEN: usize = 1 << 20;

/// A server with an object `o` of a megabyte, and a fault.
fn with(fault: Fault) -> (GcsServer, Vec<u8>) {
    let server = open();
    let bytes: Vec<u8> = (0..LEN).map(|i| (i % 251) as u8).collect();
    server.put(B, "o", &bytes);
    server.add_fault(fault);
    (server, bytes)
}

fn get(server: &GcsServer) -> std::io::Result<Answer> {
    ask(server, "GET", &format!("{}?alt=media", object("o"))).try_send()
}

#[test]
fn statuses_come_to_whom_they_are_meant_for() {
    let (server, bytes) = with(
        Fault::new(FaultKind::Status {
            status: 503,
            retry_after_s: Some(2),
        })
        .on(&[Operation::GetMedia])
        .nth(2),
    );
    assert_eq!(get(&server).unwrap().body, bytes);
    let refused = get(&server).unwrap().expect(503);
    assert_eq!(refused.header("retry-after"), Some("2"));
    assert_eq!(get(&server).unwrap().body, bytes);
    assert_eq!(server.log().faulty().len(), 1);
    assert_eq!(server.faults()[0].1, 1);

    server.add_fault(
        Fault::new(FaultKind::Status {
            status: 429,
            retry_after_s: None,
        })
        .below("only/"),
    );
    insert(&server, T, "other", "", b"1").expect(200);
    insert(&server, T, "only%2Fthis", "", b"1").expect(429);
    // Also where the name is in the body alone.
    let body = "--x\r\nContent-Type: application/json\r\n\r\n{\"name\":\"only/that\"}\r\n--x\r\n\r\n\r\n1\r\n--x--";
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=multipart");
    let multipart =
        ask(&server, "POST", &target).header("Content-Type", "multipart/related; boundary=x");
    multipart.body(body).send().expect(429);
    server.clear_faults();
    insert(&server, T, "only%2Fthis", "", b"1").expect(200);
}

#[test]
fn the_same_seed_gives_the_same_faults() {
    let run = |seed| {
        let (server, _) = with(
            Fault::new(FaultKind::Status {
                status: 500,
                retry_after_s: None,
            })
            .with_probability(0.3, seed),
        );
        let answers = (0..60).map(|_| ask(&server, "GET", &object("o")).send().status);
        answers.collect::<Vec<_>>()
    };
    let once = run(1);
    assert_eq!(once, run(1));
    assert_ne!(once, run(2));
    let faults = once.iter().filter(|s| **s == 500).count();
    assert!((8..30).contains(&faults), "{faults} of 60");
}

#[test]
fn connections_break() {
    let (server, _) = with(Fault::new(FaultKind::Reset).times(1));
    get(&server).unwrap_err();
    for fault in [
        FaultKind::ResetDownload { after_bytes: None },
        FaultKind::Truncate {
            after_bytes: Some(1000),
        },
    ] {
        server.add_fault(Fault::new(fault).times(1));
        let e = get(&server).unwrap_err();
        get(&server).unwrap().expect(200);
        println!("{e}");
    }
    let log = server.log();
    assert_eq!(log.faulty().len(), 3);
    assert_eq!(log.faulty()[2].bytes_out, 1000);
    assert_eq!(log.faulty()[0].status, 0);
}

#[test]
fn a_truncated_download_keeps_what_was_sent() {
    use std::io::{Read, Write};
    let (server, bytes) = with(Fault::new(FaultKind::Truncate {
        after_bytes: Some(300_000),
    }));
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream
        .write_all(b"GET /bucket/o HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let body = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(&all[body..], &bytes[..300_000]);
    assert!(
        String::from_utf8_lossy(&all[..body])
            .to_lowercase()
            .contains("content-length: 1048576")
    );
}

#[test]
fn an_upload_that_breaks_stores_nothing() {
    let (server, _) = with(Fault::new(FaultKind::ResetUpload { after_bytes: None }));
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name=new");
    ask(&server, "POST", &target)
        .body(vec![1; LEN])
        .try_send()
        .unwrap_err();
    assert!(server.object(B, "new").is_none());
}

#[test]
fn stalls_and_slow_bodies_take_their_time() {
    let timed = |fault: FaultKind| {
        let (server, bytes) = with(Fault::new(fault));
        let begun = Instant::now();
        assert_eq!(get(&server).unwrap().body, bytes);
        begun.elapsed()
    };
    let least = Duration::from_millis(200);
    assert!(timed(FaultKind::Stall { ms: 200 }) >= least);
    assert!(
        timed(FaultKind::StallDownload {
            ms: 200,
            after_bytes: None
        }) >= least
    );
    assert!(
        timed(FaultKind::SlowDownload {
            bytes_per_s: 4 << 20
        }) >= least
    );
    for fault in [
        FaultKind::StallUpload {
            ms: 200,
            after_bytes: Some(10),
        },
        FaultKind::SlowUpload {
            bytes_per_s: 4 << 20,
        },
    ] {
        let (server, bytes) = with(Fault::new(fault));
        let begun = Instant::now();
        insert(&server, T, "new", "", &bytes).expect(200);
        assert!(begun.elapsed() >= least);
        assert_eq!(server.bytes(B, "new").unwrap(), bytes);
    }
}

#[test]
fn corruption_is_one_bit_and_the_checksum_stays() {
    let (server, bytes) = with(Fault::new(FaultKind::Corrupt { at: None }).times(1));
    let wrong = get(&server).unwrap().expect(200);
    let right = get(&server).unwrap().expect(200);
    let differ: Vec<usize> = (0..LEN).filter(|i| wrong.body[*i] != bytes[*i]).collect();
    assert_eq!(differ, [LEN / 2]);
    assert_eq!(wrong.header("x-goog-hash"), right.header("x-goog-hash"));

    server.add_fault(Fault::new(FaultKind::WrongHash).times(2));
    let wrong = get(&server).unwrap().expect(200);
    assert_eq!(wrong.body, bytes);
    assert_ne!(wrong.header("x-goog-hash"), right.header("x-goog-hash"));
    let resource = ask(&server, "GET", &object("o")).send().expect(200).json();
    assert_ne!(
        resource["crc32c"].as_str(),
        server.object(B, "o").map(|o| o.crc32c).as_deref()
    );

    // An upload that is corrupted on its way is noticed by a client that sends a checksum, and by no other.
    server.add_fault(Fault::new(FaultKind::CorruptUpload { at: Some(1) }).times(2));
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name=new");
    let upload = |hash: &str| {
        ask(&server, "POST", &target)
            .header("x-goog-hash", hash)
            .body("hello world")
            .send()
    };
    upload("crc32c=yZRlqg==").expect(400);
    upload("").expect(200);
    assert_eq!(server.bytes(B, "new").unwrap(), b"hdllo world");
}

#[test]
fn a_wrong_length_is_declared() {
    for by in [-10, 10] {
        let (server, _) = with(Fault::new(FaultKind::WrongLength { by }).times(1));
        let got = get(&server);
        match by < 0 {
            // Shorter: whoever trusts it gets too little.
            true => assert_eq!(got.unwrap().body.len(), LEN - 10),
            false => assert!(got.is_err()),
        }
    }
}

#[test]
fn an_answer_is_lost_but_the_deed_is_done() {
    let (server, _) = with(Fault::new(FaultKind::LoseAnswer { status: Some(503) }).times(1));
    server.put(B, "part", b"x");
    let compose = || {
        let target = format!("{}/compose?ifGenerationMatch=0", object("c"));
        let body = json!({"sourceObjects": sources(&["part"]), "deleteSourceObjects": true});
        let ask = ask(&server, "POST", &target).header("x-goog-gcs-idempotency-token", "k");
        ask.body(body.to_string()).try_send()
    };
    compose().unwrap().expect(503);
    assert!(server.object(B, "c").is_some());
    compose().unwrap().expect(200);
    server.add_fault(Fault::new(FaultKind::LoseAnswer { status: None }).on(&[Operation::Delete]));
    ask(&server, "DELETE", &object("c")).try_send().unwrap_err();
    assert!(server.object(B, "c").is_none());
}

#[test]
fn bytes_rot_at_rest() {
    let server = open();
    let generation = server.put(B, "o", b"hello");
    server.tamper(B, "o", |bytes| bytes[0] ^= 1);
    let read = get(&server).unwrap().expect(200);
    assert_eq!(read.body, b"iello");
    assert_eq!(
        read.header("x-goog-generation"),
        Some(generation.to_string().as_str())
    );
    assert!(
        read.header("x-goog-hash")
            .unwrap()
            .starts_with("crc32c=mnG7TA==")
    );
}

#[test]
fn another_process_can_set_all_this() {
    let server = open();
    let control = |method: &str, what: &str, body: serde_json::Value| {
        ask(&server, method, &format!("/_control/{what}"))
            .body(body.to_string())
            .send()
    };
    let null = serde_json::Value::Null;
    let fault = json!({"fault": {"kind": "status", "status": 500}, "operations": ["insert-media"], "times": 1});
    control("POST", "faults", fault.clone()).expect(200);
    insert(&server, T, "o", "", b"1").expect(500);
    insert(&server, T, "o", "", b"1").expect(200);
    assert_eq!(
        control("GET", "faults", null.clone()).json()[0]["happened"],
        1
    );
    control("POST", "faults", json!({"fault": {"kind": "nonsense"}})).expect(400);
    control("DELETE", "faults", null.clone()).expect(200);
    assert!(server.faults().is_empty());
    let change = json!({"link": {"first_byte_ms": 7}, "buckets": {"second": {"soft_delete_s": 9}}});
    control("PATCH", "config", change).expect(200);
    assert_eq!(server.config().link.first_byte_ms, 7);
    assert_eq!(server.config().buckets["second"].soft_delete_s, 9);
    assert!(server.config().buckets.contains_key(B));
    control("PATCH", "config", json!({"link": {"latency": 7}})).expect(400);
    assert_eq!(
        control("GET", "objects?bucket=bucket", null.clone()).json()[0]["name"],
        "o"
    );
    assert_eq!(
        control("GET", "counts", null.clone()).json()["insert-media"],
        2
    );
    assert_eq!(
        control("GET", "billing?bucket=bucket", null.clone()).json()["live_bytes"],
        1
    );
    assert_eq!(control("GET", "log", null.clone()).json()[0]["status"], 500);
    let token = control(
        "POST",
        "tokens",
        json!({"principal": podsnap_gcs_server::OWNER}),
    )
    .json();
    let token = token["token"].as_str().unwrap().to_owned();
    ask(&server, "GET", &object("o"))
        .token(&token)
        .send()
        .expect(200);
    control("DELETE", "tokens", null.clone()).expect(200);
    ask(&server, "GET", &object("o"))
        .token(&token)
        .send()
        .expect(401);
    control("GET", "nothing", null).expect(400);
}
