//! Makes ICMP errors (RFC 792, 1191, 1812) out of the frames that cause them: no allocation, and every received frame
//! still ends once. At a bounded rate (RFC 1812 section 4.3.2.8).

use penstock_tables::{Hop, PortEntry};

use super::Context;
use super::batch::{Meta, Origin};
use crate::port::Frame;
use crate::wire::icmp::{self, Error};
use crate::wire::ipv4;

/// A token bucket on the TSC.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    tokens: u32,
    burst: u32,
    cycles_per_token: u64,
    last: u64,
}

impl RateLimit {
    /// At most `per_second` answers a second, and that many at once after a pause. `tsc_hz` is the TSC's frequency.
    pub fn new(per_second: u32, tsc_hz: u64) -> RateLimit {
        let cycles_per_token = (tsc_hz / u64::from(per_second.max(1))).max(1);
        RateLimit { tokens: per_second, burst: per_second, cycles_per_token, last: 0 }
    }

    /// Whether one more answer may be sent at `now`.
    pub fn take(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.last) / self.cycles_per_token;
        if earned > 0 {
            self.tokens = u64::from(self.tokens).saturating_add(earned).min(u64::from(self.burst)) as u32;
            self.last += earned * self.cycles_per_token;
        }
        let due = self.tokens > 0;
        self.tokens -= u32::from(due);
        due
    }
}

/// Turns the packet into the error for its sender and finds the way back. `false`, where no answer is due: to an error,
/// without an address of ours, beyond the rate, without headroom.
pub fn make<F: Frame>(frame: &mut F, meta: &mut Meta, error: Error, cx: &mut Context<'_>) -> bool {
    let (l3, header) = (usize::from(meta.l3), usize::from(meta.ip.header_len()));
    let payload = frame.data().get(l3 + header..).unwrap_or_default();
    let from = own_address(meta, cx);
    if meta.answer || from == 0 || !icmp::may_answer(&meta.ip, payload) || !cx.answers.take(cx.now) {
        return false;
    }
    frame.trim_front(l3);
    let behind = frame.len().saturating_sub(icmp::QUOTED);
    frame.trim_back(behind);
    if frame.prepend(icmp::HEADERS).is_none() {
        return false;
    }
    icmp::write(frame.data_mut(), error, from, meta.ip.source());
    let Ok(ip) = ipv4::parse(frame.data()) else { return false };
    let route = cx.tables.find(ip.destination());
    *meta = Meta { ip, l3: 0, answer: true, route, ..*meta };
    true
}

/// The address that speaks (RFC 1812 section 4.3.2.4): of the port that the packet came in by; for a decrypted one, of the port
/// that it was to leave by, since the outer address lies outside of the tunnel's selectors. Of several addresses, one that
/// the answer's tunnel takes, then the one nearest to the station on that port. Host order, 0 for none.
fn own_address(meta: &Meta, cx: &Context<'_>) -> u32 {
    let (source, destination) = (meta.ip.source(), meta.ip.destination());
    match meta.origin {
        Origin::Wire => choose(addresses(usize::from(meta.port), cx), source, |_| true),
        Origin::Kernel => 0,
        Origin::Tunnel(slot) => {
            let takes =
                |own| cx.tables.tunnel(slot).is_some_and(|tunnel| tunnel.covers_outbound(own, source));
            let port = match cx.tables.route(destination) {
                Hop::Adjacency(index) => {
                    let port = cx.tables.adjacency(index).map_or_else(|hop| hop.port, |hop| hop.port);
                    Some(usize::from(port))
                }
                Hop::Glean(port) => Some(port as usize),
                _ => cx.ports.iter().position(|facts| !facts.spec.public),
            };
            port.map_or(0, |port| choose(addresses(port, cx), destination, takes))
        }
    }
}

fn addresses<'a>(port: usize, cx: &Context<'a>) -> impl Iterator<Item = u32> + use<'a> {
    let entry = (port < cx.ports.len()).then(|| cx.tables.port(port));
    entry.into_iter().flat_map(PortEntry::addresses)
}

/// Of these addresses one that `takes` holds of, where there is one, and of those the one that has most in common with
/// `near`; the first of equals.
fn choose(all: impl Iterator<Item = u32>, near: u32, takes: impl Fn(u32) -> bool) -> u32 {
    let rank = |own: u32| (takes(own), (own ^ near).leading_zeros());
    all.map(|own| (rank(own), own))
        .reduce(|best, it| if it.0 > best.0 { it } else { best })
        .map_or(0, |it| it.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_is_taken_and_nearest_speaks() {
        let own = [0xc0a8_0101, 0x0a01_0001, 0x0a01_0501];
        let speaks = |near, takes: fn(u32) -> bool| choose(own.into_iter(), near, takes);
        assert_eq!(speaks(0x0a01_0507, |_| true), 0x0a01_0501);
        assert_eq!(speaks(0x0a01_0507, |own| own == 0xc0a8_0101), 0xc0a8_0101);
        assert_eq!(speaks(0x0a01_0007, |_| false), 0x0a01_0001, "one that is not taken is better than none");
        assert_eq!(choose(std::iter::empty(), 1, |_| true), 0);
    }

    #[test]
    fn the_rate_is_bounded_and_recovers() {
        let mut limit = RateLimit::new(100, 1_000_000);
        assert_eq!((0..1000).filter(|_| limit.take(1)).count(), 100);
        assert_eq!((0..1000).filter(|_| limit.take(50_001)).count(), 5);
        assert_eq!((0..1000).filter(|_| limit.take(1 << 40)).count(), 100);
        assert!(!limit.take(0));
        // Parts of a token add up.
        let mut limit = RateLimit::new(100, 1_000_000);
        assert_eq!((0..200).filter(|_| limit.take(0)).count(), 100);
        assert_eq!((1..=100).filter(|step| limit.take(step * 15_000)).count(), 100);
        assert_eq!((0..100).filter(|_| limit.take(1_500_000)).count(), 50);
    }
}
