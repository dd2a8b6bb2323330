//! What requests take without podsnap: the same ones again, all at the same moment, each by as much HTTP as it needs.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use podsnap_gcs_server::{AGENT_TOKEN, Entry};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Barrier,
    task::JoinSet,
};

/// How long each of the requests takes: on a connection that is opened for it, and then on the same once more.
pub async fn repeat(server: SocketAddr, requests: &[&Entry]) -> [Vec<Duration>; 2] {
    let barrier = Arc::new(Barrier::new(requests.len()));
    let mut tasks = JoinSet::new();
    for request in requests {
        let (barrier, head) = (barrier.clone(), head(request));
        tasks.spawn(async move {
            barrier.wait().await;
            let opened = Instant::now();
            let stream = TcpStream::connect(server).await.expect("a connection");
            stream.set_nodelay(true).expect("no delay");
            let mut stream = BufReader::new(stream);
            ask(&mut stream, &head).await;
            let opened = opened.elapsed();
            barrier.wait().await;
            let open = Instant::now();
            ask(&mut stream, &head).await;
            (opened, open.elapsed())
        });
    }
    let (opened, open) = tasks.join_all().await.into_iter().unzip();
    [opened, open]
}

fn head(request: &Entry) -> String {
    let (target, range) = (&request.target, request.range.as_deref());
    let range = range.expect("a range was read");
    format!(
        "GET {target} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {AGENT_TOKEN}\r\nRange: {range}\r\n\r\n"
    )
}

/// Sends a request and reads all of its answer.
async fn ask(stream: &mut BufReader<TcpStream>, head: &str) {
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut len = None;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a head");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            len = value.trim().parse().ok();
        }
    }
    let mut body = vec![0; len.expect("a length")];
    stream.read_exact(&mut body).await.expect("a body");
}
