//! The one build script; `dpdk-sys` uses it.
fn main() {}
