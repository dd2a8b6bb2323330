//! GET of a bucket: listings, version 1 and 2.

use std::{fmt::Write, result::Result as StdResult};

use base64::{Engine, engine::general_purpose::URL_SAFE};

use super::escape;
use crate::{
    error::Refusal,
    iam::Permission,
    listing::{Ask, page},
    object::timestamp,
    reply::Reply,
    request::{Call, Stop, encode},
};

const PAGE: i64 = 1000;

/// Objects, and with a delimiter prefixes.
pub(super) fn objects(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, prefix) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsList, bucket, prefix)?;
    let query = &call.query;
    let version_2 = query.get("list-type") == Some("2");
    let after = match query.get("continuation-token").filter(|_| version_2) {
        Some(token) => {
            let name = URL_SAFE
                .decode(token)
                .ok()
                .and_then(|b| String::from_utf8(b).ok());
            Some(name.ok_or_else(|| Refusal::invalid("Invalid continuation token"))?)
        }
        None => query
            .get(if version_2 { "start-after" } else { "marker" })
            .map(Into::into),
    };
    let ask = Ask {
        prefix,
        delimiter: query.get("delimiter").unwrap_or(""),
        after: after.as_deref(),
        most: query.int("max-keys")?.map_or(PAGE, |n| n.clamp(1, PAGE)) as usize,
        ..Ask::default()
    };
    let mut store = call.shared.store.lock().unwrap();
    let store = store.bucket(&call.config, bucket)?;
    let page = page(store.state.objects.values(), std::iter::empty(), &ask);

    let encoded = query.get("encoding-type") == Some("url");
    let name = |name: &str| {
        if encoded {
            encode(name).replace("%2F", "/")
        } else {
            escape(name)
        }
    };
    let mut xml = format!(
        "<ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'><Name>{}</Name><Prefix>{}</Prefix>",
        escape(bucket),
        name(prefix)
    );
    if !ask.delimiter.is_empty() {
        let _ = write!(xml, "<Delimiter>{}</Delimiter>", name(ask.delimiter));
    }
    let _ = write!(xml, "<IsTruncated>{}</IsTruncated>", page.next.is_some());
    if version_2 {
        let _ = write!(
            xml,
            "<KeyCount>{}</KeyCount>",
            page.objects.len() + page.prefixes.len()
        );
    }
    if let Some(next) = &page.next {
        let _ = match version_2 {
            true => write!(
                xml,
                "<NextContinuationToken>{}</NextContinuationToken>",
                URL_SAFE.encode(next)
            ),
            false => write!(xml, "<NextMarker>{}</NextMarker>", name(next)),
        };
    }
    for object in page.objects {
        let _ = write!(
            xml,
            "<Contents><Key>{}</Key><Generation>{}</Generation><MetaGeneration>{}</MetaGeneration>\
             <LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
            name(&object.name),
            object.generation,
            object.metageneration,
            timestamp(object.updated),
            escape(&object.xml_etag()),
            object.len()
        );
    }
    for common in page.prefixes {
        let _ = write!(
            xml,
            "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>",
            name(&common)
        );
    }
    xml += "</ListBucketResult>";
    Ok(Reply::xml(xml))
}
