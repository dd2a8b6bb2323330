//! GET, HEAD, PUT and DELETE of an object.

use std::result::Result as StdResult;

use http::{StatusCode, header};

use crate::{
    bucket::NewObject,
    checksums::Claims,
    conditions::Conditions,
    error::Refusal,
    iam::Permission,
    json::{insert::check_acl, may_replace, mutate, no_content},
    media,
    object::{Metadata, Object, timestamp},
    reply::Reply,
    request::{Call, Stop, decode},
};

/// What the headers of a request say of the object it makes.
pub(super) fn metadata(call: &Call) -> Metadata {
    let text = |name: &str| call.header(name).map(str::to_owned);
    let custom = call.headers.iter().filter_map(|(name, value)| {
        let key = name.as_str().strip_prefix("x-goog-meta-")?;
        Some((key.to_owned(), value.to_str().ok()?.to_owned()))
    });
    Metadata {
        content_type: text("content-type"),
        content_encoding: text("content-encoding"),
        content_disposition: text("content-disposition"),
        content_language: text("content-language"),
        cache_control: text("cache-control"),
        storage_class: text("x-goog-storage-class"),
        custom: custom.collect(),
        ..Metadata::default()
    }
}

/// GET and HEAD.
pub(super) fn get(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsGet, bucket, name)?;
    let generation = call.query.int("generation")?;
    let conditions = Conditions::from_headers(&call.headers)?;
    let object = {
        let mut store = call.shared.store.lock().unwrap();
        let store = store.bucket(&call.config, bucket)?;
        let object = store.find(name, generation);
        object.ok_or_else(|| call.missing(bucket, name))?.clone()
    };
    conditions.check_read(&object)?;
    let etag = object.xml_etag();
    let matches = |list: &str| list == "*" || list.split(',').any(|e| e.trim() == etag);
    if call.header("if-match").is_some_and(|list| !matches(list)) {
        return Err(Refusal::condition_not_met().into());
    }
    let unmodified = call.header("if-none-match").is_some_and(matches);
    let since = call
        .header("if-modified-since")
        .and_then(|t| httpdate::parse_http_date(t).ok());
    let seconds = |t: std::time::SystemTime| {
        t.duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs())
    };
    if unmodified || since.is_some_and(|since| seconds(object.updated) <= seconds(since)) {
        return Ok(Reply::new(StatusCode::NOT_MODIFIED));
    }
    let mut reply = media::send(call, &object, &etag)?;
    if call.route.operation == crate::operation::Operation::XmlHead {
        reply.body.clear();
    }
    Ok(reply)
}

/// PUT.
pub(super) async fn put(call: &mut Call) -> StdResult<Reply, Stop> {
    let claims = Claims::from_headers(&call.headers)?;
    let metadata = metadata(call);
    let (bucket, name) = (call.route.bucket.clone(), call.route.name.clone());
    check_acl(call)?;
    call.need(Permission::ObjectsCreate, &bucket, &name)?;
    let mut builder = call.builder(call.content_length().unwrap_or(0), &claims);
    call.read_into(&mut builder).await?;
    let (content, sums) = builder.finish();
    claims.check(&sums)?;
    let new = NewObject {
        content,
        sums,
        metadata,
        components: None,
    };
    let conditions = Conditions::from_headers(&call.headers)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, &bucket)?;
        let object = store.put(&name, new, &conditions, may_replace(call, &bucket, &name))?;
        Ok(stored(&object))
    })
}

/// PUT with `x-goog-copy-source`.
pub(super) fn copy(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    let source = call
        .header("x-goog-copy-source")
        .unwrap_or("")
        .trim_start_matches('/');
    let (from_bucket, from) = source
        .split_once('/')
        .ok_or_else(|| Refusal::invalid("x-goog-copy-source"))?;
    let (from_bucket, from) = (decode(from_bucket)?, decode(from)?);
    call.need(Permission::ObjectsGet, &from_bucket, &from)?;
    call.need(Permission::ObjectsCreate, bucket, name)?;
    let conditions = Conditions::from_headers(&call.headers)?;
    mutate(call, |store| {
        let old = store.bucket(&call.config, &from_bucket)?;
        let old = old
            .find(&from, None)
            .ok_or_else(|| call.missing(&from_bucket, &from))?
            .clone();
        let new = NewObject {
            content: old.content,
            sums: old.sums,
            metadata: old.metadata,
            components: old.components,
        };
        let mut store = store.bucket(&call.config, bucket)?;
        let object = store.put(name, new, &conditions, may_replace(call, bucket, name))?;
        let mut reply = Reply::xml(format!(
            "<CopyObjectResult><LastModified>{}</LastModified><ETag>{}</ETag></CopyObjectResult>",
            timestamp(object.updated),
            super::escape(&object.xml_etag())
        ));
        reply.set_named("x-goog-generation", &object.generation.to_string());
        Ok(reply)
    })
}

/// What a PUT and the end of a multipart upload say of the object they made.
fn stored(object: &Object) -> Reply {
    let mut reply = Reply::new(StatusCode::OK);
    reply.set(header::ETAG, &object.xml_etag());
    reply.set(header::CONTENT_TYPE, "text/html; charset=UTF-8");
    reply.set_named("x-goog-generation", &object.generation.to_string());
    reply.set_named("x-goog-metageneration", &object.metageneration.to_string());
    reply.set_named("x-goog-stored-content-encoding", "identity");
    reply.set_named("x-goog-stored-content-length", &object.len().to_string());
    media::set_hash(&mut reply, object);
    reply
}

/// DELETE.
pub(super) fn delete(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsDelete, bucket, name)?;
    let generation = call.query.int("generation")?;
    let conditions = Conditions::from_headers(&call.headers)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        store.delete(name, generation, &conditions)?;
        Ok(no_content())
    })
}
