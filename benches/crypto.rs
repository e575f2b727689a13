//! Seals and opens bursts of packets with our engines and with the libraries that others use, interleaved in one run,
//! and prints core cycles per packet; `--out FILE` writes every measurement as a line of JSON.
//!
//! `cargo bench --features peers --bench crypto -- [--quick] [--rounds N] [--out FILE] [--sizes 64,imix] [--ciphers 128,256]
//! [--only NAME,...]`. Without access to the CPU's counters, core cycles are TSC cycles times the ratio of both clocks,
//! measured with a chain of dependent additions beside every sample.

#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
#[path = "crypto/measure.rs"]
mod measure;
#[cfg(target_arch = "x86_64")]
#[path = "crypto/peers.rs"]
mod peers;
#[cfg(target_arch = "x86_64")]
#[path = "crypto/targets.rs"]
mod targets;

#[cfg(target_arch = "x86_64")]
fn main() {
    measure::main();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("SKIPPED: this benchmark needs an x86-64 CPU");
}
