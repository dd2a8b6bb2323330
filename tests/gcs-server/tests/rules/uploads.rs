//! Uploads in several requests: resumable ones, and XML multipart ones.

use podsnap_gcs_server::{
    AGENT, AGENT_TOKEN, Config, GcsServer, Grant, OWNER_TOKEN as T, Permission,
};

use crate::raw::*;

const UNIT: usize = 256 << 10;

fn start(server: &GcsServer, query: &str) -> String {
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=resumable{query}");
    let started = ask(server, "POST", &target)
        .body("{\"name\": \"o\"}")
        .send()
        .expect(200);
    let location = started.header("location").expect("a session");
    location
        .strip_prefix(&server.url())
        .expect("of this server")
        .to_owned()
}

fn chunk(server: &GcsServer, session: &str, range: &str, body: &[u8]) -> Answer {
    ask(server, "PUT", session)
        .header("Content-Range", range)
        .body(body)
        .send()
}

#[test]
fn a_resumable_upload_goes_on_where_it_was() {
    let server = open();
    let session = start(&server, "");
    let bytes: Vec<u8> = (0..2 * UNIT + 10).map(|i| (i % 251) as u8).collect();
    let len = bytes.len();
    let status = || chunk(&server, &session, "bytes */*", b"");
    assert_eq!(status().expect(308).header("range"), None);
    let first = chunk(
        &server,
        &session,
        &format!("bytes 0-{}/*", UNIT - 1),
        &bytes[..UNIT],
    )
    .expect(308);
    let so_far = format!("bytes=0-{}", UNIT - 1);
    assert_eq!(first.header("range"), Some(so_far.as_str()));
    assert_eq!(status().expect(308).header("range"), Some(so_far.as_str()));
    let go = ask(&server, "PUT", &session)
        .header("Content-Range", "bytes */*")
        .header("X-GUploader-No-308", "yes");
    assert_eq!(
        go.send().expect(200).header("x-http-status-code-override"),
        Some("308")
    );
    // A gap cannot be, and a chunk in the middle has a length.
    chunk(
        &server,
        &session,
        &format!("bytes {}-{}/{len}", 2 * UNIT, len - 1),
        &bytes[2 * UNIT..],
    )
    .expect(503);
    chunk(
        &server,
        &session,
        &format!("bytes {UNIT}-{}/*", UNIT + 9),
        &bytes[UNIT..UNIT + 10],
    )
    .expect(400);
    // What was sent before may be sent again.
    let rest = &bytes[UNIT / 2..];
    let done = chunk(
        &server,
        &session,
        &format!("bytes {}-{}/{len}", UNIT / 2, len - 1),
        rest,
    )
    .expect(200);
    assert_eq!(done.json()["size"], len.to_string());
    assert_eq!(server.bytes(B, "o").unwrap(), bytes);
    assert_eq!(status().expect(200).json(), done.json());
    assert_eq!(server.billing(B).unfinished_uploads, 0);
}

#[test]
fn a_resumable_upload_is_judged_at_its_end() {
    let server = open();
    let session = start(&server, "&ifGenerationMatch=0");
    assert_eq!(server.billing(B).unfinished_uploads, 1);
    insert(&server, T, "o", "", b"other").expect(200);
    chunk(&server, &session, "bytes 0-2/3", b"abc").expect(412);
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=resumable&ifGenerationMatch=0");
    ask(&server, "POST", &target)
        .body("{\"name\": \"o\"}")
        .send()
        .expect(412);
    let session = start(&server, "");
    let wrong = ask(&server, "PUT", &session)
        .header("x-goog-hash", "crc32c=AAAAAA==")
        .body("abc")
        .send();
    wrong.expect(400);
    assert_eq!(server.bytes(B, "o").unwrap(), b"other");
    let session = start(&server, "");
    ask(&server, "DELETE", &session).send().expect(499);
    chunk(&server, &session, "bytes 0-2/3", b"abc").expect(404);
    // Of unknown length, and empty.
    let session = start(&server, "");
    chunk(
        &server,
        &session,
        &format!("bytes 0-{}/*", UNIT - 1),
        &vec![1; UNIT],
    )
    .expect(308);
    chunk(&server, &session, &format!("bytes */{UNIT}"), b"").expect(200);
    assert_eq!(server.bytes(B, "o").unwrap().len(), UNIT);
    let session = start(&server, "");
    chunk(&server, &session, "bytes */0", b"").expect(200);
    assert_eq!(server.bytes(B, "o").unwrap(), b"");
}

fn initiate(server: &GcsServer, token: &str) -> Answer {
    ask(server, "POST", "/bucket/o?uploads").token(token).send()
}

fn upload_id(answer: &Answer) -> String {
    let id = answer.text().split("<UploadId>").nth(1).expect("an id");
    id.split('<').next().unwrap().to_owned()
}

#[test]
fn xml_multipart_uploads_have_their_own_rules() {
    let server = open();
    let id = upload_id(&initiate(&server, T).expect(200));
    let part = |number: u32, body: &[u8]| {
        let target = format!("/bucket/o?partNumber={number}&uploadId={id}");
        ask(&server, "PUT", &target).body(body).send()
    };
    let big = vec![1; 5 << 20];
    let first = part(1, &big).expect(200).header("etag").unwrap().to_owned();
    let second = part(2, b"end")
        .expect(200)
        .header("etag")
        .unwrap()
        .to_owned();
    part(0, b"x").expect(400);
    part(10_001, b"x").expect(400);
    let bad = ask(
        &server,
        "PUT",
        &format!("/bucket/o?partNumber=3&uploadId={id}"),
    );
    bad.header("x-goog-hash", "crc32c=AAAAAA==")
        .body("x")
        .send()
        .expect(400);
    let complete = |parts: &[(u32, &str)]| {
        let list = parts.iter().map(|(n, etag)| {
            format!("<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>")
        });
        let body = format!(
            "<CompleteMultipartUpload>{}</CompleteMultipartUpload>",
            list.collect::<String>()
        );
        ask(&server, "POST", &format!("/bucket/o?uploadId={id}"))
            .body(body)
            .send()
    };
    complete(&[(2, &second), (1, &first)]).expect(400);
    complete(&[(1, &second), (2, &first)]).expect(400);
    complete(&[]).expect(400);
    let third = part(3, b"more")
        .expect(200)
        .header("etag")
        .unwrap()
        .to_owned();
    let small = complete(&[(1, &first), (2, &second), (3, &third)]).expect(400);
    assert!(small.text().contains("EntityTooSmall"));
    assert!(server.objects(B).is_empty());
    complete(&[(1, &first), (2, &second)]).expect(200);
    assert_eq!(server.object(B, "o").unwrap().size, (5 << 20) + 3);
    complete(&[(1, &first), (2, &second)]).expect(404);
    let resource = ask(&server, "GET", &object("o")).send().json();
    assert_eq!(resource["md5Hash"], serde_json::Value::Null);
}

#[test]
fn xml_multipart_uploads_need_permissions_of_their_own() {
    let server = started(Config::tenant(B, ""));
    let denied = initiate(&server, AGENT_TOKEN).expect(403);
    assert!(denied.text().contains("storage.multipartUploads.create"));
    server.configure(|c| c.grant(AGENT, Grant::new(B, "", &[Permission::MultipartCreate])));
    let id = upload_id(&initiate(&server, AGENT_TOKEN).expect(200));
    let abort = || {
        ask(&server, "DELETE", &format!("/bucket/o?uploadId={id}"))
            .token(AGENT_TOKEN)
            .send()
    };
    abort().expect(403);
    assert_eq!(server.billing(B).unfinished_uploads, 1);
    server.configure(|c| c.grant(AGENT, Grant::new(B, "", &[Permission::MultipartAbort])));
    abort().expect(204);
    assert_eq!(server.billing(B).unfinished_uploads, 0);
}
