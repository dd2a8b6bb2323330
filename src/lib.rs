//! Podsnap.
