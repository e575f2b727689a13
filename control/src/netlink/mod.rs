//! A mirror of the kernel's links, addresses, routes and neighbours: what the kernel says by rtnetlink enters, a
//! [`Kernel`] snapshot and batches of [`Changes`] leave.
//!
//! The kernel is the slow path and the place where every Linux tool, FRR first, leaves its decisions; publication
//! reads them from here. `types` are what they say, `kernel` is the pure model, `message` the formats (RFC 3549),
//! `mirror` the socket.

mod kernel;
mod message;
mod mirror;
pub(crate) mod types;

pub use kernel::Kernel;
pub use mirror::{Mirror, MirrorError, MirrorStatistics};
pub(crate) use types::TWIN;
pub use types::{Address, Changes, Hop, Link, Neighbour, Nexthop, Nud, Route, Target};
