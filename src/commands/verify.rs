//! `podsnap verify`: is every byte there and right?

use std::time::Duration;

use podsnap::{
    printable_message,
    verify::{VerifyOptions, VerifyReport},
};
use serde::Serialize;

use crate::{
    args::Wanted,
    context::Context,
    exit::{self, Failure},
    progress::Doing,
    report,
};

/// Check that every byte of a snapshot is there and right
///
/// Reads, decodes and compares with its id every chunk, those borrowed from other snapshots included. Nothing is written.
/// Exits with 5 if anything is damaged or missing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap verify web-2
  podsnap verify web-2 --sample 5 --digest 3f9c...
  podsnap verify file:web-2.podsnap")]
pub struct Args {
    #[command(flatten)]
    wanted: Wanted,
    /// Only about this share of the chunks, spread over the snapshot
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    sample: Option<f64>,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("a sample is more than 0 and at most 100 percent".to_owned()),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    snapshot: &'a str,
    digest: String,
    sound: bool,
    #[serde(flatten)]
    report: &'a VerifyReport,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (store, snapshot, sections) = context.open_wanted(&args.wanted).await?;
    let options = VerifyOptions {
        sections,
        sample: args.sample.map(|percent| percent / 100.0),
        cancel: context.cancel.clone(),
        ..VerifyOptions::default()
    };
    let bar = context.bar(Doing::Verifying, &options.progress);
    let report = snapshot.verify(&store, &options).await?;
    drop(bar);
    let (id, digest) = (snapshot.id().as_ref(), snapshot.digest().to_string());
    let document = Report {
        snapshot: id,
        digest,
        sound: report.is_sound(),
        report: &report,
    };
    if report.is_sound() {
        context.report(&document, || summary(id, &report))?;
        Ok(0)
    } else {
        context.show(&document, || summary(id, &report))?;
        Ok(exit::DAMAGED)
    }
}

fn summary(id: &str, report: &VerifyReport) -> String {
    let elapsed = Duration::from_millis(report.elapsed_ms);
    let mut text = format!(
        "{id} {}: {} of {} checked in {}, {}\n",
        if report.is_sound() {
            "is sound"
        } else {
            "is damaged"
        },
        report::count(report.chunks, "chunk"),
        report::bytes(report.raw_bytes),
        report::seconds(elapsed),
        report::rate(report.raw_bytes, elapsed),
    );
    for pack in &report.rebuilt_indexes {
        text.push_str(&format!(
            "  the index of {pack} is lost; its frames were found by scanning\n"
        ));
    }
    for damage in &report.damage {
        text.push_str(&format!("  {}\n", printable_message(&damage.what)));
        for lost in &damage.lost {
            let lost = printable_message(&lost.to_string());
            text.push_str(&format!("    {lost}\n"));
        }
    }
    if !report.is_sound() {
        text.push_str("  podsnap restore --salvage brings back the rest\n");
    }
    text
}
