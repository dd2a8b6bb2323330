//! Pages that cannot be had, for whatever reason, kill whoever touches them, and the reason is said.

use std::{fs, process::Command, thread, time::Duration};

use podsnap_gcs_server::{Config, GcsServer};
use rustix::process::Signal;

use crate::{MIB, Served, guest::*, support::tool::*};

#[test]
fn who_touches_what_a_killed_server_had_not_served_dies() {
    if !can_serve() {
        return;
    }
    let mut served = Served::start(8 * MIB, &["--no-fill"]);
    let mut shape = Shape::new(8 * MIB);
    let mut reader = served.guest(shape);
    reader.does("check 0 65536");
    let mut dropper = served.guest(shape);
    dropper.does("remove 4194304 65536");
    shape.events = ALL_EVENTS;
    let mut parent = served.guest(shape);
    parent.does("check 0 4096");
    let mut untouched = served.guest(shape);
    untouched.does("unmap 0 4096");
    served.signal(Signal::KILL);
    let killed = served.finish();
    assert_eq!(killed.code, None);
    killed.says(&["what served memory has died"]);
    // What is there stays.
    reader.does("check 0 65536");
    reader.tell("check 4194304 4096");
    reader.dies_of(Signal::BUS);
    // Even what would be zeros if somebody knew it.
    dropper.tell("zeros 4194304 4096");
    dropper.dies_of(Signal::BUS);
    parent.tell("fork 4194304 4096");
    assert_eq!(parent.answer().as_deref(), Some("the child died of 7"));
    untouched.tell("check 4096 4096");
    untouched.dies_of(Signal::BUS);
}

#[test]
fn a_guest_may_be_killed_with_its_server() {
    if !can_serve() {
        return;
    }
    let mut served = Served::start(2 * MIB, &["--no-fill", "--kill"]);
    let guest = served.guest(Shape::new(2 * MIB));
    // That it is served is what makes it guarded.
    let mut other = served.guest(Shape::new(2 * MIB));
    other.does("check 0 4096");
    let mut guest = guest;
    guest.does("check 0 4096");
    served.signal(Signal::KILL);
    guest.dies_of(Signal::KILL);
    other.dies_of(Signal::KILL);
    served.finish().says(&["what served memory has died"]);
}

#[test]
fn who_touches_what_a_server_had_not_served_when_it_ended_dies() {
    if !can_serve() {
        return;
    }
    let mut served = Served::start(8 * MIB, &["--no-fill"]);
    let mut shape = Shape::new(8 * MIB);
    shape.events = ALL_EVENTS;
    let mut guest = served.guest(shape);
    guest.does("check 0 65536");
    guest.does("remove 1048576 65536");
    guest.does("unmap 2097152 65536");
    served.signal(Signal::TERM);
    served.finish().ok().says(&["the rest is lost to it"]);
    guest.does("check 0 65536");
    // The kernel knows what was dropped.
    guest.does("zeros 1048576 65536");
    guest.does("write 0 4096");
    guest.tell("check 4194304 4096");
    guest.dies_of(Signal::BUS);
}

#[test]
fn a_damaged_frame_is_fatal_and_said() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB;
    for (options, signal) in [
        (&["--no-fill"][..], Signal::BUS),
        (&[], Signal::BUS),
        (&["--no-fill", "--kill"], Signal::KILL),
    ] {
        let served = Served::new(len);
        let pack = served.tool.pack("s");
        let middle = fs::metadata(&pack).unwrap().len() as usize / 2;
        flip(&pack, middle);
        let mut served = served.serve(options);
        let mut guest = served.guest(Shape::new(len));
        guest.tell("race 2");
        guest.dies_of(signal);
        served.signal(Signal::TERM);
        served.finish().ok().says(&["cannot be served", "damaged"]);
    }
}

#[test]
fn a_vanished_store_is_fatal_and_said() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB;
    let mut served = Served::start(len, &["--no-fill"]);
    let mut guest = served.guest(Shape::new(len));
    guest.does("check 0 4096");
    fs::remove_file(served.tool.pack("s")).unwrap();
    guest.tell("race 2");
    guest.dies_of(Signal::BUS);
    served.signal(Signal::TERM);
    served
        .finish()
        .ok()
        .says(&["cannot be served", "is missing"]);
}

#[test]
fn who_waits_for_bytes_when_the_server_ends_dies() {
    if !can_serve() {
        return;
    }
    let mut config = Config::open("snapshots");
    config.rules.mutations_per_second = 0.0;
    let bucket = GcsServer::start(config).expect("a server on loopback");
    let tool = Tool::new();
    tool.file("ram", &content(8 * MIB));
    let distant = |args: &[&str]| -> Command {
        let mut command = tool.command(args);
        command
            .env("PODSNAP_STORE", "gs://snapshots/store")
            .env("STORAGE_EMULATOR_HOST", bucket.url());
        command
    };
    finish(distant(&["save", "s", "memory=ram"])).ok();
    let socket = tool.path("guest.sock");
    for signal in [Signal::KILL, Signal::TERM] {
        // To store what was learned would take long over this link.
        let options = ["--no-fill", "--no-record", "--socket", "guest.sock"];
        let serve = [&["serve-uffd", "s"][..], &options].concat();
        let mut server = Running::start(distant(&serve));
        server.wait_until("the socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        let mut guest = Guest::start(&socket, Shape::new(8 * MIB));
        guest.does("check 0 4096");
        bucket.configure(|config| config.link.first_byte_ms = 3_000);
        guest.tell("check 6291456 4096");
        thread::sleep(Duration::from_millis(200));
        server.signal(signal);
        server.finish().says(&[match signal {
            Signal::KILL => "what served memory has died",
            _ => "the rest is lost to it",
        }]);
        guest.dies_of(Signal::BUS);
        bucket.configure(|config| config.link.first_byte_ms = 0);
    }
}

#[test]
fn missing_huge_pages_are_fatal_as_well() {
    if !can_serve() {
        return;
    }
    let Some(_pages) = HugePages::new(16) else {
        return;
    };
    for signal in [Signal::KILL, Signal::TERM] {
        let mut served = Served::start(8 * MIB, &["--no-fill"]);
        let shape = Shape {
            page_size: HUGE,
            ..Shape::new(8 * MIB)
        };
        let mut guest = served.guest(shape);
        guest.does("check 2097152 2097152");
        served.signal(signal);
        served.finish();
        guest.does("check 2097152 2097152");
        guest.tell("check 6291456 4096");
        guest.dies_of(Signal::BUS);
    }
}
