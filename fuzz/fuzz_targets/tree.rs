//! Entry tables of trees: what a reader accepts, a writer writes again with the same meaning and, from then on, the same bytes.
//! The data is the length of the contents (u64), then the table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podsnap_format::tree::TreeTable;

fuzz_target!(|data: &[u8]| {
    let Some((data_length, table)) = data.split_first_chunk::<8>() else {
        return;
    };
    let data_length = u64::from_le_bytes(*data_length);
    let Ok(parsed) = TreeTable::parse(table, data_length) else {
        return;
    };
    let encoded = parsed.encode();
    assert_eq!(
        TreeTable::parse(&encoded, data_length).as_ref(),
        Ok(&parsed)
    );
    // The rules hold for entries, not only for the bytes they came in.
    let again = TreeTable::new(parsed.entries().to_vec(), data_length);
    assert_eq!(again.map(|table| table.encode()).as_ref(), Ok(&encoded));
});
