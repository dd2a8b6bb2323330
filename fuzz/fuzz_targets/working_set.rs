//! Working sets, as they come and with their checksums made right: what a reader accepts, a writer writes again.
#![no_main]

#[allow(dead_code)]
mod object;

use libfuzzer_sys::fuzz_target;
use podsnap_format::{Footer, WorkingSet};

fuzz_target!(|data: &[u8]| {
    read(data);
    if let Some(repaired) = object::repaired(data) {
        read(&repaired);
    }
});

fn read(object: &[u8]) {
    let Ok(footer) = Footer::parse(object) else {
        return;
    };
    let Some(trailer) = footer.trailer_in(object) else {
        return;
    };
    let Ok(set) = WorkingSet::parse(&footer, trailer) else {
        return;
    };
    let again = set.encode().expect("what a reader accepts, a writer can write");
    let footer = Footer::parse(&again).expect("a footer");
    let trailer = footer.trailer_in(&again).expect("a whole object");
    assert_eq!(WorkingSet::parse(&footer, trailer).as_ref(), Ok(&set));
}
