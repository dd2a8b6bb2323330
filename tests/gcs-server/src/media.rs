//! An object's bytes as an answer, with the headers that both APIs put on it.

use std::ops::Range;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{StatusCode, header};

use crate::{
    error::{Refusal, Result},
    object::{Object, encode_crc32c},
    reply::Reply,
    request::Call,
};

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Unsatisfiable,
}

/// Several ranges, or what is no range, are ignored, as the standard has it.
fn wanted(range: Option<&str>, len: u64) -> Wanted {
    let Some(spec) = range.and_then(|r| r.strip_prefix("bytes=")) else {
        return Wanted::All;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Wanted::All;
    };
    if first.is_empty() {
        return match last.parse::<u64>() {
            Ok(0) => Wanted::Unsatisfiable,
            Ok(_) if len == 0 => Wanted::Unsatisfiable,
            Ok(suffix) => Wanted::Part(len.saturating_sub(suffix)..len),
            Err(_) => Wanted::All,
        };
    }
    let Ok(first) = first.parse::<u64>() else {
        return Wanted::All;
    };
    let end = match last {
        "" => len,
        last => match last.parse::<u64>() {
            Ok(last) if last >= first => last.saturating_add(1).min(len),
            _ => return Wanted::All,
        },
    };
    match first < len {
        true => Wanted::Part(first..end),
        false => Wanted::Unsatisfiable,
    }
}

/// The headers that describe an object, on whatever part of it.
pub(crate) fn describe(reply: &mut Reply, object: &Object) {
    let metadata = &object.metadata;
    reply.set(header::CONTENT_TYPE, object.content_type());
    reply.set(
        header::LAST_MODIFIED,
        &httpdate::fmt_http_date(object.updated),
    );
    reply.set(header::ACCEPT_RANGES, "bytes");
    reply.set_named("x-goog-generation", &object.generation.to_string());
    reply.set_named("x-goog-metageneration", &object.metageneration.to_string());
    reply.set_named("x-goog-storage-class", object.storage_class());
    reply.set_named("x-goog-stored-content-length", &object.len().to_string());
    let encoding = metadata.content_encoding.as_deref();
    reply.set_named(
        "x-goog-stored-content-encoding",
        encoding.unwrap_or("identity"),
    );
    set_hash(reply, object);
    if let Some(components) = object.components {
        reply.set_named("x-goog-component-count", &components.to_string());
    }
    for (name, value) in [
        (header::CONTENT_ENCODING, &metadata.content_encoding),
        (header::CONTENT_DISPOSITION, &metadata.content_disposition),
        (header::CONTENT_LANGUAGE, &metadata.content_language),
        (header::CACHE_CONTROL, &metadata.cache_control),
    ] {
        if let Some(value) = value {
            reply.set(name, value);
        }
    }
    for (key, value) in &metadata.custom {
        let name = http::HeaderName::try_from(format!("x-goog-meta-{key}"));
        if let Ok(name) = name {
            reply.set(name, value);
        }
    }
}

/// The checksums of the whole object, whatever part is sent.
pub(crate) fn set_hash(reply: &mut Reply, object: &Object) {
    let mut hash = format!("crc32c={}", encode_crc32c(object.sums.crc32c));
    if let Some(md5) = object.sums.md5 {
        hash += &format!(",md5={}", STANDARD.encode(md5));
    }
    reply.set_named("x-goog-hash", &hash);
}

/// The object, or the range of it that the request wants.
pub(crate) fn send(call: &Call, object: &Object, etag: &str) -> Result<Reply> {
    let len = object.len();
    let range = match wanted(call.header("range"), len) {
        Wanted::All => None,
        Wanted::Part(range) => Some(range),
        Wanted::Unsatisfiable => return Err(Refusal::range_not_satisfiable()),
    };
    let mut reply = Reply::new(StatusCode::OK);
    describe(&mut reply, object);
    reply.set(header::ETAG, etag);
    if let Some(range) = &range {
        reply.status = StatusCode::PARTIAL_CONTENT;
        let last = range.end - 1;
        reply.set(
            header::CONTENT_RANGE,
            &format!("bytes {}-{last}/{len}", range.start),
        );
    }
    let range = range.unwrap_or(0..len);
    if call.method == http::Method::HEAD {
        reply.declared_len = Some(range.end - range.start);
    } else {
        reply.body = object.content.slices(range);
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(wanted(None, 10), Wanted::All);
        assert_eq!(wanted(Some("bytes=2-4"), 10), Wanted::Part(2..5));
        assert_eq!(wanted(Some("bytes=2-"), 10), Wanted::Part(2..10));
        assert_eq!(wanted(Some("bytes=-3"), 10), Wanted::Part(7..10));
        assert_eq!(wanted(Some("bytes=-30"), 10), Wanted::Part(0..10));
        assert_eq!(wanted(Some("bytes=8-100"), 10), Wanted::Part(8..10));
        assert_eq!(wanted(Some("bytes=10-"), 10), Wanted::Unsatisfiable);
        assert_eq!(wanted(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
        assert_eq!(wanted(Some("bytes=-0"), 10), Wanted::Unsatisfiable);
        assert_eq!(wanted(Some("bytes=4-2"), 10), Wanted::All);
        assert_eq!(
            wanted(Some("bytes=0-18446744073709551615"), 10),
            Wanted::Part(0..10)
        );
        assert_eq!(wanted(Some("lines=0-1"), 10), Wanted::All);
    }
}
