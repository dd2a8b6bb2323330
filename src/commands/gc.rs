//! `podsnap gc`: what nobody needs any more goes away, in a second pass.

use std::time::Duration;

use podsnap::{
    CollectOptions, CollectStats, CollectionPlan, Error, Garbage, printable, printable_message,
};

use crate::{context::Context, exit::Failure, report};

/// Delete what no snapshot and no save needs any more
///
/// Garbage is what removed snapshots left to those that borrowed from them, and what killed saves left. A pass notes what it finds in the
/// store; what is still garbage when a later pass looks, after the time of grace, is deleted. Run it every day, from anywhere, also beside
/// savers, restorers and other collectors. If anything in the store cannot be read, nothing is deleted. It needs the right to
/// list the store's objects. Interrupted, it ends when what is being deleted is, and says what was done.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap gc --dry-run
  podsnap gc --grace 36h --json | jq .done.deleted_bytes")]
pub struct Args {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// How long garbage stays after it was first seen: longer than any restore, and than clocks differ
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_time)]
    grace: Duration,
}

/// Objects that could not be deleted of which each is shown; all are in the JSON document.
const FAILED_SHOWN: usize = 20;

#[derive(serde::Serialize)]
struct Document<'a> {
    plan: &'a CollectionPlan,
    /// Nothing on a dry run.
    done: Option<&'a CollectStats>,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    let options = CollectOptions { grace: args.grace };
    let plan = tokio::select! {
        plan = store.plan_collection(&options) => plan?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted()),
    };
    if args.dry_run {
        let document = Document {
            plan: &plan,
            done: None,
        };
        context.show(&document, || shown(&plan))?;
        return Ok(0);
    }
    let done = store.collect(plan.clone(), &context.cancel).await?;
    let document = Document {
        plan: &plan,
        done: Some(&done),
    };
    context.report(&document, || format!("{}{}", shown(&plan), told(&done)))?;
    if let Some(failed) = done.failed.first() {
        let (object, reason) = (&failed.object, &failed.reason);
        let others = match done.failed.len() - 1 {
            0 => String::new(),
            others => format!(", and {others} more"),
        };
        let text = format!("{object} could not be collected{others}: {reason}");
        return Err(Error::new(failed.kind, text).into());
    }
    match done.stopped.is_some() && context.cancel.is_cancelled() {
        true => Err(Failure::interrupted().hint("the next podsnap gc goes on")),
        false => Ok(0),
    }
}

/// A number of seconds, minutes, hours or days: `90s`, `30m`, `24h`, `7d`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no time; write 90s, 30m, 24h or 7d");
    let unit = match text.as_bytes().last() {
        Some(b's') => 1,
        Some(b'm') => 60,
        Some(b'h') => 3600,
        Some(b'd') => 24 * 3600,
        _ => return Err(bad()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| bad())?;
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .ok_or_else(bad)
}

fn shown(plan: &CollectionPlan) -> String {
    let mut text = String::new();
    for why in &plan.blocked_by {
        text.push_str(&format!("nothing is deleted: {}\n", printable_message(why)));
    }
    for group in &plan.stale_heads {
        text.push_str(&format!(
            "the head of {} names a snapshot that is gone, or of another group\n",
            printable(group)
        ));
    }
    let title = ["OBJECT", "SIZE", "SEEN (UTC)", ""]
        .map(str::to_owned)
        .to_vec();
    let row = |garbage: &Garbage, what: &str| {
        let seen = garbage.first_seen_unix_ms;
        vec![
            printable(&garbage.object),
            report::bytes(garbage.bytes),
            seen.map_or("now".to_owned(), report::date),
            what.to_owned(),
        ]
    };
    let mut rows = vec![title];
    rows.extend(plan.delete.iter().map(|garbage| row(garbage, "goes")));
    rows.extend(plan.keep.iter().map(|garbage| row(garbage, "waits")));
    if rows.len() > 1 {
        text.push_str(&report::table(&rows, &[false, true]));
    } else if plan.blocked_by.is_empty() {
        text.push_str("no garbage\n");
    }
    if plan.foreign_objects > 0 {
        let count = report::count(plan.foreign_objects, "object");
        text.push_str(&format!("{count} of somebody else's: not touched\n"));
    }
    text
}

fn told(done: &CollectStats) -> String {
    let mut text = format!(
        "{} deleted, {}; {} wait, {}\n",
        report::count(done.deleted_objects, "object"),
        report::bytes(done.deleted_bytes),
        done.kept_objects,
        report::bytes(done.kept_bytes)
    );
    for failed in done.failed.iter().take(FAILED_SHOWN) {
        let reason = printable_message(&failed.reason);
        text.push_str(&format!("{} stays: {reason}\n", printable(&failed.object)));
    }
    if let Some(why) = &done.stopped {
        text.push_str(&format!(
            "stopped: {}; run it again\n",
            printable_message(why)
        ));
    }
    text
}
