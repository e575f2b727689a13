//! A whole worker with live SAs: raw frames, sealed payloads, changed ESP, frames of the kernel.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use penstock_suite::fuzzing::Decap;

thread_local! {
    static GATEWAY: RefCell<Decap> = RefCell::default();
}

fuzz_target!(|octets: &[u8]| GATEWAY.with_borrow_mut(|gateway| gateway.feed(octets)));
