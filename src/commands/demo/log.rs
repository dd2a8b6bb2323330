//! What the pod printed.

use std::{fs, io, path::PathBuf};

/// The file that a pod's standard output goes to; what it says on standard error goes beside it.
#[derive(Debug, Clone)]
pub struct Log {
    pub out: PathBuf,
    pub err: PathBuf,
}

impl Log {
    pub fn new(out: PathBuf) -> Self {
        Self {
            err: out.with_added_extension("err"),
            out,
        }
    }

    /// The files, to be written by a new process.
    pub fn create(&self) -> io::Result<(fs::File, fs::File)> {
        Ok((fs::File::create(&self.out)?, fs::File::create(&self.err)?))
    }

    /// The numbers it has counted. A pod that was restored goes on at its old place in the file: NULs stand before it.
    pub fn counts(&self) -> Vec<u64> {
        let numbers = |text: String| {
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            let lines = whole.lines().map(|line| line.trim_start_matches('\0'));
            lines
                .filter_map(|line| line.strip_prefix("count ")?.parse().ok())
                .collect()
        };
        fs::read_to_string(&self.out)
            .map(numbers)
            .unwrap_or_default()
    }

    /// The number it has counted to.
    pub fn count(&self) -> u64 {
        self.counts().last().copied().unwrap_or(0)
    }

    /// Address and length of its state.
    pub fn state(&self) -> Option<(u64, u64)> {
        let text = fs::read_to_string(&self.out).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("state "))?;
        let (address, length) = line.split_once(' ')?;
        Some((address.parse().ok()?, length.parse().ok()?))
    }

    /// The last thing it complained about.
    pub fn complaint(&self) -> Option<String> {
        let text = fs::read_to_string(&self.err).ok()?;
        let last = text.lines().rfind(|line| !line.trim().is_empty())?;
        Some(last.trim().to_owned())
    }
}
