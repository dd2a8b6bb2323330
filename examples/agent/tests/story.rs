//! The story of a snapshot is played with real pods.

use std::{path::Path, process::Command};

#[test]
fn the_story_of_a_snapshot_comes_to_its_end() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let agent = Path::new(env!("CARGO_BIN_EXE_podsnap-example-agent"));
    let profile = agent.parent().and_then(Path::file_name).unwrap();
    if profile != "debug" {
        eprintln!("SKIPPED: the story of a snapshot: it is played in the dev profile only");
        return;
    }
    let target = agent.parent().and_then(Path::parent).unwrap();
    // Together with all tests, as these were built: another selection would build nearly everything once more, with other features.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--workspace", "--bins", "--tests"])
        .current_dir(&top)
        .env("CARGO_TARGET_DIR", target)
        .output()
        .expect("cargo runs");
    let log = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{log}");
    let output = Command::new("timeout")
        .args(["--kill-after=10", "600", "examples/story.sh"])
        .current_dir(&top)
        .env("CARGO_TARGET_DIR", target)
        .env("STORY_BUILT", "1")
        .output()
        .expect("timeout runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{said}");
    if said.contains("SKIPPED") {
        eprintln!("{said}");
        return;
    }
    assert!(told.ends_with("All came as it should.\n"), "{told}");
}
