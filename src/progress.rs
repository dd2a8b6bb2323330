//! The progress bar: drawn on standard error when that is a terminal, from the engine's counters, ten times a second.

use std::{
    io::IsTerminal,
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podsnap::{Progress, ProgressSnapshot};

use crate::report;

/// What the bar is about, and so which counters it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    Saving,
    Restoring,
    Verifying,
    Exporting,
    Importing,
    Measuring,
}

impl Doing {
    fn label(self) -> &'static str {
        match self {
            Self::Saving => "saving",
            Self::Restoring => "restoring",
            Self::Verifying => "verifying",
            Self::Exporting => "exporting",
            Self::Importing => "importing",
            Self::Measuring => "measuring",
        }
    }

    fn done(self, now: &ProgressSnapshot) -> u64 {
        match self {
            Self::Saving => now.saved_bytes(),
            Self::Measuring => now.stored_bytes + now.read_bytes,
            _ => now.restored_bytes,
        }
    }

    fn details(self, now: &ProgressSnapshot) -> String {
        match self {
            Self::Saving => format!(
                "{} deduplicated, {} stored",
                report::bytes(now.deduplicated_own_bytes + now.deduplicated_base_bytes),
                report::bytes(now.stored_bytes)
            ),
            Self::Measuring => format!(
                "{} written, {} read",
                report::bytes(now.stored_bytes),
                report::bytes(now.read_bytes)
            ),
            _ => format!("{} read", report::bytes(now.read_bytes)),
        }
    }
}

/// A bar that is on the screen as long as it lives.
pub struct Bar(Option<(Sender<()>, JoinHandle<()>)>);

impl Bar {
    pub fn hidden() -> Self {
        Self(None)
    }

    pub fn start(doing: Doing, progress: Progress) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::hidden();
        }
        let (stop, stopped) = mpsc::channel();
        let drawer = thread::spawn(move || {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_prefix(doing.label());
            let mut known = None;
            while stopped.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout)
            {
                let now = progress.snapshot();
                // The total of a stream is not known, and that of several sources comes bit by bit.
                if known != Some(now.total_bytes) {
                    known = Some(now.total_bytes);
                    bar.set_style(style(now.total_bytes > 0));
                    if now.total_bytes > 0 {
                        bar.set_length(now.total_bytes);
                    }
                }
                bar.set_position(doing.done(&now));
                bar.set_message(doing.details(&now));
            }
            bar.finish_and_clear();
        });
        Self(Some((stop, drawer)))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some((stop, drawer)) = self.0.take() {
            let _ = stop.send(());
            let _ = drawer.join();
        }
    }
}

fn style(known_length: bool) -> ProgressStyle {
    let template = if known_length {
        "{prefix} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ({msg}) {eta} left"
    } else {
        "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec} ({msg})"
    };
    ProgressStyle::with_template(template).expect("the template is a constant")
}
