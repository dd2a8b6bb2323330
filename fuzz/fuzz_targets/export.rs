//! Exports, as they come and with their checksums made right.
#![no_main]

mod object;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    object::read_manifest(data);
    object::read_frames(data);
    if let Some(repaired) = object::repaired(data) {
        object::read_manifest(&repaired);
    }
});
