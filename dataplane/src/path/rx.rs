//! Takes bursts from ports, and from the kernel's side of the twins, into a batch. Counts every frame as received.

use penstock_tables::{Hop, Note, Route, Verdict};

use super::batch::{Batch, Meta, Origin, Picks, fresh};
use super::encap;
use super::exit::Leaving;
use super::punt::{Twin, Twins};
use super::{Context, WorkerPort, parse, tx};
use crate::port::{BURST, Burst, Frame, Port};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};

/// One burst of a port, fetched ahead; and how many frames it has.
#[inline(always)]
pub fn receive<P: Port>(queue: &mut P, batch: &mut Batch<P::Frame>, cx: &mut Context<'_>) -> (Picks, usize) {
    let mut frames = Burst::new();
    let count = queue.receive(&mut frames);
    frames.iter().for_each(Frame::prefetch);
    cx.tally.received += count as u64;
    (batch.load(&mut frames), count)
}

/// What the kernel sent through the twins: to the wire as it is, or into a tunnel where the destination belongs to one,
/// so that the gateway's own traffic never leaves in the clear either. What is to be sealed is added to `leaving`; returns
/// how many frames there were.
pub fn from_kernel<'a, P: Port>(
    twins: &mut Twins<P::Frame>,
    batch: &mut Batch<P::Frame>,
    ports: &mut [WorkerPort<P>],
    leaving: &mut Leaving<'a>,
    cx: &mut Context<'a>,
) -> usize {
    let mut count = 0;
    while count < BURST {
        let Some((twin, frame)) = twins.from_kernel.pop() else { break };
        cx.tally.received += 1;
        cx.tally.note(Note::FromKernel, 1);
        let inner = match twin {
            Twin::Port(port) if usize::from(port) < ports.len() => own(frame, port, ports, cx),
            Twin::Port(_) => {
                cx.end(frame, Verdict::PortDown);
                None
            }
            Twin::Tunnel(device) => {
                let tunnel = cx.tables.tunnel(device).map_or(device, |tunnel| tunnel.group());
                Some((frame, 0, tunnel))
            }
        };
        if let Some((frame, l3, tunnel)) = inner {
            into_tunnel(frame, l3, tunnel, count, leaving, batch, cx);
        }
        count += 1;
    }
    count
}

/// A frame of the kernel for the wire of its port; given back where it belongs to a tunnel: frame, place of the IPv4
/// header, slot of the tunnel.
fn own<P: Port>(
    mut frame: P::Frame,
    port: u8,
    ports: &mut [WorkerPort<P>],
    cx: &mut Context<'_>,
) -> Option<(P::Frame, usize, u32)> {
    let Some(header) = ethernet::parse(frame.data()) else {
        cx.end(frame, Verdict::EthernetRunt);
        return None;
    };
    if header.ether_type == ethernet::IPV4 {
        // A VLAN device on top of the twin is no way around the tunnel.
        let l3 = ethernet::HEADER + if header.vlan.is_some() { ethernet::TAG } else { 0 };
        match parse::ip(&mut frame, l3) {
            Ok(ip) => {
                if let Some(tunnel) = tunnel_of(&ip, cx) {
                    return Some((frame, l3, tunnel));
                }
            }
            // What cannot be read could belong to a tunnel.
            Err(verdict) => {
                cx.end(frame, verdict);
                return None;
            }
        }
    }
    let vlan = cx.ports[usize::from(port)].spec.vlan;
    if vlan != 0 {
        if frame.prepend(ethernet::TAG).is_none() {
            cx.end(frame, Verdict::NoHeadroom);
            return None;
        }
        ethernet::insert_tag(frame.data_mut(), vlan);
    }
    tx::queue(&mut ports[usize::from(port)], frame, cx);
    None
}

/// The tunnel that a packet of the kernel belongs to. What goes to the tunnel's own peer (IKE, ESP) does not, nor what goes
/// to the group of stations on a port.
fn tunnel_of(ip: &Ipv4, cx: &Context<'_>) -> Option<u32> {
    if ipv4::is_group(ip.destination()) {
        return None;
    }
    let Hop::Tunnel(slot) = cx.tables.route(ip.destination()) else { return None };
    let to_peer = cx.tables.tunnel(slot).is_some_and(|tunnel| tunnel.peer() == ip.destination());
    (!to_peer).then_some(slot)
}

fn into_tunnel<'a, F: Frame>(
    mut frame: F,
    l3: usize,
    tunnel: u32,
    index: usize,
    leaving: &mut Leaving<'a>,
    batch: &mut Batch<F>,
    cx: &mut Context<'a>,
) {
    match parse::ip(&mut frame, l3) {
        Err(verdict) => cx.end(frame, verdict),
        Ok(ip) => match batch.put(
            index,
            frame,
            Meta { route: Route::to_tunnel(tunnel), ..fresh(ip, l3, 0, Origin::Kernel) },
        ) {
            Some(refused) => cx.end(refused, Verdict::TransmitFull),
            None => encap::admit(index, tunnel, leaving, batch, cx),
        },
    }
}
