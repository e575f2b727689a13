//! IPv4 packets and Ethernet frames for tests, written apart from `wire`, so that a mistake there is not repeated here
//! (RFC 791, RFC 1071).

/// An address in host order.
pub const fn ip(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// UDP.
pub const UDP: u8 = 17;
/// ICMP.
pub const ICMP: u8 = 1;
/// ESP.
pub const ESP: u8 = 50;

/// An IPv4 packet, field by field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source, host order.
    pub source: u32,
    /// Destination, host order.
    pub destination: u32,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Reserved bit, don't-fragment, more fragments and offset, as they stand in the header.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Options, a multiple of 4 octets.
    pub options: Vec<u8>,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// Don't-fragment in [`Packet::fragment`].
pub const DF: u16 = 0x4000;
/// More fragments in [`Packet::fragment`].
pub const MF: u16 = 0x2000;

impl Packet {
    /// A packet of `total` octets (at least 20) with a payload that varies.
    pub fn new(source: u32, destination: u32, protocol: u8, total: usize) -> Packet {
        let payload = (20..total).map(|at| (at * 7 + 3) as u8).collect();
        Packet {
            source,
            destination,
            tos: 0,
            id: 0x1234,
            fragment: 0,
            ttl: 64,
            protocol,
            options: vec![],
            payload,
        }
    }

    /// A UDP datagram; its payload's checksum is 0.
    pub fn udp(source: (u32, u16), destination: (u32, u16), payload: &[u8]) -> Packet {
        let mut datagram = vec![];
        for field in [source.1, destination.1, payload.len() as u16 + 8, 0] {
            datagram.extend(field.to_be_bytes());
        }
        datagram.extend(payload);
        Packet { payload: datagram, ..Packet::new(source.0, destination.0, UDP, 20) }
    }

    /// The octets, header checksum and all.
    pub fn octets(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let mut octets = vec![0x40 | (header / 4) as u8, self.tos];
        octets.extend(((header + self.payload.len()) as u16).to_be_bytes());
        octets.extend(self.id.to_be_bytes());
        octets.extend(self.fragment.to_be_bytes());
        octets.extend([self.ttl, self.protocol, 0, 0]);
        octets.extend(self.source.to_be_bytes());
        octets.extend(self.destination.to_be_bytes());
        octets.extend(&self.options);
        let sum = checksum(&octets).to_be_bytes();
        octets[10..12].copy_from_slice(&sum);
        octets.extend(&self.payload);
        octets
    }

    /// The packet that `octets` are; they must be one, whole and with a right checksum, and nothing more.
    pub fn parse(octets: &[u8]) -> Packet {
        let header = usize::from(octets[0] & 0xf) * 4;
        let word = |at: usize| u16::from_be_bytes([octets[at], octets[at + 1]]);
        let address = |at: usize| u32::from(word(at)) << 16 | u32::from(word(at + 2));
        assert_eq!(octets[0] >> 4, 4, "version");
        assert_eq!(usize::from(word(2)), octets.len(), "total length");
        assert_eq!(checksum(&octets[..header]), 0, "header checksum");
        Packet {
            source: address(12),
            destination: address(16),
            tos: octets[1],
            id: word(4),
            fragment: word(6),
            ttl: octets[8],
            protocol: octets[9],
            options: octets[20..header].to_vec(),
            payload: octets[header..].to_vec(),
        }
    }

    /// The packet after one hop.
    pub fn forwarded(&self) -> Packet {
        Packet { ttl: self.ttl - 1, ..self.clone() }
    }
}

/// The Internet checksum, two octets at a time (RFC 1071); 0 over what carries a right one.
pub fn checksum(octets: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in octets.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame with an IPv4 packet or what may look like one; `vlan` adds a tag.
pub fn frame(destination: [u8; 6], source: [u8; 6], vlan: Option<u16>, packet: &[u8]) -> Vec<u8> {
    frame_of(destination, source, vlan, 0x0800, packet)
}

/// A frame of any EtherType.
pub fn frame_of(to: [u8; 6], from: [u8; 6], vlan: Option<u16>, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    if let Some(tag) = vlan {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}
