//! A snapshot as a read-only file system (FUSE): what a restore would write is there to be opened, and is fetched when it is read.
//!
//! gVisor's image files, other blobs and trees have the names and attributes that [`Snapshot::restore`] gives them. What is here mounts and
//! unmounts; `nodes` knows what is where, `content` reads files, `serve` answers the kernel.

mod content;
mod nodes;
mod serve;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::{io::Errno, mount::UnmountFlags};
use tokio::{runtime::Handle, sync::watch};

use self::{nodes::Nodes, serve::FileSystem};
use crate::{
    error::{Error, ErrorKind, Result},
    restore::RestoreOptions,
    snapshot::Snapshot,
};

/// How far the kernel reads ahead of a sequential reader, in KiB. It asks in pieces of at most 1 MiB, so several round trips to the store overlap.
const READ_AHEAD_KB: u32 = 8 << 10;

/// How long an unmount waits for the last answers.
const PARTING: Duration = Duration::from_secs(5);

/// How a snapshot is mounted. The default shows everything.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct MountOptions {
    /// Numbers of the sections to show; all if empty.
    pub sections: Vec<usize>,
}

/// A mounted snapshot, which [`Snapshot::mount`] made. It is unmounted when this is dropped.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://mount")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let input = Input::stream(&b"what the pod has in memory"[..], "memory");
/// # writer.add(NewSection::blob(Role::Memory, "", input)).await?;
/// # writer.finish().await?;
/// # let scratch = tempfile::tempdir()?;
/// # let dir = scratch.path();
/// use podsnap::MountOptions;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// # if !std::path::Path::new("/dev/fuse").exists() || !rustix::process::geteuid().is_root() {
/// #     return Ok(());
/// # }
/// let mount = snapshot.mount(dir, &MountOptions::default()).await?;
/// // Another thread or process; runsc restore --image-path, for one.
/// let file = dir.join("memory");
/// let memory = tokio::task::spawn_blocking(move || std::fs::read(file)).await??;
/// assert_eq!(memory, b"what the pod has in memory");
/// mount.unmount().await?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    unmounter: Option<SessionUnmounter>,
    ended: watch::Receiver<bool>,
}

impl Snapshot {
    /// Mounts the snapshot on `dir`, an empty directory. Reads are served by the tokio runtime that this is called on.
    pub async fn mount(&self, dir: impl AsRef<Path>, options: &MountOptions) -> Result<Mount> {
        let dir = mount_point(dir.as_ref())?;
        let chosen = RestoreOptions {
            sections: options.sections.clone(),
            ..RestoreOptions::default()
        };
        let nodes = Nodes::load(self, &self.chosen(&chosen)?).await?;
        let file_system = FileSystem::new(self, nodes, Handle::current());
        let (id, place) = (self.id().to_string(), dir.clone());
        // The kernel is shaken hands with: that blocks.
        let session = tokio::task::spawn_blocking(move || {
            Session::new(file_system, &place, &session_options(&id))
        });
        let mut session = session
            .await
            .expect("mounting does not panic")
            .map_err(|e| refused(&dir, e))?;
        let unmounter = session.unmount_callable();
        let (end, ended) = watch::channel(false);
        let served = thread::Builder::new()
            .name("podsnap-mount".to_owned())
            .spawn(move || {
                if let Err(error) = session.run() {
                    tracing::error!(%error, "serving a mount ended");
                }
                end.send_replace(true);
            });
        let mount = Mount {
            dir,
            unmounter: Some(unmounter),
            ended,
        };
        served.map_err(|e| Error::target_action("start a thread for", mount.dir.display(), e))?;
        let place = mount.dir.clone();
        let _ = tokio::task::spawn_blocking(move || widen_read_ahead(&place)).await;
        Ok(mount)
    }
}

impl Mount {
    /// Where it is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until it is no longer mounted, because somebody unmounted it.
    pub async fn wait(&self) {
        // A sender that is gone has ended, too.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// Unmounts. Whoever still has files open there gets errors from then on, once this process ends.
    pub async fn unmount(mut self) -> Result<()> {
        let (dir, unmounter) = (self.dir.clone(), self.unmounter.take());
        let done = tokio::task::spawn_blocking(move || unmount(&dir, unmounter)).await;
        done.expect("unmounting does not panic")
            .map_err(|e| Error::target_action("unmount", self.dir.display(), e))?;
        if tokio::time::timeout(PARTING, self.wait()).await.is_err() {
            tracing::warn!(dir = %self.dir.display(), "unmounted while files were open there");
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.dir, self.unmounter.take()) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount");
        }
    }
}

/// Unmounts what is still mounted; if it is in use, takes it out of the tree of directories.
fn unmount(dir: &Path, unmounter: Option<SessionUnmounter>) -> io::Result<()> {
    let Some(mut unmounter) = unmounter else {
        return Ok(());
    };
    match unmounter.unmount() {
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            Ok(rustix::mount::unmount(dir, UnmountFlags::DETACH)?)
        }
        done => done,
    }
}

fn session_options(id: &str) -> Config {
    let root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::FSName(format!("podsnap:{id}")),
        MountOption::Subtype("podsnap".to_owned()),
    ];
    // Others are let in by modes, as everywhere; only root may allow that without the system's consent.
    config.acl = if root {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config
}

/// The absolute path of an empty directory on which something can be mounted.
fn mount_point(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    let stat = fs::metadata(dir).map_err(|e| match e.raw_os_error() {
        Some(code) if code == Errno::NOTCONN.raw_os_error() => {
            Error::invalid(format!("{shown} is a mount that nobody serves any more"))
                .because(e)
                .hint(format!("take it away by: umount -l {shown}"))
        }
        Some(code) if code == Errno::NOENT.raw_os_error() => {
            Error::invalid(format!("there is no directory {shown}"))
                .hint("make it first: a mount needs an empty directory")
        }
        _ => Error::target_action("mount on", &shown, e),
    })?;
    if !stat.is_dir() {
        return Err(Error::invalid(format!("{shown} is no directory")));
    }
    let failed = |e| Error::target_action("mount on", &shown, e);
    if fs::read_dir(dir).map_err(failed)?.next().is_some() {
        return Err(Error::invalid(format!("{shown} is not empty"))
            .hint("what is in it would be hidden: mount on an empty directory"));
    }
    fs::canonicalize(dir).map_err(failed)
}

/// Why the kernel, or the program that mounts for users, did not mount.
fn refused(dir: &Path, e: io::Error) -> Error {
    let hint = if !Path::new("/dev/fuse").exists() {
        "there is no /dev/fuse: load the kernel module fuse, or give the container that device"
    } else if rustix::process::geteuid().is_root() {
        "mounting needs CAP_SYS_ADMIN and access to /dev/fuse; containers lack both unless they are given"
    } else {
        "mounting needs root, or fusermount3 from the package fuse3"
    };
    Error::new(
        ErrorKind::Target,
        format!("cannot mount on {}", dir.display()),
    )
    .because(e)
    .hint(hint)
}

/// Has the kernel read further ahead than the 128 KiB that it begins with. Only root can, and it is faster, not needed.
fn widen_read_ahead(dir: &Path) {
    let Ok(stat) = rustix::fs::stat(dir) else {
        return;
    };
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&knob, READ_AHEAD_KB.to_string()) {
        tracing::debug!(knob, %error, "the kernel reads ahead as little as it likes");
    }
}
