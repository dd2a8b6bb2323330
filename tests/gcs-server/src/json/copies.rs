//! Objects made of objects: compose, rewrite, copy, move.

use std::result::Result as StdResult;

use serde_json::{Map, Value, json};

use super::{insert, may_replace, mutate};
use crate::{
    bucket::{NewObject, Source},
    conditions::Conditions,
    error::{Refusal, Result},
    iam::Permission,
    object::Metadata,
    operation::Operation,
    reply::Reply,
    request::{Call, Stop},
};

/// `objects.compose`.
pub(crate) async fn compose(call: &mut Call) -> StdResult<Reply, Stop> {
    let body = call.read_json().await?;
    insert::check_acl(call)?;
    let sources = sources(&body)?;
    let delete_sources = match body.get("deleteSourceObjects") {
        None => false,
        Some(value) => value
            .as_bool()
            .ok_or_else(|| Refusal::invalid("deleteSourceObjects"))?,
    };
    let mut metadata = Metadata::default();
    if let Some(destination) = body.get("destination").and_then(Value::as_object) {
        metadata.update(destination);
    }
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::ObjectsCreate, bucket, name)?;
    for source in &sources {
        call.need(Permission::ObjectsGet, bucket, &source.name)?;
        if delete_sources {
            call.need(Permission::ObjectsDelete, bucket, &source.name)?;
        }
    }
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        let replace = may_replace(call, bucket, name);
        let object = store.compose(
            name,
            &sources,
            metadata,
            delete_sources,
            &conditions,
            replace,
        )?;
        Ok(Reply::json(&object.resource(bucket, &call.base())))
    })
}

fn sources(body: &Map<String, Value>) -> Result<Vec<Source>> {
    let listed = body.get("sourceObjects").and_then(Value::as_array);
    let listed = listed.ok_or_else(|| Refusal::invalid("Required: sourceObjects"))?;
    let parse = |source: &Value| {
        let name = source["name"].as_str();
        Ok(Source {
            name: name
                .ok_or_else(|| Refusal::invalid("Required: sourceObjects.name"))?
                .into(),
            generation: int64(&source["generation"])?,
            generation_match: int64(&source["objectPreconditions"]["ifGenerationMatch"])?,
        })
    };
    listed.iter().map(parse).collect()
}

/// 64-bit numbers are strings in JSON; the service takes both.
fn int64(value: &Value) -> Result<Option<i64>> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    };
    number
        .map(Some)
        .ok_or_else(|| Refusal::invalid(format!("not a number: {value}")))
}

/// `objects.rewrite` (always done in one call) and `objects.copy`.
pub(crate) async fn copy(call: &mut Call) -> StdResult<Reply, Stop> {
    let resource = call.read_json().await?;
    insert::check_acl(call)?;
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    let (to_bucket, to) = call.route.destination.clone().expect("routed with one");
    call.need(Permission::ObjectsGet, bucket, name)?;
    call.need(Permission::ObjectsCreate, &to_bucket, &to)?;
    let generation = call.query.int("sourceGeneration")?;
    let source_conditions = Conditions::from_query_prefixed(&call.query, "ifSource")?;
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let from = store.bucket(&call.config, bucket)?;
        let source = from.find(name, generation);
        let source = source.ok_or_else(|| call.missing(bucket, name))?.clone();
        source_conditions.check_change(Some(&source))?;
        // A resource that says nothing leaves the metadata as it is, one that says something replaces it.
        let mut metadata = match resource.is_empty() {
            true => source.metadata.clone(),
            false => Metadata {
                content_type: source.metadata.content_type.clone(),
                ..Metadata::default()
            },
        };
        metadata.update(&resource);
        metadata.event_based_hold = None;
        metadata.temporary_hold = false;
        let new = NewObject {
            content: source.content,
            sums: source.sums,
            metadata,
            components: source.components,
        };
        let mut destination = store.bucket(&call.config, &to_bucket)?;
        let replace = may_replace(call, &to_bucket, &to);
        let object = destination.put(&to, new, &conditions, replace)?;
        let made = object.resource(&to_bucket, &call.base());
        if call.route.operation == Operation::Copy {
            return Ok(Reply::json(&made));
        }
        let len = object.len().to_string();
        Ok(Reply::json(&json!({
            "kind": "storage#rewriteResponse", "done": true,
            "totalBytesRewritten": len, "objectSize": len, "resource": made,
        })))
    })
}

/// `objects.move`.
pub(crate) fn rename(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    let (_, to) = call.route.destination.clone().expect("routed with one");
    call.need(Permission::ObjectsMove, bucket, name)?;
    call.need(Permission::ObjectsCreate, bucket, &to)?;
    let source_conditions = Conditions::from_query_prefixed(&call.query, "ifSource")?;
    let conditions = Conditions::from_query(&call.query)?;
    mutate(call, |store| {
        let mut store = store.bucket(&call.config, bucket)?;
        let replace = may_replace(call, bucket, &to);
        let object = store.rename(name, &to, &source_conditions, &conditions, replace)?;
        Ok(Reply::json(&object.resource(bucket, &call.base())))
    })
}
