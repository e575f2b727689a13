//! Header formats: octets in, checked-once values out, and back. Pure: no I/O, no `unsafe`, no state.

pub mod esp;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;

/// Two octets of `octets` at `at`, big endian; the caller has checked the length.
#[inline(always)]
pub(crate) fn read_u16(octets: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([octets[at], octets[at + 1]])
}

/// Four octets of `octets` at `at`, big endian; the caller has checked the length.
#[inline(always)]
pub(crate) fn read_u32(octets: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}
