//! Who may do what.

use podsnap_gcs_server::{AGENT, AGENT_TOKEN, Config, OWNER_TOKEN as T, Operation, Permission};
use serde_json::json;

use crate::raw::*;

#[test]
fn an_agent_has_what_it_has_and_no_more() {
    let server = started(Config::tenant(B, "tenant/"));
    let t = AGENT_TOKEN;
    insert(&server, t, "tenant%2Fo", "", b"1").expect(200);
    insert(&server, t, "tenant%2Fo", "", b"2").expect(200);
    let denied = insert(&server, t, "other%2Fo", "", b"1").expect(403);
    assert_eq!(denied.reason(), "forbidden");
    assert!(denied.text().contains("storage.objects.create"));
    insert(&server, t, "tenantx", "", b"1").expect(403);
    insert(&server, T, "other%2Fo", "", b"secret").expect(200);
    ask(&server, "GET", &object("other/o"))
        .token(t)
        .send()
        .expect(403);
    compose(
        &server,
        t,
        "tenant/stolen",
        "",
        json!({"sourceObjects": sources(&["other/o"])}),
    )
    .expect(403);

    let get = |target: &str| ask(&server, "GET", target).token(t).send();
    get(&format!("/storage/v1/b/{B}")).expect(200);
    get(&format!("/storage/v1/b/{B}/o?prefix=tenant/")).expect(403);
    get(&format!("/{B}?prefix=tenant/&list-type=2")).expect(403);
    ask(&server, "POST", &format!("/{B}/tenant/o?uploads"))
        .token(t)
        .send()
        .expect(403);
    let folder = |name: &str| {
        let target = format!("/storage/v1/b/{B}/folders?recursive=true");
        ask(&server, "POST", &target)
            .token(t)
            .body(json!({"name": name}).to_string())
            .send()
    };
    folder("tenant/x/y/").expect(200);
    folder("other/x/").expect(403);
    ask(&server, "DELETE", &object("tenant/o"))
        .token(t)
        .send()
        .expect(204);

    // Without the right to list, what is absent is not told from what is forbidden, unless the server is nice.
    get(&object("tenant/absent")).expect(403);
    server.configure(|c| c.rules.missing_without_list = 404);
    get(&object("tenant/absent")).expect(404);

    server.clear_log();
    get(&object("tenant/absent")).expect(404);
    server.log().assert_only(&[Operation::GetMetadata]);
    assert_eq!(server.log().permissions(), [Permission::ObjectsGet]);
    assert_eq!(server.log().entries[0].principal.as_deref(), Some(AGENT));
}

#[test]
fn overwriting_needs_the_right_to_delete() {
    let server = started(Config::tenant(B, ""));
    let t = AGENT_TOKEN;
    insert(&server, t, "o", "", b"1").expect(200);
    server.configure(|c| c.revoke(AGENT, Permission::ObjectsDelete));
    let denied = insert(&server, t, "o", "", b"2").expect(403);
    assert!(denied.text().contains("storage.objects.delete"));
    ask(&server, "PUT", "/bucket/o")
        .token(t)
        .body("2")
        .send()
        .expect(403);
    insert(&server, t, "new", "", b"2").expect(200);
    compose(
        &server,
        t,
        "o",
        "",
        json!({"sourceObjects": sources(&["new"])}),
    )
    .expect(403);
    compose(
        &server,
        t,
        "c",
        "",
        json!({"sourceObjects": sources(&["new"]), "deleteSourceObjects": true}),
    )
    .expect(403);
    compose(
        &server,
        t,
        "c",
        "",
        json!({"sourceObjects": sources(&["new"])}),
    )
    .expect(200);
    assert_eq!(server.bytes(B, "o").unwrap(), b"1");
}
