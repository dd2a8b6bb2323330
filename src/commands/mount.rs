//! `podsnap mount`: a snapshot as a read-only file system, served until it is unmounted.

use std::path::PathBuf;

use podsnap::MountOptions;
use serde_json::json;

use crate::{args::Wanted, context::Context, exit::Failure, learning::Learning};

/// Show a snapshot as a read-only file system
///
/// What `podsnap restore` would write is there at once, and is fetched and checked when it is read: `runsc restore` resumes a pod from it before its
/// memory is here. Runs until `umount DIR`, Ctrl-C or SIGTERM; one line, or with --json one document, on standard output says when it is
/// mounted. Bytes that cannot be had or do not check out are I/O errors to who reads them, and lines on standard error.
///
/// What is read is recorded beside the snapshot, in order, and the next mount of it fetches that ahead; `podsnap inspect` shows it. Whatever
/// keeps it from doing so is a warning.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap mount web-2 /mnt/web                 # runsc restore --image-path /mnt/web [--background] ID
  podsnap mount job-7 /mnt/job --section rootfs
  podsnap mount file:web-2.podsnap /mnt/web")]
pub struct Args {
    #[command(flatten)]
    wanted: Wanted,
    /// An empty directory
    dir: PathBuf,
    #[command(flatten)]
    learning: Learning,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (_store, snapshot, sections) = context.open_wanted(&args.wanted).await?;
    let learner = args.learning.start(&snapshot, &sections)?;
    let mut options = MountOptions::default();
    options.sections = sections;
    let mount = learner
        .snapshot(&snapshot)
        .mount(&args.dir, &options)
        .await?;
    let (id, dir) = (snapshot.id(), mount.dir().display().to_string());
    let document = json!({ "snapshot": id.as_str(), "mounted_on": dir });
    let said = context.report(&document, || {
        format!("{id} is mounted on {dir}; Ctrl-C or umount ends it\n")
    });
    if said.is_ok() {
        tokio::select! {
            () = mount.wait() => {}
            () = context.cancel.cancelled() => {}
        }
    }
    mount.unmount().await?;
    learner.finish().await;
    said.map(|()| 0)
}
