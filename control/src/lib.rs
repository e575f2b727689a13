//! Penstock's control process: configuration, keys, kernel routes and neighbours, telemetry, command line.

pub mod cli;
pub mod config;
pub mod netlink;
pub mod publish;
pub mod twins;
