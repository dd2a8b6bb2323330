//! Podsnap engine.

pub mod tree;
