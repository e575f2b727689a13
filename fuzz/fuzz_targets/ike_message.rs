//! IKEv2's parser: a header and payloads, or payloads of any kind.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| penstock_suite::fuzzing::ike_message(octets));
