//! `objects.insert` in one request: `uploadType=media` and `multipart`.

use std::result::Result as StdResult;

use http::HeaderMap;
use serde_json::{Map, Value};

use super::{may_replace, mutate};
use crate::{
    bucket::NewObject,
    checksums::Claims,
    conditions::Conditions,
    content::ContentBuilder,
    error::{Refusal, Result},
    iam::Permission,
    object::Metadata,
    reply::Reply,
    request::{Body, Call, Query, Stop, parse_object},
};

/// Bytes that the first part of a multipart insert, the metadata, has at most.
const METADATA_LEN: usize = 256 << 10;

/// `uploadType=media`: the body is the object.
pub(crate) async fn media(call: &mut Call) -> StdResult<Reply, Stop> {
    let name = call.route.name.clone();
    if name.is_empty() {
        return Err(Refusal::invalid("Required parameter: name").into());
    }
    let claims = Claims::from_headers(&call.headers)?;
    let mut metadata = Metadata {
        content_type: call.header("content-type").map(Into::into),
        ..Metadata::default()
    };
    metadata.content_encoding = call.query.get("contentEncoding").map(Into::into);
    check_acl(call)?;
    let bucket = call.route.bucket.clone();
    call.need(Permission::ObjectsCreate, &bucket, &name)?;
    let mut builder = call.builder(call.content_length().unwrap_or(0), &claims);
    call.read_into(&mut builder).await?;
    store(call, &name, metadata, builder, &claims)
}

/// `uploadType=multipart`: the resource, then the object.
pub(crate) async fn multipart(call: &mut Call) -> StdResult<Reply, Stop> {
    let boundary = boundary(&call.headers)?;
    let head = read_head(&mut call.body, &boundary).await;
    let (resource, content_type, media_at) = parse_head(&head, &boundary)?;
    let mut metadata = Metadata {
        content_type,
        ..Metadata::default()
    };
    metadata.update(&resource);
    let name = object_name(&call.query, &resource)?;
    let mut claims = Claims::from_headers(&call.headers)?;
    claims.add_resource(&resource);
    check_acl(call)?;
    let bucket = call.route.bucket.clone();
    call.need(Permission::ObjectsCreate, &bucket, &name)?;

    let length = call.content_length().unwrap_or(0);
    let mut builder = call.builder(length.saturating_sub(media_at as u64), &claims);
    // The last bytes are held back, until it is clear that they are not the closing boundary.
    let closing = format!("\r\n--{boundary}--");
    let hold = closing.len() + 4;
    let mut held = Vec::new();
    let mut skip = media_at;
    while let Some(bytes) = call.body.next().await? {
        let skipped = skip.min(bytes.len());
        skip -= skipped;
        let bytes = &bytes[skipped..];
        let full = |()| Stop::from(Refusal::out_of_memory());
        if bytes.len() >= hold {
            let (now, later) = bytes.split_at(bytes.len() - hold);
            builder.push(&held).map_err(full)?;
            builder.push(now).map_err(full)?;
            held.clear();
            held.extend_from_slice(later);
        } else {
            held.extend_from_slice(bytes);
            let now = held.len().saturating_sub(hold);
            builder.push(&held[..now]).map_err(full)?;
            held.drain(..now);
        }
    }
    let is_closing = |at: &usize| held[*at..].starts_with(closing.as_bytes());
    let end = (0..held.len()).rev().find(is_closing);
    let end = end.ok_or_else(|| malformed("it does not end with its boundary"))?;
    builder
        .push(&held[..end])
        .map_err(|()| Refusal::out_of_memory())?;
    store(call, &name, metadata, builder, &claims)
}

fn store(
    call: &Call,
    name: &str,
    metadata: Metadata,
    builder: ContentBuilder,
    claims: &Claims,
) -> StdResult<Reply, Stop> {
    let (content, sums) = builder.finish();
    claims.check(&sums)?;
    let new = NewObject {
        content,
        sums,
        metadata,
        components: None,
    };
    put(call, name, new, &Conditions::from_query(&call.query)?)
}

/// Makes an object and answers with its resource.
pub(crate) fn put(
    call: &Call,
    name: &str,
    new: NewObject,
    conditions: &Conditions,
) -> StdResult<Reply, Stop> {
    let bucket = &call.route.bucket;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        let object = store.put(name, new, conditions, may_replace(call, bucket, name))?;
        let mut reply = Reply::json(&object.resource(bucket, &call.base()));
        reply.set(http::header::ETAG, &object.etag());
        Ok(reply)
    })
}

/// ACLs are refused where access is uniform.
pub(crate) fn check_acl(call: &Call) -> Result<()> {
    let bucket = call.config.buckets.get(&call.route.bucket);
    let bucket = bucket.ok_or_else(Refusal::no_bucket)?;
    let named = ["predefinedAcl", "destinationPredefinedAcl"];
    let named = named.iter().any(|acl| call.query.has(acl));
    if bucket.uniform_bucket_level_access && (named || call.headers.contains_key("x-goog-acl")) {
        let message =
            "Cannot insert legacy ACL for an object when uniform bucket-level access is enabled.";
        return Err(Refusal::invalid(message));
    }
    Ok(())
}

/// The object's name: in the resource, or in the query.
pub(crate) fn object_name(query: &Query, resource: &Map<String, Value>) -> Result<String> {
    let name = resource.get("name").and_then(Value::as_str);
    let name = name.or_else(|| query.get("name")).filter(|n| !n.is_empty());
    name.map(Into::into)
        .ok_or_else(|| Refusal::invalid("Required"))
}

/// What the body of an insert says the object's name is; the body can still be read from its beginning.
pub(crate) async fn peek_name(body: &mut Body, headers: &HeaderMap) -> Option<String> {
    let is_multipart = |h: &HeaderMap| {
        let kind = h.get("content-type").and_then(|v| v.to_str().ok());
        kind.is_some_and(|k| k.starts_with("multipart/"))
    };
    let resource = if is_multipart(headers) {
        let boundary = boundary(headers).ok()?;
        let head = read_head(body, &boundary).await;
        parse_head(&head, &boundary).ok()?.0
    } else {
        let whole = body.peek(|seen| seen.len() > METADATA_LEN).await;
        parse_object(&whole).ok()?
    };
    resource.get("name").and_then(Value::as_str).map(Into::into)
}

fn boundary(headers: &HeaderMap) -> Result<String> {
    let content_type = headers.get("content-type").and_then(|v| v.to_str().ok());
    let parameters = content_type.unwrap_or("").split(';').skip(1);
    let boundary = parameters.filter_map(|p| p.trim().split_once('='));
    let boundary = boundary.filter(|(key, _)| key.eq_ignore_ascii_case("boundary"));
    let mut boundary = boundary.map(|(_, value)| value.trim_matches(['"', '\'']));
    let found = boundary.next().filter(|b| (1..=128).contains(&b.len()));
    found
        .map(Into::into)
        .ok_or_else(|| malformed("Content-Type names no boundary"))
}

fn malformed(why: &str) -> Refusal {
    Refusal::malformed(
        "MalformedMultipart",
        format!("Multipart body is malformed: {why}."),
    )
}

async fn read_head(body: &mut Body, boundary: &str) -> Vec<u8> {
    let enough = |seen: &[u8]| {
        seen.len() > METADATA_LEN
            || !matches!(parse_head(seen, boundary), Err(e) if e == malformed(CUT_SHORT))
    };
    body.peek(enough).await
}

const CUT_SHORT: &str = "it is cut short";

/// The resource, the content type of the media, and where the media begins.
fn parse_head(head: &[u8], boundary: &str) -> Result<(Map<String, Value>, Option<String>, usize)> {
    let find = |what: &str, from: usize| {
        let what = what.as_bytes();
        let at = head
            .get(from..)?
            .windows(what.len())
            .position(|w| w == what)?;
        Some(from + at)
    };
    let cut_short = || malformed(CUT_SHORT);
    let opening = format!("--{boundary}");
    let first = find(&opening, 0).ok_or_else(cut_short)?;
    let resource_at = find("\r\n\r\n", first).ok_or_else(cut_short)? + 4;
    let next = format!("\r\n--{boundary}");
    // An empty resource has its line end only once.
    let resource_end = find(&next, resource_at - 2).ok_or_else(cut_short)?;
    let second_head = resource_end + next.len();
    if head[second_head..].starts_with(b"--") {
        return Err(malformed("it has no second part"));
    }
    let second_end = find("\r\n\r\n", second_head).ok_or_else(cut_short)?;
    let resource = parse_object(&head[resource_at.min(resource_end)..resource_end])?;
    let second = String::from_utf8_lossy(&head[second_head..second_end]);
    let content_type = second.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim()
            .eq_ignore_ascii_case("content-type")
            .then(|| value.trim().to_owned())
    });
    Ok((resource, content_type, second_end + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multipart_head() {
        let head = b"--x\r\nContent-Type: application/json\r\n\r\n{\"name\":\"a\"}\r\n--x\r\ncontent-type: t/u\r\n\r\nmedia";
        let (resource, content_type, at) = parse_head(head, "x").unwrap();
        assert_eq!(resource["name"], "a");
        assert_eq!(content_type.as_deref(), Some("t/u"));
        assert_eq!(&head[at..], b"media");
        for cut in 0..at {
            assert!(parse_head(&head[..cut], "x").is_err(), "{cut} bytes");
        }
    }
}
