//! The program that plays the pod: it serves from a model that it holds twice, in its memory and in its files, and counts.
//!
//! That is what makes real serving pods rewarding to snapshot, done with nothing but this executable. It runs as a plain process or as
//! the only process of a sandbox, started by `podsnap demo` as a hidden command. It has one thread and never ends by itself.
//!
//! Everything it would have to remember lies in one allocation of words, whose address it prints, so that another process can
//! take over from a restored copy of its memory:
//!
//!     magic, count, cache (a page is overwritten with each count), weights
//!
//! It prints a line `state ADDRESS LENGTH`, then `count N` fifty times a second.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::exit,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::exit::{FAILED, Failure};

/// Bytes of weights, which the pod has once in its memory and once in its files.
pub const WEIGHTS_BYTES: u64 = 32 << 20;

const MAGIC: &[u8; 8] = b"demo-pod";
const WEIGHT_WORDS: usize = WEIGHTS_BYTES as usize / 8;
const CACHE_WORDS: usize = 1 << 20;
const PAGE_WORDS: usize = 512;
const COUNT: usize = 1;
const CACHE: usize = 2;
const WEIGHTS: usize = CACHE + CACHE_WORDS;
const STATE_WORDS: usize = WEIGHTS + WEIGHT_WORDS;

const MODEL: &str = "model/model.safetensors";
const REQUESTS: &str = "requests.log";

/// Between two counts.
const STEP: Duration = Duration::from_millis(20);

/// Play the pod of `podsnap demo`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where its files are
    dir: PathBuf,
    /// Die with this process
    #[arg(long)]
    parent: Option<i32>,
    /// Take over from a restored memory in this file
    #[arg(long, requires = "at")]
    memory: Option<PathBuf>,
    /// Where in it the state is
    #[arg(long, requires = "memory")]
    at: Option<u64>,
}

pub fn run(args: Args) -> Result<u8, Failure> {
    let failed =
        |what: &str, e: io::Error| Failure::other(format!("the demo's pod cannot {what}: {e}"));
    if let Some(parent) = args.parent {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| failed("start", e.into()))?;
        // It may have died before it was asked for.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
            exit(FAILED.into());
        }
    }
    let state = match args.memory.zip(args.at) {
        Some((memory, at)) => State::from_memory(&memory, at, &args.dir),
        None => State::from_files(&args.dir),
    };
    let state = state.map_err(|e| failed("load its state", e))?;
    state.serve(&args.dir).map_err(|e| failed("go on", e))
}

struct State(Vec<AtomicU64>);

impl State {
    /// A new pod, or one that finds the files of an earlier one and nothing else.
    fn from_files(dir: &Path) -> io::Result<Self> {
        let model = dir.join(MODEL);
        let mut served = 0;
        if !model.exists() {
            write_model(dir)?;
        } else {
            served = BufReader::new(File::open(dir.join(REQUESTS))?)
                .lines()
                .count() as u64;
        }
        let mut words = Vec::with_capacity(STATE_WORDS);
        words.push(AtomicU64::new(u64::from_ne_bytes(*MAGIC)));
        words.push(AtomicU64::new(served));
        words.resize_with(WEIGHTS, AtomicU64::default);
        read_words(&mut open_weights(&model)?, WEIGHT_WORDS, &mut words)?;
        Ok(Self(words))
    }

    /// What an earlier pod had in its memory, from a copy of it.
    fn from_memory(memory: &Path, at: u64, dir: &Path) -> io::Result<Self> {
        let mut file = File::open(memory)?;
        file.seek(SeekFrom::Start(at))?;
        let mut words = Vec::with_capacity(STATE_WORDS);
        read_words(
            &mut BufReader::with_capacity(1 << 20, file),
            STATE_WORDS,
            &mut words,
        )?;
        if words[0].load(Relaxed).to_ne_bytes() != *MAGIC {
            return Err(io::Error::other("there is no state in the restored memory"));
        }
        let mut in_files = Vec::with_capacity(WEIGHT_WORDS);
        read_words(
            &mut open_weights(&dir.join(MODEL))?,
            WEIGHT_WORDS,
            &mut in_files,
        )?;
        let same = |(a, b): (&AtomicU64, &AtomicU64)| a.load(Relaxed) == b.load(Relaxed);
        if !words[WEIGHTS..].iter().zip(&in_files).all(same) {
            return Err(io::Error::other(
                "the restored memory and the restored files hold different weights",
            ));
        }
        Ok(Self(words))
    }

    /// Counts for ever. Each count overwrites a page of the cache and adds a line to a file, as a request would.
    fn serve(&self, dir: &Path) -> io::Result<u8> {
        let mut requests = File::options()
            .create(true)
            .append(true)
            .open(dir.join(REQUESTS))?;
        let mut out = io::stdout().lock();
        writeln!(out, "state {} {}", self.0.as_ptr().addr(), STATE_WORDS * 8)?;
        loop {
            let count = self.0[COUNT].load(Relaxed) + 1;
            let page = CACHE + count as usize * PAGE_WORDS % CACHE_WORDS;
            for (number, word) in self.0[page..page + PAGE_WORDS].iter().enumerate() {
                word.store(noise(count << 32 | number as u64), Relaxed);
            }
            self.0[COUNT].store(count, Relaxed);
            writeln!(requests, "request {count} answered")?;
            writeln!(out, "count {count}")?;
            out.flush()?;
            thread::sleep(STEP);
        }
    }
}

/// A model as people publish them: a safetensors file with one tensor of F32.
fn write_model(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir.join("model"))?;
    symlink(MODEL, dir.join("current"))?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(dir.join(MODEL))?);
    let header = format!(
        r#"{{"weights":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{WEIGHTS_BYTES}]}}}}"#,
        WEIGHTS_BYTES / 4
    );
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for number in 0..WEIGHTS_BYTES / 4 {
        file.write_all(&weight(number).to_le_bytes())?;
    }
    file.into_inner().map(drop).map_err(|e| e.into_error())
}

/// A weight like those of trained models: near zero, normally distributed, every bit of its mantissa different.
fn weight(number: u64) -> f32 {
    const FIELD: u64 = (1 << 21) - 1;
    let z = noise(number);
    let sum = (z & FIELD) + (z >> 21 & FIELD) + (z >> 42 & FIELD);
    (sum as f32 / FIELD as f32 - 1.5) * 0.04
}

/// Splitmix64.
fn noise(seed: u64) -> u64 {
    let z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn open_weights(model: &Path) -> io::Result<BufReader<File>> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(model)?);
    let mut len = [0; 8];
    file.read_exact(&mut len)?;
    file.seek_relative(u64::from_le_bytes(len).min(1 << 20) as i64)?;
    Ok(file)
}

/// Appends words that have the file's bytes, whatever the machine's byte order.
fn read_words(file: &mut impl Read, count: usize, words: &mut Vec<AtomicU64>) -> io::Result<()> {
    let mut bytes = [0; 8];
    for _ in 0..count {
        file.read_exact(&mut bytes)?;
        words.push(AtomicU64::new(u64::from_ne_bytes(bytes)));
    }
    Ok(())
}
