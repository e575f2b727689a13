//! ICMP errors that a router sends (RFC 792, RFC 1812 section 4.3): fragmentation needed with the MTU (RFC 1191) and time
//! exceeded, made around the start of the packet that caused them.

use super::ipv4::{self, ICMP, Ipv4};

/// Octets of outer IPv4 and ICMP header in front of the quoted packet.
pub const HEADERS: usize = ipv4::HEADER + 8;
/// Octets of the causing packet that are quoted at most: the whole error stays within 576 octets.
pub const QUOTED: usize = 576 - HEADERS;

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Destination unreachable, fragmentation needed and DF set; the next hop's MTU in octets.
    TooBig(u16),
    /// Time to live exceeded in transit.
    TimeExceeded,
}

/// Whether an error may be sent for this packet (RFC 1812 4.3.2.7): no ICMP error, no later fragment, no group, no
/// unspecified or loopback source. `payload` is what follows the IPv4 header.
pub fn may_answer(ip: &Ipv4, payload: &[u8]) -> bool {
    let query = [0, 8, 13, 14, 15, 16, 17, 18];
    let error = ip.protocol() == ICMP && !payload.first().is_some_and(|kind| query.contains(kind));
    let source = ip.source() >> 24 != 127 && ip.source() >> 24 != 0 && !ipv4::is_group(ip.source());
    !error && !ip.offset() && source && !ipv4::is_group(ip.destination())
}

/// Writes the headers of an error into the first [`HEADERS`] octets of `packet`; what follows quotes the causing packet.
/// Addresses in host order.
pub fn write(packet: &mut [u8], error: Error, from: u32, to: u32) {
    let total = packet.len() as u16;
    let (ip, icmp) = packet.split_at_mut(ipv4::HEADER);
    ip.copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0, 0, 64, ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[12..16].copy_from_slice(&from.to_be_bytes());
    ip[16..20].copy_from_slice(&to.to_be_bytes());
    ipv4::write_checksum(ip);
    let (kind, code, mtu) = match error {
        Error::TooBig(mtu) => (3, 4, mtu),
        Error::TimeExceeded => (11, 0, 0),
    };
    icmp[..8].fill(0);
    (icmp[0], icmp[1]) = (kind, code);
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    let sum = ipv4::checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(protocol: u8) -> Ipv4 {
        with(protocol, 6, 0)
    }

    /// With another octet in its header.
    fn with(protocol: u8, at: usize, octet: u8) -> Ipv4 {
        let mut octets = [
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3, 8, 0, 0, 0, 0, 0, 0, 0,
        ];
        octets[at] = octet;
        ipv4::write_checksum(&mut octets[..20]);
        ipv4::parse(&octets).unwrap()
    }

    #[test]
    fn errors_are_whole_packets() {
        for error in [Error::TooBig(1438), Error::TimeExceeded] {
            let mut packet = [0x77; HEADERS + 28];
            write(&mut packet, error, 0x0a01_0001, 0x0a01_0002);
            let ip = ipv4::parse(&packet).unwrap();
            assert_eq!((ip.source(), ip.destination(), ip.protocol()), (0x0a01_0001, 0x0a01_0002, ICMP));
            assert_eq!(ipv4::checksum(&packet[20..]), 0);
            assert_eq!(packet[HEADERS..], [0x77; 28]);
        }
    }

    #[test]
    fn errors_are_never_answered_and_queries_are() {
        assert!(may_answer(&ip(17), &[]));
        assert!(may_answer(&ip(ICMP), &[8]));
        assert!(!may_answer(&ip(ICMP), &[3]));
        assert!(!may_answer(&ip(ICMP), &[]));
        assert!(may_answer(&with(17, 6, 0x20), &[]), "the first fragment");
        assert!(!may_answer(&with(17, 7, 1), &[]), "another fragment");
        assert!(!may_answer(&with(17, 12, 0xe0), &[]));
    }
}
