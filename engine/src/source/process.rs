//! The memory of another, stopped process: its private writable mappings, one after another, as one section.
//!
//! Reading goes through `/proc/PID/mem`, which needs the right to trace the process (proc(5), ptrace(2)). The process
//! must be stopped by whoever saves it: this module checks that it is, before and after, and stops nothing itself.

use std::{fs, fs::File, os::unix::fs::FileExt};

use podsnap_format::manifest::AddressRange;

use super::Source;
use crate::error::{Error, ErrorKind, Result};

/// The private writable memory of a stopped process.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: u32,
    mem: File,
    ranges: Vec<AddressRange>,
    len: u64,
}

impl ProcessMemory {
    /// Opens the memory of `pid`, which must be stopped (SIGSTOP, or traced).
    pub fn open(pid: u32) -> Result<Self> {
        let read = |what: &str| {
            let path = format!("/proc/{pid}/{what}");
            fs::read_to_string(&path).map_err(|e| Error::source(path, e))
        };
        let maps = read("maps")?;
        let mem = File::open(format!("/proc/{pid}/mem")).map_err(|e| {
            Error::source(format!("the memory of process {pid}"), e)
                .hint("reading it needs the right to trace the process")
        })?;
        let mut ranges = Vec::new();
        let mut len = 0;
        for line in maps.lines() {
            let Some(range) = private_writable(line) else {
                continue;
            };
            ranges.push(AddressRange {
                start: range.start,
                length: range.end - range.start,
                section_offset: len,
            });
            len += range.end - range.start;
        }
        let this = Self {
            pid,
            mem,
            ranges,
            len,
        };
        this.check_unchanged()?;
        Ok(this)
    }

    /// Where the section's bytes stood in the process.
    pub fn address_ranges(&self) -> &[AddressRange] {
        &self.ranges
    }
}

/// The addresses of a line of `/proc/PID/maps`, if it is a mapping that holds the process's own changes.
fn private_writable(line: &str) -> Option<std::ops::Range<u64>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let mode = fields.next()?;
    let name = fields.nth(3).unwrap_or("");
    let own = mode.starts_with("rw") && mode.ends_with('p') && !name.starts_with("[v");
    let hex = |text| u64::from_str_radix(text, 16).ok();
    own.then_some(hex(start)?..hex(end)?)
}

impl Source for ProcessMemory {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let mut index = self
            .ranges
            .partition_point(|r| r.section_offset + r.length <= offset);
        while !buf.is_empty() {
            let Some(range) = self.ranges.get(index) else {
                return Err(Error::invalid("read behind the end of a process's memory"));
            };
            let inside = offset - range.section_offset;
            let (now, rest) = buf.split_at_mut(buf.len().min((range.length - inside) as usize));
            self.mem
                .read_exact_at(now, range.start + inside)
                .map_err(|e| {
                    Error::source(
                        format!(
                            "the memory of process {} at {:#x}",
                            self.pid,
                            range.start + inside
                        ),
                        e,
                    )
                })?;
            offset += now.len() as u64;
            buf = rest;
            index += 1;
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<()> {
        let path = format!("/proc/{}/stat", self.pid);
        let stat = fs::read_to_string(&path).map_err(|e| Error::source(path, e))?;
        // The command name may hold anything, the state is the field behind its closing parenthesis.
        match stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next())
        {
            Some('T' | 't') => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Source,
                format!("process {} is not stopped", self.pid),
            )
            .hint("stop it while it is saved: kill -STOP PID, and kill -CONT PID afterwards")),
        }
    }
}
