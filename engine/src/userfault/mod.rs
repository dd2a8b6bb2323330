//! Serving a process's missing memory by userfaultfd: the kernel's interface, and what is to be served where. What answers faults is not wired in yet.

mod error;
mod features;
mod present;
mod space;
mod sys;
mod table;
mod pace;
