//! XML multipart uploads. They have permissions of their own, which an agent need not have.

use std::{collections::BTreeMap, fmt::Write, result::Result as StdResult};

use http::{StatusCode, header};

use super::{escape, objects, texts};
use crate::{
    bucket::NewObject,
    checksums::Claims,
    conditions::Conditions,
    content::{Content, Sums},
    error::{Refusal, Result},
    iam::Permission,
    json::{may_replace, mutate, no_content},
    object::{Metadata, encode_crc32c, hex},
    reply::Reply,
    request::{Call, Stop},
    store::Store,
};

/// Bytes of every part but the last at least.
const PART_LEN: u64 = 5 << 20;
/// Parts at most, and their highest number.
const PARTS: u32 = 10_000;

/// An upload that was initiated.
pub(crate) struct Upload {
    bucket: String,
    name: String,
    metadata: Metadata,
    parts: BTreeMap<u32, Part>,
}

struct Part {
    content: Content,
    sums: Sums,
}

impl Part {
    fn etag(&self) -> String {
        match self.sums.md5 {
            Some(md5) => format!("\"{}\"", hex(&md5)),
            None => format!("\"{:08x}\"", self.sums.crc32c),
        }
    }
}

/// `POST ?uploads`.
pub(super) fn initiate(call: &Call) -> StdResult<Reply, Stop> {
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::MultipartCreate, bucket, name)?;
    call.need(Permission::ObjectsCreate, bucket, name)?;
    let mut store = call.shared.store.lock().unwrap();
    store.bucket(&call.config, bucket)?;
    let id = store.new_upload_id();
    let upload = Upload {
        bucket: bucket.clone(),
        name: name.clone(),
        metadata: objects::metadata(call),
        parts: BTreeMap::new(),
    };
    store.uploads.insert(id.clone(), upload);
    Ok(Reply::xml(format!(
        "<InitiateMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Bucket>{}</Bucket>\
         <Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
        escape(bucket),
        escape(name)
    )))
}

/// The upload that a request is about.
fn upload<'a>(call: &Call, store: &'a mut Store) -> Result<&'a mut Upload> {
    let id = call.query.get("uploadId").unwrap_or("");
    let upload = store.uploads.get_mut(id);
    let upload = upload.filter(|u| u.bucket == call.route.bucket && u.name == call.route.name);
    upload.ok_or_else(|| Refusal::not_found("NoSuchUpload", "The requested upload was not found."))
}

/// `PUT ?partNumber&uploadId`.
pub(super) async fn part(call: &mut Call) -> StdResult<Reply, Stop> {
    let number = call
        .query
        .int("partNumber")?
        .and_then(|n| u32::try_from(n).ok());
    let number = number.filter(|n| (1..=PARTS).contains(n));
    let number = number.ok_or_else(|| Refusal::invalid("partNumber must be 1 to 10000"))?;
    let (bucket, name) = (call.route.bucket.clone(), call.route.name.clone());
    call.need(Permission::MultipartCreate, &bucket, &name)?;
    call.need(Permission::ObjectsCreate, &bucket, &name)?;
    upload(call, &mut call.shared.store.lock().unwrap())?;
    let claims = Claims::from_headers(&call.headers)?;
    let mut builder = call.builder(call.content_length().unwrap_or(0), &claims);
    call.read_into(&mut builder).await?;
    let (content, sums) = builder.finish();
    claims.check(&sums)?;
    let part = Part { content, sums };
    let mut reply = Reply::new(StatusCode::OK);
    reply.set(header::ETAG, &part.etag());
    reply.set_named(
        "x-goog-hash",
        &format!("crc32c={}", encode_crc32c(sums.crc32c)),
    );
    let mut store = call.shared.store.lock().unwrap();
    upload(call, &mut store)?.parts.insert(number, part);
    Ok(reply)
}

/// `POST ?uploadId`.
pub(super) async fn complete(call: &mut Call) -> StdResult<Reply, Stop> {
    let body = call.read_small().await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    let (bucket, name) = (&call.route.bucket, &call.route.name);
    call.need(Permission::MultipartCreate, bucket, name)?;
    call.need(Permission::ObjectsCreate, bucket, name)?;
    let numbers = texts(&body, "PartNumber");
    let etags = texts(&body, "ETag");
    if numbers.is_empty() || numbers.len() != etags.len() {
        return Err(Refusal::malformed(
            "MalformedCompleteMultipartUploadRequest",
            "no list of parts",
        )
        .into());
    }
    let conditions = Conditions::from_headers(&call.headers)?;
    mutate(call, |store| {
        let upload = upload(call, store)?;
        let (metadata, parts) = (upload.metadata.clone(), listed(upload, &numbers, &etags)?);
        let combine = |crc, part: &&Part| {
            crc32c::crc32c_combine(crc, part.sums.crc32c, part.content.len() as usize)
        };
        let new = NewObject {
            sums: Sums {
                crc32c: parts.iter().fold(0, combine),
                md5: None,
            },
            content: Content::concat(parts.iter().map(|p| p.content.clone())),
            metadata,
            components: None,
        };
        let mut bucket_now = store.bucket(&call.config, bucket)?;
        let object = bucket_now.put(name, new, &conditions, may_replace(call, bucket, name))?;
        store
            .uploads
            .remove(call.query.get("uploadId").unwrap_or(""));
        let mut reply = Reply::xml(format!(
            "<CompleteMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Location>{}/{}/{}</Location>\
             <Bucket>{}</Bucket><Key>{}</Key><ETag>{}</ETag></CompleteMultipartUploadResult>",
            call.base(),
            escape(bucket),
            escape(name),
            escape(bucket),
            escape(name),
            escape(&object.xml_etag())
        ));
        reply.set_named("x-goog-generation", &object.generation.to_string());
        reply.set_named(
            "x-goog-hash",
            &format!("crc32c={}", encode_crc32c(object.sums.crc32c)),
        );
        Ok(reply)
    })
}

/// The parts that are to make the object.
fn listed<'a>(upload: &'a Upload, numbers: &[&str], etags: &[&str]) -> Result<Vec<&'a Part>> {
    let mut parts: Vec<&Part> = Vec::new();
    let mut last = 0;
    for (number, etag) in numbers.iter().zip(etags) {
        let number: u32 = number.parse().map_err(|_| Refusal::invalid("PartNumber"))?;
        if number <= last {
            let message = "The list of parts was not in ascending order.";
            return Err(Refusal::malformed("InvalidPartOrder", message));
        }
        last = number;
        let part = upload.parts.get(&number);
        let etag = etag.replace("&quot;", "\"");
        let is_it = |p: &&Part| p.etag().trim_matches('"') == etag.trim_matches('"');
        let part = part.filter(is_it).ok_or_else(|| {
            Refusal::malformed(
                "InvalidPart",
                format!("Part {number} was not uploaded, or has another ETag."),
            )
        })?;
        parts.push(part);
    }
    let (_, all_but_last) = parts.split_last().expect("listed above");
    if all_but_last.iter().any(|p| p.content.len() < PART_LEN) {
        let message = "Your proposed upload is smaller than the minimum object size";
        return Err(Refusal::malformed("EntityTooSmall", message));
    }
    Ok(parts)
}

/// `DELETE ?uploadId`.
pub(super) fn abort(call: &Call) -> StdResult<Reply, Stop> {
    call.need(
        Permission::MultipartAbort,
        &call.route.bucket,
        &call.route.name,
    )?;
    let mut store = call.shared.store.lock().unwrap();
    upload(call, &mut store)?;
    store
        .uploads
        .remove(call.query.get("uploadId").unwrap_or(""));
    Ok(no_content())
}

/// `GET ?uploadId`.
pub(super) fn list_parts(call: &Call) -> StdResult<Reply, Stop> {
    call.need(
        Permission::MultipartListParts,
        &call.route.bucket,
        &call.route.name,
    )?;
    let mut store = call.shared.store.lock().unwrap();
    let upload = upload(call, &mut store)?;
    let mut xml = "<ListPartsResult><IsTruncated>false</IsTruncated>".to_owned();
    for (number, part) in &upload.parts {
        let _ = write!(
            xml,
            "<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag><Size>{}</Size></Part>",
            part.etag(),
            part.content.len()
        );
    }
    Ok(Reply::xml(xml + "</ListPartsResult>"))
}

/// `GET ?uploads`.
pub(super) fn list(call: &Call) -> StdResult<Reply, Stop> {
    let bucket = &call.route.bucket;
    call.need(Permission::MultipartList, bucket, "")?;
    let mut store = call.shared.store.lock().unwrap();
    store.bucket(&call.config, bucket)?;
    let mut xml = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>".to_owned();
    for (id, upload) in store.uploads.iter().filter(|(_, u)| u.bucket == *bucket) {
        let name = escape(&upload.name);
        let _ = write!(
            xml,
            "<Upload><Key>{name}</Key><UploadId>{id}</UploadId></Upload>"
        );
    }
    Ok(Reply::xml(xml + "</ListMultipartUploadsResult>"))
}
