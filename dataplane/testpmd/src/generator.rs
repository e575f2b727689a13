//! Packets of a benchmark: prepared frames, in a huge page where one is free, enter; fresh mbufs leave, as a NIC would have
//! written them, each with the address of the next tunnel.

use std::ops::Range;

use crate::huge::Block;
use penstock_dataplane::dpdk::{Mbuf, Pool};
use penstock_dataplane::port::{Burst, Frame};
use penstock_dataplane::wire::{ethernet, ipv4};

/// Octets in front of the payload: Ethernet, IPv4, UDP.
pub const HEADERS: usize = ethernet::HEADER + ipv4::HEADER + 8;
/// First network of the far side: tunnel number `n` has the `n`th /24 from here.
pub const FAR: u32 = 16 << 24;
/// Length of the prefix of all far networks.
pub const FAR_PREFIX: u8 = 4;
/// Source of every packet.
pub const NEAR: u32 = 0x0a00_0002;
/// From one prepared frame to the next.
const STRIDE: usize = 2048;

/// See the module.
pub struct Generator {
    pool: Pool,
    burst: usize,
    tunnels: Range<u32>,
    next_tunnel: u32,
    /// One prepared frame per entry of the pattern, [`STRIDE`] apart.
    frames: Block,
    lens: Vec<usize>,
    next_frame: usize,
}

impl Generator {
    /// Packets to these tunnels (at least one), round and round, beginning with number `first`, `burst` at a time.
    pub fn new(pool: Pool, burst: u16, tunnels: Range<u32>, first: u32) -> Generator {
        Generator {
            pool,
            burst: usize::from(burst),
            next_tunnel: first.clamp(tunnels.start, tunnels.end - 1),
            tunnels,
            frames: Block::new(STRIDE),
            lens: vec![],
            next_frame: 0,
        }
    }

    /// Prepares packets of these inner sizes, in octets, with `mac` as their destination.
    pub fn set_pattern(&mut self, mac: [u8; 6], pattern: &[usize]) {
        self.frames = Block::new(pattern.len() * STRIDE);
        self.lens = pattern.iter().map(|inner| ethernet::HEADER + inner).collect();
        for (place, inner) in self.frames.chunks_exact_mut(STRIDE).zip(pattern) {
            prepare(&mut place[..ethernet::HEADER + inner], mac, *inner);
        }
        self.next_frame = 0;
    }

    /// Whether the prepared frames lie in huge pages.
    pub fn in_huge_pages(&self) -> bool {
        self.frames.is_huge()
    }

    /// Appends one burst of fresh packets.
    #[inline]
    pub fn fill(&mut self, burst: &mut Burst<Mbuf>) {
        let count = self.burst.min(burst.room());
        if !self.pool.allocate_burst(burst, count) {
            return;
        }
        let start = burst.len() - count;
        for frame in &mut burst[start..] {
            self.write(frame);
        }
    }

    /// Makes an empty frame the next packet.
    #[inline(always)]
    pub fn write(&mut self, frame: &mut Mbuf) {
        let (at, len) = (self.next_frame, self.lens[self.next_frame]);
        self.next_frame = if at + 1 == self.lens.len() { 0 } else { at + 1 };
        if let Some(octets) = frame.append(len) {
            octets.copy_from_slice(&self.frames[at * STRIDE..at * STRIDE + len]);
            let tunnel = self.next_tunnel;
            self.next_tunnel = if tunnel + 1 == self.tunnels.end { self.tunnels.start } else { tunnel + 1 };
            address(octets, tunnel);
        }
    }
}

/// Writes the destination in the tunnel's network, with the checksum that follows from it.
#[inline(always)]
fn address(frame: &mut [u8], tunnel: u32) {
    let header = &mut frame[ethernet::HEADER..ethernet::HEADER + ipv4::HEADER];
    header[16..20].copy_from_slice(&(FAR + (tunnel << 8) + 1).to_be_bytes());
    ipv4::write_checksum(header);
}

/// Ethernet, IPv4 and UDP around a payload of 0x5a; `frame` has the whole length.
fn prepare(frame: &mut [u8], mac: [u8; 6], inner: usize) {
    frame.fill(0x5a);
    ethernet::write(&mut frame[..ethernet::HEADER], mac, [2, 0, 0, 0, 0, 9], 0);
    let header = &mut frame[ethernet::HEADER..HEADERS];
    header.fill(0);
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(inner as u16).to_be_bytes());
    // Don't fragment; TTL 64; UDP.
    header[6] = 0x40;
    header[8..10].copy_from_slice(&[64, ipv4::UDP]);
    header[12..16].copy_from_slice(&NEAR.to_be_bytes());
    header[20..24].copy_from_slice(&[0x13, 0x88, 0x13, 0x89]);
    header[24..26].copy_from_slice(&((inner - ipv4::HEADER) as u16).to_be_bytes());
}
