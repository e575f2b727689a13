//! ESP (RFC 4303) with AES-GCM-16 (RFC 4106), plain or in UDP (RFC 3948): sizes, header, padding and trailer.

use super::read_u32;
use crate::crypto::TAG_LEN;

/// Octets of SPI and sequence number.
pub const HEADER: usize = 8;
/// Octets of explicit IV.
pub const IV: usize = 8;
/// Octets of UDP header where ESP is encapsulated.
pub const UDP_HEADER: usize = 8;
/// UDP port of IKE and ESP behind NAT.
pub const NAT_PORT: u16 = 4500;
/// Next header of an IPv4 packet in tunnel mode.
pub const NEXT_IPV4: u8 = 4;
/// Next header of a dummy packet (RFC 4303 section 2.6).
pub const NEXT_NONE: u8 = 59;
/// Octets of pad length and next header.
pub const TRAILER: usize = 2;

/// SPI and low half of the sequence number of a packet that is long enough to be ESP (RFC 4303 section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Esp {
    /// Security parameters index.
    pub spi: u32,
    /// Transmitted half of the sequence number.
    pub sequence: u32,
    /// Explicit IV.
    pub iv: [u8; IV],
}

/// Checks that header, IV, trailer and ICV are there and that the ciphertext is a multiple of 4 octets.
#[inline(always)]
pub fn parse(octets: &[u8]) -> Option<Esp> {
    let text = octets.len().checked_sub(HEADER + IV + TAG_LEN)?;
    let header = octets.first_chunk::<{ HEADER + IV }>()?;
    (text >= TRAILER && text.is_multiple_of(4)).then(|| Esp {
        spi: read_u32(header, 0),
        sequence: read_u32(header, 4),
        iv: [header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15]],
    })
}

/// Octets of padding that make `inner` octets and the trailer a multiple of 4 (RFC 4303 section 2.4).
#[inline(always)]
pub const fn padding(inner: usize) -> usize {
    inner.wrapping_add(TRAILER).wrapping_neg() & 3
}

/// Octets of ESP packet around `inner` octets.
#[inline(always)]
pub const fn sealed_len(inner: usize) -> usize {
    HEADER + IV + inner + padding(inner) + TRAILER + TAG_LEN
}

/// Writes padding (1, 2, 3 ...), pad length and next header into the first octets of `tail`.
#[inline(always)]
pub fn write_trailer(tail: &mut [u8], padding: usize, next_header: u8) {
    for (step, octet) in tail[..padding].iter_mut().enumerate() {
        *octet = step as u8 + 1;
    }
    tail[padding] = padding as u8;
    tail[padding + 1] = next_header;
}

/// Padding, pad length and next header of an IPv4 packet by octets of padding, in the first octets of each.
const TRAILERS: [[u8; 8]; 4] = [
    [0, NEXT_IPV4, 0, 0, 0, 0, 0, 0],
    [1, 1, NEXT_IPV4, 0, 0, 0, 0, 0],
    [1, 2, 2, NEXT_IPV4, 0, 0, 0, 0],
    [1, 2, 3, 3, NEXT_IPV4, 0, 0, 0],
];

/// The last four octets of a text with such a trailer: those that are looked at, and what they are.
const ENDS: [[u32; 2]; 4] = [
    [0x0000_ffff, 0x0000_0004],
    [0x00ff_ffff, 0x0001_0104],
    [0xffff_ffff, 0x0102_0204],
    [0xffff_ffff, 0x0203_0304],
];

/// Writes the trailer of an IPv4 packet with up to 3 octets of padding; what follows, up to 8 octets, is overwritten too.
#[inline(always)]
pub fn write_ipv4_trailer(tail: &mut [u8; 8], padding: usize) {
    *tail = TRAILERS[padding & 3];
}

/// Octets of payload of a decrypted text in which an IPv4 packet has no more padding than it needs (`write_ipv4_trailer`);
/// `None` where [`read_trailer`] must say more.
#[inline(always)]
pub fn read_ipv4_trailer(text: &[u8]) -> Option<usize> {
    let (rest, last) = text.split_last_chunk::<8>()?;
    let seen = read_u32(last, 4);
    let padding = (seen >> 8 & 0xff) as usize;
    let [mask, end] = *ENDS.get(padding)?;
    // Three octets of padding are one more than the four octets hold.
    (seen & mask == end && (padding < 3 || last[3] == 1)).then_some(rest.len() + 6 - padding)
}

/// Octets of payload and next header of a decrypted text; `None` where the padding is not as RFC 4303 2.4 says.
#[inline(never)]
pub fn read_trailer(text: &[u8]) -> Option<(usize, u8)> {
    let (rest, [padding, next_header]) = text.split_last_chunk::<TRAILER>()?;
    let payload = rest.len().checked_sub(usize::from(*padding))?;
    let right = rest[payload..].iter().enumerate().all(|(step, octet)| *octet == (step + 1) as u8);
    right.then_some((payload, *next_header))
}

/// Largest inner packet whose outer one, with this much outer header (IPv4 20, with UDP 28), fits into `mtu`.
pub const fn inner_mtu(mtu: u16, outer_header: usize) -> u16 {
    let room = (mtu as usize).saturating_sub(outer_header + HEADER + IV + TAG_LEN) & !3;
    room.saturating_sub(TRAILER) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_go_in_and_out() {
        for inner in 0..64 {
            let pad = padding(inner);
            assert_eq!((inner + pad + TRAILER) % 4, 0);
            let mut text = vec![0xaa; inner + pad + TRAILER];
            write_trailer(&mut text[inner..], pad, NEXT_IPV4);
            assert_eq!(read_trailer(&text), Some((inner, NEXT_IPV4)));
            let mut quick = [0; 8];
            write_ipv4_trailer(&mut quick, pad);
            assert_eq!(quick[..pad + TRAILER], text[inner..]);
            assert_eq!(read_ipv4_trailer(&text), (text.len() >= 8).then_some(inner));
            if pad > 0 {
                text[inner] ^= 1;
                assert_eq!((read_trailer(&text), read_ipv4_trailer(&text)), (None, None));
                text[inner] ^= 1;
            }
            text[inner + pad + 1] = NEXT_NONE;
            assert_eq!(read_ipv4_trailer(&text), None);
        }
        for pad in 0..=255usize {
            let mut text = vec![7; 300];
            write_trailer(&mut text[300 - TRAILER - pad..], pad, NEXT_NONE);
            assert_eq!(read_trailer(&text), Some((300 - TRAILER - pad, NEXT_NONE)));
            for at in 0..pad {
                let mut wrong = text.clone();
                wrong[300 - TRAILER - pad + at] ^= 0x40;
                assert_eq!(read_trailer(&wrong), None, "{at} of {pad}");
            }
        }
        assert_eq!(read_trailer(&[0x05, 200, 4]), None);
        assert_eq!(read_trailer(&[4]), None);
    }

    #[test]
    fn the_inner_mtu_is_the_largest_that_fits() {
        for header in [20, 28] {
            for mtu in 576..1600 {
                let inner = usize::from(inner_mtu(mtu, header));
                assert!(header + sealed_len(inner) <= usize::from(mtu));
                assert!(header + sealed_len(inner + 1) > usize::from(mtu));
            }
        }
        assert_eq!(inner_mtu(1500, 20), 1446);
    }

    #[test]
    fn short_packets_are_none() {
        let whole = [1u8; 36];
        assert!((0..36).all(|len| parse(&whole[..len]).is_none()));
        let esp = parse(&whole).unwrap();
        assert_eq!((esp.spi, esp.sequence), (0x0101_0101, 0x0101_0101));
        assert_eq!(parse(&[1u8; 37]), None);
    }
}
