//! rclone, which is written on Google's Go client for JSON.

use std::{fs, process::Command};

use podsnap_gcs_server::{Config, Operation};

use crate::programs::*;

#[test]
fn rclone() {
    if Command::new("rclone").arg("version").output().is_err() {
        return skipped("rclone is not installed (tests/provision.sh --only gcs-clients)");
    }
    let server = patient(Config::closed(B));
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key.json");
    fs::write(&key, service_account(&server)).unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("deep/er")).unwrap();
    // The second is beyond what rclone uploads in one request.
    fs::write(source.join("small"), bytes(1000)).unwrap();
    fs::write(source.join("deep/er/large"), bytes(17 << 20)).unwrap();
    fs::write(source.join("deep/empty"), b"").unwrap();
    let rclone = |arguments: &[&str]| {
        let mut command = Command::new("rclone");
        command
            .args(arguments)
            .env_remove("RCLONE_CONFIG")
            .args([
                "--config",
                "/dev/null",
                "--gcs-bucket-policy-only",
                "--retries=1",
                "--low-level-retries=3",
            ])
            .arg("--gcs-service-account-file")
            .arg(&key)
            .arg(format!("--gcs-endpoint={}/storage/v1/", server.url()));
        String::from_utf8(succeed(&mut command).stdout).unwrap()
    };
    let source = source.to_str().unwrap();
    rclone(&["sync", source, ":gcs:bucket/backup"]);
    assert_eq!(
        server.bytes(B, "backup/deep/er/large").unwrap(),
        bytes(17 << 20)
    );
    rclone(&["check", "--download", source, ":gcs:bucket/backup"]);
    rclone(&["check", source, ":gcs:bucket/backup"]);
    let listed = rclone(&["lsf", "-R", ":gcs:bucket/backup"]);
    assert_eq!(listed.lines().count(), 5, "{listed}");
    rclone(&[
        "moveto",
        ":gcs:bucket/backup/small",
        ":gcs:bucket/backup/moved",
    ]);
    let back = dir.path().join("back");
    rclone(&["copy", ":gcs:bucket/backup", back.to_str().unwrap()]);
    assert_eq!(fs::read(back.join("moved")).unwrap(), bytes(1000));
    rclone(&["purge", ":gcs:bucket/backup"]);
    assert!(server.objects(B).is_empty());
    let log = server.log();
    for operation in [
        Operation::Token,
        Operation::ResumableChunk,
        Operation::List,
        Operation::GetMedia,
    ] {
        assert!(
            log.count(operation) > 0,
            "no {operation:?}: {:?}",
            log.counts()
        );
    }
}
