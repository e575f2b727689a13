//! Packets in, each to where its destination leads: a tunnel, a next hop, the kernel, or back to its sender as an ICMP
//! error (RFC 1812 section 4.3). Plaintext never crosses a public port.

use penstock_tables::adjacency::Unresolved;
use penstock_tables::events::Event;
use penstock_tables::{Adjacency, Hop, Note, Verdict};

use super::answer;
use super::encap::SealingList;
use super::punt::{self, Twins};
use super::{Context, Item, List, Origin, WorkerPort, encap, tx};
use crate::port::{Frame, Port};
use crate::wire::icmp::Error;
use crate::wire::{ethernet, ipv4};

/// Sends every packet of `plain` on its way; those of tunnels go to `sealing`.
#[inline(always)]
pub fn forward<P: Port>(
    plain: &mut List<P::Frame>,
    sealing: &mut SealingList<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) {
    for item in plain.drain(..) {
        if let Some((item, error)) = one(item, sealing, ports, twins, cx) {
            reply(item, error, sealing, ports, twins, cx);
        }
    }
}

/// Sends one packet on its way, or says what its sender must be told.
#[inline(always)]
fn one<P: Port>(
    mut item: Item<P::Frame>,
    sealing: &mut SealingList<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) -> Option<(Item<P::Frame>, Error)> {
    let ip = item.meta.ip;
    let hop = cx.tables.route(ip.destination);
    // A group is never forwarded (RFC 1812 5.2.1): routing protocols in the tunnel speak to the kernel by it.
    if hop == Hop::Local || ipv4::is_group(ip.destination) {
        punt::decrypted(twins, item, cx);
        return None;
    }
    if ip.ttl <= 1 && !item.meta.answer {
        return Some((item, Error::TimeExceeded));
    }
    let step = match hop {
        Hop::Tunnel(slot) if item.meta.origin == Origin::Tunnel(slot) && !item.meta.answer => {
            Err(Verdict::TunnelLoop)
        }
        Hop::Tunnel(slot) => match mtu_of(slot, cx) {
            Some(mtu) if ip.total_len > mtu => return too_big(item, mtu, cx),
            _ => Ok(Step::Seal(slot)),
        },
        Hop::Adjacency(index) => next_hop(cx.tables.adjacency(index), cx),
        Hop::Glean(port) => next_hop(Err(Unresolved { port: port as u8, address: ip.destination }), cx),
        Hop::None => Err(Verdict::NoRoute),
        Hop::Discard => Err(Verdict::RouteDiscard),
        Hop::Local => return None,
    };
    match step {
        Err(verdict) => cx.end(item.frame, verdict),
        Ok(Step::Clear(next)) => {
            let mtu = cx.ports[usize::from(next.port)].spec.mtu;
            if ip.total_len > mtu {
                return too_big(item, mtu, cx);
            }
            hop_taken(&mut item);
            send(item, next, ports, cx);
        }
        Ok(Step::Seal(slot)) => {
            hop_taken(&mut item);
            encap::admit(item, slot, sealing, cx);
        }
    }
    None
}

enum Step {
    Seal(u32),
    Clear(Adjacency),
}

/// Whether plaintext may take this next hop: its port exists and is not public, its MAC address is known.
#[inline(always)]
fn next_hop(hop: Result<Adjacency, Unresolved>, cx: &Context<'_>) -> Result<Step, Verdict> {
    let port = match hop {
        Ok(next) => next.port,
        Err(unresolved) => unresolved.port,
    };
    let facts = cx.ports.get(usize::from(port)).ok_or(Verdict::PortDown)?;
    if facts.spec.public {
        return Err(Verdict::ClearOnPublic);
    }
    hop.map(Step::Clear).map_err(|unresolved| {
        cx.events.push(Event::NoNeighbour { port: u32::from(unresolved.port), address: unresolved.address });
        Verdict::NoNeighbour
    })
}

#[inline(always)]
fn mtu_of(slot: u32, cx: &Context<'_>) -> Option<u16> {
    cx.tables.tunnel(slot).map(|tunnel| tunnel.inner_mtu())
}

/// Forwarding takes one hop of the TTL (RFC 1812 5.3.1); an answer of ours starts whole.
#[inline(always)]
fn hop_taken<F: Frame>(item: &mut Item<F>) {
    if !item.meta.answer {
        let l3 = usize::from(item.meta.l3);
        ipv4::decrement_ttl(&mut item.frame.data_mut()[l3..]);
    }
}

/// A packet that does not fit: its sender is told where don't-fragment is set (RFC 1191).
#[cold]
fn too_big<F: Frame>(item: Item<F>, mtu: u16, cx: &mut Context<'_>) -> Option<(Item<F>, Error)> {
    if item.meta.ip.dont_fragment && !item.meta.answer {
        return Some((item, Error::TooBig(mtu)));
    }
    cx.end(item.frame, Verdict::TooBig);
    None
}

/// Puts the Ethernet header on and queues the frame.
#[inline(always)]
fn send<P: Port>(
    mut item: Item<P::Frame>,
    next: Adjacency,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    let facts = cx.ports[usize::from(next.port)];
    item.frame.trim_front(usize::from(item.meta.l3));
    match item.frame.prepend(ethernet::header_len(facts.spec.vlan)) {
        Some(header) => ethernet::write(header, next.mac, facts.mac, facts.spec.vlan),
        None => return cx.end(item.frame, Verdict::NoHeadroom),
    }
    tx::queue(&mut ports[usize::from(next.port)], item.frame, cx);
}

/// Makes the packet an ICMP error and sends it back; where none is due, the packet is dropped under its own name.
#[cold]
fn reply<P: Port>(
    item: Item<P::Frame>,
    error: Error,
    sealing: &mut SealingList<P::Frame>,
    ports: &mut [WorkerPort<P>],
    twins: &mut Twins<P::Frame>,
    cx: &mut Context<'_>,
) {
    let (note, drop) = match error {
        Error::TooBig(_) => (Note::AnsweredTooBig, Verdict::TooBig),
        Error::TimeExceeded => (Note::AnsweredTtl, Verdict::TtlExceeded),
    };
    match answer::make(item, error, cx) {
        Err(frame) => cx.end(frame, drop),
        Ok(item) => {
            cx.tally.note(note, 1);
            // An answer is never answered, so this returns nothing.
            one(item, sealing, ports, twins, cx);
        }
    }
}
