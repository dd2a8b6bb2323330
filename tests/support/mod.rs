//! What tests of the engine share: bytes to save, sources and targets in memory, and a snapshot's bytes read back.
#![allow(dead_code, unused_imports)]

pub mod azure;
pub mod backend;
pub mod extents;
pub mod mounting;
pub mod noise;
pub mod pages;
pub mod provisioned;
pub mod tool;
pub mod tree;

use std::{
    io::Cursor,
    sync::{Arc, Mutex},
};

pub use noise::{Noise, noise};
pub use provisioned::skipped;

use podsnap::{
    Error, Input, NewSection, Result, Role, SaveOptions, SaveStats, Snapshot, SnapshotId, Store,
    restore::{RestoreOptions, RestoreStats, Target},
    source::Source,
    verify::VerifyOptions,
};

/// `len` bytes of text that codecs like.
pub fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise(seed);
    let mut bytes = Vec::with_capacity(len + 32);
    while bytes.len() < len {
        bytes.extend_from_slice(format!("line {} of it\n", noise.below(5000)).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn id(text: &str) -> SnapshotId {
    text.parse().expect("a snapshot id")
}

/// Bytes that can be read anywhere.
pub struct MemorySource(pub Arc<Vec<u8>>);

impl Source for MemorySource {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// How bytes are handed to a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Source,
    Stream,
}

pub fn input(bytes: &[u8], way: Way) -> Input {
    match way {
        Way::Source => Input::Source(Arc::new(MemorySource(Arc::new(bytes.to_vec())))),
        Way::Stream => Input::stream(Cursor::new(bytes.to_vec()), "a stream"),
    }
}

/// A section `other:NAME` of these bytes.
pub fn blob(name: &str, bytes: &[u8]) -> NewSection {
    NewSection::blob(Role::Other, name, input(bytes, Way::Source))
}

pub async fn save(
    store: &Store,
    name: &str,
    sections: Vec<NewSection>,
    options: SaveOptions,
) -> Result<SaveStats> {
    let mut writer = store.save(&id(name), options).await?;
    for section in sections {
        writer.add(section).await?;
    }
    writer.finish().await
}

/// Saves one section `other:x`.
pub async fn save_one(store: &Store, name: &str, bytes: &[u8], options: SaveOptions) -> SaveStats {
    save(store, name, vec![blob("x", bytes)], options)
        .await
        .expect("a save")
}

pub fn on_base(base: &str) -> SaveOptions {
    SaveOptions {
        bases: vec![id(base)],
        ..SaveOptions::default()
    }
}

/// Takes a section into memory. What is never written keeps the filling that it began with.
#[derive(Clone)]
pub struct MemoryTarget(Arc<Mutex<Vec<u8>>>);

impl MemoryTarget {
    pub fn new(len: u64, filling: u8) -> Self {
        Self(Arc::new(Mutex::new(vec![filling; len as usize])))
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Target for MemoryTarget {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Restores all sections into memory.
pub async fn restore_all(
    store: &Store,
    snapshot: &Snapshot,
    options: &RestoreOptions,
) -> Result<(Vec<Vec<u8>>, RestoreStats)> {
    let targets: Vec<MemoryTarget> = snapshot
        .sections()
        .iter()
        .map(|s| MemoryTarget::new(s.length, 0))
        .collect();
    let shared = targets
        .iter()
        .cloned()
        .map(|t| Arc::new(t) as Arc<dyn Target>)
        .enumerate()
        .collect();
    let stats = snapshot.restore_to(store, shared, options).await?;
    Ok((targets.iter().map(MemoryTarget::bytes).collect(), stats))
}

/// The bytes of all sections of a snapshot that must be whole.
pub async fn restored(store: &Store, name: &str) -> Vec<Vec<u8>> {
    let snapshot = store.snapshot(&id(name)).await.expect("a snapshot");
    restore_all(store, &snapshot, &RestoreOptions::default())
        .await
        .expect("a restore")
        .0
}

/// Panics unless a snapshot verifies whole.
pub async fn assert_sound(store: &Store, name: &str) {
    let snapshot = store.snapshot(&id(name)).await.expect("a snapshot");
    let report = snapshot
        .verify(store, &VerifyOptions::default())
        .await
        .expect("a verification");
    assert!(report.is_sound(), "{name}: {:?}", report.damage);
}

/// Panics, showing where, unless the bytes are equal.
#[track_caller]
pub fn assert_bytes(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "length of {what}");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!(
            "{what}: byte {at} of {} is {}, not {}",
            found.len(),
            found[at],
            expected[at]
        );
    }
}

/// Whether the tests that take minutes or gigabytes are wanted.
pub fn long_tests() -> bool {
    std::env::var_os("PODSNAP_LONG_TESTS").is_some_and(|wanted| wanted == "1")
}

/// A runtime for tests that call `block_on` many times, as property tests do.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The error of something that must fail.
#[track_caller]
pub fn failure<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("it went through"),
        Err(e) => e,
    }
}
