//! Google's own Python client, its parallel transfers included.

use std::process::Command;

use podsnap_gcs_server::{Config, Operation};

use crate::programs::*;

#[test]
fn google_cloud_storage_for_python() {
    let python = cache().join("gcs-clients/bin/python");
    if !python.exists() {
        return skipped(
            "google-cloud-storage for Python is not there (tests/provision.sh --only gcs-clients)",
        );
    }
    let mut config = Config::closed(B);
    config.bucket(B).hierarchical_namespace = true;
    let server = patient(config);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.json");
    std::fs::write(&key, service_account(&server)).unwrap();
    succeed(
        Command::new(python)
            .args([
                "-I",
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/storage.py"),
            ])
            .arg(&key)
            .arg(dir.path())
            .env("STORAGE_EMULATOR_HOST", server.url()),
    );
    let log = server.log();
    for operation in [
        Operation::Token,
        Operation::BucketGet,
        Operation::InsertMultipart,
        Operation::ResumableChunk,
        Operation::Compose,
        Operation::Rewrite,
        Operation::Patch,
        Operation::List,
        Operation::Delete,
        Operation::XmlMultipartComplete,
        Operation::GetMedia,
    ] {
        assert!(
            log.count(operation) > 0,
            "no {operation:?}: {:?}",
            log.counts()
        );
    }
    assert!(server.objects(B).is_empty(), "{:?}", server.objects(B));
}
