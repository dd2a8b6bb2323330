//! A request as handlers see it: who asks, what for, its parameters, and its body as it comes in.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::{
    checksums::Claims,
    config::Config,
    content::ContentBuilder,
    error::{Refusal, Result},
    faults::FaultKind,
    iam::Permission,
    log::Record,
    route::Route,
    server::Shared,
};

/// Bytes of a body that is not an object's: JSON, XML, forms.
const SMALL_BODY_LEN: usize = 4 << 20;

/// Why there is no ordinary answer.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A refusal is the answer.
    Refused(Refusal),
    /// The connection ends without one.
    Cut,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The parameters behind `?`.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        Self(pairs.into_owned().collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        let of_key = self.0.iter().filter(move |(k, _)| k == key);
        of_key.map(|(_, value)| value.as_str())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn is_true(&self, key: &str) -> bool {
        self.get(key)
            .is_some_and(|v| v.eq_ignore_ascii_case("true"))
    }

    pub fn int(&self, key: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let invalid = |_| Refusal::invalid(format!("Invalid value for {key}: {value:?}"));
        value.parse().map_err(invalid).map(Some)
    }
}

/// A component of a path, encoded.
pub(crate) fn encode(component: &str) -> String {
    const SET: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');
    utf8_percent_encode(component, SET).to_string()
}

/// A component of a path, decoded; what is not UTF-8 is refused.
pub(crate) fn decode(component: &str) -> Result<String> {
    let decoded = percent_decode_str(component).decode_utf8();
    let invalid = |_| Refusal::invalid("the path is not UTF-8");
    decoded.map_err(invalid).map(|text| text.into_owned())
}

/// One request.
pub(crate) struct Call {
    pub shared: Arc<Shared>,
    pub config: Arc<Config>,
    pub record: Arc<Record>,
    pub method: Method,
    pub path: String,
    pub query: Query,
    pub headers: HeaderMap,
    pub route: Route,
    pub principal: Option<String>,
    pub body: Body,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }

    /// `http://host:port` as the client knows this server.
    pub fn base(&self) -> String {
        format!("http://{}", self.header("host").unwrap_or("127.0.0.1"))
    }

    /// Refuses unless the caller has a permission on `name` (empty for the bucket).
    pub fn need(&self, permission: Permission, bucket: &str, name: &str) -> Result<()> {
        self.record.set(|e| {
            if !e.permissions.contains(&permission) {
                e.permissions.push(permission);
            }
        });
        match &self.principal {
            None => Err(Refusal::anonymous(permission.name())),
            Some(_) if self.may(permission, bucket, name) => Ok(()),
            Some(principal) => Err(Refusal::denied(principal, permission.name())),
        }
    }

    /// Whether the caller has a permission.
    pub fn may(&self, permission: Permission, bucket: &str, name: &str) -> bool {
        let Some(principal) = &self.principal else {
            return false;
        };
        let grants = self.config.access.principals.get(principal);
        grants.is_some_and(|g| g.iter().any(|g| g.gives(permission, bucket, name)))
    }

    /// What somebody is told who asks for an object that is not there.
    pub fn missing(&self, bucket: &str, name: &str) -> Refusal {
        if self.config.rules.missing_without_list == 404
            || self.may(Permission::ObjectsList, bucket, name)
        {
            return Refusal::no_object(bucket, name);
        }
        let principal = self.principal.as_deref().unwrap_or("Anonymous caller");
        Refusal::denied(principal, Permission::ObjectsList.name())
    }

    /// A builder for an upload of this request.
    pub fn builder(&self, expected: u64, claims: &Claims) -> ContentBuilder {
        let rules = &self.config.rules;
        let md5 = rules.md5 || claims.wants_md5();
        ContentBuilder::new(&self.shared.memory, rules.memory_limit_bytes, expected, md5)
    }

    /// `Content-Length`, as far as it is one.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length").and_then(|v| v.parse().ok())
    }

    /// Reads the rest of the body into an upload.
    pub async fn read_into(
        &mut self,
        builder: &mut ContentBuilder,
    ) -> std::result::Result<(), Stop> {
        while let Some(bytes) = self.body.next().await? {
            if builder.push(&bytes).is_err() {
                return Err(Refusal::out_of_memory().into());
            }
        }
        Ok(())
    }

    /// The whole body of a request that carries no object.
    pub async fn read_small(&mut self) -> std::result::Result<Vec<u8>, Stop> {
        let mut all = Vec::new();
        while let Some(bytes) = self.body.next().await? {
            if all.len() + bytes.len() > SMALL_BODY_LEN {
                return Err(Refusal::invalid("the body is too long").into());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// The body as a JSON object; an empty body is an empty object.
    pub async fn read_json(
        &mut self,
    ) -> std::result::Result<serde_json::Map<String, serde_json::Value>, Stop> {
        let body = self.read_small().await?;
        Ok(parse_object(&body)?)
    }
}

/// A JSON object; nothing and `null`, which Google's Go client sends, are an empty one.
pub(crate) fn parse_object(text: &[u8]) -> Result<serde_json::Map<String, serde_json::Value>> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(serde_json::Map::new());
    }
    let parsed = serde_json::from_slice::<Option<_>>(text);
    let malformed = |e| Refusal::malformed("ParseError", format!("Parse Error: {e}"));
    parsed.map_err(malformed).map(Option::unwrap_or_default)
}

/// The body of a request, as it comes, with the faults that happen to uploads.
pub(crate) struct Body {
    incoming: Option<Incoming>,
    /// Read before its turn.
    ahead: VecDeque<Bytes>,
    record: Arc<Record>,
    control: Arc<crate::link::ConnectionControl>,
    expected: Option<u64>,
    read: u64,
    fault: Option<FaultKind>,
    slow_since: Option<Instant>,
}

impl Body {
    pub fn new(
        incoming: Incoming,
        record: Arc<Record>,
        control: Arc<crate::link::ConnectionControl>,
        expected: Option<u64>,
    ) -> Self {
        Self {
            incoming: Some(incoming),
            ahead: VecDeque::new(),
            record,
            control,
            expected,
            read: 0,
            fault: None,
            slow_since: None,
        }
    }

    /// Injects a fault into what is not read yet.
    pub fn set_fault(&mut self, fault: Option<FaultKind>) {
        self.fault = fault;
    }

    /// Looks at the beginning, as long as `enough` of it is not there; `next` delivers it all the same.
    pub async fn peek(&mut self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut seen: Vec<u8> = self.ahead.iter().flatten().copied().collect();
        while !enough(&seen) {
            let Some(Ok(frame)) = (match &mut self.incoming {
                Some(incoming) => incoming.frame().await,
                None => None,
            }) else {
                break;
            };
            if let Ok(bytes) = frame.into_data() {
                seen.extend_from_slice(&bytes);
                self.ahead.push_back(bytes);
            }
        }
        seen
    }

    /// The next bytes; `None` at the end. A client that goes away ends the request.
    pub async fn next(&mut self) -> std::result::Result<Option<Bytes>, Stop> {
        loop {
            let bytes = match (self.ahead.pop_front(), &mut self.incoming) {
                (Some(bytes), _) => bytes,
                (None, None) => return Ok(None),
                (None, Some(incoming)) => match incoming.frame().await {
                    None => {
                        self.incoming = None;
                        return Ok(None);
                    }
                    Some(Err(_)) => return Err(Stop::Cut),
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                },
            };
            if bytes.is_empty() {
                continue;
            }
            let start = self.read;
            self.read += bytes.len() as u64;
            self.record.bytes_in.fetch_add(bytes.len() as u64, Relaxed);
            return self.with_fault(start, bytes).await.map(Some);
        }
    }

    /// Reads the rest and forgets it, so that the connection can be used again.
    pub async fn drain(&mut self) {
        while let Some(incoming) = &mut self.incoming {
            match incoming.frame().await {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.record.bytes_in.fetch_add(bytes.len() as u64, Relaxed);
                    }
                }
                _ => self.incoming = None,
            }
        }
    }

    async fn with_fault(&mut self, start: u64, bytes: Bytes) -> std::result::Result<Bytes, Stop> {
        let end = start + bytes.len() as u64;
        let middle = self.expected.unwrap_or(2) / 2;
        match self.fault {
            Some(FaultKind::ResetUpload { after_bytes }) if end > after_bytes.unwrap_or(middle) => {
                self.control.reset.store(true, Relaxed);
                Err(Stop::Cut)
            }
            Some(FaultKind::StallUpload { ms, after_bytes })
                if end > after_bytes.unwrap_or(middle) =>
            {
                self.fault = None;
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(bytes)
            }
            Some(FaultKind::CorruptUpload { at }) if end > at.unwrap_or(middle) => {
                self.fault = None;
                let at = at.unwrap_or(middle).saturating_sub(start) as usize;
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                Ok(changed.into())
            }
            Some(FaultKind::SlowUpload { bytes_per_s }) => {
                let since = *self.slow_since.get_or_insert_with(Instant::now);
                let due = Duration::from_secs_f64(end as f64 / bytes_per_s.max(1) as f64);
                tokio::time::sleep_until((since + due).into()).await;
                Ok(bytes)
            }
            _ => Ok(bytes),
        }
    }
}
