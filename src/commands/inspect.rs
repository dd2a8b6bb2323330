//! `podsnap inspect`: what a snapshot consists of, and what of it costs most.

use podsnap::inspect::{
    Borrowed, Chunking, Duplicate, FileCost, InspectOptions, InspectReport, LearnedReport, Place,
    SectionReport, SharedBytes,
};
use podsnap::{printable, printable_message};

use crate::{
    args::SnapshotRef,
    context::Context,
    exit::Failure,
    report::{self, bytes, count, shortened, table},
};

/// Show what a snapshot consists of, what it has twice, and what of it costs most
///
/// Reads the manifest, what restores touched, and the lists of files of trees, but no data.
///
/// Every byte of a section is ZERO, or stands earlier in the snapshot (TWICE), or is stored by another snapshot (BORROWED), or is NEW and
/// takes what STORED says. What is stored is charged to the first place in the snapshot that uses it. For a file, SPARED is
/// what this save would have been spared without it: what nothing else in the snapshot has too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap inspect web-2
  podsnap inspect web-2 --top 3
  podsnap inspect web-2 --json | jq -r '.files[] | [.spared_bytes, .path] | @tsv'
  podsnap inspect file:web-2.podsnap")]
pub struct Args {
    /// The snapshot, or file:PATH for one that was exported
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotRef,
    /// Most files, ranges, duplicates and packs to list, of each kind
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (_store, snapshot) = tokio::select! {
        opened = context.open(&args.snapshot) => opened?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted()),
    };
    let options = InspectOptions {
        top: args.top,
        cancel: context.cancel.clone(),
    };
    let report = snapshot.inspect(&options).await?;
    context.show(&report, || {
        let parts = [
            heading(&report, args.top),
            sections(&report),
            sharing(&report),
            codecs(&report),
            packs(&report, args.top),
            files(&report),
            ranges(&report),
            duplicates(&report),
            touched(&report),
        ];
        let parts: Vec<String> = parts.into_iter().filter(|p| !p.is_empty()).collect();
        parts.join("\n")
    })?;
    for problem in &report.problems {
        eprintln!("podsnap: {}", printable_message(problem));
    }
    Ok(0)
}

/// Who made it, when, of what.
fn heading(report: &InspectReport, top: usize) -> String {
    let metadata = &report.metadata;
    let mut text = format!(
        "{}{}: {} in {}, {} stored",
        printable(&report.snapshot),
        if report.exported { " (an export)" } else { "" },
        bytes(report.raw_bytes),
        count(report.sections.len() as u64, "section"),
        bytes(report.new_stored_bytes),
    );
    if report.borrowed_bytes > 0 {
        text.push_str(&format!(", {} borrowed", bytes(report.borrowed_bytes)));
    }
    text.push('\n');
    let mut rows = Vec::new();
    let mut row = |what: &str, value: String| rows.push(vec![format!("  {what}"), value]);
    row(
        "saved",
        format!(
            "{} UTC by {}",
            report::date(metadata.created_unix_ms),
            shortened(&metadata.writer)
        ),
    );
    if let Some(group) = &metadata.group {
        row("group", shortened(group));
    }
    if !metadata.bases.is_empty() {
        row("based on", shortened(&metadata.bases.join(", ")));
    }
    for (what, pairs) in [("label", &metadata.labels), ("gvisor", &metadata.gvisor)] {
        for (key, value) in pairs.iter().take(top) {
            row(what, format!("{}: {}", shortened(key), shortened(value)));
        }
        if pairs.len() > top {
            row(what, format!("and {} more, see --json", pairs.len() - top));
        }
    }
    row("digest", report.digest.clone());
    row(
        "manifest",
        format!(
            "{}, {} of the raw bytes",
            bytes(report.manifest_bytes),
            fine_percent(report.manifest_bytes, report.raw_bytes)
        ),
    );
    if report.keyed {
        row("key", "chunk ids are keyed".to_owned());
    }
    if let Some(len) = report.working_set_bytes {
        row("working set", working_set(report, len));
    }
    text.push_str(&table(&rows, &[]));
    text
}

/// What a restore touched, in a line.
fn working_set(report: &InspectReport, stored: u64) -> String {
    match &report.working_set {
        None => format!("{} that are of no use", bytes(stored)),
        Some(learned) => format!(
            "{} in {}, {} of the raw bytes, touched within {}",
            bytes(learned.bytes),
            count(learned.ranges, "range"),
            report::percent(learned.bytes, report.raw_bytes),
            millis(learned.span_ms)
        ),
    }
}

fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms => format!("{:.1} s", ms / 1000.0),
    }
}

/// A share that may be much less than a percent.
fn fine_percent(part: u64, whole: u64) -> String {
    format!("{:.3} %", 100.0 * part as f64 / (whole as f64).max(1.0))
}

fn sections(report: &InspectReport) -> String {
    let title = [
        "SECTION", "SHAPE", "RAW", "ZERO", "TWICE", "BORROWED", "NEW", "STORED", "CHUNKS",
        "AVERAGE", "CUT", "FILES",
    ];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.sections.iter().map(section_row));
    if report.sections.len() > 1 {
        rows.push(vec![
            "all".to_owned(),
            String::new(),
            bytes(report.raw_bytes),
            bytes(report.zero_bytes),
            bytes(report.deduplicated_bytes),
            bytes(report.borrowed_bytes),
            bytes(report.new_bytes),
            bytes(report.new_stored_bytes),
            report.chunks.to_string(),
            bytes(report.average_chunk_bytes),
        ]);
    }
    let right = [
        false, false, true, true, true, true, true, true, true, true, false, true,
    ];
    table(&rows, &right)
}

fn section_row(section: &SectionReport) -> Vec<String> {
    vec![
        printable(&section.section),
        section.shape.clone(),
        bytes(section.raw_bytes),
        bytes(section.zero_bytes),
        bytes(section.deduplicated_bytes),
        bytes(section.borrowed_bytes),
        bytes(section.new_bytes),
        bytes(section.new_stored_bytes),
        section.chunks.to_string(),
        bytes(section.average_chunk_bytes),
        match section.chunking {
            Chunking::Cdc { average, .. } => format!("cdc:{}", size(average)),
            Chunking::Fixed { size: fixed } => format!("fixed:{}", size(fixed)),
        },
        section.files.map_or_else(String::new, |n| n.to_string()),
    ]
}

/// A length as `podsnap save --chunking` takes it.
fn size(len: u32) -> String {
    match len {
        len if len % (1 << 20) == 0 => format!("{}M", len >> 20),
        len if len % (1 << 10) == 0 => format!("{}K", len >> 10),
        len => len.to_string(),
    }
}

/// What the sections have in common, and what other snapshots store.
fn sharing(report: &InspectReport) -> String {
    let mut text = String::new();
    for section in &report.sections {
        let title = printable(&section.section);
        for SharedBytes {
            section: with,
            bytes: shared,
            ..
        } in &section.deduplicated
        {
            let shared = bytes(*shared);
            text.push_str(&if *with == section.section {
                format!("{title} has {shared} twice\n")
            } else {
                format!("{title} shares {shared} with {}\n", printable(with))
            });
        }
        for Borrowed {
            snapshot,
            raw_bytes,
            stored_bytes,
        } in &section.borrowed
        {
            text.push_str(&format!(
                "{title} borrows {} from {snapshot}, stored there as {}\n",
                bytes(*raw_bytes),
                bytes(*stored_bytes)
            ));
        }
    }
    text
}

fn codecs(report: &InspectReport) -> String {
    let mut rows = vec![
        ["SECTION", "CODEC", "CHUNKS", "RAW", "STORED", "OF RAW"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for section in &report.sections {
        rows.extend(section.codecs.iter().map(|codec| {
            vec![
                printable(&section.section),
                codec.codec.to_owned(),
                codec.chunks.to_string(),
                bytes(codec.raw_bytes),
                bytes(codec.stored_bytes),
                report::percent(codec.stored_bytes, codec.raw_bytes),
            ]
        }));
    }
    listing(rows, &[false, false, true, true, true, true], "")
}

fn packs(report: &InspectReport, top: usize) -> String {
    let title = ["PACK", "LENGTH", "USED", "CHUNKS", ""];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.packs.iter().take(top).map(|pack| {
        vec![
            printable(&pack.object),
            bytes(pack.bytes),
            bytes(pack.used_bytes),
            pack.used_chunks.to_string(),
            if pack.borrowed { "borrowed" } else { "" }.to_owned(),
        ]
    }));
    let mut text = listing(rows, &[false, true, true, true], "");
    if report.packs.len() > top && !text.is_empty() {
        text.push_str(&format!("and {} more\n", report.packs.len() - top));
    }
    text
}

fn files(report: &InspectReport) -> String {
    let title = ["STORED", "BORROWED", "SPARED", "SIZE", "FILE"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.files.iter().map(|file| {
        vec![
            bytes(file.new_stored_bytes),
            bytes(file.borrowed_stored_bytes),
            bytes(file.spared_bytes),
            bytes(file.size),
            file_name(&file.section, &file.path),
        ]
    }));
    let right = [true, true, true, true];
    let mut text = listing(rows, &right, "Files that cost most\n");
    let advice: String = report
        .shared_files
        .iter()
        .filter(|file| file.shared_bytes >= WORTH_ADVICE)
        .map(advice)
        .collect();
    if !text.is_empty() && !advice.is_empty() {
        text.push('\n');
    }
    text.push_str(&advice);
    text
}

fn file_name(section: &str, path: &str) -> String {
    format!("{}/{path}", printable(section))
}

/// Fewest shared bytes of a file worth a line: small files are alike by chance.
const WORTH_ADVICE: u64 = 64 << 10;

/// What removing a file before saving would have been good for.
fn advice(file: &FileCost) -> String {
    let also = file
        .shared_with
        .iter()
        .map(|with| match &with.path {
            Some(path) => file_name(&with.section, path),
            None => printable(&with.section),
        })
        .collect::<Vec<_>>()
        .join(", ");
    let names = match file.names {
        1 => String::new(),
        names => format!(" and its {}", count(names - 1, "other name")),
    };
    format!(
        "deleting {}{names} before saving would save {}: {} of its {} are in {also} too\n",
        file_name(&file.section, &file.path),
        bytes(file.spared_bytes),
        bytes(file.shared_bytes),
        bytes(file.data_bytes),
    )
}

fn ranges(report: &InspectReport) -> String {
    let title = ["STORED", "BORROWED", "LENGTH", "OFFSET", "SECTION"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.ranges.iter().map(|range| {
        let address = range
            .address
            .map_or_else(String::new, |address| format!(", address {address:#x}"));
        vec![
            bytes(range.new_stored_bytes),
            bytes(range.borrowed_stored_bytes),
            bytes(range.len),
            format!("{:#x}", range.offset),
            format!("{}{address}", printable(&range.section)),
        ]
    }));
    listing(rows, &[true, true, true, true], "Ranges that cost most\n")
}

fn duplicates(report: &InspectReport) -> String {
    let title = ["SAME", "OF", "HERE", "", "AS EARLIER"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.duplicates.iter().map(|duplicate: &Duplicate| {
        vec![
            bytes(duplicate.bytes),
            bytes(duplicate.len),
            place(&duplicate.at),
            "=".to_owned(),
            place(&duplicate.of),
        ]
    }));
    listing(rows, &[true, true], "Twice there, stored once\n")
}

/// What a restore touched, by section, and first of all.
fn touched(report: &InspectReport) -> String {
    let Some(learned) = &report.working_set else {
        return String::new();
    };
    let title = ["TOUCHED", "OF IT", "RANGES", "FIRST", "LAST", "SECTION"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(learned.sections.iter().map(|section| {
        vec![
            bytes(section.bytes),
            report::percent(section.bytes, section.raw_bytes),
            section.ranges.to_string(),
            millis(section.first_ms),
            millis(section.last_ms),
            printable(&section.section),
        ]
    }));
    let right = [true; 5];
    let mut text = listing(rows, &right, "What a restore touched\n");
    text.push_str(&first_touches(learned));
    text
}

fn first_touches(learned: &LearnedReport) -> String {
    let title = ["AT", "LENGTH", "OFFSET", "SECTION"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(learned.first_touches.iter().map(|touch| {
        vec![
            format!("{:.1} ms", touch.at_ms),
            bytes(touch.len),
            format!("{:#x}", touch.offset),
            printable(&touch.section),
        ]
    }));
    listing(rows, &[true; 3], "\nWhat it touched first\n")
}

fn place(place: &Place) -> String {
    match &place.path {
        Some(path) => format!("{} at {:#x}", file_name(&place.section, path), place.offset),
        None => format!("{} at {:#x}", printable(&place.section), place.offset),
    }
}

/// A table with a heading, or nothing if there is nothing but its first row.
fn listing(rows: Vec<Vec<String>>, right: &[bool], heading: &str) -> String {
    if rows.len() < 2 {
        return String::new();
    }
    format!("{heading}{}", table(&rows, right))
}
