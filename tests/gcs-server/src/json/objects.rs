//! One object: get, delete, patch, restore.

use std::result::Result as StdResult;

use http::{StatusCode, header};

use super::{may_replace, mutate, no_content};
use crate::{
    conditions::Conditions,
    error::{Refusal, Result},
    iam::Permission,
    media,
    object::Object,
    reply::Reply,
    request::{Call, Stop},
};

/// The object that a read is about; `None` if the caller has it already.
fn read(call: &Call) -> Result<Option<Object>> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsGet, bucket, name)?;
    let generation = call.query.int("generation")?;
    let conditions = Conditions::from_query(&call.query)?;
    let mut store = call.shared.store.lock().unwrap();
    let mut store = store.bucket(&call.config, bucket)?;
    if call.query.is_true("softDeleted") {
        store.forget_soft_deleted();
        let is_it = |o: &&Object| o.name == *name && Some(o.generation) == generation;
        let found = store.state.soft_deleted.iter().map(|(_, o)| o).find(is_it);
        return found
            .cloned()
            .map(Some)
            .ok_or_else(|| call.missing(bucket, name));
    }
    let object = store
        .find(name, generation)
        .ok_or_else(|| call.missing(bucket, name))?;
    Ok(conditions.check_read(object)?.then(|| object.clone()))
}

/// `objects.get`.
pub(crate) fn metadata(call: &Call) -> StdResult<Reply, Stop> {
    let Some(object) = read(call)? else {
        return Ok(Reply::new(StatusCode::NOT_MODIFIED));
    };
    let mut reply = Reply::json(&object.resource(&call.route.bucket, &call.base()));
    reply.set(header::ETAG, &object.etag());
    Ok(reply)
}

/// `objects.get` with `alt=media`.
pub(crate) fn media(call: &Call) -> StdResult<Reply, Stop> {
    match read(call)? {
        Some(object) => Ok(media::send(call, &object, &object.etag())?),
        None => Ok(Reply::new(StatusCode::NOT_MODIFIED)),
    }
}

/// `objects.delete`.
pub(crate) fn delete(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsDelete, bucket, name)?;
    let generation = call.query.int("generation")?;
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        store.delete(name, generation, &conditions)?;
        Ok(no_content())
    })
}

/// `objects.patch`, and `update`.
pub(crate) async fn patch(call: &mut Call) -> StdResult<Reply, Stop> {
    let resource = call.read_json().await?;
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsUpdate, bucket, name)?;
    let generation = call.query.int("generation")?;
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        let object = store.patch(name, generation, &conditions, |m| m.update(&resource))?;
        Ok(Reply::json(&object.resource(bucket, &call.base())))
    })
}

/// `objects.restore`.
pub(crate) fn restore(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsRestore, bucket, name)?;
    call.need(Permission::ObjectsCreate, bucket, name)?;
    let generation = call.query.int("generation")?;
    let generation =
        generation.ok_or_else(|| Refusal::invalid("Required parameter: generation"))?;
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        let replace = may_replace(call, bucket, name);
        let object = store.restore(name, generation, &conditions, replace)?;
        Ok(Reply::json(&object.resource(bucket, &call.base())))
    })
}
