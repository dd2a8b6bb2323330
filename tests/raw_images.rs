//! Raw files of a gVisor image, as Google's checkpoint gofer leaves them: into a store and out of it again, in either direction.

mod support;

use std::{fs, path::Path, process::Command};

use podsnap_gcs_server::{AGENT_TOKEN, Config, GcsServer};
use support::{assert_bytes, noise, text, tool::*};

const FILES: [&str; 3] = ["checkpoint.img", "pages.img", "pages_meta.img"];

/// An image whose description is longer than what is read at first.
fn make_image(dir: &Path) {
    let description = format!(
        r#"{{"runsc_version":"test","container_specs":"{}"}}"#,
        "x".repeat(9000)
    );
    let len = (description.len() as u64).to_be_bytes();
    let checkpoint = [
        b"gVisorSF",
        &len[..],
        description.as_bytes(),
        &text(1, 70_000),
    ]
    .concat();
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("checkpoint.img"), checkpoint).unwrap();
    fs::write(dir.join("pages_meta.img"), text(2, 3000)).unwrap();
    let mut pages = noise(3, 20 << 20);
    pages[5 << 20..9 << 20].fill(0);
    fs::write(dir.join("pages.img"), pages).unwrap();
}

#[track_caller]
fn assert_same(found: &Path, expected: &Path) {
    assert_eq!(files(found), files(expected));
    for file in files(expected) {
        let (found, expected) = (found.join(&file), expected.join(&file));
        assert_bytes(
            &fs::read(found).unwrap(),
            &fs::read(expected).unwrap(),
            &file,
        );
    }
}

#[test]
fn raw_files_in_a_directory_become_a_snapshot_and_raw_files_again() {
    let tool = Tool::new();
    let image = tool.path("old/web-1");
    make_image(&image);
    let imported = tool.json(&["import", "old/web-1", "--group", "web"]);
    assert_eq!(imported["snapshot"], "web-1");
    tool.assert_sound("web-1");
    assert_same(&tool.restore("web-1", "restored"), &image);
    // It is what a save of the image directory is.
    tool.run(&["save", "saved", "old/web-1"]).ok();
    let sections = |id: &str| {
        let mut sections = tool.json(&["inspect", id])["sections"].clone();
        for section in sections.as_array_mut().unwrap() {
            section
                .as_object_mut()
                .unwrap()
                .retain(|key, _| ["title", "bytes", "raw_bytes"].contains(&key.as_str()));
        }
        sections
    };
    assert_eq!(sections("web-1"), sections("saved"));
    let description = |id: &str| tool.json(&["inspect", id])["gvisor"].clone();
    assert_eq!(description("web-1"), description("saved"));
    let said = tool.json(&["export", "web-1", "--raw", "new/web-9/"]);
    let len = |file: &&str| fs::metadata(image.join(file)).unwrap().len();
    assert_eq!(said["bytes"], FILES.iter().map(len).sum::<u64>());
    assert_same(&tool.path("new/web-9"), &image);
    // Nothing is overwritten, and nothing is left of the attempt.
    fs::remove_file(tool.path("new/web-9/pages.img")).unwrap();
    tool.run(&["export", "web-1", "--raw", "new/web-9"])
        .ends_with(4)
        .says(&["exists already"]);
    assert_eq!(
        files(&tool.path("new/web-9")),
        ["checkpoint.img", "pages_meta.img"]
    );
}

#[test]
fn what_is_no_image_is_neither_imported_nor_exported_raw() {
    let tool = Tool::new();
    fs::create_dir_all(tool.path("old/empty")).unwrap();
    tool.run(&["import", "old/empty"])
        .ends_with(3)
        .says(&["no files of an image"]);
    make_image(&tool.path("old/bad"));
    fs::write(tool.path("old/bad/checkpoint.img"), "gVisorSF").unwrap();
    assert_ne!(tool.run(&["import", "old/bad"]).code, Some(0));
    fs::write(
        tool.path("old/bad/checkpoint.img"),
        "something else that is long enough",
    )
    .unwrap();
    tool.run(&["import", "old/bad"])
        .ends_with(2)
        .says(&["not a gVisor checkpoint"]);
    assert!(tool.listed().is_empty());
    tool.file("ram", b"memory");
    tool.save("ram", &["memory=ram"]);
    tool.run(&["export", "ram", "--raw", "new/ram"])
        .ends_with(2)
        .says(&["no gVisor image"]);
    assert!(!tool.path("new/ram").exists());
    tool.run(&["export", "ram", "--raw", "gs://bucket"])
        .ends_with(2);
}

#[test]
fn raw_files_in_a_bucket_are_taken_in_and_written_by_an_agent() {
    let mut config = Config::tenant("snapshots", "tenant/");
    config.rules.mutations_per_second = 0.0;
    config.rules.md5 = false;
    let server = GcsServer::start(config).expect("a server on loopback");
    let tool = Tool::new();
    let image = tool.path("image");
    make_image(&image);
    let command = |args: &[&str]| -> Command {
        let mut command = tool.command(args);
        command
            .env("PODSNAP_STORE", "gs://snapshots/tenant/store")
            .env("STORAGE_EMULATOR_HOST", server.url())
            .env("CLOUDSDK_AUTH_ACCESS_TOKEN", AGENT_TOKEN);
        command
    };
    for file in FILES {
        let bytes = fs::read(image.join(file)).unwrap();
        server.put("snapshots", &format!("tenant/store/web-1/{file}"), &bytes);
    }
    // Beside the raw files, so that a fleet's options need not change.
    finish(command(&["import", "gs://snapshots/tenant/store/web-1/"])).ok();
    finish(command(&["verify", "web-1"])).ok();
    finish(command(&["restore", "web-1", "restored"])).ok();
    assert_same(&tool.path("restored"), &image);
    finish(command(&[
        "export",
        "web-1",
        "--raw",
        "gs://snapshots/tenant/back/web-1/",
    ]))
    .ok();
    let objects = server.objects("snapshots").into_iter().map(|o| o.name);
    let back: Vec<_> = objects.filter(|name| name.contains("/back/")).collect();
    assert_eq!(back, FILES.map(|file| format!("tenant/back/web-1/{file}")));
    for (name, file) in back.iter().zip(FILES) {
        let bytes = server.bytes("snapshots", name).unwrap();
        assert_bytes(&bytes, &fs::read(image.join(file)).unwrap(), file);
    }
}
