//! Answers: what a handler returns, and the body that sends it, with the faults that happen to downloads.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::Frame;
use serde_json::Value;
use tokio::time::Sleep;

use crate::{
    error::{Dialect, Refusal},
    faults::FaultKind,
    link::ConnectionControl,
    log::Record,
    server::Downloading,
};

/// Bytes that are handed over at once: few wake-ups, yet not so many that a fault in the middle comes late.
const FRAME_LEN: usize = 512 << 10;

/// What is left of a body before a cut gets so much time to leave.
const FLUSH_TIME: Duration = Duration::from_millis(10);

/// What a handler answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<Bytes>,
    /// `Content-Length`, where it is not the body's: for HEAD.
    pub declared_len: Option<u64>,
}

impl Reply {
    pub fn new(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            body: Vec::new(),
            declared_len: None,
        }
    }

    pub fn json(value: &Value) -> Self {
        Self::text("application/json; charset=UTF-8", value.to_string())
    }

    pub fn xml(body: String) -> Self {
        let declaration = "<?xml version='1.0' encoding='UTF-8'?>";
        Self::text(
            "application/xml; charset=UTF-8",
            format!("{declaration}{body}"),
        )
    }

    pub fn text(content_type: &str, body: String) -> Self {
        let mut reply = Self::new(StatusCode::OK);
        reply.set(header::CONTENT_TYPE, content_type);
        reply.body.push(body.into());
        reply
    }

    pub fn refusal(refusal: &Refusal, dialect: Dialect) -> Self {
        let (content_type, body) = refusal.body(dialect);
        let mut reply = Self::text(content_type, body);
        reply.status = refusal.status;
        if let Some(seconds) = refusal.retry_after {
            reply.set(header::RETRY_AFTER, &seconds.to_string());
        }
        if refusal.status == StatusCode::UNAUTHORIZED {
            let challenge = "Bearer realm=\"https://accounts.google.com/\"";
            reply.set(header::WWW_AUTHENTICATE, challenge);
        }
        reply
    }

    /// Sets a header; one whose value cannot be one is left out.
    pub fn set(&mut self, name: impl Into<HeaderName>, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name.into(), value);
        }
    }

    pub fn set_named(&mut self, name: &'static str, value: &str) {
        self.set(HeaderName::from_static(name), value);
    }

    pub fn body_len(&self) -> u64 {
        self.body.iter().map(|b| b.len() as u64).sum()
    }

    /// Flips a bit of the body, the headers staying right.
    pub fn corrupt(&mut self, at: Option<u64>) {
        let mut at = at.unwrap_or(self.body_len() / 2);
        for slice in &mut self.body {
            if at < slice.len() as u64 {
                let mut changed = slice.to_vec();
                changed[at as usize] ^= 1;
                *slice = changed.into();
                return;
            }
            at -= slice.len() as u64;
        }
    }

    /// Makes every checksum in it a wrong one.
    pub fn falsify(&mut self) {
        let hash = HeaderName::from_static("x-goog-hash");
        if self.headers.remove(&hash).is_some() {
            self.set(hash, "crc32c=AAAAAQ==,md5=AAAAAAAAAAAAAAAAAAAAAQ==");
        }
        let is_json = self.headers.get(header::CONTENT_TYPE);
        if is_json.is_some_and(|t| t.as_bytes().starts_with(b"application/json")) {
            let all = self.body.concat();
            if let Ok(mut resource) = serde_json::from_slice::<Value>(&all) {
                for key in ["crc32c", "md5Hash"] {
                    if let Some(value) = resource.get_mut(key) {
                        *value = "AAAAAQ==".into();
                    }
                }
                self.body = vec![resource.to_string().into()];
            }
        }
    }
}

/// Sends a reply's body.
pub(crate) struct ReplyBody {
    slices: VecDeque<Bytes>,
    sent: u64,
    record: Option<Arc<Record>>,
    control: Arc<ConnectionControl>,
    plan: Plan,
    sleep: Option<Pin<Box<Sleep>>>,
    /// Held until the body is gone.
    _downloading: Option<Downloading>,
}

/// What happens to a body on its way.
#[derive(Debug, Default)]
struct Plan {
    stall: Option<(u64, Duration)>,
    /// Where it ends before its time, and whether by a reset.
    cut: Option<(u64, bool)>,
    flushed: bool,
    /// Bytes per second, since when.
    pace: Option<(u64, Instant)>,
}

impl ReplyBody {
    pub fn new(
        body: Vec<Bytes>,
        record: Option<Arc<Record>>,
        control: Arc<ConnectionControl>,
        fault: Option<&FaultKind>,
    ) -> Self {
        let middle = body.iter().map(|b| b.len() as u64).sum::<u64>() / 2;
        let mut plan = Plan::default();
        match fault {
            Some(FaultKind::StallDownload { ms, after_bytes }) => {
                plan.stall = Some((after_bytes.unwrap_or(middle), Duration::from_millis(*ms)));
            }
            Some(FaultKind::ResetDownload { after_bytes }) => {
                plan.cut = Some((after_bytes.unwrap_or(middle), true));
            }
            Some(FaultKind::Truncate { after_bytes }) => {
                plan.cut = Some((after_bytes.unwrap_or(middle), false));
            }
            Some(FaultKind::SlowDownload { bytes_per_s }) => {
                plan.pace = Some(((*bytes_per_s).max(1), Instant::now()));
            }
            _ => {}
        }
        Self {
            slices: body.into(),
            sent: 0,
            record,
            control,
            plan,
            sleep: None,
            _downloading: None,
        }
    }

    /// It counts as a download under way until it is gone.
    pub fn count(&mut self, downloading: Downloading) {
        self._downloading = Some(downloading);
    }

    /// Bytes that may be handed over now without passing a place where something happens.
    fn allowance(&self) -> u64 {
        let until = |place: u64| place.saturating_sub(self.sent);
        let mut allowed = FRAME_LEN as u64;
        if let Some((place, _)) = self.plan.stall {
            allowed = allowed.min(until(place));
        }
        if let Some((place, _)) = self.plan.cut {
            allowed = allowed.min(until(place));
        }
        if let Some((pace, _)) = self.plan.pace {
            allowed = allowed.min((pace / 100).max(1));
        }
        allowed
    }
}

impl hyper::body::Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if let Some(sleep) = &mut this.sleep {
            ready!(sleep.as_mut().poll(context));
            this.sleep = None;
        }
        if let Some((place, pause)) = this.plan.stall
            && place <= this.sent
        {
            this.plan.stall = None;
            let mut sleep = Box::pin(tokio::time::sleep(pause));
            if sleep.as_mut().poll(context).is_pending() {
                this.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
        if let Some((place, reset)) = this.plan.cut
            && place <= this.sent
            && !this.slices.is_empty()
        {
            // What was handed over before goes out while the body is pending; an error throws it away.
            if !this.plan.flushed {
                this.plan.flushed = true;
                let mut sleep = Box::pin(tokio::time::sleep(FLUSH_TIME));
                if sleep.as_mut().poll(context).is_pending() {
                    this.sleep = Some(sleep);
                    return Poll::Pending;
                }
            }
            this.control.reset.store(reset, Relaxed);
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        if let Some((pace, since)) = this.plan.pace {
            let due = since + Duration::from_secs_f64(this.sent as f64 / pace as f64);
            let mut sleep = Box::pin(tokio::time::sleep_until(due.into()));
            if sleep.as_mut().poll(context).is_pending() {
                this.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
        let allowed = this.allowance();
        let Some(first) = this.slices.front_mut() else {
            return Poll::Ready(None);
        };
        let bytes = match first.len() as u64 <= allowed {
            true => this.slices.pop_front().expect("seen above"),
            false => first.split_to(allowed as usize),
        };
        this.sent += bytes.len() as u64;
        if let Some(record) = &this.record {
            record.bytes_out.fetch_add(bytes.len() as u64, Relaxed);
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        // With something still to happen, the end is not in sight however little is left.
        self.slices.is_empty() && self.plan.stall.is_none()
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            record.end();
        }
    }
}
