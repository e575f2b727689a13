//! Ethernet II with at most one 802.1Q tag: a frame in, what its header says out.

use super::read_u16;

/// Octets of an untagged header.
pub const HEADER: usize = 14;
/// Octets of an 802.1Q tag.
pub const TAG: usize = 4;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
const VLAN: u16 = 0x8100;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// 802.1Q VLAN identifier; `None` without a tag. 0 is a priority tag.
    pub vlan: Option<u16>,
    /// EtherType behind the tag.
    pub ether_type: u16,
}

/// Reads the header; `None` where the frame is shorter than it.
#[inline(always)]
pub fn parse(frame: &[u8]) -> Option<Ethernet> {
    let (header, rest) = frame.split_first_chunk::<HEADER>()?;
    let destination = [header[0], header[1], header[2], header[3], header[4], header[5]];
    let ether_type = read_u16(header, 12);
    if ether_type != VLAN {
        return Some(Ethernet { destination, vlan: None, ether_type });
    }
    let tag = rest.first_chunk::<TAG>()?;
    Some(Ethernet { destination, vlan: Some(read_u16(tag, 0) & 0xfff), ether_type: read_u16(tag, 2) })
}

/// Whether this is an untagged IPv4 packet to `mac`.
#[inline(always)]
pub fn is_ipv4_to(frame: &[u8], mac: [u8; 6]) -> bool {
    let Some(header) = frame.first_chunk::<HEADER>() else { return false };
    let [a, b, c, d, e, f, g, h, ..] = *header;
    let found = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let [a, b, c, d, e, f] = mac;
    let wanted = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
    (found ^ wanted) << 16 == 0 && header[12..] == IPV4.to_be_bytes()
}

/// Octets of the header that [`write`] makes for a port with this VLAN (0: untagged).
#[inline(always)]
pub const fn header_len(vlan: u16) -> usize {
    if vlan == 0 { HEADER } else { HEADER + TAG }
}

/// Writes a header of [`header_len`] octets for an IPv4 packet.
#[inline(always)]
pub fn write(header: &mut [u8], destination: [u8; 6], source: [u8; 6], vlan: u16) {
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    if vlan == 0 {
        header[12..14].copy_from_slice(&IPV4.to_be_bytes());
    } else {
        header[12..14].copy_from_slice(&VLAN.to_be_bytes());
        header[14..16].copy_from_slice(&vlan.to_be_bytes());
        header[16..18].copy_from_slice(&IPV4.to_be_bytes());
    }
}

/// Writes an 802.1Q tag into a frame that was grown by [`TAG`] octets at its front.
#[inline]
pub fn insert_tag(frame: &mut [u8], vlan: u16) {
    frame.copy_within(TAG..TAG + 12, 0);
    frame[12..14].copy_from_slice(&VLAN.to_be_bytes());
    frame[14..16].copy_from_slice(&vlan.to_be_bytes());
}

/// Moves the addresses over the tag, so that the frame is untagged without its first [`TAG`] octets.
#[inline]
pub fn remove_tag(frame: &mut [u8]) {
    frame.copy_within(0..12, TAG);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_go_in_and_out() {
        let mut frame = [0u8; 64];
        write(&mut frame[TAG..TAG + HEADER], [1; 6], [2; 6], 0);
        let untagged = frame;
        insert_tag(&mut frame, 0x123);
        let header = parse(&frame).unwrap();
        assert_eq!(header, Ethernet { destination: [1; 6], vlan: Some(0x123), ether_type: IPV4 });
        remove_tag(&mut frame);
        assert_eq!(frame[TAG..], untagged[TAG..]);
        let mut direct = [0u8; 18];
        write(&mut direct, [1; 6], [2; 6], 0x123);
        assert_eq!(parse(&direct), Some(header));
    }

    #[test]
    fn every_short_frame_is_none() {
        let mut tagged = [0u8; 18];
        write(&mut tagged, [1; 6], [2; 6], 5);
        assert!((0..18).all(|len| parse(&tagged[..len]).is_none()));
        assert!(parse(&tagged).is_some());
    }
}
