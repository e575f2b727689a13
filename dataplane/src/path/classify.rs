//! Sorts a burst: ESP for this gateway (RFC 4303, RFC 3948), packets to forward, and what belongs to the kernel.

use penstock_tables::{Hop, Tunnel, Verdict};

use super::parse::{self, Parsed};
use super::punt::{Twin, Twins};
use super::{Context, Item, List, Meta, Origin};
use crate::port::{Burst, Frame};
use crate::wire::ethernet;
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::{esp, read_u16, read_u32};

/// An ESP packet for us, before decapsulation: the frame, and where ESP begins in it.
pub struct Sealed<F> {
    /// The frame.
    pub item: Item<F>,
    /// Octets of frame before the SPI.
    pub at: u16,
}

/// ESP packets of one burst.
pub type SealedList<F> = arrayvec::ArrayVec<Sealed<F>, { crate::port::BURST }>;

enum Class {
    Esp(usize),
    Forward,
    Kernel,
    End(Verdict),
}

/// Sorts the frames that came in by `port`.
#[inline(always)]
pub fn sort<F: Frame>(
    frames: &mut Burst<F>,
    port: u8,
    esp: &mut SealedList<F>,
    plain: &mut List<F>,
    twins: &mut Twins<F>,
    cx: &mut Context<'_>,
) {
    let facts = cx.ports[usize::from(port)];
    for mut frame in frames.drain(..) {
        let ip = match parse::frame(&mut frame, &facts) {
            Parsed::Ip(ip) => ip,
            Parsed::Other => {
                super::punt::to_kernel(twins, Twin::Port(port), frame, cx);
                continue;
            }
            Parsed::Wrong(verdict) => {
                cx.end(frame, verdict);
                continue;
            }
        };
        let class = classify(&ip, frame.data(), facts.spec.public, cx);
        let meta = Meta { ip, l3: ethernet::HEADER as u16, port, origin: Origin::Wire, answer: false };
        match class {
            Class::Esp(at) => esp.push(Sealed { item: Item { frame, meta }, at: at as u16 }),
            Class::Forward => plain.push(Item { frame, meta }),
            Class::Kernel => super::punt::to_kernel(twins, Twin::Port(port), frame, cx),
            Class::End(verdict) => cx.end(frame, verdict),
        }
    }
}

#[inline(always)]
fn classify(ip: &Ipv4, frame: &[u8], public: bool, cx: &Context<'_>) -> Class {
    if ipv4::is_group(ip.destination) {
        return Class::Kernel;
    }
    if cx.tables.route(ip.destination) != Hop::Local {
        return if public { Class::End(Verdict::ClearOnPublic) } else { Class::Forward };
    }
    let at = ethernet::HEADER + usize::from(ip.header_len);
    match ip.protocol {
        ipv4::ESP if ip.fragment => Class::End(Verdict::EspFragment),
        ipv4::ESP => Class::Esp(at),
        ipv4::UDP if !ip.fragment => match udp(&frame[at..], at) {
            Class::Kernel => in_the_clear(ip, public, cx),
            class => class,
        },
        _ => in_the_clear(ip, public, cx),
    }
}

/// A packet for the gateway itself that came unprotected. By a public port it is dropped where a tunnel should have brought
/// it (RFC 4301 section 5.2); only the peer itself speaks to us outside of its tunnel.
fn in_the_clear(ip: &Ipv4, public: bool, cx: &Context<'_>) -> Class {
    let Hop::Tunnel(slot) = cx.tables.route(ip.source) else { return Class::Kernel };
    let covered =
        |tunnel: &Tunnel| tunnel.peer() != ip.source && tunnel.covers_inbound(ip.source, ip.destination);
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
