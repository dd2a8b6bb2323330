//! `podsnap ls`: what is in the store.

use std::time::{SystemTime, UNIX_EPOCH};

use podsnap::{Listed, Status, printable, printable_message};

use crate::{context::Context, exit::Failure, report};

/// List the store's snapshots, newest first
///
/// Those that are being saved, that could not be saved and that are being removed are listed too. POLICY is the PodSnapshotPolicy that a
/// snapshot was saved for.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap ls
  podsnap ls --wide
  podsnap ls --group web --json | jq -r '.[] | select(.status == \"available\") | .snapshot'")]
pub struct Args {
    /// Only snapshots of this group
    #[arg(long)]
    group: Option<String>,
    /// More columns: sizes, when it was last used, group, and whose data it borrows
    #[arg(long, short)]
    wide: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let mut listed = tokio::select! {
        listed = store.list() => listed?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted()),
    };
    if let Some(group) = &args.group {
        listed.retain(|s| s.group.as_ref() == Some(group));
    }
    context.show(&listed, || {
        if listed.is_empty() {
            return format!("no snapshots in {}\n", store.url());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_millis() as u64);
        let mut title = vec!["NAME", "STATUS", "POLICY", "AGE"];
        if args.wide {
            title.extend(["RAW", "STORED", "LAST USED", "GROUP", "BORROWS FROM"]);
        }
        let mut rows = vec![title.into_iter().map(str::to_owned).collect::<Vec<_>>()];
        rows.extend(listed.iter().map(|s| row(s, now, args.wide)));
        let right = [false, false, false, false, true, true];
        let mut text = report::table(&rows, &right);
        for s in &listed {
            if let Some(reason) = &s.reason {
                text.push_str(&format!("{}: {}\n", s.snapshot, printable_message(reason)));
            }
            if let Some(reason) = &s.pinned {
                let reason = printable_message(reason);
                text.push_str(&format!("{}: pinned: {reason}\n", s.snapshot));
            }
        }
        text
    })?;
    Ok(0)
}

fn row(listed: &Listed, now: u64, wide: bool) -> Vec<String> {
    let or_dash = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
    let age = |unix_ms: Option<u64>| match unix_ms {
        None | Some(0) => "-".to_owned(),
        Some(then) => report::age(now.saturating_sub(then)),
    };
    let mut row = vec![
        listed.snapshot.clone(),
        status(listed.status).to_owned(),
        or_dash(&listed.policy),
        age(Some(listed.created_unix_ms)),
    ];
    if wide {
        row.extend([
            report::bytes(listed.raw_bytes),
            report::bytes(listed.stored_bytes),
            age(listed.last_used_unix_ms),
            or_dash(&listed.group),
            listed.borrows_from.join(", "),
        ]);
    }
    row
}

fn status(status: Status) -> &'static str {
    match status {
        Status::Saving => "Saving",
        Status::Available => "Available",
        Status::Failed => "Failed",
        Status::Deleting => "Deleting",
        _ => "Unknown",
    }
}
