//! `podsnap import`: an exported snapshot, or the raw files of a gVisor image, go into a store.

use std::path::{Path, PathBuf};

use podsnap::{SaveOptions, SaveStats, Snapshot, SnapshotId, gvisor::RawImage};

use crate::{
    args::RawPlace, commands::save::Report, context::Context, exit::Failure, progress::Doing,
    report,
};

/// Put an exported snapshot into the store
///
/// Everything in the file is checked on the way. Nothing is compressed anew. Raw files of a gVisor image, as Google's checkpoint gofer
/// leaves them in a bucket, become a snapshot like any other; nothing in them can be checked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap import web-2.podsnap
  podsnap import web-2.podsnap --as web-from-elsewhere
  podsnap import gs://bucket/path/web-1/ --group web")]
pub struct Args {
    /// A file that `podsnap export` wrote, or where raw files are: a directory, or the URL of one in a bucket
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Id of the new snapshot [default: the one it had]
    #[arg(long = "as", value_name = "SNAPSHOT")]
    id: Option<SnapshotId>,
    /// Group whose newest snapshot it becomes
    #[arg(long)]
    group: Option<String>,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let options = SaveOptions {
        group: args.group,
        cancel: context.cancel.clone(),
        ..SaveOptions::default()
    };
    let bar = context.bar(Doing::Importing, &options.progress);
    let stats = if is_raw(&args.from) {
        import_raw(&args.from, args.id, options, context).await?
    } else {
        let store = context.store()?;
        let snapshot = Snapshot::open_export(&args.from, context.key()).await?;
        let id = args.id.unwrap_or_else(|| snapshot.id().clone());
        snapshot.copy_to(&store, &id, options).await?
    };
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

/// Whether this is where raw files are, and no export.
fn is_raw(from: &Path) -> bool {
    from.to_str().is_some_and(|from| from.contains("://")) || from.is_dir()
}

async fn import_raw(
    from: &Path,
    id: Option<SnapshotId>,
    options: SaveOptions,
    context: &Context,
) -> Result<SaveStats, Failure> {
    let place = RawPlace::parse(from)?;
    let raw = RawImage::open(&context.store_at(&place.store)?, &place.id).await?;
    let options = SaveOptions {
        gvisor: raw.description().await?,
        ..options
    };
    let id = id.unwrap_or(place.id);
    let mut writer = context.store()?.save(&id, options).await?;
    for section in raw.sections() {
        if let Err(e) = writer.add(section).await {
            // The process ends too soon for a writer that is merely dropped to remove what it wrote.
            let _ = writer.abort().await;
            return Err(e.into());
        }
    }
    Ok(writer.finish().await?)
}
