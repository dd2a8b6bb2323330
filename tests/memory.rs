//! A save and a restore need little memory, however large the snapshot and whatever a store claims to hold.

mod support;

use std::{env, fs, path::Path, process::Command, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use podsnap::{
    ErrorKind, Input, NewSection, OpenOptions, Result, Role, SaveOptions, Shape, Store, chunking,
    format::{
        Footer, HEADER_LEN, Header, Kind,
        manifest::{Directory, Extent, ManifestBuilder, SectionBuilder, SectionInfo, Segment},
    },
    restore::{RestoreOptions, Target},
    store::{
        Backend, Condition, ObjectMeta, ObjectWriter, ReadBytes, ReadRange, RemoteBackend, Version,
    },
    verify::VerifyOptions,
};
use support::{
    pages::{Comparing, Pages},
    *,
};

/// What the child process is to do.
const TASK: &str = "PODSNAP_TEST_MEMORY_TASK";
/// The directory of its store.
const STORE: &str = "PODSNAP_TEST_MEMORY_STORE";

const MIB: u64 = 1 << 20;

/// The index of a save or a restore: what it must remember until its end, for each extent of the snapshot. Measured at 8 GiB with
/// 167,000 extents and 52,000 chunks: 125 bytes while saving; tables that grow take up to twice what is in them.
const INDEX_BYTES_PER_EXTENT: u64 = 320;

fn section_len() -> u64 {
    if long_tests() { 8 << 30 } else { 512 << 20 }
}

/// What may be needed beside the index.
fn budget() -> u64 {
    if long_tests() {
        return 512 * MIB;
    }
    // Each thread has buffers. Of the section less than this fits in.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    (64 * MIB + threads * 12 * MIB).min(400 * MIB)
}

fn open(dir: &Path) -> Store {
    let options = OpenOptions {
        sync: false,
        ..OpenOptions::default()
    };
    Store::open_with(dir.to_str().unwrap(), &options, None).unwrap()
}

/// Not a test of its own: what the child processes do.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(task), Ok(dir)) = (env::var(TASK), env::var(STORE)) else {
        return;
    };
    let store = open(Path::new(&dir));
    match task.as_str() {
        "save" => {
            let pages = Input::Source(Arc::new(Pages::new(section_len())));
            let sections = vec![NewSection::blob(Role::Memory, "", pages)];
            let stats = save(&store, "s", sections, SaveOptions::default())
                .await
                .unwrap();
            assert_eq!(stats.raw_bytes, section_len());
            // At most 0.1 % of the raw bytes.
            assert!(stats.manifest_bytes * 1000 <= stats.raw_bytes, "{stats:?}");
            println!("{stats:?}");
        }
        "restore" => {
            let snapshot = store.snapshot(&id("s")).await.unwrap();
            let target = Arc::new(Comparing::new(Pages::new(section_len())));
            let targets = vec![(0, target.clone() as Arc<dyn Target>)];
            let options = RestoreOptions::default();
            let stats = snapshot
                .restore_to(&store, targets, &options)
                .await
                .unwrap();
            assert_eq!(target.compared(), section_len() - stats.zero_bytes);
        }
        "verify" => {
            let snapshot = store.snapshot(&id("s")).await.unwrap();
            let report = snapshot
                .verify(&store, &VerifyOptions::default())
                .await
                .unwrap();
            assert!(report.is_sound(), "{report:?}");
        }
        "hostile" => hostile().await,
        task => panic!("{task}"),
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    println!("{peak}");
}

/// Peak of resident memory, in bytes, of a process that does `task`.
fn peak(task: &str, dir: &Path) -> u64 {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(TASK, task)
        .env(STORE, dir)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{task}: {text}{errors}");
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kilobytes.parse::<u64>().unwrap() << 10
}

/// Extents of the manifest at `path`.
fn extents(path: &Path) -> u64 {
    let manifest = fs::read(path).unwrap();
    let footer = Footer::parse(&manifest).unwrap();
    let directory = Directory::parse(&footer, footer.trailer_in(&manifest).unwrap()).unwrap();
    let segments = directory.sections[0].segments.iter();
    let extents = segments.map(|info| {
        let bytes = &manifest[info.object_offset as usize..][..info.object_len as usize];
        info.open(bytes, &directory.packs).unwrap().extents.len() as u64
    });
    extents.sum()
}

#[test]
fn the_memory_of_a_save_does_not_grow_with_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let saving = peak("save", &store);
    let extents = extents(&store.join("s/manifest"));
    let bound = budget() + extents * INDEX_BYTES_PER_EXTENT;
    let restoring = peak("restore", &store);
    let verifying = peak("verify", &store);
    println!(
        "{} MiB, {extents} extents: saving took {} MiB, restoring {}, verifying {}; {} allowed",
        section_len() / MIB,
        saving / MIB,
        restoring / MIB,
        verifying / MIB,
        bound / MIB,
    );
    assert!(
        saving <= bound,
        "saving took {} MiB, {} are allowed",
        saving / MIB,
        bound / MIB
    );
    assert!(
        restoring <= bound,
        "restoring took {} MiB, {} are allowed",
        restoring / MIB,
        bound / MIB
    );
    assert!(
        verifying <= bound,
        "verifying took {} MiB, {} are allowed",
        verifying / MIB,
        bound / MIB
    );
}

/// A target that anything can be written to.
struct Nowhere;

impl Target for Nowhere {
    fn write_at(&self, _: &[u8], _: u64) -> Result<()> {
        Ok(())
    }
}

/// A manifest of one section without chunks: all zeros, of which the last `table_length` bytes claim to be the table of a tree.
fn zeros(len: u64, table_length: u64) -> Vec<u8> {
    let header = Header::new(Kind::Manifest, id("s"), 1);
    let mut built = SectionBuilder::new();
    let segment = Segment {
        chunks: Vec::new(),
        extents: vec![Extent::Zero { len }],
    };
    built.push(&segment).unwrap();
    let shape = if table_length > 0 {
        Shape::Tree
    } else {
        Shape::Blob
    };
    let info = SectionInfo {
        table_length,
        ..SectionInfo::new(Role::Rootfs, "", shape, chunking::fixed(4096))
    };
    let mut builder = ManifestBuilder::new(header.clone(), HEADER_LEN as u64);
    builder.section(info, built);
    let built = builder.finish("{}", &[]).unwrap();
    [header.encode().to_vec(), built.bytes].concat()
}

async fn store_of(name: &str, manifest: Vec<u8>) -> Store {
    let store = Store::open(&format!("memory://{name}")).unwrap();
    let put = store
        .backend()
        .put("s/manifest", manifest.into(), Condition::Absent);
    put.await.unwrap();
    store
}

/// Everything that is small in a store and says that it is large.
async fn hostile() {
    let restore = RestoreOptions::default();
    // An entry table of zeros.
    for (name, table) in [("table", 1 << 30), ("smaller-table", 256 << 20)] {
        let store = store_of(name, zeros(table, table)).await;
        let snapshot = store.snapshot(&id("s")).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        let e = failure(snapshot.restore(&store, &to, &restore).await);
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
        assert!(e.to_string().contains("entry table"), "{e}");
    }
    // Zeros without end.
    let store = store_of("zeros", zeros((1 << 62) - 1, 0)).await;
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    snapshot
        .restore_to(&store, vec![(0, Arc::new(Nowhere))], &restore)
        .await
        .unwrap();
    let mut page = [1; 4096];
    snapshot
        .reader(0)
        .read_at(&mut page, 1 << 61)
        .await
        .unwrap();
    assert_eq!(page, [0; 4096]);
    let dir = tempfile::tempdir().unwrap();
    let e = failure(
        snapshot
            .restore(&store, &dir.path().join("to"), &restore)
            .await,
    );
    assert_eq!(e.kind(), ErrorKind::Target, "{e}");

    // One chunk of 4 MiB that takes next to nothing, in a thousand places.
    let store = Store::open("memory://bomb").unwrap();
    let section = NewSection {
        chunking: Some(chunking::fixed(4 << 20)),
        ..NewSection::blob(
            Role::Other,
            "x",
            Input::Source(Arc::new(Ones(1000 * (4 << 20)))),
        )
    };
    let stats = save(&store, "s", vec![section], SaveOptions::default())
        .await
        .unwrap();
    assert!(stats.pack_bytes < 20_000, "{stats:?}");
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    snapshot
        .restore_to(&store, vec![(0, Arc::new(Nowhere))], &restore)
        .await
        .unwrap();

    // A store that says of its objects what it likes.
    let lying = |footer: Option<Footer>, len| {
        let inner = RemoteBackend::memory("bomb");
        Store::from_backend("lying", Arc::new(Lying { inner, footer, len }), None)
    };
    let long = Footer {
        kind: Kind::Manifest,
        trailer_offset: 1 << 40,
        trailer_len: 64 << 20,
        total_len: (1 << 40) + (64 << 20) + 80,
        trailer_hash: [7; 32],
        frames_end: HEADER_LEN as u64,
    };
    let e = failure(
        lying(Some(long.clone()), long.total_len)
            .snapshot(&id("s"))
            .await,
    );
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    let longer = Footer {
        trailer_len: 1 << 39,
        total_len: (1 << 40) + (1 << 39) + 80,
        ..long
    };
    let e = failure(
        lying(Some(longer.clone()), longer.total_len)
            .snapshot(&id("s"))
            .await,
    );
    assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    // A pack without end is verified up to the end that the manifest names.
    let store = lying(None, 1 << 60);
    let snapshot = store.snapshot(&id("s")).await.unwrap();
    let report = snapshot
        .verify(&store, &VerifyOptions::default())
        .await
        .unwrap();
    assert_eq!(report.chunks, 1, "{report:?}");
    assert!(report.damage.iter().all(|damage| damage.lost.is_empty()) && !report.is_sound());
}

struct Ones(u64);

impl podsnap::source::Source for Ones {
    fn len(&self) -> u64 {
        self.0
    }

    fn read_at(&self, buf: &mut [u8], _: u64) -> Result<()> {
        buf.fill(1);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// A backend that makes up lengths, and the end of the manifest if it has a footer for it.
#[derive(Debug)]
struct Lying {
    inner: RemoteBackend,
    footer: Option<Footer>,
    len: u64,
}

impl Lying {
    fn meta(&self, name: &str) -> ObjectMeta {
        ObjectMeta {
            name: name.to_owned(),
            len: self.len,
            version: Version::default(),
        }
    }
}

#[async_trait]
impl Backend for Lying {
    async fn read(
        &self,
        name: &str,
        range: ReadRange,
        version: Option<&Version>,
    ) -> Result<ReadBytes> {
        let Some(footer) = self.footer.as_ref().filter(|_| name == "s/manifest") else {
            return self.inner.read(name, range, version).await;
        };
        let (offset, len) = match range {
            ReadRange::Exact(range) => (range.start, range.end - range.start),
            ReadRange::Suffix(len) => (self.len - len, len),
        };
        let mut bytes = vec![0; len as usize];
        if offset + len == self.len {
            let at = bytes.len() - 80;
            bytes[at..].copy_from_slice(&footer.encode());
        }
        Ok(ReadBytes {
            bytes: bytes.into(),
            offset,
            meta: self.meta(name),
        })
    }

    async fn head(&self, name: &str) -> Result<ObjectMeta> {
        Ok(self.meta(name))
    }

    async fn put(&self, name: &str, bytes: Bytes, condition: Condition) -> Result<ObjectMeta> {
        self.inner.put(name, bytes, condition).await
    }

    async fn create(&self, name: &str) -> Result<Box<dyn ObjectWriter>> {
        self.inner.create(name).await
    }

    async fn delete(&self, name: &str, version: Option<&Version>) -> Result<()> {
        self.inner.delete(name, version).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix).await
    }

    fn read_len(&self) -> u64 {
        self.inner.read_len()
    }

    fn reads_at_once(&self) -> usize {
        self.inner.reads_at_once()
    }

    fn pack_len(&self) -> u64 {
        self.inner.pack_len()
    }
}

#[test]
fn what_is_only_claimed_takes_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let peak = peak("hostile", dir.path());
    println!("hostile: {} MiB", peak / MIB);
    assert!(peak <= 512 * MIB, "{} MiB", peak / MIB);
}
