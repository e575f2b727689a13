//! The packet's way. A burst enters by a port, goes through every stage in [`Worker::run`], and leaves by ports or twins.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `rx` | a port's or the kernel's queue | frames |
//! | `parse` | Ethernet, 802.1Q, IPv4 (RFC 791) | what the headers say |
//! | `classify` | packets | ESP for us, packets to forward, the kernel's |
//! | `decap` | ESP (RFC 4303, 4106, 3948) | inner packets, checked against replay and selectors |
//! | `route` | packets | a tunnel, a next hop, the kernel, or an ICMP answer (`answer`) |
//! | `encap` | packets of a tunnel | ESP |
//! | `tx` | frames with their Ethernet header | ports |
//! | `punt` | the kernel's frames | twins |
//!
//! Every frame ends in exactly one counted verdict. After start-up nothing here allocates, locks, logs or makes a system
//! call, and no packet can make it panic.

pub mod answer;
pub mod classify;
pub mod decap;
pub mod encap;
pub mod parse;
pub mod punt;
pub mod route;
pub mod rx;
pub mod tx;

use std::sync::Arc;

use arrayvec::ArrayVec;
use penstock_tables::adjacency::PortSpec;
use penstock_tables::events::EventRing;
use penstock_tables::quiescence;
use penstock_tables::worker::Tally;
use penstock_tables::{StateOwner, TablesView, Verdict};

use crate::crypto::Engine;
use crate::port::{BURST, Burst, Frame, Port};
use crate::wire::ipv4::Ipv4;
use answer::RateLimit;
use classify::SealedList;
use encap::SealingList;
use punt::Twins;

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

/// What is known of an IPv4 packet on its way.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// What its header says.
    pub ip: Ipv4,
    /// Octets of frame before the IPv4 header.
    pub l3: u16,
    /// Index of the port that it came in by.
    pub port: u8,
    /// Where it came from.
    pub origin: Origin,
    /// An ICMP error of ours: never answered itself.
    pub answer: bool,
}

/// An IPv4 packet on its way.
pub struct Item<F> {
    /// The frame, owned.
    pub frame: F,
    /// What is known of it.
    pub meta: Meta,
}

/// Packets between two stages: those of one burst at most.
pub type List<F> = ArrayVec<Item<F>, BURST>;

/// A port as a worker has it.
pub struct WorkerPort<P: Port> {
    /// The worker's queue pair.
    pub queue: P,
    /// MAC address of the port.
    pub mac: [u8; 6],
    /// Frames that wait to be sent.
    pub out: Burst<P::Frame>,
}

/// What a stage needs of a port, read once a burst.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortFacts {
    /// MAC address.
    pub mac: [u8; 6],
    /// What control says.
    pub spec: PortSpec,
}

/// What every stage may use besides its packets.
pub struct Context<'a> {
    /// What control says; references hold until the next quiescent point.
    pub tables: &'a TablesView,
    /// What workers say.
    pub state: &'a StateOwner,
    /// Seals and opens.
    pub engine: &'a dyn Engine,
    /// Ring to control.
    pub events: &'a EventRing,
    /// The worker's counters.
    pub tally: &'a mut Tally,
    /// The ports, by index.
    pub ports: &'a [PortFacts],
    /// Bounds ICMP answers.
    pub answers: &'a mut RateLimit,
    /// TSC at the start of the loop.
    pub now: u64,
}

impl Context<'_> {
    /// Ends a frame that is not sent: counts it and frees it.
    #[inline(always)]
    pub fn end<F: Frame>(&mut self, frame: F, verdict: Verdict) {
        self.tally.count(verdict, 1);
        drop(frame);
    }
}

/// Everything that one worker owns.
pub struct Worker<P: Port> {
    /// Its number among the workers.
    pub index: usize,
    /// Its queue pair of every port, by index of the port.
    pub ports: Vec<WorkerPort<P>>,
    /// Rings from and to the twins.
    pub twins: Twins<P::Frame>,
    /// What control writes.
    pub tables: Arc<TablesView>,
    /// What workers write.
    pub state: Arc<StateOwner>,
    /// Seals and opens.
    pub engine: &'static dyn Engine,
    /// Its own copy of its counters.
    pub tally: Tally,
    /// Bounds its ICMP answers.
    pub answers: RateLimit,
}

impl<P: Port> Worker<P> {
    /// One loop: a burst of every port and of the kernel through all stages. `now` is the TSC. Returns frames received.
    pub fn run(&mut self, now: u64) -> usize {
        quiescence::step(&self.state.worker(self.index).quiescent);
        let mut facts = [PortFacts::default(); penstock_tables::adjacency::MAX_PORTS];
        let count = self.facts(&mut facts);
        let (mut context, ports, twins) = self.split(&facts[..count], now);
        let cx = &mut context;
        let (mut esp, mut plain, mut sealing) = (SealedList::new(), List::new(), SealingList::new());
        let mut received = 0;
        for port in 0..ports.len() {
            let mut frames = rx::receive(&mut ports[port].queue, cx);
            received += frames.len();
            classify::sort(&mut frames, port as u8, &mut esp, &mut plain, twins, cx);
            decap::open(&mut esp, &mut plain, cx);
            route::forward(&mut plain, &mut sealing, ports, twins, cx);
            encap::seal(&mut sealing, ports, cx);
        }
        received += rx::from_kernel(twins, &mut sealing, ports, cx);
        encap::seal(&mut sealing, ports, cx);
        ports.iter_mut().for_each(|port| tx::flush(port, cx));
        if received > 0 {
            self.publish();
        }
        received
    }

    /// Tells control the counters as they stand: between two bursts, so that a reader sees none by half.
    pub fn publish(&self) {
        self.state.worker(self.index).publish(&self.tally);
    }

    fn facts(&self, facts: &mut [PortFacts]) -> usize {
        let known = self.ports.iter().enumerate();
        facts.iter_mut().zip(known).for_each(|(fact, (index, port))| {
            *fact = PortFacts { mac: port.mac, spec: self.tables.port(index).get() };
        });
        self.ports.len().min(facts.len())
    }

    fn split<'a>(
        &'a mut self,
        facts: &'a [PortFacts],
        now: u64,
    ) -> (Context<'a>, &'a mut [WorkerPort<P>], &'a mut Twins<P::Frame>) {
        let context = Context {
            tables: &self.tables,
            state: &self.state,
            engine: self.engine,
            events: self.state.events(self.index),
            tally: &mut self.tally,
            ports: facts,
            answers: &mut self.answers,
            now,
        };
        (context, &mut self.ports, &mut self.twins)
    }
}
