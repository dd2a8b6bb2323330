//! Starts and stops the server, accepts connections, and takes each request through what is the same for all:
//! the log, faults, identification, latency.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;

use crate::{
    auth::{self, Tokens},
    config::Config,
    content::Memory,
    control,
    error::Dialect,
    faults::{FaultKind, Faults},
    json,
    link::{ConnectionControl, ShapedStream, SharedLink},
    log::{Record, Recorder},
    operation::Operation,
    reply::{Reply, ReplyBody},
    request::{Body, Call, Query, Stop},
    route::Route,
    store::Store,
    xml,
};

/// hyper's buffer for one connection: reads and writes come in pieces of up to this.
const BUFFER_LEN: usize = 1 << 20;

/// What all connections share.
pub(crate) struct Shared {
    pub config: RwLock<Arc<Config>>,
    pub store: Mutex<Store>,
    pub faults: Faults,
    pub recorder: Recorder,
    pub tokens: Tokens,
    pub link: Arc<SharedLink>,
    pub memory: Memory,
    pub connections: Connections,
    pub downloads: Arc<AtomicU64>,
}

/// Counts connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    pub accepted: AtomicU64,
    pub open: AtomicU64,
    pub most: AtomicU64,
}

impl Shared {
    pub fn new(config: Config) -> Self {
        let link = Arc::new(SharedLink::default());
        link.configure(&config.link);
        Self {
            config: RwLock::new(Arc::new(config)),
            store: Mutex::default(),
            faults: Faults::default(),
            recorder: Recorder::new(),
            tokens: Tokens::default(),
            link,
            memory: Memory::default(),
            connections: Connections::default(),
            downloads: Arc::default(),
        }
    }

    /// The object that a resumable upload makes.
    fn session_name(&self, upload_id: &str) -> Option<String> {
        let store = self.store.lock().unwrap();
        store.sessions.get(upload_id).map(|s| s.name.clone())
    }

    pub fn config(&self) -> Arc<Config> {
        self.config.read().unwrap().clone()
    }

    pub fn set_config(&self, config: Config) {
        self.link.configure(&config.link);
        *self.config.write().unwrap() = Arc::new(config);
    }
}

/// The threads that serve; they end when this is dropped.
pub(crate) struct Threads {
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Threads {
    /// Serves on a listener, with so many threads.
    pub fn start(shared: Arc<Shared>, listener: TcpListener, threads: usize) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let mut builder = match threads {
            0 | 1 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder
            .worker_threads(threads.max(1))
            .enable_all()
            .build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new()
            .name("gcs-server".into())
            .spawn(move || {
                runtime.block_on(accept(shared, listener, stopped));
                // Connections that are open end with the runtime.
                runtime.shutdown_timeout(Duration::from_secs(1));
            })?;
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    shared: Arc<Shared>,
    listener: tokio::net::TcpListener,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, say: what is open may end meanwhile.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(connection(shared.clone(), stream));
    }
}

/// Counts a connection as open while it lives.
struct Counted(Arc<Shared>);

impl Counted {
    fn new(shared: &Arc<Shared>) -> (Self, u64) {
        let number = shared.connections.accepted.fetch_add(1, Relaxed);
        let open = shared.connections.open.fetch_add(1, Relaxed) + 1;
        shared.connections.most.fetch_max(open, Relaxed);
        (Self(shared.clone()), number)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.open.fetch_sub(1, Relaxed);
    }
}

/// Counts a download as under way while it lives.
pub(crate) struct Downloading(Arc<AtomicU64>);

impl Downloading {
    /// `None` if there would be more than so many.
    fn begin(downloads: &Arc<AtomicU64>, at_once: u64) -> Option<Self> {
        let counted = Self(downloads.clone());
        let under_way = downloads.fetch_add(1, Relaxed) + 1;
        (at_once == 0 || under_way <= at_once).then_some(counted)
    }
}

impl Drop for Downloading {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn connection(shared: Arc<Shared>, stream: tokio::net::TcpStream) {
    let (_counted, number) = Counted::new(&shared);
    let control = Arc::new(ConnectionControl::default());
    let stream = ShapedStream::new(stream, shared.link.clone(), control.clone());
    let service = service_fn(|request| serve(shared.clone(), number, control.clone(), request));
    // Errors are clients that went away, and faults.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(BUFFER_LEN)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// The connection ends without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

/// Ends the log entry of a request that ends without an answer.
struct EndOnDrop(Option<Arc<Record>>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if let Some(record) = &self.0 {
            record.end();
        }
    }
}

async fn serve(
    shared: Arc<Shared>,
    number: u64,
    control: Arc<ConnectionControl>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Cut> {
    let (parts, incoming) = request.into_parts();
    let config = shared.config();
    let path = parts.uri.path().to_owned();
    let target = parts.uri.path_and_query().map_or("", |t| t.as_str());
    let query = Query::parse(parts.uri.query().unwrap_or(""));
    if path.starts_with("/_control/") {
        let reply = control::handle(&shared, &parts.method, &path, &query, incoming).await;
        return Ok(respond(reply, None, control, None));
    }

    let limit = config.rules.log_limit;
    let record = shared
        .recorder
        .begin(number, parts.method.as_str(), target, limit);
    let found = Route::find(&parts.method, &path, &query, &parts.headers);
    let (mut route, lost) = match found {
        Ok(route) => (route, None),
        Err((dialect, refusal)) => (Route::unknown(dialect), Some(refusal)),
    };
    route.note_status_query(&parts.headers);
    let operation = route.operation;
    let text = |name: HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok());
    record.set(|e| {
        e.operation = operation;
        e.bucket = route.bucket.clone();
        e.name = route.name.clone();
        e.generation = query.int("generation").ok().flatten();
        e.range = text(header::RANGE).map(Into::into);
    });
    let mut ending = EndOnDrop(Some(record.clone()));

    let expected = text(header::CONTENT_LENGTH).and_then(|v| v.parse().ok());
    let mut body = Body::new(incoming, record.clone(), control.clone(), expected);
    // A JSON insert may name its object only in its body, a resumable upload did so when it started.
    let name = match (operation, query.get("upload_id")) {
        (_, Some(id)) => shared.session_name(id),
        (Operation::InsertMultipart | Operation::ResumableStart, None) if route.name.is_empty() => {
            json::insert::peek_name(&mut body, &parts.headers).await
        }
        _ => Some(route.name.clone()),
    };
    let name = name.unwrap_or_default();
    record.set(|e| e.name = name.clone());
    let fault = shared.faults.draw(operation, parts.method.as_str(), &name);
    record.set(|e| e.fault = fault.as_ref().map(|f| format!("{f:?}")));
    body.set_fault(fault.clone());

    let dialect = route.dialect;
    let mut call = Call {
        shared: shared.clone(),
        config: config.clone(),
        record: record.clone(),
        method: parts.method,
        path,
        query,
        headers: parts.headers,
        route,
        principal: None,
        body,
    };

    let downloads = operation.downloads();
    let downloading = downloads
        .then(|| Downloading::begin(&shared.downloads, config.rules.downloads_at_once))
        .flatten();

    let outcome = match (&fault, lost) {
        (
            Some(FaultKind::Status {
                status,
                retry_after_s,
            }),
            _,
        ) => Err(Stop::Refused(crate::error::Refusal::injected(
            *status,
            *retry_after_s,
        ))),
        (Some(FaultKind::Reset), _) => {
            control.reset.store(true, Relaxed);
            Err(Stop::Cut)
        }
        (_, Some(refusal)) => Err(refusal.into()),
        _ if downloads && downloading.is_none() => {
            Err(Stop::Refused(crate::error::Refusal::injected(429, None)))
        }
        _ => dispatch(&mut call).await,
    };
    let carried_out = outcome.is_ok();
    let mut reply = match outcome {
        Ok(reply) => reply,
        Err(Stop::Cut) => return Err(Cut),
        Err(Stop::Refused(refusal)) => {
            record.set(|e| e.reason = refusal.reason.into());
            Reply::refusal(&refusal, dialect)
        }
    };
    // A connection whose request was not read to its end could not be used again.
    call.body.drain().await;
    if carried_out && !record.get(|e| e.replayed) {
        shared.recorder.succeeded(operation);
    }

    match &fault {
        Some(FaultKind::LoseAnswer { status: None }) => {
            control.reset.store(true, Relaxed);
            return Err(Cut);
        }
        Some(FaultKind::LoseAnswer {
            status: Some(status),
        }) if carried_out => {
            let refusal = crate::error::Refusal::injected(*status, None);
            reply = Reply::refusal(&refusal, dialect);
        }
        Some(FaultKind::Corrupt { at }) if carried_out => reply.corrupt(*at),
        Some(FaultKind::WrongHash) if carried_out => reply.falsify(),
        Some(FaultKind::Stall { ms }) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        _ => {}
    }
    if config.link.first_byte_ms > 0 {
        tokio::time::sleep(Duration::from_millis(config.link.first_byte_ms)).await;
    }
    record.set(|e| e.status = reply.status.as_u16());
    ending.0 = None; // The body's business now.
    let fault = fault.filter(|_| carried_out);
    let mut response = respond(reply, Some(record), control, fault.as_ref());
    if config.rules.clock_ahead_s != 0 {
        let now = SystemTime::now();
        let ahead = Duration::from_secs(config.rules.clock_ahead_s.unsigned_abs());
        let date = httpdate::fmt_http_date(match config.rules.clock_ahead_s > 0 {
            true => now + ahead,
            false => now - ahead,
        });
        let date = HeaderValue::from_str(&date).expect("a date is plain text");
        response.headers_mut().insert(header::DATE, date);
    }
    if let Some(downloading) = downloading {
        response.body_mut().count(downloading);
    }
    Ok(response)
}

async fn dispatch(call: &mut Call) -> Result<Reply, Stop> {
    match call.route.operation {
        Operation::Token => return auth::token(call).await,
        Operation::MetadataServer => return auth::metadata_server(call),
        _ => {}
    }
    let authorization = call.header("authorization");
    call.principal = call.shared.tokens.identify(&call.config, authorization)?;
    call.record.set(|e| e.principal = call.principal.clone());
    match call.route.dialect {
        Dialect::Xml => xml::handle(call).await,
        Dialect::Json | Dialect::Text => json::handle(call).await,
    }
}

fn respond(
    reply: Reply,
    record: Option<Arc<Record>>,
    control: Arc<ConnectionControl>,
    fault: Option<&FaultKind>,
) -> Response<ReplyBody> {
    let mut len = reply.declared_len.unwrap_or_else(|| reply.body_len());
    if let Some(FaultKind::WrongLength { by }) = fault {
        len = len.saturating_add_signed(*by);
    }
    let mut response = Response::new(ReplyBody::new(reply.body, record, control, fault));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    let bodiless = matches!(
        reply.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    );
    if !bodiless {
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, len.into());
    }
    let server = HeaderValue::from_static("UploadServer");
    response.headers_mut().insert(header::SERVER, server);
    response
}
