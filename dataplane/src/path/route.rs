//! Packets in, each to where its destination leads: a tunnel, a next hop, the kernel, or back to its sender as an ICMP
//! error (RFC 1812 section 4.3). Plaintext never crosses a public port.

use penstock_tables::adjacency::Unresolved;
use penstock_tables::events::Event;
use penstock_tables::{Adjacency, Hop, Note, Route, Verdict};

use super::batch::{Batch, Meta, Origin, Picks};
use super::encap;
use super::exit::Leaving;
use super::punt::{self, Twins};
use super::{Context, WorkerPort, answer, tx};
use crate::port::{AREA, Frame, Port};
use crate::wire::icmp::Error;
use crate::wire::{ethernet, ipv4};

/// What packets in a row have in common: the next hop that the last one went to in the clear.
struct Clear {
    index: u32,
    next: Link,
}

/// A next hop that plaintext may take: its port and the Ethernet header, at the end of the area before the packet.
#[derive(Clone, Copy)]
struct Link {
    port: u8,
    len: u8,
    mtu: u16,
    header: [u8; LINK],
}

/// Octets that hold a tagged header.
const LINK: usize = 32;

/// Sends every packet on its way: the clear ones, and those that were opened. What is to be sealed is
/// added to `leaving`.
#[inline(never)]
pub fn forward<'a, P: Port>(
    clear: Picks,
    opened: Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    leaving: &mut Leaving<'a>,
    cx: &mut Context<'a>,
) {
    let nowhere = Link { port: 0, len: 0, mtu: 0, header: [0; LINK] };
    let mut last = Clear { index: penstock_tables::NONE, next: nowhere };
    for index in opened.with(clear) {
        match quick(batch.meta(index), &last, leaving, cx) {
            Some(Way::Tunnel(place)) => encap::admit_at(index, place, leaving, batch, cx),
            Some(Way::Clear) => send(index, &last.next, batch, ports, cx),
            None => {
                let step = step(batch.meta(index), &mut last, leaving, cx);
                otherwise(index, step, &mut last, leaving, batch, ports, twins, cx);
            }
        }
    }
}

/// Where most packets go.
enum Way {
    /// Into the tunnel at this place among those of the burst.
    Tunnel(usize),
    /// By the same next hop as the last one.
    Clear,
}

/// What becomes of a packet.
enum Step {
    Kernel,
    Seal(usize),
    /// By the next hop in [`Clear`].
    Clear,
    Tell(Error),
    End(Verdict),
}

/// What few packets do.
#[cold]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "what a stage has at hand")]
fn otherwise<'a, P: Port>(
    index: usize,
    step: Step,
    last: &mut Clear,
    leaving: &mut Leaving<'a>,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'a>,
) {
    match step {
        Step::Kernel => {
            let meta = *batch.meta(index);
            if let Some(frame) = batch.take(index) {
                punt::decrypted(twins, frame, meta, cx);
            }
        }
        Step::Tell(error) => reply(index, error, last, leaving, batch, ports, twins, cx),
        Step::End(verdict) => cx.refuse(batch, index, verdict),
        Step::Seal(place) => encap::admit_at(index, place, leaving, batch, cx),
        Step::Clear => send(index, &last.next, batch, ports, cx),
    }
}

/// The whole of it, and every drop by its name.
#[inline(never)]
fn step<'a>(meta: &Meta, last: &mut Clear, leaving: &mut Leaving<'a>, cx: &Context<'a>) -> Step {
    let ip = &meta.ip;
    // A group is never forwarded (RFC 1812 5.2.1): routing protocols in the tunnel speak to the kernel by it.
    if meta.route.is_local() || ipv4::is_group(ip.destination()) {
        return Step::Kernel;
    }
    if ip.ttl() <= 1 && !meta.answer {
        return Step::Tell(Error::TimeExceeded);
    }
    let (step, mtu) = match meta.route.tunnel() {
        Some(slot) if meta.origin == Origin::Tunnel(slot) && !meta.answer => {
            return Step::End(Verdict::TunnelLoop);
        }
        Some(slot) => {
            let place = leaving.turn(slot, ip, cx);
            (Step::Seal(place), leaving.inner_mtu(place))
        }
        None => match last.turn(meta.route, ip.destination(), cx) {
            Ok(()) => (Step::Clear, last.next.mtu),
            Err(verdict) => return Step::End(verdict),
        },
    };
    if ip.total_len() <= mtu {
        return step;
    }
    // Its sender is told where don't-fragment is set (RFC 1191).
    match ip.dont_fragment() && !meta.answer {
        true => Step::Tell(Error::TooBig(mtu)),
        false => Step::End(Verdict::TooBig),
    }
}

/// The way of a packet that nothing is in the way of; `None` where [`step`] must say more.
#[inline(always)]
fn quick<'a>(meta: &Meta, last: &Clear, leaving: &mut Leaving<'a>, cx: &Context<'a>) -> Option<Way> {
    let ip = &meta.ip;
    if ip.ttl() <= 1 || ipv4::is_group(ip.destination()) {
        return None;
    }
    if let Some(slot) = meta.route.tunnel() {
        let place = leaving.turn(slot, ip, cx);
        let free = meta.origin != Origin::Tunnel(slot) && ip.total_len() <= leaving.inner_mtu(place);
        return free.then_some(Way::Tunnel(place));
    }
    let free = meta.route.adjacency() == Some(last.index) && ip.total_len() <= last.next.mtu;
    free.then_some(Way::Clear)
}

impl Clear {
    /// Turns to the next hop that a route leads to in the clear.
    #[inline(always)]
    fn turn(&mut self, route: Route, destination: u32, cx: &Context<'_>) -> Result<(), Verdict> {
        if route.adjacency() == Some(self.index) {
            return Ok(());
        }
        let (index, hop) = match route.hop() {
            Hop::Adjacency(index) => (index, cx.tables.adjacency(index)),
            Hop::Glean(port) => {
                let unresolved = Unresolved { port: port as u8, address: destination };
                (penstock_tables::NONE, Err(unresolved))
            }
            Hop::Discard => return Err(Verdict::RouteDiscard),
            _ => return Err(Verdict::NoRoute),
        };
        self.next = next_hop(hop, cx)?;
        self.index = index;
        Ok(())
    }
}

/// Whether plaintext may take this next hop: its port exists and is not public, its MAC address is known.
#[inline]
fn next_hop(hop: Result<Adjacency, Unresolved>, cx: &Context<'_>) -> Result<Link, Verdict> {
    let port = hop.map_or_else(|unresolved| unresolved.port, |next| next.port);
    let facts = cx.ports.get(usize::from(port)).ok_or(Verdict::PortDown)?;
    if facts.spec.public {
        return Err(Verdict::ClearOnPublic);
    }
    let next = hop.map_err(|unresolved| {
        let (port, address) = (u32::from(unresolved.port), unresolved.address);
        cx.events.push(Event::NoNeighbour { port, address });
        Verdict::NoNeighbour
    })?;
    let (vlan, mut header) = (facts.spec.vlan, [0; LINK]);
    let len = ethernet::header_len(vlan);
    ethernet::write(&mut header[LINK - len..], next.mac, facts.mac, vlan);
    Ok(Link { port, len: len as u8, mtu: facts.spec.mtu, header })
}

/// Takes one hop of the TTL (RFC 1812 5.3.1), but for an answer of ours; puts the Ethernet header on and queues the frame.
#[inline(always)]
fn send<P: Port>(
    index: usize,
    next: &Link,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    let Some(mut frame) = batch.take(index) else { return };
    let Meta { ip, l3, answer, .. } = *batch.meta(index);
    let Some((area, packet)) = frame.wrap(l3, next.len, 0) else {
        return cx.end(frame, Verdict::NoHeadroom);
    };
    area[AREA - LINK..].copy_from_slice(&next.header);
    if !answer {
        ip.forward(packet);
    }
    tx::queue(&mut ports[usize::from(next.port)], frame, cx);
}

/// Makes the packet an ICMP error and sends it back; where none is due, the packet is dropped under its own name.
#[expect(clippy::too_many_arguments, reason = "what a stage has at hand")]
fn reply<'a, P: Port>(
    index: usize,
    error: Error,
    last: &mut Clear,
    leaving: &mut Leaving<'a>,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'a>,
) {
    let (note, drop) = match error {
        Error::TooBig(_) => (Note::AnsweredTooBig, Verdict::TooBig),
        Error::TimeExceeded => (Note::AnsweredTtl, Verdict::TtlExceeded),
    };
    let Some((frame, meta)) = batch.get(index) else { return };
    if !answer::make(frame, meta, error, cx) {
        return cx.lose(batch, index, drop);
    }
    cx.tally.note(note, 1);
    match step(batch.meta(index), last, leaving, cx) {
        // An answer is never answered.
        Step::Tell(_) => cx.end_of(batch, index, drop),
        step => otherwise(index, step, last, leaving, batch, ports, twins, cx),
    }
}
