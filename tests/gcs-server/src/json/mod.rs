//! The JSON API: objects, buckets, folders.

mod buckets;
mod copies;
mod folders;
pub(crate) mod insert;
mod list;
mod objects;
pub(crate) mod resumable;

use http::StatusCode;

use crate::{
    error::{Refusal, Result},
    iam::Permission,
    operation::Operation,
    reply::Reply,
    request::{Call, Stop},
    store::Store,
};

/// Answers a request.
pub(crate) async fn handle(call: &mut Call) -> std::result::Result<Reply, Stop> {
    use Operation::*;
    match call.route.operation {
        InsertMedia => insert::media(call).await,
        InsertMultipart => insert::multipart(call).await,
        ResumableStart => resumable::start(call).await,
        ResumableChunk | ResumableStatus => resumable::chunk(call).await,
        ResumableCancel => resumable::cancel(call),
        GetMetadata => objects::metadata(call),
        GetMedia => objects::media(call),
        List => list::objects(call),
        Delete => objects::delete(call),
        Patch => objects::patch(call).await,
        Restore => objects::restore(call),
        Compose => copies::compose(call).await,
        Rewrite | Copy => copies::copy(call).await,
        Move => copies::rename(call),
        BucketGet => buckets::get(call),
        BucketInsert => buckets::insert(call).await,
        BucketList => buckets::list(call),
        BucketTestPermissions => buckets::test_permissions(call),
        FolderInsert => folders::insert(call).await,
        FolderGet => folders::get(call),
        FolderList => folders::list(call),
        FolderDelete => folders::delete(call),
        _ => Err(Refusal::not_found("NoSuchMethod", "Not Found").into()),
    }
}

/// Carries out a change, unless the same request with the same idempotency token was carried out before: then it is
/// answered as it was then.
pub(crate) fn mutate(
    call: &Call,
    change: impl FnOnce(&mut Store) -> Result<Reply>,
) -> std::result::Result<Reply, Stop> {
    let token = call.header("x-goog-gcs-idempotency-token");
    let target = call.record.get(|e| e.target.clone());
    let key = token.map(|token| format!("{token} {:?} {} {target}", call.principal, call.method));
    let mut store = call.shared.store.lock().unwrap();
    if let Some(reply) = key.as_deref().and_then(|key| store.remembered(key)) {
        call.record.set(|e| e.replayed = true);
        return Ok(reply);
    }
    let reply = change(&mut store)?;
    if let Some(key) = key {
        store.remember(key, &reply);
    }
    Ok(reply)
}

/// For [`Bucket::put`](crate::bucket::Bucket::put): replacing needs the right to delete.
pub(crate) fn may_replace<'a>(
    call: &'a Call,
    bucket: &'a str,
    name: &'a str,
) -> impl FnOnce() -> Result<()> + 'a {
    move || call.need(Permission::ObjectsDelete, bucket, name)
}

pub(crate) fn no_content() -> Reply {
    Reply::new(StatusCode::NO_CONTENT)
}
