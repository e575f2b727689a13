//! What the tests of the whole share: a gateway in memory for the packet's way; the lab's network, gateways in it, flows
//! through them, captures of the wire.
//!
//! The tests in the lab need root, TAP devices and some minutes: they are marked `ignore`, and `scripts/test` runs them.

pub mod capture;
pub mod charon;
pub mod command;
pub mod counters;
pub mod decrypt;
pub mod dump;
pub mod engines;
pub mod esp;
pub mod flow;
pub mod fuzzing;
pub mod gateway;
pub mod iperf;
pub mod lab;
pub mod libreswan;
pub mod memory;
pub mod negotiated;
pub mod packets;
pub mod peer;
pub mod pki;
