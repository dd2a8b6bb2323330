//! The commands, one file each: its arguments with their help, and what it does.

mod bench;
mod bucket;
mod completions;
pub mod demo;
mod diff;
mod export;
mod gc;
mod import;
mod inspect;
mod ls;
mod mount;
mod restore;
mod retain;
mod rm;
mod save;
mod serve_uffd;
mod verify;
mod wait;

use clap::Subcommand;

use crate::{context::Context, exit::Failure};

#[derive(Debug, Subcommand)]
pub enum Command {
    Save(save::Args),
    Restore(restore::Args),
    Mount(mount::Args),
    ServeUffd(serve_uffd::Args),
    Verify(verify::Args),
    Wait(wait::Args),
    Inspect(inspect::Args),
    Diff(diff::Args),
    Ls(ls::Args),
    Rm(rm::Args),
    Retain(retain::Args),
    Gc(gc::Args),
    Export(export::Args),
    Import(import::Args),
    Bench(bench::Args),
    Bucket(bucket::Args),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoPod(demo::pod::Args),
    Completions(completions::Args),
}

/// Runs a command; the exit code says whether it found damage that it was asked to work around or look for.
pub async fn run(command: Command, context: &Context) -> Result<u8, Failure> {
    match command {
        Command::Save(args) => save::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Mount(args) => mount::run(args, context).await,
        Command::ServeUffd(args) => serve_uffd::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Wait(args) => wait::run(args, context).await,
        Command::Inspect(args) => inspect::run(args, context).await,
        Command::Diff(args) => diff::run(args, context).await,
        Command::Ls(args) => ls::run(args, context).await,
        Command::Rm(args) => rm::run(args, context).await,
        Command::Retain(args) => retain::run(args, context).await,
        Command::Gc(args) => gc::run(args, context).await,
        Command::Export(args) => export::run(args, context).await,
        Command::Import(args) => import::run(args, context).await,
        Command::Bench(args) => bench::run(args, context).await,
        Command::Bucket(args) => bucket::run(args, context).await,
        Command::Demo(args) => demo::run(args, context).await,
        Command::DemoPod(args) => demo::pod::run(args),
        Command::Completions(args) => completions::run(args),
    }
}
