//! Listings of both APIs.

use podsnap_gcs_server::GcsServer;
use serde_json::Value;

use crate::raw::*;

fn filled() -> GcsServer {
    let server = open();
    for name in ["a", "b/1", "b/2", "b/c/3", "d", "e/4"] {
        server.put(B, name, name.as_bytes());
    }
    server
}

fn list(server: &GcsServer, query: &str) -> Value {
    ask(server, "GET", &format!("/storage/v1/b/{B}/o?{query}"))
        .send()
        .expect(200)
        .json()
}

fn names(listed: &Value) -> Vec<&str> {
    let items = listed["items"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    items.iter().map(|i| i["name"].as_str().unwrap()).collect()
}

#[test]
fn prefix_and_delimiter() {
    let server = filled();
    assert_eq!(names(&list(&server, "prefix=b/")), ["b/1", "b/2", "b/c/3"]);
    let top = list(&server, "delimiter=/");
    assert_eq!(names(&top), ["a", "d"]);
    assert_eq!(top["prefixes"], serde_json::json!(["b/", "e/"]));
    let below = list(&server, "delimiter=/&prefix=b/");
    assert_eq!(names(&below), ["b/1", "b/2"]);
    assert_eq!(below["prefixes"], serde_json::json!(["b/c/"]));
    assert_eq!(
        names(&list(&server, "startOffset=b/2&endOffset=e")),
        ["b/2", "b/c/3", "d"]
    );
    assert_eq!(list(&server, "prefix=x")["items"], Value::Null);
}

#[test]
fn pages_hold_everything_once() {
    let server = filled();
    for (delimiter, expected) in [("", 6), ("/", 4)] {
        for most in 1..=7 {
            let mut seen = Vec::new();
            let mut token = String::new();
            loop {
                let page = list(
                    &server,
                    &format!("delimiter={delimiter}&maxResults={most}&pageToken={token}"),
                );
                let prefixes = page["prefixes"].as_array().cloned().unwrap_or_default();
                let before = seen.len();
                seen.extend(names(&page).into_iter().map(str::to_owned));
                seen.extend(prefixes.iter().map(|p| p.as_str().unwrap().to_owned()));
                assert!(seen.len() - before <= most);
                match page["nextPageToken"].as_str() {
                    Some(next) => token = next.replace('=', "%3D"),
                    None => break,
                }
            }
            let all = seen.len();
            seen.sort();
            seen.dedup();
            assert_eq!(
                (seen.len(), all),
                (expected, expected),
                "{delimiter:?}, {most} a page: {seen:?}"
            );
        }
    }
}

#[test]
fn xml_listings() {
    let server = filled();
    let get = |query: &str| {
        ask(&server, "GET", &format!("/{B}?{query}"))
            .send()
            .expect(200)
            .text()
            .to_owned()
    };
    let keys = |xml: &str| xml.matches("<Key>").count();
    let second = get("list-type=2&max-keys=4");
    assert_eq!(keys(&second), 4);
    assert!(second.contains("<IsTruncated>true</IsTruncated>"));
    let token = second
        .split("<NextContinuationToken>")
        .nth(1)
        .unwrap()
        .split('<')
        .next()
        .unwrap();
    let rest = get(&format!(
        "list-type=2&continuation-token={}",
        token.replace('=', "%3D")
    ));
    assert!(
        rest.contains("<Key>d</Key>") && rest.contains("<Key>e/4</Key>"),
        "{rest}"
    );
    assert_eq!(keys(&rest), 2);
    let first = get("delimiter=/&marker=a");
    assert_eq!(keys(&first), 1);
    assert!(first.contains("<CommonPrefixes><Prefix>b/</Prefix></CommonPrefixes>"));
}
