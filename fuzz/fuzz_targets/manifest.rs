//! Manifests, as they come and with their checksums made right; and the data as a segment.
#![no_main]

mod object;

use libfuzzer_sys::fuzz_target;
use podsnap_format::Segment;
use podsnap_format::manifest::PackInfo;

fuzz_target!(|data: &[u8]| {
    object::read_manifest(data);
    if let Some(repaired) = object::repaired(data) {
        object::read_manifest(&repaired);
    }
    let pack = PackInfo {
        snapshot: "s".parse().expect("an id"),
        name: String::new(),
        version: String::new(),
        length: 1 << 40,
        crc32c: 0,
    };
    if let Some((section_len, segment)) = data.split_first_chunk::<8>() {
        let section_len = u64::from_le_bytes(*section_len);
        if let Ok(segment) = Segment::parse(segment, section_len, &[pack.clone(), pack]) {
            assert_eq!(segment.len(), section_len);
        }
    }
});
