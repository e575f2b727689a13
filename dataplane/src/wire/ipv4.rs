//! IPv4 (RFC 791): octets in, a checked value out; TTL, ECN (RFC 3168) and checksums (RFC 1071, 1624) changed in place.

use super::read_u16;

/// Octets of a header without options.
pub const HEADER: usize = 20;
/// Protocol numbers.
pub const ICMP: u8 = 1;
/// UDP.
pub const UDP: u8 = 17;
/// ESP.
pub const ESP: u8 = 50;

/// A whole, well-formed header without its options, in network order: what it says is read where it is asked for. In words,
/// as it is read and written: a load that spans several stores which are still on their way has to wait for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    words: [u32; HEADER / 4],
}

impl Ipv4 {
    /// No packet.
    pub const NOTHING: Ipv4 = Ipv4 { words: [0; HEADER / 4] };

    #[inline(always)]
    fn new(header: &[u8; HEADER]) -> Ipv4 {
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Ipv4 { words: [word(0), word(4), word(8), word(12), word(16)] }
    }

    #[inline(always)]
    fn octet(&self, at: usize) -> u8 {
        self.words[at / 4].to_ne_bytes()[at % 4]
    }

    /// Source address, host order.
    #[inline(always)]
    pub fn source(&self) -> u32 {
        u32::from_be(self.words[3])
    }

    /// Destination address, host order.
    #[inline(always)]
    pub fn destination(&self) -> u32 {
        u32::from_be(self.words[4])
    }

    /// Octets of header and payload.
    #[inline(always)]
    pub fn total_len(&self) -> u16 {
        u32::from_be(self.words[0]) as u16
    }

    /// Octets of header, 20 to 60.
    #[inline(always)]
    pub fn header_len(&self) -> u8 {
        (self.octet(0) & 0xf) * 4
    }

    /// DSCP and ECN.
    #[inline(always)]
    pub fn tos(&self) -> u8 {
        self.octet(1)
    }

    /// Time to live.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.octet(8)
    }

    /// Protocol behind the header.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        self.octet(9)
    }

    /// Don't-fragment.
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        self.octet(6) & 0x40 != 0
    }

    /// More fragments, or an offset: not a whole packet.
    #[inline(always)]
    pub fn fragment(&self) -> bool {
        u32::from_be(self.words[1]) & 0x3fff != 0
    }

    /// A fragment other than the first.
    #[inline(always)]
    pub fn offset(&self) -> bool {
        u32::from_be(self.words[1]) & 0x1fff != 0
    }

    /// The one's complement sum of its words, not folded.
    #[inline(always)]
    fn sum(&self) -> u64 {
        self.words.iter().map(|word| u64::from(*word)).sum()
    }

    /// The same with other ECN bits.
    #[inline]
    pub fn with_ecn(self, ecn: u8) -> Ipv4 {
        let mut octets = [0; HEADER];
        octets.iter_mut().enumerate().for_each(|(at, octet)| *octet = self.octet(at));
        set_ecn(&mut octets, ecn);
        Ipv4::new(&octets)
    }

    /// Writes the header into `packet` as it leaves: one hop taken from its TTL (at least 1; RFC 1812 5.3.1) and the checksum
    /// mended (RFC 1624). The packet's own octets are not read, since some of them may just have been written.
    #[inline(always)]
    pub fn forward(&self, packet: &mut [u8]) {
        let Some(place) = packet.get_mut(8..12) else { return };
        let word = u32::from_be(self.words[2]);
        // One less in the first octet of a word: one more, end-around, in the complement of the sum.
        let sum = (word & 0xffff) + 0x100;
        let sum = (sum + u32::from(sum >= 0xffff)) & 0xffff;
        place.copy_from_slice(&(word.wrapping_sub(1 << 24) & 0xffff_0000 | sum).to_be_bytes());
    }
}

/// Why octets are no IPv4 packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Version, header length or total length.
    Malformed,
    /// Header checksum.
    Checksum,
}

/// Checks version, lengths (against what is there) and checksum.
///
/// # Errors
/// [`Wrong`].
#[inline(always)]
pub fn parse(octets: &[u8]) -> Result<Ipv4, Wrong> {
    let Some(header) = octets.first_chunk::<HEADER>() else { return Err(Wrong::Malformed) };
    let ip = Ipv4::new(header);
    let total_len = usize::from(ip.total_len());
    if header[0] != 0x45 {
        if let Some(wrong) = wrong_options(octets, total_len) {
            return Err(wrong);
        }
    } else if total_len < HEADER || total_len > octets.len() {
        return Err(Wrong::Malformed);
    } else if !folds_to_ones(ip.sum()) {
        return Err(Wrong::Checksum);
    }
    Ok(ip)
}

/// Whether a sum that is not 0 folds to 0xffff: where it is a multiple of it, that is where the product with its inverse
/// modulo 2^64 is no more than what multiples are there.
#[inline(always)]
fn folds_to_ones(sum: u64) -> bool {
    const INVERSE: u64 = 0xfffe_fffe_fffe_ffff;
    const _: () = assert!(INVERSE.wrapping_mul(0xffff) == 1);
    sum.wrapping_mul(INVERSE) <= u64::MAX / 0xffff
}

/// What is wrong with a header of another length than most. Hands no header out: a value that comes back through memory here
/// would go through memory on the common way too.
#[cold]
#[inline(never)]
fn wrong_options(octets: &[u8], total_len: usize) -> Option<Wrong> {
    let first = octets.first().copied().unwrap_or_default();
    let header_len = usize::from(first & 0xf) * 4;
    let lengths = HEADER <= header_len && header_len <= total_len && total_len <= octets.len();
    if first >> 4 != 4 || !lengths {
        return Some(Wrong::Malformed);
    }
    (checksum(&octets[..header_len]) != 0).then_some(Wrong::Checksum)
}

/// The Internet checksum of an even or odd number of octets; 0 over a header whose checksum is right.
#[inline(always)]
pub fn checksum(octets: &[u8]) -> u16 {
    !fold(sum_of(octets)).to_be()
}

/// The one's complement sum of 16-bit words, not folded, in the machine's order of octets (RFC 1071 section 2).
#[inline(always)]
fn sum_of(octets: &[u8]) -> u64 {
    let mut chunks = octets.chunks_exact(4);
    let word = |octets: &[u8]| u64::from(u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]));
    let mut sum: u64 = chunks.by_ref().map(word).sum();
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        sum += word(&last);
    }
    sum
}

/// Brings a sum of up to 2^32 words to 16 bits, carries around the end.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let (low, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    let low = low.wrapping_add(u32::from(carry));
    (low.wrapping_add(low.rotate_left(16)) >> 16) as u16
}

/// Writes the checksum of a header whose checksum field may hold anything.
#[inline(always)]
pub fn write_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = checksum(header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The one's complement sum of a template's words, folded to 32 bits: for [`complete`].
#[inline]
pub fn template_sum(template: &[u8; HEADER]) -> u32 {
    let sum = Ipv4::new(template).sum();
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    sum.wrapping_add(u32::from(carry))
}

/// Writes DSCP and ECN, length, identification, don't-fragment and checksum into a header that has zeros there. `sum` is
/// that of the header before ([`template_sum`]): nothing is read back that was just written.
#[inline(always)]
pub fn complete(
    header: &mut [u8; HEADER],
    sum: u32,
    tos: u8,
    total_len: u16,
    identification: u16,
    dont_fragment: bool,
) {
    let flags = u16::from(dont_fragment) << 14;
    let first = u32::from(tos) << 16 | u32::from(total_len);
    let second = u32::from(identification) << 16 | u32::from(flags);
    let sum = u64::from(sum) + u64::from(first.to_be()) + u64::from(second.to_be());
    header[..4].copy_from_slice(&(first | 0x4500_0000).to_be_bytes());
    header[4..8].copy_from_slice(&second.to_be_bytes());
    header[10..12].copy_from_slice(&(!fold(sum)).to_ne_bytes());
}

/// Changes the two ECN bits and mends the checksum.
#[inline(always)]
pub fn set_ecn(header: &mut [u8], ecn: u8) {
    let old = read_u16(header, 0);
    header[1] = (header[1] & !3) | (ecn & 3);
    mend_checksum(header, old, read_u16(header, 0));
}

#[inline(always)]
fn mend_checksum(header: &mut [u8], old: u16, new: u16) {
    let sum = fold(u64::from(!read_u16(header, 10)) + u64::from(!old) + u64::from(new));
    header[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// Congestion experienced.
pub const CE: u8 = 3;
/// ECN-capable, codepoint ECT(1).
pub const ECT_1: u8 = 1;

/// ECN of a decapsulated packet from those of the outer and the inner header (RFC 6040 figure 4); `None`: drop it.
#[inline(always)]
pub fn ecn_after_tunnel(outer: u8, inner: u8) -> Option<u8> {
    match (outer & 3, inner & 3) {
        (CE, 0) => None,
        (CE, _) => Some(CE),
        (ECT_1, 2) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

/// Whether an address is a group or the limited broadcast: never forwarded.
#[inline(always)]
pub fn is_group(address: u32) -> bool {
    address >> 28 >= 0xe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(total: u16) -> [u8; 28] {
        let mut octets = [0u8; 28];
        octets[..20].copy_from_slice(&[
            0x45, 0xb8, 0, 0, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 2, 10, 2, 0, 3,
        ]);
        octets[2..4].copy_from_slice(&total.to_be_bytes());
        write_checksum(&mut octets[..20]);
        octets
    }

    #[test]
    fn a_right_header_is_read() {
        let ip = parse(&header(28)).unwrap();
        assert_eq!(
            (ip.source(), ip.destination(), ip.total_len(), ip.header_len()),
            (0x0a01_0002, 0x0a02_0003, 28, 20)
        );
        assert_eq!((ip.tos(), ip.ttl(), ip.protocol()), (0xb8, 64, 17));
        assert_eq!((ip.dont_fragment(), ip.fragment(), ip.offset()), (true, false, false));
        assert_eq!((ip.with_ecn(3).tos(), ip.with_ecn(3).total_len()), (0xbb, 28));
    }

    #[test]
    fn wrong_headers_are_refused() {
        let right = header(28);
        for len in 0..28 {
            assert_eq!(parse(&right[..len]), Err(Wrong::Malformed), "{len}");
        }
        let mut version = right;
        version[0] = 0x65;
        assert_eq!(parse(&version), Err(Wrong::Malformed));
        let mut length = right;
        length[0] = 0x44;
        assert_eq!(parse(&length), Err(Wrong::Malformed));
        assert_eq!(parse(&header(19)), Err(Wrong::Malformed));
        for at in 1..20 {
            let mut flipped = right;
            flipped[at] ^= 0x10;
            assert!(parse(&flipped).is_err(), "octet {at}");
        }
    }

    #[test]
    fn completed_headers_are_right() {
        for step in 0..1000u16 {
            let mut template = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 50, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7];
            template[15] = step as u8;
            let mut header = template;
            complete(
                &mut header,
                template_sum(&template),
                step as u8,
                20 + step,
                step.wrapping_mul(77),
                step % 2 == 0,
            );
            assert_eq!(checksum(&header), 0, "{step}");
            let mut octets = vec![0; 20 + usize::from(step)];
            octets[..20].copy_from_slice(&header);
            let ip = parse(&octets).unwrap();
            assert_eq!((ip.tos(), ip.total_len()), (step as u8, 20 + step));
            assert_eq!(ip.dont_fragment(), step % 2 == 0);
        }
    }

    #[test]
    fn multiples_of_ones_fold_to_ones() {
        for sum in (1..300_000).chain(0x4_ffff_0000..0x5_0002_0000) {
            assert_eq!(folds_to_ones(sum), fold(sum) == 0xffff, "{sum:x}");
        }
    }

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let slow = |octets: &[u8]| {
            let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            let mut sum: u32 = octets.chunks(2).map(word).sum();
            while sum >> 16 != 0 {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            !(sum as u16)
        };
        let octets: Vec<u8> = (0..600u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for len in 0..octets.len() {
            assert_eq!(checksum(&octets[..len]), slow(&octets[..len]), "{len}");
        }
        assert_eq!(checksum(&[0xff; 60]), slow(&[0xff; 60]));
    }

    #[test]
    fn mended_checksums_are_right() {
        for ttl in 1..=255u8 {
            for tos in 0..=255u8 {
                let mut octets = header(28);
                (octets[8], octets[1]) = (ttl, tos);
                write_checksum(&mut octets[..20]);
                let ip = parse(&octets).unwrap().with_ecn(tos >> 3);
                set_ecn(&mut octets, tos >> 3);
                ip.forward(&mut octets);
                assert_eq!((octets[8], octets[1] & 3), (ttl - 1, tos >> 3 & 3));
                assert_eq!(checksum(&octets[..20]), 0, "ttl {ttl} tos {tos}");
            }
        }
    }

    #[test]
    fn ecn_follows_rfc_6040() {
        let (not_ect, ect1, ect0, ce) = (0, 1, 2, 3);
        assert_eq!(ecn_after_tunnel(ce, not_ect), None);
        assert_eq!(ecn_after_tunnel(ce, ect0), Some(ce));
        assert_eq!(ecn_after_tunnel(ect1, ect0), Some(ect1));
        assert_eq!(ecn_after_tunnel(ect0, ect1), Some(ect1));
        assert_eq!(ecn_after_tunnel(ect0, not_ect), Some(not_ect));
        assert_eq!(ecn_after_tunnel(not_ect, ce), Some(ce));
    }
}
