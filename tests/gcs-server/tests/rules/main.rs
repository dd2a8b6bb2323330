//! The rules of the service, the faults and the link, each by raw HTTP.

mod faults;
mod folders;
mod link;
mod listings;
mod objects;
mod permissions;
mod policies;
mod program;
mod raw;
mod tokens;
mod uploads;
