//! Hostile tar streams: refused, or kept inside the target; never a panic, never memory without bound.

use std::io::Read;

use podsnap_engine::tree::TarTreeReader;
use proptest::prelude::*;
use tar::{EntryType, Header};

fn member(path: &[u8], kind: EntryType, link: &[u8], contents: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// An extended header.
fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let record = |(key, value): &(&str, &str)| {
        let length = key.len() + value.len() + 5;
        assert!((10..100).contains(&length));
        format!("{length} {key}={value}\n")
    };
    let records: String = records.iter().map(record).collect();
    member(b"pax", EntryType::XHeader, b"", records.as_bytes())
}

const SPARSE: [(&str, &str); 2] = [
    ("GNU.sparse.major", "1"),
    ("GNU.sparse.realsize", "1000000"),
];

/// What the reader says to an archive of these members.
fn refusal(members: &[Vec<u8>]) -> String {
    let tar = [members.concat(), vec![0; 1024]].concat();
    TarTreeReader::new(&tar[..])
        .read_to_end(&mut Vec::new())
        .unwrap_err()
        .to_string()
}

#[test]
fn members_that_lead_elsewhere_are_refused() {
    let file = |path: &[u8]| member(path, EntryType::Regular, b"", b"x");
    assert!(refusal(&[file(b"../x")]).contains("member ../x: its path contains '..'"));
    assert!(refusal(&[file(b"a/../../x")]).contains("'..'"));
    assert!(refusal(&[file(b"/tmp/x")]).contains("absolute"));
    let link = member(b"a", EntryType::Symlink, b"/tmp/x", b"");
    assert!(
        refusal(&[link.clone(), file(b"a/b")])
            .contains("member a/b: it lies below something that is not a directory")
    );
    assert!(
        refusal(&[file(b"a/b"), link]).contains("it would replace a directory that is not empty")
    );
    assert!(refusal(&[member(b"a", EntryType::Link, b"/etc/passwd", b"")]).contains("absolute"));
    assert!(refusal(&[member(b"a", EntryType::Link, b"../x", b"")]).contains("'..'"));
    assert!(
        refusal(&[member(b"a", EntryType::Link, b"b", b"")]).contains("did not come before it")
    );
    assert!(
        refusal(&[
            member(b"d/", EntryType::Directory, b"", b""),
            member(b"a", EntryType::Link, b"d", b"")
        ])
        .contains("to a directory")
    );
    assert!(refusal(&[member(b".", EntryType::Symlink, b"/", b"")]).contains("top directory"));
}

#[test]
fn members_that_lie_about_sizes_are_refused() {
    let sparse = |map: &[u8]| member(b"s", EntryType::Regular, b"", map);
    let mut huge = member(b"long", EntryType::GNULongName, b"", b"");
    let mut header = Header::from_byte_slice(&huge).clone();
    header.set_size(1 << 60);
    header.set_cksum();
    huge[..512].copy_from_slice(header.as_bytes());
    assert!(refusal(&[huge]).contains("claims 1152921504606846976 bytes"));
    let name = |bytes: &[u8]| refusal(&[pax(&SPARSE), sparse(bytes)]);
    assert!(
        name(&[b"1152921504606846976\n", &[b'1'; 508][..]].concat()).contains("map is too long")
    );
    assert!(name(b"1\n0\n5\n").contains("longer than its contents"));
    assert!(name(&[b"1\n0\n5\n".to_vec(), vec![0; 506]].concat()).contains("impossible"));
    assert!(
        name(&[b"2\n0\n512\n0\n512\n".to_vec(), vec![0; 498], vec![1; 1024]].concat())
            .contains("impossible")
    );
    assert!(
        name(
            &[
                b"1\n18446744073709551615\n512\n".to_vec(),
                vec![0; 485],
                vec![1; 512]
            ]
            .concat()
        )
        .contains("impossible")
    );
    assert!(
        name(&[b"1\n0\n512\n".to_vec(), vec![0; 504], vec![1; 1024]].concat())
            .contains("more contents")
    );
    assert!(
        refusal(&[pax(&[("size", "9223372036854775808")]), sparse(b"")]).contains("impossible")
    );
}

fn good_archive() -> Vec<u8> {
    [
        member(b"d/", EntryType::Directory, b"", b""),
        pax(&[
            ("SCHILY.xattr.user.name", "some"),
            ("mtime", "1700000000.123456"),
        ]),
        member(b"d/file", EntryType::Regular, b"", &[5; 700]),
        member(b"d/link", EntryType::Link, b"d/file", b""),
        pax(&SPARSE),
        member(
            b"sparse",
            EntryType::Regular,
            b"",
            &[b"1\n4096\n512\n".to_vec(), vec![0; 501], vec![1; 512]].concat(),
        ),
        vec![0; 1024],
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_damage_makes_it_panic(changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..8), mend in any::<bool>()) {
        let mut tar = good_archive();
        prop_assert!(TarTreeReader::new(&tar[..]).read_to_end(&mut Vec::new()).is_ok());
        for (at, byte) in changes {
            let at = at % tar.len();
            tar[at] = byte;
        }
        if mend {
            // So that the checksum does not keep damage from what lies behind it.
            for at in (0..tar.len()).step_by(512) {
                if &tar[at + 257..at + 262] == b"ustar" {
                    let mut header = Header::from_byte_slice(&tar[at..at + 512]).clone();
                    header.set_cksum();
                    tar[at..at + 512].copy_from_slice(header.as_bytes());
                }
            }
        }
        let mut out = Vec::new();
        let _ = TarTreeReader::new(&tar[..]).read_to_end(&mut out);
        prop_assert!(out.len() < 2 * tar.len());
    }
}
