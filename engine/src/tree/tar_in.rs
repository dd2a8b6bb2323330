//! Gives a tar stream as the stream of a tree section: contents pass through as they come, and the entry table follows
//! when the archive has ended.
//!
//! Understood: ustar, PAX (long names, nanosecond times, sizes, owners, `SCHILY.xattr.*`, sparse files 0.0, 0.1, 1.0) and GNU
//! (long names, base-256 numbers, sparse files). Absolute paths and `..` are refused. A later member of the same path
//! replaces an earlier one, whose contents stay in the stream unused. An image layer's `.wh.` files come as plain files.

use std::io::{self, Read};

use podsnap_format::tree::{DataRange, EntryKind, MAX_FILE_SIZE, TreeTable};
use tar::{EntryType, Header};

use super::nodes::Nodes;
use super::tar_header::{BLOCK, Pax, attributes, checksum_fits, components, decimal};
use super::{Error, to_path};

/// Longest extended header or long name accepted, in bytes. Attributes of 64 KiB and large sparse maps must fit.
const MAX_EXTENDED_LEN: u64 = 16 << 20;
/// Most runs of data in one sparse file.
const MAX_SPARSE_RUNS: usize = 1 << 20;

/// A tar stream as a tree section's stream.
pub struct TarTreeReader<R> {
    input: R,
    /// Bytes taken from the tar stream.
    consumed: u64,
    /// Bytes of contents given out or about to be.
    data_length: u64,
    nodes: Nodes,
    global: Pax,
    local: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Path of the member at hand, for errors.
    member: Vec<u8>,
    state: State,
}

enum State {
    /// A header block comes next.
    Header,
    /// Contents come next, then padding up to a full block.
    Content {
        left: u64,
        padding: u64,
    },
    /// The archive has ended; the table is being given out.
    Table {
        table: Box<TreeTable>,
        bytes: Vec<u8>,
        position: usize,
    },
    Failed,
}

impl<R: Read> TarTreeReader<R> {
    /// Reads a tar stream from `input`. Compression is not undone here. Small reads are passed on: give a buffered input
    /// if they are expensive.
    pub fn new(input: R) -> Self {
        Self {
            input,
            consumed: 0,
            data_length: 0,
            nodes: Nodes::new(),
            global: Pax::default(),
            local: Pax::default(),
            long_name: None,
            long_link: None,
            member: Vec::new(),
            state: State::Header,
        }
    }

    /// What the archive held; known once the contents have been read.
    pub fn table(&self) -> Option<&TreeTable> {
        match &self.state {
            State::Table { table, .. } => Some(table),
            _ => None,
        }
    }

    /// Length in bytes of the table at the stream's end; known once the contents have been read.
    pub fn table_length(&self) -> Option<u64> {
        match &self.state {
            State::Table { bytes, .. } => Some(bytes.len() as u64),
            _ => None,
        }
    }

    fn fill(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match &mut self.state {
                State::Failed => return Err(Error::Failed.into()),
                State::Header => self.header()?,
                State::Content { left: 0, padding } => {
                    let mut rest = [0; BLOCK];
                    let padding = *padding as usize;
                    self.take(&mut rest[..padding])?;
                    self.state = State::Header;
                }
                State::Content { left, .. } => {
                    let count = (*left).min((buf.len() - filled) as u64) as usize;
                    let read = read_some(&mut self.input, &mut buf[filled..][..count])?;
                    if read == 0 {
                        return Err(self
                            .refuse("the stream ends in the middle of its contents")
                            .into());
                    }
                    *left -= read as u64;
                    self.consumed += read as u64;
                    filled += read;
                }
                State::Table {
                    bytes, position, ..
                } => {
                    let count = (bytes.len() - *position).min(buf.len() - filled);
                    buf[filled..][..count].copy_from_slice(&bytes[*position..][..count]);
                    *position += count;
                    filled += count;
                    break;
                }
            }
        }
        Ok(filled)
    }

    /// Takes in one header block and what belongs to it.
    fn header(&mut self) -> io::Result<()> {
        let mut block = [0; BLOCK];
        self.take(&mut block)?;
        if block == [0; BLOCK] {
            return self.end();
        }
        let header = Header::from_byte_slice(&block);
        if !checksum_fits(header) {
            return Err(self
                .refuse("its header's checksum is wrong: damaged, compressed or not a tar stream")
                .into());
        }
        let size = header
            .entry_size()
            .map_err(|error| self.refuse(error.to_string()))?;
        match header.entry_type() {
            EntryType::XHeader => {
                let records = self.extended(size)?;
                self.local
                    .add(&records)
                    .map_err(|problem| self.refuse(problem))?;
            }
            EntryType::XGlobalHeader => {
                let records = self.extended(size)?;
                self.global
                    .add(&records)
                    .map_err(|problem| self.refuse(problem))?;
            }
            EntryType::GNULongName => self.long_name = Some(self.extended(size)?),
            EntryType::GNULongLink => self.long_link = Some(self.extended(size)?),
            _ => self.member(header, size)?,
        }
        Ok(())
    }

    /// Reads an extended header or long name, whole.
    fn extended(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENDED_LEN {
            return Err(self
                .refuse(format!("its extended header claims {size} bytes"))
                .into());
        }
        let mut bytes = vec![0; (size as usize).next_multiple_of(BLOCK)];
        self.take(&mut bytes)?;
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    fn member(&mut self, header: &Header, mut size: u64) -> io::Result<()> {
        let pax = std::mem::take(&mut self.local).over(&self.global);
        let path = name(
            self.long_name.take(),
            pax.get("GNU.sparse.name").or(pax.get("path")),
            || header.path_bytes().into(),
        );
        let link = name(self.long_link.take(), pax.get("linkpath"), || {
            header.link_name_bytes().unwrap_or_default().into()
        });
        self.member = path.clone();
        let names = components(&path).map_err(|problem| self.refuse(problem))?;
        let attributes = attributes(header, &pax).map_err(|problem| self.refuse(problem))?;
        if let Some(amended) = pax.number("size").map_err(|problem| self.refuse(problem))? {
            size = amended;
        }
        let device = |field: io::Result<Option<u32>>| match field {
            Ok(number) => Ok(number.unwrap_or(0)),
            Err(error) => Err(self.refuse(error.to_string())),
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => {
                EntryKind::Directory
            }
            EntryType::Regular | EntryType::Continuous => self.regular(&pax, size)?,
            EntryType::GNUSparse => self.gnu_sparse(header, size)?,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink { target: link },
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char => EntryKind::CharDevice {
                major: device(header.device_major())?,
                minor: device(header.device_minor())?,
            },
            EntryType::Block => EntryKind::BlockDevice {
                major: device(header.device_major())?,
                minor: device(header.device_minor())?,
            },
            EntryType::Link => {
                let target = components(&link).map_err(|problem| self.refuse(problem))?;
                return self
                    .nodes
                    .link(&names, &target)
                    .map_err(|problem| self.refuse(problem).into());
            }
            other => {
                let problem = format!("its type '{}' is not known", other.as_byte().escape_ascii());
                return Err(self.refuse(problem).into());
            }
        };
        self.nodes
            .insert(&names, kind, attributes)
            .map_err(|problem| self.refuse(problem).into())
    }

    /// A file whose contents of `size` bytes, in the archive, come next; perhaps sparse.
    fn regular(&mut self, pax: &Pax, size: u64) -> Result<EntryKind, io::Error> {
        let number = |key| pax.number(key).map_err(|problem| self.refuse(problem));
        let (major, real_size, old_size) = (
            number("GNU.sparse.major")?,
            number("GNU.sparse.realsize")?,
            number("GNU.sparse.size")?,
        );
        if major == Some(1) {
            let real_size =
                real_size.ok_or_else(|| self.refuse("its sparse map lacks the file's size"))?;
            let (map, map_length) = self.map_before_contents(size)?;
            return self.content(real_size, map, size - map_length, size);
        }
        match pax.sparse_map().map_err(|problem| self.refuse(problem))? {
            Some(map) => self.content(old_size.or(real_size).unwrap_or(size), map, size, size),
            None => self.content(size, vec![(0, size)], size, size),
        }
    }

    /// The map of PAX sparse format 1.0: decimal numbers in lines, in blocks of their own before the contents.
    fn map_before_contents(&mut self, size: u64) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let mut length = 0;
        let mut numbers = Vec::new();
        let mut digits = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            if length + BLOCK as u64 > size {
                return Err(self
                    .refuse("its sparse map is longer than its contents")
                    .into());
            }
            let mut block = [0; BLOCK];
            self.take(&mut block)?;
            length += BLOCK as u64;
            for byte in block {
                if byte != b'\n' && digits.len() < 20 {
                    digits.push(byte);
                    continue;
                }
                numbers.push(decimal(&digits).map_err(|problem| self.refuse(problem))?);
                digits.clear();
                if numbers.len() == 1 {
                    if numbers[0] > MAX_SPARSE_RUNS as u64 {
                        return Err(self.refuse("its sparse map is too long").into());
                    }
                    wanted = 1 + 2 * numbers[0] as usize;
                }
                if numbers.len() == wanted {
                    break;
                }
            }
        }
        Ok((
            numbers[1..]
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
            length,
        ))
    }

    /// The old GNU sparse format: a map in the header and in blocks right after it.
    fn gnu_sparse(&mut self, header: &Header, size: u64) -> io::Result<EntryKind> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| self.refuse("it is sparse, but not in GNU format"))?;
        let real_size = gnu
            .real_size()
            .map_err(|error| self.refuse(error.to_string()))?;
        let mut map = Vec::new();
        let add = |map: &mut Vec<(u64, u64)>, runs: &[tar::GnuSparseHeader]| -> io::Result<()> {
            for run in runs.iter().filter(|run| !run.is_empty()) {
                map.push((run.offset()?, run.length()?));
            }
            Ok(())
        };
        add(&mut map, &gnu.sparse).map_err(|error| self.refuse(error.to_string()))?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            let mut bytes = [0; BLOCK];
            self.take(&mut bytes)?;
            block.as_mut_bytes().copy_from_slice(&bytes);
            add(&mut map, &block.sparse).map_err(|error| self.refuse(error.to_string()))?;
            if map.len() > MAX_SPARSE_RUNS {
                return Err(self.refuse("its sparse map is too long").into());
            }
            more = block.is_extended();
        }
        self.content(real_size, map, size, size)
    }

    /// Notes that `length` bytes of contents follow, for the runs of `map`, and what pads `archived` bytes to full blocks.
    fn content(
        &mut self,
        size: u64,
        map: Vec<(u64, u64)>,
        length: u64,
        archived: u64,
    ) -> io::Result<EntryKind> {
        let mut ranges = Vec::new();
        let mut file_end = 0u64;
        let mut left = length;
        for (file_offset, run) in map.into_iter().filter(|(_, run)| *run > 0) {
            let end = file_offset
                .checked_add(run)
                .filter(|&end| end <= size && size <= MAX_FILE_SIZE);
            if file_offset < file_end || end.is_none() || run > left {
                return Err(self.refuse("its size or sparse map is impossible").into());
            }
            ranges.push(DataRange {
                file_offset,
                length: run,
                stream_offset: self.data_length,
            });
            self.data_length = self
                .data_length
                .checked_add(run)
                .ok_or_else(|| self.refuse("the stream is too long"))?;
            file_end = file_offset + run;
            left -= run;
        }
        if left > 0 {
            return Err(self
                .refuse("it has more contents than its sparse map names")
                .into());
        }
        self.state = State::Content {
            left: length,
            padding: archived.wrapping_neg() % BLOCK as u64,
        };
        Ok(EntryKind::Regular { size, ranges })
    }

    /// At the end mark: puts the table together and reads what pads the archive, so that its writer sees no closed pipe.
    fn end(&mut self) -> io::Result<()> {
        self.member.clear();
        let mut padding = [0; 8 << 10];
        while read_some(&mut self.input, &mut padding)? > 0 {}
        let nodes = std::mem::replace(&mut self.nodes, Nodes::new());
        let entries = nodes
            .into_entries()
            .map_err(|problem| self.refuse(problem))?;
        let table = TreeTable::new(entries, self.data_length).map_err(Error::Table)?;
        self.state = State::Table {
            bytes: table.encode(),
            table: Box::new(table),
            position: 0,
        };
        Ok(())
    }

    fn take(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match read_some(&mut self.input, &mut buf[filled..])? {
                0 => return Err(self.refuse("the stream ends without its end mark").into()),
                read => filled += read,
            }
        }
        self.consumed += filled as u64;
        Ok(())
    }

    fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::Tar {
            offset: self.consumed,
            path: to_path(self.member.clone()),
            problem: problem.into(),
        }
    }
}

impl<R: Read> Read for TarTreeReader<R> {
    /// Fills `buf` across as many members as it takes; less only at the end of the contents and of the stream.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.fill(buf);
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }
}

/// A member's path or link: PAX record, else GNU long name, else header field. A long name ends with a NUL.
fn name(long: Option<Vec<u8>>, record: Option<&[u8]>, field: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    match (record, long) {
        (Some(record), _) => record.to_vec(),
        (None, Some(mut long)) => {
            long.truncate(long.iter().position(|&b| b == 0).unwrap_or(long.len()));
            long
        }
        (None, None) => field(),
    }
}

fn read_some(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buf) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
