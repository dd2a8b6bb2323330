//! Full restores: every chunk is read once, in the order of the packs, decoded and checked once, and written to every
//! place it belongs to. Zeros stay holes.
//!
//! A restore into a directory happens beside it, under a temporary name, and takes the directory's place when it is whole;
//! a restore that fails or is killed never leaves something that looks like the snapshot.

pub(crate) mod fetch;
pub(crate) mod plan;
mod target;

use std::{
    fs,
    io::Write,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Instant,
};

use podsnap_format::{
    Shape,
    manifest::SectionInfo,
    tree::{MAX_TABLE_LEN, TreeTable},
};
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use tokio_util::sync::CancellationToken;

pub use self::target::Target;
use self::{
    plan::{Placement, Plan},
    target::{FileTarget, TreeTarget},
};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    gvisor,
    progress::Progress,
    snapshot::Snapshot,
};

/// How a snapshot is restored. The default restores everything, and fails at the first damage.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://restore")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path().join("restored");
/// use podsnap::RestoreOptions;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// let options = RestoreOptions {
///     sections: vec![snapshot.find_section(Role::Memory, "second")?],
///     ..RestoreOptions::default()
/// };
/// let stats = snapshot.restore(&store, &dir, &options).await?;
/// assert_eq!(stats.raw_bytes, std::fs::metadata(dir.join("memory.second"))?.len());
/// assert!(stats.warnings.is_empty());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// Numbers of the sections to restore; all if empty.
    pub sections: Vec<usize>,
    /// Restore what is undamaged and report the rest, instead of failing at the first damage.
    pub salvage: bool,
    /// Whether an owner, device or attribute that cannot be restored is an error instead of a warning.
    pub strict: bool,
    /// Ends the restore with [`ErrorKind::Interrupted`](crate::ErrorKind) when it is cancelled.
    pub cancel: CancellationToken,
    /// Where the restore counts what it does.
    pub progress: Progress,
}

/// A chunk that could not be had, and what it would have been.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// Which object, where, and what is wrong.
    pub what: String,
    /// Ranges of sections that are lost by it.
    pub lost: Vec<LostRange>,
}

/// A range of a section.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LostRange {
    /// The section, as on the command line.
    pub section: String,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RestoreStats {
    /// Bytes of the restored sections.
    pub raw_bytes: u64,
    /// Of these, in zero runs.
    pub zero_bytes: u64,
    /// Bytes read from packs.
    pub read_bytes: u64,
    /// Chunks decoded and checked.
    pub chunks: u64,
    /// Time in milliseconds.
    pub elapsed_ms: u64,
    /// What could not be had; never anything unless salvaging.
    pub damage: Vec<Damage>,
    /// What could not be set exactly as it was.
    pub warnings: Vec<String>,
}

impl Snapshot {
    /// Restores into `dir`, which must not exist or be empty. A gVisor checkpoint becomes an image directory again; other sections
    /// become files and directories named after them.
    pub async fn restore(
        &self,
        store: &Store,
        dir: &Path,
        options: &RestoreOptions,
    ) -> Result<RestoreStats> {
        let dir = vacant(dir)?;
        let partial = Partial::create(&dir)?;
        let sections = self.chosen(options)?;
        let mut targets: Vec<(usize, Arc<dyn Target>)> = Vec::new();
        let mut lost = Vec::new();
        for section in sections {
            let path = partial.path.join(self.file_name(section));
            match self.new_target(section, &path, options).await {
                Ok(target) => targets.push((section, target)),
                // Without its table nothing of a tree can be had; the other sections can.
                Err(e) if options.salvage && is_damage(&e) => {
                    lost.push(self.lose(section, 0..self.sections()[section].length, &e));
                }
                Err(e) => return Err(e),
            }
        }
        let mut stats = self.restore_to(store, targets, options).await?;
        stats.damage.extend(lost);
        partial.become_whole(&dir)?;
        Ok(stats)
    }

    /// Restores sections, given by their numbers, into targets of the caller's: device memory, a mapping. See [`Target`] for an example.
    pub async fn restore_to(
        &self,
        store: &Store,
        targets: Vec<(usize, Arc<dyn Target>)>,
        options: &RestoreOptions,
    ) -> Result<RestoreStats> {
        let started = Instant::now();
        let (mut plan, mut raw_bytes, mut zero_bytes) = (Plan::default(), 0, 0);
        let mut damage = Vec::new();
        for (number, (section, _)) in targets.iter().enumerate() {
            raw_bytes += self.sections()[*section].length;
            let (zeros, lost) = self
                .plan_section(&mut plan, number as u32, *section)
                .await?;
            zero_bytes += zeros;
            for (range, error) in lost {
                let lost = self.lose(*section, range, &error);
                if !options.salvage {
                    return Err(lost.refuse(error));
                }
                damage.push(lost);
            }
        }
        options.progress.add_total(raw_bytes);
        options.progress.add_restored(zero_bytes);
        let chunks = plan.chunks.len() as u64;
        let damage = Arc::new(Mutex::new(damage));
        let sink = self.sink(&targets, damage.clone(), options);
        let read_before = options.progress.snapshot().read_bytes;
        fetch::fetch(store, self, plan, sink, &options.progress, &options.cancel).await?;
        let mut warnings = Vec::new();
        let finished = tokio::task::spawn_blocking(move || {
            for (_, target) in &targets {
                warnings.extend(target.finish()?.iter().map(ToString::to_string));
            }
            Ok(warnings)
        });
        let warnings = finished.await.expect("targets do not panic")?;
        let damage = std::mem::take(&mut *damage.lock().expect("no panic while held"));
        let stats = RestoreStats {
            raw_bytes,
            zero_bytes,
            read_bytes: options.progress.snapshot().read_bytes - read_before,
            chunks,
            elapsed_ms: started.elapsed().as_millis() as u64,
            damage,
            warnings,
        };
        crate::metrics::restored(&stats);
        Ok(stats)
    }

    /// Writes one blob section to `out`, in order.
    pub async fn restore_stream(
        &self,
        section: usize,
        out: &mut (dyn Write + Send),
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let reader = self.reader(section);
        let mut buf = vec![0; 4 << 20];
        let mut offset = 0;
        while offset < reader.len() {
            if cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            let len = (reader.len() - offset).min(buf.len() as u64) as usize;
            reader.read_at(&mut buf[..len], offset).await?;
            out.write_all(&buf[..len])
                .map_err(|e| Error::target("the output", e))?;
            offset += len as u64;
        }
        out.flush().map_err(|e| Error::target("the output", e))?;
        Ok(offset)
    }

    /// The entry table of a tree section.
    pub async fn tree_table(&self, section: usize) -> Result<TreeTable> {
        let info = &self.sections()[section];
        let place = || {
            format!(
                "the entry table of {} in {}",
                info.title(),
                self.object_name()
            )
        };
        if info.shape != Shape::Tree {
            return Err(Error::invalid(format!(
                "{} is a blob, not a tree",
                info.title()
            )));
        }
        if info.table_length > MAX_TABLE_LEN {
            return Err(Error::damaged(
                place(),
                format!("{} bytes are refused", info.table_length),
            ));
        }
        let data_length = info.length - info.table_length;
        let mut bytes = vec![0; info.table_length as usize];
        self.reader(section)
            .read_at(&mut bytes, data_length)
            .await?;
        TreeTable::parse(&bytes, data_length).map_err(|e| Error::damaged(place(), e.to_string()))
    }

    /// The name under which a section is restored.
    pub fn file_name(&self, section: usize) -> String {
        let info = &self.sections()[section];
        let of_image = if self.metadata().gvisor.is_empty() {
            None
        } else {
            gvisor::file_name(info)
        };
        of_image.map_or_else(|| plain_file_name(info), str::to_owned)
    }

    pub(crate) fn chosen(&self, options: &RestoreOptions) -> Result<Vec<usize>> {
        if options.sections.is_empty() {
            return Ok((0..self.sections().len()).collect());
        }
        match options
            .sections
            .iter()
            .find(|s| **s >= self.sections().len())
        {
            Some(section) => Err(Error::invalid(format!(
                "{} has no section number {section}",
                self.id()
            ))),
            None => Ok(options.sections.clone()),
        }
    }

    async fn new_target(
        &self,
        section: usize,
        path: &Path,
        options: &RestoreOptions,
    ) -> Result<Arc<dyn Target>> {
        let info = &self.sections()[section];
        Ok(match info.shape {
            Shape::Blob => Arc::new(FileTarget::create(path, info.length)?),
            Shape::Tree => {
                let table = self.tree_table(section).await?;
                let (path, strict) = (path.to_owned(), options.strict);
                let created =
                    tokio::task::spawn_blocking(move || TreeTarget::create(&path, table, strict));
                Arc::new(created.await.expect("extraction does not panic")?)
            }
        })
    }

    /// Plans a section's chunks, as far as its extent map can be read. Returns the bytes of its zero runs, and the ranges whose map is damaged.
    pub(crate) async fn plan_section(
        &self,
        plan: &mut Plan,
        target: u32,
        section: usize,
    ) -> Result<(u64, Vec<(Range<u64>, Error)>)> {
        let (mut zeros, mut lost) = (0, Vec::new());
        let segments = self.load_each_segment(section).await?;
        for (segment, info) in segments.into_iter().zip(&self.sections()[section].segments) {
            match segment {
                Ok(segment) => zeros += plan.add_segment(target, info.section_offset, &segment),
                Err(e) if is_damage(&e) => {
                    lost.push((
                        info.section_offset..info.section_offset + info.section_len,
                        e,
                    ));
                }
                Err(e) => return Err(e),
            }
        }
        Ok((zeros, lost))
    }

    /// That a range of a section cannot be had.
    pub(crate) fn lose(&self, section: usize, range: Range<u64>, error: &Error) -> Damage {
        Damage {
            what: error.to_string(),
            lost: vec![LostRange {
                section: self.sections()[section].title(),
                offset: range.start,
                len: range.end - range.start,
            }],
        }
    }

    fn sink(
        &self,
        targets: &[(usize, Arc<dyn Target>)],
        damage: Arc<Mutex<Vec<Damage>>>,
        options: &RestoreOptions,
    ) -> fetch::Sink {
        let targets = targets.to_vec();
        let snapshot = self.clone();
        let (salvage, progress) = (options.salvage, options.progress.clone());
        Arc::new(move |planned, arrived| {
            match arrived {
                Ok(bytes) => {
                    for p in &planned.placements {
                        let range = p.start as usize..(p.start + p.len) as usize;
                        targets[p.target as usize]
                            .1
                            .write_at(&bytes[range], p.offset)?;
                        progress.add_restored(p.len.into());
                    }
                }
                Err(error) => {
                    let lost = planned
                        .placements
                        .iter()
                        .map(|p| snapshot.lost(targets[p.target as usize].0, p))
                        .collect();
                    let lost = Damage {
                        what: error.to_string(),
                        lost,
                    };
                    if !salvage {
                        return Err(lost.refuse(error));
                    }
                    damage.lock().expect("no panic while held").push(lost);
                }
            }
            Ok(())
        })
    }

    pub(crate) fn lost(&self, section: usize, placement: &Placement) -> LostRange {
        LostRange {
            section: self.sections()[section].title(),
            offset: placement.offset,
            len: placement.len.into(),
        }
    }
}

/// Whether the error is about stored bytes, so that others may still be had.
fn is_damage(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Missing)
}

/// Lost ranges that an error names; a chunk may stand in thousands of places.
const MAX_NAMED: usize = 8;

impl Damage {
    /// `error` with what is lost by it.
    fn refuse(&self, error: Error) -> Error {
        let mut lost: Vec<_> = self
            .lost
            .iter()
            .take(MAX_NAMED)
            .map(LostRange::to_string)
            .collect();
        if self.lost.len() > MAX_NAMED {
            lost.push(format!("and {} more ranges", self.lost.len() - MAX_NAMED));
        }
        error.hint(format!(
            "{}; restore with salvage to get the undamaged rest",
            lost.join(", ")
        ))
    }
}

impl std::fmt::Display for LostRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bytes at {} of section {} are lost",
            self.len, self.offset, self.section
        )
    }
}

/// Longest name that file systems take, in bytes.
const MAX_FILE_NAME_LEN: usize = 255;

/// The name of a section that is not part of a gVisor image: its label, with everything that is no plain character
/// percent-encoded, so that no name from a manifest can leave the directory. What no file system takes is cut and told apart by its hash.
fn plain_file_name(section: &SectionInfo) -> String {
    let mut name = section.role.to_string();
    if !section.name.is_empty() {
        name.push('.');
        for byte in section.name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                    name.push(byte.into())
                }
                _ => name.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    if name.len() > MAX_FILE_NAME_LEN {
        // No name that fits has a '~'.
        let hash = blake3::hash(section.name.as_bytes()).to_hex();
        name.truncate(MAX_FILE_NAME_LEN - 17);
        name.push('~');
        name.push_str(&hash[..16]);
    }
    name
}

/// The absolute path of `dir`, with links followed, once it is sure that a directory renamed to it can take its place.
fn vacant(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).map_err(|e| Error::target(dir.display(), e))?;
    if fs::symlink_metadata(&dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
        return Ok(dir);
    }
    let dir = fs::canonicalize(&dir).map_err(|e| Error::target(dir.display(), e))?;
    let failed = |e| Error::target(dir.display(), e);
    if fs::read_dir(&dir).map_err(failed)?.next().is_some() {
        return Err(Error::invalid(format!("{} is not empty", dir.display()))
            .hint("restore into a new directory"));
    }
    let (flags, wanted) = (AtFlags::empty(), StatxFlags::empty());
    let stat = rustix::fs::statx(rustix::fs::CWD, &dir, flags, wanted);
    if stat.is_ok_and(|s| s.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)) {
        return Err(
            Error::invalid(format!("{} is a mount point", dir.display())).hint(
                "a restore replaces the directory as a whole: restore into a new one below it",
            ),
        );
    }
    Ok(dir)
}

/// A directory beside the target that is removed unless it becomes the target.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(dir: &Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(Error::invalid(format!(
                "{} cannot be a restore's target",
                dir.display()
            )));
        };
        fs::create_dir_all(parent).map_err(|e| Error::target(parent.display(), e))?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".partial-{}", uuid::Uuid::new_v4().simple()));
        let path = parent.join(temporary);
        fs::create_dir(&path).map_err(|e| Error::target(path.display(), e))?;
        Ok(Self { path })
    }

    fn become_whole(self, dir: &Path) -> Result<()> {
        fs::rename(&self.path, dir).map_err(|e| Error::target(dir.display(), e))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished restore is left behind");
        }
    }
}
