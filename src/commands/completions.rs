//! `podsnap completions`: the script that lets a shell complete podsnap's arguments.

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use crate::{args::Cli, exit::Failure, report};

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  podsnap completions bash > /etc/bash_completion.d/podsnap")]
pub struct Args {
    /// The shell
    shell: Shell,
}

pub fn run(args: Args) -> Result<u8, Failure> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "podsnap", &mut script);
    report::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
