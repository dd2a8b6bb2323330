//! A section of any length made of real pages, over and over, each time with some of them changed: made when it is read, so that it
//! takes no memory.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use podsnap::{Error, ErrorKind, Result, restore::Target, source::Source};

use super::Noise;

const PAGE: u64 = 4096;

/// The pages.
pub struct Pages {
    /// Files, and where each begins among the pages.
    files: Vec<(u64, File)>,
    /// Length of what is repeated.
    period: u64,
    len: u64,
}

impl Pages {
    /// `len` bytes of the pages of a process, if there is an image of one, else of programs and libraries.
    pub fn new(len: u64) -> Self {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        let image = home.join(".cache/podsnap/images/R/pages.img");
        let mut paths = match image.exists() {
            true => vec![image],
            false => libraries(),
        };
        paths.push(std::env::current_exe().unwrap());
        let (mut files, mut period) = (Vec::new(), 0);
        for path in paths {
            let file = File::open(path).unwrap();
            let pages = file.metadata().unwrap().len() / PAGE;
            files.push((period, file));
            period += pages * PAGE;
        }
        assert!(period > 8 << 20, "too few pages to repeat");
        Self { files, period, len }
    }

    /// Fills `page` with the page at `offset`.
    fn page(&self, page: &mut [u8], offset: u64) {
        let (round, place) = (offset / self.period, offset % self.period);
        let file = self.files.partition_point(|(start, _)| *start <= place) - 1;
        let (start, file) = &self.files[file];
        file.read_exact_at(page, place - start).unwrap();
        // In every round but the first some 3 % of the pages differ in 8 bytes: two in five chunks of 64 KiB do.
        let mut noise = Noise(offset ^ 0x5eed);
        if round > 0 && noise.below(32) == 0 {
            let at = noise.below(PAGE as usize / 8) * 8;
            page[at..at + 8].copy_from_slice(&noise.word().to_le_bytes());
        }
    }
}

fn libraries() -> Vec<PathBuf> {
    let dirs = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    let entries = dirs
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let stat = entry.metadata().ok()?;
            (stat.is_file() && stat.len() > 1 << 20).then(|| entry.path())
        })
        .filter(|path| File::open(path).is_ok())
        .collect();
    paths.sort();
    paths.truncate(50);
    paths
}

impl Source for Pages {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let mut page = [0; PAGE as usize];
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            self.page(&mut page, at - at % PAGE);
            let from = (at % PAGE) as usize;
            let len = (PAGE as usize - from).min(buf.len() - filled);
            buf[filled..filled + len].copy_from_slice(&page[from..from + len]);
            filled += len;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// A target that keeps nothing: it compares what it is given with what it should be.
pub struct Comparing {
    pages: Pages,
    compared: AtomicU64,
}

impl Comparing {
    pub fn new(pages: Pages) -> Self {
        Self {
            pages,
            compared: AtomicU64::new(0),
        }
    }

    /// Bytes that were written and were right.
    pub fn compared(&self) -> u64 {
        self.compared.load(SeqCst)
    }
}

impl Target for Comparing {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut expected = vec![0; bytes.len()];
        self.pages.read_at(&mut expected, offset)?;
        if bytes != expected {
            let what = format!("other bytes somewhere in {} at {offset}", bytes.len());
            return Err(Error::new(ErrorKind::Target, what));
        }
        self.compared.fetch_add(bytes.len() as u64, SeqCst);
        Ok(())
    }
}
