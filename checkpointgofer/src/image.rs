//! The files of an image, by the names that the sentry opens them by, and the sections that they become.

use podsnap_engine::{Role, gvisor};

/// The sandbox's threads, open files and whatever else is not memory.
pub const CHECKPOINT: &str = "checkpoint.img";

/// What belongs where in the memory.
pub const PAGES_META: &str = "pages_meta.img";

/// The memory.
pub const PAGES: &str = "pages.img";

/// The files of a checkpoint.
const FILES: [&str; 3] = [CHECKPOINT, PAGES_META, PAGES];

/// A file of a checkpoint, by its name.
pub fn file(name: &str) -> Option<&'static str> {
    FILES.into_iter().find(|file| *file == name)
}

/// Role and name of the section that a file becomes.
pub fn section(file: &str) -> (Role, &'static str) {
    gvisor::section_of(file).expect("files of an image have sections")
}
