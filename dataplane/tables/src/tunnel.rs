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

/// Slots that one tunnel has besides its own at most: one for each child SA with selectors of its own.
pub const MAX_CHILDREN: usize = 64;

/// A range of IPv4 addresses in a selector (RFC 4301 section 4.4.1.2), host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// First address.
    pub first: u32,
    /// Last address, not below the first.
    pub last: u32,
}

impl Selector {
    /// Every address.
    pub const ANY: Selector = Selector { first: 0, last: u32::MAX };

    /// The addresses of a prefix of `len` bits; bits of `address` behind it do not count.
    pub fn prefix(address: u32, len: u8) -> Selector {
        let mask = crate::fib::Prefix::mask_of(len);
        Selector { first: address & mask, last: address | !mask }
    }

    /// Whether the range has `address` (host order).
    #[inline(always)]
    pub fn covers(self, address: u32) -> bool {
        address.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first)
    }

    /// Whether every address of `other` is in this range.
    pub fn contains(self, other: Selector) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The same addresses in as few ranges as there can be, in order.
    pub fn merged(ranges: impl IntoIterator<Item = Selector>) -> Vec<Selector> {
        let mut ranges: Vec<Selector> = ranges.into_iter().collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let joins = next.first <= before.last.saturating_add(1);
            before.last = before.last.max(if joins { next.last } else { 0 });
            joins
        });
        ranges
    }

    /// The first address, and how far the last one is from it: what a check needs.
    fn pack(self) -> u64 {
        u64::from(self.last.wrapping_sub(self.first)) << 32 | u64::from(self.first)
    }

    #[inline(always)]
    fn unpack(word: u64) -> Selector {
        Selector { first: word as u32, last: (word as u32).wrapping_add((word >> 32) as u32) }
    }

    /// As [`Selector::covers`], of a packed one.
    #[inline(always)]
    fn packed_covers(word: u64, address: u32) -> bool {
        address.wrapping_sub(word as u32) <= (word >> 32) as u32
    }
}

/// One tunnel, or one more child of a tunnel: an SA pair with selectors of its own. The first cache line is hot; the head's tag
/// is a generation. Name and selectors never change while the slot is live: who needs others takes another slot. What changes
/// in place does so by one store each.
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
    /// The slot of the tunnel's next child, to be asked where the selectors of this one do not cover a packet.
    pub(crate) next: AtomicU32,
    /// The first selector of each side once more, local and remote: most tunnels need no other line.
    pub(crate) first: [AtomicU64; 2],
    /// The slot that routes to the tunnel lead to: this one, unless it is a further child of that one.
    pub(crate) group: AtomicU32,
    /// The slot by whose number the twins' thread knows the tunnel's interface.
    pub(crate) device: AtomicU32,
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

/// What a tunnel is installed with. Inner MTU, interface and peer may change while it is live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// Its name, at most [`MAX_NAME`] octets: by it a restarted control finds it again.
    pub name: String,
    /// Inner addresses on this side; 1 to [`MAX_SELECTORS`] ranges.
    pub local: Vec<Selector>,
    /// Inner addresses on the peer's side; 1 to [`MAX_SELECTORS`] ranges.
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

    /// The slot of the tunnel's next child, where there is one.
    #[inline(always)]
    pub fn next(&self) -> Option<u32> {
        some(&self.next)
    }

    /// The slot that routes to the tunnel lead to: by it a tunnel with several children is known as one.
    #[inline(always)]
    pub fn group(&self) -> u32 {
        self.group.load(Ordering::Acquire)
    }

    /// The slot by whose number the twins' thread knows the tunnel's interface.
    pub fn device(&self) -> u32 {
        self.device.load(Ordering::Acquire)
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
        Selector::packed_covers(self.first[side].load(Ordering::Relaxed), address)
    }

    #[inline(never)]
    fn covers_local(&self, address: u32) -> bool {
        let count = self.counts.load(Ordering::Relaxed) as usize & 0xff;
        self.local
            .iter()
            .take(count)
            .any(|word| Selector::packed_covers(word.load(Ordering::Relaxed), address))
    }

    #[inline(never)]
    fn covers_remote(&self, address: u32) -> bool {
        let count = self.counts.load(Ordering::Relaxed) as usize >> 8;
        self.remote
            .iter()
            .take(count)
            .any(|word| Selector::packed_covers(word.load(Ordering::Relaxed), address))
    }

    /// Control side, while the slot is being filled: what stays as it is for as long as the slot is live.
    pub(crate) fn fill(&self, spec: &TunnelSpec) {
        let fill = |words: &[AtomicU64], selectors: &[Selector]| {
            words
                .iter()
                .zip(selectors)
                .for_each(|(word, selector)| word.store(selector.pack(), Ordering::Relaxed));
            selectors.len().min(MAX_SELECTORS) as u32
        };
        let counts = fill(&self.local, &spec.local) | fill(&self.remote, &spec.remote) << 8;
        self.counts.store(counts, Ordering::Relaxed);
        for (word, selectors) in self.first.iter().zip([&spec.local, &spec.remote]) {
            word.store(selectors.first().map_or(0, |selector| selector.pack()), Ordering::Relaxed);
        }
        self.change(spec);
    }

    /// Control side: what may change while the tunnel is live, each by one store. The interface's name is two words: it is read
    /// by the twins' thread alone, which looks again where there is no interface of that name.
    pub(crate) fn change(&self, spec: &TunnelSpec) {
        self.inner_mtu.store(u32::from(spec.inner_mtu), Ordering::Relaxed);
        let mut name = [0; 16];
        let octets = spec.interface.as_bytes();
        name[..octets.len().min(MAX_INTERFACE)].copy_from_slice(&octets[..octets.len().min(MAX_INTERFACE)]);
        self.interface.iter().zip(name.chunks_exact(8)).for_each(|(word, octets)| {
            word.store(
                octets.iter().fold(0, |word, octet| (word << 8) | u64::from(*octet)),
                Ordering::Relaxed,
            );
        });
        self.has_interface.store(u32::from(!spec.interface.is_empty()), Ordering::Release);
        self.peer.store(spec.peer, Ordering::Release);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_their_addresses_and_no_other() {
        let some = [0, 1, 9, 10, 11, 0x7fff_ffff, 0x8000_0000, u32::MAX - 1, u32::MAX];
        for first in some {
            for last in some.into_iter().filter(|last| *last >= first) {
                let range = Selector { first, last };
                assert_eq!(Selector::unpack(range.pack()), range);
                for address in some {
                    let inside = first <= address && address <= last;
                    assert_eq!(range.covers(address), inside, "{range:?} {address}");
                    assert_eq!(Selector::packed_covers(range.pack(), address), inside, "{range:?} {address}");
                }
            }
        }
        assert_eq!(Selector::prefix(0x0a01_0203, 24), Selector { first: 0x0a01_0200, last: 0x0a01_02ff });
        assert_eq!(Selector::prefix(7, 0), Selector::ANY);
    }

    #[test]
    fn what_touches_or_overlaps_becomes_one_range() {
        let range = |(first, last)| Selector { first, last };
        let merged = |all: &[(u32, u32)]| -> Vec<(u32, u32)> {
            let ranges = Selector::merged(all.iter().copied().map(range));
            ranges.into_iter().map(|range| (range.first, range.last)).collect()
        };
        assert_eq!(merged(&[(10, 19), (20, 29), (0, 4), (6, 8), (7, 7)]), [(0, 4), (6, 8), (10, 29)]);
        assert_eq!(merged(&[(0, u32::MAX), (5, 6), (u32::MAX, u32::MAX)]), [(0, u32::MAX)]);
        assert_eq!(merged(&[(5, 50), (10, 20), (30, 60)]), [(5, 60)]);
        assert_eq!(merged(&[]), []);
    }
}
