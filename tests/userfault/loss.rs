//! Pages that cannot be had, for whatever reason, kill whoever touches them, and the reason is said.

use std::fs;

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
