//! A cluster's controller: it removes snapshots that have had their time, as policies say, deletes those that somebody wants deleted, and
//! collects the garbage.
//!
//! It is small and meant to be copied: it decides nothing itself. Any number of it may run at once, beside any number of agents, with clocks
//! that differ by up to an hour; what keeps them from each other's throats is in the store. It needs the right to list the bucket.

use std::{collections::BTreeSet, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use podsnap::{
    CancellationToken, Catalog, CollectOptions, ErrorKind, OpenOptions, RetentionRules, SnapshotId,
    Statsd, Store,
    policy::{PodSnapshotPolicy, PodSnapshotStorageConfig, Resources},
};
use tokio::signal::unix::{SignalKind, signal};

/// Apply the retention of policies, delete snapshots, collect garbage
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of YAML with PodSnapshotPolicies and PodSnapshotStorageConfigs
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
    #[arg(long, default_value_t = 600)]
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
            eprintln!("controller: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything went well.
async fn run(args: &Args) -> Result<bool, String> {
    let statsd = args.statsd.as_deref().map(Statsd::start).transpose();
    let _statsd = statsd.map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let cancel = CancellationToken::new();
    let terminated = cancel.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        terminated.cancel();
    });
    let mut deleted = BTreeSet::new();
    loop {
        // Nothing is done by rules that make no sense.
        let resources = Resources::read(&args.policies).map_err(|e| e.to_string())?;
        let mut good = true;
        for storage in &resources.storage_configs {
            if cancel.is_cancelled() {
                return Ok(good);
            }
            // One tenant's trouble is not another's.
            if let Err(why) = round(args, &resources, storage, &mut deleted, &cancel).await {
                eprintln!("controller: {}: {why}", storage.store_url());
                good = false;
            }
        }
        for id in args.delete.iter().filter(|id| !deleted.contains(*id)) {
            eprintln!("controller: there is no snapshot {id} in any of the policies' buckets");
            good = false;
        }
        if args.once {
            return Ok(good);
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(args.every_s)) => {}
            () = cancel.cancelled() => return Ok(good),
        }
    }
}

async fn round(
    args: &Args,
    resources: &Resources,
    storage: &PodSnapshotStorageConfig,
    deleted: &mut BTreeSet<SnapshotId>,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let mut options = OpenOptions::default();
    if let Some(file) = &args.token {
        let token = std::fs::read_to_string(file);
        let token = token.map_err(|e| format!("{}: {e}", file.display()))?;
        options.gcs.bearer_token = Some(token.trim().to_owned());
    }
    let url = storage.store_url();
    let store = Store::open_with(&url, &options, None).map_err(|e| e.to_string())?;
    for id in &args.delete {
        if deleted.contains(id) || args.dry_run {
            continue;
        }
        match store.remove(id).await {
            Ok(stats) => {
                println!("{url}: {id} deleted, {} objects", stats.objects);
                deleted.insert(id.clone());
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    let policies = resources.policies.iter();
    for policy in policies.filter(|policy| policy.storage_config == storage.metadata.name) {
        let retained = retain(args, &store, policy).await;
        retained.map_err(|e| format!("policy {}: {e}", policy.metadata.name))?;
    }
    let collected = collect(args, &store, cancel).await;
    collected.map_err(|e| e.to_string())
}

async fn retain(args: &Args, store: &Store, policy: &PodSnapshotPolicy) -> podsnap::Result<()> {
    let (url, name) = (store.url(), &policy.metadata.name);
    let rules = RetentionRules {
        policy: Some(name.clone()),
        namespace: Some(policy.metadata.namespace.clone()),
        max_per_group: policy.retention.max_per_group,
        unused_for: policy.retention.unused_for,
        ..RetentionRules::default()
    };
    let catalog = Catalog::new(store);
    let plan = catalog.plan_retention(&rules).await?;
    for verdict in &plan.remove {
        let (id, reason) = (&verdict.snapshot, &verdict.reason);
        println!("{url}: policy {name}: {id} goes: {reason}");
    }
    if args.dry_run {
        return Ok(());
    }
    let stats = catalog.retain(&plan).await?;
    for retained in &stats.retained {
        let (id, reason) = (&retained.snapshot, &retained.reason);
        println!("{url}: policy {name}: {id} stays: {reason}");
    }
    Ok(())
}

async fn collect(args: &Args, store: &Store, cancel: &CancellationToken) -> podsnap::Result<()> {
    let url = store.url();
    let options = CollectOptions {
        grace: Duration::from_secs(args.grace_s),
    };
    let plan = store.plan_collection(&options).await?;
    for why in &plan.blocked_by {
        eprintln!("controller: {url}: nothing is collected: {why}");
    }
    if plan.foreign_objects > 0 {
        let count = plan.foreign_objects;
        println!("{url}: {count} objects of somebody else's, not touched");
    }
    if args.dry_run {
        println!("{url}: {} objects are garbage", plan.delete.len());
        return Ok(());
    }
    let stats = store.collect(plan, cancel).await?;
    let (objects, bytes) = (stats.deleted_objects, stats.deleted_bytes);
    let waiting = stats.kept_objects;
    println!("{url}: {objects} objects of garbage deleted, {bytes} bytes; {waiting} wait");
    for failed in &stats.failed {
        let (object, reason) = (&failed.object, &failed.reason);
        eprintln!("controller: {url}: {object} stays: {reason}");
    }
    if let Some(why) = stats.stopped {
        println!("{url}: {why}; the next round goes on");
    }
    Ok(())
}
