//! Requests to one bucket: sent with a token, repeated when that can help, and turned into errors that name request, object and
//! permission.

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use object_store::{
    ClientOptions, PutPayload,
    client::{HttpClient, HttpConnector, HttpRequestBody, HttpResponse, ReqwestConnector},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::{
    GcsOptions,
    credentials::{Credentials, Token},
    latency::Latencies,
    pace::Pace,
    retry::{RetryPolicy, Tries},
    stats::{Counters, GcsStats},
};
use crate::{
    error::{Error, ErrorKind, Result},
    store::{not_found, precondition},
};

/// Google's own address, unless STORAGE_EMULATOR_HOST names another.
const GOOGLE: &str = "https://storage.googleapis.com";

/// Requests that one store has under way at most, and so, but for a few that are being opened or closed, connections.
const CONNECTIONS: usize = 128;

/// An answer that is no object is never longer than this, in bytes: a page of a listing takes some megabytes.
const MAX_ANSWER_LEN: usize = 16 << 20;

/// Characters of a server's own message that are worth repeating.
const MAX_MESSAGE_LEN: usize = 300;

/// Makes mutations idempotent on the server (cloud.google.com/storage/docs/retry-strategy).
const IDEMPOTENCY_TOKEN: HeaderName = HeaderName::from_static("x-goog-gcs-idempotency-token");

/// What stays as it is in a name within a URL: RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// `text` as one component of a URL.
pub(super) fn escaped(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

/// One request, as often as it takes.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: String,
    /// For errors: what was to be done.
    pub(super) action: &'static str,
    /// What the caller must be allowed to.
    pub(super) permission: &'static str,
    /// Name of the object in the bucket; empty for the bucket itself.
    pub(super) object: &'a str,
    pub(super) headers: HeaderMap,
    pub(super) body: PutPayload,
}

impl<'a> Request<'a> {
    pub(super) fn get(url: String, object: &'a str) -> Self {
        Self {
            method: Method::GET,
            url,
            action: "read",
            permission: "storage.objects.get",
            object,
            headers: HeaderMap::new(),
            body: PutPayload::new(),
        }
    }

    /// A mutation: the server carries out only one of several that carry the same token.
    pub(super) fn mutation(
        method: Method,
        url: String,
        action: &'static str,
        permission: &'static str,
        object: &'a str,
    ) -> Self {
        let token = uuid::Uuid::new_v4().to_string();
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_str(&token).expect("a UUID is plain text");
        headers.insert(IDEMPOTENCY_TOKEN, value);
        Self {
            method,
            action,
            permission,
            headers,
            ..Self::get(url, object)
        }
    }

    pub(super) fn with_body(mut self, content_type: &str, body: PutPayload) -> Self {
        let content_type = HeaderValue::from_str(content_type).expect("a plain content type");
        self.headers.insert(header::CONTENT_TYPE, content_type);
        self.body = body;
        self
    }
}

/// A response whose head has come. Its connection counts until this is dropped.
pub(super) struct Response {
    pub(super) response: HttpResponse,
    pub(super) connection: OwnedSemaphorePermit,
}

/// Why a try came to nothing.
pub(super) enum Failure {
    /// Another one may help; the server may have said when.
    Passing(Error, Option<Duration>),
    /// The same, and there is more under way than the store bears.
    Throttled(Error, Option<Duration>),
    /// This token is not accepted: another try with another one may help.
    Unauthorized(Error, Token),
    /// No other one will.
    Final(Error),
}

/// One bucket and the way to it.
#[derive(Debug)]
pub(super) struct Client {
    http: HttpClient,
    /// Scheme and host.
    pub(super) base: String,
    pub(super) bucket: String,
    credentials: Credentials,
    connections: Arc<Semaphore>,
    pub(super) policy: RetryPolicy,
    pub(super) counters: Counters,
    pub(super) latencies: Latencies,
    /// Bounds the downloads under way.
    pub(super) downloads: Arc<Pace>,
    /// Whether a compose removes its sources, as Google's does since 2026-07; emulators do not.
    pub(super) removes_sources: OnceCell<bool>,
}

impl Client {
    pub(super) fn open(bucket: &str, options: &GcsOptions) -> Result<Self> {
        let emulator = options.endpoint.clone().or_else(|| {
            std::env::var("STORAGE_EMULATOR_HOST")
                .ok()
                .filter(|host| !host.is_empty())
        });
        let base = match &emulator {
            Some(host) if host.contains("://") => host.trim_end_matches('/').to_owned(),
            Some(host) => format!("http://{host}"),
            None => GOOGLE.to_owned(),
        };
        // Timeouts are our own: a total one would cut long bodies that are getting on well.
        let client_options = ClientOptions::new()
            .with_http1_only()
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(5))
            .with_pool_idle_timeout(Duration::from_secs(30))
            .with_allow_http(emulator.is_some());
        let failed = |e| Error::invalid(format!("cannot open gs://{bucket}")).because(e);
        Ok(Self {
            http: ReqwestConnector::default()
                .connect(&client_options)
                .map_err(failed)?,
            credentials: Credentials::find(bucket, options, &client_options, emulator.is_some()),
            base,
            bucket: bucket.to_owned(),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            policy: options.retry.clone(),
            counters: Counters::default(),
            latencies: Latencies::default(),
            downloads: Arc::new(Pace::new(options.reads_at_once, options.read_len)),
            removes_sources: OnceCell::new(),
        })
    }

    pub(super) fn bucket(&self) -> &str {
        &self.bucket
    }

    pub(super) fn stats(&self) -> GcsStats {
        self.counters.snapshot()
    }

    pub(super) fn tries(&self) -> Tries<'_> {
        Tries::new(&self.policy)
    }

    /// The JSON API's address of the bucket.
    pub(super) fn bucket_url(&self) -> String {
        format!("{}/storage/v1/b/{}", self.base, escaped(&self.bucket))
    }

    /// The JSON API's address of an object.
    pub(super) fn object_url(&self, object: &str) -> String {
        format!("{}/o/{}", self.bucket_url(), escaped(object))
    }

    /// For errors.
    pub(super) fn place(&self, object: &str) -> String {
        match object {
            "" => format!("gs://{}", self.bucket),
            _ => format!("gs://{}/{object}", self.bucket),
        }
    }

    /// Sends a request once. What comes back is a success, with its body still to be read.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, Failure> {
        let connection = self.connections.clone().acquire_owned().await;
        let connection = connection.expect("it is never closed");
        let token = self.credentials.token().await.map_err(Failure::Final)?;
        let len = request.body.content_length() as u64;
        let mut built = http::Request::builder()
            .method(&request.method)
            .uri(&request.url);
        for (name, value) in &request.headers {
            built = built.header(name, value);
        }
        if let Some(bearer) = &token.bearer {
            built = built.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let body = match len {
            0 => HttpRequestBody::empty(),
            len => {
                built = built.header(header::CONTENT_LENGTH, len);
                HttpRequestBody::from(request.body.clone())
            }
        };
        let built = built.body(body).map_err(|e| {
            Failure::Final(Error::invalid(format!("bad address {}", request.url)).because(e))
        })?;
        self.counters.requests.fetch_add(1, Relaxed);
        self.counters.sent.fetch_add(len, Relaxed);
        let patience = self.policy.try_timeout(len);
        let response = tokio::time::timeout(patience, self.http.execute(built)).await;
        let response = match response {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(Failure::Passing(self.unreachable(request).because(e), None)),
            Err(_) => {
                let error = self
                    .unreachable(request)
                    .because(format!("no answer in {} s", patience.as_secs_f32().round()));
                return Err(Failure::Passing(error, None));
            }
        };
        let response = Response {
            response,
            connection,
        };
        if response.response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(request, response, token).await)
    }

    fn unreachable(&self, request: &Request<'_>) -> Error {
        let place = self.place(request.object);
        Error::new(
            ErrorKind::Store,
            format!("the store could not be asked to {} {place}", request.action),
        )
    }

    /// What a status that is no success means.
    async fn refusal(&self, request: &Request<'_>, response: Response, token: Token) -> Failure {
        let status = response.response.status();
        let asked_to_wait = response
            .response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let length = object_length(response.response.headers());
        let about_token = self.credentials.advice(response.response.headers());
        let body = self.collect(response).await.unwrap_or_default();
        let message = message(&body);
        let (place, action) = (self.place(request.object), request.action);
        let why = format!("{}: {message}", status.as_u16());
        let error = |kind| {
            Error::new(
                kind,
                format!("the store refuses to {action} {place} ({why})"),
            )
        };
        match status {
            // Nothing but the bucket has to be there for these.
            StatusCode::NOT_FOUND
                if message.contains("bucket does not exist")
                    || request.object.is_empty()
                    || matches!(request.action, "write" | "list") => Failure::Final(
                Error::new(
                    ErrorKind::Store,
                    format!("there is no bucket gs://{}", self.bucket),
                )
                .hint(
                    "check the store's URL; `podsnap bucket create-command` prints how to make one",
                ),
            ),
            StatusCode::NOT_FOUND => Failure::Final(not_found(&place)),
            StatusCode::PRECONDITION_FAILED => Failure::Final(precondition(&place)),
            StatusCode::FORBIDDEN if request.permission == "storage.objects.get" => {
                let error = Error::new(
                    ErrorKind::Forbidden,
                    format!(
                        "{place} does not exist, or may not be read by these credentials ({why})"
                    ),
                );
                Failure::Final(error.maybe_absent().hint(
                    "reading needs storage.objects.get; without storage.objects.list the store does not tell one from the other",
                ))
            }
            StatusCode::FORBIDDEN => Failure::Final(error(ErrorKind::Forbidden).hint(format!(
                "the credentials need {} on this path",
                request.permission
            ))),
            StatusCode::UNAUTHORIZED => Failure::Unauthorized(
                error(ErrorKind::Forbidden).hint(format!(
                    "this needs {}; {about_token}",
                    request.permission
                )),
                token,
            ),
            StatusCode::RANGE_NOT_SATISFIABLE => Failure::Final(match length {
                Some(len) => Error::damaged(place, format!("it has only {len} bytes")),
                None => Error::damaged(place, "it is shorter than it must be"),
            }),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Failure::Throttled(error(ErrorKind::Store), asked_to_wait)
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Failure::Passing(error(ErrorKind::Store), asked_to_wait)
            }
            // A body that was changed on its way does not have the checksum that came with it.
            StatusCode::BAD_REQUEST if message.to_lowercase().contains("crc32c") => {
                Failure::Passing(error(ErrorKind::Store), None)
            }
            _ => Failure::Final(error(ErrorKind::Store)),
        }
    }

    /// The whole body of an answer that is no object.
    async fn collect(&self, response: Response) -> Result<Bytes, String> {
        let Response {
            response,
            connection: _connection,
        } = response;
        let mut body = response.into_body().bytes_stream();
        let mut collected = BytesMut::new();
        loop {
            match tokio::time::timeout(self.policy.answer_timeout, body.next()).await {
                Err(_) => return Err("the answer stopped in the middle".to_owned()),
                Ok(None) => return Ok(collected.freeze()),
                Ok(Some(Err(e))) => return Err(e.to_string()),
                Ok(Some(Ok(bytes))) if collected.len() + bytes.len() <= MAX_ANSWER_LEN => {
                    collected.extend_from_slice(&bytes);
                }
                Ok(Some(Ok(_))) => return Err("the answer is too long".to_owned()),
            }
        }
    }

    /// Whether there is another token to be had; it is asked for once in a request's life.
    pub(super) async fn may_refresh(&self, refreshed: &mut bool, token: &Token) -> bool {
        !std::mem::replace(refreshed, true) && self.credentials.refused(token).await
    }

    /// Sends a request until it is answered or there is no hope. Returns the answer's bytes and the number of tries.
    pub(super) async fn call(&self, request: &Request<'_>) -> Result<(Bytes, u32), (Error, u32)> {
        let mut tries = self.tries();
        let mut refreshed = false;
        loop {
            let failed = match self.send(request).await {
                Ok(response) => match self.collect(response).await {
                    Ok(bytes) => return Ok((bytes, tries.count())),
                    Err(why) => Failure::Passing(self.unreachable(request).because(why), None),
                },
                Err(failure) => failure,
            };
            let (error, asked_for) = match failed {
                Failure::Unauthorized(_, token)
                    if self.may_refresh(&mut refreshed, &token).await =>
                {
                    continue;
                }
                Failure::Unauthorized(error, _) | Failure::Final(error) => {
                    return Err((error, tries.count()));
                }
                // A name bears one change a second: what is removed soon after it was written is refused until then.
                Failure::Throttled(error, None) if request.method == Method::DELETE => {
                    (error, Some(Duration::from_secs(1)))
                }
                Failure::Passing(error, asked_for) | Failure::Throttled(error, asked_for) => {
                    (error, asked_for)
                }
            };
            tracing::debug!(%error, tries = tries.count(), "a request failed");
            if !tries.another(asked_for).await {
                let count = tries.count();
                return Err((error.hint(format!("given up after {count} tries")), count));
            }
            self.counters.retried();
        }
    }
}

/// The length of the whole object, from a Content-Range such as `bytes 0-9/100` or `bytes */100`.
pub(super) fn object_length(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.rsplit_once('/')?.1.parse().ok()
}

/// What a server says about a refusal: the message of its JSON, or the beginning of its text.
fn message(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let message = parsed
        .as_ref()
        .and_then(|json| json["error"]["message"].as_str().map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let plain = message.chars().filter(|c| !c.is_control());
    plain.take(MAX_MESSAGE_LEN).collect()
}
