//! A cluster's controller: it removes snapshots that have had their time, as policies say, deletes those that somebody wants deleted, and
//! collects the garbage.
//!
//! It is small and meant to be copied: it decides nothing itself. Any number of it may run at once, beside any number of agents, with clocks
//! that differ by up to an hour; what keeps them from each other's throats is in the store. It needs the right to list the bucket.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use podsnap::{
    CancellationToken, Catalog, CollectOptions, ErrorKind, Listed, OpenOptions, RetentionRules,
    SnapshotId, Statsd, Status, Store,
    policy::{PodSnapshotPolicy, PodSnapshotStorageConfig, Resources},
    printable_message,
};
use tokio::signal::unix::{SignalKind, signal};

/// Apply the retention of policies, delete snapshots, collect garbage
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of YAML with PodSnapshotPolicies and PodSnapshotStorageConfigs. Triggers may be there too; no Pod in it is looked at
    #[arg(long)]
    policies: PathBuf,
    /// File with a bearer token; otherwise credentials come from where every tool of Google's finds them
    #[arg(long)]
    token: Option<PathBuf>,
    /// Delete this snapshot, wherever it is, before anything else
    #[arg(long, value_name = "SNAPSHOT")]
    delete: Vec<SnapshotId>,
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
    /// Do it once, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two rounds
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    every_s: u64,
    /// Seconds that garbage stays after it was first seen
    #[arg(long, default_value_t = 24 * 3600)]
    grace_s: u64,
    /// Statsd server, by UDP, for metrics
    #[arg(long, value_name = "HOST:PORT")]
    statsd: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter("warn")
        .with_writer(std::io::stderr)
        .init();
    let args = Args::parse();
    match run(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// Whether everything went well. A signal ends it at any time: whatever is under way can be dropped, and the next round goes on with the rest.
async fn run(args: &Args) -> Result<bool, String> {
    let statsd = args.statsd.as_deref().map(Statsd::start).transpose();
    let _statsd = statsd.map_err(|e| e.to_string())?;
    let signal = |kind| signal(kind).map_err(|e| e.to_string());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        good = rounds(args) => return Ok(good),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    complain("ended by a signal; the next round goes on");
    // Who wants one round did not get it.
    Ok(!args.once)
}

/// One round after another. Returns only if there is to be but one: whether everything in it went well.
async fn rounds(args: &Args) -> bool {
    let mut done = BTreeSet::new();
    let mut complaint = String::new();
    loop {
        let good = match Resources::read(&args.policies) {
            Ok(resources) => {
                complaint.clear();
                round(args, &resources, &mut done).await
            }
            // Nothing is done by rules that make no sense.
            Err(e) => {
                let new = format!("{e}; nothing is done until that is mended");
                if new != complaint {
                    complain(&new);
                    complaint = new;
                }
                false
            }
        };
        if args.once {
            return good;
        }
        tokio::time::sleep(Duration::from_secs(args.every_s)).await;
    }
}

/// Does all there is to do, and says whether everything went well. `done` are the snapshots that were to be deleted, and are.
async fn round(args: &Args, resources: &Resources, done: &mut BTreeSet<SnapshotId>) -> bool {
    let mut good = true;
    let mut wrong = |what: String| {
        complain(&what);
        good = false;
    };
    for policy in &resources.policies {
        if let Err(why) = resources.storage_of(policy) {
            let name = policy.metadata.full_name();
            wrong(format!("{why}; no snapshot of policy {name} goes"));
        }
    }
    let mut stores = Vec::new();
    for storage in &resources.storage_configs {
        match open(args, storage) {
            Ok(store) => stores.push((storage, store)),
            Err(why) => wrong(format!("{}: {why}", storage.store_url())),
        }
    }
    for id in &args.delete {
        // What a store that does not answer holds, nobody knows.
        let mut all_answered = stores.len() == resources.storage_configs.len();
        for (_, store) in &stores {
            if done.contains(id) {
                break;
            }
            match delete(args, store, id).await {
                Ok(true) => {
                    done.insert(id.clone());
                }
                Ok(false) => {}
                Err(why) => {
                    wrong(format!("{}: {why}", store.url()));
                    all_answered = false;
                }
            }
        }
        if all_answered && !done.contains(id) {
            wrong(format!(
                "there is no snapshot {id} in any of the policies' buckets"
            ));
        }
    }
    for (storage, store) in &stores {
        // One tenant's trouble is not another's.
        if let Err(why) = tenant(args, resources, storage, store).await {
            wrong(format!("{}: {why}", store.url()));
        }
    }
    good
}

fn open(args: &Args, storage: &PodSnapshotStorageConfig) -> Result<Store, String> {
    let mut options = OpenOptions::default();
    if let Some(file) = &args.token {
        let token = std::fs::read_to_string(file);
        let token = token.map_err(|e| format!("{}: {e}", file.display()))?;
        options.gcs.bearer_token = Some(token.trim().to_owned());
    }
    Store::open_with(&storage.store_url(), &options, None).map_err(|e| e.to_string())
}

/// Deletes a snapshot. Whether the store has it.
async fn delete(args: &Args, store: &Store, id: &SnapshotId) -> podsnap::Result<bool> {
    let url = store.url();
    if args.dry_run {
        if let Some(state) = store.state(id).await? {
            match state.status {
                Status::Saving => println!("{url}: {id} would not be deleted: it is being saved"),
                _ => println!("{url}: {id} would be deleted"),
            }
            return Ok(true);
        }
    } else {
        match store.remove(id).await {
            Ok(stats) => {
                println!("{url}: {id} deleted, {} objects", stats.objects);
                return Ok(true);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    // To who has no rights in it, a store looks as if the snapshot were not there; but it does not list then.
    store.list().await?;
    Ok(false)
}

/// Does what the policies say about one store, and collects its garbage.
async fn tenant(
    args: &Args,
    resources: &Resources,
    storage: &PodSnapshotStorageConfig,
    store: &Store,
) -> Result<(), String> {
    let listed = store.list().await.map_err(|e| e.to_string())?;
    let policies = resources.policies.iter();
    for policy in policies.filter(|policy| policy.storage_config == storage.metadata.name) {
        let retained = retain(args, store, &listed, policy).await;
        retained.map_err(|e| format!("policy {}: {e}", policy.metadata.full_name()))?;
    }
    collect(args, store).await
}

async fn retain(
    args: &Args,
    store: &Store,
    listed: &[Listed],
    policy: &PodSnapshotPolicy,
) -> Result<(), String> {
    let (url, name) = (store.url(), policy.metadata.full_name());
    let rules = RetentionRules {
        policy: Some(policy.metadata.name.clone()),
        namespace: Some(policy.metadata.namespace.clone()),
        max_per_group: policy.retention.max_per_group,
        unused_for: policy.retention.unused_for,
        ..RetentionRules::default()
    };
    let catalog = Catalog::new(store);
    let plan = catalog.plan_retention_of(listed, &rules);
    for verdict in &plan.remove {
        let (id, reason) = (&verdict.snapshot, printable_message(&verdict.reason));
        println!("{url}: policy {name}: {id} goes: {reason}");
    }
    if args.dry_run {
        return Ok(());
    }
    let stats = catalog.retain(&plan, &CancellationToken::new()).await;
    for retained in &stats.retained {
        let (id, reason) = (&retained.snapshot, printable_message(&retained.reason));
        println!("{url}: policy {name}: {id} stays: {reason}");
    }
    match stats.failed() {
        Some(failed) => Err(format!("{} stays: {}", failed.snapshot, failed.reason)),
        None => Ok(()),
    }
}

async fn collect(args: &Args, store: &Store) -> Result<(), String> {
    let url = store.url();
    let options = CollectOptions {
        grace: Duration::from_secs(args.grace_s),
    };
    let plan = store.plan_collection(&options).await;
    let plan = plan.map_err(|e| e.to_string())?;
    if plan.foreign_objects > 0 {
        let count = plan.foreign_objects;
        println!("{url}: {count} objects of somebody else's, not touched");
    }
    let blocked = match plan.blocked_by.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "nothing is deleted: {}",
            plan.blocked_by.join("; ")
        )),
    };
    if args.dry_run {
        println!("{url}: {} objects are garbage", plan.delete.len());
        return blocked;
    }
    // What is garbage is noted all the same. A signal drops it where it is.
    let collected = store.collect(plan, &CancellationToken::new()).await;
    let stats = collected.map_err(|e| e.to_string())?;
    let (objects, bytes) = (stats.deleted_objects, stats.deleted_bytes);
    let waiting = stats.kept_objects;
    println!("{url}: {objects} objects of garbage deleted, {bytes} bytes; {waiting} wait");
    for failed in &stats.failed {
        let (object, reason) = (&failed.object, &failed.reason);
        complain(&format!("{url}: {object} stays: {reason}"));
    }
    if let Some(why) = stats.stopped {
        let why = printable_message(&why);
        println!("{url}: {why}; the next round goes on");
    }
    match stats.failed.len() {
        0 => blocked,
        failed => Err(format!("{failed} objects of garbage cannot be deleted")),
    }
}

/// Says what is wrong, on one line whatever names are in it.
fn complain(what: &str) {
    eprintln!("controller: {}", printable_message(what));
}
