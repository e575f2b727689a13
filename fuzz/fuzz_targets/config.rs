//! Control's reader of configurations.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| penstock_suite::fuzzing::config(octets));
