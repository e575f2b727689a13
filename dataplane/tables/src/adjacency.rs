//! Where a packet goes on the wire: ports and the MAC addresses of next hops. Written by control.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Most ports that a gateway may have.
pub const MAX_PORTS: usize = 16;

/// A resolved next hop, as it stands in one atomic word, so that a changed MAC address is never seen by half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjacency {
    /// Index of the port.
    pub port: u8,
    /// Destination MAC address.
    pub mac: [u8; 6],
}

/// A next hop whose MAC address is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// Index of the port.
    pub port: u8,
    /// IPv4 address of the next hop, host order.
    pub address: u32,
}

const RESOLVED: u64 = 1 << 56;
/// Nothing leads to it any more, but a worker may still hold its index.
pub(crate) const RETIRING: u64 = 1 << 57;

impl Adjacency {
    pub(crate) fn pack(self) -> u64 {
        let mut octets = [0; 8];
        octets[2..].copy_from_slice(&self.mac);
        RESOLVED | u64::from(self.port) << 48 | u64::from_be_bytes(octets)
    }

    #[inline(always)]
    pub(crate) fn unpack(word: u64) -> Result<Adjacency, Unresolved> {
        let port = (word >> 48) as u8;
        if word & RESOLVED == 0 {
            return Err(Unresolved { port, address: word as u32 });
        }
        let octets = word.to_be_bytes();
        Ok(Adjacency { port, mac: [octets[2], octets[3], octets[4], octets[5], octets[6], octets[7]] })
    }
}

/// A resolved next hop as a worker keeps it: in one word, since what was written in pieces cannot be read as a whole at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct NextHop(u64);

impl NextHop {
    #[inline(always)]
    pub(crate) fn of(word: u64) -> Option<NextHop> {
        (word & RESOLVED != 0).then_some(NextHop(word))
    }

    /// Index of the port.
    #[inline(always)]
    pub fn port(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// Destination MAC address.
    #[inline(always)]
    pub fn mac(self) -> [u8; 6] {
        let [_, _, a, b, c, d, e, f] = self.0.to_be_bytes();
        [a, b, c, d, e, f]
    }
}

impl Unresolved {
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.port) << 48 | u64::from(self.address)
    }
}

/// Addresses of a port besides its first that the data plane is told.
const OTHERS: usize = 12;

/// What control says of a port. One cache line; the fields change in place, each alone.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct PortEntry {
    address: AtomicU32,
    vlan: AtomicU32,
    mtu: AtomicU32,
    public: AtomicU32,
    /// Its other addresses, host order, 0 from the last on.
    others: [AtomicU32; OTHERS],
}

const _: () = assert!(size_of::<PortEntry>() == 64);

/// The values of a [`PortEntry`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// First IPv4 address, host order, 0 for none.
    pub address: u32,
    /// 802.1Q VLAN identifier, 0 for untagged.
    pub vlan: u16,
    /// Largest IPv4 packet, in octets.
    pub mtu: u16,
    /// A port that should carry ESP: no forwarded plaintext enters or leaves by it.
    pub public: bool,
}

impl PortEntry {
    /// Control side.
    pub fn set(&self, spec: PortSpec) {
        self.public.store(u32::from(spec.public), Ordering::Relaxed);
        self.address.store(spec.address, Ordering::Relaxed);
        self.vlan.store(u32::from(spec.vlan), Ordering::Relaxed);
        self.mtu.store(u32::from(spec.mtu), Ordering::Release);
    }

    /// Control side: the port's addresses after the first, host order. Those that there is no room for are left out.
    pub fn set_others(&self, addresses: impl Iterator<Item = u32>) {
        let all = addresses.chain(std::iter::repeat(0));
        self.others.iter().zip(all).for_each(|(place, address)| place.store(address, Ordering::Relaxed));
    }

    /// All its addresses, host order, the first one first.
    pub fn addresses(&self) -> impl Iterator<Item = u32> {
        let all = std::iter::once(&self.address).chain(&self.others);
        all.map(|place| place.load(Ordering::Relaxed)).filter(|address| *address != 0)
    }

    /// The values as they stand.
    #[inline(always)]
    pub fn get(&self) -> PortSpec {
        PortSpec {
            mtu: self.mtu.load(Ordering::Acquire) as u16,
            address: self.address.load(Ordering::Relaxed),
            vlan: self.vlan.load(Ordering::Relaxed) as u16,
            public: self.public.load(Ordering::Relaxed) != 0,
        }
    }
}

/// The table's word of one next hop.
#[derive(Debug)]
#[repr(transparent)]
pub struct AdjacencyWord(pub(crate) AtomicU64);
