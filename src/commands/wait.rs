//! `podsnap wait`: a save that somebody else does comes to its end.

use std::time::Duration;

use podsnap::SnapshotId;
use serde::Serialize;

use crate::{context::Context, exit::Failure};

/// Wait until a save that somebody else does is committed
///
/// Ends with exit code 3 when the save was given up or its process has died. For a gVisor pod whose checkpoint is acknowledged
/// when it is captured, this is how one learns that it is in the store.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  podsnap wait web-1 --timeout 600 && podsnap verify web-1")]
pub struct Args {
    /// The snapshot
    snapshot: SnapshotId,
    /// Wait no longer than this, and end with exit code 1 then
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// What came of it.
#[derive(Serialize)]
struct Committed<'a> {
    snapshot: &'a str,
    digest: String,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let waiting = store.wait(&args.snapshot, &context.cancel);
    let snapshot = match args.timeout {
        None => waiting.await?,
        Some(seconds) => tokio::time::timeout(Duration::from_secs(seconds), waiting)
            .await
            .map_err(|_| {
                Failure::other(format!(
                    "{} is still being saved after {seconds} s",
                    args.snapshot
                ))
            })??,
    };
    let committed = Committed {
        snapshot: snapshot.id().as_str(),
        digest: snapshot.digest().to_string(),
    };
    context.report(&committed, || {
        let (snapshot, digest) = (committed.snapshot, &committed.digest);
        format!("{snapshot} is committed\n  digest {digest}\n")
    })?;
    Ok(0)
}
