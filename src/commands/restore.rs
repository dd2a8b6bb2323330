//! `podsnap restore`: a snapshot becomes files and directories again, or one section a stream.

use std::{path::Path, path::PathBuf, time::Duration};

use podsnap::{
    Snapshot, printable_message,
    restore::{LostRange, RestoreOptions, RestoreStats},
};

use crate::{
    args::Wanted,
    context::Context,
    exit::{self, Failure},
    output,
    progress::Doing,
    report,
};

/// Bring a snapshot back
///
/// A gVisor checkpoint comes back as an image directory for `runsc restore`, other sections as files and directories named
/// after them. Every byte is checked. The directory appears when it is whole.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap restore web-2 /var/lib/checkpoints/web-again
  podsnap restore job-7 out --section rootfs --section tmpfs:shm
  podsnap restore job-7 - --section memory | cmp - ram.bin
  podsnap restore layer - | tar -t
  podsnap restore file:web-2.podsnap out")]
pub struct Args {
    #[command(flatten)]
    wanted: Wanted,
    /// A new or empty directory; - writes one section to standard output, a tree as a tar
    dir: PathBuf,
    /// Restore what is undamaged, leave zeros in place of the rest, say what is lost and exit with 5
    #[arg(long)]
    salvage: bool,
    /// Fail where an owner, device or attribute cannot be set, instead of warning
    #[arg(long)]
    strict: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (store, snapshot, sections) = context.open_wanted(&args.wanted).await?;
    if args.dir == Path::new("-") {
        return to_stdout(&args, snapshot, &sections, context).await;
    }
    let options = RestoreOptions {
        sections,
        salvage: args.salvage,
        strict: args.strict,
        cancel: context.cancel.clone(),
        ..RestoreOptions::default()
    };
    let bar = context.bar(Doing::Restoring, &options.progress);
    let stats = snapshot.restore(&store, &args.dir, &options).await?;
    drop(bar);
    context.report(&stats, || summary(&snapshot, &args.dir, &stats))?;
    if !context.json {
        complain(&stats);
    }
    Ok(if stats.damage.is_empty() {
        0
    } else {
        exit::DAMAGED
    })
}

async fn to_stdout(
    args: &Args,
    snapshot: Snapshot,
    sections: &[usize],
    context: &Context,
) -> Result<u8, Failure> {
    if args.salvage {
        return Err(Failure::usage(
            "salvaging needs a directory: a stream cannot say what it lacks",
        ));
    }
    if context.json {
        return Err(Failure::usage(
            "standard output cannot take both a section and JSON",
        ));
    }
    let section = match (sections, snapshot.sections().len()) {
        ([one], _) => *one,
        ([], 1) => 0,
        _ => {
            let titles: Vec<_> = snapshot.sections().iter().map(|s| s.title()).collect();
            return Err(Failure::usage("standard output takes exactly one section")
                .hint(format!("name one by --section: {}", titles.join(", "))));
        }
    };
    output::section(snapshot, section, &context.cancel).await
}

fn summary(snapshot: &Snapshot, dir: &Path, stats: &RestoreStats) -> String {
    let elapsed = Duration::from_millis(stats.elapsed_ms);
    format!(
        "{} restored to {}: {} in {}, {}; {} checked\n",
        snapshot.id(),
        dir.display(),
        report::bytes(stats.raw_bytes),
        report::seconds(elapsed),
        report::rate(stats.raw_bytes, elapsed),
        report::count(stats.chunks, "chunk"),
    )
}

/// What is lost and what could not be set, for people.
fn complain(stats: &RestoreStats) {
    for damage in &stats.damage {
        eprintln!("podsnap: {}", printable_message(&damage.what));
        for lost in &damage.lost {
            eprintln!("podsnap:   {}", printable_message(&lost.to_string()));
        }
    }
    if !stats.damage.is_empty() {
        let lost: u64 = stats
            .damage
            .iter()
            .flat_map(|d| &d.lost)
            .map(|l: &LostRange| l.len)
            .sum();
        eprintln!(
            "podsnap: {} are lost; zeros stand in their place",
            report::bytes(lost)
        );
    }
    const SHOWN: usize = 10;
    for warning in stats.warnings.iter().take(SHOWN) {
        eprintln!("podsnap: warning: {}", printable_message(warning));
    }
    if stats.warnings.len() > SHOWN {
        eprintln!(
            "podsnap: warning: and {} more of the kind",
            stats.warnings.len() - SHOWN
        );
    }
}
