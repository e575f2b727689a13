//! Sorts a burst: ESP for this gateway (RFC 4303, RFC 3948), packets to forward, and what belongs to the kernel.

use penstock_tables::{Hop, Route, Tunnel, Verdict};

use super::Context;
use super::batch::{Batch, Origin, Picks};
use super::flow::Arriving;
use super::parse::{self, Parsed};
use super::punt::{self, Twin, Twins};
use crate::port::Frame;
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::{esp, read_u16, read_u32};

enum Class {
    /// ESP for us; octets of frame before the SPI.
    Esp(usize),
    Kernel,
    End(Verdict),
}

/// Sorts the packets that came in by `port`: adds ESP for us to `arriving`, and returns what is to be forwarded.
#[inline(never)]
pub fn sort<F: Frame>(
    arrived: Picks,
    port: u8,
    batch: &mut Batch<F>,
    twins: &mut Twins<F>,
    arriving: &mut Arriving,
    cx: &mut Context<'_>,
) -> Picks {
    let mut clear = Picks::default();
    let facts = cx.ports[usize::from(port)];
    let own = facts.spec.address;
    for index in arrived {
        let Some((frame, meta)) = batch.get(index) else { continue };
        let class = match parse::frame(frame, &facts) {
            Parsed::Ip(ip) => {
                meta.begin(ip, ethernet::HEADER, port, Origin::Wire);
                let ip = &meta.ip;
                // Most of what is for the gateway is for the port's own address, which needs no route.
                let to_port = own != 0 && ip.destination() == own;
                let route = if to_port { Route::LOCAL } else { cx.fib.find(ip.destination()) };
                meta.route = route;
                let local = route.is_local();
                if ipv4::is_group(ip.destination()) {
                    Class::Kernel
                } else if !local && !facts.spec.public {
                    if let Some(slot) = route.tunnel() {
                        cx.tables.prefetch_tunnel(slot);
                    }
                    clear.insert(index);
                    continue;
                } else if local && ip.protocol() == ipv4::ESP && !ip.fragment() {
                    Class::Esp(ethernet::HEADER + usize::from(ip.header_len()))
                } else {
                    classify(ip, frame.data(), facts.spec.public, local, cx)
                }
            }
            Parsed::Other => Class::Kernel,
            Parsed::Wrong(verdict) => Class::End(verdict),
        };
        match class {
            Class::Esp(at) => {
                meta.esp = at as u16;
                arriving.add(index, frame.data().get(at..).unwrap_or_default(), meta, cx);
            }
            Class::Kernel => {
                if let Some(frame) = batch.take(index) {
                    punt::to_kernel(twins, Twin::Port(port), frame, cx);
                }
            }
            Class::End(verdict) => cx.end_of(batch, index, verdict),
        }
    }
    clear
}

/// What is not plaintext to forward, and not ESP without UDP.
#[inline(never)]
fn classify(ip: &Ipv4, frame: &[u8], public: bool, local: bool, cx: &Context<'_>) -> Class {
    if !local {
        return Class::End(Verdict::ClearOnPublic);
    }
    let at = ethernet::HEADER + usize::from(ip.header_len());
    match ip.protocol() {
        ipv4::ESP => Class::End(Verdict::EspFragment),
        ipv4::UDP if !ip.fragment() => match udp(&frame[at..], at) {
            Class::Kernel => in_the_clear(ip, public, cx),
            class => class,
        },
        _ => in_the_clear(ip, public, cx),
    }
}

/// A packet for the gateway itself that came unprotected. By a public port it is dropped where a tunnel should have brought
/// it (RFC 4301 section 5.2); only the peer itself speaks to us outside of its tunnel.
fn in_the_clear(ip: &Ipv4, public: bool, cx: &Context<'_>) -> Class {
    let Hop::Tunnel(slot) = cx.tables.route(ip.source()) else { return Class::Kernel };
    let covered = |tunnel: &Tunnel| {
        tunnel.peer() != ip.source() && tunnel.covers_inbound(ip.source(), ip.destination())
    };
    match public && cx.tables.tunnel(slot).is_some_and(covered) {
        true => Class::End(Verdict::ClearOnPublic),
        false => Class::Kernel,
    }
}

/// ESP, IKE or keepalive on port 4500 (RFC 3948 section 2); other UDP is the kernel's.
#[inline(always)]
fn udp(datagram: &[u8], at: usize) -> Class {
    let Some((header, payload)) = datagram.split_first_chunk::<{ esp::UDP_HEADER }>() else {
        return Class::Kernel;
    };
    if read_u16(header, 2) != esp::NAT_PORT {
        return Class::Kernel;
    }
    match payload {
        [0xff] => Class::End(Verdict::Keepalive),
        _ if payload.len() >= 4 && read_u32(payload, 0) == 0 => Class::Kernel,
        _ => Class::Esp(at + esp::UDP_HEADER),
    }
}
