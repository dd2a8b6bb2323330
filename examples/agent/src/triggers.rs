//! Which triggers were obeyed: each is once, also by an agent that starts again; one that goes and comes back is a new one.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use podsnap::policy::PodSnapshotManualTrigger;

pub struct Triggers {
    /// Has a file for each, so that it outlives the agent.
    dir: PathBuf,
    obeyed: BTreeSet<String>,
}

impl Triggers {
    pub fn open(dir: &Path) -> Result<Self, String> {
        let read = || {
            fs::create_dir_all(dir)?;
            fs::read_dir(dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<_>>()
        };
        let obeyed = read().map_err(|e| format!("{}: {e}", dir.display()))?;
        let dir = dir.to_owned();
        Ok(Self { dir, obeyed })
    }

    /// Forgets those that are no more, and returns those that are new, which count as obeyed from now on.
    pub fn new_ones(&mut self, all: &[PodSnapshotManualTrigger]) -> Vec<PodSnapshotManualTrigger> {
        let names: BTreeSet<String> = all.iter().map(name).collect();
        for gone in self.obeyed.difference(&names) {
            let _ = fs::remove_file(self.dir.join(gone));
        }
        let new = all.iter().filter(|trigger| {
            let name = name(trigger);
            let is_new = !self.obeyed.contains(&name);
            if is_new && let Err(e) = File::create(self.dir.join(&name)) {
                eprintln!("agent: an agent that starts again will obey {name} again: {e}");
            }
            is_new
        });
        let new = new.cloned().collect();
        self.obeyed = names;
        new
    }
}

/// One that is a file's: neither part of it can have a `_`.
fn name(trigger: &PodSnapshotManualTrigger) -> String {
    format!("{}_{}", trigger.metadata.namespace, trigger.metadata.name)
}
