//! Podsnap.
pub use podsnap_engine::*;
