//! IKEv2 in the control process: the configuration and the data plane's events enter, SAs in the tables leave. The protocol
//! itself is the crate `penstock_ike`. RFC 7296.

mod configured;
pub mod connections;
mod drive;
mod explain;
mod losses;
mod report;
mod shell;
mod sockets;

pub(crate) use configured::{Configured, configured};
pub use connections::ConnectionError;
pub use report::IkeMetrics;
pub(crate) use shell::Ike;
