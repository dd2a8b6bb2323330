//! The XML API, path style: objects, listings, multipart uploads.

mod list;
pub(crate) mod multipart;
mod objects;

use crate::{
    error::Refusal,
    operation::Operation,
    reply::Reply,
    request::{Call, Stop},
};

/// Answers a request.
pub(crate) async fn handle(call: &mut Call) -> Result<Reply, Stop> {
    use Operation::*;
    match call.route.operation {
        XmlGet | XmlHead => objects::get(call),
        XmlPut => objects::put(call).await,
        XmlCopy => objects::copy(call),
        XmlDelete => objects::delete(call),
        XmlList => list::objects(call),
        XmlMultipartInitiate => multipart::initiate(call),
        XmlMultipartPart => multipart::part(call).await,
        XmlMultipartComplete => multipart::complete(call).await,
        XmlMultipartAbort => multipart::abort(call),
        XmlMultipartListParts => multipart::list_parts(call),
        XmlMultipartList => multipart::list(call),
        _ => Err(Refusal::malformed("NotImplemented", "not modelled by this server").into()),
    }
}

/// Text between tags.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The text of every `<tag>` in a document without attributes that matter, in order: enough for the one document
/// that clients send here.
fn texts<'a>(document: &'a str, tag: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut found = Vec::new();
    let mut rest = document;
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((text, behind)) = after.split_once(&close) else {
            break;
        };
        found.push(text.trim());
        rest = behind;
    }
    found
}
