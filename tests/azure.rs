//! Snapshots on Azure, through a small Blob Storage of our own: what the generic path to other clouds' stores does.

mod support;

use std::process::Command;

use support::{azure::Azure, noise, tool::*};

fn command(tool: &Tool, azure: &Azure, args: &[&str]) -> Command {
    let mut command = tool.command(args);
    command
        .env("PODSNAP_STORE", "az://container/store")
        .env("AZURE_STORAGE_ACCOUNT_NAME", "account")
        .env("AZURE_STORAGE_ENDPOINT", azure.url())
        .env("AZURE_ALLOW_HTTP", "true")
        .env("AZURE_SKIP_SIGNATURE", "true");
    command
}

fn run(tool: &Tool, azure: &Azure, args: &[&str]) -> Outcome {
    finish(command(tool, azure, args))
}

#[test]
fn packs_go_up_in_several_blocks_at_once_and_come_back() {
    let (tool, azure) = (Tool::new(), Azure::start());
    // Three blocks and some.
    let bytes = noise(1, 50 << 20);
    tool.file("x", &bytes);
    run(&tool, &azure, &["save", "a", "other=x"]).ok();
    assert_eq!(azure.count("PUT", "comp=blocklist"), 1);
    assert_eq!(azure.count("PUT", "comp=block&"), 4);
    let most = azure.most_blocks();
    assert!((2..=8).contains(&most), "{most} blocks at once");
    let names = azure.names();
    assert_eq!(names.len(), 2, "a pack and a manifest: {names:?}");

    // The ends of objects are read as well, which this service only does when it is told where they are.
    run(&tool, &azure, &["verify", "a"]).ok();
    run(&tool, &azure, &["restore", "a", "out"]).ok();
    assert!(std::fs::read(tool.path("out/other")).unwrap() == bytes);

    // What is short goes whole.
    tool.file("y", &[&bytes[..], b"and more"].concat());
    run(&tool, &azure, &["save", "b", "--base", "a", "other=y"]).ok();
    assert_eq!(azure.count("PUT", "comp=blocklist"), 1);
    run(&tool, &azure, &["restore", "b", "again"]).ok();
    assert!(
        std::fs::read(tool.path("again/other"))
            .unwrap()
            .ends_with(b"and more")
    );
}

#[test]
fn a_block_that_is_refused_ends_the_save_and_leaves_nothing() {
    let (tool, azure) = (Tool::new(), Azure::start());
    tool.file("x", &noise(2, 40 << 20));
    azure.refuse_blocks(1);
    run(&tool, &azure, &["save", "a", "other=x"])
        .ends_with(4)
        .says(&["the store refuses access to a/pack-"]);
    assert_eq!(azure.count("PUT", "comp=blocklist"), 0);
    assert_eq!(azure.names(), [""; 0]);
    run(&tool, &azure, &["save", "a", "other=x"]).ok();
    run(&tool, &azure, &["verify", "a"]).ok();
}

#[test]
fn what_nobody_needs_is_deleted_though_listings_write_versions_in_their_own_way() {
    let (tool, azure) = (Tool::new(), Azure::start());
    let packs = |id: &str| {
        let of_id = format!("{id}/pack-");
        let names = azure.names();
        names.iter().filter(|name| name.contains(&of_id)).count()
    };
    tool.file("x", &noise(3, 1 << 20));
    for id in ["a", "b"] {
        run(&tool, &azure, &["save", id, "other=x"]).ok();
    }
    run(&tool, &azure, &["rm", "a"]).ok();
    assert_eq!((packs("a"), packs("b")), (0, 1));
    run(&tool, &azure, &["rm", "b", "--leave-packs"]).ok();
    for left in [1, 0] {
        run(&tool, &azure, &["gc", "--grace", "0s"]).ok();
        assert_eq!(packs("b"), left);
    }
    assert_eq!(azure.names(), [""; 0]);
}
