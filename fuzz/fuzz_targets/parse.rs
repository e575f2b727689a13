//! Frames: every view of `wire`, and the parse stage.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| penstock_suite::fuzzing::parse(octets));
