//! Latency, bandwidth, connections.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use podsnap_gcs_server::GcsServer;

use crate::raw::*;

/// What is downloaded by `streams` connections at once, in seconds.
fn download(server: &GcsServer, streams: usize) -> f64 {
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..streams {
            scope.spawn(|| ask(server, "GET", "/bucket/o").send().expect(200));
        }
    });
    begun.elapsed().as_secs_f64()
}

#[test]
fn bandwidth_is_never_more_than_was_set() {
    let server = open();
    let len = 4_000_000;
    server.put(B, "o", &vec![7; len]);
    server.configure(|c| c.link.stream_bytes_per_s = 16_000_000);
    assert!(download(&server, 1) > 0.24);
    // Streams do not share what is each one's own ...
    server.configure(|c| c.link.total_bytes_per_s = 32_000_000);
    assert!(download(&server, 4) > 0.48);
    // ... but no stream has more.
    server.configure(|c| c.link.stream_bytes_per_s = 0);
    assert!(download(&server, 4) > 0.48);
    let begun = Instant::now();
    let target = format!("/upload/storage/v1/b/{B}/o?uploadType=media&name=up");
    ask(&server, "POST", &target)
        .body(vec![7; 2 * len])
        .send()
        .expect(200);
    assert!(begun.elapsed().as_secs_f64() > 0.24);
}

#[test]
fn the_first_byte_is_late() {
    let server = open();
    server.put(B, "o", b"x");
    server.configure(|c| c.link.first_byte_ms = 100);
    assert!(download(&server, 3) >= 0.1);
}

#[test]
fn connections_are_counted_and_kept() {
    let server = open();
    server.put(B, "o", b"x");
    let mut first = TcpStream::connect(server.address()).unwrap();
    let second = TcpStream::connect(server.address()).unwrap();
    for _ in 0..3 {
        first
            .write_all(b"GET /bucket/o HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut buf = [0; 2000];
        let mut read = 0;
        while !buf[..read].ends_with(b"\r\n\r\nx") {
            read += first.read(&mut buf[read..]).unwrap();
        }
    }
    let counts = server.connections();
    assert_eq!((counts.open, counts.most, counts.accepted), (2, 2, 2));
    drop((first, second));
    for _ in 0..100 {
        if server.connections().open == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?}", server.connections());
}

#[test]
fn a_dropped_server_is_gone() {
    let server = open();
    let address = server.address();
    let idle = TcpStream::connect(address).unwrap();
    drop(server);
    assert!(TcpStream::connect(address).is_err());
    drop(idle);
}
