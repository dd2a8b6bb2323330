//! Images as Google's checkpoint gofer keeps them: the files as they are, beside one another, `<path>/<id>/pages.img` and so on. They are read from
//! where they are, taken into a store as snapshots, and written for a fleet that goes back to that gofer.
//!
//! Nothing in such files can be checked: what is read is what the store gives, pinned to the version that was there at the beginning.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use podsnap_format::SnapshotId;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{CHECKPOINT, FILES, FS_MANIFEST, MAX_METADATA_LEN, parse_metadata};
use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    names,
    progress::Progress,
    save::NewSection,
    snapshot::Snapshot,
    source::{Input, Source},
    store::{Backend, ObjectMeta, ReadRange},
};

/// Bytes of a section that are written as one piece.
const PIECE_LEN: u64 = 8 << 20;

/// Pieces that are read while one is written.
const PIECES_AHEAD: usize = 4;

/// An image whose files are in a store as they are.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let store = podsnap::Store::open("memory://raw")?;
/// # let description = br#"{"runsc_version":"release-1"}"#;
/// # let checkpoint = [b"gVisorSF", &(description.len() as u64).to_be_bytes()[..], description, b"opaque"].concat();
/// # for (file, bytes) in [("checkpoint.img", checkpoint), ("pages_meta.img", vec![1; 9]), ("pages.img", vec![7; 8192])] {
/// #     store.backend().put(&format!("old/{file}"), bytes.into(), podsnap::store::Condition::Absent).await?;
/// # }
/// use podsnap::{CancellationToken, Progress, SaveOptions, gvisor::RawImage};
///
/// let raw = RawImage::open(&store, &"old".parse()?).await?;
/// let options = SaveOptions {
///     gvisor: raw.description().await?,
///     ..SaveOptions::default()
/// };
/// let mut writer = store.save(&"new".parse()?, options).await?;
/// for section in raw.sections() {
///     writer.add(section).await?;
/// }
/// writer.finish().await?;
///
/// // And back.
/// let snapshot = store.snapshot(&"new".parse()?).await?;
/// let (progress, cancel) = (Progress::default(), CancellationToken::new());
/// snapshot.export_raw(&store, &"again".parse()?, &progress, &cancel).await?;
/// # let raw = RawImage::open(&store, &"again".parse()?).await?;
/// # let mut pages = vec![0; 8192];
/// # raw.file("pages.img").unwrap().read_at(&mut pages, 0).await?;
/// # assert_eq!(pages, [7; 8192]);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct RawImage {
    files: Vec<RawFile>,
}

/// A file of a raw image.
#[derive(Debug, Clone)]
pub struct RawFile {
    backend: Arc<dyn Backend>,
    name: &'static str,
    object: ObjectMeta,
}

impl RawImage {
    /// Opens the image at `<path>/<id>/`. [`ErrorKind::NotFound`] if there is none.
    pub async fn open(store: &Store, id: &SnapshotId) -> Result<Self> {
        let backend = store.backend();
        let mut files = Vec::new();
        for (name, _) in FILES {
            match backend.head(&names::object(id, name)).await {
                Ok(object) => files.push(RawFile {
                    backend: backend.clone(),
                    name,
                    object,
                }),
                Err(e) if e.is_absence() => {}
                Err(e) => return Err(e),
            }
        }
        let raw = Self { files };
        if raw.file(CHECKPOINT).is_none() && raw.file(FS_MANIFEST).is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "there are no files of an image under {id} in {}",
                    store.url()
                ),
            ));
        }
        Ok(raw)
    }

    /// A file, if the image has it.
    pub fn file(&self, name: &str) -> Option<&RawFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// The image's own description, as [`read_metadata`](super::read_metadata) gives it.
    pub async fn description(&self) -> Result<BTreeMap<String, String>> {
        let Some(file) = self.file(CHECKPOINT) else {
            return Ok(BTreeMap::new());
        };
        let mut head = vec![0; file.len().min(16) as usize];
        file.read_at(&mut head, 0).await?;
        if let Some(len) = head.get(8..16) {
            let len = u64::from_be_bytes(len.try_into().expect("eight bytes"));
            let len = (16 + len.min(MAX_METADATA_LEN)).min(file.len());
            head.resize(len as usize, 0);
            file.read_at(&mut head, 0).await?;
        }
        parse_metadata(&head[..], &file.object.name)
    }

    /// The image's files as sections. To be called, and saved, where tokio runs.
    pub fn sections(&self) -> Vec<NewSection> {
        let handle = Handle::current();
        let section = |(name, (role, title)): (&str, (_, &str))| {
            let source = RawSource {
                file: self.file(name)?.clone(),
                handle: handle.clone(),
            };
            let input = Input::Source(Arc::new(source));
            Some(NewSection::blob(role, title, input))
        };
        FILES.into_iter().filter_map(section).collect()
    }
}

impl RawFile {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.object.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset`.
    pub async fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        let end = end.filter(|end| *end <= self.len()).ok_or_else(|| {
            Error::invalid(format!(
                "{} bytes at {offset} are outside of {}, which has {}",
                buf.len(),
                self.object.name,
                self.len()
            ))
        })?;
        if buf.is_empty() {
            return Ok(());
        }
        let (name, version) = (&self.object.name, &self.object.version);
        let range = ReadRange::Exact(offset..end);
        let read = self.backend.read(name, range, Some(version)).await?;
        buf.copy_from_slice(&read.bytes);
        Ok(())
    }
}

/// A raw file, for the threads of a save.
struct RawSource {
    file: RawFile,
    handle: Handle,
}

impl Source for RawSource {
    fn len(&self) -> u64 {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.handle.block_on(self.file.read_at(buf, offset))
    }

    fn check_unchanged(&self) -> Result<()> {
        // Every read was of the one version.
        Ok(())
    }
}

impl Snapshot {
    /// Writes the files of a gVisor image as they are to `<path>/<id>/` in `store`, for Google's gofer to restore from. They must not be there. The file by which
    /// an image is recognised comes last; after an error nothing is left. Returns how many bytes were written.
    pub async fn export_raw(
        &self,
        store: &Store,
        id: &SnapshotId,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let section = |(role, name): (_, &str)| {
            let found = self.find_section(role, name).ok();
            found.filter(|number| super::file_name(&self.sections()[*number]).is_some())
        };
        let files = FILES.into_iter().rev();
        let files: Vec<_> = files
            .filter_map(|(file, wanted)| Some((file, section(wanted)?)))
            .collect();
        let named = |wanted| files.iter().any(|(file, _)| *file == wanted);
        if !named(CHECKPOINT) && !named(FS_MANIFEST) {
            return Err(Error::invalid(format!(
                "{} is no gVisor image, it cannot be written as the files of one",
                self.id()
            )));
        }
        let lengths = files
            .iter()
            .map(|(_, number)| self.sections()[*number].length);
        progress.add_total(lengths.clone().sum());
        let mut written: Vec<ObjectMeta> = Vec::new();
        for (file, number) in &files {
            let name = names::object(id, file);
            match self
                .write_raw(*number, store, &name, progress, cancel)
                .await
            {
                Ok(object) => written.push(object),
                Err(e) => {
                    for object in &written {
                        let undone = store.backend().delete(&object.name, Some(&object.version));
                        if let Err(error) = undone.await {
                            tracing::warn!(object = object.name, %error, "it could not be removed");
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok(lengths.sum())
    }

    /// Writes one section as an object.
    async fn write_raw(
        &self,
        section: usize,
        store: &Store,
        name: &str,
        progress: &Progress,
        cancel: &CancellationToken,
    ) -> Result<ObjectMeta> {
        let mut writer = store.backend().create(name).await?;
        let reader = self.reader(section).background();
        let len = reader.len();
        let pieces = (0..len).step_by(PIECE_LEN as usize).map(|start| {
            let reader = reader.clone();
            async move {
                let mut piece = vec![0; (len - start).min(PIECE_LEN) as usize];
                reader.read_at(&mut piece, start).await?;
                Ok(piece)
            }
        });
        let mut pieces = stream::iter(pieces).buffered(PIECES_AHEAD);
        let written = async {
            while let Some(piece) = pieces.try_next().await? {
                let len = piece.len() as u64;
                writer.write(piece.into()).await?;
                progress.add_restored(len);
            }
            Ok(())
        };
        let written = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Error::interrupted()),
            written = written => written,
        };
        match written {
            Ok(()) => writer.finish().await,
            Err(e) => {
                if let Err(error) = writer.abort().await {
                    tracing::warn!(object = name, %error, "it could not be removed");
                }
                Err(e)
            }
        }
    }
}
