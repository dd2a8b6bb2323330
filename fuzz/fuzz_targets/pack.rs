//! Packs, as they come and with their checksums made right.
#![no_main]

mod object;

use libfuzzer_sys::fuzz_target;
use podsnap_format::{Footer, PackIndex};

fuzz_target!(|data: &[u8]| {
    read(data);
    if let Some(repaired) = object::repaired(data) {
        read(&repaired);
    }
    object::read_frames(data);
});

fn read(data: &[u8]) {
    let Ok(footer) = Footer::parse(data) else {
        return;
    };
    let Some(trailer) = footer.trailer_in(data) else {
        return;
    };
    if let Ok(index) = PackIndex::parse(&footer, trailer) {
        for entry in &index.entries {
            assert!(entry.offset + entry.frame_len() <= footer.frames_end);
        }
    }
}
