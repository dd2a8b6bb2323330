//! What comes to the socket that is not a request is refused, said, and harms nobody else.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use podsnap::{ErrorKind, userfault::Userfault};
use rustix::{process::Signal, thread::set_thread_res_uid};

use crate::{MIB, Served, guest::*, support, support::tool::*};

#[test]
fn nonsense_is_refused_and_others_are_served() {
    if !can_serve() {
        return;
    }
    let mut served = Served::start(MIB, &[]);
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let region = r#"[{"base_host_virt_addr":4096,"size":4096,"offset":0,"page_size":4096}]"#;
    let beyond = r#"[{"base_host_virt_addr":4096,"size":18446744073709551615,"offset":0}]"#;
    let spaces = " ".repeat(70_000);
    let cases: [(&str, usize, &str); 10] = [
        ("", 0, "sent nothing"),
        ("hello", 0, "not what Firecracker sends"),
        ("{}", 1, "not what Firecracker sends"),
        ("[", 1, "not what Firecracker sends"),
        ("[{\"size\":4096}]", 1, "not what Firecracker sends"),
        (&spaces, 0, "more than 65536 bytes"),
        (region, 0, "without a userfaultfd"),
        (region, 1, "no userfaultfd"),
        (region, 2, "more descriptors"),
        (beyond, 1, "beyond all memory"),
    ];
    for (message, count, _) in &cases {
        let fds: Vec<_> = (0..*count).map(|_| null()).collect();
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        if !message.is_empty() {
            send(&stream, message.as_bytes(), &fds.iter().collect::<Vec<_>>());
        }
        stream.shutdown(Shutdown::Write).unwrap();
        // What was sent and not read makes it a reset.
        let closed = stream.read(&mut [0]);
        assert!(
            matches!(&closed, Ok(0))
                || closed
                    .as_ref()
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{closed:?}"
        );
    }
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let many: Vec<_> = (0..7).map(|_| null()).collect();
    send(&stream, region.as_bytes(), &many.iter().collect::<Vec<_>>());
    let _ = stream.read(&mut [0]);
    // One that comes in pieces is a request.
    let mut pieces = UnixStream::connect(served.socket()).unwrap();
    send(&pieces, b"[", &[&open_userfaultfd(FIRECRACKER)]);
    pieces.write_all(b" ").unwrap();
    pieces.write_all(b"]").unwrap();
    let mut guest = served.guest(Shape::new(MIB));
    guest.does("race 2");
    drop(guest);
    served.signal(Signal::TERM);
    let mut said = served.finish().ok();
    for (_, _, why) in cases {
        said = said.says(&[why]);
    }
    said.says(&["too many descriptors"]);
}

#[test]
fn a_guest_that_does_not_fit_is_killed_rather_than_left_waiting() {
    if !can_serve() {
        return;
    }
    let mut served = Served::start(MIB, &[]);
    served.guest(Shape::new(2 * MIB)).dies_of(Signal::KILL);
    served.guest(Shape::new(MIB)).does("race 1");
    served.signal(Signal::TERM);
    served
        .finish()
        .ok()
        .says(&["is not served", "a section that has 1048576"]);
}

#[test]
fn a_socket_is_taken_over_from_the_dead_only() {
    let tool = Tool::new();
    tool.file("ram", b"memory");
    tool.file("file", b"a file");
    fs::create_dir(tool.path("tree")).unwrap();
    tool.save("one", &["memory=ram"]);
    tool.save("none", &["other=ram", "rootfs=tree"]);
    tool.save("two", &["memory:a=ram", "memory:b=ram"]);
    let socket = tool.path("s.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let start = |snapshot: &str, more: &[&str]| {
        let args = [
            &["serve-uffd", snapshot, "--json", "--socket", "s.sock"],
            more,
        ]
        .concat();
        let mut running = tool.start(&args);
        running.wait_until("the socket", || UnixStream::connect(&socket).is_ok());
        running
    };
    let end = |mut running: Running| {
        running.signal(Signal::INT);
        running.finish().ok().json()
    };
    let running = start("two", &["--section", "memory:b"]);
    let other = tool.run(&["serve-uffd", "one", "--socket", "s.sock"]);
    other.ends_with(4).says(&["another process serves on"]);
    assert_eq!(end(running)["section"], "memory:b");
    assert!(!socket.exists());
    end(start("one", &[]));
    let refused = |args: &[&str], code: i32, words: &[&str]| {
        let args = [&["serve-uffd", "--socket"], args].concat();
        tool.run(&args).ends_with(code).says(words);
    };
    refused(&["file", "one"], 4, &["no socket"]);
    refused(&["no/such/dir", "one"], 1, &["cannot make the socket"]);
    refused(
        &["s.sock", "two"],
        2,
        &["several sections of memory", "--section"],
    );
    refused(&["s.sock", "none"], 2, &["no section of memory"]);
    refused(&["s.sock", "none", "--section", "rootfs"], 2, &["a tree"]);
    refused(&["s.sock", "nothing"], 3, &[]);
    refused(&["s.sock", "one", "--digest", &"0".repeat(64)], 5, &[]);
}

#[test]
fn without_permission_it_is_said_what_it_takes() {
    let allowed = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    if allowed.is_ok_and(|text| text.trim() == "1") || !rustix::process::geteuid().is_root() {
        return support::skipped(
            "being refused userfaultfd: needs root, and vm.unprivileged_userfaultfd=0",
        );
    }
    let refused = std::thread::spawn(|| {
        let nobody = rustix::process::Uid::from_raw(65534);
        // This thread only, which thereby has no rights.
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        Userfault::open().unwrap_err()
    });
    let refused = refused.join().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Forbidden);
    assert!(refused.to_string().contains("CAP_SYS_PTRACE"), "{refused}");
}
