//! Objects: reading, preconditions, checksums, composing.

use podsnap_gcs_server::OWNER_TOKEN as T;
use serde_json::json;

use crate::raw::*;

#[test]
fn an_object_comes_back_with_its_metadata() {
    let server = open();
    let made = insert(&server, T, "a%2Fb", "", b"hello world")
        .expect(200)
        .json();
    assert_eq!(made["name"], "a/b");
    assert_eq!(made["size"], "11");
    assert_eq!(made["crc32c"], "yZRlqg==");
    assert_eq!(made["md5Hash"], "XrY7u+Ae7tCTyyK7j1rNww==");
    assert_eq!(made["metageneration"], "1");
    assert_eq!(made["storageClass"], "STANDARD");

    let read = ask(&server, "GET", &object("a/b"))
        .send()
        .expect(200)
        .json();
    assert_eq!(read, made);
    let media = ask(&server, "GET", &format!("{}?alt=media", object("a/b")))
        .send()
        .expect(200);
    assert_eq!(media.body, b"hello world");
    let generation = made["generation"].as_str();
    assert_eq!(media.header("x-goog-generation"), generation);
    assert_eq!(
        media.header("x-goog-hash"),
        Some("crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww==")
    );

    let xml = ask(&server, "GET", "/bucket/a/b").send().expect(200);
    assert_eq!(xml.body, b"hello world");
    assert_eq!(
        xml.header("etag"),
        Some("\"5eb63bbbe01eeed093cb22bb8f5acdc3\"")
    );
    assert_eq!(xml.header("x-goog-stored-content-length"), Some("11"));
    let head = ask(&server, "HEAD", "/bucket/a/b").send().expect(200);
    assert_eq!(head.header("content-length"), Some("11"));
    assert!(head.body.is_empty());
}

#[test]
fn ranges_carry_the_checksum_of_the_whole() {
    let server = open();
    insert(&server, T, "o", "", b"0123456789").expect(200);
    for target in [format!("{}?alt=media", object("o")), "/bucket/o".into()] {
        let get = |range: &str| ask(&server, "GET", &target).header("Range", range).send();
        let whole = ask(&server, "GET", &target).send().expect(200);
        let part = get("bytes=2-4").expect(206);
        assert_eq!(part.body, b"234");
        assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
        assert_eq!(part.header("x-goog-hash"), whole.header("x-goog-hash"));
        assert_eq!(get("bytes=8-100").expect(206).body, b"89");
        assert_eq!(get("bytes=-3").expect(206).body, b"789");
        assert_eq!(get("bytes=7-").expect(206).body, b"789");
        get("bytes=10-").expect(416);
    }
}

#[test]
fn generations_increase_and_pin() {
    let server = open();
    let first = insert(&server, T, "o", "", b"1").generation();
    let second = insert(&server, T, "o", "", b"2").generation();
    assert!(second > first);
    let at = |g: i64| {
        ask(
            &server,
            "GET",
            &format!("{}?generation={g}&alt=media", object("o")),
        )
        .send()
    };
    assert_eq!(at(second).expect(200).body, b"2");
    at(first).expect(404);
    ask(&server, "GET", &format!("/bucket/o?generation={first}"))
        .send()
        .expect(404);
}

#[test]
fn preconditions_hold() {
    let server = open();
    let made = insert(&server, T, "o", "&ifGenerationMatch=0", b"1")
        .expect(200)
        .generation();
    let refused = insert(&server, T, "o", "&ifGenerationMatch=0", b"2").expect(412);
    assert_eq!(refused.reason(), "conditionNotMet");
    insert(
        &server,
        T,
        "o",
        &format!("&ifGenerationMatch={}", made - 1),
        b"2",
    )
    .expect(412);
    let next = insert(&server, T, "o", &format!("&ifGenerationMatch={made}"), b"2")
        .expect(200)
        .generation();
    let get = |query: String| ask(&server, "GET", &format!("{}?{query}", object("o"))).send();
    get(format!("ifGenerationMatch={made}")).expect(412);
    get(format!("ifGenerationNotMatch={next}")).expect(304);
    get("ifMetagenerationMatch=2".into()).expect(412);
    get("ifMetagenerationMatch=1".into()).expect(200);
    let put = |generation: i64| {
        let put = ask(&server, "PUT", "/bucket/o")
            .header("x-goog-if-generation-match", &generation.to_string());
        put.body("3").send()
    };
    let refused = put(0).expect(412);
    assert!(refused.text().contains("<Code>PreconditionFailed</Code>"));
    let last = put(next)
        .expect(200)
        .header("x-goog-generation")
        .unwrap()
        .to_owned();
    let delete = |query: String| ask(&server, "DELETE", &format!("{}?{query}", object("o"))).send();
    delete(format!("ifGenerationMatch={next}")).expect(412);
    delete(format!("generation={next}")).expect(404);
    delete(format!("ifGenerationMatch={last}")).expect(204);
    delete(String::new()).expect(404);
}

#[test]
fn a_wrong_checksum_is_refused_and_nothing_stored() {
    let server = open();
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name=o");
    let with = |hash: &str| {
        ask(&server, "POST", &target)
            .header("x-goog-hash", hash)
            .body("hello world")
            .send()
    };
    with("crc32c=AAAAAA==").expect(400);
    with("md5=AAAAAAAAAAAAAAAAAAAAAA==").expect(400);
    let refused = ask(&server, "PUT", "/bucket/o")
        .header("x-goog-hash", "crc32c=AAAAAA==")
        .body("hello world")
        .send();
    assert!(
        refused
            .expect(400)
            .text()
            .contains("<Code>BadDigest</Code>")
    );
    let multipart = |crc: &str| {
        let body = format!(
            "--xyz\r\nContent-Type: application/json\r\n\r\n{{\"name\":\"o\",\"crc32c\":\"{crc}\",\"metadata\":{{\"k\":\"v\"}}}}\r\n\
             --xyz\r\nContent-Type: text/x\r\n\r\nhello world\r\n--xyz--\r\n"
        );
        let target = format!("/upload/storage/v1/b/{B}/o?uploadType=multipart");
        let ask = ask(&server, "POST", &target)
            .header("Content-Type", "multipart/related; boundary=\"xyz\"");
        ask.body(body).send()
    };
    multipart("AAAAAA==").expect(400);
    assert!(server.objects(B).is_empty());
    let made = multipart("yZRlqg==").expect(200).json();
    assert_eq!(made["metadata"]["k"], "v");
    assert_eq!(made["contentType"], "text/x");
    assert_eq!(server.bytes(B, "o").unwrap(), b"hello world");
    with("crc32c=yZRlqg==").expect(200);
}

#[test]
fn a_composite_is_its_parts() {
    let server = open();
    insert(&server, T, "p1", "", b"hello ").expect(200);
    let second = insert(&server, T, "p2", "", b"world").generation();
    let body = json!({
        "sourceObjects": [{"name": "p1"}, {"name": "p2", "generation": second.to_string(),
            "objectPreconditions": {"ifGenerationMatch": second}}],
        "destination": {"contentType": "x/y", "metadata": {"upload": "7"}},
        "deleteSourceObjects": true,
    });
    let made = compose(&server, T, "whole", "?ifGenerationMatch=0", body.clone())
        .expect(200)
        .json();
    assert_eq!(made["crc32c"], "yZRlqg==");
    assert_eq!(made["componentCount"], 2);
    assert_eq!(made["md5Hash"], json!(null));
    assert_eq!(made["metadata"]["upload"], "7");
    assert_eq!(server.bytes(B, "whole").unwrap(), b"hello world");
    let names: Vec<_> = server.objects(B).into_iter().map(|o| o.name).collect();
    assert_eq!(names, ["whole"]);
    compose(&server, T, "whole", "?ifGenerationMatch=0", body).expect(404);
}

#[test]
fn a_compose_that_is_refused_changes_nothing() {
    let server = open();
    let old = insert(&server, T, "p", "", b"x").generation();
    let names = vec!["p"; 33];
    compose(
        &server,
        T,
        "o",
        "",
        json!({"sourceObjects": sources(&names)}),
    )
    .expect(400);
    compose(&server, T, "o", "", json!({"sourceObjects": []})).expect(400);
    compose(
        &server,
        T,
        "o",
        "",
        json!({"sourceObjects": sources(&["p", "absent"]), "deleteSourceObjects": true}),
    )
    .expect(404);
    let wrong =
        json!([{"name": "p", "objectPreconditions": {"ifGenerationMatch": (old - 1).to_string()}}]);
    compose(
        &server,
        T,
        "o",
        "",
        json!({"sourceObjects": wrong, "deleteSourceObjects": true}),
    )
    .expect(412);
    let wrong = json!([{"name": "p", "generation": (old - 1).to_string()}]);
    compose(
        &server,
        T,
        "o",
        "",
        json!({"sourceObjects": wrong, "deleteSourceObjects": true}),
    )
    .expect(404);
    compose(
        &server,
        T,
        "p",
        "?ifGenerationMatch=0",
        json!({"sourceObjects": sources(&["p"])}),
    )
    .expect(412);
    let names: Vec<_> = server.objects(B).into_iter().map(|o| o.name).collect();
    assert_eq!(names, ["p"]);
    compose(
        &server,
        T,
        "o",
        "",
        json!({"sourceObjects": sources(&vec!["p"; 32])}),
    )
    .expect(200);
    assert_eq!(server.object(B, "o").unwrap().components, Some(32));
}
