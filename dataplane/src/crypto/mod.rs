//! Sealing and opening ESP payloads in bursts (RFC 4303, 4106): `path::encap` and `path::decap` enter jobs, an
//! [`Engine`] works on all of them at once and may interleave packets, keys and directions.

pub mod reference;

use penstock_tables::KeyBlock;

/// Octets of ICV behind every payload.
pub const TAG_LEN: usize = 16;

/// What a job asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Outbound: encrypt and write the tag.
    Seal,
    /// Inbound: verify the tag, then decrypt.
    Open,
}

/// Additional authenticated data of ESP: SPI and sequence number (8 octets), or with ESN 12 (RFC 4106 section 5).
#[derive(Clone, Copy, Debug)]
pub struct Aad {
    octets: [u8; 12],
    len: u8,
}

impl Aad {
    /// SPI and 32-bit sequence number.
    pub fn new(spi: u32, seq: u32) -> Aad {
        let mut octets = [0; 12];
        octets[..4].copy_from_slice(&spi.to_be_bytes());
        octets[4..8].copy_from_slice(&seq.to_be_bytes());
        Aad { octets, len: 8 }
    }

    /// SPI and 64-bit extended sequence number.
    pub fn with_esn(spi: u32, seq: u64) -> Aad {
        let mut octets = [0; 12];
        octets[..4].copy_from_slice(&spi.to_be_bytes());
        octets[4..].copy_from_slice(&seq.to_be_bytes());
        Aad { octets, len: 12 }
    }

    /// The octets that are authenticated.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }
}

/// One packet to seal or open, in place.
#[derive(Debug)]
pub struct Job<'a> {
    /// Expanded key of the SA.
    pub key: &'a KeyBlock,
    /// Explicit IV as it stands in the packet: the 64-bit sequence number, big endian.
    pub iv: [u8; 8],
    /// Additional authenticated data.
    pub aad: Aad,
    /// Seal or open.
    pub direction: Direction,
    /// Payload, padding and trailer, then [`TAG_LEN`] octets of tag.
    pub text: &'a mut [u8],
    /// Set by the engine: sealed, or opened with a tag that was right. Where it stays false on opening, `text` was
    /// wiped or left encrypted: plaintext is never seen unverified.
    pub done: bool,
}

/// Works on bursts of jobs. Implementations neither allocate nor block nor panic, whatever the jobs hold.
pub trait Engine: Send + Sync {
    /// The name that `--engine` takes.
    fn name(&self) -> &'static str;

    /// Does every job and sets its `done`.
    fn run(&self, jobs: &mut [Job<'_>]);
}
