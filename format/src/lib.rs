//! Podsnap's container format.
#![forbid(unsafe_code)]

pub mod codec;
