//! What the server itself can do, and how exact its link is: MB/s down and up, unshaped and shaped, with the processor
//! time that the server's threads took.
//!
//! Usage: `cargo run --release -p podsnap-gcs-server --example throughput [SECONDS_PER_ROW]`

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use podsnap_gcs_server::{Config, GcsServer, Link};

const PART: usize = 16 << 20;

/// Sends requests until the time is over; says how many bytes of bodies went which way.
fn client(server: &GcsServer, up: Option<usize>, until: Instant) -> u64 {
    let mut stream = TcpStream::connect(server.address()).expect("a connection");
    let body = vec![7; if up.is_some() { PART } else { 0 }];
    let mut buf = vec![0; 1 << 20];
    let mut moved = 0;
    let mut sent = 0;
    while Instant::now() < until {
        let line = match up {
            Some(client) => format!("PUT /b/{client}-{} HTTP/1.1", sent % 2),
            None => "GET /b/o HTTP/1.1".into(),
        };
        sent += 1;
        let head = format!(
            "{line}\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("a request");
        stream.write_all(&body).expect("a body");
        moved += body.len() as u64;
        let mut answer: Vec<u8> = Vec::new();
        let (mut expected, mut read) = (None, 0);
        while expected.is_none_or(|e| read < e) {
            let n = stream.read(&mut buf).expect("an answer");
            assert!(n > 0, "the server hung up");
            read += n as u64;
            if expected.is_none() {
                answer.extend_from_slice(&buf[..n]);
                if let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
                    let len = head
                        .lines()
                        .find_map(|l| l.strip_prefix("content-length: ")?.parse::<u64>().ok());
                    expected = Some(end as u64 + 4 + len.unwrap_or(0));
                }
            }
        }
        if up.is_none() {
            moved += PART as u64;
        }
    }
    moved
}

/// Processor time of the threads that serve.
fn server_time() -> f64 {
    let threads = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let of_server = threads.filter_map(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
        name.contains("gcs-server").then_some(ticks / 100.0)
    });
    of_server.sum()
}

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(2.0);
    let mut config = Config::open("b");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    // One thread serves: what it does is what one core does.
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let server = GcsServer::start_on(address, 1, config).expect("a server");
    server.put("b", "o", &vec![7; PART]);
    println!(
        "{:>7} {:>10} {:>10} {:>4} {:>8} {:>8} {:>9}",
        "streams", "each MB/s", "total MB/s", "", "set", "found", "s CPU/GB"
    );
    let mb = 1_000_000;
    for (streams, each, total) in [
        (1, 0, 0),
        (4, 0, 0),
        (1, 100, 0),
        (8, 100, 0),
        (8, 0, 400),
        (8, 0, 800),
        (16, 100, 800),
    ] {
        server.configure(|c| {
            c.link = Link {
                stream_bytes_per_s: each * mb,
                total_bytes_per_s: total * mb,
                first_byte_ms: 0,
            }
        });
        for up in [false, true] {
            let (begun, before) = (Instant::now(), server_time());
            let until = begun + Duration::from_secs_f64(seconds);
            let moved: u64 = thread::scope(|scope| {
                let server = &server;
                let clients: Vec<_> = (0..streams)
                    .map(|n| scope.spawn(move || client(server, up.then_some(n), until)))
                    .collect();
                clients
                    .into_iter()
                    .map(|c| c.join().expect("a client"))
                    .sum()
            });
            let rate = moved as f64 / begun.elapsed().as_secs_f64() / mb as f64;
            let set = match (each * streams as u64, total) {
                (0, 0) => "-".into(),
                (0, limit) | (limit, 0) => limit.to_string(),
                (all, limit) => all.min(limit).to_string(),
            };
            let cpu = (server_time() - before) / (moved as f64 / 1e9);
            let way = if up { "up" } else { "down" };
            println!(
                "{streams:>7} {each:>10} {total:>10} {way:>4} {set:>8} {rate:>8.0} {cpu:>9.2}"
            );
        }
    }
}
