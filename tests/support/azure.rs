//! A small Azure Blob Storage on loopback: block blobs, ranges, conditions, listings and batches of deletions, as the service's reference has
//! them, without signatures. Like the service it knows no ranges that are counted from the end, and lists ETags without their quotes.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// How long a block waits for another one to arrive meanwhile.
const COMPANY: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Blob {
    bytes: Arc<Vec<u8>>,
    etag: u64,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Blob>,
    blocks: HashMap<(String, String), Vec<u8>>,
    etags: u64,
    /// Blocks being received, and most of them at once.
    receiving: usize,
    most: usize,
    /// Requests, as method and query.
    requests: Vec<String>,
    /// Blocks that are refused.
    refused: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    stopped: AtomicBool,
}

/// The server; it stops when this is dropped.
pub struct Azure {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Azure {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = shared.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if accepting.stopped.load(Relaxed) {
                    return;
                }
                let shared = accepting.clone();
                // Ends with the client's end of the connection.
                thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Self {
            shared,
            address,
            thread: Some(thread),
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The names of all blobs.
    pub fn names(&self) -> Vec<String> {
        self.shared
            .state
            .lock()
            .unwrap()
            .blobs
            .keys()
            .cloned()
            .collect()
    }

    /// Most blocks that were received at once.
    pub fn most_blocks(&self) -> usize {
        self.shared.state.lock().unwrap().most
    }

    /// How many requests there were of a method whose query has these words.
    pub fn count(&self, method: &str, words: &str) -> usize {
        let state = self.shared.state.lock().unwrap();
        let of_kind = |r: &&String| r.starts_with(method) && r.contains(words);
        state.requests.iter().filter(of_kind).count()
    }

    /// Refuses so many of the next blocks.
    pub fn refuse_blocks(&self, number: usize) {
        self.shared.state.lock().unwrap().refused = number;
    }
}

impl Drop for Azure {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        drop(TcpStream::connect(self.address));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Of an answer without one.
    len: Option<usize>,
}

impl Answer {
    fn new(status: &'static str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            len: None,
        }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn of(self, blob: &Blob) -> Self {
        self.with("ETag", format!("\"{:#x}\"", blob.etag))
            .with("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
    }
}

fn serve(shared: &Shared, stream: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (method, target) = (method.to_owned(), target.to_owned());
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let len = headers.get("content-length").and_then(|v| v.parse().ok());
        let mut body = vec![0; len.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let answer = handle(shared, &method, &target, &headers, body);
        let len = answer.len.unwrap_or(answer.body.len());
        let mut head = format!("HTTP/1.1 {}\r\nContent-Length: {len}\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&answer.body)?;
    }
}

fn handle(
    shared: &Shared,
    method: &str,
    target: &str,
    headers: &HashMap<String, String>,
    body: Vec<u8>,
) -> Answer {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut state = shared.state.lock().unwrap();
    state.requests.push(format!("{method} {query}"));
    match method {
        "POST" if query.contains("comp=batch") => batch(&mut state, &body),
        "PUT" if query.contains("comp=blocklist") => {
            let list = String::from_utf8_lossy(&body).into_owned();
            let mut bytes = Vec::new();
            for id in list.split("<Uncommitted>").skip(1) {
                let id = id.split('<').next().unwrap_or("").to_owned();
                let Some(block) = state.blocks.remove(&(path.to_owned(), id)) else {
                    return Answer::new("400 Bad Request")
                        .with("x-ms-error-code", "InvalidBlockList");
                };
                bytes.extend(block);
            }
            store(&mut state, path, bytes)
        }
        "PUT" if query.contains("comp=block") => {
            if state.refused > 0 {
                state.refused -= 1;
                return Answer::new("403 Forbidden")
                    .with("x-ms-error-code", "AuthorizationFailure");
            }
            let id = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("blockid="));
            let id = id
                .unwrap_or("")
                .replace("%3D", "=")
                .replace("%2F", "/")
                .replace("%2B", "+");
            state.blocks.insert((path.to_owned(), id), body);
            state.receiving += 1;
            state.most = state.most.max(state.receiving);
            shared.arrived.notify_all();
            let alone = |state: &mut State| state.most < 2;
            let waited = shared.arrived.wait_timeout_while(state, COMPANY, alone);
            waited.unwrap().0.receiving -= 1;
            Answer::new("201 Created")
        }
        "PUT" => {
            let stored = state.blobs.get(path).map(|b| format!("\"{:#x}\"", b.etag));
            if headers.contains_key("if-none-match") && stored.is_some() {
                return Answer::new("409 Conflict").with("x-ms-error-code", "BlobAlreadyExists");
            }
            if headers
                .get("if-match")
                .is_some_and(|e| Some(e) != stored.as_ref())
            {
                return Answer::new("412 Precondition Failed");
            }
            store(&mut state, path, body)
        }
        "GET" if query.contains("comp=list") => list(&state, path, query),
        "GET" | "HEAD" => match state.blobs.get(path).cloned() {
            None => Answer::new("404 Not Found").with("x-ms-error-code", "BlobNotFound"),
            Some(blob) => read(method, headers, &blob),
        },
        _ => Answer::new("501 Not Implemented"),
    }
}

fn store(state: &mut State, path: &str, bytes: Vec<u8>) -> Answer {
    state.etags += 1;
    let blob = Blob {
        bytes: Arc::new(bytes),
        etag: state.etags,
    };
    let answer = Answer::new("201 Created").of(&blob);
    state.blobs.insert(path.to_owned(), blob);
    answer
}

fn read(method: &str, headers: &HashMap<String, String>, blob: &Blob) -> Answer {
    let etag = format!("\"{:#x}\"", blob.etag);
    if headers.get("if-match").is_some_and(|e| *e != etag) {
        return Answer::new("412 Precondition Failed");
    }
    let all = blob.bytes.len();
    let range = headers.get("range").or(headers.get("x-ms-range"));
    if method == "HEAD" || range.is_none() {
        let mut answer = Answer::new("200 OK").of(blob);
        match method {
            "HEAD" => answer.len = Some(all),
            _ => answer.body = blob.bytes.to_vec(),
        }
        return answer;
    }
    let bounds = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
    let bounds = bounds.and_then(|(a, b)| Some((a.parse().ok()?, b.parse::<usize>().ok()?)));
    let Some((first, last)) = bounds.filter(|(first, _): &(usize, usize)| *first < all) else {
        return Answer::new("416 Range Not Satisfiable").with("x-ms-error-code", "InvalidRange");
    };
    let end = all.min(last + 1);
    let mut answer = Answer::new("206 Partial Content").of(blob);
    answer.body = blob.bytes[first..end].to_vec();
    answer.with("Content-Range", format!("bytes {first}-{}/{all}", end - 1))
}

/// All blobs of a container whose names begin as the query wants it, on one page.
fn list(state: &State, container: &str, query: &str) -> Answer {
    let prefix = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("prefix="));
    let prefix = prefix.unwrap_or("").replace("%2F", "/");
    let mut xml =
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs>".to_owned();
    for (path, blob) in &state.blobs {
        let name = path.strip_prefix(container.trim_end_matches('/'));
        let Some(name) = name.map(|name| name.trim_start_matches('/')) else {
            continue;
        };
        if name.starts_with(&prefix) {
            let (len, etag) = (blob.bytes.len(), blob.etag);
            xml.push_str(&format!(
                "<Blob><Name>{name}</Name><Properties><Last-Modified>Mon, 02 Nov 2026 10:00:00 GMT</Last-Modified><Content-Length>{len}</Content-Length><Content-Type>application/octet-stream</Content-Type><Etag>{etag:#x}</Etag></Properties></Blob>"
            ));
        }
    }
    xml.push_str("</Blobs><NextMarker/></EnumerationResults>");
    let mut answer = Answer::new("200 OK").with("Content-Type", "application/xml");
    answer.body = xml.into_bytes();
    answer
}

/// Deletions, several in one request.
fn batch(state: &mut State, body: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(body).into_owned();
    let mut parts = String::new();
    let deletions = text.lines().filter_map(|line| line.strip_prefix("DELETE "));
    for (number, line) in deletions.enumerate() {
        let path = line.split(' ').next().unwrap_or("");
        let status = match state.blobs.remove(path) {
            Some(_) => "202 Accepted",
            None => "404 The specified blob does not exist.",
        };
        parts.push_str(&format!(
            "--b\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\nx-ms-version: 2018-11-09\r\n\r\n"
        ));
    }
    parts.push_str("--b--\r\n");
    let mut answer =
        Answer::new("202 Accepted").with("Content-Type", "multipart/mixed; boundary=b");
    answer.body = parts.into_bytes();
    answer
}
