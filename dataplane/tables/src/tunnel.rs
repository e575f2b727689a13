//! Tunnels in `tables`: which SA seals now (for all workers, and for single ones: RFC 9611), where the outer packet goes,
//! and which inner packets belong to it (the selectors of RFC 4301 section 4.4.1). Written by control; what changes in
//! place is atomic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::slot::SlotHead;

/// Most selectors that a tunnel has on each side.
pub const MAX_SELECTORS: usize = 16;
/// Longest name of a tunnel, in octets.
pub const MAX_NAME: usize = 63;
/// Longest name of a network interface (IFNAMSIZ without its zero), in octets.
pub const MAX_INTERFACE: usize = 15;

/// Workers that may have an outbound SA of their own in a tunnel (RFC 9611): those with a number below this; the others
/// seal on the tunnel's shared SA.
pub const WORKER_SAS: usize = 16;

/// What becomes of the don't-fragment bit of the outer header (RFC 4301 section 8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum DontFragment {
    /// As the inner packet has it.
    #[default]
    Copy = 0,
    /// Always set.
    Set = 1,
    /// Always clear.
    Clear = 2,
}

/// An IPv4 prefix of a selector: address and mask, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Selector {
    /// Network address, host order, without host bits.
    pub address: u32,
    /// Network mask, host order.
    pub mask: u32,
}

impl Selector {
    /// Whether the prefix covers `address` (host order).
    #[inline(always)]
    pub fn covers(self, address: u32) -> bool {
        address & self.mask == self.address
    }

    /// Covers no address: one that is no network. `first` is kept relative to it, so that zeros cover nothing.
    const NOTHING: u64 = 1;

    fn pack(self) -> u64 {
        u64::from(self.mask) << 32 | u64::from(self.address)
    }

    #[inline(always)]
    fn unpack(word: u64) -> Selector {
        Selector { address: word as u32, mask: (word >> 32) as u32 }
    }
}

/// One tunnel. The first cache line is hot; the head's tag is a generation.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Tunnel {
    pub(crate) head: SlotHead,
    pub(crate) outbound: AtomicU32,
    pub(crate) adjacency: AtomicU32,
    pub(crate) inner_mtu: AtomicU32,
    pub(crate) counts: AtomicU32,
    pub(crate) has_interface: AtomicU32,
    pub(crate) peer: AtomicU32,
    /// One bit for each worker that has an SA of its own in `outbound_of_worker`.
    pub(crate) worker_mask: AtomicU32,
    pub(crate) spare: u32,
    /// The first selector of each side once more, local and remote: most tunnels need no other line.
    pub(crate) first: [AtomicU64; 2],
    pub(crate) spare_word: u64,
    pub(crate) local: [AtomicU64; MAX_SELECTORS],
    pub(crate) remote: [AtomicU64; MAX_SELECTORS],
    pub(crate) interface: [AtomicU64; 2],
    pub(crate) name: [u8; MAX_NAME + 1],
    pub(crate) spare_octets: [u8; 48],
    /// A cache line of its own, read only where `worker_mask` says so.
    pub(crate) outbound_of_worker: [AtomicU32; WORKER_SAS],
}

const _: () = assert!(
    size_of::<Tunnel>() == 64 + 256 + 16 + 64 + 48 + 64
        && std::mem::offset_of!(Tunnel, local) == 64
        && std::mem::offset_of!(Tunnel, outbound_of_worker) == 448
);

/// What a tunnel is installed with; everything but the name may change while it is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Its name, at most [`MAX_NAME`] octets: by it a restarted control finds it again.
    pub name: String,
    /// Inner addresses on this side; at most [`MAX_SELECTORS`].
    pub local: Vec<Selector>,
    /// Inner addresses on the peer's side; at most [`MAX_SELECTORS`].
    pub remote: Vec<Selector>,
    /// Largest inner IPv4 packet, in octets.
    pub inner_mtu: u16,
    /// Name of its TUN, at most [`MAX_INTERFACE`] octets, empty for none.
    pub interface: String,
    /// The peer's outer address, host order: whom to find where the next hop is missing.
    pub peer: u32,
}

impl Tunnel {
    /// Tells tunnels apart that are in the same slot one after the other.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.head.get().1
    }

    /// Slot of the SA that seals now: the one that all workers share.
    #[inline(always)]
    pub fn outbound(&self) -> Option<u32> {
        some(&self.outbound)
    }

    /// Slot of the SA that `worker` seals with now: its own where it has one (RFC 9611), otherwise the shared one.
    #[inline(always)]
    pub fn outbound_of(&self, worker: usize) -> Option<u32> {
        match self.worker_mask.load(Ordering::Acquire) {
            0 => self.outbound(),
            _ => self.own_outbound_of(worker).or_else(|| self.outbound()),
        }
    }

    /// Slot of the SA that is `worker`'s own, where it has one.
    #[inline]
    pub fn own_outbound_of(&self, worker: usize) -> Option<u32> {
        let mask = self.worker_mask.load(Ordering::Acquire);
        let own = self.outbound_of_worker.get(worker).filter(|_| mask >> worker & 1 != 0)?;
        some(own)
    }

    /// Control side. The slot is there before its bit is; the bit goes before the slot does.
    pub(crate) fn set_outbound_of_worker(&self, worker: usize, outbound: Option<u32>) {
        let Some(own) = self.outbound_of_worker.get(worker) else { return };
        match outbound {
            Some(slot) => {
                own.store(slot, Ordering::Release);
                self.worker_mask.fetch_or(1 << worker, Ordering::AcqRel);
            }
            None => {
                self.worker_mask.fetch_and(!(1 << worker), Ordering::AcqRel);
                own.store(crate::NONE, Ordering::Release);
            }
        }
    }

    /// Control side: no worker has an SA of its own.
    pub(crate) fn clear_outbound_of_workers(&self) {
        self.worker_mask.store(0, Ordering::Release);
        self.outbound_of_worker.iter().for_each(|own| own.store(crate::NONE, Ordering::Release));
    }

    /// Next hop of the outer packets.
    #[inline(always)]
    pub fn adjacency(&self) -> Option<u32> {
        let index = self.adjacency.load(Ordering::Acquire);
        (index != crate::NONE).then_some(index)
    }

    /// Largest inner packet, in octets.
    #[inline(always)]
    pub fn inner_mtu(&self) -> u16 {
        self.inner_mtu.load(Ordering::Relaxed) as u16
    }

    /// Whether it has a TUN.
    #[inline(always)]
    pub fn has_interface(&self) -> bool {
        self.has_interface.load(Ordering::Relaxed) != 0
    }

    /// The peer's outer address, host order.
    pub fn peer(&self) -> u32 {
        self.peer.load(Ordering::Relaxed)
    }

    /// The life of the slot.
    pub fn head(&self) -> &SlotHead {
        &self.head
    }

    /// Whether an outbound inner packet belongs here (addresses in host order).
    #[inline(always)]
    pub fn covers_outbound(&self, source: u32, destination: u32) -> bool {
        (self.first_covers(0, source) || self.covers_local(source))
            && (self.first_covers(1, destination) || self.covers_remote(destination))
    }

    /// Whether a decrypted inner packet belongs here (addresses in host order).
    #[inline(always)]
    pub fn covers_inbound(&self, source: u32, destination: u32) -> bool {
        (self.first_covers(1, source) || self.covers_remote(source))
            && (self.first_covers(0, destination) || self.covers_local(destination))
    }

    #[inline(always)]
    fn first_covers(&self, side: usize, address: u32) -> bool {
        Selector::unpack(self.first[side].load(Ordering::Relaxed) ^ Selector::NOTHING).covers(address)
    }

    #[inline(never)]
    fn covers_local(&self, address: u32) -> bool {
        let count = self.counts.load(Ordering::Acquire) as usize & 0xff;
        self.local
            .iter()
            .take(count)
            .any(|word| Selector::unpack(word.load(Ordering::Relaxed)).covers(address))
    }

    #[inline(never)]
    fn covers_remote(&self, address: u32) -> bool {
        let count = self.counts.load(Ordering::Acquire) as usize >> 8;
        self.remote
            .iter()
            .take(count)
            .any(|word| Selector::unpack(word.load(Ordering::Relaxed)).covers(address))
    }

    /// Control side: the values that may change while the tunnel is live.
    pub(crate) fn set(&self, spec: &TunnelSpec) {
        self.counts.store(0, Ordering::Release);
        self.first.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let fill = |words: &[AtomicU64], selectors: &[Selector]| {
            words
                .iter()
                .zip(selectors)
                .for_each(|(word, selector)| word.store(selector.pack(), Ordering::Relaxed));
            selectors.len().min(MAX_SELECTORS) as u32
        };
        let counts = fill(&self.local, &spec.local) | fill(&self.remote, &spec.remote) << 8;
        self.inner_mtu.store(u32::from(spec.inner_mtu), Ordering::Relaxed);
        self.has_interface.store(u32::from(!spec.interface.is_empty()), Ordering::Relaxed);
        let mut name = [0; 16];
        let octets = spec.interface.as_bytes();
        name[..octets.len().min(MAX_INTERFACE)].copy_from_slice(&octets[..octets.len().min(MAX_INTERFACE)]);
        self.interface.iter().zip(name.chunks_exact(8)).for_each(|(word, octets)| {
            word.store(
                octets.iter().fold(0, |word, octet| (word << 8) | u64::from(*octet)),
                Ordering::Relaxed,
            );
        });
        self.peer.store(spec.peer, Ordering::Relaxed);
        self.counts.store(counts, Ordering::Release);
        for (word, selectors) in self.first.iter().zip([&spec.local, &spec.remote]) {
            let first = selectors.first().map_or(0, |selector| selector.pack() ^ Selector::NOTHING);
            word.store(first, Ordering::Release);
        }
    }

    /// The values as they stand.
    pub fn spec(&self) -> TunnelSpec {
        let counts = self.counts.load(Ordering::Acquire) as usize;
        let read = |words: &[AtomicU64], count: usize| {
            words.iter().take(count).map(|word| Selector::unpack(word.load(Ordering::Relaxed))).collect()
        };
        let text = |octets: &[u8]| {
            let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
            String::from_utf8_lossy(&octets[..end]).into_owned()
        };
        let interface: Vec<u8> =
            self.interface.iter().flat_map(|word| word.load(Ordering::Relaxed).to_be_bytes()).collect();
        TunnelSpec {
            name: text(&self.name),
            local: read(&self.local, counts & 0xff),
            remote: read(&self.remote, counts >> 8),
            inner_mtu: self.inner_mtu(),
            interface: text(&interface),
            peer: self.peer(),
        }
    }
}

/// A slot, where there is one.
#[inline(always)]
fn some(word: &AtomicU32) -> Option<u32> {
    let slot = word.load(Ordering::Acquire);
    (slot != crate::NONE).then_some(slot)
}
