//! The segment `tables` as the data plane sees it: read-only. SAs with expanded keys, tunnels, routes, next hops, ports, as
//! control wrote them (`writer`). Changing them never stops a worker (`slot`, `quiescence`).

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::adjacency::{Adjacency, AdjacencyWord, MAX_PORTS, NextHop, PortEntry, Unresolved};
use crate::fib::{Fib, GROUP, Hop, ROOT, Route};
use crate::key::KeyBlock;
use crate::layout::{Capacity, TablesLayout};
use crate::sa::{InboundSa, Keyed, OutboundSa};
use crate::segment::{Array, Kind, RegionError, Segment};
use crate::tunnel::Tunnel;

/// The arrays of the segment, found once.
#[derive(Debug)]
pub(crate) struct TablesMap {
    pub(crate) ports: Array<PortEntry>,
    pub(crate) adjacencies: Array<AdjacencyWord>,
    pub(crate) tunnels: Array<Tunnel>,
    pub(crate) outbound: Array<Keyed<OutboundSa>>,
    pub(crate) inbound: Array<Keyed<InboundSa>>,
    pub(crate) fib_root: Array<AtomicU32>,
    pub(crate) fib_groups: Array<AtomicU32>,
    pub(crate) inbound_mask: u32,
    pub(crate) layout: TablesLayout,
    pub(crate) capacity: Capacity,
    pub(crate) segment: Segment,
}

impl TablesMap {
    pub(crate) fn new(segment: Segment) -> TablesMap {
        let capacity = segment.capacity();
        let layout = TablesLayout::new(capacity);
        let (outbound, inbound) = (capacity.outbound_slots(), capacity.inbound_slots());
        TablesMap {
            ports: segment.array(layout.ports, MAX_PORTS),
            adjacencies: segment.array(layout.adjacencies, capacity.neighbours as usize),
            tunnels: segment.array(layout.tunnels, capacity.tunnel_slots()),
            outbound: segment.array(layout.outbound, outbound),
            inbound: segment.array(layout.inbound, inbound),
            fib_root: segment.array(layout.fib_root, ROOT),
            fib_groups: segment.array(layout.fib_groups, capacity.fib_groups as usize * GROUP),
            inbound_mask: inbound as u32 - 1,
            layout,
            capacity,
            segment,
        }
    }

    #[inline(always)]
    pub(crate) fn tunnel(&self, slot: u32) -> &Tunnel {
        self.tunnels.get(slot as usize)
    }

    pub(crate) fn tunnels(&self) -> impl Iterator<Item = (u32, &Tunnel)> {
        let all = (0..self.capacity.tunnel_slots() as u32).map(|slot| (slot, self.tunnel(slot)));
        all.filter(|(_, tunnel)| tunnel.head.live().is_some())
    }

    #[inline(always)]
    pub(crate) fn outbound(&self, slot: u32) -> &OutboundSa {
        &self.outbound.get(slot as usize).sa
    }

    #[inline(always)]
    pub(crate) fn inbound(&self, slot: u32) -> &InboundSa {
        &self.inbound.get((slot & self.inbound_mask) as usize).sa
    }

    #[inline(always)]
    pub(crate) fn outbound_key(&self, slot: u32) -> &KeyBlock {
        &self.outbound.get(slot as usize).key
    }

    #[inline(always)]
    pub(crate) fn inbound_key(&self, slot: u32) -> &KeyBlock {
        &self.inbound.get((slot & self.inbound_mask) as usize).key
    }

    #[inline(always)]
    pub(crate) fn adjacency(&self, index: u32) -> &AdjacencyWord {
        self.adjacencies.get(index as usize)
    }

    pub(crate) fn ports(&self) -> &[PortEntry] {
        self.ports.as_slice()
    }

    #[inline(always)]
    pub(crate) fn fib(&self) -> Fib<'_> {
        Fib::new(self.fib_root.as_slice(), self.fib_groups.as_slice())
    }

    /// The slot of the inbound SA with this SPI: its low bits, or for fixed SPIs one of the next slots.
    #[inline(always)]
    pub(crate) fn inbound_slot(&self, spi: u32) -> Option<u32> {
        let first = spi & self.inbound_mask;
        if self.inbound(first).head.is_live_as(spi) {
            return Some(first);
        }
        let most = self.segment.header().figure.load(Ordering::Relaxed);
        (1..=most)
            .map(|step| first.wrapping_add(step) & self.inbound_mask)
            .find(|slot| self.inbound(*slot).head.is_live_as(spi))
    }
}

/// The data plane's side: read-only. What it returns may be used until the worker's next quiescent point.
#[derive(Debug)]
pub struct TablesView(TablesMap);

impl TablesView {
    /// Maps what control made in `directory`.
    ///
    /// # Errors
    /// [`RegionError`]; [`RegionError::Missing`] until control started for the first time.
    pub fn open(directory: &Path) -> Result<TablesView, RegionError> {
        let segment = Segment::view(directory, Kind::Tables, |capacity| TablesLayout::new(capacity).len)?;
        Ok(TablesView(TablesMap::new(segment)))
    }

    /// What the region was made for.
    pub fn capacity(&self) -> Capacity {
        self.0.capacity
    }

    /// Where `destination` (host order) leads.
    #[inline(always)]
    pub fn route(&self, destination: u32) -> Hop {
        self.0.fib().lookup(destination)
    }

    /// The route of `destination` (host order).
    #[inline(always)]
    pub fn find(&self, destination: u32) -> Route {
        self.0.fib().find(destination)
    }

    /// Fetches the hot line of a tunnel that is about to be asked for.
    #[inline(always)]
    pub fn prefetch_tunnel(&self, slot: u32) {
        self.0.tunnels.prefetch(slot as usize, 0);
    }

    /// Fetches the line where the inbound SA with this SPI most likely stands.
    #[inline(always)]
    pub fn prefetch_inbound(&self, spi: u32) {
        let place = (spi & self.0.inbound_mask) as usize;
        self.0.inbound.prefetch(place, std::mem::offset_of!(Keyed<InboundSa>, sa));
    }

    /// Fetches the line of an outbound SA that is about to be asked for.
    #[inline(always)]
    pub fn prefetch_outbound(&self, slot: u32) {
        self.0.outbound.prefetch(slot as usize, std::mem::offset_of!(Keyed<OutboundSa>, sa));
    }

    /// The route table, for lookups of a burst.
    #[inline(always)]
    pub fn fib(&self) -> Fib<'_> {
        self.0.fib()
    }

    /// A tunnel that a route, an SA or another slot led to. One that control replaces meanwhile still serves until the worker's
    /// next quiescent point, so that a change of selectors between two looks loses nothing.
    #[inline(always)]
    pub fn tunnel(&self, slot: u32) -> Option<&Tunnel> {
        let tunnel = self.0.tunnel(slot);
        tunnel.head.linked().map(|_| tunnel)
    }

    /// The live tunnels with their slots.
    pub fn tunnels(&self) -> impl Iterator<Item = (u32, &Tunnel)> {
        self.0.tunnels()
    }

    /// An outbound SA that a tunnel led to, and its SPI. One that control replaces meanwhile still serves until the worker's
    /// next quiescent point, so that a rekey between two looks loses nothing.
    #[inline(always)]
    pub fn outbound(&self, slot: u32) -> Option<(&OutboundSa, u32)> {
        let sa = self.0.outbound(slot);
        Some((sa, sa.head.linked()?))
    }

    /// Key of the outbound SA in `slot`.
    #[inline(always)]
    pub fn outbound_key(&self, slot: u32) -> &KeyBlock {
        self.0.outbound_key(slot)
    }

    /// Slot of the inbound SA with this SPI.
    #[inline(always)]
    pub fn inbound_slot(&self, spi: u32) -> Option<u32> {
        self.0.inbound_slot(spi)
    }

    /// The inbound SA in `slot`.
    #[inline(always)]
    pub fn inbound(&self, slot: u32) -> &InboundSa {
        self.0.inbound(slot)
    }

    /// Key of the inbound SA in `slot`.
    #[inline(always)]
    pub fn inbound_key(&self, slot: u32) -> &KeyBlock {
        self.0.inbound_key(slot)
    }

    /// A next hop.
    ///
    /// # Errors
    /// [`Unresolved`] where its MAC address is not known.
    #[inline(always)]
    pub fn adjacency(&self, index: u32) -> Result<Adjacency, Unresolved> {
        Adjacency::unpack(self.0.adjacency(index).0.load(Ordering::Acquire))
    }

    /// A next hop whose MAC address is known.
    #[inline(always)]
    pub fn next_hop(&self, index: u32) -> Option<NextHop> {
        NextHop::of(self.0.adjacency(index).0.load(Ordering::Acquire))
    }

    /// What control says of port `index`.
    #[inline(always)]
    pub fn port(&self, index: usize) -> &PortEntry {
        &self.0.ports()[index]
    }
}
