//! What the tests of the whole share: the lab's network, gateways in it, flows through them, captures of the wire.
//!
//! These tests need root, TAP devices and some minutes: they are marked `ignore`, and `scripts/test` runs them.

pub mod capture;
pub mod command;
pub mod counters;
pub mod decrypt;
pub mod flow;
pub mod gateway;
pub mod iperf;
pub mod lab;
pub mod peer;
