//! Packets in, each to where its destination leads: a tunnel, a next hop, the kernel, or back to its sender as an ICMP
//! error (RFC 1812 section 4.3). Plaintext never crosses a public port.

use penstock_tables::adjacency::Unresolved;
use penstock_tables::events::Event;
use penstock_tables::{Adjacency, Hop, Note, Verdict};

use super::batch::{Batch, Meta, Origin, Picks};
use super::punt::{self, Twins};
use super::{Context, WorkerPort, answer, encap, tx};
use crate::port::{Frame, Port};
use crate::wire::icmp::Error;
use crate::wire::{ethernet, ipv4};

/// Sends every packet on its way: the clear ones, whose route is known, and those that were opened. Returns what is to be
/// sealed.
#[inline(always)]
pub fn forward<P: Port>(
    clear: Picks,
    opened: Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) -> Picks {
    let mut sealing = Picks::default();
    for index in opened {
        let Some((_, meta)) = batch.get(index) else { continue };
        meta.hop = cx.tables.route(meta.ip.destination);
        deliver(index, &mut sealing, batch, ports, twins, cx);
    }
    for index in clear {
        deliver(index, &mut sealing, batch, ports, twins, cx);
    }
    sealing
}

/// What becomes of a packet.
enum Step {
    Kernel,
    Seal(u32),
    Clear(Adjacency),
    Tell(Error),
    End(Verdict),
}

#[inline(always)]
fn deliver<P: Port>(
    index: usize,
    sealing: &mut Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) {
    match step(batch.meta(index), cx) {
        Step::Seal(slot) => {
            hop_taken(index, batch);
            encap::admit(index, slot, sealing, batch, cx);
        }
        Step::Clear(next) => {
            hop_taken(index, batch);
            send(index, next, batch, ports, cx);
        }
        Step::Kernel => {
            let meta = *batch.meta(index);
            if let Some(frame) = batch.take(index) {
                punt::decrypted(twins, frame, meta, cx);
            }
        }
        Step::Tell(error) => reply(index, error, sealing, batch, ports, twins, cx),
        Step::End(verdict) => cx.end_of(batch, index, verdict),
    }
}

#[inline(always)]
fn step(meta: &Meta, cx: &Context<'_>) -> Step {
    let ip = &meta.ip;
    // A group is never forwarded (RFC 1812 5.2.1): routing protocols in the tunnel speak to the kernel by it.
    if meta.hop == Hop::Local || ipv4::is_group(ip.destination) {
        return Step::Kernel;
    }
    if ip.ttl <= 1 && !meta.answer {
        return Step::Tell(Error::TimeExceeded);
    }
    let (step, mtu) = match meta.hop {
        Hop::Tunnel(slot) if meta.origin == Origin::Tunnel(slot) && !meta.answer => {
            return Step::End(Verdict::TunnelLoop);
        }
        Hop::Tunnel(slot) => {
            (Step::Seal(slot), cx.tables.tunnel(slot).map_or(u16::MAX, |tunnel| tunnel.inner_mtu()))
        }
        Hop::Adjacency(index) => next_hop(cx.tables.adjacency(index), cx),
        Hop::Glean(port) => next_hop(Err(Unresolved { port: port as u8, address: ip.destination }), cx),
        Hop::None => return Step::End(Verdict::NoRoute),
        Hop::Discard => return Step::End(Verdict::RouteDiscard),
        Hop::Local => return Step::Kernel,
    };
    match step {
        Step::End(_) => step,
        _ if ip.total_len <= mtu => step,
        // Its sender is told where don't-fragment is set (RFC 1191).
        _ if ip.dont_fragment && !meta.answer => Step::Tell(Error::TooBig(mtu)),
        _ => Step::End(Verdict::TooBig),
    }
}

/// Whether plaintext may take this next hop: its port exists and is not public, its MAC address is known.
#[inline(always)]
fn next_hop(hop: Result<Adjacency, Unresolved>, cx: &Context<'_>) -> (Step, u16) {
    let port = hop.map_or_else(|unresolved| unresolved.port, |next| next.port);
    let Some(facts) = cx.ports.get(usize::from(port)) else { return (Step::End(Verdict::PortDown), 0) };
    if facts.spec.public {
        return (Step::End(Verdict::ClearOnPublic), 0);
    }
    match hop {
        Ok(next) => (Step::Clear(next), facts.spec.mtu),
        Err(unresolved) => {
            cx.events
                .push(Event::NoNeighbour { port: u32::from(unresolved.port), address: unresolved.address });
            (Step::End(Verdict::NoNeighbour), 0)
        }
    }
}

/// Forwarding takes one hop of the TTL (RFC 1812 5.3.1); an answer of ours starts whole.
#[inline(always)]
fn hop_taken<F: Frame>(index: usize, batch: &mut Batch<F>) {
    if let Some((frame, meta)) = batch.get(index)
        && !meta.answer
        && let Some(header) = frame.data_mut().get_mut(usize::from(meta.l3)..)
    {
        ipv4::decrement_ttl(header);
    }
}

/// Puts the Ethernet header on and queues the frame.
#[inline(always)]
fn send<P: Port>(
    index: usize,
    next: Adjacency,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    let l3 = usize::from(batch.meta(index).l3);
    let Some(mut frame) = batch.take(index) else { return };
    let facts = cx.ports[usize::from(next.port)];
    frame.trim_front(l3);
    match frame.prepend(ethernet::header_len(facts.spec.vlan)) {
        Some(header) => ethernet::write(header, next.mac, facts.mac, facts.spec.vlan),
        None => return cx.end(frame, Verdict::NoHeadroom),
    }
    tx::queue(&mut ports[usize::from(next.port)], frame, cx);
}

/// Makes the packet an ICMP error and sends it back; where none is due, the packet is dropped under its own name.
#[cold]
#[inline(never)]
fn reply<P: Port>(
    index: usize,
    error: Error,
    sealing: &mut Picks,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) {
    let (note, drop) = match error {
        Error::TooBig(_) => (Note::AnsweredTooBig, Verdict::TooBig),
        Error::TimeExceeded => (Note::AnsweredTtl, Verdict::TtlExceeded),
    };
    let Some((frame, meta)) = batch.get(index) else { return };
    if !answer::make(frame, meta, error, cx) {
        return cx.end_of(batch, index, drop);
    }
    cx.tally.note(note, 1);
    match step(batch.meta(index), cx) {
        Step::Seal(slot) => encap::admit(index, slot, sealing, batch, cx),
        Step::Clear(next) => send(index, next, batch, ports, cx),
        Step::Kernel => {
            let meta = *batch.meta(index);
            if let Some(frame) = batch.take(index) {
                punt::decrypted(twins, frame, meta, cx);
            }
        }
        Step::End(verdict) => cx.end_of(batch, index, verdict),
        // An answer is never answered.
        Step::Tell(_) => cx.end_of(batch, index, drop),
    }
}
