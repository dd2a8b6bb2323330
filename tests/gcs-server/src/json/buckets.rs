//! Buckets: what their metadata says, which there are, and making one.

use std::result::Result as StdResult;

use serde_json::{Map, Value, json};

use super::mutate;
use crate::{
    config::BucketConfig,
    error::{Refusal, Result},
    iam::Permission,
    object::timestamp,
    reply::Reply,
    request::{Call, Stop},
};

/// `buckets.get`.
pub(crate) fn get(call: &Call) -> StdResult<Reply, Stop> {
    let bucket = &call.route.bucket;
    call.need(Permission::BucketsGet, bucket, "")?;
    Ok(Reply::json(&resource(call, bucket)?))
}

/// `buckets.list`: those the caller's project has, which is all.
pub(crate) fn list(call: &Call) -> StdResult<Reply, Stop> {
    call.need(Permission::BucketsList, "", "")?;
    let prefix = &call.route.name;
    let names = call.config.buckets.keys().filter(|n| n.starts_with(prefix));
    let items: Result<Vec<Value>> = names.map(|n| resource(call, n)).collect();
    Ok(Reply::json(
        &json!({"kind": "storage#buckets", "items": items?}),
    ))
}

/// `buckets.testIamPermissions`.
pub(crate) fn test_permissions(call: &Call) -> StdResult<Reply, Stop> {
    let bucket = &call.route.bucket;
    if !call.config.buckets.contains_key(bucket) {
        return Err(Refusal::no_bucket().into());
    }
    let mut had = Vec::new();
    for name in call.query.all("permissions") {
        let known = Permission::ALL.into_iter().find(|p| p.name() == name);
        let permission =
            known.ok_or_else(|| Refusal::invalid(format!("unknown permission {name:?}")))?;
        if call.may(permission, bucket, "") {
            had.push(name);
        }
    }
    Ok(Reply::json(&json!({
        "kind": "storage#testIamPermissionsResponse", "permissions": had,
    })))
}

/// `buckets.insert`.
pub(crate) async fn insert(call: &mut Call) -> StdResult<Reply, Stop> {
    let resource_given = call.read_json().await?;
    call.need(Permission::BucketsCreate, "", "")?;
    let name = resource_given.get("name").and_then(Value::as_str);
    let name = name
        .ok_or_else(|| Refusal::invalid("Required: name"))?
        .to_owned();
    let settings = settings(&resource_given)?;
    mutate(call, |_| {
        let mut config = (*call.shared.config()).clone();
        if config.buckets.contains_key(&name) {
            let message = "Your previous request to create the named bucket succeeded and you already own it.";
            return Err(Refusal::conflict(message));
        }
        config.buckets.insert(name.clone(), settings);
        call.shared.set_config(config);
        Ok(Reply::json(
            &json!({"kind": "storage#bucket", "id": name, "name": name}),
        ))
    })
}

fn settings(resource: &Map<String, Value>) -> Result<BucketConfig> {
    let mut settings = BucketConfig::default();
    let text = |key: &str| resource.get(key).and_then(Value::as_str);
    let resource = Value::Object(resource.clone());
    let seconds = |value: &Value| {
        let text = value.as_str().and_then(|t| t.parse().ok());
        text.or_else(|| value.as_u64())
    };
    settings.location = text("location").unwrap_or("US").to_uppercase();
    let is_region = settings.location.contains('-');
    settings.location_type = if is_region { "region" } else { "multi-region" }.into();
    settings.storage_class = text("storageClass").unwrap_or("STANDARD").into();
    let hierarchical = resource["hierarchicalNamespace"]["enabled"].as_bool();
    settings.hierarchical_namespace = hierarchical.unwrap_or(false);
    let uniform = resource["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"].as_bool();
    settings.uniform_bucket_level_access = uniform.unwrap_or(false);
    if settings.hierarchical_namespace && !settings.uniform_bucket_level_access {
        let message = "Hierarchical namespace buckets must use uniform bucket-level access.";
        return Err(Refusal::invalid(message));
    }
    let soft_delete = &resource["softDeletePolicy"]["retentionDurationSeconds"];
    settings.soft_delete_s = seconds(soft_delete).unwrap_or(604_800);
    settings.retention_s = seconds(&resource["retentionPolicy"]["retentionPeriod"]);
    settings.default_event_based_hold =
        resource["defaultEventBasedHold"].as_bool().unwrap_or(false);
    settings.lifecycle = resource.get("lifecycle").cloned();
    Ok(settings)
}

fn resource(call: &Call, name: &str) -> Result<Value> {
    let mut store = call.shared.store.lock().unwrap();
    let bucket = store.bucket(&call.config, name)?;
    let settings = bucket.settings;
    let created = timestamp(bucket.state.created);
    let mut resource = json!({
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "selfLink": format!("{}/storage/v1/b/{name}", call.base()),
        "projectNumber": "123456789012",
        "generation": "1",
        "metageneration": "1",
        "etag": "CAE=",
        "location": settings.location,
        "locationType": settings.location_type,
        "storageClass": settings.storage_class,
        "timeCreated": created,
        "updated": created,
        "iamConfiguration": {
            "uniformBucketLevelAccess": {"enabled": settings.uniform_bucket_level_access},
            "publicAccessPrevention": "inherited",
        },
        "softDeletePolicy": {"retentionDurationSeconds": settings.soft_delete_s.to_string()},
    });
    if settings.soft_delete_s > 0 {
        resource["softDeletePolicy"]["effectiveTime"] = created.clone().into();
    }
    if settings.hierarchical_namespace {
        resource["hierarchicalNamespace"] = json!({"enabled": true});
    }
    if let Some(seconds) = settings.retention_s {
        resource["retentionPolicy"] = json!({
            "retentionPeriod": seconds.to_string(), "effectiveTime": created, "isLocked": false,
        });
    }
    if settings.default_event_based_hold {
        resource["defaultEventBasedHold"] = true.into();
    }
    if let Some(lifecycle) = &settings.lifecycle {
        resource["lifecycle"] = lifecycle.clone();
    }
    if !settings.labels.is_empty() {
        resource["labels"] = json!(settings.labels);
    }
    Ok(resource)
}
