//! Ports of a benchmark: a generator that writes fresh packets into mbufs, a queue from one worker to the next, and a sink.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::dpdk::{Mbuf, Pool};
use crate::port::{BURST, Burst, Frame, Port};
use crate::wire::ethernet;
use crate::wire::ipv4;

/// Octets in front of the payload: Ethernet, IPv4, UDP.
const HEADERS: usize = ethernet::HEADER + ipv4::HEADER + 8;
/// First network of the far side: tunnel number `n` has the `n`th /24 from here.
pub const FAR: u32 = 11 << 24;
/// Source of every packet.
pub const NEAR: u32 = 0x0a00_0002;

/// What goes in: packets of a pattern of sizes, each for the next tunnel.
pub struct Generator {
    pool: Pool,
    burst: usize,
    tunnels: u32,
    next_tunnel: u32,
    /// One prepared frame per entry of the pattern.
    frames: Vec<Vec<u8>>,
    next_frame: usize,
}

impl Generator {
    /// Packets to `tunnels` tunnels, `burst` at a time, with `mac` as their destination.
    pub fn new(pool: Pool, burst: u16, tunnels: u32) -> Generator {
        Generator {
            pool,
            burst: usize::from(burst),
            tunnels,
            next_tunnel: 0,
            frames: Vec::new(),
            next_frame: 0,
        }
    }

    /// Prepares packets of these inner sizes, in octets.
    pub fn set_pattern(&mut self, mac: [u8; 6], pattern: &[usize]) {
        self.frames = pattern.iter().map(|inner| prepare(mac, *inner)).collect();
        self.next_frame = 0;
    }

    /// Appends one burst of fresh packets.
    fn fill(&mut self, burst: &mut Burst<Mbuf>) {
        let count = self.burst.min(burst.room());
        if !self.pool.allocate_burst(burst, count) {
            return;
        }
        let start = burst.len() - count;
        for frame in &mut burst[start..] {
            let prepared = &self.frames[self.next_frame];
            self.next_frame = (self.next_frame + 1) % self.frames.len();
            if let Some(octets) = frame.append(prepared.len()) {
                octets.copy_from_slice(prepared);
                let tunnel = self.next_tunnel;
                self.next_tunnel = if tunnel + 1 == self.tunnels { 0 } else { tunnel + 1 };
                address(octets, tunnel);
            }
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

fn prepare(mac: [u8; 6], inner: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; ethernet::HEADER + inner.max(HEADERS - ethernet::HEADER)];
    ethernet::write(&mut frame[..ethernet::HEADER], mac, [2, 0, 0, 0, 0, 9], 0);
    let header = &mut frame[ethernet::HEADER..HEADERS];
    header.copy_from_slice(&[
        0x45,
        0,
        0,
        0,
        0,
        0,
        0x40,
        0,
        64,
        ipv4::UDP,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x13,
        0x88,
        0x13,
        0x89,
        0,
        0,
        0,
        0,
    ]);
    header[2..4].copy_from_slice(&(inner as u16).to_be_bytes());
    header[12..16].copy_from_slice(&NEAR.to_be_bytes());
    header[24..26].copy_from_slice(&((inner - ipv4::HEADER) as u16).to_be_bytes());
    frame
}

/// The port of a benchmark's worker.
pub enum BenchPort {
    /// Gives fresh packets; never takes one.
    Source(Box<Generator>),
    /// Hands packets from the worker that sends to the one that receives.
    Wire(Rc<RefCell<Burst<Mbuf>>>),
    /// Takes and frees packets, and counts them.
    Sink(Rc<Cell<u64>>),
}

impl BenchPort {
    /// The generator of a source.
    pub fn generator(&mut self) -> Option<&mut Generator> {
        match self {
            BenchPort::Source(generator) => Some(generator),
            _ => None,
        }
    }
}

impl Port for BenchPort {
    type Frame = Mbuf;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        let before = burst.len();
        match self {
            BenchPort::Source(generator) => generator.fill(burst),
            BenchPort::Wire(wire) => {
                let mut wire = wire.borrow_mut();
                let count = wire.len().min(burst.room());
                burst.extend(wire.drain(..count));
            }
            BenchPort::Sink(_) => {}
        }
        burst.len() - before
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        match self {
            BenchPort::Source(_) => 0,
            BenchPort::Wire(wire) => {
                let mut wire = wire.borrow_mut();
                let count = wire.room().min(burst.len());
                wire.extend(burst.drain(..count));
                count
            }
            BenchPort::Sink(count) => {
                let taken = burst.len();
                count.set(count.get() + taken as u64);
                burst.clear();
                taken
            }
        }
    }

    fn allocate(&mut self) -> Option<Mbuf> {
        None
    }
}

const _: () = assert!(BURST == 64);
