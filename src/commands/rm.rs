//! `podsnap rm`: a snapshot goes away, and with it what nobody else needs.

use podsnap::{RemoveOptions, SnapshotId};

use crate::{context::Context, exit::Failure, report};

/// Remove a snapshot
///
/// It is gone at once. Data that other snapshots borrow, or that a save under way relies on, stays until `podsnap gc` finds that nobody
/// needs it any more.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap rm web-1
  podsnap rm web-1 --leave-packs    # restores that are under way can end")]
pub struct Args {
    /// The snapshot
    snapshot: SnapshotId,
    /// Leave all of its data to `podsnap gc`, so that restores that are under way can end
    #[arg(long)]
    leave_packs: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let options = RemoveOptions {
        leave_packs: args.leave_packs,
    };
    let store = context.store()?;
    let stats = tokio::select! {
        stats = store.remove_with(&args.snapshot, &options) => stats?,
        () = context.cancel.cancelled() => {
            return Err(Failure::interrupted().hint(format!(
                "podsnap inspect {} says whether it is still there; if not, podsnap gc removes the rest",
                args.snapshot
            )));
        }
    };
    context.report(&stats, || {
        let removed = format!(
            "{} removed: {}, {}\n",
            stats.snapshot,
            report::count(stats.objects, "object"),
            report::bytes(stats.bytes)
        );
        if stats.kept_objects == 0 {
            return removed;
        }
        let needed_by = match stats.needed_by.is_empty() {
            true => "left to podsnap gc".to_owned(),
            false => format!("needed by {}", stats.needed_by.join(", ")),
        };
        let kept = report::count(stats.kept_objects, "object");
        format!(
            "{removed}{kept}, {}, stay: {needed_by}\n",
            report::bytes(stats.kept_bytes)
        )
    })?;
    Ok(0)
}
