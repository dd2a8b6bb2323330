//! Resumable uploads: a session, chunks, and asking how far it is.

use std::result::Result as StdResult;

use http::{StatusCode, header};

use super::insert;
use crate::{
    bucket::NewObject,
    checksums::Claims,
    conditions::Conditions,
    content::ContentBuilder,
    error::{Refusal, Result},
    iam::Permission,
    object::Metadata,
    reply::Reply,
    request::{Call, Stop, encode},
};

/// Every chunk but the last is a multiple of this.
const CHUNK_UNIT: u64 = 256 << 10;

/// An upload that was started. Its id stands for the caller's rights, as the service has it.
pub(crate) struct Session {
    pub bucket: String,
    pub name: String,
    metadata: Metadata,
    claims: Claims,
    conditions: Conditions,
    principal: Option<String>,
    /// `None` while a request has it.
    progress: Option<ContentBuilder>,
    persisted: u64,
    /// The answer to the request that finished it.
    finished: Option<Reply>,
}

impl Session {
    /// Whether its object is made.
    pub fn is_finished(&self) -> bool {
        self.finished.is_some()
    }
}

/// `uploadType=resumable`.
pub(crate) async fn start(call: &mut Call) -> StdResult<Reply, Stop> {
    let resource = call.read_json().await?;
    let name = insert::object_name(&call.query, &resource)?;
    let mut metadata = Metadata {
        content_type: call.header("x-upload-content-type").map(Into::into),
        ..Metadata::default()
    };
    metadata.update(&resource);
    let mut claims = Claims::from_headers(&call.headers)?;
    claims.add_resource(&resource);
    let length = call
        .header("x-upload-content-length")
        .and_then(|v| v.parse().ok());
    let bucket = call.route.bucket.clone();
    insert::check_acl(call)?;
    call.need(Permission::ObjectsCreate, &bucket, &name)?;
    let conditions = Conditions::from_query(&call.query)?;
    let builder = call.builder(length.unwrap_or(0), &claims);

    let mut store = call.shared.store.lock().unwrap();
    let there = store.bucket(&call.config, &bucket)?;
    conditions.check_change(there.find(&name, None))?;
    let id = store.new_upload_id();
    let mut reply = Reply::new(StatusCode::OK);
    let location = format!(
        "{}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={}&upload_id={id}",
        call.base(),
        encode(&name)
    );
    reply.set(header::LOCATION, &location);
    reply.set_named("x-guploader-uploadid", &id);
    let session = Session {
        bucket,
        name,
        metadata,
        claims,
        conditions,
        principal: call.principal.clone(),
        progress: Some(builder),
        persisted: 0,
        finished: None,
    };
    store.sessions.insert(id, session);
    Ok(reply)
}

fn gone() -> Refusal {
    Refusal::not_found("NoSuchUpload", "No such upload session.")
}

/// What a `Content-Range` says: where the chunk starts, if there is one, and how long the object is, if that is known.
fn content_range(call: &Call) -> Result<(Option<u64>, Option<u64>)> {
    let Some(range) = call.header("content-range") else {
        return Ok((Some(0), call.content_length()));
    };
    let invalid = || Refusal::invalid(format!("Failed to parse Content-Range header: {range:?}"));
    let spec = range.strip_prefix("bytes").ok_or_else(invalid)?;
    let (part, total) = spec.trim().split_once('/').ok_or_else(invalid)?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().map_err(|_| invalid())?),
    };
    if part == "*" {
        return Ok((None, total));
    }
    let (first, last) = part.split_once('-').ok_or_else(invalid)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| invalid());
    let (first, last) = (number(first)?, number(last)?);
    if last < first || total.is_some_and(|t| last >= t) {
        return Err(invalid());
    }
    Ok((Some(first), total))
}

/// A chunk, or the question how far the upload is.
pub(crate) async fn chunk(call: &mut Call) -> StdResult<Reply, Stop> {
    let id = call.query.get("upload_id").unwrap_or("").to_owned();
    let (start, total) = content_range(call)?;
    let (mut builder, persisted, finished) = {
        let mut store = call.shared.store.lock().unwrap();
        let session = store.sessions.get_mut(&id).ok_or_else(gone)?;
        call.record.set(|e| {
            e.bucket = session.bucket.clone();
            e.name = session.name.clone();
        });
        if let Some(finished) = &session.finished {
            call.record.set(|e| e.replayed = true);
            return Ok(finished.clone());
        }
        // Only a chunk takes the builder; another request meanwhile finds the upload busy.
        let wanted = start.is_some() || total == Some(session.persisted);
        let builder = wanted.then(|| session.progress.take()).flatten();
        if wanted && builder.is_none() {
            return Err(Refusal::injected(503, None).into());
        }
        (builder, session.persisted, wanted)
    };
    if !finished {
        return Ok(incomplete(call, persisted));
    }
    let mut builder = Returned {
        call,
        id: id.clone(),
        builder: builder.take(),
    };
    let progress = builder.builder.as_mut().expect("taken above");
    let mut ended = total == Some(progress.len());
    if let Some(start) = start {
        // What was persisted before is skipped; a gap cannot be filled.
        if start > progress.len() {
            return Err(Refusal::injected(503, None).into());
        }
        let mut known = progress.len() - start;
        while let Some(bytes) = builder.call.body.next().await? {
            let skipped = known.min(bytes.len() as u64);
            known -= skipped;
            let progress = builder.builder.as_mut().expect("taken above");
            let pushed = progress.push(&bytes[skipped as usize..]);
            pushed.map_err(|()| Refusal::out_of_memory())?;
        }
        let len = builder.builder.as_ref().expect("taken above").len();
        ended = total == Some(len);
        if !ended && !len.is_multiple_of(CHUNK_UNIT) {
            let message =
                "Chunks of a resumable upload must be multiples of 256 KiB, except for the last.";
            return Err(Refusal::invalid(message).into());
        }
        if total.is_some_and(|t| len > t) {
            return Err(Refusal::invalid("There is more than Content-Range says.").into());
        }
        if !ended {
            return Ok(incomplete(builder.call, len));
        }
    }
    debug_assert!(ended);
    let progress = builder.builder.take().expect("taken above");
    drop(builder);
    finish(call, &id, progress)
}

/// Gives the builder back to its session when the request ends before the upload does: what came is persisted.
struct Returned<'a> {
    call: &'a mut Call,
    id: String,
    builder: Option<ContentBuilder>,
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        let Some(builder) = self.builder.take() else {
            return;
        };
        let mut store = self.call.shared.store.lock().unwrap();
        if let Some(session) = store.sessions.get_mut(&self.id) {
            session.persisted = builder.len();
            session.progress = Some(builder);
        }
    }
}

fn finish(call: &mut Call, id: &str, progress: ContentBuilder) -> StdResult<Reply, Stop> {
    let (content, sums) = progress.finish();
    let (name, metadata, mut claims, conditions) = {
        let mut store = call.shared.store.lock().unwrap();
        let session = store.sessions.get_mut(id).ok_or_else(gone)?;
        call.principal = session.principal.clone();
        call.route.bucket = session.bucket.clone();
        let name = session.name.clone();
        (
            name,
            session.metadata.clone(),
            session.claims.clone(),
            session.conditions.clone(),
        )
    };
    claims.add(Claims::from_headers(&call.headers)?);
    let stored = claims.check(&sums).map_err(Stop::from).and_then(|()| {
        let new = NewObject {
            content,
            sums,
            metadata,
            components: None,
        };
        insert::put(call, &name, new, &conditions)
    });
    let mut store = call.shared.store.lock().unwrap();
    match stored {
        Ok(reply) => {
            if let Some(session) = store.sessions.get_mut(id) {
                session.finished = Some(reply.clone());
            }
            Ok(reply)
        }
        Err(e) => {
            // The bytes are gone with the attempt: the client starts anew.
            store.sessions.remove(id);
            Err(e)
        }
    }
}

fn incomplete(call: &Call, persisted: u64) -> Reply {
    let mut reply = Reply::new(StatusCode::PERMANENT_REDIRECT);
    // Google's Go client does not want its HTTP stack to take this for a redirection.
    if call.header("x-guploader-no-308") == Some("yes") {
        reply = Reply::new(StatusCode::OK);
        reply.set_named("x-http-status-code-override", "308");
    }
    if persisted > 0 {
        reply.set(header::RANGE, &format!("bytes=0-{}", persisted - 1));
    }
    reply
}

/// Gives an upload up.
pub(crate) fn cancel(call: &Call) -> StdResult<Reply, Stop> {
    let id = call.query.get("upload_id").unwrap_or("");
    let mut store = call.shared.store.lock().unwrap();
    store.sessions.remove(id).ok_or_else(gone)?;
    let status = StatusCode::from_u16(499).expect("a status");
    Ok(Reply::new(status))
}
