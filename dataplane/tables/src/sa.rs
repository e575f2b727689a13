//! Security associations in `tables` (RFC 4301 section 4.4.2): the hot lines of the inbound and the outbound direction.
//! Each stands behind its key ([`Keyed`]); what workers write about them stands in `state` at the same index.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::key::KeyBlock;
use crate::slot::SlotHead;

/// IPv4 (20), UDP (8) header of an outer packet, with lengths, identification and checksums zero.
pub type OuterTemplate = [u8; 28];

pub(crate) const ESN: u8 = 1;
pub(crate) const UDP: u8 = 2;

/// A key and the SA that it belongs to, in one slot of an array.
///
/// Seventeen cache lines: with an odd number of them between two keys, the lines that every packet needs spread over all
/// sets of a cache. With keys 1 KiB apart they would fall into an eighth of the sets, and 32 SAs would fill these.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Keyed<S> {
    pub(crate) key: KeyBlock,
    pub(crate) sa: S,
}

const _: () =
    assert!((size_of::<Keyed<OutboundSa>>() / 64) % 2 == 1 && (size_of::<Keyed<InboundSa>>() / 64) % 2 == 1);

/// One outbound SA: one cache line, written by control. The head's tag is the SPI.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct OutboundSa {
    pub(crate) head: SlotHead,
    pub(crate) offset: u64,
    pub(crate) hard: AtomicU64,
    pub(crate) epoch: u32,
    pub(crate) tunnel: AtomicU32,
    pub(crate) flags: u8,
    pub(crate) soft_log2: u8,
    pub(crate) dont_fragment: u8,
    pub(crate) reserved: u8,
    pub(crate) template: OuterTemplate,
}

const _: () = assert!(size_of::<OutboundSa>() == 64 && std::mem::offset_of!(OutboundSa, template) == 36);

impl OutboundSa {
    /// The SPI, where the SA is live.
    #[inline(always)]
    pub fn spi(&self) -> Option<u32> {
        self.head.live()
    }

    /// The life of the slot.
    pub fn head(&self) -> &SlotHead {
        &self.head
    }

    /// Place of the SA on its word of `state` (`sequence`).
    #[inline(always)]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The last sequence number that may be used. Control may raise it.
    #[inline(always)]
    pub fn hard_limit(&self) -> u64 {
        self.hard.load(Ordering::Acquire)
    }

    /// From this number on, control is asked for a rekey.
    #[inline(always)]
    pub fn soft_limit(&self) -> u64 {
        self.hard_limit().saturating_sub(1u64.checked_shl(u32::from(self.soft_log2)).unwrap_or(0))
    }

    /// The `state` segment that the SA counts in.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The tunnel's slot whose selectors were negotiated with it (RFC 4301 section 5.2).
    #[inline(always)]
    pub fn tunnel(&self) -> u32 {
        self.tunnel.load(Ordering::Relaxed)
    }

    /// Whether 64-bit sequence numbers are authenticated (RFC 4303 section 2.2.1).
    #[inline(always)]
    pub fn esn(&self) -> bool {
        self.flags & ESN != 0
    }

    /// Whether packets are encapsulated in UDP (RFC 3948).
    #[inline(always)]
    pub fn udp(&self) -> bool {
        self.flags & UDP != 0
    }

    /// What becomes of the outer don't-fragment bit; see [`crate::tunnel::DontFragment`].
    #[inline(always)]
    pub fn dont_fragment(&self) -> u8 {
        self.dont_fragment
    }

    /// The outer headers; without UDP only the first 20 octets count.
    #[inline(always)]
    pub fn template(&self) -> &OuterTemplate {
        &self.template
    }
}

/// One inbound SA: one cache line, written by control. The head's tag is the SPI.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct InboundSa {
    pub(crate) head: SlotHead,
    pub(crate) base: AtomicU64,
    pub(crate) epoch: u32,
    pub(crate) tunnel: AtomicU32,
    pub(crate) window: u32,
    pub(crate) flags: u8,
    pub(crate) reserved: [u8; 3],
    pub(crate) source: AtomicU64,
    pub(crate) spare: [u64; 3],
}

const _: () = assert!(size_of::<InboundSa>() == 64);

impl InboundSa {
    /// The SPI, where the SA is live.
    #[inline(always)]
    pub fn spi(&self) -> Option<u32> {
        self.head.live()
    }

    /// The life of the slot.
    pub fn head(&self) -> &SlotHead {
        &self.head
    }

    /// Place of the SA on its replay ring.
    #[inline(always)]
    pub fn base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// The `state` segment that the SA's window is in.
    #[inline(always)]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The tunnel's slot whose selectors were negotiated with it (RFC 4301 section 5.2).
    #[inline(always)]
    pub fn tunnel(&self) -> u32 {
        self.tunnel.load(Ordering::Relaxed)
    }

    /// Where its packets in UDP come from ([`crate::events::Source`], packed), where control wants to hear of another
    /// source; 0 where it does not.
    #[inline(always)]
    pub fn source(&self) -> u64 {
        self.source.load(Ordering::Relaxed)
    }

    /// Replay window, in packets.
    #[inline(always)]
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Whether 64-bit sequence numbers are authenticated (RFC 4303 section 2.2.1).
    #[inline(always)]
    pub fn esn(&self) -> bool {
        self.flags & ESN != 0
    }
}

/// What an outbound SA is installed with.
#[derive(Debug)]
pub struct OutboundSpec {
    /// SPI that the receiver chose.
    pub spi: u32,
    /// Slot of the tunnel.
    pub tunnel: u32,
    /// Expanded key.
    pub key: KeyBlock,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub udp: bool,
    /// Outer don't-fragment bit.
    pub dont_fragment: crate::tunnel::DontFragment,
    /// Outer headers.
    pub template: OuterTemplate,
    /// Last sequence number already used with this key; 0 for a new key.
    pub last_used: u64,
    /// Last sequence number that may be used.
    pub hard_limit: u64,
    /// Control is asked for a rekey this many numbers (a power of two) before the hard limit.
    pub soft_log2: u8,
}

/// What an inbound SA is installed with.
#[derive(Debug)]
pub struct InboundSpec {
    /// Slot of the tunnel.
    pub tunnel: u32,
    /// Expanded key.
    pub key: KeyBlock,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Replay window in packets, a power of two of 64 to the capacity's `replay_window`.
    pub window: u32,
}
