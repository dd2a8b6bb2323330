//! What a snapshot is made of.
