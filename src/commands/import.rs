//! `podsnap import`: an exported snapshot goes into a store.

use std::path::PathBuf;

use podsnap::{SaveOptions, Snapshot, SnapshotId};

use crate::{commands::save::Report, context::Context, exit::Failure, progress::Doing, report};

/// Put an exported snapshot into the store
///
/// Everything in the file is checked on the way. Nothing is compressed anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap import web-2.podsnap
  podsnap import web-2.podsnap --as web-from-elsewhere")]
pub struct Args {
    /// A file that `podsnap export` wrote
    file: PathBuf,
    /// Id of the new snapshot [default: the one it had]
    #[arg(long = "as", value_name = "SNAPSHOT")]
    id: Option<SnapshotId>,
    /// Group whose newest snapshot it becomes
    #[arg(long)]
    group: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let snapshot = Snapshot::open_export(&args.file, context.key()).await?;
    let id = args.id.unwrap_or_else(|| snapshot.id().clone());
    let options = SaveOptions {
        group: args.group,
        cancel: context.cancel.clone(),
        ..SaveOptions::default()
    };
    let bar = context.bar(Doing::Importing, &options.progress);
    let stats = snapshot.copy_to(&store, &id, options).await?;
    drop(bar);
    context.report(&Report::of(&stats), || {
        format!(
            "{} imported: {} of sections, {} stored\n  digest {}\n",
            stats.snapshot,
            report::bytes(stats.raw_bytes),
            report::bytes(stats.stored_bytes()),
            stats.digest
        )
    })?;
    Ok(0)
}
