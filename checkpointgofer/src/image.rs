//! The files of an image, by the names that the sentry opens them by, and the sections that they become.

use podsnap_engine::{
    Role,
    gvisor::{self, FS_MANIFEST, MULTI_TAR, PAGES_META},
};

pub use podsnap_engine::gvisor::{CHECKPOINT, PAGES};

/// What an image is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole sandbox.
    Sandbox,
    /// The contents of its file systems.
    FileSystem,
}

impl Kind {
    /// The files of such an image.
    fn files(self) -> &'static [&'static str] {
        match self {
            Self::Sandbox => &[CHECKPOINT, PAGES_META, PAGES],
            Self::FileSystem => &[FS_MANIFEST, MULTI_TAR, PAGES_META, PAGES],
        }
    }

    /// The file that makes it one.
    pub fn first(self) -> &'static str {
        self.files()[0]
    }

    /// A file of such an image, by its name.
    pub fn file(self, name: &str) -> Result<&'static str, String> {
        let file = self.files().iter().find(|file| **file == name);
        file.copied().ok_or_else(|| match self {
            Self::Sandbox => format!("{name:?} is no file of a checkpoint"),
            Self::FileSystem => format!("{name:?} is no file of a file system's checkpoint"),
        })
    }
}

/// Role and name of the section that a file becomes.
pub fn section(file: &str) -> (Role, &'static str) {
    gvisor::section_of(file).expect("files of an image have sections")
}
