//! How much fits into the region and where each array stands in it.

#![allow(unsafe_code)]

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::adjacency::{AdjacencyWord, MAX_PORTS, PortEntry};
use crate::events::EventRing;
use crate::fib::{GROUP, ROOT};
use crate::key::KeyBlock;
use crate::losses::{TunnelLosses, TwinState};
use crate::replay::{InboundState, MAX_WINDOW, MIN_WINDOW, ring_words};
use crate::sa::{InboundSa, Keyed, OutboundSa};
use crate::segment::{Header, Shared};
use crate::sequence::OutboundState;
use crate::state::PortState;
use crate::tunnel::Tunnel;
use crate::worker::{MAX_WORKERS, WorkerState};

// SAFETY: each is `repr(C)` or `repr(transparent)`, made of integers and arrays of them (atomics included), so that any
// bit pattern is a value; none holds a pointer.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}
// SAFETY: as above.
unsafe impl Shared for PortEntry {}
// SAFETY: as above.
unsafe impl Shared for AdjacencyWord {}
// SAFETY: as above.
unsafe impl Shared for Tunnel {}
// SAFETY: as above.
unsafe impl Shared for OutboundSa {}
// SAFETY: as above.
unsafe impl Shared for InboundSa {}
// SAFETY: as above; the cipher is kept as a plain octet and checked where it is read.
unsafe impl Shared for KeyBlock {}
// SAFETY: as above, of two such values one behind the other.
unsafe impl<S: Shared> Shared for Keyed<S> {}
// SAFETY: as above.
unsafe impl Shared for OutboundState {}
// SAFETY: as above.
unsafe impl Shared for InboundState {}
// SAFETY: as above.
unsafe impl Shared for WorkerState {}
// SAFETY: as above.
unsafe impl Shared for EventRing {}
// SAFETY: as above.
unsafe impl Shared for PortState {}
// SAFETY: as above.
unsafe impl Shared for TwinState {}
// SAFETY: as above.
unsafe impl Shared for TunnelLosses {}

/// How much the region holds, set by configuration. 100,000 tunnels fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Capacity {
    /// Tunnels.
    pub tunnels: u32,
    /// Largest replay window, in packets: a power of two of 64 to 65536.
    pub replay_window: u32,
    /// Next hops.
    pub neighbours: u32,
    /// Groups of the route trie: each route longer than /16 needs at most one, longer than /24 at most two.
    pub fib_groups: u32,
}

/// A capacity outside of what the layout holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("capacity.{what} is {found}; it must be {expected}")]
pub struct CapacityError {
    what: &'static str,
    found: u32,
    expected: &'static str,
}

impl Capacity {
    /// Checks every figure.
    ///
    /// # Errors
    /// [`CapacityError`] names the figure and its bounds.
    pub fn check(self) -> Result<Capacity, CapacityError> {
        let wrong = |what, found, expected| Err(CapacityError { what, found, expected });
        let window = self.replay_window;
        match self {
            Capacity { tunnels: 0 | 1_000_001.., .. } => wrong("tunnels", self.tunnels, "1 to 1000000"),
            Capacity { neighbours: 0 | 1_000_001.., .. } => {
                wrong("neighbours", self.neighbours, "1 to 1000000")
            }
            Capacity { fib_groups: 0 | 4_000_001.., .. } => wrong("routes", self.fib_groups, "1 to 4000000"),
            _ if !window.is_power_of_two() || !(MIN_WINDOW..=MAX_WINDOW).contains(&window) => {
                wrong("replay_window", window, "a power of two from 64 to 65536")
            }
            _ => Ok(self),
        }
    }

    /// Slots of tunnels: its own, and one that takes over from it or holds one more child.
    pub fn tunnel_slots(self) -> usize {
        self.tunnels as usize * 2
    }

    /// Slots of outbound SAs: the one in use and the one that takes over.
    pub fn outbound_slots(self) -> usize {
        self.tunnels as usize * 2
    }

    /// Slots of inbound SAs: a power of two, so that the low bits of an SPI are its slot; at least three a tunnel.
    pub fn inbound_slots(self) -> usize {
        (self.tunnels as usize * 3).next_power_of_two().max(256)
    }
}

/// Octets between the starts of arrays: a page, so that no two arrays share a line or a page.
const ALIGN: usize = 4096;

struct Cursor(usize);

impl Cursor {
    fn place<T>(&mut self, count: usize) -> usize {
        let at = self.0;
        self.0 = (at + size_of::<T>() * count).next_multiple_of(ALIGN);
        at
    }
}

/// Where the arrays of `tables` stand, in octets from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablesLayout {
    pub(crate) ports: usize,
    pub(crate) adjacencies: usize,
    pub(crate) tunnels: usize,
    pub(crate) outbound: usize,
    pub(crate) inbound: usize,
    pub(crate) fib_root: usize,
    pub(crate) fib_groups: usize,
    /// Octets of the whole segment.
    pub len: usize,
}

impl TablesLayout {
    /// The layout for a capacity.
    pub fn new(capacity: Capacity) -> TablesLayout {
        let mut cursor = Cursor(ALIGN);
        let (outbound, inbound) = (capacity.outbound_slots(), capacity.inbound_slots());
        TablesLayout {
            ports: cursor.place::<PortEntry>(MAX_PORTS),
            adjacencies: cursor.place::<AdjacencyWord>(capacity.neighbours as usize),
            tunnels: cursor.place::<Tunnel>(capacity.tunnel_slots()),
            outbound: cursor.place::<Keyed<OutboundSa>>(outbound),
            inbound: cursor.place::<Keyed<InboundSa>>(inbound),
            fib_root: cursor.place::<AtomicU32>(ROOT),
            fib_groups: cursor.place::<AtomicU32>(capacity.fib_groups as usize * GROUP),
            len: cursor.0,
        }
    }
}

/// Where one SA and its key stand in `tables`, in octets from its start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SaPlace {
    pub(crate) key: usize,
    pub(crate) sa: usize,
}

impl SaPlace {
    fn new<S>(array: usize, slot: u32) -> SaPlace {
        let start = array + slot as usize * size_of::<Keyed<S>>();
        SaPlace { key: start + offset_of!(Keyed<S>, key), sa: start + offset_of!(Keyed<S>, sa) }
    }
}

impl TablesLayout {
    /// Where the outbound SA in `slot` stands.
    pub(crate) fn outbound_place(&self, slot: u32) -> SaPlace {
        SaPlace::new::<OutboundSa>(self.outbound, slot)
    }

    /// Where the inbound SA in `slot` stands.
    pub(crate) fn inbound_place(&self, slot: u32) -> SaPlace {
        SaPlace::new::<InboundSa>(self.inbound, slot)
    }
}

/// Places for what passes to and from the kernel: the ports' twins by index, then the tunnels' interfaces together.
pub(crate) const TWINS: usize = MAX_PORTS + 1;

/// Where the arrays of `state` stand, in octets from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateLayout {
    pub(crate) workers: usize,
    pub(crate) events: usize,
    pub(crate) ports: usize,
    pub(crate) twins: usize,
    pub(crate) losses: usize,
    pub(crate) outbound: usize,
    pub(crate) inbound: usize,
    pub(crate) rings: usize,
    /// Octets of the whole segment.
    pub len: usize,
}

impl StateLayout {
    /// The layout for a capacity.
    pub fn new(capacity: Capacity) -> StateLayout {
        let mut cursor = Cursor(ALIGN);
        let inbound = capacity.inbound_slots();
        StateLayout {
            workers: cursor.place::<WorkerState>(MAX_WORKERS),
            events: cursor.place::<EventRing>(MAX_WORKERS),
            ports: cursor.place::<PortState>(MAX_PORTS),
            twins: cursor.place::<TwinState>(TWINS),
            losses: cursor.place::<TunnelLosses>(capacity.tunnel_slots()),
            outbound: cursor.place::<OutboundState>(capacity.outbound_slots()),
            inbound: cursor.place::<InboundState>(inbound),
            rings: cursor.place::<AtomicU64>(inbound * ring_words(capacity.replay_window)),
            len: cursor.0,
        }
    }
}

/// A number that differs where the structs or their places differ (FNV-1a over sizes and offsets).
pub fn layout_hash() -> u64 {
    let sample = Capacity { tunnels: 1000, replay_window: 1024, neighbours: 1000, fib_groups: 1000 };
    let (tables, state) = (TablesLayout::new(sample), StateLayout::new(sample));
    let figures = [
        size_of::<Header>(),
        size_of::<KeyBlock>(),
        size_of::<Tunnel>(),
        size_of::<OutboundSa>(),
        size_of::<InboundSa>(),
        size_of::<WorkerState>(),
        size_of::<EventRing>(),
        size_of::<PortState>(),
        size_of::<TwinState>(),
        size_of::<TunnelLosses>(),
        crate::losses::TUNNEL_DROPS.len(),
        crate::verdict::Verdict::COUNT,
        crate::verdict::Note::COUNT,
        tables.inbound,
        tables.fib_root,
        tables.len,
        state.outbound,
        state.len,
    ];
    figures
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, figure| (hash ^ *figure as u64).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_tunnels_fit() {
        let capacity =
            Capacity { tunnels: 100_000, replay_window: 1024, neighbours: 4096, fib_groups: 100_000 };
        capacity.check().unwrap();
        let octets = TablesLayout::new(capacity).len + StateLayout::new(capacity).len;
        assert!(octets < 2 << 30, "{octets} octets");
    }

    #[test]
    fn figures_out_of_bounds_are_named() {
        let good = Capacity { tunnels: 1, replay_window: 64, neighbours: 1, fib_groups: 1 };
        assert_eq!(good.check(), Ok(good));
        let wrong = |capacity: Capacity| capacity.check().unwrap_err().to_string();
        assert_eq!(wrong(Capacity { tunnels: 0, ..good }), "capacity.tunnels is 0; it must be 1 to 1000000");
        let window = Capacity { replay_window: 100, ..good };
        assert_eq!(
            wrong(window),
            "capacity.replay_window is 100; it must be a power of two from 64 to 65536"
        );
    }
}
