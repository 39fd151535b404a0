//! Kubernetes, as one binary.
fn main() {}
