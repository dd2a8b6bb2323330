//! What the targets share: making the checksums of a mutated object right, as otherwise hardly any mutation would get
//! past them, and reading an object whole.

use podsnap_format::codec::Decoder;
use podsnap_format::frame::decode_frame;
use podsnap_format::scan::Scanned;
use podsnap_format::{
    Directory, FOOTER_LEN, Footer, FrameScanner, HEADER_LEN, Header, Kind, Segment,
};

/// Makes the CRCs of header and footer right, the header's copy in the trailer, and the trailer's hash, and puts the
/// trailer where the footer's length field says. `None` if there is no room for them.
pub fn repaired(data: &[u8]) -> Option<Vec<u8>> {
    let mut object = data.to_vec();
    let footer_at = object.len().checked_sub(FOOTER_LEN)?;
    let trailer_len = u64::from_le_bytes(object[footer_at + 8..footer_at + 16].try_into().ok()?);
    let trailer_at = footer_at.checked_sub(usize::try_from(trailer_len).ok()?)?;
    if trailer_at < HEADER_LEN || footer_at - trailer_at < HEADER_LEN {
        return None;
    }
    let crc = crc32fast::hash(&object[..HEADER_LEN - 4]);
    object[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    object.copy_within(..HEADER_LEN, trailer_at);
    let hash = blake3::hash(&object[trailer_at..footer_at]);
    let total_len = object.len() as u64;
    let footer = &mut object[footer_at..];
    footer[..8].copy_from_slice(&(trailer_at as u64).to_le_bytes());
    footer[16..24].copy_from_slice(&total_len.to_le_bytes());
    footer[24..56].copy_from_slice(hash.as_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&footer[..68]);
    hasher.update(&footer[72..]);
    let crc = hasher.finalize();
    footer[68..72].copy_from_slice(&crc.to_le_bytes());
    Some(object)
}

/// Decodes whatever frames there are.
pub fn read_frames(object: &[u8]) {
    let mut decoder = Decoder::new();
    let mut raw = Vec::new();
    let mut at = HEADER_LEN.min(object.len());
    for scanned in FrameScanner::new(&object[at..], at as u64, true) {
        match scanned {
            Scanned::Frame { offset, header } => {
                assert_eq!(offset as usize, at);
                at += header.frame_len();
                if decode_frame(&object[offset as usize..at], &mut decoder, &mut raw).is_ok() {
                    assert_eq!(raw.len(), header.raw_len as usize);
                }
            }
            Scanned::Damaged { offset, len } => {
                assert_eq!(offset as usize, at);
                at += len as usize;
            }
        }
    }
}

/// Reads a manifest or export; segments even where their hash is wrong.
pub fn read_manifest(object: &[u8]) {
    let (Ok(_), Ok(footer)) = (Header::parse(object), Footer::parse(object)) else {
        return;
    };
    let Some(trailer) = footer.trailer_in(object) else {
        return;
    };
    let Ok(directory) = Directory::parse(&footer, trailer) else {
        return;
    };
    if footer.total_len != object.len() as u64 {
        return;
    }
    assert!(matches!(
        directory.header.kind,
        Kind::Manifest | Kind::Export
    ));
    for info in directory
        .sections
        .iter()
        .flat_map(|section| &section.segments)
    {
        let start = info.object_offset as usize;
        let bytes = &object[start..start + info.object_len as usize];
        let _ = info.open(bytes, &directory.packs);
        if let Ok(segment) = Segment::parse(bytes, info.section_len, &directory.packs) {
            assert_eq!(segment.len(), info.section_len);
            let again = segment
                .encode()
                .expect("what a reader accepts, a writer can write");
            assert_eq!(
                Segment::parse(&again, info.section_len, &directory.packs).as_ref(),
                Ok(&segment)
            );
        }
    }
}
