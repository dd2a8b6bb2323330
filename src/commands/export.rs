//! `podsnap export`: a snapshot, with all it borrows, as one file, or as the raw files of a gVisor image.

use std::path::{Path, PathBuf};

use podsnap::{Progress, Snapshot, SnapshotId};
use serde::Serialize;

use crate::{
    args::RawPlace,
    context::Context,
    exit::Failure,
    output::{self, Output},
    progress::Doing,
    report,
};

/// Write a snapshot, with all it borrows, as one self-contained file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap export web-2 web-2.podsnap
  podsnap export web-2 - | ssh elsewhere 'cat > web-2.podsnap && podsnap import web-2.podsnap'
  podsnap export web-2 --raw gs://bucket/path/web-2/")]
pub struct Args {
    /// The snapshot
    snapshot: SnapshotId,
    /// The new file; - for standard output
    file: PathBuf,
    /// Write the raw files of a gVisor image, for Google's checkpoint gofer to restore from; FILE is a directory, or the URL of
    /// one in a bucket
    #[arg(long)]
    raw: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let snapshot = store.snapshot(&args.snapshot).await?;
    let progress = Progress::default();
    if args.raw {
        return run_raw(&args.file, &snapshot, context).await;
    }
    let to_stdout = args.file == Path::new("-");
    if to_stdout {
        if context.json {
            return Err(Failure::usage(
                "standard output cannot take both an export and JSON",
            ));
        }
        output::refuse_terminal()?;
    }
    let bar = context.bar(Doing::Exporting, &progress);
    if to_stdout {
        let (stdout, cancel) = (Output::default(), context.cancel.clone());
        let mut out = stdout.clone();
        let write = async move {
            snapshot
                .export_to(&store, &mut out, &progress, &cancel)
                .await?;
            Ok(())
        };
        let written = output::apart(write, &context.cancel).await?;
        return stdout.exit_code(written);
    }
    let stats = snapshot
        .export(&store, &args.file, &progress, &context.cancel)
        .await?;
    drop(bar);
    context.report(&stats, || {
        format!(
            "{} exported to {}: {}, {}\n  digest {}\n",
            stats.snapshot,
            args.file.display(),
            report::bytes(stats.bytes),
            report::count(stats.chunks, "chunk"),
            stats.digest
        )
    })?;
    Ok(0)
}

/// What `--raw` wrote.
#[derive(Serialize)]
struct Raw<'a> {
    snapshot: &'a str,
    bytes: u64,
}

async fn run_raw(to: &Path, snapshot: &Snapshot, context: &Context) -> Result<u8, Failure> {
    let place = RawPlace::parse(to)?;
    let store = context.store_at(&place.store)?;
    let progress = Progress::default();
    let bar = context.bar(Doing::Exporting, &progress);
    let cancel = &context.cancel;
    let bytes = snapshot
        .export_raw(&store, &place.id, &progress, cancel)
        .await?;
    drop(bar);
    let raw = Raw {
        snapshot: snapshot.id().as_str(),
        bytes,
    };
    context.report(&raw, || {
        format!(
            "{} exported to {}: {} as raw files\n",
            raw.snapshot,
            to.display(),
            report::bytes(bytes)
        )
    })?;
    Ok(0)
}
