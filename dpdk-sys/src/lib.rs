//! Raw FFI to libdpdk. Nothing but declarations: the safe wrappers are `dataplane/src/dpdk`.
//!
//! What bindgen found in `shim.h` of the DPDK that is installed, cut to the allow-list in `build.rs`.

#![allow(unsafe_code, missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(unsafe_op_in_unsafe_fn, clippy::all, clippy::undocumented_unsafe_blocks)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
