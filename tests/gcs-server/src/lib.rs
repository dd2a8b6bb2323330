//! A Google Cloud Storage server for tests and measurements: the judge of the service's rules that public emulators
//! do not enforce. It speaks the JSON API, the XML API, and what clients get tokens from; it keeps everything in memory.
//!
//! # In a test
//!
//! ```
//! use podsnap_gcs_server::{AGENT_TOKEN, Config, Fault, FaultKind, GcsServer, Operation};
//!
//! // A hierarchical bucket, and an agent with few rights on `tenant/` (bearer token AGENT_TOKEN).
//! let server = GcsServer::start(Config::tenant("bucket", "tenant/")).unwrap();
//! println!("STORAGE_EMULATOR_HOST={}", server.url());
//!
//! // The third compose is answered by 503; every tenth read of a pack loses its connection half way.
//! let unavailable = FaultKind::Status { status: 503, retry_after_s: None };
//! server.add_fault(Fault::new(unavailable).on(&[Operation::Compose]).nth(3));
//! let reset = FaultKind::ResetDownload { after_bytes: None };
//! server.add_fault(Fault::new(reset).containing("/pack-").with_probability(0.1, 7));
//!
//! // Rules and the link can be changed at any time.
//! server.configure(|config| {
//!     config.rules.mutations_per_second = 0.0;
//!     config.link.first_byte_ms = 20;
//!     config.link.stream_bytes_per_s = 100_000_000;
//! });
//!
//! // ... the code under test ...
//! # let _ = AGENT_TOKEN;
//! server.log().assert_only(&[Operation::XmlGet, Operation::Compose]);
//! assert!(server.objects("bucket").is_empty(), "objects are left");
//! ```
//!
//! # As a program
//!
//! ```text
//! podsnap-gcs-server --port 4443 --bucket b [--hierarchical] [--anonymous] [--total-mb-per-s 800] ...
//! curl -X POST localhost:4443/_control/faults -d '{"fault": {"kind": "stall", "ms": 500}, "probability": 0.01}'
//! curl -X PATCH localhost:4443/_control/config -d '{"link": {"first_byte_ms": 20}}'
//! curl localhost:4443/_control/counts
//! ```
//!
//! `/_control/` takes: `config` (GET, PUT, PATCH), `faults` (GET, POST, DELETE), `log` (GET, DELETE), `counts`,
//! `objects?bucket=`, `billing?bucket=`, `connections` (GET), `tokens` (POST, DELETE). The JSON is that of [`Config`]
//! and [`Fault`].
//!
//! # Clients
//!
//! - `STORAGE_EMULATOR_HOST=http://127.0.0.1:PORT` for Google's libraries.
//! - `GCE_METADATA_HOST=127.0.0.1:PORT` for tokens of [`Access::metadata_principal`], as on a virtual machine.
//! - A service account key whose `token_uri` is `URL/token`; any RSA key will do, signatures are not verified.
//!
//! # What it can carry
//!
//! Bytes are neither copied nor summed on their way out, and copied and summed once on their way in. How much one core
//! carries, and how exact the shaped link is on a machine, says `cargo run -p podsnap-gcs-server --example throughput`;
//! MD5s are by far the dearest (`rules.md5`, `--no-md5`).
//!
//! # Where it is stricter than the service may be
//!
//! One mutation per second and name is enforced to the letter, deletes included (`rules.mutation_burst` relaxes it). A GET of
//! a missing object without `objects.list` answers 403 (`rules.missing_without_list`). Idempotency tokens count for
//! one principal and one URL. A chunk of a resumable upload that is cut off persists to the byte, where the service rounds
//! down to 256 KiB. A write that both fails its precondition and lacks the right to overwrite gets 412.
//!
//! # What it does not model
//!
//! Object versioning, ACLs, customer-supplied keys, signed URLs, decompressive transcoding, XML resumable uploads, batch
//! requests, lifecycle actions, notifications, quotas of a whole bucket, TLS and HTTP/2, `fields` (the whole resource is answered).

mod auth;
mod bucket;
mod checksums;
mod conditions;
mod config;
mod content;
mod control;
mod error;
mod faults;
mod handle;
mod iam;
mod inspect;
mod json;
mod link;
mod listing;
mod log;
mod media;
mod names;
mod object;
mod operation;
mod reply;
mod request;
mod route;
mod server;
mod store;
mod xml;

pub use config::{
    AGENT, AGENT_TOKEN, Access, BucketConfig, Config, Link, OWNER, OWNER_TOKEN, Rules,
};
pub use faults::{Fault, FaultKind};
pub use handle::GcsServer;
pub use iam::{Grant, Permission};
pub use inspect::{Billing, ConnectionCounts, ObjectInfo};
pub use log::{Entry, Log};
pub use operation::{BillingClass, Operation};
