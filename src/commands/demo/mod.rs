//! `podsnap demo`: a live pod is saved, inspected, changes, is saved again, verified, restored, compared with what it was, and goes on.
//!
//! Every step is the library's, as the other commands use it; what is here makes the pod, looks at what comes out, and removes
//! everything in the end, however that comes. The pod is a gVisor sandbox where there can be one, else a plain process.

mod compare;
mod figures;
mod log;
pub mod pod;
mod process;
mod running;
mod sandbox;
mod scratch;
mod story;

use std::{path::Path, path::PathBuf, time::Duration};

use podsnap::{
    RestoreOptions, SaveOptions, Snapshot, SnapshotId, Store, VerifyOptions,
    inspect::InspectOptions,
};

use self::{
    compare::Comparison,
    figures::{Alive, Figures, Moment, Verified, Way},
    process::Process,
    running::pause,
    sandbox::Sandbox,
    scratch::Scratch,
};
use crate::{
    commands::save,
    context::Context,
    exit::{self, Failure},
    progress::Doing,
    report,
    source::SourceArg,
};

/// Time between the two saves.
const BETWEEN: Duration = Duration::from_millis(700);

/// See it work on a small live pod
///
/// Starts a pod, saves it, lets it go on, saves it again, verifies and restores the second snapshot, compares every byte,
/// and lets the restored pod go on. The pod is a gVisor sandbox where runsc is installed and we are root, else a plain process
/// of which memory and files are saved. All is done in a temporary directory and in a store of its own (--store is not used);
/// nothing is left of it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap demo
  podsnap demo --keep /tmp/demo-store
  podsnap demo --without-runsc --json | jq .second_share")]
pub struct Args {
    /// Keep the store in this new directory, to look at it further
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Take a plain process for the pod even where there is a runsc
    #[arg(long)]
    without_runsc: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let scratch = Scratch::create(args.keep.as_deref())?;
    let url = scratch.store();
    let url = url.to_str().ok_or_else(|| {
        Failure::usage("the temporary directory's name is not UTF-8").hint("set TMPDIR")
    })?;
    let store = context.store_at(url)?;
    let mut demo = Demo::begin(&args, scratch.path(), context).await?;
    let told = demo.tell(&store, scratch.path(), context).await;
    demo.pod.end().await;
    let mut figures = told?;
    figures.store = scratch.close()?;
    context.report(&figures, || story::ending(&figures))?;
    Ok(match (figures.all_is_well(), figures.verify.sound) {
        (true, _) => 0,
        (false, true) => exit::FAILED,
        (false, false) => exit::DAMAGED,
    })
}

/// A pod that was stopped, or checkpointed, for the first time.
struct Demo {
    pod: Pod,
    way: Way,
    /// Why it is not a better way.
    limits: Vec<String>,
}

enum Pod {
    Process(Process),
    Sandbox(Sandbox),
}

impl Demo {
    /// Starts the best pod there can be.
    async fn begin(args: &Args, scratch: &Path, context: &Context) -> Result<Self, Failure> {
        let mut limits = Vec::new();
        let runsc = match args.without_runsc {
            true => Err("--without-runsc was given".to_owned()),
            false => sandbox::find_runsc(),
        };
        let failed = match runsc {
            Err(why) => why,
            Ok(runsc) => match Sandbox::start(runsc, scratch, &context.cancel).await {
                Ok(sandbox) => {
                    return Ok(Self {
                        pod: Pod::Sandbox(sandbox),
                        way: Way::Gvisor,
                        limits,
                    });
                }
                Err(e) if context.cancel.is_cancelled() => return Err(e),
                Err(e) => e.to_string(),
            },
        };
        limits.push(format!("No gVisor sandbox here: {failed}."));
        let process = Process::start(scratch, &context.cancel).await?;
        let way = match &process.no_memory {
            None => Way::Process,
            Some(why) => {
                limits.push(format!("No process memory here, only files: {why}."));
                Way::Files
            }
        };
        Ok(Self {
            pod: Pod::Process(process),
            way,
            limits,
        })
    }

    /// Goes through all steps, tells and measures them.
    async fn tell(
        &mut self,
        store: &Store,
        scratch: &Path,
        context: &Context,
    ) -> Result<Figures, Failure> {
        let say = |text: String| match context.json || context.quiet {
            true => Ok(()),
            false => report::print(&text),
        };
        say(story::opening(self.way, &self.limits))?;

        let (first, _) = self.save(store, "first", &[], context).await?;
        say(story::first(self.way, &first))?;
        say(story::inspected(&first.inspect))?;

        self.pod.go_on()?;
        pause(BETWEEN, &context.cancel).await?;
        self.pod.freeze("second").await?;
        let (second, snapshot) = self.save(store, "second", &["first"], context).await?;
        let second_share = second.stored_bytes as f64 / first.stored_bytes as f64;
        say(story::second(&second, second_share))?;

        let options = VerifyOptions {
            cancel: context.cancel.clone(),
            ..VerifyOptions::default()
        };
        let bar = context.bar(Doing::Verifying, &options.progress);
        let report = snapshot.verify(store, &options).await?;
        drop(bar);
        let verify = Verified {
            sound: report.is_sound(),
            report,
        };
        say(story::verified(&verify))?;

        let restored = scratch.join("restored");
        let options = RestoreOptions {
            cancel: context.cancel.clone(),
            ..RestoreOptions::default()
        };
        let bar = context.bar(Doing::Restoring, &options.progress);
        let restore = snapshot.restore(store, &restored, &options).await?;
        drop(bar);
        say(story::restored(&restore))?;

        let compare = tokio::task::block_in_place(|| self.pod.compare(&restored))?;
        say(story::compared(&compare))?;

        let counted = self.pod.revive(&snapshot, &restored).await?;
        let alive = Alive {
            goes_on: self.pod.goes_on(second.count, &counted),
            counted,
        };
        say(story::alive(self.way, second.count, &alive))?;

        Ok(Figures {
            way: self.way,
            limits: std::mem::take(&mut self.limits),
            weights_bytes: pod::WEIGHTS_BYTES,
            first,
            second,
            second_share,
            verify,
            restore,
            compare,
            alive,
            store: None,
        })
    }

    /// Saves the pod as it was frozen, and opens and inspects what was saved.
    async fn save(
        &self,
        store: &Store,
        name: &str,
        bases: &[&str],
        context: &Context,
    ) -> Result<(Moment, Snapshot), Failure> {
        let id = |name: &str| {
            name.parse::<SnapshotId>()
                .expect("a constant that is an id")
        };
        let options = SaveOptions {
            bases: bases.iter().map(|base| id(base)).collect(),
            cancel: context.cancel.clone(),
            ..SaveOptions::default()
        };
        let bar = context.bar(Doing::Saving, &options.progress);
        let sources = self.pod.sources(name);
        let stats = save::save(store, &id(name), sources, options, |section| section).await?;
        drop(bar);
        let snapshot = store.snapshot(&id(name)).await?;
        let options = InspectOptions {
            top: 3,
            cancel: context.cancel.clone(),
        };
        let moment = Moment {
            count: self.pod.count(),
            stored_bytes: stats.stored_bytes(),
            stats,
            inspect: snapshot.inspect(&options).await?,
        };
        Ok((moment, snapshot))
    }
}

impl Pod {
    /// Takes its state at this moment: stops a process, checkpoints a sandbox.
    async fn freeze(&mut self, moment: &str) -> Result<(), Failure> {
        match self {
            Self::Process(process) => process.stop().await,
            Self::Sandbox(sandbox) => sandbox.checkpoint(moment).await,
        }
    }

    fn go_on(&self) -> Result<(), Failure> {
        match self {
            Self::Process(process) => process.go_on(),
            Self::Sandbox(_) => Ok(()),
        }
    }

    /// What it had counted to when it was frozen.
    fn count(&self) -> u64 {
        match self {
            Self::Process(process) => process.count(),
            Self::Sandbox(sandbox) => sandbox.frozen_at(),
        }
    }

    fn sources(&self, moment: &str) -> Vec<SourceArg> {
        match self {
            Self::Process(process) => process.sources(),
            Self::Sandbox(sandbox) => sandbox.sources(moment),
        }
    }

    fn compare(&self, restored: &Path) -> Result<Comparison, Failure> {
        match self {
            Self::Process(process) => process.compare(restored),
            Self::Sandbox(sandbox) => sandbox.compare("second", restored),
        }
    }

    /// Ends it, starts it again from what was restored, and returns what it counts.
    async fn revive(&mut self, snapshot: &Snapshot, restored: &Path) -> Result<Vec<u64>, Failure> {
        match self {
            Self::Process(process) => process.revive(snapshot, restored).await,
            Self::Sandbox(sandbox) => sandbox.revive(restored).await,
        }
    }

    /// Whether the restored pod counts on from where it was frozen, without a gap.
    fn goes_on(&self, frozen_at: u64, counted: &[u64]) -> bool {
        let follows = |first: u64| match self {
            // It may have counted and been stopped before it could say so.
            Self::Process(_) => (frozen_at + 1..=frozen_at + 2).contains(&first),
            Self::Sandbox(sandbox) => sandbox.follows(first),
        };
        counted.first().is_some_and(|first| follows(*first))
            && counted.windows(2).all(|pair| pair[1] == pair[0] + 1)
            && counted.len() > 1
    }

    /// Ends it, whatever state it is in.
    async fn end(self) {
        match self {
            Self::Process(process) => drop(process),
            Self::Sandbox(mut sandbox) => sandbox.end().await,
        }
    }
}
