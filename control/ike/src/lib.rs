//! IKEv2 (RFC 7296) as a protocol machine without I/O or clock.
//!
//! The caller owns two UDP sockets and a clock. It gives every datagram to [`Endpoint::handle`], calls
//! [`Endpoint::poll`] at [`Endpoint::next_timeout`], and does the [`Output`]s in order: send datagrams, install, switch
//! and remove security associations, log events. Inbound SPIs come from the caller's [`SpiSource`], randomness from the
//! generator given to [`Endpoint::new`]. So a test drives two endpoints through loss, reordering and collisions in
//! virtual time.

pub mod auth;
mod child;
pub mod config;
mod connections;
pub mod crypto;
mod endpoint;
mod exchange;
pub mod message;
mod nat;
mod network;
mod output;
mod protect;
mod reason;
mod sa;
mod status;
#[cfg(test)]
mod testing;
mod time;
mod timers;
mod tunnels;
mod wishes;

pub use config::{
    ChildConfig, ConfigError, Connection, Lifetime, LocalAuth, Remote, RemoteAuth, Settings, Start, check,
};
pub use endpoint::Endpoint;
pub use output::{ChildSa, Datagram, Encapsulation, Event, EventKind, LabKeys, Output, Outputs, SpiSource};
pub use reason::{Failure, Reason, Refused};
pub use status::{CertificateStatus, ChildStatus, ConnectionStatus, IkeStatus, Why};
pub use time::{Instant, Now, clock};
pub use wishes::Usage;
