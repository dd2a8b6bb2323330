//! `podsnap serve-uffd`: the memory of a snapshot, a page at a time, for VMMs that ask as Firecracker does.

use std::path::PathBuf;

use podsnap::{
    Error, ErrorKind, Role, SectionReader, Shape, Snapshot, printable_message,
    userfault::{
        ServeOptions,
        firecracker::{Connection, Socket},
    },
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{SectionName, SnapshotRef},
    context::Context,
    exit::Failure,
    learning::Learning,
};

/// Serve a snapshot's memory to VMMs by userfaultfd, as Firecracker asks for it
///
/// Every VMM that connects to the socket and sends its regions and its userfaultfd gets the pages that it touches, fetched and checked, and the rest of
/// its memory in the background. Once all of it is there it needs this program no more; before, it must run on. Runs until Ctrl-C or SIGTERM. One
/// line, or with --json one document, on standard output says when it listens. A page that cannot be had or does not check out is an error on
/// standard error and SIGBUS to who touches it, never zeros; so is every missing page once this program ends, however it ends.
///
/// What is touched is recorded beside the snapshot, in order, and is what is fetched first the next time; `podsnap inspect` shows it.
/// Whatever keeps it from doing so is a warning.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  podsnap serve-uffd vm-3 --socket /run/vm-3.sock      # mem_backend: {\"backend_type\": \"Uffd\", \"backend_path\": \"/run/vm-3.sock\"}
  podsnap serve-uffd vm-3 --socket /run/vm-3.sock --section memory:guest --kill")]
pub struct Args {
    /// The snapshot, or file:PATH for one that was exported
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotRef,
    /// Where to listen: a Unix socket that is made, for this user only
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The section that is served, if the snapshot has more than one of memory
    #[arg(long, value_name = "ROLE[:NAME]")]
    section: Option<SectionName>,
    /// Kill a VMM at once when a page that it touches cannot be had, instead of leaving it to SIGBUS
    #[arg(long)]
    kill: bool,
    /// Fetch nothing but what is touched
    #[arg(long)]
    no_fill: bool,
    /// Refuse unless the snapshot has this digest, which `podsnap save` printed
    #[arg(long, value_name = "HEX")]
    digest: Option<String>,
    #[command(flatten)]
    learning: Learning,
}

pub async fn run(args: Args, context: &Context) -> Result<u8, Failure> {
    let (_store, snapshot) = context.open(&args.snapshot).await?;
    if let Some(digest) = &args.digest {
        snapshot.demand_digest(digest)?;
    }
    let section = section(&snapshot, args.section.as_ref())?;
    let learning = args.learning.replaying(!args.no_fill);
    let mut learner = learning.start(&snapshot, &[section])?;
    let reader = learner.snapshot(&snapshot).reader(section);
    let mut options = ServeOptions::default();
    options.kill = args.kill;
    options.fill = !args.no_fill;
    options.first = learner.ranges(section).await;
    let socket = Socket::bind(&args.socket)?;
    let (id, title) = (snapshot.id().as_str(), reader.info().title());
    let path = args.socket.display().to_string();
    let document = json!({ "snapshot": id, "section": title, "socket": path });
    context.report(&document, || {
        format!("{title} of {id} is served on {path}; Ctrl-C ends it\n")
    })?;
    let mut guests = JoinSet::new();
    let ended = loop {
        tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(connection) => {
                    let (reader, options, cancel) = (reader.clone(), options.clone(), context.cancel.clone());
                    guests.spawn(async move {
                        if let Err(e) = serve(connection, reader, options, cancel).await {
                            eprintln!("{}", printable_message(&format!("podsnap: {e}")));
                        }
                    });
                }
                Err(e) => break Err(e.into()),
            },
            Some(_) = guests.join_next() => {}
            () = context.cancel.cancelled() => break Ok(0),
        }
    };
    context.cancel.cancel();
    guests.join_all().await;
    learner.finish().await;
    ended
}

/// Serves one VMM until it ends.
async fn serve(
    connection: Connection,
    reader: SectionReader,
    options: ServeOptions,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let request = tokio::select! {
        request = connection.request() => request?,
        () = cancel.cancelled() => return Ok(()),
    };
    let pid = request.pid;
    let guest = request.serve(reader, options)?;
    let ended = tokio::select! {
        () = guest.server().ended() => true,
        () = cancel.cancelled() => false,
    };
    let progress = guest.server().progress();
    guest.close().await;
    let (installed, total) = (progress.installed_bytes, progress.total_bytes);
    if !ended && installed < total {
        let what = format!(
            "process {pid} has {installed} of its {total} bytes, and the rest is lost to it"
        );
        return Err(Error::new(ErrorKind::Interrupted, what));
    }
    Ok(())
}

/// The number of the section that is served.
fn section(snapshot: &Snapshot, name: Option<&SectionName>) -> Result<usize, Failure> {
    if let Some(name) = name {
        let number = snapshot.find_section(name.role, &name.name)?;
        let title = snapshot.sections()[number].title();
        return match snapshot.sections()[number].shape {
            Shape::Blob => Ok(number),
            Shape::Tree => Err(Failure::usage(format!("{title} is a tree, and no memory"))),
        };
    }
    let sections = snapshot.sections().iter().enumerate();
    let memory: Vec<usize> = sections
        .filter(|(_, section)| section.role == Role::Memory)
        .map(|(number, _)| number)
        .collect();
    match memory[..] {
        [number] => Ok(number),
        [] => Err(
            Failure::usage(format!("{} has no section of memory", snapshot.id()))
                .hint("name a section by --section; podsnap inspect lists them"),
        ),
        _ => Err(
            Failure::usage(format!("{} has several sections of memory", snapshot.id()))
                .hint("name one by --section; podsnap inspect lists them"),
        ),
    }
}
