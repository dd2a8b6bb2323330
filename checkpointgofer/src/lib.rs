//! The checkpoint gofer that runsc starts in place of its own: the files of a checkpoint, which the sentry of a gVisor sandbox writes and reads, are a
//! snapshot in a store of podsnap's.
//!
//! - [`arguments`], [`options`]: what runsc and the operator want.
//! - [`socket`], [`calls`], [`server`]: the control protocol, by which files are opened, and the sandbox's memory registered.
//! - [`window`], [`request`], [`serve`], [`guest`]: the data protocol, by which bytes of the sandbox's memory are written and read.
//! - [`save`], [`restore`]: what becomes of them. [`image`] says which files there are.
//!
//! The sentry is not trusted: whatever it sends, writes into shared memory or does to its files, the gofer neither dies of it nor touches memory
//! that is not the sandbox's. `unsafe` is confined to [`window`] and [`guest`].
//!
//! `docs/gvisor.md` says how to install it.

pub mod arguments;
pub mod calls;
pub mod errors;
pub mod guest;
pub mod image;
pub mod logging;
mod metrics;
pub mod options;
pub mod request;
pub mod restore;
pub mod save;
pub mod serve;
pub mod server;
pub mod socket;
pub mod window;
