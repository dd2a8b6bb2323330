//! A node's agent: it runs the pods of a directory under gVisor, lets them save themselves into the bucket that their policy names, and
//! starts each from the newest snapshot that fits.
//!
//! It is small and meant to be copied. Everything about snapshots is podsnap's library: `policy` reads what users want, `Catalog` finds
//! what to restore. The bytes go through podsnap's checkpoint gofer, which runsc starts by itself (docs/gvisor.md). What a real agent has
//! and this one has not: images (programs run on the node's own root file system, read-only), pods of several containers, networks, cgroups.
//!
//! - [`node`]: runsc, and where everything is.
//! - [`bundle`]: what runsc wants to know about a pod.
//! - [`snapshots`]: which snapshot a pod starts from, and where it saves itself to.
//! - [`sandbox`]: one pod from its start to its end.
//! - [`events`]: what happened, as `kubectl get events` would show it.

mod bundle;
mod events;
mod node;
mod sandbox;
mod snapshots;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use podsnap::{
    Statsd,
    policy::{Pod, PodSnapshotManualTrigger, Resources},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{events::Events, node::Node, sandbox::Sandbox};

/// Run the pods of a directory under gVisor; save and restore them as policies say
///
/// A pod whose file appears is started, one whose file goes is deleted. Where the bucket is comes from the policies; a bearer token for it from
/// the file in --tokens that is called like the pod's service account, or else from where every tool of Google's finds its credentials.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of YAML with Pods
    #[arg(long)]
    pods: PathBuf,
    /// Directory of YAML with PodSnapshotPolicies, PodSnapshotStorageConfigs and PodSnapshotManualTriggers
    #[arg(long)]
    policies: PathBuf,
    /// Directory for bundles, logs (POD.log) and events (events.jsonl)
    #[arg(long)]
    run: PathBuf,
    /// Directory of bearer tokens, one file for each service account
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// gVisor
    #[arg(long, default_value = "runsc")]
    runsc: PathBuf,
    /// Directory with podsnap's checkpointgofer
    #[arg(long)]
    gofer: PathBuf,
    /// Statsd server, by UDP, for the metrics of the agent and of its gofers
    #[arg(long, value_name = "HOST:PORT")]
    statsd: Option<String>,
}

/// Time between two looks at the directories.
const TICK: Duration = Duration::from_millis(300);

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter("warn")
        .with_writer(std::io::stderr)
        .init();
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("agent: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), String> {
    let statsd = args.statsd.as_deref().map(Statsd::start).transpose();
    let _statsd = statsd.map_err(|e| e.to_string())?;
    let node = Node::new(
        &args.runsc,
        &args.gofer,
        &args.run,
        args.tokens.clone(),
        args.statsd.clone(),
    )?;
    let mut agent = Agent {
        events: Events::open(&args.run.join("events.jsonl"))?,
        node,
        args,
        wanted: Resources::default(),
        complaint: String::new(),
        sandboxes: BTreeMap::new(),
        triggered: BTreeSet::new(),
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => agent.tick().await,
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    for sandbox in agent.sandboxes.values_mut() {
        sandbox.delete(&agent.node);
    }
    Ok(())
}

struct Agent {
    args: Args,
    node: Node,
    events: Events,
    /// What the directories said when they last made sense.
    wanted: Resources,
    /// Why they do not make sense now.
    complaint: String,
    /// By full name.
    sandboxes: BTreeMap<String, Sandbox>,
    /// Triggers that were seen.
    triggered: BTreeSet<String>,
}

impl Agent {
    async fn tick(&mut self) {
        self.look();
        let pods: BTreeMap<String, Pod> = self
            .wanted
            .pods
            .iter()
            .map(|pod| (pod.metadata.full_name(), pod.clone()))
            .collect();
        let gone: Vec<String> = self
            .sandboxes
            .keys()
            .filter(|name| !pods.contains_key(*name))
            .cloned()
            .collect();
        for name in gone {
            if let Some(mut sandbox) = self.sandboxes.remove(&name) {
                sandbox.delete(&self.node);
                let pod = sandbox.pod();
                self.events.normal(pod, "Killing", "Stopped the pod");
            }
        }
        for (name, pod) in pods {
            if !self.sandboxes.contains_key(&name) {
                let started = Sandbox::start(&self.node, &self.wanted, pod, &mut self.events);
                self.sandboxes.insert(name, started.await);
            }
        }
        for trigger in self.wanted.triggers.clone() {
            let name = trigger.metadata.full_name();
            if !self.triggered.contains(&name) && self.trigger(&trigger).await {
                self.triggered.insert(name);
            }
        }
        for sandbox in self.sandboxes.values_mut() {
            sandbox.watch(&self.node, &mut self.events).await;
        }
    }

    /// Reads the directories. What makes no sense is said once, and nothing changes until it is mended.
    fn look(&mut self) {
        let read = Resources::read(&self.args.policies).and_then(|policies| {
            let pods = Resources::read(&self.args.pods)?.pods;
            Ok(Resources { pods, ..policies })
        });
        match read {
            Ok(wanted) => {
                self.wanted = wanted;
                self.complaint.clear();
            }
            Err(e) if self.complaint == e.to_string() => {}
            Err(e) => {
                self.complaint = e.to_string();
                eprintln!("agent: {e}; nothing is changed until that is mended");
            }
        }
    }

    /// Does what a trigger asks for, unless its pod only begins to run: then it is asked for again.
    async fn trigger(&mut self, trigger: &PodSnapshotManualTrigger) -> bool {
        let name = format!("{}/{}", trigger.metadata.namespace, trigger.target_pod);
        let Some(sandbox) = self.sandboxes.get_mut(&name) else {
            eprintln!("agent: {}: there is no pod {name}", trigger.file.display());
            return true;
        };
        if sandbox.is_starting(&self.node) {
            return false;
        }
        let checkpoint = sandbox.checkpoint(&self.node, &self.wanted, &mut self.events);
        checkpoint.await;
        true
    }
}
