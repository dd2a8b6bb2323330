//! `podsnap retain`: snapshots that have had their time go.

use std::{path::PathBuf, time::Duration};

use podsnap::{
    Catalog, Error, ErrorKind, RetentionPlan, RetentionRules, RetentionStats, Store, Verdict,
    policy::Resources, printable, printable_message,
};

use crate::{commands::gc::parse_time, context::Context, exit::Failure, report};

/// Remove snapshots that have had their time
///
/// Of each group those go that were not used for longest. The newest of a group always stays, and so does what is pinned or being restored.
/// The data of removed snapshots stays until `podsnap gc` finds that nobody needs it. Any number of these may run at once, beside
/// savers and restorers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap retain --max-per-group 3 --dry-run
  podsnap retain --group web --unused-for 30d
  podsnap retain --policies policies/ --json | jq '.[].plan.remove[].snapshot'")]
pub struct Args {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// How many snapshots stay of each group
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_per_group: Option<u32>,
    /// How long a snapshot stays that nobody restores
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    unused_for: Option<Duration>,
    /// Only snapshots of this group
    #[arg(long)]
    group: Option<String>,
    /// The rules of the PodSnapshotPolicies in this file or directory of YAML, each for the snapshots that were saved for it
    #[arg(long, value_name = "PATH", conflicts_with_all = ["max_per_group", "unused_for"])]
    policies: Option<PathBuf>,
}

#[derive(serde::Serialize)]
struct Document {
    policy: Option<String>,
    namespace: Option<String>,
    plan: RetentionPlan,
    /// Nothing on a dry run.
    done: Option<RetentionStats>,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let rules = rules(&args)?;
    let store = context.store()?;
    let mut documents = Vec::new();
    let ended = retain(&args, context, &store, rules, &mut documents).await;
    let text = || documents.iter().map(shown).collect::<String>();
    match (&ended, args.dry_run) {
        // Who reads JSON on a dry run finds all of it, or none.
        (Err(_), true) => {}
        (Ok(()), true) => context.show(&documents, text)?,
        // What is gone is gone, whatever came after it.
        (_, false) => context.report(&documents, text)?,
    }
    ended.map(|()| 0)
}

/// Goes by all the rules, or as far as it comes, and says in `documents` what it did.
async fn retain(
    args: &Args,
    context: &Context,
    store: &Store,
    rules: Vec<RetentionRules>,
    documents: &mut Vec<Document>,
) -> Result<(), Failure> {
    let listed = tokio::select! {
        listed = store.list() => listed?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted()),
    };
    let catalog = Catalog::new(store);
    for rules in rules {
        let plan = catalog.plan_retention_of(&listed, &rules);
        documents.push(Document {
            policy: rules.policy,
            namespace: rules.namespace,
            plan: plan.clone(),
            done: (!args.dry_run).then(RetentionStats::default),
        });
        let Some(done) = documents.last_mut().and_then(|d| d.done.as_mut()) else {
            continue;
        };
        *done = catalog.retain(&plan, &context.cancel).await;
        if let Some(failed) = done.failed() {
            let kind = failed.error.unwrap_or(ErrorKind::Store);
            let text = format!(
                "{} could not be removed: {}",
                failed.snapshot, failed.reason
            );
            return Err(Error::new(kind, text).into());
        }
        if done.stopped.is_some() {
            return Err(Failure::interrupted().hint("the next podsnap retain goes on"));
        }
    }
    Ok(())
}

fn rules(args: &Args) -> Result<Vec<RetentionRules>, Failure> {
    let Some(path) = &args.policies else {
        if args.max_per_group.is_none() && args.unused_for.is_none() {
            return Err(Failure::usage("no rule says which snapshots go")
                .hint("give --max-per-group, --unused-for or --policies"));
        }
        return Ok(vec![RetentionRules {
            group: args.group.clone(),
            max_per_group: args.max_per_group,
            unused_for: args.unused_for,
            ..RetentionRules::default()
        }]);
    };
    let resources = Resources::read(path).map_err(|e| Failure::usage(e.to_string()))?;
    let policies = resources.policies.into_iter();
    Ok(policies
        .map(|policy| RetentionRules {
            policy: Some(policy.metadata.name),
            namespace: Some(policy.metadata.namespace),
            group: args.group.clone(),
            max_per_group: policy.retention.max_per_group,
            unused_for: policy.retention.unused_for,
            ..RetentionRules::default()
        })
        .collect())
}

fn shown(document: &Document) -> String {
    let mut text = String::new();
    if let (Some(namespace), Some(policy)) = (&document.namespace, &document.policy) {
        text.push_str(&format!("policy {namespace}/{policy}:\n"));
    }
    let row = |verdict: &Verdict, what: &str| {
        vec![
            verdict.snapshot.clone(),
            what.to_owned(),
            printable(verdict.group.as_deref().unwrap_or("-")),
            report::date(verdict.active_unix_ms),
            report::bytes(verdict.stored_bytes),
            printable_message(&verdict.reason),
        ]
    };
    let title = ["NAME", "", "GROUP", "LAST USED (UTC)", "STORED", "WHY"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    let plan = &document.plan;
    rows.extend(plan.remove.iter().map(|verdict| row(verdict, "goes")));
    rows.extend(plan.keep.iter().map(|verdict| row(verdict, "stays")));
    match rows.len() {
        1 => text.push_str("no snapshots\n"),
        _ => text.push_str(&report::table(&rows, &[false, false, false, false, true])),
    }
    if let Some(done) = &document.done {
        for retained in &done.retained {
            let reason = printable_message(&retained.reason);
            text.push_str(&format!("{} stays: {reason}\n", retained.snapshot));
        }
        let removed = report::count(done.removed.len() as u64, "snapshot");
        text.push_str(&format!("{removed} removed\n"));
    }
    text
}
