//! What a worker tells control: one ring a worker, overwritten where control does not keep up (control learns how many
//! it lost). Every event is a hint that is repeated while its cause lasts, so losing one loses nothing for good.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Entries of a ring.
pub const RING: usize = 1024;

/// A hint to control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A packet needs the MAC address of `address` (host order) behind `port`.
    NoNeighbour {
        /// Index of the port.
        port: u32,
        /// IPv4 address, host order.
        address: u32,
    },
    /// A packet for this tunnel found no outbound SA.
    NoSa {
        /// Slot of the tunnel.
        tunnel: u32,
    },
    /// An outbound SA passed its soft limit of sequence numbers: rekey.
    SoftLimit {
        /// Slot of the outbound SA.
        outbound: u32,
    },
    /// An SA lost its sequence state: replace it.
    Orphaned {
        /// Slot of the tunnel.
        tunnel: u32,
    },
    /// The newest authentic packet of an inbound SA came in UDP from another address than the SA's
    /// (RFC 7296 section 2.23).
    PeerMoved {
        /// SPI of the inbound SA.
        spi: u32,
        /// Where it came from.
        source: Source,
    },
}

/// Source of an outer packet in UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// IPv4 address, host order.
    pub address: u32,
    /// UDP port.
    pub port: u16,
}

impl Source {
    /// As one word, which is not 0 where the address is not.
    #[inline(always)]
    pub fn pack(self) -> u64 {
        u64::from(self.address) << 16 | u64::from(self.port)
    }

    /// What [`Source::pack`] made.
    pub fn unpack(word: u64) -> Source {
        Source { address: (word >> 16) as u32, port: word as u16 }
    }
}

impl Event {
    fn pack(self) -> [u64; 2] {
        match self {
            Event::NoNeighbour { port, address } => {
                [1 << 56 | u64::from(port & 0xff) << 32 | u64::from(address), 0]
            }
            Event::NoSa { tunnel } => [2 << 56 | u64::from(tunnel), 0],
            Event::SoftLimit { outbound } => [3 << 56 | u64::from(outbound), 0],
            Event::Orphaned { tunnel } => [4 << 56 | u64::from(tunnel), 0],
            Event::PeerMoved { spi, source } => [5 << 56 | u64::from(spi), source.pack()],
        }
    }

    fn unpack([word, more]: [u64; 2]) -> Option<Event> {
        let low = word as u32;
        match word >> 56 {
            1 => Some(Event::NoNeighbour { port: (word >> 32) as u32 & 0xff, address: low }),
            2 => Some(Event::NoSa { tunnel: low }),
            3 => Some(Event::SoftLimit { outbound: low }),
            4 => Some(Event::Orphaned { tunnel: low }),
            5 => Some(Event::PeerMoved { spi: low, source: Source::unpack(more) }),
            _ => None,
        }
    }
}

/// One worker's ring in `state`.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EventRing {
    head: AtomicU64,
    last: [AtomicU64; 2],
    spare: [u64; 5],
    entries: [Entry; RING],
}

/// Its number, and two words of an event.
#[derive(Debug)]
#[repr(C, align(32))]
struct Entry {
    stamp: AtomicU64,
    words: [AtomicU64; 2],
    spare: u64,
}

impl EventRing {
    /// Worker side: adds an event, unless it is the one added last (a burst of packets asks once).
    #[inline]
    pub fn push(&self, event: Event) {
        let words = event.pack();
        if load(&self.last) == words {
            return;
        }
        store(&self.last, words);
        let head = self.head.load(Ordering::Relaxed);
        let Entry { stamp, words: payload, .. } = &self.entries[head as usize % RING];
        stamp.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        store(payload, words);
        stamp.store(head + 1, Ordering::Release);
        self.head.store(head + 1, Ordering::Release);
    }

    /// Worker side, about every millisecond: lets the last event be repeated.
    #[inline]
    pub fn allow_repeat(&self) {
        store(&self.last, [0; 2]);
    }
}

#[inline]
fn load(words: &[AtomicU64; 2]) -> [u64; 2] {
    [words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)]
}

#[inline]
fn store(to: &[AtomicU64; 2], words: [u64; 2]) {
    to.iter().zip(words).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
}

/// Control's place in one ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventReader {
    next: u64,
}

impl EventReader {
    /// Starts behind what is there already.
    pub fn at_end(ring: &EventRing) -> EventReader {
        EventReader { next: ring.head.load(Ordering::Acquire) }
    }

    /// Calls `each` for what is new, oldest first; returns how many were overwritten unread.
    pub fn drain(&mut self, ring: &EventRing, mut each: impl FnMut(Event)) -> u64 {
        let head = ring.head.load(Ordering::Acquire);
        if head < self.next {
            self.next = head;
        }
        let oldest = head.saturating_sub(RING as u64);
        let mut lost = oldest.saturating_sub(self.next);
        self.next = self.next.max(oldest);
        while self.next < head {
            let Entry { stamp, words: payload, .. } = &ring.entries[self.next as usize % RING];
            let before = stamp.load(Ordering::Acquire);
            let words = load(payload);
            fence(Ordering::Acquire);
            let whole = before == self.next + 1 && stamp.load(Ordering::Relaxed) == before;
            match whole.then(|| Event::unpack(words)).flatten() {
                Some(event) => each(event),
                None => lost += 1,
            }
            self.next += 1;
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Box<EventRing> {
        let zero = || AtomicU64::new(0);
        let two = || [zero(), zero()];
        let entries = std::array::from_fn(|_| Entry { stamp: zero(), words: two(), spare: 0 });
        Box::new(EventRing { head: zero(), last: two(), spare: [0; 5], entries })
    }

    #[test]
    fn events_come_out_as_they_went_in_and_repeats_once() {
        let ring = ring();
        let mut reader = EventReader::at_end(&ring);
        let events = [
            Event::NoNeighbour { port: 3, address: 0x0a01_0002 },
            Event::NoSa { tunnel: 99_999 },
            Event::SoftLimit { outbound: 7 },
            Event::Orphaned { tunnel: 8 },
            Event::PeerMoved { spi: 0xdead_beef, source: Source { address: 0xc000_0203, port: 61_001 } },
            // The first word is the same.
            Event::PeerMoved { spi: 0xdead_beef, source: Source { address: 0xc000_0203, port: 61_002 } },
        ];
        for event in events {
            ring.push(event);
            ring.push(event);
        }
        let mut got = Vec::new();
        assert_eq!(reader.drain(&ring, |event| got.push(event)), 0);
        assert_eq!(got, events);
    }

    #[test]
    fn a_slow_reader_learns_what_it_lost() {
        let ring = ring();
        let mut reader = EventReader::at_end(&ring);
        for tunnel in 0..3000 {
            ring.push(Event::NoSa { tunnel });
        }
        let mut got = Vec::new();
        assert_eq!(reader.drain(&ring, |event| got.push(event)), 3000 - RING as u64);
        assert_eq!(got.len(), RING);
        assert_eq!(got[RING - 1], Event::NoSa { tunnel: 2999 });
    }
}
