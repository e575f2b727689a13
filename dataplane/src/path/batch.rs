//! The packets of one loop, in place: stages pass on which of them they mean ([`Picks`]), not the packets themselves. A frame
//! leaves the batch once, when it is sent, punted or dropped.

use penstock_tables::Route;

use crate::port::{BURST, Burst, Frame};
use crate::wire::ipv4::Ipv4;

const _: () = assert!(BURST == 64, "one bit of a word for each packet");

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A port.
    Wire,
    /// The gateway itself, through a twin.
    Kernel,
    /// Decrypted, of the tunnel in this slot.
    Tunnel(u32),
}

/// What is known of a packet on its way.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Meta {
    /// What its IPv4 header says.
    pub ip: Ipv4,
    /// Octets of frame before the IPv4 header.
    pub l3: u16,
    /// Octets of frame before the SPI, of an ESP packet for us.
    pub esp: u16,
    /// Index of the port that it came in by.
    pub port: u8,
    /// An ICMP error of ours: never answered itself.
    pub answer: bool,
    /// Where it came from.
    pub origin: Origin,
    /// Where its destination leads.
    pub route: Route,
    /// Place of its SA among those of the burst: of a packet to seal (`run`), of ESP for us (`flow`).
    pub sa: u8,
    /// Index of the port that it leaves by, of a packet to seal.
    pub out: u8,
}

const _: () = assert!(size_of::<Meta>() == 64);

const NOTHING: Meta = Meta {
    ip: Ipv4::NOTHING,
    l3: 0,
    esp: 0,
    port: 0,
    answer: false,
    origin: Origin::Wire,
    route: Route::NONE,
    sa: 0,
    out: 0,
};

impl Meta {
    /// Becomes what is known of another IPv4 packet; what later stages find out stays as it was.
    #[inline(always)]
    pub fn begin(&mut self, ip: Ipv4, l3: usize, port: u8, origin: Origin) {
        self.ip = ip;
        (self.l3, self.port, self.answer, self.origin) = (l3 as u16, port, false, origin);
    }
}

/// Some packets of a batch, in the order that they came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Picks(u64);

impl Picks {
    /// Whether there is none.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first `count` packets (at most 64).
    #[inline(always)]
    pub fn first(count: usize) -> Picks {
        Picks(u64::MAX.checked_shr(64 - count.min(64) as u32).unwrap_or(0))
    }

    /// The places (below 64) at which `flags` are set.
    #[inline(always)]
    pub fn of(flags: impl Iterator<Item = bool>) -> Picks {
        Picks(flags.zip(0..BURST).fold(0, |bits, (flag, at)| bits | u64::from(flag) << at))
    }

    /// Of these packets, in their order, those whose places are among `places`.
    #[inline]
    pub fn chosen(self, places: Picks) -> Picks {
        let mut some = Picks::default();
        let places = self.into_iter().enumerate().filter(|(at, _)| places.contains(*at));
        places.for_each(|(_, index)| some.insert(index));
        some
    }

    /// Those and the others.
    #[inline(always)]
    pub fn with(self, others: Picks) -> Picks {
        Picks(self.0 | others.0)
    }

    /// Those that are not among `others`.
    #[inline(always)]
    pub fn without(self, others: Picks) -> Picks {
        Picks(self.0 & !others.0)
    }

    /// One bit for each packet.
    #[inline(always)]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// How many there are.
    #[inline(always)]
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Adds packet `index` (below 64).
    #[inline(always)]
    pub fn insert(&mut self, index: usize) {
        self.0 |= 1 << (index & 63);
    }

    /// Takes packet `index` (below 64) out.
    #[inline(always)]
    pub fn remove(&mut self, index: usize) {
        self.0 &= !(1 << (index & 63));
    }

    /// Whether packet `index` is among them.
    #[inline(always)]
    pub fn contains(self, index: usize) -> bool {
        self.0 >> (index & 63) & 1 != 0
    }
}

impl IntoIterator for Picks {
    type Item = usize;
    type IntoIter = PicksIter;

    #[inline(always)]
    fn into_iter(self) -> PicksIter {
        PicksIter(self.0)
    }
}

/// The indices of [`Picks`], ascending.
#[derive(Debug)]
pub struct PicksIter(u64);

impl Iterator for PicksIter {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let index = self.0.trailing_zeros() as usize & (BURST - 1);
        self.0 &= self.0.wrapping_sub(1);
        Some(index)
    }
}

/// See the module.
pub struct Batch<F> {
    frames: [Option<F>; BURST],
    metas: [Meta; BURST],
    /// Packets that miss their next hop's MAC address (`hold`).
    waiting: Picks,
}

impl<F: Frame> Batch<F> {
    /// An empty batch.
    pub fn new() -> Batch<F> {
        Batch { frames: [const { None }; BURST], metas: [NOTHING; BURST], waiting: Picks::default() }
    }

    /// Takes the frames of a burst in; the batch is empty before.
    #[inline(always)]
    pub fn load(&mut self, burst: &mut Burst<F>) -> Picks {
        let count = burst.len();
        self.frames.iter_mut().zip(burst.drain(..)).for_each(|(place, frame)| *place = Some(frame));
        Picks::first(count)
    }

    /// Puts a frame at `index` (below 64); gives it back where the place is taken.
    #[inline(always)]
    pub fn put(&mut self, index: usize, frame: F, meta: Meta) -> Option<F> {
        match self.frames.get_mut(index) {
            Some(place @ None) => {
                *place = Some(frame);
                self.metas[index] = meta;
                None
            }
            _ => Some(frame),
        }
    }

    /// Takes a frame out, for good.
    #[inline(always)]
    pub fn take(&mut self, index: usize) -> Option<F> {
        self.frames[index & (BURST - 1)].take()
    }

    /// Packet `index` (below 64) misses its next hop's MAC address: it stays until [`Batch::take_waiting`].
    #[inline]
    pub fn wait(&mut self, index: usize) {
        self.waiting.insert(index);
    }

    /// The packets that miss their next hop's MAC address.
    #[inline(always)]
    pub fn waiting(&self) -> Picks {
        self.waiting
    }

    /// The same, no longer kept in mind here.
    #[inline]
    pub fn take_waiting(&mut self) -> Picks {
        std::mem::take(&mut self.waiting)
    }

    /// A frame and what is known of it.
    #[inline(always)]
    pub fn get(&mut self, index: usize) -> Option<(&mut F, &mut Meta)> {
        let index = index & (BURST - 1);
        self.frames[index].as_mut().map(|frame| (frame, &mut self.metas[index]))
    }

    /// What is known of a packet.
    #[inline(always)]
    pub fn meta(&self, index: usize) -> &Meta {
        &self.metas[index & (BURST - 1)]
    }

    /// Asks for the first octets of all frames.
    #[inline(always)]
    pub fn prefetch(&self) {
        self.frames.iter().flatten().for_each(Frame::prefetch);
    }

    /// What is known of a packet, to be written.
    #[inline(always)]
    pub fn meta_mut(&mut self, index: usize) -> &mut Meta {
        &mut self.metas[index & (BURST - 1)]
    }

    /// The picked packets at once, ascending, each to be written.
    #[inline(always)]
    pub fn each(&mut self, picks: Picks) -> impl Iterator<Item = (usize, &mut F, &Meta)> {
        let all = self.frames.iter_mut().zip(&self.metas).enumerate();
        all.filter(move |(index, _)| picks.contains(*index))
            .filter_map(|(index, (frame, meta))| Some((index, frame.as_mut()?, meta)))
    }
}

impl<F: Frame> Default for Batch<F> {
    fn default() -> Self {
        Batch::new()
    }
}

/// What is known of a fresh IPv4 packet.
#[inline(always)]
pub fn fresh(ip: Ipv4, l3: usize, port: u8, origin: Origin) -> Meta {
    Meta { ip, l3: l3 as u16, port, origin, ..NOTHING }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_an_ordered_set() {
        let mut picks = Picks::default();
        assert!(picks.is_empty() && picks.into_iter().next().is_none());
        [63, 0, 5, 0].into_iter().for_each(|index| picks.insert(index));
        assert_eq!(picks.into_iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(picks.contains(5) && !picks.contains(6));
        let flags = [true, false, false, false, false, true];
        assert_eq!(Picks::of(flags.into_iter()), picks.without(Picks(1 << 63)));
        for count in [0, 1, 5, 63, 64] {
            assert_eq!(Picks::first(count).into_iter().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
    }
}
