//! gVisor checkpoint images: recognising one, its files as sections, its description as metadata, and the way back.
//!
//! An image directory holds `checkpoint.img` (kernel state), and, unless it was compressed by gVisor itself, `pages_meta.img` and
//! `pages.img` (memory). `checkpoint.img` begins with the magic "gVisorSF", a big-endian u64 length and as many bytes of
//! JSON, a map of strings; everything behind that is opaque to us (pkg/state/statefile in google/gvisor).
//!
//! The image of a file system only has `fscheckpoint.pb` and `multitar.img` in place of `checkpoint.img`.
//!
//! ```
//! # use podsnap_engine as podsnap;
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (image, restored) = (dir.path().join("image"), dir.path().join("restored"));
//! # std::fs::create_dir(&image)?;
//! # let description = br#"{"runsc_version":"release-1"}"#;
//! # let checkpoint = [b"gVisorSF", &(description.len() as u64).to_be_bytes()[..], description, b"opaque"].concat();
//! # std::fs::write(image.join("checkpoint.img"), checkpoint)?;
//! # std::fs::write(image.join("pages_meta.img"), "meta")?;
//! # std::fs::write(image.join("pages.img"), vec![7; 8192])?;
//! use podsnap::{RestoreOptions, SaveOptions, Store, gvisor};
//!
//! let store = Store::open("memory://gvisor")?;
//! let options = SaveOptions {
//!     gvisor: gvisor::read_metadata(&image)?,
//!     ..SaveOptions::default()
//! };
//! let mut writer = store.save(&"web-1".parse()?, options).await?;
//! for section in gvisor::sections(&image)? {
//!     writer.add(section).await?;
//! }
//! writer.finish().await?;
//!
//! // A directory for `runsc restore -image-path`.
//! let snapshot = store.snapshot(&"web-1".parse()?).await?;
//! snapshot.restore(&store, &restored, &RestoreOptions::default()).await?;
//! assert!(gvisor::is_image(&restored));
//! # assert_eq!(std::fs::read(restored.join("pages.img"))?, vec![7; 8192]);
//! # Ok(()) }
//! ```

mod raw;

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use podsnap_format::{Role, manifest::SectionInfo};

pub use raw::{RawFile, RawImage};

use crate::{
    error::{Error, Result},
    save::NewSection,
    source::Input,
};

/// The file that makes a directory an image: the sandbox's threads, open files and whatever else is not memory.
pub const CHECKPOINT: &str = "checkpoint.img";

/// The file that makes a directory the image of file systems: which there are.
pub const FS_MANIFEST: &str = "fscheckpoint.pb";

/// The trees of files of such an image.
pub const MULTI_TAR: &str = "multitar.img";

/// What belongs where in the memory.
pub const PAGES_META: &str = "pages_meta.img";

/// The memory.
pub const PAGES: &str = "pages.img";

const MAGIC: &[u8; 8] = b"gVisorSF";

/// Longest description gVisor itself reads, in bytes.
pub const MAX_METADATA_LEN: u64 = 16 << 20;

/// Name of the kernel section: nothing tells it apart, a pod has one.
const KERNEL: (Role, &str) = (Role::Kernel, "");

/// Files of an image and the sections they become, in the order in which they are saved.
const FILES: [(&str, (Role, &str)); 5] = [
    (CHECKPOINT, KERNEL),
    (FS_MANIFEST, (Role::Other, "fscheckpoint")),
    (MULTI_TAR, (Role::Other, "multitar")),
    (PAGES_META, (Role::Memory, "pages_meta")),
    (PAGES, (Role::Memory, "")),
];

/// Whether `dir` looks like an image directory.
pub fn is_image(dir: &Path) -> bool {
    let file_system = [FS_MANIFEST, MULTI_TAR];
    has_checkpoint(dir) || file_system.iter().all(|file| dir.join(file).is_file())
}

fn has_checkpoint(dir: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(dir.join(CHECKPOINT))
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok()
        && magic == *MAGIC
}

/// The image's own description: runsc version, containers, network mode and what else gVisor writes. That of a file system's image is empty.
pub fn read_metadata(dir: &Path) -> Result<BTreeMap<String, String>> {
    let path = dir.join(CHECKPOINT);
    if !path.exists() && is_image(dir) {
        return Ok(BTreeMap::new());
    }
    let file = File::open(&path).map_err(|e| Error::source(path.display(), e))?;
    parse_metadata(file, &path.display().to_string())
}

/// The description at the beginning of a `checkpoint.img`, which errors call `name`. Reads no more than that.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # fn main() -> podsnap::Result<()> {
/// let description = br#"{"runsc_version":"release-1"}"#;
/// let len = (description.len() as u64).to_be_bytes();
/// let file = [b"gVisorSF", &len[..], description, b"opaque"].concat();
/// let metadata = podsnap::gvisor::parse_metadata(&file[..], "checkpoint.img")?;
/// assert_eq!(metadata["runsc_version"], "release-1");
/// # Ok(()) }
/// ```
pub fn parse_metadata(mut file: impl Read, name: &str) -> Result<BTreeMap<String, String>> {
    let mut head = [0; 16];
    file.read_exact(&mut head)
        .map_err(|e| Error::source(name, e))?;
    let (magic, len) = head.split_at(8);
    let len = u64::from_be_bytes(len.try_into().expect("eight bytes"));
    if magic != MAGIC || len > MAX_METADATA_LEN {
        return Err(Error::invalid(format!("{name} is not a gVisor checkpoint")));
    }
    let mut json = Vec::new();
    file.take(len)
        .read_to_end(&mut json)
        .map_err(|e| Error::source(name, e))?;
    serde_json::from_slice(&json)
        .map_err(|e| Error::invalid(format!("the description in {name} cannot be read")).because(e))
}

/// The image's files as sections. Files that an image does not have to have may be missing.
pub fn sections(dir: &Path) -> Result<Vec<NewSection>> {
    let mut sections = Vec::new();
    for (file, (role, name)) in FILES {
        let path = dir.join(file);
        if path.exists() {
            sections.push(NewSection::blob(role, name, Input::file(&path)?));
        }
    }
    Ok(sections)
}

/// Role and name of the section that a file of an image becomes, if it is one: `pages.img`, say.
pub fn section_of(file: &str) -> Option<(Role, &'static str)> {
    let found = FILES.iter().find(|(name, _)| *name == file);
    found.map(|(_, section)| *section)
}

/// The name of the file that a section is restored to, if it is one of an image's.
pub(crate) fn file_name(section: &SectionInfo) -> Option<&'static str> {
    let of_section =
        |(_, (role, name)): &&(&str, (Role, &str))| *role == section.role && *name == section.name;
    FILES.iter().find(of_section).map(|(file, _)| *file)
}
