//! Podsnap's container format.
#![forbid(unsafe_code)]
