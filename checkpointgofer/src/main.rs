//! The program `checkpointgofer`: started by runsc with a socket and an open file, ends when the sandbox closes the socket.

use std::{
    fs::File,
    io::Read,
    os::fd::{BorrowedFd, FromRawFd, OwnedFd},
    process::ExitCode,
};

use checkpointgofer::{
    arguments::{Arguments, Task},
    logging,
    options::{self, Options},
    restore::Restoring,
    save::{CaptureOptions, Saving},
    serve::Refusal,
    server::{Files, Refusing, Server},
    socket::Socket,
};
use podsnap_engine::{CancellationToken, Error, SaveOptions, SnapshotId, Statsd, Store};
use tokio::runtime::Handle;

/// The exit code for arguments that make no sense.
const USAGE: u8 = 2;

/// The priority of a save behind a sandbox that goes on, as `nice` counts it: little beside a busy one, and enough to come to its end.
const NICE_BEHIND: i32 = 10;

fn main() -> ExitCode {
    let args = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(args) => args,
        Err(why) => {
            eprintln!("checkpointgofer: {why}");
            eprintln!(
                "This is podsnap's checkpoint gofer for gVisor; runsc starts it. See docs/gvisor.md."
            );
            return USAGE.into();
        }
    };
    let logs = args
        .logs
        .iter()
        .map(|fd| take(*fd).map(File::from))
        .collect();
    match logs {
        Ok(logs) => logging::start(logs, args.debug),
        Err(why) => {
            eprintln!("checkpointgofer: {why}");
            return USAGE.into();
        }
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            tracing::error!(why, "it ends with an error");
            eprintln!("checkpointgofer: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Arguments) -> Result<(), String> {
    let socket = Socket::new(take(args.socket)?);
    let options = read_options(take(args.options)?.into());
    let saves = matches!(args.task, Task::Save | Task::SaveFiles);
    let is_behind = saves && options.as_ref().is_ok_and(Options::is_captured);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("gofer-io")
        .on_thread_start(move || {
            if is_behind {
                give_way();
            }
        })
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start threads: {e}"))?;
    let entered = runtime.enter();
    let refusal = options
        .as_ref()
        .map_or(Refusal::AtOpen, |options| options.refusal());
    let place = options.as_ref().ok().and_then(|o| o.place().ok());
    let statsd = options.as_ref().ok().and_then(report);
    let ended = match options.and_then(|options| prepare(args.task, &options)) {
        Ok(prepared) => carry_out(args.task, prepared, runtime.handle(), socket),
        // Said to the sandbox, it comes before whoever runs it.
        Err(why) => {
            let refusing = Refusing {
                why: why.clone(),
                refusal,
            };
            serve(socket, &refusing, || ());
            Err(why)
        }
    };
    drop(entered);
    // A thread may still wait for a file of the sandbox's, which may be anything.
    runtime.shutdown_background();
    drop(statsd);
    // Several gofers may write into one log.
    ended.map_err(|why| match place {
        Some(place) => format!("{}: {why}", place.snapshot),
        None => why,
    })
}

/// Sends metrics to where the options say, if they do. No save fails because nobody counts it.
fn report(options: &Options) -> Option<Statsd> {
    let started = options.statsd().map(Statsd::start)?;
    if let Err(error) = &started {
        tracing::warn!(%error, "no metrics are sent");
    }
    started.ok()
}

/// What the options say.
struct Prepared {
    store: Store,
    snapshot: SnapshotId,
    save: SaveOptions,
    capture: Option<CaptureOptions>,
    refusal: Refusal,
}

fn prepare(task: Task, options: &Options) -> Result<Prepared, String> {
    let prepare = || {
        let place = options.place()?;
        for key in options.unknown() {
            tracing::warn!(key, "gcs_opts.json has a key that means nothing");
        }
        tracing::info!(?task, store = place.store, snapshot = %place.snapshot, "started");
        Ok(Prepared {
            store: options.open(&place)?,
            snapshot: place.snapshot,
            save: options.save_options()?,
            capture: options.capture()?,
            refusal: options.refusal(),
        })
    };
    prepare().map_err(|e: Error| e.to_string())
}

fn carry_out(
    task: Task,
    prepared: Prepared,
    runtime: &Handle,
    socket: Socket,
) -> Result<(), String> {
    let Prepared {
        store,
        snapshot,
        save,
        capture,
        refusal,
    } = prepared;
    let (kind, runtime) = (task.kind(), runtime.clone());
    match task {
        Task::Save | Task::SaveFiles => {
            let saving = Saving::new(runtime, store, snapshot, kind, save, capture, refusal);
            serve(socket, &saving, || saving.hang_up());
            saving.end().map(drop)
        }
        Task::Restore | Task::RestoreFiles => {
            let cancel = CancellationToken::new();
            let restoring = Restoring::new(runtime, store, snapshot, kind, cancel.clone());
            serve(socket, &restoring, || cancel.cancel());
            restoring.learn();
            restoring.failed().map_or(Ok(()), Err)
        }
    }
}

/// Serves the sandbox until it closes the socket; `hang_up` then cancels what is under way.
fn serve(socket: Socket, files: &dyn Files, hang_up: impl FnOnce()) {
    let mut server = Server::new(socket, files);
    if let Err(error) = server.run() {
        tracing::error!(%error, "the control socket fails");
    }
    tracing::debug!("the sandbox has closed the socket");
    hang_up();
    drop(server);
}

/// Lowers the priority of this thread and of those that it will start: a save that the sandbox does not wait for must hold up neither what it does wait
/// for nor, behind it, what runs in the sandbox.
fn give_way() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE_BEHIND) {
        tracing::warn!(%error, "the save competes with the sandbox for processors");
    }
}

fn read_options(file: File) -> Result<Options, String> {
    let mut json = Vec::new();
    file.take(options::MAX_LEN)
        .read_to_end(&mut json)
        .map_err(|e| format!("cannot read gcs_opts.json: {e}"))?;
    Options::parse(&json).map_err(|e| e.to_string())
}

/// Takes a file descriptor over that runsc left open.
fn take(fd: i32) -> Result<OwnedFd, String> {
    // SAFETY: it is only asked whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| format!("the file descriptor {fd} is not open: {e}"))?;
    // SAFETY: it is open, and nothing in this process has it: each is named once, and this is before anything is opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
