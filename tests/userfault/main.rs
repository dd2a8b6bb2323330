//! Memory that is served by userfaultfd: every page is what was saved, whatever its process does meanwhile, and a page that cannot be had is never
//! zeros. Served by `podsnap serve-uffd` to processes that ask as Firecracker does, and by the library.

#[path = "../support/mod.rs"]
mod support;

mod guest;
mod handshake;
mod learned;
mod library;
mod loss;
mod ring;

use std::path::PathBuf;

use guest::*;
use rustix::process::Signal;
use support::tool::*;

/// Not a test of its own: what a guest does.
#[test]
fn a_guest_process() {
    run_if_told();
}

/// A store with one snapshot `s` of [`content`], and `podsnap serve-uffd`.
struct Served {
    tool: Tool,
    server: Option<Running>,
}

impl Served {
    fn new(len: usize) -> Self {
        let tool = Tool::new();
        tool.file("ram", &content(len));
        tool.save("s", &["memory=ram"]);
        Self { tool, server: None }
    }

    fn start(len: usize, options: &[&str]) -> Self {
        Self::new(len).serve(options)
    }

    fn serve(mut self, options: &[&str]) -> Self {
        let args = [&["serve-uffd", "s", "--socket", "guest.sock"], options].concat();
        let mut server = self.tool.start(&args);
        let socket = self.socket();
        server.wait_until("the socket", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        self.server = Some(server);
        self
    }

    /// Kills the server and starts another.
    fn restart(mut self, options: &[&str]) -> Self {
        self.server = None;
        self.serve(options)
    }

    fn socket(&self) -> PathBuf {
        self.tool.path("guest.sock")
    }

    fn guest(&self, shape: Shape) -> Guest {
        Guest::start(&self.socket(), shape)
    }

    fn signal(&mut self, signal: Signal) {
        self.server.as_mut().unwrap().signal(signal);
    }

    fn finish(&mut self) -> Outcome {
        self.server.take().unwrap().finish()
    }

    /// Ends it, which must go well; the tool and its store stay.
    #[track_caller]
    fn end_and_keep(mut self) -> Tool {
        self.signal(Signal::TERM);
        self.finish().ok();
        self.tool
    }

    /// Ends it, which must go well.
    #[track_caller]
    fn end(mut self) -> Outcome {
        self.signal(Signal::TERM);
        self.finish().ok()
    }
}

const MIB: usize = 1 << 20;

#[test]
fn every_page_comes_back_to_many_threads_while_the_rest_is_filled() {
    if !can_serve() {
        return;
    }
    let len = 24 * MIB + 1000;
    let served = Served::start(len, &[]);
    let mut guests: Vec<_> = (0..2).map(|_| served.guest(Shape::new(len))).collect();
    guests.iter_mut().for_each(|guest| guest.tell("race 4"));
    for guest in &mut guests {
        assert_eq!(guest.answer().as_deref(), Some("as it should be"));
    }
    served.end();
    // Once all is there, nobody is needed.
    for guest in &mut guests {
        guest.does("race 1");
        guest.does("write 4096 100000");
    }
}

#[test]
fn every_page_comes_back_only_because_it_is_touched() {
    if !can_serve() {
        return;
    }
    let len = 6 * MIB;
    let served = Served::start(len, &["--no-fill"]);
    let mut guest = served.guest(Shape::new(len));
    guest.does("write 8192 4096");
    guest.does("check 0 8192");
    guest.does("check 12288 4096");
    let mut guest = served.guest(Shape::new(len));
    guest.does("race 3");
    drop(guest);
    served.end();
}

#[test]
fn huge_pages_come_back() {
    let len = 20 * MIB + 5000;
    if !can_serve() {
        return;
    }
    let Some(_pages) = HugePages::new(24) else {
        return;
    };
    let served = Served::start(len, &[]);
    let shape = Shape {
        page_size: HUGE,
        ..Shape::new(len)
    };
    let mut guest = served.guest(shape);
    guest.does("race 4");
    // What a balloon drops is zeros.
    guest.does("remove 8388608 4194304");
    guest.does("zeros 8388608 4194304");
    guest.does("check 12582912 2097152");
    served.end();
    guest.does("race 0");
}

#[test]
fn what_is_dropped_stays_dropped_however_much_is_installed_meanwhile() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB;
    let served = Served::start(len, &[]);
    for options in ["churn 400", "churn 30"] {
        let mut guest = served.guest(Shape::new(len));
        guest.does(options);
    }
    let mut guest = served.guest(Shape::new(len));
    guest.does("remove 1048576 1048576");
    guest.does("zeros 1048576 1048576");
    guest.does("check 0 1048576");
    guest.does("check 2097152 6291456");
    served.end();
}

#[test]
fn a_process_may_move_unmap_and_fork() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB;
    let served = Served::start(len, &["--no-fill"]);
    let shape = Shape {
        events: ALL_EVENTS,
        ..Shape::new(len)
    };
    let mut guest = served.guest(shape);
    guest.does("check 0 65536");
    guest.does("move 32768 1048576");
    guest.does("unmap 1179648 262144");
    guest.does("check 1441792 4096");
    // The child's pages are its own to fetch; what is dropped here is not dropped there.
    guest.does("remove 1572864 4096");
    guest.does("fork 1576960 524288");
    guest.does("zeros 1572864 4096");
    guest.does("check 1576960 6811648");
    drop(guest);
    // The same while the fill races it.
    let served = served.restart(&[]);
    for _ in 0..3 {
        let mut guest = served.guest(shape);
        guest.does("fork 4194304 4194304");
        guest.does("move 0 1048576");
        guest.does("fork 2097152 6291456");
        guest.does("check 2097152 6291456");
    }
    served.end();
}
