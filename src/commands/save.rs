//! `podsnap save`: sources become sections of a new snapshot.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use podsnap::{
    Dtype, NewSection, Policy, SaveOptions, SaveStats, SnapshotId, Store,
    chunking::{self, ChunkingParams},
    gvisor,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    context::Context,
    exit::Failure,
    progress::Doing,
    report::{self, bytes, percent},
    source::SourceArg,
};

/// Save a pod's state as a new snapshot
///
/// Every SOURCE becomes one section, a gVisor image directory becomes one for each of its files. What the snapshot
/// has twice, or what a base has already, is stored once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap save web-1 /var/lib/checkpoints/web
  podsnap save web-2 /var/lib/checkpoints/web --base web-1
  podsnap save job-7 memory=ram.bin rootfs=/overlay/upper tmpfs:shm=/run/shm --group job
  kill -STOP 4711; podsnap save live memory=pid:4711; kill -CONT 4711
  tar -c -C /overlay upper | podsnap save layer rootfs=-")]
pub struct Args {
    /// Id of the new snapshot: letters, digits, '.', '_' and '-'
    snapshot: SnapshotId,
    /// A gVisor image directory, or ROLE[:NAME]=PATH with a role of memory, kernel, rootfs, tmpfs, gpu or other. PATH is a
    /// file or - for standard input; rootfs and tmpfs take a directory or a tar, other takes anything, and memory also
    /// pid:N for the memory of a stopped process
    #[arg(required = true, value_name = "SOURCE")]
    sources: Vec<SourceArg>,
    /// Deduplicate against this snapshot; may be given several times [default: the newest of the group]
    #[arg(long, value_name = "SNAPSHOT")]
    base: Vec<SnapshotId>,
    /// Group whose newest snapshot this one becomes
    #[arg(long)]
    group: Option<String>,
    /// How to compress: auto, none, or zstd:LEVEL
    #[arg(long, default_value = "auto")]
    codec: Policy,
    /// How to cut: cdc:AVERAGE (by content) or fixed:SIZE, such as cdc:64K or fixed:4K [default: as the base, or by length]
    #[arg(long)]
    chunking: Option<Chunking>,
    /// What blobs consist of, if it is known: byte, bf16, f16, f32 or f64. A hint that is wrong costs size, nothing else
    #[arg(long)]
    dtype: Option<DtypeArg>,
    /// Something to remember; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_label)]
    label: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy)]
struct Chunking(ChunkingParams);

impl FromStr for Chunking {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, size) = text
            .split_once(':')
            .ok_or("write cdc:AVERAGE or fixed:SIZE")?;
        let size = parse_size(size)
            .ok_or_else(|| format!("{size:?} is no size; write 4096, 64K or 1M"))?;
        let params = match kind {
            "cdc" if size.is_power_of_two() && size > 1 => chunking::content_defined(size.ilog2()),
            "cdc" => return Err("the average must be a power of two".to_owned()),
            "fixed" => chunking::fixed(size),
            _ => return Err(format!("{kind:?} is neither cdc nor fixed")),
        };
        chunking::Chunker::new(&params)
            .map(|_| Self(params))
            .ok_or_else(|| format!("chunks of {text} cannot be cut"))
    }
}

fn parse_size(text: &str) -> Option<u32> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        _ => (text, 1),
    };
    // A power of two times four must still fit.
    digits
        .parse::<u32>()
        .ok()?
        .checked_mul(unit)
        .filter(|size| *size <= 1 << 28)
}

#[derive(Debug, Clone, Copy)]
struct DtypeArg(Dtype);

impl FromStr for DtypeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "byte" => Dtype::Byte,
            "bf16" => Dtype::Bf16,
            "f16" => Dtype::F16,
            "f32" => Dtype::F32,
            "f64" => Dtype::F64,
            _ => return Err("known are byte, bf16, f16, f32 and f64".to_owned()),
        }))
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// What is to be saved, and the description of a gVisor image.
type Sources = (Vec<NewSection>, BTreeMap<String, String>);

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let store = context.store()?;
    if args.sources.iter().filter(|s| s.is_stdin()).count() > 1 {
        return Err(Failure::usage("only one source can be standard input"));
    }
    let options = SaveOptions {
        bases: args.base,
        group: args.group,
        codec: args.codec,
        labels: args.label.into_iter().collect(),
        cancel: context.cancel.clone(),
        ..SaveOptions::default()
    };
    let bar = context.bar(Doing::Saving, &options.progress);
    let as_wanted = |section: NewSection| NewSection {
        chunking: args.chunking.map(|c| c.0).or(section.chunking),
        dtype: args.dtype.map(|d| d.0).or(section.dtype),
        ..section
    };
    let stats = save(&store, &args.snapshot, args.sources, options, as_wanted).await?;
    drop(bar);
    context.report(&Report::of(&stats), || summary(&stats))?;
    Ok(0)
}

/// Opens all sources, and saves them as the sections of one snapshot; `adjust` has the last word on each.
pub async fn save(
    store: &Store,
    snapshot: &SnapshotId,
    sources: Vec<SourceArg>,
    options: SaveOptions,
    adjust: impl Fn(NewSection) -> NewSection,
) -> Result<SaveStats, Failure> {
    let (sections, gvisor) = open(sources, &options.cancel).await?;
    let options = SaveOptions { gvisor, ..options };
    let mut writer = store.save(snapshot, options).await?;
    for section in sections {
        if let Err(e) = writer.add(adjust(section)).await {
            // The process ends too soon for a writer that is merely dropped to remove what it wrote.
            let _ = writer.abort().await;
            return Err(e.into());
        }
    }
    Ok(writer.finish().await?)
}

/// Opens all sources, which may mean to scan directories. Nothing is in the store yet, so an interrupt waits for nothing.
async fn open(sources: Vec<SourceArg>, cancel: &CancellationToken) -> Result<Sources, Failure> {
    let opened = tokio::task::spawn_blocking(move || {
        let mut sections: Vec<NewSection> = Vec::new();
        let mut gvisor = BTreeMap::new();
        for source in &sources {
            let opened = source.sections()?;
            if let SourceArg::Image(dir) = source {
                gvisor = gvisor::read_metadata(dir)?;
            }
            for section in opened {
                if sections.iter().any(|s| s.title() == section.title()) {
                    let title = section.title();
                    return Err(Failure::usage(format!("{title} is given twice"))
                        .hint("tell sections of one role apart by a name: ROLE:NAME=PATH"));
                }
                sections.push(section);
            }
        }
        Ok((sections, gvisor))
    });
    tokio::select! {
        opened = opened => {
            opened.map_err(|_| Failure::other("the thread that opens the sources died"))?
        }
        () = cancel.cancelled() => Err(Failure::interrupted()),
    }
}

/// The statistics, with what scripts would otherwise have to work out.
#[derive(Serialize)]
pub struct Report<'a> {
    stored_bytes: u64,
    #[serde(flatten)]
    stats: &'a SaveStats,
}

impl<'a> Report<'a> {
    pub fn of(stats: &'a SaveStats) -> Self {
        Self {
            stored_bytes: stats.stored_bytes(),
            stats,
        }
    }
}

fn summary(stats: &SaveStats) -> String {
    let elapsed = Duration::from_millis(stats.elapsed_ms);
    let mut text = format!(
        "{} saved: {} in {}, {}\n",
        stats.snapshot,
        bytes(stats.raw_bytes),
        report::seconds(elapsed),
        report::rate(stats.raw_bytes, elapsed)
    );
    let mut rows = Vec::new();
    let mut row = |what: String, count: u64| {
        rows.push(vec![
            format!("  {what}"),
            bytes(count),
            percent(count, stats.raw_bytes),
        ]);
    };
    row("zero".to_owned(), stats.zero_bytes);
    row("found twice".to_owned(), stats.deduplicated_own_bytes);
    if !stats.bases.is_empty() {
        row(
            format!("found in {}", stats.bases.join(", ")),
            stats.deduplicated_base_bytes,
        );
    }
    row("new".to_owned(), stats.new_bytes);
    row("stored".to_owned(), stats.stored_bytes());
    text.push_str(&report::table(&rows, &[false, true, true]));
    if stats.stored_bytes() > 0 {
        text.push_str(&format!(
            "  {:.1} times smaller\n",
            stats.raw_bytes as f64 / stats.stored_bytes() as f64
        ));
    }
    text.push_str(&format!("  digest {}\n", stats.digest));
    text
}
