//! `podsnap-gcs-server`: the test server for benchmarks and for clients in other processes. See the library.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
};

use clap::Parser;
use podsnap_gcs_server::{Config, Fault, GcsServer, OWNER};

/// A Google Cloud Storage server for tests: enforces the rules, injects faults, shapes the link
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address to listen on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Threads that serve
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// A bucket that is there; may be given several times
    #[arg(long, required_unless_present = "config")]
    bucket: Vec<String>,
    /// A file of the JSON that /_control/config takes, to begin with
    #[arg(long)]
    config: Option<std::path::PathBuf>,
    /// The buckets have a hierarchical namespace
    #[arg(long)]
    hierarchical: bool,
    /// Seconds for which deleted objects are kept
    #[arg(long, default_value_t = 0)]
    soft_delete_s: u64,
    /// Requests without a token may do everything
    #[arg(long)]
    anonymous: bool,
    /// Allow more than one mutation per second of one name
    #[arg(long)]
    no_mutation_limit: bool,
    /// Compute no MD5: it costs more than all the rest
    #[arg(long)]
    no_md5: bool,
    /// Most memory for objects, in MB; 0 is no limit
    #[arg(long, default_value_t = 0)]
    memory_mb: u64,
    /// Requests that the log keeps
    #[arg(long, default_value_t = 100_000)]
    log_limit: usize,
    /// Latency until the first byte of an answer, in milliseconds
    #[arg(long, default_value_t = 0)]
    first_byte_ms: u64,
    /// Bandwidth of one connection, in MB/s, each way; 0 is no limit
    #[arg(long, default_value_t = 0)]
    stream_mb_per_s: u64,
    /// Bandwidth of all connections, in MB/s, each way; 0 is no limit
    #[arg(long, default_value_t = 0)]
    total_mb_per_s: u64,
    /// A fault, as the JSON that /_control/faults takes; may be given several times
    #[arg(long)]
    fault: Vec<String>,
}

impl Args {
    fn config(&self) -> Result<Config, String> {
        let mut config = match &self.config {
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read(path).map_err(|e| format!("{shown}: {e}"))?;
                serde_json::from_slice(&text).map_err(|e| format!("{shown}: {e}"))?
            }
            None => Config::closed(&self.bucket[0]),
        };
        for name in &self.bucket {
            let bucket = config.bucket(name);
            bucket.hierarchical_namespace |= self.hierarchical;
            bucket.soft_delete_s = self.soft_delete_s;
        }
        if self.anonymous {
            config.access.anonymous = Some(OWNER.into());
        }
        if self.no_mutation_limit {
            config.rules.mutations_per_second = 0.0;
        }
        config.rules.md5 &= !self.no_md5;
        config.rules.memory_limit_bytes = self.memory_mb * 1_000_000;
        config.rules.log_limit = self.log_limit;
        config.link.first_byte_ms = self.first_byte_ms;
        config.link.stream_bytes_per_s = self.stream_mb_per_s * 1_000_000;
        config.link.total_bytes_per_s = self.total_mb_per_s * 1_000_000;
        Ok(config)
    }
}

fn run(args: &Args) -> Result<(), String> {
    let address = (args.address, args.port).into();
    let server = GcsServer::start_on(address, args.threads, args.config()?)
        .map_err(|e| format!("listening on {address}: {e}"))?;
    for fault in &args.fault {
        let parsed: Fault =
            serde_json::from_str(fault).map_err(|e| format!("--fault {fault}: {e}"))?;
        server.add_fault(parsed);
    }
    // The first line tells a parent process where to go; it serves until it is killed.
    println!("{}", server.url());
    loop {
        std::thread::park();
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("podsnap-gcs-server: {e}");
            ExitCode::FAILURE
        }
    }
}
