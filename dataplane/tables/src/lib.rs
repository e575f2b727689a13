//! The layout of the region that control and data plane share (two segments, one writing process each).
//!
//! `tables` is written by control and mapped read-only by the data plane; `state` the other way round, so that page
//! protection enforces who writes what. This crate depends on neither process.
//!
//! | file | what it holds |
//! |---|---|
//! | `segment` | a file, its header, its lock, its mapping |
//! | `layout` | capacity, sizes, offsets |
//! | `slot`, `quiescence` | how a slot is published and reclaimed while workers run |
//! | `key`, `sa`, `tunnel`, `adjacency`, `fib` | what control writes |
//! | `sequence`, `replay`, `verdict`, `events`, `losses`, `worker` | what the data plane writes |
//! | `writers` | how one worker changes `state`, and how several do |
//! | `tables`, `writer` | the segment `tables` as the data plane and as control see it |
//! | `state` | the segment `state` as both see it |
//! | `dump` | keeps both processes out of core dumps |

#[cfg(not(loom))]
pub mod adjacency;
#[cfg(not(loom))]
pub mod dump;
#[cfg(not(loom))]
pub mod events;
#[cfg(not(loom))]
pub mod fib;
#[cfg(not(loom))]
pub mod key;
#[cfg(not(loom))]
pub mod layout;
#[cfg(not(loom))]
pub mod losses;
pub mod quiescence;
#[cfg(not(loom))]
pub mod replay;
#[cfg(not(loom))]
pub mod sa;
#[cfg(not(loom))]
pub mod segment;
#[cfg(not(loom))]
pub mod sequence;
pub mod slot;
#[cfg(not(loom))]
pub mod state;
mod sync;
#[cfg(not(loom))]
pub mod tables;
#[cfg(not(loom))]
pub mod tunnel;
#[cfg(not(loom))]
pub mod verdict;
#[cfg(not(loom))]
pub mod worker;
#[cfg(not(loom))]
pub mod writer;
#[cfg(not(loom))]
mod writers;

#[cfg(not(loom))]
pub use adjacency::{Adjacency, NextHop, PortEntry};
#[cfg(not(loom))]
pub use fib::{FibWriter, Hop, Prefix, Route};
#[cfg(not(loom))]
pub use key::{Cipher, KeyBlock, KeyError};
#[cfg(not(loom))]
pub use layout::Capacity;
#[cfg(not(loom))]
pub use losses::{TunnelDrops, TwinReport};
#[cfg(not(loom))]
pub use sa::{InboundSa, InboundSpec, OutboundSa, OutboundSpec};
#[cfg(not(loom))]
pub use segment::RegionError;
#[cfg(not(loom))]
pub use state::{StateOwner, StateView};
#[cfg(not(loom))]
pub use tables::TablesView;
#[cfg(not(loom))]
pub use tunnel::{DontFragment, Selector, Tunnel, TunnelSpec};
#[cfg(not(loom))]
pub use verdict::{Note, Verdict};
#[cfg(not(loom))]
pub use writer::{TableFull, TablesWriter};

/// No index: an empty reference into a table.
pub const NONE: u32 = u32::MAX;
