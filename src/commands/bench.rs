//! `podsnap bench`: how fast a store is, and with what settings.

use std::{fs, path::PathBuf, time::Duration};

use podsnap::{
    bench::{BenchOptions, BenchReport, Measured, Setting, bench},
    printable_message,
};

use crate::{
    args::parse_bytes,
    context::Context,
    exit::Failure,
    plot::{Bar, Panel},
    progress::Doing,
    report,
};

/// Measure a store: throughput by part size and concurrency, and latency
///
/// Writes and reads as saves and restores do, under names of its own, and removes what it wrote. By default up to 6 GB pass in a
/// bucket, in at most some minutes; with --quick less than 1 GB. What is recommended for a gs:// bucket can be given to save and restore.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap bench --store gs://snapshots/tenant-7 --quick
  podsnap bench --store gs://snapshots/tenant-7 --size 1G --svg bench.svg
  podsnap bench --store gs://snapshots/tenant-7 --json | jq .recommended_upload")]
pub struct Args {
    /// Bytes transferred with each setting, at most [default: 512M, with --quick 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Seconds after which a setting is given no more to do [default: 10, with --quick 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// Fewer settings and fewer bytes
    #[arg(long)]
    quick: bool,
    /// Also draw what was measured into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        size if (1 << 20..=1 << 40).contains(&size) => Ok(size),
        _ => Err("at least 1M and at most 1024G".to_owned()),
    }
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let mut options = match args.quick {
        true => BenchOptions::quick(),
        false => BenchOptions::default(),
    };
    options.cancel = context.cancel.clone();
    options.bytes = args.size.unwrap_or(options.bytes);
    if let Some(seconds) = args.seconds {
        options.time_limit = Duration::from_secs(seconds);
    }
    let url = context.url()?;
    let bar = context.bar(Doing::Measuring, &options.progress);
    let measured = bench(&url, context.options(), &options).await?;
    drop(bar);
    context.show(&measured, || text(&measured, options.bytes))?;
    if let Some(path) = &args.svg {
        fs::write(path, svg(&measured)).map_err(|e| {
            Failure::other(format!("cannot write the plot {}: {e}", path.display()))
        })?;
    }
    Ok(0)
}

fn text(measured: &BenchReport, bytes: u64) -> String {
    let mut text = format!("{}\n", printable_message(&measured.store));
    for (title, of, recommended) in [
        ("UPLOAD", &measured.uploads, measured.recommended_upload),
        (
            "DOWNLOAD",
            &measured.downloads,
            measured.recommended_download,
        ),
    ] {
        let head = [
            title, "RATE", "BYTES", "TIME", "RETRIES", "RESUMED", "HEDGES", "",
        ];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(of.iter().map(|m| row(m, recommended, bytes)));
        text.push('\n');
        text.push_str(&report::table(
            &rows,
            &[false, true, true, true, true, true, true],
        ));
    }
    let first = measured.first_byte;
    text.push_str(&format!(
        "\nfirst byte: p50 {}, p99 {}, max {} of {}\n",
        milliseconds(first.p50_us),
        milliseconds(first.p99_us),
        milliseconds(first.max_us),
        report::count(first.reads as u64, "read"),
    ));
    if let (Some(upload), Some(download)) =
        (measured.recommended_upload, measured.recommended_download)
    {
        text.push_str(&format!(
            "recommended: --upload-parts {} for saving, --download-ranges {} for restoring\n",
            argument(&upload),
            argument(&download)
        ));
    }
    text
}

fn row(measured: &Measured, recommended: Option<Setting>, bytes: u64) -> Vec<String> {
    let elapsed = Duration::from_micros(measured.elapsed_us);
    let mark = match measured.setting {
        Some(setting) if Some(setting) == recommended => "recommended",
        // Its pieces were never all under way.
        Some(setting) if setting.memory() > bytes => "needs a larger --size",
        _ => "",
    };
    vec![
        label(measured),
        format!("{}/s", report::bytes(measured.bytes_per_s)),
        report::bytes(measured.bytes),
        report::seconds(elapsed),
        measured.retries.to_string(),
        measured.resumed.to_string(),
        measured.hedges.to_string(),
        mark.to_owned(),
    ]
}

fn label(measured: &Measured) -> String {
    match &measured.setting {
        Some(Setting { len, at_once }) => format!("{} x {at_once}", mebibytes(*len)),
        None => "the store's own way".to_owned(),
    }
}

/// A setting as the options take it.
fn argument(setting: &Setting) -> String {
    format!("{}:{}", mebibytes(setting.len), setting.at_once)
}

/// A length as the options take it.
fn mebibytes(len: u64) -> String {
    match len % (1 << 20) {
        0 => format!("{}M", len >> 20),
        _ => format!("{}K", len >> 10),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

fn svg(measured: &BenchReport) -> String {
    let bars = |of: &[Measured], recommended: Option<Setting>| {
        let bar = |m: &Measured| Bar {
            label: label(m),
            value: m.bytes_per_s as f64 / 1e6,
            marked: m.setting.is_some() && m.setting == recommended,
        };
        of.iter().map(bar).collect()
    };
    let first = measured.first_byte;
    let panels = [
        Panel {
            title: "upload, MB/s by part size and parts at once".to_owned(),
            bars: bars(&measured.uploads, measured.recommended_upload),
        },
        Panel {
            title: "download, MB/s by range size and ranges at once".to_owned(),
            bars: bars(&measured.downloads, measured.recommended_download),
        },
        Panel {
            title: format!("first byte, ms ({} reads)", first.reads),
            bars: [
                ("p50", first.p50_us),
                ("p99", first.p99_us),
                ("max", first.max_us),
            ]
            .map(|(label, us)| Bar {
                label: label.to_owned(),
                value: us as f64 / 1e3,
                marked: false,
            })
            .into(),
        },
    ];
    crate::plot::svg(&format!("podsnap bench {}", measured.store), &panels)
}
