//! Raw FFI to libdpdk. Nothing but declarations: the safe wrappers are `dataplane/src/dpdk`.
