//! From method, path and query to what is asked for.

use http::{HeaderMap, Method};

use crate::{
    error::{Dialect, Refusal, Result},
    operation::Operation,
    request::{Query, decode},
};

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub operation: Operation,
    /// How to refuse.
    pub dialect: Dialect,
    pub bucket: String,
    /// Object, folder, or a listing's prefix.
    pub name: String,
    /// Where a copy or move goes: bucket and object.
    pub destination: Option<(String, String)>,
}

impl Route {
    fn new(operation: Operation, dialect: Dialect, bucket: String, name: String) -> Self {
        Self {
            operation,
            dialect,
            bucket,
            name,
            destination: None,
        }
    }

    /// Finds what a request is about. The error is worded for the dialect that comes with it.
    pub fn find(
        method: &Method,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> std::result::Result<Self, (Dialect, Refusal)> {
        let path = path.strip_prefix('/').unwrap_or(path);
        let first = path.split('/').next().unwrap_or("");
        let json = |route: Result<Self>| route.map_err(|e| (Dialect::Json, e));
        match first {
            "token" | "oauth2" => Ok(Self::bare(Operation::Token)),
            "computeMetadata" => Ok(Self::bare(Operation::MetadataServer)),
            // How clients find out whether there is such a server.
            "" if headers.contains_key("metadata-flavor") => {
                Ok(Self::bare(Operation::MetadataServer))
            }
            "upload" | "resumable" => json(upload(method, path, query)),
            "storage" => json(storage(method, path, query)),
            "download" => json(storage(
                method,
                path.strip_prefix("download/").unwrap_or(path),
                query,
            )),
            _ => xml(method, path, query, headers).map_err(|e| (Dialect::Xml, e)),
        }
    }

    fn bare(operation: Operation) -> Self {
        Self::new(operation, Dialect::Json, String::new(), String::new())
    }
}

fn nothing_there() -> Refusal {
    Refusal::not_found("NoSuchMethod", "Not Found")
}

fn upload(method: &Method, path: &str, query: &Query) -> Result<Route> {
    let path = path.strip_prefix("resumable/").unwrap_or(path);
    let rest = path
        .strip_prefix("upload/storage/v1/")
        .ok_or_else(nothing_there)?;
    let parts: Vec<&str> = rest.split('/').collect();
    let ["b", bucket, "o"] = parts[..] else {
        return Err(nothing_there());
    };
    let kind = query.get("uploadType").unwrap_or("");
    let operation = match *method {
        // Some clients send chunks by POST.
        Method::PUT | Method::POST if query.has("upload_id") => Operation::ResumableChunk,
        Method::DELETE if query.has("upload_id") => Operation::ResumableCancel,
        Method::POST if kind == "media" => Operation::InsertMedia,
        Method::POST if kind == "multipart" => Operation::InsertMultipart,
        Method::POST if kind == "resumable" => Operation::ResumableStart,
        Method::POST => return Err(Refusal::invalid(format!("Invalid upload type: {kind:?}"))),
        _ => return Err(nothing_there()),
    };
    let name = query.get("name").unwrap_or("").to_owned();
    Ok(Route::new(operation, Dialect::Json, decode(bucket)?, name))
}

fn storage(method: &Method, path: &str, query: &Query) -> Result<Route> {
    use Operation::*;
    let rest = path.strip_prefix("storage/v1/").ok_or_else(nothing_there)?;
    let parts: Vec<&str> = rest.trim_end_matches('/').split('/').collect();
    let get = method == Method::GET;
    let post = method == Method::POST;
    let delete = method == Method::DELETE;
    let prefix = || query.get("prefix").unwrap_or("").to_owned();
    let json = |operation, bucket: &str, name: String| {
        Ok(Route::new(operation, Dialect::Json, decode(bucket)?, name))
    };
    match parts[..] {
        ["b"] if get => json(BucketList, "", prefix()),
        ["b"] if post => json(BucketInsert, "", String::new()),
        ["b", bucket] if get => json(BucketGet, bucket, String::new()),
        ["b", bucket, "iam", "testPermissions"] if get => {
            json(BucketTestPermissions, bucket, String::new())
        }
        ["b", bucket, "o"] if get => json(List, bucket, prefix()),
        ["b", bucket, "o", object] => {
            let operation = match *method {
                Method::GET if query.get("alt") == Some("media") => GetMedia,
                Method::GET => GetMetadata,
                Method::DELETE => Delete,
                Method::PATCH | Method::PUT => Patch,
                _ => return Err(nothing_there()),
            };
            let mut route = json(operation, bucket, decode(object)?)?;
            if operation == GetMedia {
                route.dialect = Dialect::Text;
            }
            Ok(route)
        }
        ["b", bucket, "o", object, "compose"] if post => json(Compose, bucket, decode(object)?),
        ["b", bucket, "o", object, "restore"] if post => json(Restore, bucket, decode(object)?),
        [
            "b",
            bucket,
            "o",
            object,
            verb @ ("rewriteTo" | "copyTo"),
            "b",
            to_bucket,
            "o",
            to,
        ] if post => {
            let operation = if verb == "copyTo" { Copy } else { Rewrite };
            let mut route = json(operation, bucket, decode(object)?)?;
            route.destination = Some((decode(to_bucket)?, decode(to)?));
            Ok(route)
        }
        ["b", bucket, "o", object, "moveTo", "o", to] if post => {
            let mut route = json(Move, bucket, decode(object)?)?;
            route.destination = Some((route.bucket.clone(), decode(to)?));
            Ok(route)
        }
        ["b", bucket, "folders"] if get => json(FolderList, bucket, prefix()),
        ["b", bucket, "folders"] if post => json(FolderInsert, bucket, String::new()),
        ["b", bucket, "folders", folder] if get => json(FolderGet, bucket, decode(folder)?),
        ["b", bucket, "folders", folder] if delete => json(FolderDelete, bucket, decode(folder)?),
        _ => Err(nothing_there()),
    }
}

fn xml(method: &Method, path: &str, query: &Query, headers: &HeaderMap) -> Result<Route> {
    use Operation::*;
    let (bucket, object) = path.split_once('/').unwrap_or((path, ""));
    let bucket = decode(bucket)?;
    let object = decode(object)?;
    let in_parts = query.has("uploadId");
    let operation = match (method.as_str(), object.is_empty()) {
        ("GET", true) if query.has("uploads") => XmlMultipartList,
        ("GET", true) => {
            let prefix = query.get("prefix").unwrap_or("").to_owned();
            return Ok(Route::new(XmlList, Dialect::Xml, bucket, prefix));
        }
        ("GET", false) if in_parts => XmlMultipartListParts,
        ("GET", false) => XmlGet,
        ("HEAD", false) => XmlHead,
        ("PUT", false) if in_parts => XmlMultipartPart,
        ("PUT", false) if headers.contains_key("x-goog-copy-source") => XmlCopy,
        ("PUT", false) => XmlPut,
        ("POST", false) if query.has("uploads") => XmlMultipartInitiate,
        ("POST", false) if in_parts => XmlMultipartComplete,
        ("DELETE", false) if in_parts => XmlMultipartAbort,
        ("DELETE", false) => XmlDelete,
        _ => {
            return Err(Refusal::malformed(
                "NotImplemented",
                "not modelled by this server",
            ));
        }
    };
    Ok(Route::new(operation, Dialect::Xml, bucket, object))
}

impl Route {
    /// Of a request that asks for nothing there is.
    pub fn unknown(dialect: Dialect) -> Self {
        Self::new(Operation::Unknown, dialect, String::new(), String::new())
    }

    /// Tells asking how far a resumable upload is from going on with it.
    pub fn note_status_query(&mut self, headers: &HeaderMap) {
        let range = headers.get("content-range").and_then(|v| v.to_str().ok());
        if self.operation == Operation::ResumableChunk
            && range.is_some_and(|r| r.trim_start_matches("bytes").trim().starts_with('*'))
        {
            self.operation = Operation::ResumableStatus;
        }
    }
}
