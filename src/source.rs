//! Sources of a save as the command line names them, and the sections they become.

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use podsnap::{
    Input, NewSection, Role, gvisor,
    source::{PathReader, ProcessMemory},
};

use crate::{args::SectionName, exit::Failure};

/// One SOURCE of `podsnap save`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceArg {
    /// A gVisor image directory.
    Image(PathBuf),
    /// Standard input.
    Stdin(SectionName),
    /// The memory of a stopped process.
    Process(SectionName, u32),
    /// A file, a directory, a pipe or a device.
    Path(SectionName, PathBuf),
}

impl FromStr for SourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, path)) = text.split_once('=') else {
            return Ok(Self::Image(text.into()));
        };
        let section = match name.parse::<SectionName>() {
            Ok(section) => section,
            // A directory's name may have a '=' too.
            Err(_) if Path::new(text).is_dir() => return Ok(Self::Image(text.into())),
            Err(e) => return Err(e),
        };
        if path.is_empty() {
            return Err(format!("{name}= must be followed by a path"));
        }
        match (path, path.strip_prefix("pid:")) {
            ("-", _) => Ok(Self::Stdin(section)),
            (_, Some(pid)) if section.role == Role::Memory => {
                let pid = pid
                    .parse()
                    .map_err(|_| format!("{pid:?} is no process id"))?;
                Ok(Self::Process(section, pid))
            }
            _ => Ok(Self::Path(section, path.into())),
        }
    }
}

impl SourceArg {
    pub fn is_stdin(&self) -> bool {
        matches!(self, Self::Stdin(_))
    }

    /// Opens the source.
    pub fn sections(&self) -> Result<Vec<NewSection>, Failure> {
        Ok(match self {
            Self::Image(dir) if gvisor::is_image(dir) => gvisor::sections(dir)?,
            Self::Image(dir) => return Err(no_image(dir)),
            Self::Stdin(SectionName { role, name }) if is_tree(*role) => {
                vec![NewSection::tar(*role, name, io::stdin(), "standard input")]
            }
            Self::Stdin(SectionName { role, name }) => {
                vec![NewSection::blob(
                    *role,
                    name,
                    Input::stream(io::stdin(), "standard input"),
                )]
            }
            Self::Process(SectionName { role, name }, pid) => {
                let memory = ProcessMemory::open(*pid)?;
                let address_ranges = memory.address_ranges().to_vec();
                let section = NewSection::blob(*role, name, Input::Source(Arc::new(memory)));
                vec![NewSection {
                    address_ranges,
                    ..section
                }]
            }
            Self::Path(SectionName { role, name }, path) => vec![of_path(*role, name, path)?],
        })
    }
}

fn of_path(role: Role, name: &str, path: &Path) -> Result<NewSection, Failure> {
    let is_dir = path.is_dir();
    Ok(match (is_tree(role), is_dir) {
        (true, true) => NewSection::directory(role, name, path)?,
        (false, true) if role == Role::Other => NewSection::directory(role, name, path)?,
        (true, false) => {
            let tar = io::BufReader::with_capacity(1 << 20, PathReader::open(path)?);
            NewSection::tar(role, name, tar, path.display().to_string())
        }
        (false, _) => NewSection::blob(role, name, Input::file(path)?),
    })
}

/// Roles whose sections are trees.
fn is_tree(role: Role) -> bool {
    matches!(role, Role::Rootfs | Role::Tmpfs)
}

fn no_image(dir: &Path) -> Failure {
    let problem = if !dir.exists() {
        "does not exist"
    } else if !dir.is_dir() {
        "is no directory"
    } else {
        "is no gVisor image directory: it has no checkpoint.img of gVisor's"
    };
    let failure = if dir.exists() {
        Failure::usage
    } else {
        Failure::source
    };
    failure(format!("{} {problem}", dir.display()))
        .hint("a source is a gVisor image directory or ROLE[:NAME]=PATH, such as memory=ram.bin or rootfs=upper")
}
