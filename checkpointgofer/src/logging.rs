//! Where the gofer says what it does: its standard error goes nowhere, so it writes to the files that runsc logs to.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Open files that get the same lines.
#[derive(Debug, Clone)]
struct Files(Arc<[File]>);

impl Write for Files {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for mut file in self.0.iter() {
            // A log that cannot be written must not end a save.
            let _ = file.write_all(line);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Files {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Starts logging to these files, to standard error if there are none. `PODSNAP_LOG` takes a filter.
pub fn start(files: Vec<File>, debug: bool) {
    let filter = EnvFilter::try_from_env("PODSNAP_LOG").unwrap_or_else(|_| {
        EnvFilter::new(if debug {
            "checkpointgofer=debug,podsnap_engine=debug,info"
        } else {
            "checkpointgofer=info,podsnap_engine=info,warn"
        })
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false);
    if files.is_empty() {
        log.with_writer(io::stderr).init();
    } else {
        log.with_writer(Files(files.into())).init();
    }
}
