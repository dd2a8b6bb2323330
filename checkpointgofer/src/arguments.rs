//! The command line that runsc starts a checkpoint gofer with: its own global flags, the word `checkpointgofer`, then what is for the gofer.

use std::ffi::OsString;

use crate::image::Kind;

/// What runsc asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// What the sandbox may do.
    pub task: Task,
    /// The socket that is connected to the sandbox.
    pub socket: i32,
    /// The open file with the options.
    pub options: i32,
    /// Open files that logs go to.
    pub logs: Vec<i32>,
    /// Whether everything is to be logged.
    pub debug: bool,
}

/// What the gofer is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A checkpoint is restored.
    Restore,
    /// A checkpoint is saved.
    Save,
    /// A file system's checkpoint is restored.
    RestoreFiles,
    /// A file system's checkpoint is saved.
    SaveFiles,
}

impl Task {
    /// What the checkpoint is of.
    pub fn kind(self) -> Kind {
        match self {
            Self::Restore | Self::Save => Kind::Sandbox,
            Self::RestoreFiles | Self::SaveFiles => Kind::FileSystem,
        }
    }
}

/// The word between runsc's flags and the gofer's.
const COMMAND: &str = "checkpointgofer";

impl Arguments {
    /// Parses the arguments behind the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let args: Vec<String> = args
            .into_iter()
            .map(|arg| arg.to_string_lossy().into_owned())
            .collect();
        let command = args.iter().position(|arg| arg == COMMAND);
        let command = command.ok_or("it is started by runsc, with the command checkpointgofer")?;
        let (mut logs, mut debug) = (Vec::new(), false);
        for arg in &args[..command] {
            // runsc has many more, which are not for us.
            match flag(arg) {
                Some(("log-fd" | "debug-log-fd", Some(fd))) => logs.push(descriptor(arg, fd)?),
                Some(("debug", Some(value))) => debug = boolean(arg, value)?,
                _ => {}
            }
        }
        let (mut task, mut socket, mut options) = (None, None, None);
        for arg in &args[command + 1..] {
            let (name, value) = flag(arg).ok_or_else(|| format!("unexpected argument {arg:?}"))?;
            let wanted = match name {
                "allow-checkpoint-reads" => Task::Restore,
                "allow-checkpoint-writes" => Task::Save,
                "allow-fscheckpoint-reads" => Task::RestoreFiles,
                "allow-fscheckpoint-writes" => Task::SaveFiles,
                "sock-fd" | "gcs-opts-fd" => {
                    let value = value.ok_or_else(|| format!("{arg} must be followed by =FD"))?;
                    let fd = Some(descriptor(arg, value)?);
                    match name {
                        "sock-fd" => socket = fd,
                        _ => options = fd,
                    }
                    continue;
                }
                _ => return Err(format!("unknown argument {arg:?}")),
            };
            if boolean(arg, value.unwrap_or("true"))? && task.replace(wanted).is_some() {
                return Err("it is started for one thing at a time".to_owned());
            }
        }
        Ok(Self {
            task: task.ok_or("none of the -allow flags is given")?,
            socket: socket.ok_or("-sock-fd is missing")?,
            options: options.ok_or("-gcs-opts-fd is missing")?,
            logs,
            debug,
        })
    }
}

/// Name and value of `-name`, `--name` or `--name=value`.
fn flag(arg: &str) -> Option<(&str, Option<&str>)> {
    let flag = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'))?;
    Some(match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    })
}

fn descriptor(arg: &str, value: &str) -> Result<i32, String> {
    let fd = value.parse().ok().filter(|fd| *fd > 2);
    fd.ok_or_else(|| format!("{arg:?} is no file descriptor of the gofer's own"))
}

/// What Go takes for true and false.
fn boolean(arg: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{arg:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn what_runsc_says() {
        let args = [
            "--debug=true",
            "--root=/run/checkpointgofer",
            "--platform=systrap",
            "--log-fd=5",
            "--debug-log-fd=6",
            "checkpointgofer",
            "-sock-fd=3",
            "-gcs-opts-fd=4",
            "-allow-checkpoint-writes",
        ];
        let expected = Arguments {
            task: Task::Save,
            socket: 3,
            options: 4,
            logs: vec![5, 6],
            debug: true,
        };
        assert_eq!(parse(&args), Ok(expected));
        for (flag, task) in [
            ("-allow-checkpoint-reads", Task::Restore),
            ("-allow-fscheckpoint-reads=true", Task::RestoreFiles),
            ("--allow-fscheckpoint-writes", Task::SaveFiles),
        ] {
            let found = parse(&["checkpointgofer", "-sock-fd=3", "-gcs-opts-fd=4", flag]);
            assert_eq!(found.unwrap().task, task);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let fds = ["checkpointgofer", "-sock-fd=3", "-gcs-opts-fd=4"];
        let with = |more: &[&'static str]| [&fds[..], more].concat();
        for args in [
            vec![],
            vec!["-sock-fd=3"],
            fds.to_vec(),
            with(&["-allow-checkpoint-reads", "-allow-checkpoint-writes"]),
            with(&["-allow-checkpoint-reads=maybe"]),
            with(&["-allow-everything"]),
            with(&["-allow-checkpoint-reads", "-sock-fd=0"]),
            with(&["-allow-checkpoint-reads", "-sock-fd"]),
            with(&["-allow-checkpoint-reads", "3"]),
            vec!["checkpointgofer", "-sock-fd=3", "-allow-checkpoint-reads"],
        ] {
            assert!(parse(&args).is_err(), "{args:?}");
        }
    }
}
