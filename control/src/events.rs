//! What workers tell control: their event rings enter, each hint once leaves. Hints are repeated while their cause lasts, so
//! one that is lost comes again.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use penstock_tables::StateView;
use penstock_tables::events::{Event, EventReader};

/// Control's places in the rings of all workers.
#[derive(Debug, Default)]
pub struct Events {
    readers: Vec<EventReader>,
    lost: u64,
}

/// What is new, each once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Neighbours to resolve: index of the port, address.
    pub neighbours: HashSet<(u8, Ipv4Addr)>,
    /// Slots of tunnels that lack a usable outbound SA.
    pub tunnels: HashSet<u32>,
    /// Slots of outbound SAs that near the end of what was granted to them.
    pub soft: HashSet<u32>,
    /// Where the newest authentic packet of an inbound SA came from, by SPI.
    pub moved: BTreeMap<u32, SocketAddr>,
}

impl Events {
    /// Hints that were overwritten unread.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Reads what is new.
    pub fn drain(&mut self, state: &StateView) -> News {
        let mut news = News::default();
        self.readers.resize_with(state.workers().len(), EventReader::default);
        for (worker, reader) in self.readers.iter_mut().enumerate() {
            self.lost += reader.drain(state.events(worker), |event| match event {
                Event::NoNeighbour { port, address } => {
                    if let Ok(port) = u8::try_from(port) {
                        news.neighbours.insert((port, Ipv4Addr::from_bits(address)));
                    }
                }
                Event::NoSa { tunnel } | Event::Orphaned { tunnel } => {
                    news.tunnels.insert(tunnel);
                }
                Event::SoftLimit { outbound } => {
                    news.soft.insert(outbound);
                }
                Event::PeerMoved { spi, source } => {
                    let address = Ipv4Addr::from_bits(source.address);
                    news.moved.insert(spi, SocketAddr::from((address, source.port)));
                }
            });
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use penstock_tables::events::Source;
    use penstock_tables::{Capacity, StateOwner};

    use super::*;

    #[test]
    fn every_hint_is_told_once() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let capacity = Capacity { tunnels: 4, replay_window: 64, neighbours: 4, fib_groups: 4 };
        let owner = StateOwner::open(directory.path(), capacity, 2).expect("state");
        let view = StateView::open(directory.path()).expect("view");
        let mut events = Events::default();
        assert_eq!(events.drain(&view), News::default());
        for worker in 0..2 {
            owner.events(worker).push(Event::NoNeighbour { port: 1, address: 0x0a00_0001 });
            owner.events(worker).push(Event::NoSa { tunnel: 3 });
            owner.events(worker).push(Event::SoftLimit { outbound: 3 });
            let source = Source { address: 0xc000_0203, port: 61_001 };
            owner.events(worker).push(Event::PeerMoved { spi: 0x1234_5678, source });
        }
        let news = events.drain(&view);
        assert_eq!(news.neighbours, [(1, Ipv4Addr::new(10, 0, 0, 1))].into());
        assert_eq!((news.tunnels, news.soft), ([3].into(), [3].into()));
        assert_eq!(news.moved, [(0x1234_5678, "192.0.2.3:61001".parse().expect("an address"))].into());
        assert_eq!(events.drain(&view), News::default());
        assert_eq!(events.lost(), 0);
    }
}
