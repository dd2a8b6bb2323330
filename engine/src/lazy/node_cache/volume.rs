//! A volume: frames one behind the other in one file, and where each lies in another.
//!
//! `NAME.frames` holds frames as they are in packs. `NAME.index` holds a record for each, written after it: the chunk's id, offset and length of
//! the frame (u32, little-endian) and the CRC-32 of all that. Whoever appends holds a lock on the frames; a volume whose writer
//! has ended is written on by the next one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use podsnap_format::{ChunkId, FRAME_HEADER_LEN, MAX_CHUNK_LEN};

use super::open_rw;

/// Extension of the file of frames.
pub(super) const FRAMES: &str = "frames";

/// Extension of the file that says where they lie.
pub(super) const INDEX: &str = "index";

/// Length of a record of the index, in bytes.
const RECORD_LEN: usize = 32 + 4 + 4 + 4;

/// Records read at once.
const RECORDS_AT_ONCE: usize = 1024;

/// Where a frame lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    offset: u32,
    len: u32,
}

/// A volume that is read, and perhaps written by another process.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) number: u64,
    frames: Arc<File>,
    index: File,
    /// Bytes of the index that were read.
    read: u64,
    used: Option<Instant>,
}

impl Volume {
    pub(super) fn open(dir: &Path, name: &str, number: u64) -> io::Result<Self> {
        Ok(Self {
            number,
            frames: Arc::new(File::open(dir.join(name).with_extension(FRAMES))?),
            index: File::open(dir.join(name).with_extension(INDEX))?,
            read: 0,
            used: None,
        })
    }

    pub(super) fn frames(&self) -> Arc<File> {
        self.frames.clone()
    }

    /// Notes that it is used, and says whether that has to be written down.
    pub(super) fn use_now(&mut self, interval: Duration) -> bool {
        let due = self.used.is_none_or(|at| at.elapsed() >= interval);
        if due {
            self.used = Some(Instant::now());
        }
        due
    }

    /// Reads what was appended to the index since the last time. It ends at a record that is half or makes no sense: it may be whole later.
    pub(super) fn read_on(&mut self, found: impl FnMut(ChunkId, Place)) {
        self.read += read_records(&self.index, self.read, found);
    }
}

/// A frame, as it is.
pub(super) fn read(frames: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; place.len as usize];
    frames.read_exact_at(&mut frame, place.offset.into())?;
    Ok(frame)
}

/// Reads the records of an index from a byte on, up to the first that is not whole; returns how many bytes those are.
fn read_records(index: &File, from: u64, mut found: impl FnMut(ChunkId, Place)) -> u64 {
    let mut buf = vec![0; RECORDS_AT_ONCE * RECORD_LEN];
    let mut at = from;
    loop {
        let Ok(len) = index.read_at(&mut buf, at) else {
            return at - from;
        };
        let records = buf[..len].chunks_exact(RECORD_LEN);
        let (count, mut good) = (records.len(), 0);
        for record in records {
            let Some((id, place)) = parse_record(record) else {
                break;
            };
            found(id, place);
            good += 1;
        }
        at += (good * RECORD_LEN) as u64;
        if good < count || count < RECORDS_AT_ONCE {
            return at - from;
        }
    }
}

fn parse_record(record: &[u8]) -> Option<(ChunkId, Place)> {
    let (body, crc) = record.split_at(RECORD_LEN - 4);
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let place = Place {
        offset: number(&body[32..36]),
        len: number(&body[36..40]),
    };
    let longest = FRAME_HEADER_LEN + MAX_CHUNK_LEN;
    let whole = crc32fast::hash(body) == number(crc) && place.len as usize <= longest;
    let id = ChunkId(body[..32].try_into().expect("32 bytes"));
    whole.then_some((id, place))
}

fn record(id: &ChunkId, place: Place) -> [u8; RECORD_LEN] {
    let mut record = [0; RECORD_LEN];
    record[..32].copy_from_slice(&id.0);
    record[32..36].copy_from_slice(&place.offset.to_le_bytes());
    record[36..40].copy_from_slice(&place.len.to_le_bytes());
    let crc = crc32fast::hash(&record[..40]);
    record[40..].copy_from_slice(&crc.to_le_bytes());
    record
}

/// The end of a volume that this process appends to.
#[derive(Debug)]
pub(super) struct Writer {
    name: String,
    /// Locked as long as it is open.
    frames: File,
    index: File,
    frames_len: u32,
    index_len: u64,
}

impl Writer {
    /// Goes on with a volume of at most `max_len` bytes whose writer has ended, or starts a new one.
    pub(super) fn resume_or_create(dir: &Path, max_len: u64) -> io::Result<Self> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let is_index = path.extension().is_some_and(|e| e == INDEX);
            if let (true, Some(name)) = (is_index, path.file_stem().and_then(|n| n.to_str()))
                && let Ok(Some(writer)) = Self::resume(dir, name, max_len)
            {
                return Ok(writer);
            }
        }
        let name = uuid::Uuid::new_v4().simple().to_string();
        let create = |extension| {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.join(&name).with_extension(extension))
        };
        let frames = create(FRAMES)?;
        frames.lock()?;
        let index = create(INDEX)?;
        Ok(Self {
            name,
            frames,
            index,
            frames_len: 0,
            index_len: 0,
        })
    }

    fn resume(dir: &Path, name: &str, max_len: u64) -> io::Result<Option<Self>> {
        let frames = open_rw(&dir.join(name).with_extension(FRAMES))?;
        if frames.metadata()?.len() > max_len || frames.try_lock().is_err() {
            return Ok(None);
        }
        let index = open_rw(&dir.join(name).with_extension(INDEX))?;
        let mut end = 0;
        let index_len = read_records(&index, 0, |_, place| {
            end = end.max(u64::from(place.offset) + u64::from(place.len));
        });
        if end > max_len {
            return Ok(None);
        }
        // What the last writer left half.
        index.set_len(index_len)?;
        frames.set_len(end)?;
        Ok(Some(Self {
            name: name.to_owned(),
            frames,
            index,
            frames_len: end as u32,
            index_len,
        }))
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Length of the frames, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.frames_len.into()
    }

    pub(super) fn append(&mut self, id: &ChunkId, frame: &[u8]) -> io::Result<Place> {
        let place = Place {
            offset: self.frames_len,
            len: frame.len() as u32,
        };
        self.frames.write_all_at(frame, place.offset.into())?;
        self.index
            .write_all_at(&record(id, place), self.index_len)?;
        self.frames_len += place.len;
        self.index_len += RECORD_LEN as u64;
        Ok(place)
    }
}
