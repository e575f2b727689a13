//! The tunnels that packets of one burst leave by: each found once, with the SA that seals now and the next hop of the outer
//! packets; what sealing will need is fetched. Of a tunnel with several children a packet takes the first whose selectors cover
//! it. RFC 4301 sections 4.4.1 and 5.1 (selectors).

use arrayvec::ArrayVec;
use penstock_tables::events::Event;
use penstock_tables::tunnel::MAX_CHILDREN;
use penstock_tables::{NextHop, Tunnel, Verdict};

use super::Context;
use super::batch::{Meta, Picks};
use super::slots::Slots;
use crate::port::BURST;
use crate::wire::esp;
use crate::wire::ipv4::Ipv4;

/// Slots of tunnels in a burst at most: of each packet its own, and the one that the answer to it goes by. A tunnel with several
/// children takes one, and each child that packets leave by takes one.
pub const EXITS: usize = 2 * BURST;

/// One tunnel as this burst found it.
pub struct Exit<'a> {
    /// Slot of the tunnel.
    pub slot: u32,
    inner_mtu: u16,
    tunnel: Option<&'a Tunnel>,
    /// Slot of the tunnel's next child; most tunnels have none.
    next: u32,
    /// Slot of the SA that seals, and next hop of the outer packets; `None` where something is missing.
    pub way: Option<(u32, NextHop)>,
    /// Packets of the burst that leave by it.
    pub packets: u32,
}

impl<'a> Exit<'a> {
    const NONE: Exit<'a> = Exit {
        slot: penstock_tables::NONE,
        inner_mtu: u16::MAX,
        tunnel: None,
        next: penstock_tables::NONE,
        way: None,
        packets: 0,
    };

    /// Largest inner packet of the tunnel, in octets.
    #[inline(always)]
    pub fn inner_mtu(&self) -> u16 {
        self.inner_mtu
    }

    /// Written where it stands: what is written in pieces must not be copied at once.
    #[inline(always)]
    fn find(&mut self, slot: u32, inner: u16, cx: &Context<'a>) {
        let tables = cx.tables;
        self.slot = slot;
        self.tunnel = tables.tunnel(slot);
        let Some(tunnel) = self.tunnel else { return };
        self.inner_mtu = tunnel.inner_mtu();
        // The SA first: where it is gone just now, the child that took over is linked already.
        let sa = tunnel.outbound_of(cx.worker);
        self.next = tunnel.next().unwrap_or(penstock_tables::NONE);
        let (Some(sa), Some(hop)) = (sa, tunnel.adjacency()) else { return };
        tables.prefetch_outbound(sa);
        cx.state.prefetch_outbound(sa);
        cx.engine.prefetch(tables.outbound_key(sa), usize::from(inner) + esp::TRAILER);
        let next = tables.next_hop(hop).filter(|next| usize::from(next.port()) < cx.ports.len());
        self.way = next.map(|next| (sa, next));
    }

    /// Whether a packet may be sealed there: selectors, size, SA and next hop. Returns the port that it leaves by.
    #[inline(always)]
    pub fn check(&self, meta: &Meta, cx: &Context<'_>) -> Result<u8, Verdict> {
        let ip = &meta.ip;
        let tunnel = self.tunnel.ok_or(Verdict::NoSa)?;
        if !tunnel.covers_outbound(ip.source(), ip.destination()) {
            return Err(Verdict::SelectorOutbound);
        }
        if ip.total_len() > self.inner_mtu {
            return Err(Verdict::TooBig);
        }
        match self.way {
            Some((_, next)) => Ok(next.port()),
            None => Err(missing(self.slot, tunnel, cx)),
        }
    }
}

/// What a tunnel lacks; control hears of it.
#[cold]
#[inline(never)]
fn missing(slot: u32, tunnel: &Tunnel, cx: &Context<'_>) -> Verdict {
    let Some((sa, _)) = tunnel.outbound_of(cx.worker).and_then(|sa| cx.tables.outbound(sa)) else {
        cx.events.push(Event::NoSa { tunnel: slot });
        return Verdict::NoSa;
    };
    if sa.epoch() != cx.state.epoch() {
        cx.events.push(Event::Orphaned { tunnel: slot });
        return Verdict::SaOrphaned;
    }
    match tunnel.adjacency().map(|hop| cx.tables.adjacency(hop)) {
        None => Verdict::NoRoute,
        Some(Err(unresolved)) => {
            let (port, address) = (u32::from(unresolved.port), unresolved.address);
            cx.events.push(Event::NoNeighbour { port, address });
            Verdict::NoNeighbour
        }
        // It came just now, and the next burst has it.
        Some(Ok(next)) if usize::from(next.port) < cx.ports.len() => Verdict::NoSa,
        Some(Ok(_)) => Verdict::PortDown,
    }
}

/// The packets of a burst that are to be sealed, and the tunnels that they leave by.
pub struct Leaving<'a> {
    picks: Picks,
    slots: Slots<EXITS>,
    exits: ArrayVec<Exit<'a>, EXITS>,
}

impl<'a> Leaving<'a> {
    /// None yet.
    #[inline(always)]
    pub fn new() -> Leaving<'a> {
        Leaving { picks: Picks::default(), slots: Slots::new(), exits: ArrayVec::new() }
    }

    /// The packets.
    #[inline(always)]
    pub fn picks(&self) -> Picks {
        self.picks
    }

    /// The tunnels, by place.
    #[inline(always)]
    pub fn exits(&self) -> &[Exit<'a>] {
        &self.exits
    }

    /// Place of the tunnel in `slot`, or of that of its children which covers the packet. No place that there is, where there
    /// are too many.
    #[inline(always)]
    pub fn turn(&mut self, slot: u32, ip: &Ipv4, cx: &Context<'a>) -> usize {
        let place = self.place(slot, ip, cx);
        match self.exits.get(place) {
            Some(exit) if exit.next != penstock_tables::NONE => self.child(place, exit.next, ip, cx),
            _ => place,
        }
    }

    #[inline(always)]
    fn place(&mut self, slot: u32, ip: &Ipv4, cx: &Context<'a>) -> usize {
        let place = self.slots.place(slot);
        if place == self.exits.len() && self.exits.try_push(Exit::NONE).is_ok() {
            self.find(slot, ip.total_len(), cx);
        }
        place
    }

    /// The first of a tunnel's further children that covers a packet and has an SA; otherwise its own place, `first`: control
    /// hears of that one.
    #[inline(never)]
    fn child(&mut self, first: usize, mut next: u32, ip: &Ipv4, cx: &Context<'a>) -> usize {
        // What the file says of the tunnel goes before what was negotiated.
        let own = self.exits.get(first).and_then(|exit| exit.tunnel);
        if !own.is_some_and(|own| own.covers_outbound(ip.source(), ip.destination())) {
            return first;
        }
        for _ in 0..MAX_CHILDREN {
            let Some(child) = cx.tables.tunnel(next) else { break };
            let covers = child.covers_outbound(ip.source(), ip.destination());
            if covers && child.outbound_of(cx.worker).is_some() {
                return self.place(next, ip, cx);
            }
            let Some(after) = child.next() else { break };
            next = after;
        }
        first
    }

    #[inline(never)]
    fn find(&mut self, slot: u32, inner: u16, cx: &Context<'a>) {
        if let Some(exit) = self.exits.last_mut() {
            exit.find(slot, inner, cx);
        }
    }

    /// Largest inner packet of the tunnel at a place, in octets.
    #[inline(always)]
    pub fn inner_mtu(&self, place: usize) -> u16 {
        self.exits.get(place).map_or(u16::MAX, Exit::inner_mtu)
    }

    /// Adds packet `index` of the batch where it may be sealed in the tunnel at `place`.
    ///
    /// # Errors
    /// The verdict of a packet that may not, under the name of what is missing.
    #[inline(always)]
    pub fn add(
        &mut self,
        index: usize,
        place: usize,
        meta: &mut Meta,
        cx: &Context<'_>,
    ) -> Result<(), Verdict> {
        let exit = self.exits.get_mut(place).ok_or(Verdict::NoSa)?;
        (meta.sa, meta.out) = (place as u8, exit.check(meta, cx)?);
        exit.packets += 1;
        self.picks.insert(index);
        Ok(())
    }
}
