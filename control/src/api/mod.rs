//! The local interface: a Unix socket with one line of JSON for a request and one for its answer.

pub mod client;
mod ike;
pub mod page;
pub mod server;
pub mod types;
mod workers;
