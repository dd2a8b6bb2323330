//! What guests touch is learned, and comes first the next time.

use crate::{MIB, Served, guest::*};

#[test]
fn what_a_guest_touches_is_learned_in_order_and_the_next_one_is_none_the_worse() {
    if !can_serve() {
        return;
    }
    let len = 8 * MIB;
    let served = Served::start(len, &["--no-fill"]);
    let pages = [1234, 77, 2000, 78, 5];
    let mut guest = served.guest(Shape::new(len));
    for page in pages {
        guest.does(&format!("check {} 4096", page * 4096));
    }
    drop(guest);
    let tool = served.end_and_keep();
    let report = tool.json(&["inspect", "s", "--top", "100"]);
    let touches = report["working_set"]["first_touches"].as_array().unwrap();
    let touched: Vec<u64> = touches
        .iter()
        .map(|touch| touch["offset"].as_u64().unwrap() / 4096)
        .collect();
    assert_eq!(touched[..3], pages[..3], "{report}");
    assert!(report["working_set"]["bytes"].as_u64().unwrap() < MIB as u64);

    let served = Served { tool, server: None }.serve(&[]);
    let mut guest = served.guest(Shape::new(len));
    guest.does("race 2");
    drop(guest);
    let said = served.end().stderr;
    assert!(!said.contains("WARN"), "{said}");
}
