//! Podsnap engine.
