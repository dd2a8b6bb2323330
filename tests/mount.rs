//! `podsnap mount`: what it shows is what a restore writes, damage is an error, nothing is left behind, and runsc restores from it.

mod support;

use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

use podsnap_gcs_server::{AGENT_TOKEN, Config, GcsServer};
use rustix::process::Signal;
use support::provisioned::provisioned;
use support::{Noise, assert_bytes, mounting::*, noise, tool::*, tree::*};

#[test]
fn a_mounted_tree_is_the_tree_that_was_saved() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    fs::create_dir(tool.path("upper")).unwrap();
    make_tree(&tool.path("upper"));
    let expected = describe(&tool.path("upper"));
    let bytes = noise(1, 3_000_001);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram", "rootfs=upper", "tmpfs:a=upper"]);
    let mounted = Mounting::start(&tool, "s", &[]);
    assert_same_tree(&mounted.dir().join("rootfs"), &expected);
    assert_same_tree(&mounted.dir().join("tmpfs.a"), &expected);
    let memory = fs::read(mounted.dir().join("memory")).unwrap();
    assert_bytes(&memory, &bytes, "memory");
    assert!(fs::write(mounted.dir().join("memory"), b"x").is_err());
    mounted.end(Signal::INT).ok();
    let mounted = Mounting::start(&tool, "s", &["--section", "tmpfs:a"]);
    assert_same_tree(&mounted.dir().join("tmpfs.a"), &expected);
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 1);
    mounted.end(Signal::TERM).ok();
}

#[test]
fn many_threads_read_at_random_what_was_saved() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    let mut bytes = noise(2, 24 << 20);
    bytes[5 << 20..9 << 20].fill(0);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram"]);
    let mounted = Mounting::start(&tool, "s", &[]);
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let (bytes, path) = (&bytes, mounted.dir().join("memory"));
            scope.spawn(move || {
                let file = fs::File::open(path).unwrap();
                let mut noise = Noise(seed);
                for _ in 0..100 {
                    let at = noise.below(bytes.len());
                    let len = noise.below(300_000).min(bytes.len() - at);
                    let mut found = vec![1; len];
                    file.read_exact_at(&mut found, at as u64).unwrap();
                    assert_bytes(&found, &bytes[at..at + len], "a range");
                }
                assert_eq!(file.read_at(&mut [0; 9], bytes.len() as u64).unwrap(), 0);
            });
        }
    });
}

#[test]
fn damage_is_an_error_and_never_zeros() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    let bytes = noise(3, 8 << 20);
    tool.file("ram", &bytes);
    tool.save("s", &["memory=ram"]);
    let pack = tool.pack("s");
    flip(&pack, 4 << 20);
    let mounted = Mounting::start(&tool, "s", &[]);
    let file = fs::File::open(mounted.dir().join("memory")).unwrap();
    let mut failed = 0;
    let mut found = [0; 4096];
    for at in (0..bytes.len()).step_by(4096) {
        match file.read_exact_at(&mut found, at as u64) {
            Ok(()) => assert_bytes(&found, &bytes[at..at + 4096], "an undamaged page"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(5), "{e}");
                failed += 1;
            }
        }
    }
    assert!((1..1024).contains(&failed), "{failed} pages cannot be read");
    drop(file);
    mounted
        .end(Signal::TERM)
        .ok()
        .says(&["memory", "offset", "damaged"]);
}

#[test]
fn however_it_ends_nothing_is_left() {
    if !can_mount() {
        return;
    }
    let tool = Tool::new();
    tool.file("ram", b"some memory");
    tool.save("s", &["memory=ram"]);
    let dir = tool.path("mnt");
    for end in [
        Mounting::umount as fn(Mounting) -> Outcome,
        |mounted| mounted.end(Signal::INT),
        |mounted| mounted.end(Signal::TERM),
    ] {
        let said = end(Mounting::start(&tool, "s", &[])).ok();
        assert!(said.text().contains("mounted on"), "{}", said.text());
        assert_eq!(said.stderr, "");
        assert!(!is_mounted(&dir));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
    // A file that somebody has open does not keep it.
    let mounted = Mounting::start(&tool, "s", &["--json"]);
    let open = fs::File::open(dir.join("memory")).unwrap();
    let said = mounted.end(Signal::INT).ok();
    assert_eq!(said.json()["snapshot"], "s");
    assert!(!is_mounted(&dir));
    drop(open);
}

#[test]
fn where_nothing_can_be_mounted_it_says_why() {
    let tool = Tool::new();
    tool.file("ram", b"some memory");
    tool.save("s", &["memory=ram"]);
    tool.run(&["mount", "s", "nowhere"])
        .ends_with(2)
        .says(&["there is no directory nowhere"]);
    tool.run(&["mount", "s", "ram"])
        .ends_with(2)
        .says(&["ram is no directory"]);
    tool.run(&["mount", "s", "store"])
        .ends_with(2)
        .says(&["store is not empty"]);
    if !can_mount() {
        return;
    }
    let mut killed = Mounting::start(&tool, "s", &[]);
    killed.kill();
    tool.run(&["mount", "s", "mnt"])
        .ends_with(2)
        .says(&["nobody serves", "umount -l mnt"]);
}

/// Restores the pod from a mount, in the ways that runsc has.
fn restores_pods(mounted: &Path) {
    for flags in [&[][..], &["--background"]] {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/restore-pod.sh");
        let run = Command::new(script).arg(mounted).args(flags).output();
        let run = run.unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        match run.status.code() {
            Some(77) => support::skipped(said.lines().next().unwrap_or_default()),
            Some(0) => assert!(said.contains("restored"), "{said}"),
            code => panic!("{code:?} {flags:?}: {said}"),
        }
    }
}

#[test]
fn a_pod_resumes_from_a_mounted_image() {
    let Some(image) = provisioned("images/small").filter(|_| can_mount()) else {
        return;
    };
    let tool = Tool::new();
    tool.save("small", &[image.to_str().unwrap()]);
    let mounted = Mounting::start(&tool, "small", &[]);
    for file in ["checkpoint.img", "pages_meta.img", "pages.img"] {
        let found = fs::read(mounted.dir().join(file)).unwrap();
        assert_bytes(&found, &fs::read(image.join(file)).unwrap(), file);
    }
    assert_eq!(fs::read_dir(mounted.dir()).unwrap().count(), 3);
    restores_pods(mounted.dir());
    mounted.end(Signal::TERM).ok();
}

#[test]
fn a_pod_resumes_straight_from_a_distant_bucket() {
    let Some(image) = provisioned("images/small").filter(|_| can_mount()) else {
        return;
    };
    let mut config = Config::tenant("snapshots", "tenant/");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    let server = GcsServer::start(config).expect("a server on loopback");
    let tool = Tool::new();
    let command = |args: &[&str]| {
        let mut command = tool.command(args);
        command
            .env("PODSNAP_STORE", "gs://snapshots/tenant/store")
            .env("STORAGE_EMULATOR_HOST", server.url())
            .env("CLOUDSDK_AUTH_ACCESS_TOKEN", AGENT_TOKEN);
        command
    };
    finish(command(&["save", "small", image.to_str().unwrap()])).ok();
    server.configure(|c| c.link.first_byte_ms = 20);
    let mounted = Mounting::of(&tool, command(&["mount", "small", "mnt"]));
    restores_pods(mounted.dir());
    mounted.end(Signal::TERM).ok();
}
