//! Serving memory before its bytes are here: pages of a section are fetched when a process touches them (userfaultfd), and in the background.
//!
//! A [`MemoryServer`] serves one process: memory of its own ([`MappedSection`] is such memory of this process), or private mappings
//! of a [`SharedMemory`], a memfd whose clean pages all its clones share. [`firecracker`] speaks with a VMM that asks for its guest's memory.
//! What holds everywhere: a page that cannot be had or does not check out is never served as zeros or as stale bytes. Whoever touches it
//! gets SIGBUS, or is killed where the kernel cannot do that; and if the server dies, its `watchdog` sees to the same.
//!
//! `sys` is the kernel's interface; `table` and `space` know what belongs where and install it; `serve` answers faults; `fill` fills
//! the rest; `server` runs the threads. Which bytes a section has, and where they are fetched from, is the reader's business ([`SectionReader`]).
//!
//! [`SectionReader`]: crate::SectionReader

mod error;
mod features;
mod fill;
pub mod firecracker;
mod mapped;
mod memfd;
mod pace;
mod present;
mod serve;
mod server;
mod space;
mod sys;
mod table;
#[cfg(test)]
mod traps;
mod watchdog;

pub use error::ServeError;
pub use features::{Features, Userfault};
pub use mapped::MappedSection;
pub use memfd::SharedMemory;
pub use server::{MemoryServer, ServeOptions, ServeProgress};
pub use table::Region;
