//! What `tests/provision.sh` has made, and how a test says that it lacks something. The gofer's tests share this file.

use std::{io::Write, path::PathBuf};

/// Says why a test checked nothing. `./test` shows these lines at its end.
pub fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// The directory of what `tests/provision.sh` makes.
pub fn cache() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("PODSNAP_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("podsnap")))
        .unwrap_or_else(|| set("HOME").unwrap_or_default().join(".cache/podsnap"))
}

/// A provisioned file or directory, if it is there; says so if not.
pub fn provisioned(name: &str) -> Option<PathBuf> {
    let path = cache().join(name);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("{name}: tests/provision.sh has not made it"));
    None
}
