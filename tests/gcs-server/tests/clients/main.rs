//! Clients that others wrote, against this server: what they take for Cloud Storage has its manners.

mod gofer;
mod object_store;
mod programs;
mod python;
mod rclone;
