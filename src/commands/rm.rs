//! `podsnap rm`: a snapshot that nobody needs goes away.

use podsnap::SnapshotId;

use crate::{context::Context, exit::Failure, report};

/// Remove a snapshot that no other one borrows from
///
/// If another snapshot, or a save that is under way, needs its data, nothing is removed and the exit code is 4.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  podsnap rm web-1")]
pub struct Args {
    /// The snapshot
    snapshot: SnapshotId,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let stats = context.store()?.remove(&args.snapshot).await?;
    context.report(&stats, || {
        format!(
            "{} removed: {}, {}\n",
            stats.snapshot,
            report::count(stats.objects, "object"),
            report::bytes(stats.bytes)
        )
    })?;
    Ok(0)
}
