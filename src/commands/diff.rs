//! `podsnap diff`: what is different between two snapshots.

use podsnap::diff::{
    Change, ChangedEntry, DiffOptions, DiffReport, Entries, SectionDiff, TreeDiff,
};
use podsnap::printable;

use crate::{
    args::SnapshotRef,
    context::Context,
    exit::{self, Failure},
    report::{bytes, count, table},
};

/// Show what is different between two snapshots
///
/// Compares the ids of chunks and the lists of files. What is called equal is equal; what two saves cut differently may be
/// called new although it is not. Small files share chunks with their neighbours: whether one changed is sometimes
/// told for sure only with --read.
///
/// The exit code is 0 whether anything is different or not; with --exit-code it is 1 if anything is.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap diff web-1 web-2
  podsnap diff web-1 file:elsewhere.podsnap --top 50
  podsnap diff web-1 web-2 --read
  podsnap diff web-1 web-2 --exit-code > /dev/null || echo they differ
  podsnap diff web-1 web-2 --json | jq '.sections[] | {section, new_bytes}'")]
pub struct Args {
    /// The first snapshot, or file:PATH for one that was exported
    #[arg(value_name = "A")]
    a: SnapshotRef,
    /// The second snapshot, likewise
    #[arg(value_name = "B")]
    b: SnapshotRef,
    /// Most ranges and files to list, of each kind in each section
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Read the parts of files that are in other chunks, and tell for sure which files changed
    #[arg(long)]
    read: bool,
    /// Exit with 1 if anything is different
    #[arg(long)]
    exit_code: bool,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let open = async {
        Ok::<_, Failure>((
            context.open(&args.a).await?.1,
            context.open(&args.b).await?.1,
        ))
    };
    let (a, b) = tokio::select! {
        opened = open => opened?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted()),
    };
    let options = DiffOptions {
        top: args.top,
        read: args.read,
        cancel: context.cancel.clone(),
    };
    let report = a.diff(&b, &options).await?;
    context.show(&report, || text(&report))?;
    Ok(if args.exit_code && !report.identical {
        exit::FAILED
    } else {
        0
    })
}

fn text(report: &DiffReport) -> String {
    let (a, b) = (printable(&report.a.snapshot), printable(&report.b.snapshot));
    if report.identical {
        return format!("{a} and {b} are the same: {}\n", bytes(report.b.raw_bytes));
    }
    let mut parts = vec![format!(
        "{a} and {b} differ: of {} in {b}, {a} lacks {}\n",
        bytes(report.b.raw_bytes),
        bytes(report.new_bytes)
    )];
    parts.push(summary(report));
    parts.extend(report.sections.iter().map(details));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn summary(report: &DiffReport) -> String {
    let title = ["SECTION", "IN A", "IN B", "EQUAL", "ZEROED", "MOVED", "NEW"];
    let mut rows = vec![title.map(str::to_owned).to_vec()];
    rows.extend(report.sections.iter().map(|section| {
        let len = |side: &Option<podsnap::diff::SectionSide>| match side {
            Some(side) => bytes(side.raw_bytes),
            None => "-".to_owned(),
        };
        vec![
            printable(&section.section),
            len(&section.a),
            len(&section.b),
            bytes(section.equal_bytes),
            bytes(section.zeroed_bytes),
            bytes(section.moved_bytes),
            bytes(section.new_bytes),
        ]
    }));
    table(&rows, &[false, true, true, true, true, true, true])
}

/// What is different in one section.
fn details(section: &SectionDiff) -> String {
    let title = printable(&section.section);
    let (Some(a), Some(b)) = (&section.a, &section.b) else {
        let only = if section.a.is_some() { "A" } else { "B" };
        return format!("{title}: only in {only}\n");
    };
    if section.identical {
        return String::new();
    }
    let mut text = String::new();
    if a.shape != b.shape {
        text.push_str(&format!(
            "{title}: a {} in A, a {} in B\n",
            a.shape, b.shape
        ));
    }
    if !section.cut_alike {
        text.push_str(&format!(
            "{title}: cut differently in A and B, so equal bytes may be called new\n"
        ));
    }
    for from in &section.moved_from {
        text.push_str(&format!(
            "{title}: {} stand elsewhere in A, in {}\n",
            bytes(from.bytes),
            printable(&from.section)
        ));
    }
    if let Some(tree) = &section.tree {
        text.push_str(&tree_details(&title, tree));
    } else if section.changed_ranges > 0 {
        text.push_str(&ranges(&title, section));
    }
    if text.is_empty() {
        text = match a.raw_bytes == b.raw_bytes {
            true => format!("{title}: same bytes, other addresses\n"),
            false => format!("{title}: shorter in B\n"),
        };
    }
    text
}

fn ranges(title: &str, section: &SectionDiff) -> String {
    let mut text = format!(
        "{title}: {}",
        count(section.changed_ranges, "changed range")
    );
    let listed = section.ranges.len() as u64;
    if listed < section.changed_ranges {
        text.push_str(&format!(", the longest {listed}"));
    }
    text.push('\n');
    let row = |range: &podsnap::diff::ChangedRange| {
        let parts = [
            (range.new_bytes, "new"),
            (range.moved_bytes, "moved"),
            (range.zeroed_bytes, "zeroed"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(len, _)| *len > 0)
            .map(|(len, what)| format!("{} {what}", bytes(*len)))
            .collect();
        vec![
            format!("  {:#x}", range.offset),
            bytes(range.len),
            parts.join(", "),
        ]
    };
    let rows: Vec<_> = section.ranges.iter().map(row).collect();
    text.push_str(&table(&rows, &[true, true]));
    text
}

fn tree_details(title: &str, tree: &TreeDiff) -> String {
    let mut text = format!(
        "{title}: {} added, {} removed, {} changed, {} unchanged\n",
        tree.added.count,
        tree.removed.count,
        tree.changed,
        tree.unchanged + tree.undecided.count
    );
    let mut rows = Vec::new();
    entries(&mut rows, "+", &tree.added);
    entries(&mut rows, "-", &tree.removed);
    rows.extend(tree.changes.iter().map(changed_row));
    more(&mut rows, "~", tree.changed, tree.changes.len());
    text.push_str(&table(&rows, &[false, true]));
    if tree.undecided.count > 0 {
        text.push_str(&format!(
            "  {} of {} count as unchanged by size, time and attributes, but are in chunks that changed: --read tells for sure\n",
            count(tree.undecided.count, "file"),
            bytes(tree.undecided.bytes),
        ));
    }
    text
}

fn entries(rows: &mut Vec<Vec<String>>, mark: &str, entries: &Entries) {
    rows.extend(entries.largest.iter().map(|entry| {
        let size = match entry.kind {
            "file" => bytes(entry.size),
            kind => kind.to_owned(),
        };
        vec![format!("  {mark}"), size, name(&entry.path)]
    }));
    more(rows, mark, entries.count, entries.largest.len());
}

fn more(rows: &mut Vec<Vec<String>>, mark: &str, count: u64, listed: usize) {
    if count > listed as u64 {
        rows.push(vec![
            format!("  {mark}"),
            String::new(),
            format!("and {} more", count - listed as u64),
        ]);
    }
}

/// A path of the report, which is safe to show; the top directory has none.
fn name(path: &str) -> String {
    if path.is_empty() { "." } else { path }.to_owned()
}

fn changed_row(entry: &ChangedEntry) -> Vec<String> {
    let (a, b) = (&entry.a, &entry.b);
    let changes: Vec<String> = entry
        .changes
        .iter()
        .map(|change| match change {
            Change::Type => format!("{} -> {}", a.kind, b.kind),
            Change::Content if a.size != b.size => {
                format!("content ({} -> {})", bytes(a.size), bytes(b.size))
            }
            Change::Content => "content".to_owned(),
            Change::PerhapsContent => "perhaps content".to_owned(),
            Change::Target => "target".to_owned(),
            Change::Device => "device".to_owned(),
            Change::Mode => format!("mode {:o} -> {:o}", a.mode, b.mode),
            Change::Owner => format!("owner {}:{} -> {}:{}", a.uid, a.gid, b.uid, b.gid),
            Change::Mtime => "mtime".to_owned(),
            Change::Xattrs => "xattrs".to_owned(),
            _ => "something else".to_owned(),
        })
        .collect();
    let size = match entry.changed_bytes {
        0 => String::new(),
        changed => bytes(changed),
    };
    vec![
        "  ~".to_owned(),
        size,
        format!("{}: {}", name(&b.path), changes.join(", ")),
    ]
}
