//! `podsnap bucket`: whether a bucket is fit for snapshots, and how to make one that is.

use std::time::Duration;

use clap::Subcommand;
use podsnap::{
    printable_message,
    store::{
        GcsBackend,
        gcs::{Access, BucketCheck, Permission, RetryPolicy, bucket::Bucket, setup_commands},
    },
};
use serde::Serialize;

use crate::{
    context::Context,
    exit::{self, Failure},
    report,
};

/// Check a bucket of Google Cloud Storage, or print how to make one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap bucket check --store gs://snapshots/tenant-7
  podsnap bucket create-command snapshots --location us-east1")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(CheckArgs),
    CreateCommand(CreateArgs),
}

/// Say what makes the store's bucket slow, expensive or unusable
///
/// Looks at the bucket's settings and location, and tries out what these credentials may do below the store's path; what is
/// written for that is removed again. Each finding comes with the command that mends it.
/// Exits with 0 if nothing slows, breaks or wastes saves, with 1 otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap bucket check --store gs://snapshots/tenant-7
  podsnap bucket check --store gs://snapshots/tenant-7 --json | jq -r '.findings[].command'")]
struct CheckArgs {}

/// Print the commands that make a bucket as snapshots want it
///
/// The bucket, a lifecycle rule for what crashes leave, and a role that suffices to save and restore. PROJECT and PRINCIPAL are to be
/// filled in. Nothing is sent anywhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap bucket create-command snapshots --location us-east1
  podsnap bucket create-command snapshots --location us-east1 --path tenant-7")]
struct CreateArgs {
    /// Name of the new bucket
    #[arg(value_parser = parse_bucket)]
    bucket: String,
    /// Its region, best that of the machines that use it
    #[arg(long, value_name = "REGION", value_parser = parse_location)]
    location: String,
    /// Let somebody use only this path of it, which becomes a managed folder
    #[arg(long, default_value = "", hide_default_value = true)]
    path: String,
}

/// Google's rules for names, without those that take a look at all other buckets.
fn parse_bucket(text: &str) -> Result<String, String> {
    let name = text
        .strip_prefix("gs://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    match (3..=222).contains(&name.len()) && name.chars().all(plain) {
        true => Ok(name.to_owned()),
        false => Err(
            "a bucket's name has 3 or more lower-case letters, digits, '-', '_' and '.'".to_owned(),
        ),
    }
}

fn parse_location(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    match !text.is_empty() && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("a location has letters, digits and '-', such as us-east1".to_owned()),
    }
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    match args.command {
        Command::Check(CheckArgs {}) => check(context).await,
        Command::CreateCommand(args) => create_command(&args, context),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    fine: bool,
    #[serde(flatten)]
    check: &'a BucketCheck,
}

async fn check(context: &Context) -> Result<u8, Failure> {
    let url = context.url()?;
    if !url.starts_with("gs://") {
        return Err(
            Failure::usage(format!("{url} is no bucket of Google Cloud Storage"))
                .hint("give --store gs://BUCKET/PATH"),
        );
    }
    let mut options = context.options().gcs.clone();
    // Somebody sits there and waits.
    options.retry = RetryPolicy {
        give_up_after: Duration::from_secs(20),
        answer_timeout: Duration::from_secs(5),
        ..options.retry
    };
    let check = GcsBackend::open(&url, options)?
        .check(&context.cancel)
        .await?;
    let document = Report {
        fine: check.is_fine(),
        check: &check,
    };
    context.show(&document, || text(&check))?;
    Ok(if check.is_fine() { 0 } else { exit::FAILED })
}

fn text(check: &BucketCheck) -> String {
    let mut text = format!("{}\n", printable_message(&check.store));
    if let Some(bucket) = &check.bucket {
        text.push_str(&settings(bucket, check.region.as_deref()));
    }
    text.push_str("\nPermissions\n");
    let rows: Vec<_> = check.permissions.iter().map(row).collect();
    text.push_str(&report::table(&rows, &[]));
    if check.findings.is_empty() {
        text.push_str("\nNothing is wrong.\n");
    }
    for (number, finding) in check.findings.iter().enumerate() {
        let problem = printable_message(&finding.problem);
        let weight = if finding.slows_saves { "" } else { " (minor)" };
        text.push_str(&format!(
            "\n{}. {}{weight}: {problem}\n",
            number + 1,
            finding.kind
        ));
        if let Some(command) = &finding.command {
            text.push_str(&format!("   {}\n", printable_message(command)));
        }
    }
    text
}

fn settings(bucket: &Bucket, region: Option<&str>) -> String {
    let or_none = |seconds: u64| match seconds {
        0 => "off".to_owned(),
        s => format!("{s} s"),
    };
    let on = |yes: bool| if yes { "on" } else { "off" }.to_owned();
    let location = match region {
        Some(region) => format!("{} (this machine: {region})", bucket.location),
        None => bucket.location.clone(),
    };
    let rows = [
        ("location", location),
        ("storage class", bucket.storage_class.clone()),
        ("hierarchical namespace", on(bucket.hierarchical_namespace)),
        ("uniform access", on(bucket.uniform_access)),
        ("soft delete", or_none(bucket.soft_delete_s)),
        ("retention", or_none(bucket.retention_s.unwrap_or(0))),
        ("default hold", on(bucket.default_hold)),
        ("removal of abandoned parts", on(bucket.removes_parts)),
    ];
    let rows = rows.map(|(what, value)| vec![format!("  {what}"), printable_message(&value)]);
    report::table(&rows, &[])
}

fn row(permission: &Permission) -> Vec<String> {
    let access = match permission.access {
        Access::Granted => "granted",
        Access::Refused if permission.needed => "REFUSED",
        Access::Refused => "absent",
        _ => "unknown",
    };
    vec![
        format!("  {}", permission.name),
        access.to_owned(),
        permission.purpose.to_owned(),
    ]
}

#[derive(Serialize)]
struct Step<'a> {
    purpose: &'a str,
    command: &'a str,
}

fn create_command(args: &CreateArgs, context: &Context) -> Result<u8, Failure> {
    let path = args.path.trim_matches('/');
    let commands = setup_commands(&args.bucket, &args.location, path);
    let steps = commands
        .iter()
        .map(|(purpose, command)| Step { purpose, command });
    let document: Vec<_> = steps.collect();
    context.show(&document, || {
        let lines = commands.iter();
        lines
            .map(|(purpose, command)| format!("# {purpose}\n{command}\n"))
            .collect()
    })?;
    Ok(0)
}
