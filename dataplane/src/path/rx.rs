//! Takes bursts from ports, and from the kernel's side of the twins. Counts every frame as received.

use penstock_tables::{Hop, Note, Verdict};

use super::encap::SealingList;
use super::punt::{Twin, Twins};
use super::{Context, Item, Meta, Origin, WorkerPort, encap, parse, tx};
use crate::port::{BURST, Burst, Frame, Port};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};

/// One burst of a port, fetched ahead.
#[inline(always)]
pub fn receive<P: Port>(queue: &mut P, cx: &mut Context<'_>) -> Burst<P::Frame> {
    let mut frames = Burst::new();
    queue.receive(&mut frames);
    frames.iter().for_each(Frame::prefetch);
    cx.tally.received += frames.len() as u64;
    frames
}

/// What the kernel sent through the twins: to the wire as it is, or into a tunnel where the destination belongs to one,
/// so that the gateway's own traffic never leaves in the clear either. Returns how many frames there were.
pub fn from_kernel<P: Port>(
    twins: &mut Twins<P::Frame>,
    sealing: &mut SealingList<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) -> usize {
    let mut count = 0;
    while count < BURST {
        let Some((twin, frame)) = twins.from_kernel.pop() else { break };
        count += 1;
        cx.tally.received += 1;
        cx.tally.note(Note::FromKernel, 1);
        match twin {
            Twin::Port(port) if usize::from(port) < ports.len() => own(frame, port, sealing, ports, cx),
            Twin::Port(_) => cx.end(frame, Verdict::PortDown),
            Twin::Tunnel(tunnel) => into_tunnel(frame, 0, tunnel, sealing, cx),
        }
    }
    count
}

/// A frame of the kernel for the wire of its port.
fn own<P: Port>(
    mut frame: P::Frame,
    port: u8,
    sealing: &mut SealingList<P::Frame>,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) {
    let Some(header) = ethernet::parse(frame.data()) else { return cx.end(frame, Verdict::EthernetRunt) };
    if header.ether_type == ethernet::IPV4 {
        // A VLAN device on top of the twin is no way around the tunnel.
        let l3 = ethernet::HEADER + if header.vlan.is_some() { ethernet::TAG } else { 0 };
        match parse::ip(&mut frame, l3) {
            Ok(ip) => {
                if let Some(tunnel) = tunnel_of(&ip, cx) {
                    return into_tunnel(frame, l3, tunnel, sealing, cx);
                }
            }
            // What cannot be read could belong to a tunnel.
            Err(verdict) => return cx.end(frame, verdict),
        }
    }
    let vlan = cx.ports[usize::from(port)].spec.vlan;
    if vlan != 0 {
        match frame.prepend(ethernet::TAG) {
            Some(_) => ethernet::insert_tag(frame.data_mut(), vlan),
            None => return cx.end(frame, Verdict::NoHeadroom),
        }
    }
    tx::queue(&mut ports[usize::from(port)], frame, cx);
}

/// The tunnel that a packet of the kernel belongs to. What goes to the tunnel's own peer (IKE, ESP) does not, nor what goes
/// to the group of stations on a port.
fn tunnel_of(ip: &Ipv4, cx: &Context<'_>) -> Option<u32> {
    if ipv4::is_group(ip.destination) {
        return None;
    }
    let Hop::Tunnel(slot) = cx.tables.route(ip.destination) else { return None };
    let to_peer = cx.tables.tunnel(slot).is_some_and(|tunnel| tunnel.peer() == ip.destination);
    (!to_peer).then_some(slot)
}

fn into_tunnel<F: Frame>(
    mut frame: F,
    l3: usize,
    tunnel: u32,
    sealing: &mut SealingList<F>,
    cx: &mut Context<'_>,
) {
    match parse::ip(&mut frame, l3) {
        Ok(ip) => {
            let meta = Meta { ip, l3: l3 as u16, port: 0, origin: Origin::Kernel, answer: false };
            encap::admit(Item { frame, meta }, tunnel, sealing, cx);
        }
        Err(verdict) => cx.end(frame, verdict),
    }
}
