//! `podsnap ls`: what is in the store.

use podsnap::{Listed, printable, printable_message};

use crate::{context::Context, exit::Failure, report};

/// List the store's snapshots, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap ls
  podsnap ls --group web --json | jq -r '.[].snapshot'")]
pub struct Args {
    /// Only snapshots of this group
    #[arg(long)]
    group: Option<String>,
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
        let title = [
            "SNAPSHOT",
            "CREATED (UTC)",
            "RAW",
            "STORED",
            "GROUP",
            "BORROWS FROM",
        ];
        let mut rows = vec![title.map(str::to_owned).to_vec()];
        rows.extend(listed.iter().map(row));
        report::table(&rows, &[false, false, true, true])
    })?;
    Ok(0)
}

fn row(listed: &Listed) -> Vec<String> {
    if let Some(problem) = &listed.problem {
        let stored = report::bytes(listed.stored_bytes);
        return vec![
            listed.snapshot.clone(),
            "?".to_owned(),
            "?".to_owned(),
            stored,
            "?".to_owned(),
            printable_message(problem),
        ];
    }
    vec![
        listed.snapshot.clone(),
        report::date(listed.created_unix_ms),
        report::bytes(listed.raw_bytes),
        report::bytes(listed.stored_bytes),
        printable(listed.group.as_deref().unwrap_or("-")),
        listed.borrows_from.join(", "),
    ]
}
