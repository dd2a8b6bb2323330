//! A committed snapshot: its directory, its sections' extent maps, its frames. Reading only, and only what is asked for.
//!
//! The end of the manifest tells where everything is, so opening takes one read; a page of a section takes two more, the
//! segment of the extent map and the frame.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use podsnap_format::{
    Digest, FOOTER_LEN, FRAME_HEADER_LEN, Footer, Key, Kind, Role, SnapshotId,
    codec::Decoder,
    manifest::{Chunk, Directory, PackInfo, SectionInfo, Segment},
};

use crate::{
    Store,
    error::{Error, ErrorKind, Result},
    frames,
    lazy::{self, SectionReader},
    metadata::Metadata,
    names,
    store::{Backend, LocalBackend, ReadBytes, ReadRange, Version},
};

/// Bytes read from a manifest's end at once. The directory of a snapshot of 200 GB takes some 30 KB, so one read is nearly
/// always enough.
const TAIL_LEN: u64 = 128 << 10;

/// Bytes of extent maps read at once when a whole section's map is wanted.
const MAP_READ_LEN: u64 = 8 << 20;

/// A directory longer than this, in bytes, is refused: no real one comes near it.
const MAX_DIRECTORY_LEN: u64 = 256 << 20;

/// A committed snapshot, open for reading; [`Store::snapshot`] opens one, [`Snapshot::open_export`] one in a file. It never changes. Clones are cheap.
///
/// ```
/// # use podsnap_engine as podsnap;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use podsnap::{Input, NewSection, Role, SaveOptions};
/// # let store = podsnap::Store::open("memory://snapshot")?;
/// # let mut writer = store.save(&"web-1".parse()?, SaveOptions::default()).await?;
/// # let numbers: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
/// # for name in ["", "second"] {
/// #     let input = Input::stream(std::io::Cursor::new(numbers.clone()), "numbers");
/// #     writer.add(NewSection::blob(Role::Memory, name, input)).await?;
/// # }
/// # writer.finish().await?;
///
/// let snapshot = store.snapshot(&"web-1".parse()?).await?;
/// for section in snapshot.sections() {
///     println!("{}: {} bytes", section.title(), section.length);
/// }
/// println!("written by {}", snapshot.metadata().writer);
///
/// let report = snapshot.verify(&store, &podsnap::VerifyOptions::default()).await?;
/// assert!(report.is_sound(), "{:?}", report.damage);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) key: Option<Key>,
    /// The object that holds directory and segments: a manifest or an export.
    pub(crate) object: String,
    version: Version,
    object_len: u64,
    /// The object's last bytes and where they start, as they were read on opening: often they hold the extent maps too.
    tail: (u64, Bytes),
    directory: Arc<Directory>,
    metadata: Arc<Metadata>,
    /// What its readers share with those of other snapshots.
    pub(crate) shared: Arc<lazy::Shared>,
    /// Who notes what its readers are asked for, if anybody does.
    pub(crate) recorder: Option<Arc<lazy::Recorder>>,
    /// The extent maps that its readers have loaded.
    pub(crate) maps: lazy::SharedMaps,
}

/// The directory and footer of a container, read from its end.
pub(crate) async fn read_tail(
    backend: &dyn Backend,
    object: &str,
    max_trailer_len: u64,
) -> Result<(Footer, Bytes, ReadBytes)> {
    let tail = backend
        .read(object, ReadRange::Suffix(TAIL_LEN), None)
        .await?;
    if tail.bytes.len() < FOOTER_LEN {
        return Err(Error::damaged(
            object,
            format!("{} bytes are too few for a footer", tail.bytes.len()),
        ));
    }
    let footer = Footer::parse(&tail.bytes[tail.bytes.len() - FOOTER_LEN..])
        .map_err(|e| Error::format(object, e))?;
    if footer.total_len != tail.meta.len {
        return Err(Error::damaged(
            object,
            format!(
                "its footer says {} bytes, the object has {}",
                footer.total_len, tail.meta.len
            ),
        ));
    }
    if footer.trailer_len > max_trailer_len {
        return Err(Error::damaged(
            object,
            format!("a directory of {} bytes is refused", footer.trailer_len),
        ));
    }
    let end = footer.trailer_offset + footer.trailer_len;
    let trailer = if footer.trailer_offset >= tail.offset {
        tail.bytes
            .slice((footer.trailer_offset - tail.offset) as usize..(end - tail.offset) as usize)
    } else {
        let range = ReadRange::Exact(footer.trailer_offset..end);
        backend
            .read(object, range, Some(&tail.meta.version))
            .await?
            .bytes
    };
    Ok((footer, trailer, tail))
}

impl Snapshot {
    /// Opens a snapshot of the store.
    pub(crate) async fn open(store: &Store, id: &SnapshotId) -> Result<Self> {
        let object = names::object(id, names::MANIFEST);
        let open = || {
            Self::open_object(
                store.backend().clone(),
                object.clone(),
                Kind::Manifest,
                store.key().cloned(),
                store.reading().clone(),
            )
        };
        let opened = frames::reread(open).await;
        let snapshot = opened.map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                format!("there is no snapshot {id} in {}", store.url()),
            ),
            _ => e,
        })?;
        if snapshot.id() != id {
            return Err(Error::damaged(
                &snapshot.object,
                format!("it is the manifest of {}, not of {id}", snapshot.id()),
            ));
        }
        Ok(snapshot)
    }

    /// Opens an exported snapshot in a local file, which [`export`](Snapshot::export) wrote. It needs no store of its own; where methods ask for one, any
    /// will do: they only use its threads.
    pub async fn open_export(path: impl AsRef<std::path::Path>, key: Option<Key>) -> Result<Self> {
        let path = std::path::absolute(path.as_ref())
            .map_err(|e| Error::source(path.as_ref().display(), e))?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
        else {
            return Err(Error::invalid(format!(
                "{} cannot be an export",
                path.display()
            )));
        };
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let problem = format!("there is no file {}", path.display());
                return Err(Error::new(ErrorKind::NotFound, problem));
            }
            Err(e) => return Err(Error::source(path.display(), e)),
            // A pipe would wait for a writer, and cannot be read at random.
            Ok(stat) if !stat.is_file() => {
                return Err(Error::invalid(format!("{} is no file", path.display()))
                    .hint("exports are read from regular files only"));
            }
            Ok(_) => {}
        }
        let backend = Arc::new(LocalBackend::new(dir, false)?);
        let reading = lazy::Shared::new(None);
        Self::open_object(backend, name.to_owned(), Kind::Export, key, reading).await
    }

    async fn open_object(
        backend: Arc<dyn Backend>,
        object: String,
        kind: Kind,
        key: Option<Key>,
        reading: Arc<lazy::Shared>,
    ) -> Result<Self> {
        let (footer, trailer, tail) = read_tail(&*backend, &object, MAX_DIRECTORY_LEN).await?;
        if footer.kind != kind {
            return Err(Error::damaged(
                &object,
                format!("it is of the kind {}, not {kind}", footer.kind),
            ));
        }
        let directory =
            Directory::parse(&footer, &trailer).map_err(|e| Error::format(&object, e))?;
        check_key(&object, directory.header.key_check, key.as_ref())?;
        let metadata = serde_json::from_str(&directory.metadata).map_err(|e| {
            Error::damaged(
                &object,
                format!("its metadata is not what was expected: {e}"),
            )
        })?;
        Ok(Self {
            backend,
            key,
            object,
            version: tail.meta.version,
            object_len: tail.meta.len,
            tail: (tail.offset, tail.bytes),
            directory: Arc::new(directory),
            metadata: Arc::new(metadata),
            shared: reading,
            recorder: None,
            maps: lazy::SharedMaps::default(),
        })
    }

    /// The same snapshot, whose readers tell `recorder` what they are asked for.
    pub(crate) fn recorded_by(&self, recorder: Arc<lazy::Recorder>) -> Self {
        Self {
            recorder: Some(recorder),
            ..self.clone()
        }
    }

    /// Whether the object that was opened is still in its place.
    pub(crate) async fn still_there(&self) -> Result<bool> {
        match self.backend.head(&self.object).await {
            Ok(meta) => Ok(meta.version == self.version),
            Err(e) if e.is_absence() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The version of the manifest or export that was opened.
    pub(crate) fn version(&self) -> &Version {
        &self.version
    }

    /// The snapshot's id.
    pub fn id(&self) -> &SnapshotId {
        &self.directory.header.snapshot
    }

    /// BLAKE3 of the manifest's directory, which covers everything in the snapshot.
    pub fn digest(&self) -> Digest {
        self.directory.digest
    }

    /// An error unless the snapshot has this digest, given as hex. Whoever keeps [`SaveStats::digest`](crate::SaveStats::digest) in another place than the
    /// store notices by it if anything in the store was replaced.
    pub fn demand_digest(&self, expected: &str) -> Result<()> {
        let found = self.digest().to_string();
        if found.eq_ignore_ascii_case(expected) {
            return Ok(());
        }
        Err(Error::damaged(
            &self.object,
            format!("its digest is {found}, {expected} was demanded"),
        ))
    }

    /// Everything the manifest's directory says.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Who made the snapshot, when, of what.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its sections.
    pub fn sections(&self) -> &[SectionInfo] {
        &self.directory.sections
    }

    /// Length of the manifest or export, in bytes.
    pub fn object_len(&self) -> u64 {
        self.object_len
    }

    /// Name of the manifest or export.
    pub fn object_name(&self) -> &str {
        &self.object
    }

    /// Number of the section of that role and name.
    pub fn find_section(&self, role: Role, name: &str) -> Result<usize> {
        self.sections()
            .iter()
            .position(|s| s.role == role && s.name == name)
            .ok_or_else(|| {
                let all: Vec<_> = self.sections().iter().map(SectionInfo::title).collect();
                let wanted = if name.is_empty() {
                    role.to_string()
                } else {
                    format!("{role}:{name}")
                };
                Error::new(
                    ErrorKind::NotFound,
                    format!("{} has no section {wanted}", self.id()),
                )
                .hint(format!("it has {}", all.join(", ")))
            })
    }

    /// Random access to a section.
    pub fn reader(&self, section: usize) -> SectionReader {
        SectionReader::new(self.clone(), section)
    }

    /// The object that holds a pack's frames.
    pub(crate) fn pack_object(&self, pack: &PackInfo) -> String {
        if pack.name.is_empty() {
            self.object.clone()
        } else {
            names::object(&pack.snapshot, &pack.name)
        }
    }

    /// Bytes of a pack. They are read at the version that the manifest names, and at any other if that one is gone: a store
    /// may have been copied, and what is read is compared with the chunks' ids in any case.
    pub(crate) async fn read_pack(&self, pack: u32, range: Range<u64>) -> Result<Bytes> {
        let info = &self.directory.packs[pack as usize];
        let object = self.pack_object(info);
        let version = self.pack_version(info);
        let range = ReadRange::Exact(range);
        let mut read = self
            .backend
            .read(&object, range.clone(), version.as_ref())
            .await;
        if let Err(e) = &read
            && matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound)
            && version.is_some()
        {
            read = self.backend.read(&object, range, None).await;
        }
        match read {
            Ok(read) => Ok(read.bytes),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::missing(&object)),
            Err(e) => Err(e),
        }
    }

    /// Reads one chunk into `raw`; returns its frame. One that does not check out is read again.
    pub(crate) async fn read_chunk(&self, chunk: &Chunk, raw: &mut Vec<u8>) -> Result<Bytes> {
        let start = chunk.location.offset;
        let end = start + FRAME_HEADER_LEN as u64 + u64::from(chunk.location.encoded_len);
        let mut decoder = Decoder::new();
        let mut reread = 0;
        loop {
            let bytes = self.read_pack(chunk.location.pack, start..end).await?;
            let key = self.key.as_ref();
            match frames::decode_checked(&bytes, chunk, key, &mut decoder, raw) {
                Ok(()) => return Ok(bytes),
                Err(why) if reread == frames::REREADS => {
                    let pack = &self.directory.packs[chunk.location.pack as usize];
                    let place = frames::place(&self.pack_object(pack), start);
                    return Err(Error::damaged(place, why));
                }
                Err(_) => reread += 1,
            }
        }
    }

    /// The version to read a pack at, if the store gave one.
    fn pack_version(&self, pack: &PackInfo) -> Option<Version> {
        match (pack.name.is_empty(), pack.version.is_empty()) {
            (true, _) => Some(self.version.clone()),
            (false, true) => None,
            (false, false) => Some(Version(pack.version.clone())),
        }
    }

    /// One segment of a section's extent map.
    pub(crate) async fn load_segment(&self, section: usize, segment: usize) -> Result<Segment> {
        let info = &self.sections()[section].segments[segment];
        let range = info.object_offset..info.object_offset + info.object_len;
        frames::reread(|| async {
            let bytes = self.read_object(range.clone()).await?;
            self.parse_segment(section, segment, &bytes)
        })
        .await
    }

    /// All segments of a section's extent map, in a few large reads.
    pub(crate) async fn load_segments(&self, section: usize) -> Result<Vec<Segment>> {
        self.load_each_segment(section).await?.into_iter().collect()
    }

    /// [`Snapshot::load_segments`], with an error for each that is damaged instead of one for all.
    pub(crate) async fn load_each_segment(&self, section: usize) -> Result<Vec<Result<Segment>>> {
        let infos = &self.sections()[section].segments;
        let mut segments = Vec::new();
        while segments.len() < infos.len() {
            let first = segments.len();
            let start = infos[first].object_offset;
            let mut end = start;
            let mut count = 0;
            for info in &infos[first..] {
                if count > 0 && info.object_offset + info.object_len - start > MAP_READ_LEN {
                    break;
                }
                end = info.object_offset + info.object_len;
                count += 1;
            }
            let read = self.read_object(start..end).await?;
            for (number, info) in infos.iter().enumerate().skip(first).take(count) {
                let bytes =
                    &read[(info.object_offset - start) as usize..][..info.object_len as usize];
                segments.push(match self.parse_segment(section, number, bytes) {
                    Err(_) => self.load_segment(section, number).await,
                    parsed => parsed,
                });
            }
        }
        Ok(segments)
    }

    /// Bytes of the manifest or export, without a read if opening it has read them already.
    async fn read_object(&self, range: Range<u64>) -> Result<Bytes> {
        let (tail_start, tail) = &self.tail;
        if range.start >= *tail_start {
            return Ok(
                tail.slice((range.start - tail_start) as usize..(range.end - tail_start) as usize)
            );
        }
        Ok(self
            .backend
            .read(&self.object, ReadRange::Exact(range), Some(&self.version))
            .await?
            .bytes)
    }

    fn parse_segment(&self, section: usize, segment: usize, bytes: &[u8]) -> Result<Segment> {
        let info = &self.sections()[section].segments[segment];
        info.open(bytes, &self.directory.packs).map_err(|e| {
            let place = format!(
                "{} (extent map {segment} of {}, at byte {})",
                self.object,
                self.sections()[section].title(),
                info.object_offset
            );
            Error::format(place, e)
        })
    }
}

fn check_key(object: &str, wanted: Option<[u8; 16]>, key: Option<&Key>) -> Result<()> {
    let problem = match (wanted, key) {
        (None, None) => return Ok(()),
        (Some(wanted), Some(key)) if key.key_check() == wanted => return Ok(()),
        (Some(_), Some(_)) => "was written with another key",
        (Some(_), None) => "was written with a key, and none was given",
        (None, Some(_)) => "was written without a key, and one was given",
    };
    Err(Error::invalid(format!("{object} {problem}"))
        .hint("open the store with the key it was written with"))
}
