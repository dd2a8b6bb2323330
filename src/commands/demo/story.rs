//! What the demo tells a person: one step after another, as it happens.

use std::{path::Path, time::Duration};

use podsnap::{
    RestoreStats,
    inspect::{InspectReport, Place},
};

use super::{
    compare::Comparison,
    figures::{Alive, Figures, Moment, Verified, Way},
    pod::WEIGHTS_BYTES,
};
use crate::report::{bytes, count, percent, rate, seconds, table};

/// Who plays the pod, and why nobody better.
pub fn opening(way: Way, limits: &[String]) -> String {
    let model = bytes(WEIGHTS_BYTES);
    let who = match way {
        Way::Gvisor => "a process in a gVisor sandbox",
        Way::Process | Way::Files => "a plain process",
    };
    let mut text = String::new();
    for limit in limits {
        text.push_str(&format!("{limit}\n\n"));
    }
    text.push_str(&format!(
        "The pod is {who}. It serves from a model of {model}, which it has in memory and in\n\
         its files, and it counts what it serves.\n\n"
    ));
    text
}

pub fn first(way: Way, moment: &Moment) -> String {
    let stats = &moment.stats;
    let parts: Vec<_> = moment
        .inspect
        .sections
        .iter()
        .map(|s| format!("{} {}", s.section, bytes(s.raw_bytes)))
        .collect();
    let mut text = format!(
        "save     first, with the pod at count {}: {} in {}, {}\n",
        moment.count,
        bytes(stats.raw_bytes),
        seconds(elapsed(stats.elapsed_ms)),
        rate(stats.raw_bytes, elapsed(stats.elapsed_ms)),
    );
    text.push_str(&format!("         {}\n", parts.join(", ")));
    let twice = match way {
        Way::Files => "found twice",
        _ => "found twice: the model is there two times, stored once",
    };
    let parts = [
        (stats.zero_bytes, "zeros, which take no space"),
        (stats.deduplicated_own_bytes, twice),
        (stats.new_bytes, "new, and compressed"),
    ];
    let rows: Vec<_> = parts
        .into_iter()
        .filter(|(part, _)| *part > 0)
        .map(|(part, what)| {
            let share = percent(part, stats.raw_bytes);
            vec![bytes(part), share, what.to_owned()]
        })
        .collect();
    for line in table(&rows, &[true, true]).lines() {
        text.push_str(&format!("         {line}\n"));
    }
    text.push_str(&format!(
        "         stored {}, {:.1} times smaller\n",
        bytes(moment.stored_bytes),
        stats.raw_bytes as f64 / moment.stored_bytes as f64
    ));
    text
}

/// Where the model was found the second time.
pub fn inspected(report: &InspectReport) -> String {
    let place = |place: &Place| match &place.path {
        Some(path) => format!("{path} in {}", place.section),
        None => place.section.clone(),
    };
    let Some(longest) = report.duplicates.first() else {
        return String::new();
    };
    format!(
        "inspect  first: {} at byte {} of {}\n\
         \x20        is the same as at byte {} of {}\n",
        bytes(longest.bytes),
        longest.at.offset,
        place(&longest.at),
        longest.of.offset,
        place(&longest.of),
    )
}

pub fn second(moment: &Moment, share: f64) -> String {
    let stats = &moment.stats;
    format!(
        "save     second, with the pod at count {}, against first: {} in {}, {}\n\
         \x20        all but {} of it was in first, or zeros\n\
         \x20        stored {}, {:.1} % of what first took\n",
        moment.count,
        bytes(stats.raw_bytes),
        seconds(elapsed(stats.elapsed_ms)),
        rate(stats.raw_bytes, elapsed(stats.elapsed_ms)),
        bytes(stats.deduplicated_own_bytes + stats.new_bytes),
        bytes(moment.stored_bytes),
        100.0 * share,
    )
}

pub fn verified(verified: &Verified) -> String {
    let report = &verified.report;
    let mut text = format!(
        "verify   second: {}, {}, {} in {}\n",
        count(report.chunks, "chunk"),
        bytes(report.raw_bytes),
        if verified.sound {
            "every one of them right"
        } else {
            "DAMAGED"
        },
        seconds(elapsed(report.elapsed_ms)),
    );
    for damage in &report.damage {
        text.push_str(&format!("         {}\n", damage.what));
    }
    text
}

pub fn restored(stats: &RestoreStats) -> String {
    format!(
        "restore  second: {} in {}, {}\n",
        bytes(stats.raw_bytes),
        seconds(elapsed(stats.elapsed_ms)),
        rate(stats.raw_bytes, elapsed(stats.elapsed_ms)),
    )
}

pub fn compared(comparison: &Comparison) -> String {
    let verdict = if comparison.identical {
        "identical to what was saved"
    } else {
        "DIFFERENT"
    };
    let mut text = format!(
        "compare  {} in {}: {verdict}\n",
        bytes(comparison.bytes),
        count(comparison.files, "file"),
    );
    for difference in &comparison.differences {
        text.push_str(&format!("         {difference}\n"));
    }
    text
}

pub fn alive(way: Way, saved_at: u64, alive: &Alive) -> String {
    let who = match way {
        Way::Gvisor => "a new sandbox",
        Way::Process => "a new process with the restored memory and files",
        Way::Files => "a new process with the restored files",
    };
    let counted: Vec<_> = alive.counted.iter().take(3).map(u64::to_string).collect();
    let verdict = if alive.goes_on {
        "goes on"
    } else {
        "DOES NOT GO ON where it was, but"
    };
    format!(
        "alive    saved at count {saved_at}, {who} {verdict}: {}, ...\n",
        counted.join(", ")
    )
}

/// What is left of it.
pub fn ending(figures: &Figures) -> String {
    match &figures.store {
        None => "\nThe pod and all files of this demo are gone again.\n".to_owned(),
        Some(store) => {
            let commands = [
                "ls",
                "inspect second",
                "diff first second",
                "verify second",
                "restore second NEW_DIR",
                "export second second.podsnap",
            ];
            let store = quoted(store);
            let mut text = format!("\nThe store is in {store}. Look at it with:\n\n");
            for command in commands {
                text.push_str(&format!("  podsnap --store {store} {command}\n"));
            }
            text
        }
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn elapsed(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
