//! `objects.list`.

use std::result::Result as StdResult;

use base64::{Engine, engine::general_purpose::URL_SAFE};
use serde_json::{Value, json};

use crate::{
    error::{Refusal, Result},
    iam::Permission,
    listing::{Ask, page},
    reply::Reply,
    request::{Call, Stop},
};

/// Results of one page at most.
const PAGE: i64 = 1000;

fn token(call: &Call) -> Result<Option<String>> {
    let Some(token) = call.query.get("pageToken").filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let name = URL_SAFE
        .decode(token)
        .ok()
        .and_then(|b| String::from_utf8(b).ok());
    name.map(Some)
        .ok_or_else(|| Refusal::invalid(format!("Invalid pageToken {token:?}")))
}

/// Objects, and with a delimiter prefixes.
pub(crate) fn objects(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, prefix) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsList, bucket, prefix)?;
    let query = &call.query;
    let after = token(call)?;
    let ask = Ask {
        prefix,
        delimiter: query.get("delimiter").unwrap_or(""),
        start: query.get("startOffset").unwrap_or(""),
        end: query.get("endOffset").filter(|e| !e.is_empty()),
        after: after.as_deref(),
        most: query.int("maxResults")?.map_or(PAGE, |n| n.clamp(1, PAGE)) as usize,
        include_trailing_delimiter: query.is_true("includeTrailingDelimiter"),
    };
    let mut store = call.shared.store.lock().unwrap();
    let mut store = store.bucket(&call.config, bucket)?;
    store.forget_soft_deleted();
    let state = &*store.state;
    let page = if query.is_true("softDeleted") {
        page(
            state.soft_deleted.iter().map(|(_, o)| o),
            std::iter::empty(),
            &ask,
        )
    } else {
        let with_folders = query.is_true("includeFoldersAsPrefixes");
        let folders = state.folders.keys().filter(|_| with_folders);
        page(state.objects.values(), folders.map(String::as_str), &ask)
    };
    let base = call.base();
    let mut reply = json!({"kind": "storage#objects"});
    let items: Vec<Value> = page
        .objects
        .iter()
        .map(|o| o.resource(bucket, &base))
        .collect();
    if !items.is_empty() {
        reply["items"] = items.into();
    }
    if !page.prefixes.is_empty() {
        reply["prefixes"] = json!(page.prefixes);
    }
    if let Some(next) = page.next {
        reply["nextPageToken"] = URL_SAFE.encode(next).into();
    }
    Ok(Reply::json(&reply))
}
