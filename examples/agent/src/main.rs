//! A node's agent: it runs the pods of a directory under gVisor, lets them save themselves into the bucket that their policy names, and
//! starts each from the newest snapshot that fits.
//!
//! It is small and meant to be copied. Everything about snapshots is podsnap's library: `policy` reads what users want, `Catalog` finds
//! what to restore. The bytes go through podsnap's checkpoint gofer, which runsc starts by itself (docs/gvisor.md). What a real agent has
//! and this one has not: images (programs run on the node's own root file system, read-only, so a pod can read what root can), pods of
//! several containers, networks, cgroups, restarts of pods that have ended, rotation of logs, token sources.
//!
//! - [`node`]: runsc, and where everything is.
//! - [`bundle`]: what runsc wants to know about a pod.
//! - [`snapshots`]: which snapshot a pod starts from, and where it saves itself to.
//! - [`sandbox`]: one pod from its start to its end, a task of its own: what holds one up holds up no other.
//! - [`triggers`]: which saves that somebody asked for were begun.
//! - [`events`]: what happened, as `kubectl get events` would show it.

mod bundle;
mod events;
mod node;
mod sandbox;
mod snapshots;
mod triggers;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use podsnap::{
    CancellationToken, Statsd,
    policy::{Pod, Resources},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{events::Events, node::Node, sandbox::Sandbox, triggers::Triggers};

/// Run the pods of a directory under gVisor; save and restore them as policies say
///
/// A pod whose file appears is started, one whose file goes is deleted; write files elsewhere and rename them, so that they are never half there. Where
/// the bucket is comes from the policies; the credentials for it from where every tool of Google's finds them, or from --tokens.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Directory of YAML with Pods
    #[arg(long)]
    pods: PathBuf,
    /// Directory of YAML with PodSnapshotPolicies, PodSnapshotStorageConfigs and PodSnapshotManualTriggers
    #[arg(long)]
    policies: PathBuf,
    /// Directory for bundles, what pods print (NAMESPACE_POD.log) and events (events.jsonl)
    #[arg(long)]
    run: PathBuf,
    /// Directory of bearer tokens, NAMESPACE/SERVICE-ACCOUNT. They may be renewed; a pod that saves itself does it with the one that it was started with
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
    // Heard from here on, whatever is being done.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let statsd = args.statsd.as_deref().map(Statsd::start).transpose();
    let _statsd = statsd.map_err(|e| e.to_string())?;
    let node = Node::new(&args)?;
    node.clear().await?;
    let mut agent = Agent {
        events: Arc::new(Events::open(&args.run.join("events.jsonl"))?),
        triggers: Triggers::open(&args.run.join("triggers"))?,
        node: Arc::new(node),
        args,
        wanted: watch::Sender::default(),
        complaint: String::new(),
        pods: BTreeMap::new(),
    };
    let mut ticks = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = ticks.tick() => agent.tick(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    agent.stop().await;
    Ok(())
}

struct Agent {
    args: Args,
    node: Arc<Node>,
    events: Arc<Events>,
    /// What the directories said when they last made sense.
    wanted: watch::Sender<Resources>,
    /// Why they do not make sense now.
    complaint: String,
    /// By full name; also those that are being stopped.
    pods: BTreeMap<String, Task>,
    triggers: Triggers,
}

/// A pod's.
struct Task {
    running: JoinHandle<()>,
    stop: CancellationToken,
    /// Asks it to save the pod.
    ask: mpsc::UnboundedSender<()>,
}

impl Agent {
    fn tick(&mut self) {
        self.look();
        let wanted = self.wanted.borrow().clone();
        let pods: BTreeMap<String, Pod> = wanted
            .pods
            .into_iter()
            .map(|pod| (pod.metadata.full_name(), pod))
            .collect();
        for (name, task) in &self.pods {
            if !pods.contains_key(name) {
                task.stop.cancel();
            }
        }
        self.pods.retain(|_, task| !task.running.is_finished());
        for (name, pod) in pods {
            // One that is being stopped is started again when it has ended.
            if let Entry::Vacant(vacant) = self.pods.entry(name) {
                let sandbox = Sandbox::new(self.node.clone(), self.events.clone(), pod);
                let (ask, asked) = mpsc::unbounded_channel();
                let stop = CancellationToken::new();
                let running = sandbox.run(self.wanted.subscribe(), asked, stop.clone());
                vacant.insert(Task {
                    running: tokio::spawn(running),
                    stop,
                    ask,
                });
            }
        }
        for trigger in self.triggers.new_ones(&wanted.triggers) {
            let name = format!("{}/{}", trigger.metadata.namespace, trigger.target_pod);
            let asked = self.pods.get(&name).map(|task| task.ask.send(()));
            if !matches!(asked, Some(Ok(()))) {
                let file = trigger.file.display();
                eprintln!("agent: {file}: there is no pod {name}");
            }
        }
    }

    /// Reads the directories. What makes no sense is said once, and nothing changes until it is mended.
    fn look(&mut self) {
        match read(&self.args) {
            Ok(wanted) => {
                self.wanted.send_replace(wanted);
                self.complaint.clear();
            }
            Err(why) if self.complaint == why => {}
            Err(why) => {
                eprintln!("agent: {why}; nothing is changed until that is mended");
                self.complaint = why;
            }
        }
    }

    /// Ends all pods.
    async fn stop(self) {
        for task in self.pods.values() {
            task.stop.cancel();
        }
        for task in self.pods.into_values() {
            let _ = task.running.await;
        }
    }
}

/// What both directories say.
fn read(args: &Args) -> Result<Resources, String> {
    let policies = Resources::read(&args.policies).map_err(|e| e.to_string())?;
    let pods = Resources::read(&args.pods).map_err(|e| e.to_string())?;
    if let Some(pod) = policies.pods.first() {
        let file = pod.file.display();
        return Err(format!("{file} has a Pod, which belongs into --pods"));
    }
    if !(pods.policies.is_empty() && pods.storage_configs.is_empty() && pods.triggers.is_empty()) {
        let dir = args.pods.display();
        return Err(format!(
            "{dir} has more than Pods, which belongs into --policies"
        ));
    }
    let pods = pods.pods;
    Ok(Resources { pods, ..policies })
}
