//! `podsnap export`: a snapshot, with all it borrows, as one file.

use std::path::{Path, PathBuf};

use podsnap::{Progress, SnapshotId};

use crate::{
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
  podsnap export web-2 - | ssh elsewhere 'cat > web-2.podsnap && podsnap import web-2.podsnap'")]
pub struct Args {
    /// The snapshot
    snapshot: SnapshotId,
    /// The new file; - for standard output
    file: PathBuf,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let snapshot = store.snapshot(&args.snapshot).await?;
    let progress = Progress::default();
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
