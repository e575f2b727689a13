//! IKEv2 in the control process: the configuration and the data plane's events enter, SAs in the tables leave. The protocol
//! itself is the crate `penstock_ike`. RFC 7296.

pub mod connections;
