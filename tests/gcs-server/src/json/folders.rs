//! Folders of hierarchical buckets.

use std::{result::Result as StdResult, time::SystemTime};

use serde_json::{Value, json};

use super::{mutate, no_content};
use crate::{
    bucket::{Bucket, Folder},
    error::{Refusal, Result},
    iam::Permission,
    names,
    object::timestamp,
    reply::Reply,
    request::{Call, Stop},
};

/// Folders on one page of a listing.
const PAGE: usize = 1000;

fn check_hierarchical(bucket: &Bucket<'_>) -> Result<()> {
    match bucket.settings.hierarchical_namespace {
        true => Ok(()),
        false => {
            let message = "The bucket does not support hierarchical namespace.";
            Err(Refusal::conflict(message))
        }
    }
}

fn no_folder(name: &str) -> Refusal {
    Refusal::not_found("NoSuchFolder", format!("The folder {name} does not exist."))
}

/// `folders.insert`.
pub(crate) async fn insert(call: &mut Call) -> StdResult<Reply, Stop> {
    let body = call.read_json().await?;
    let name = body.get("name").and_then(Value::as_str);
    let mut name = name
        .ok_or_else(|| Refusal::invalid("Required: name"))?
        .to_owned();
    if !name.ends_with('/') {
        name.push('/');
    }
    let bucket = &call.route.bucket;
    call.record.set(|e| e.name = name.clone());
    call.need(Permission::FoldersCreate, bucket, &name)?;
    names::check_folder(&name)?;
    let recursive = call.query.is_true("recursive");
    mutate(call, |store| {
        let store = store.bucket(&call.config, bucket)?;
        check_hierarchical(&store)?;
        let folders = &mut store.state.folders;
        if folders.contains_key(&name) {
            return Err(Refusal::conflict(format!(
                "The folder {name} exists already."
            )));
        }
        let created = SystemTime::now();
        for parent in names::parents(&name).filter(|parent| *parent != name) {
            if !recursive && !folders.contains_key(parent) {
                return Err(no_folder(parent));
            }
            folders.entry(parent.into()).or_insert(Folder { created });
        }
        let folder = Folder { created };
        folders.insert(name.clone(), folder.clone());
        Ok(Reply::json(&resource(call, &name, &folder)))
    })
}

/// `folders.get`.
pub(crate) fn get(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::FoldersGet, bucket, name)?;
    let mut store = call.shared.store.lock().unwrap();
    let store = store.bucket(&call.config, bucket)?;
    check_hierarchical(&store)?;
    let folder = store
        .state
        .folders
        .get(name)
        .ok_or_else(|| no_folder(name))?;
    Ok(Reply::json(&resource(call, name, folder)))
}

/// `folders.list`.
pub(crate) fn list(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, prefix) = (&call.route.bucket, &call.route.name);
    call.need(Permission::FoldersList, bucket, prefix)?;
    let mut store = call.shared.store.lock().unwrap();
    let store = store.bucket(&call.config, bucket)?;
    check_hierarchical(&store)?;
    let page = call
        .query
        .int("pageSize")?
        .map_or(PAGE, |n| n.clamp(1, PAGE as i64) as usize);
    let after = call.query.get("pageToken").unwrap_or("");
    let one_level = call.query.get("delimiter") == Some("/");
    let mut of_prefix = store.state.folders.iter().filter(|(name, _)| {
        let rest = name.strip_prefix(prefix.as_str());
        let near = |rest: &str| !one_level || rest.matches('/').count() <= 1;
        rest.is_some_and(near) && name.as_str() > after
    });
    let items: Vec<_> = of_prefix.by_ref().take(page).collect();
    let more = of_prefix.next().is_some();
    let mut reply = json!({"kind": "storage#folders"});
    if more && let Some((last, _)) = items.last() {
        reply["nextPageToken"] = last.as_str().into();
    }
    let items: Vec<Value> = items
        .into_iter()
        .map(|(n, f)| resource(call, n, f))
        .collect();
    if !items.is_empty() {
        reply["items"] = items.into();
    }
    Ok(Reply::json(&reply))
}

/// `folders.delete`: only of what is empty.
pub(crate) fn delete(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::FoldersDelete, bucket, name)?;
    mutate(call, |store| {
        let store = store.bucket(&call.config, bucket)?;
        check_hierarchical(&store)?;
        let state = store.state;
        if !state.folders.contains_key(name) {
            return Err(no_folder(name));
        }
        let below = |other: &String| other.starts_with(name.as_str()) && other != name;
        let objects = state.objects.range(name.clone()..).next();
        let mut folders = state.folders.range(name.clone()..).skip(1);
        if objects.is_some_and(|(o, _)| o.starts_with(name.as_str()))
            || folders.next().is_some_and(|(f, _)| below(f))
        {
            return Err(Refusal::conflict(
                "The folder you tried to delete is not empty.",
            ));
        }
        state.folders.remove(name);
        Ok(no_content())
    })
}

fn resource(call: &Call, name: &str, folder: &Folder) -> Value {
    let bucket = &call.route.bucket;
    let created = timestamp(folder.created);
    let encoded = crate::request::encode(name);
    json!({
        "kind": "storage#folder",
        "id": format!("{bucket}/{name}"),
        "selfLink": format!("{}/storage/v1/b/{bucket}/folders/{encoded}", call.base()),
        "bucket": bucket,
        "name": name,
        "metageneration": "1",
        "createTime": created,
        "updateTime": created,
    })
}
