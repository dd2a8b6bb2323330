//! podsnap.
fn main() {}
