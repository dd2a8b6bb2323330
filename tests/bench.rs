//! `podsnap bench`: what it measures, prints and draws, and that nothing of it stays.

mod support;

use std::{fs, process::Command};

use podsnap_gcs_server::{
    AGENT, AGENT_TOKEN, Config, Fault, FaultKind, GcsServer, Operation, Permission,
};
use rustix::process::Signal;
use serde_json::Value;
use support::tool::*;

const BUCKET: &str = "snapshots";

fn server() -> GcsServer {
    let mut config = Config::tenant(BUCKET, "tenant/");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    GcsServer::start(config).expect("a server on loopback")
}

fn command(tool: &Tool, server: &GcsServer, args: &[&str]) -> Command {
    let args = [&["bench", "--store", "gs://snapshots/tenant/store"], args].concat();
    let mut command = tool.command(&args);
    command
        .env("STORAGE_EMULATOR_HOST", server.url())
        .env("CLOUDSDK_AUTH_ACCESS_TOKEN", AGENT_TOKEN);
    command
}

fn settings(measured: &Value) -> Vec<String> {
    let measured = measured.as_array().expect("a list").iter();
    measured
        .map(|m| {
            let setting = &m["setting"];
            format!(
                "{}M x {}",
                setting["len"].as_u64().unwrap() >> 20,
                setting["at_once"]
            )
        })
        .collect()
}

/// Panics unless every element that is opened is closed, in order, and there is one root: enough for what a plot consists of.
fn assert_well_formed(xml: &str) {
    let rest = xml
        .strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>")
        .expect("a declaration");
    let mut open: Vec<&str> = Vec::new();
    let mut roots = 0;
    let mut parts = rest.split('<');
    assert_eq!(parts.next().unwrap().trim(), "");
    for part in parts {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        assert!(!text.contains('>'), "{text:?}");
        for entity in text.split('&').skip(1) {
            let name = entity.split_once(';').expect("an entity ends").0;
            assert!(["amp", "lt", "gt", "quot"].contains(&name), "{name}");
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else {
            roots += usize::from(open.is_empty());
            if !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().unwrap());
            }
        }
    }
    assert!(open.is_empty() && roots == 1, "{open:?}");
}

#[test]
fn a_bucket_is_measured_with_every_setting_and_empty_afterwards() {
    let (tool, server) = (Tool::new(), server());
    let args = ["--quick", "--size", "40M", "--json", "--svg", "plot.svg"];
    let report = finish(command(&tool, &server, &args)).ok().json();
    assert_eq!(
        settings(&report["uploads"]),
        ["8M x 8", "16M x 8", "32M x 4"]
    );
    assert_eq!(
        settings(&report["downloads"]),
        ["4M x 16", "8M x 8", "8M x 16"]
    );
    for measured in ["uploads", "downloads"] {
        for m in report[measured].as_array().unwrap() {
            assert!(m["bytes_per_s"].as_u64() > Some(0), "{m}");
            assert!(
                m["bytes"].as_u64() > Some(0) && m["bytes"].as_u64() <= Some(40 << 20),
                "{m}"
            );
        }
    }
    let first = &report["first_byte"];
    let us = |name: &str| first[name].as_u64().unwrap();
    assert!(us("reads") > 0 && us("p50_us") <= us("p99_us") && us("p99_us") <= us("max_us"));
    for recommended in ["recommended_upload", "recommended_download"] {
        assert!(
            report[recommended]["at_once"].as_u64() > Some(0),
            "{report}"
        );
    }
    assert!(
        server.objects(BUCKET).is_empty(),
        "{:?}",
        server.objects(BUCKET)
    );
    let scratch = server
        .folders(BUCKET)
        .into_iter()
        .find(|f| f.contains("bench"));
    assert_eq!(scratch, None);
    // The settings are what was sent: an insert for each part, the first three a quarter as long, and a compose for each object of several.
    let log = server.log();
    assert_eq!(log.count(Operation::InsertMultipart), 8 + 5 + 4);
    assert_eq!(log.count(Operation::Compose), 3);

    let plot = fs::read_to_string(tool.path("plot.svg")).unwrap();
    assert_well_formed(&plot);
    assert!(plot.matches("<rect ").count() >= 1 + 3 + 3 + 3);
    for label in ["8M x 8", "32M x 4", "4M x 16", "p99", "gs://snapshots"] {
        assert!(plot.contains(label), "no {label}");
    }
}

#[test]
fn the_table_has_the_same_settings_and_what_to_do_with_them() {
    let (tool, server) = (Tool::new(), server());
    server.add_fault(
        Fault::new(FaultKind::Status {
            status: 503,
            retry_after_s: None,
        })
        .on(&[Operation::InsertMultipart])
        .nth(2),
    );
    let shown = finish(command(&tool, &server, &["--quick", "--size", "20M"])).ok();
    let text = shown.text();
    for words in [
        "8M x 8",
        "16M x 8",
        "32M x 4",
        "4M x 16",
        "first byte: p50 ",
        "needs a larger --size",
        "RETRIES",
    ] {
        assert!(text.contains(words), "no {words:?}: {text}");
    }
    let rows = text.lines().filter(|l| l.contains("M x "));
    let retries: Vec<_> = rows
        .map(|l| {
            let unit = l.split_whitespace().collect::<Vec<_>>();
            // SETTING of three words, rate, bytes and time of two each, then the counts.
            unit[9].parse::<u64>().unwrap()
        })
        .collect();
    assert_eq!(retries.iter().sum::<u64>(), 1, "{text}");
    let advice = text
        .lines()
        .find(|l| l.starts_with("recommended: "))
        .expect("advice");
    let words: Vec<_> = advice.split_whitespace().collect();
    let option = |name: &str| {
        let at = words.iter().position(|w| *w == name).expect(name);
        words[at + 1].to_owned()
    };
    let (parts, ranges) = (option("--upload-parts"), option("--download-ranges"));

    // The options do what they say.
    let mut noise = support::Noise(2);
    let bytes: Vec<u8> = (0..(5 << 20) / 8)
        .flat_map(|_| noise.word().to_le_bytes())
        .collect();
    tool.file("ram", &bytes);
    let with = |args: &[&str]| {
        let mut command = command(&tool, &server, &[]);
        command = {
            let mut fresh = tool.command(args);
            for (key, value) in command.get_envs() {
                if let Some(value) = value {
                    fresh.env(key, value);
                }
            }
            fresh.env("PODSNAP_STORE", "gs://snapshots/tenant/store");
            fresh
        };
        finish(command)
    };
    with(&[
        "save",
        "a",
        "memory=ram",
        "--upload-parts",
        &parts,
        "--download-ranges",
        &ranges,
    ])
    .ok();
    server.clear_log();
    with(&["save", "b", "memory=ram", "--upload-parts", "1M:4"]).ok();
    let pack = server
        .objects(BUCKET)
        .into_iter()
        .find(|o| o.name.contains("/b/pack-"))
        .unwrap();
    assert!(pack.components >= Some(5), "{pack:?}");
    with(&["restore", "b", "out", "--download-ranges", "256K:3"]).ok();
    assert!(fs::read(tool.path("out/memory")).unwrap() == bytes);
    for bad in ["1M", "1M:0", "1M:65", "1K:4", "1G:4", "x:1", ":", "1M:"] {
        with(&["save", "c", "memory=ram", "--upload-parts", bad]).ends_with(2);
    }
}

#[test]
fn an_interrupted_measurement_leaves_nothing() {
    let (tool, server) = (Tool::new(), server());
    server.configure(|c| c.link.total_bytes_per_s = 20_000_000);
    for (when, operation, requests) in [
        ("uploads", Operation::InsertMultipart, 1),
        // Small reads that time the first byte come before these.
        ("downloads", Operation::GetMedia, 32),
    ] {
        server.clear_log();
        if when == "downloads" {
            server.configure(|c| c.link.total_bytes_per_s = 0);
            let slow = FaultKind::SlowDownload {
                bytes_per_s: 500_000,
            };
            server.add_fault(Fault::new(slow).on(&[Operation::GetMedia]));
        }
        let mut running = Running::start(command(&tool, &server, &["--quick", "--size", "64M"]));
        running.wait_until(when, || server.log().count(operation) > requests);
        running.signal(Signal::INT);
        running.finish().ends_with(130);
        assert!(
            server.objects(BUCKET).is_empty(),
            "{when}: {:?}",
            server.objects(BUCKET)
        );
    }
}

#[test]
fn what_could_not_be_removed_is_not_written() {
    let (tool, server) = (Tool::new(), server());
    server.configure(|c| c.revoke(AGENT, Permission::ObjectsDelete));
    let refused = finish(command(&tool, &server, &["--quick", "--size", "1M"]));
    refused.ends_with(4).says(&["storage.objects.delete"]);
    server.configure(|c| {
        *c = Config::tenant(BUCKET, "tenant/");
        c.bucket(BUCKET).retention_s = Some(60);
    });
    let refused = finish(command(&tool, &server, &["--quick", "--size", "1M"]));
    refused.ends_with(4).says(&["retains"]);
    assert!(server.objects(BUCKET).is_empty());
    assert_eq!(server.log().count(Operation::InsertMultipart), 0);
}

#[test]
fn a_directory_is_measured_too() {
    let tool = Tool::new();
    let report = tool.json(&["bench", "--quick", "--size", "9M", "--no-sync"]);
    let uploads = report["uploads"].as_array().unwrap();
    assert_eq!(uploads.len(), 1);
    assert_eq!(
        (&uploads[0]["setting"], &uploads[0]["bytes"]),
        (&Value::Null, &Value::from(9 << 20))
    );
    assert_eq!(
        settings(&report["downloads"]),
        ["4M x 16", "8M x 8", "8M x 16"]
    );
    assert_eq!(report["downloads"][0]["bytes"], 9 << 20);
    assert_eq!(report["recommended_upload"], Value::Null);
    assert!(!tool.path("store").exists(), "{:?}", tool.store_files());
    // A store that is in use keeps what it has.
    tool.file("x", b"something");
    tool.save("a", &["other=x"]);
    let before = tool.store_files();
    let shown = tool
        .run(&[
            "bench",
            "--quick",
            "--size",
            "1M",
            "--seconds",
            "1",
            "--no-sync",
        ])
        .ok();
    assert!(
        shown.text().contains("the store's own way"),
        "{}",
        shown.text()
    );
    assert_eq!(tool.store_files(), before);
    for bad in [&["--size", "1K"][..], &["--size", "x"], &["--seconds", "0"]] {
        tool.run(&[&["bench"], bad].concat()).ends_with(2);
    }
    tool.run(&[
        "bench",
        "--quick",
        "--size",
        "1M",
        "--svg",
        "no/such/dir/x.svg",
    ])
    .ends_with(1)
    .says(&["plot"]);
}
