//! The program, as another process sees it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

/// Ends the program, whatever becomes of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podsnap-gcs-server"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn flags_are_the_configuration() {
    let fault = "{\"fault\": {\"kind\": \"status\", \"status\": 504}, \"contains\": \"unlucky\"}";
    let arguments = [
        "--bucket=a",
        "--bucket=b",
        "--hierarchical",
        "--anonymous",
        "--no-md5",
        "--threads=1",
        "--first-byte-ms=3",
        "--total-mb-per-s=800",
        "--memory-mb=1",
        "--fault",
        fault,
    ];
    let mut running = Running(start(&arguments).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let url = lines.next().expect("a line").unwrap();
    let get = |head: &str, body: &[u8]| {
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        let head = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let config = get("GET /_control/config", b"");
    let config: serde_json::Value =
        serde_json::from_str(config.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(config["link"]["total_bytes_per_s"], 800_000_000);
    assert_eq!(config["link"]["first_byte_ms"], 3);
    for bucket in ["a", "b"] {
        assert_eq!(config["buckets"][bucket]["hierarchical_namespace"], true);
    }
    assert!(get("PUT /b/unlucky", b"x").starts_with("HTTP/1.1 504"));
    assert!(get("PUT /b/lucky", b"x").starts_with("HTTP/1.1 200"));
    assert!(get("PUT /b/big", &[0; 1_000_001]).starts_with("HTTP/1.1 507"));
    assert!(!get("GET /storage/v1/b/b/o/lucky", b"").contains("md5Hash"));
}

#[test]
fn what_is_wrong_is_said() {
    for (arguments, expected) in [
        (vec!["--bucket=b", "--fault={}"], "--fault {}"),
        (vec!["--config=/absent"], "/absent"),
        (vec![], "--bucket"),
    ] {
        let output = start(&arguments).output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(expected), "{said}");
    }
}
