//! HTTP by hand, over one connection per request: what goes over the wire is what the test says.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use podsnap_gcs_server::{Config, GcsServer};
use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let of_name = |(n, _): &&(String, String)| n.eq_ignore_ascii_case(name);
        self.headers.iter().find(of_name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The `reason` of a JSON refusal.
    #[track_caller]
    pub fn reason(&self) -> String {
        self.json()["error"]["errors"][0]["reason"]
            .as_str()
            .expect("a reason")
            .into()
    }

    /// The generation in a resource.
    #[track_caller]
    pub fn generation(&self) -> i64 {
        let generation = self.json()["generation"].as_str().map(str::to_owned);
        generation
            .unwrap_or_else(|| panic!("{self:?}"))
            .parse()
            .expect("a number")
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{} {:?}", self.text(), self.headers);
        self
    }
}

/// A request to be sent.
pub struct Ask<'a> {
    server: &'a GcsServer,
    head: String,
    body: Vec<u8>,
}

pub fn ask<'a>(server: &'a GcsServer, method: &str, target: &str) -> Ask<'a> {
    Ask {
        server,
        head: format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            server.address()
        ),
        body: Vec::new(),
    }
}

impl Ask<'_> {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    pub fn token(self, token: &str) -> Self {
        self.header("Authorization", &format!("Bearer {token}"))
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// Sends it; an error is a connection that ended before the answer did.
    pub fn try_send(self) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(self.server.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut head = self.head;
        if !self.body.is_empty() || head.starts_with("P") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(&self.body)?;
        let is_head = head.starts_with("HEAD ");
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let end = all
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let text = String::from_utf8_lossy(&all[..end]).into_owned();
        let mut lines = text.lines();
        let status = lines
            .next()
            .and_then(|l| l.split(' ').nth(1)?.parse().ok())
            .expect("a status");
        let pairs = lines.filter_map(|l| l.split_once(": "));
        let answer = Answer {
            status,
            headers: pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
            body: all[end + 4..].to_vec(),
        };
        let declared = answer
            .header("content-length")
            .and_then(|v| v.parse::<usize>().ok());
        if !is_head && declared.is_some_and(|d| d != answer.body.len()) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} bytes of {declared:?}", answer.body.len()),
            ));
        }
        Ok(answer)
    }

    #[track_caller]
    pub fn send(self) -> Answer {
        self.try_send().expect("an answer")
    }
}

pub const B: &str = "bucket";

/// A bucket that anybody may use as fast as they like.
pub fn open() -> GcsServer {
    started(Config::open(B))
}

/// Started without the limit of one mutation per second.
pub fn started(mut config: Config) -> GcsServer {
    config.rules.mutations_per_second = 0.0;
    GcsServer::start(config).expect("a server")
}

/// `uploadType=media`, as the bearer of `token`.
pub fn insert(server: &GcsServer, token: &str, name: &str, query: &str, body: &[u8]) -> Answer {
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name={name}{query}");
    ask(server, "POST", &target).token(token).body(body).send()
}

/// Of an object or a folder in a path.
pub fn encoded(name: &str) -> String {
    name.replace('/', "%2F")
}

pub fn object(name: &str) -> String {
    format!("/storage/v1/b/{B}/o/{}", encoded(name))
}

pub fn compose(server: &GcsServer, token: &str, name: &str, query: &str, body: Value) -> Answer {
    let target = format!("{}/compose{query}", object(name));
    ask(server, "POST", &target)
        .token(token)
        .body(body.to_string())
        .send()
}

/// A `sourceObjects` of names alone.
pub fn sources(names: &[&str]) -> Value {
    names
        .iter()
        .map(|n| serde_json::json!({"name": n}))
        .collect()
}
