//! Traffic selectors: the payload's body, and the set operations of narrowing. Enters: selectors of both ends.
//! Leaves: what both accept. RFC 7296 sections 2.9 and 3.13.

use super::{Reader, WireError};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAX_SELECTORS: usize = 255;

/// A rectangle of addresses, ports and one protocol. Start and end are of one family and ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrafficSelector {
    /// IP protocol; 0 is any.
    pub protocol: u8,
    /// First port (or ICMP type and code).
    pub start_port: u16,
    /// Last port. `start_port > end_port` (65535, 0) is OPAQUE.
    pub end_port: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

impl TrafficSelector {
    /// All protocols and ports of the network `address/prefix`. A prefix longer than the address is cut.
    pub fn network(address: IpAddr, prefix: u8) -> TrafficSelector {
        let (start, end) = match address {
            IpAddr::V4(a) => {
                let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                (
                    IpAddr::V4(Ipv4Addr::from(a.to_bits() & !host)),
                    IpAddr::V4(Ipv4Addr::from(a.to_bits() | host)),
                )
            }
            IpAddr::V6(a) => {
                let host = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
                (
                    IpAddr::V6(Ipv6Addr::from(a.to_bits() & !host)),
                    IpAddr::V6(Ipv6Addr::from(a.to_bits() | host)),
                )
            }
        };
        TrafficSelector { protocol: 0, start_port: 0, end_port: 65535, start, end }
    }

    /// `0.0.0.0/0`, any protocol.
    pub fn any_v4() -> TrafficSelector {
        TrafficSelector::network(Ipv4Addr::UNSPECIFIED.into(), 0)
    }

    /// `::/0`, any protocol.
    pub fn any_v6() -> TrafficSelector {
        TrafficSelector::network(Ipv6Addr::UNSPECIFIED.into(), 0)
    }

    /// What both selectors contain, if anything.
    pub fn intersect(&self, other: &TrafficSelector) -> Option<TrafficSelector> {
        let protocol = match (self.protocol, other.protocol) {
            (a, 0) => a,
            (0, b) => b,
            (a, b) if a == b => a,
            _ => return None,
        };
        let (start_port, end_port) = match (self.opaque(), other.opaque()) {
            (true, true) => (65535, 0),
            (true, false) if other.all_ports() => (65535, 0),
            (false, true) if self.all_ports() => (65535, 0),
            (false, false) => (self.start_port.max(other.start_port), self.end_port.min(other.end_port)),
            _ => return None,
        };
        if start_port > end_port && (start_port, end_port) != (65535, 0) {
            return None;
        }
        if self.start.is_ipv4() != other.start.is_ipv4() {
            return None;
        }
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start <= end).then_some(TrafficSelector { protocol, start_port, end_port, start, end })
    }

    /// Whether every packet of `other` is in `self`.
    pub fn contains(&self, other: &TrafficSelector) -> bool {
        self.intersect(other).as_ref() == Some(other)
    }

    /// Whether the address is inside, whatever the protocol and ports.
    pub fn contains_address(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.start.is_ipv4() && self.start <= address && address <= self.end
    }

    /// Whether it is of addresses alone: any protocol, any port.
    pub fn is_whole(&self) -> bool {
        self.protocol == 0 && self.all_ports()
    }

    fn opaque(&self) -> bool {
        (self.start_port, self.end_port) == (65535, 0)
    }

    fn all_ports(&self) -> bool {
        (self.start_port, self.end_port) == (0, 65535)
    }

    /// The network and prefix length, if the range is one.
    pub fn as_network(&self) -> Option<(IpAddr, u8)> {
        let prefix = match (self.start, self.end) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() as u8,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() as u8,
            _ => return None,
        };
        let network = TrafficSelector::network(self.start, prefix);
        (network.start == self.start && network.end == self.end).then_some((self.start, prefix))
    }

    pub(super) fn decode_all(body: &[u8]) -> Result<Vec<TrafficSelector>, WireError> {
        let mut r = Reader::new(body);
        let (count, _) = (usize::from(r.u8()?), r.take(3)?);
        let mut out = Vec::new();
        for _ in 0..count.min(MAX_SELECTORS) {
            let (kind, protocol, length) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
            let mut body = Reader::new(r.take(length.checked_sub(4).ok_or(WireError::BadLength)?)?);
            let (start_port, end_port) = match kind {
                7 | 8 => (body.u16()?, body.u16()?),
                _ => continue,
            };
            let (start, end): (IpAddr, IpAddr) = match kind {
                7 => (body.array::<4>()?.into(), body.array::<4>()?.into()),
                _ => (body.array::<16>()?.into(), body.array::<16>()?.into()),
            };
            let ports_ordered = start_port <= end_port || (start_port, end_port) == (65535, 0);
            if !body.is_empty() || start > end || !ports_ordered {
                return Err(WireError::BadValue);
            }
            out.push(TrafficSelector { protocol, start_port, end_port, start, end });
        }
        if count == 0 || !r.is_empty() {
            return Err(WireError::BadLength);
        }
        Ok(out)
    }

    pub(super) fn encode_all(selectors: &[TrafficSelector], out: &mut Vec<u8>) {
        out.extend([selectors.len().min(MAX_SELECTORS) as u8, 0, 0, 0]);
        for s in selectors.iter().take(MAX_SELECTORS) {
            let (kind, length): (u8, u16) = if s.start.is_ipv4() { (7, 16) } else { (8, 40) };
            out.extend([kind, s.protocol]);
            out.extend(length.to_be_bytes());
            out.extend(s.start_port.to_be_bytes());
            out.extend(s.end_port.to_be_bytes());
            for a in [s.start, s.end] {
                match a {
                    IpAddr::V4(a) => out.extend(a.octets()),
                    IpAddr::V6(a) => out.extend(a.octets()),
                }
            }
        }
    }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_network() {
            Some((a, p)) => write!(f, "{a}/{p}")?,
            None => write!(f, "{}-{}", self.start, self.end)?,
        }
        match (self.protocol, self.all_ports()) {
            (0, true) => Ok(()),
            (p, true) => write!(f, "[{p}]"),
            (p, false) if self.start_port == self.end_port => write!(f, "[{p}:{}]", self.start_port),
            (p, false) => write!(f, "[{p}:{}-{}]", self.start_port, self.end_port),
        }
    }
}

/// What both lists contain, without duplicates and without rectangles that another one contains (RFC 7296 2.9).
pub fn intersect(offered: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut out: Vec<TrafficSelector> = Vec::new();
    for o in offered.iter().take(MAX_SELECTORS) {
        for a in allowed {
            let Some(both) = o.intersect(a) else { continue };
            if out.iter().any(|s| s.contains(&both)) {
                continue;
            }
            out.retain(|s| !both.contains(s));
            out.push(both);
        }
    }
    out
}

/// Whether every selector of `inner` lies within one of `outer`.
pub fn is_subset(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    inner.iter().all(|i| outer.iter().any(|o| o.contains(i)))
}

/// Ranges of addresses in a list, those that touch or overlap taken as one.
pub fn ranges(list: &[TrafficSelector]) -> usize {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (false, u128::from(address.to_bits())),
        IpAddr::V6(address) => (true, address.to_bits()),
    };
    let mut all: Vec<_> = list.iter().map(|one| (bits(one.start), bits(one.end))).collect();
    all.sort_unstable();
    let (mut count, mut last) = (0, None);
    for (start, end) in all {
        let joins = last
            .is_some_and(|(family, at): (bool, u128)| family == start.0 && start.1 <= at.saturating_add(1));
        count += usize::from(!joins);
        last = if joins { last.max(Some(end)) } else { Some(end) };
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> TrafficSelector {
        let (a, p) = s.split_once('/').unwrap();
        TrafficSelector::network(a.parse().unwrap(), p.parse().unwrap())
    }

    #[test]
    fn round_trip_and_every_truncation() {
        let list = vec![net("10.0.0.0/8"), net("2001:db8::/32"), TrafficSelector::any_v4()];
        let mut bytes = Vec::new();
        TrafficSelector::encode_all(&list, &mut bytes);
        assert_eq!(TrafficSelector::decode_all(&bytes), Ok(list));
        for n in 0..bytes.len() {
            assert!(TrafficSelector::decode_all(&bytes[..n]).is_err());
        }
    }

    #[test]
    fn narrowing() {
        assert_eq!(intersect(&[TrafficSelector::any_v4()], &[net("10.1.0.0/16")]), [net("10.1.0.0/16")]);
        assert_eq!(
            intersect(&[net("10.1.2.0/24"), net("10.1.0.0/16")], &[net("10.0.0.0/8")]),
            [net("10.1.0.0/16")]
        );
        assert!(intersect(&[net("10.1.0.0/16")], &[net("10.2.0.0/16"), net("::/0")]).is_empty());
        let tcp = TrafficSelector { protocol: 6, start_port: 80, end_port: 80, ..net("10.0.0.0/8") };
        assert_eq!(
            intersect(&[tcp], &[net("10.1.0.0/16")]),
            [TrafficSelector { protocol: 6, start_port: 80, end_port: 80, ..net("10.1.0.0/16") }]
        );
        assert!(is_subset(&[net("10.1.0.0/16")], &[net("10.0.0.0/8")]));
        assert!(!is_subset(&[net("10.0.0.0/8")], &[net("10.1.0.0/16")]));
        assert_eq!(tcp.to_string(), "10.0.0.0/8[6:80]");
        assert_eq!(TrafficSelector::any_v6().to_string(), "::/0");
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(ranges(&[net("10.1.0.0/24"), net("10.0.0.0/16"), net("10.1.1.0/24")]), 1);
        assert_eq!(
            ranges(&[net("10.3.0.0/24"), net("10.0.0.0/8"), net("10.3.1.0/24"), net("11.0.1.0/24")]),
            2
        );
        assert_eq!(ranges(&[net("::/0"), TrafficSelector::any_v4(), net("1.0.0.0/8")]), 2);
        assert_eq!(ranges(&[]), 0);
    }
}
