//! Manifests and exports that nobody's save wrote: every checksum is right, what they say is not.

use podsnap::{
    ErrorKind, Result, Role, Shape, Snapshot, SnapshotId, Store, chunking,
    format::{
        ChunkId, HEADER_LEN, Header, Kind,
        codec::{Codec, Encoder, Policy},
        frame::append_frame,
        manifest::{
            Chunk, Extent, Location, ManifestBuilder, PackInfo, SectionBuilder, SectionInfo,
            Segment,
        },
        pack::PackIndexBuilder,
    },
    restore::RestoreOptions,
    store::Condition,
    verify::VerifyOptions,
};

use crate::support::*;

/// An object whose one section is made of the chunks, whole, one after another.
fn object(header: Header, body: Vec<u8>, packs: &[PackInfo], segments: &[Segment]) -> Vec<u8> {
    let head = [header.encode().to_vec(), body].concat();
    let mut builder = ManifestBuilder::new(header, head.len() as u64);
    let mut built = SectionBuilder::new();
    for segment in segments {
        built.push(segment).unwrap();
    }
    let info = SectionInfo::new(Role::Other, "x", Shape::Blob, chunking::fixed(512));
    builder.section(info, built);
    [head, builder.finish("{}", packs).unwrap().bytes].concat()
}

/// A segment of extents that each are a range of a chunk.
fn segment(chunks: Vec<Chunk>, extents: &[(u32, u32, u32)]) -> Segment {
    let extents = extents
        .iter()
        .map(|&(chunk, start, len)| Extent::Chunk { chunk, start, len });
    Segment {
        chunks,
        extents: extents.collect(),
    }
}

fn chunk(bytes: &[u8], offset: u64) -> Chunk {
    Chunk {
        id: ChunkId::of(bytes, None),
        raw_len: bytes.len() as u32,
        codec: Codec::Raw,
        location: Location {
            pack: 0,
            offset,
            encoded_len: bytes.len() as u32,
        },
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    append_frame(&mut frame, bytes, &mut Encoder::new(Policy::None), None);
    frame
}

fn header(kind: Kind) -> Header {
    Header::new(kind, id("s"), 7)
}

/// A pack of one frame.
fn pack(bytes: &[u8]) -> (PackInfo, Vec<u8>) {
    let header = header(Kind::Pack);
    let name = header.pack_name().to_string();
    let mut index = PackIndexBuilder::new(header.clone());
    index.push(
        &ChunkId::of(bytes, None),
        Codec::Raw,
        bytes.len() as u32,
        bytes.len() as u32,
    );
    let mut pack = [header.encode().to_vec(), frame(bytes)].concat();
    pack.extend(index.finish(pack.len() as u64).unwrap());
    let info = PackInfo {
        snapshot: id("s"),
        name,
        version: String::new(),
        length: pack.len() as u64,
        crc32c: crc32c(&pack),
    };
    (info, pack)
}

/// The CRC-32C, bit by bit: nothing here is long.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// Reads all that can be read. What is lost is lost by an error, never by a panic, and never replaced by other bytes.
async fn read_all(store: &Store, snapshot: &Snapshot, expected: Option<&[u8]>) {
    let strict = restore_all(store, snapshot, &RestoreOptions::default()).await;
    let report = snapshot
        .verify(store, &VerifyOptions::default())
        .await
        .unwrap();
    match expected {
        Some(expected) => {
            assert_bytes(&strict.unwrap().0[0], expected, "x");
            assert!(report.is_sound(), "{report:?}");
        }
        None => {
            assert_eq!(failure(strict).kind(), ErrorKind::Damaged);
            assert!(!report.is_sound());
        }
    }
    let options = RestoreOptions {
        salvage: true,
        ..RestoreOptions::default()
    };
    let (_, stats) = restore_all(store, snapshot, &options).await.unwrap();
    assert_eq!(stats.damage.is_empty(), expected.is_some(), "{stats:?}");
    let mut page = [0; 100];
    let reader = snapshot.reader(0);
    for at in (0..reader.len().saturating_sub(100)).step_by(50_000) {
        let _ = reader.read_at(&mut page, at).await;
    }
    let exported = snapshot
        .export_to(
            store,
            &mut Vec::new(),
            &Default::default(),
            &Default::default(),
        )
        .await;
    assert_eq!(exported.is_ok(), expected.is_some(), "{exported:?}");
}

async fn manifest(
    name: &str,
    pack: Option<(PackInfo, Vec<u8>)>,
    segments: &[Segment],
) -> (Store, Result<Snapshot>) {
    let store = Store::open(&format!("memory://made-up-{name}")).unwrap();
    let s: SnapshotId = id("s");
    let put = |name: String, bytes: Vec<u8>| {
        store
            .backend()
            .put(leak(name), bytes.into(), Condition::Absent)
    };
    let mut packs = Vec::new();
    if let Some((info, bytes)) = pack {
        put(format!("s/{}", info.name), bytes).await.unwrap();
        packs.push(info);
    }
    let manifest = object(header(Kind::Manifest), Vec::new(), &packs, segments);
    put("s/manifest".into(), manifest).await.unwrap();
    let opened = store.snapshot(&s).await;
    (store, opened)
}

fn leak(name: String) -> &'static str {
    name.leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_up_here_can_be_right() {
    let bytes = noise(1, 600);
    let right = segment(vec![chunk(&bytes, 192)], &[(0, 0, 600), (0, 100, 300)]);
    let (store, snapshot) = manifest("right", Some(pack(&bytes)), &[right]).await;
    let expected = [&bytes[..], &bytes[100..400]].concat();
    read_all(&store, &snapshot.unwrap(), Some(&expected)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_chunks_in_one_place() {
    let (short, long) = (noise(1, 600), noise(2, 5000));
    // In one segment or in two: the second is longer than what stands there, and its end is asked for.
    let both = vec![chunk(&short, 192), chunk(&long, 192)];
    let mut info = pack(&short);
    info.0.length = info.1.len() as u64;
    let mut padded = pack(&[&short[..], &noise(3, 5000)].concat());
    let length = padded.0.length;
    // The pack holds the short one, and is long enough to hold the long one.
    let mut bytes = padded.1.clone();
    bytes[192..192 + 612].copy_from_slice(&frame(&short));
    padded = (PackInfo { length, ..padded.0 }, bytes);
    let in_one = segment(both.clone(), &[(0, 0, 600), (1, 4000, 1000)]);
    let (store, snapshot) = manifest("two-in-one", Some(padded.clone()), &[in_one]).await;
    read_all(&store, &snapshot.unwrap(), None).await;
    let in_two = [
        segment(vec![both[0]], &[(0, 0, 600)]),
        segment(vec![both[1]], &[(0, 4000, 1000)]),
    ];
    let (store, snapshot) = manifest("two-in-two", Some(padded), &in_two).await;
    read_all(&store, &snapshot.unwrap(), None).await;
}

/// The index and the frame say how long the frame is; the manifest says less.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_another_length_than_the_manifest_says() {
    let bytes = noise(1, 600);
    let mut shorter = chunk(&bytes, 192);
    shorter.codec = Codec::Zstd;
    shorter.location.encoded_len = 500;
    let wrong = segment(vec![shorter], &[(0, 0, 600)]);
    let (store, snapshot) = manifest("shorter", Some(pack(&bytes)), &[wrong]).await;
    read_all(&store, &snapshot.unwrap(), None).await;
}

/// An export of frames that lie across each other and across what is read at once.
#[tokio::test(flavor = "multi_thread")]
async fn frames_that_overlap() {
    const LONG: usize = 4 << 20;
    let bytes = noise(1, LONG);
    let body = [frame(&bytes), frame(&bytes[..100])].concat();
    let header = header(Kind::Export);
    let end = (HEADER_LEN + body.len()) as u64;
    let info = PackInfo {
        snapshot: id("s"),
        name: String::new(),
        version: String::new(),
        length: end,
        crc32c: crc32c(&[header.encode().to_vec(), body.clone()].concat()),
    };
    let within = |offset: u64| Chunk {
        codec: Codec::Raw,
        ..chunk(&bytes[..1000], offset)
    };
    let chunks = vec![
        chunk(&bytes, 192),
        within(192 + (3 << 19)),
        within(192 + (3 << 20)),
    ];
    let len = LONG as u32;
    let wrong = segment(chunks, &[(0, 0, len), (1, 0, 1000), (2, 0, 1000)]);
    let export = object(header, body, &[info], &[wrong]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.podsnap");
    std::fs::write(&path, export).unwrap();
    let store = Store::open("memory://made-up-overlap").unwrap();
    let snapshot = Snapshot::open_export(&path, None).await.unwrap();
    read_all(&store, &snapshot, None).await;
}
