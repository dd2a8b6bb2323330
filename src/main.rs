//! The command line `podsnap`: arguments in, one command run to its end or its interruption, an exit code out.
//!
//! Everything that has to do with snapshots is in the library; what is here talks to the person or the script in front.

mod args;
mod commands;
mod context;
mod exit;
mod interrupt;
mod learning;
mod output;
mod plot;
mod progress;
mod report;
mod source;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Parser, error::ErrorKind as ClapKind};
use podsnap::Statsd;
use tracing_subscriber::EnvFilter;

use crate::{
    args::Cli,
    commands::{Command, demo},
    context::Context,
    exit::Failure,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refused(&e),
    };
    start_logging(cli.global.verbose);
    let json = cli.global.json;
    let result = run(cli);
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            failure.print(json);
            failure.code.into()
        }
    }
}

/// Runs the command on a small runtime: the work is done by the store's own threads, these only wait.
fn run(cli: Cli) -> Result<u8, Failure> {
    if let Command::DemoPod(args) = cli.command {
        // It must have no other threads: who stops it has stopped all of it then.
        return demo::pod::run(args);
    }
    let _statsd = cli
        .global
        .statsd
        .as_deref()
        .map(Statsd::start)
        .transpose()?;
    let context = Context::new(cli.global)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("podsnap-io")
        .enable_all()
        .build()
        .map_err(|e| Failure::other(format!("cannot start threads: {e}")))?;
    let result = runtime.block_on(async {
        interrupt::listen(context.cancel.clone())?;
        commands::run(cli.command, &context).await
    });
    // A thread may still wait for a pipe that nobody will ever write to.
    runtime.shutdown_background();
    result
}

/// Help, the version, or arguments that make no sense.
fn refused(e: &clap::Error) -> ExitCode {
    let asked_for = matches!(e.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion);
    if !asked_for && std::env::args_os().any(|a| a == "--json") {
        Failure::usage(problem(e))
            .hint("see podsnap --help")
            .print(true);
    } else {
        // A closed pipe is no reason to complain to it.
        let _ = e.print();
    }
    if asked_for {
        ExitCode::SUCCESS
    } else {
        exit::USAGE.into()
    }
}

/// What clap complains about, without its advice, as one line.
fn problem(e: &clap::Error) -> String {
    if e.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = e.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty());
    let lines: Vec<_> = lines.map(str::trim).collect();
    lines.join(" ").trim_start_matches("error: ").to_owned()
}

fn start_logging(verbose: u8) {
    let filter = EnvFilter::try_from_env("PODSNAP_LOG").unwrap_or_else(|_| {
        EnvFilter::new(match verbose {
            // The FUSE crate warns when somebody else was first to unmount, which is how a mount is meant to end.
            0 => "warn,fuser=error",
            1 => "podsnap=info,podsnap_engine=info,warn",
            _ => "podsnap=debug,podsnap_engine=debug,info",
        })
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // Whoever did not ask for a log gets warnings, not where and when they were written.
    if verbose == 0 {
        log.with_target(false).without_time().init();
    } else {
        log.init();
    }
}
