//! The packet's way. A burst enters by a port, goes through every stage in [`Worker::run`], and leaves by ports or twins.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `rx` | a port's or the kernel's queue | a batch of frames |
//! | `parse` | Ethernet, 802.1Q, IPv4 (RFC 791) | what the headers say |
//! | `classify` | packets | ESP for us, packets to forward, the kernel's |
//! | `decap`, `flow` | ESP (RFC 4303, 4106, 3948) | inner packets, checked against replay and selectors |
//! | `route` | packets | a tunnel, a next hop, the kernel, or an ICMP answer (`answer`) |
//! | `encap`, `exit`, `run` | packets of a tunnel | ESP |
//! | `hold` | packets whose next hop is not known yet | the same, when it is, or a second later |
//! | `spread` | bursts that are too much for one worker | the same, worked on by others, in order |
//! | `tx` | frames with their Ethernet header | ports |
//! | `punt` | the kernel's frames | twins |
//!
//! Packets stay where they are (`batch`) until they leave; stages pass on which ones they mean. Every frame ends in exactly
//! one counted verdict. After start-up nothing here allocates, locks, logs or makes a system call, and no packet can make
//! it panic.

pub mod answer;
pub mod batch;
pub mod classify;
pub mod decap;
pub mod encap;
mod exit;
mod flow;
pub mod hold;
pub mod parse;
pub mod punt;
pub mod route;
mod run;
pub mod rx;
mod slots;
pub mod spread;
pub mod tx;

use std::sync::Arc;

use penstock_tables::adjacency::{MAX_PORTS, PortSpec};
use penstock_tables::events::EventRing;
use penstock_tables::fib::Fib;
use penstock_tables::quiescence;
use penstock_tables::worker::Tally;
use penstock_tables::{StateOwner, TablesView, Verdict};

use crate::crypto::Engine;
use crate::port::{Burst, Frame, Port};
use answer::RateLimit;
use batch::Batch;
use exit::Leaving;
use flow::Arriving;
use hold::Held;
use punt::Twins;
use spread::Spread;

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
    /// Number of the worker.
    pub worker: usize,
    /// What control says; references hold until the next quiescent point.
    pub tables: &'a TablesView,
    /// Its route table.
    pub fib: Fib<'a>,
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
    #[inline(never)]
    pub fn end<F: Frame>(&mut self, frame: F, verdict: Verdict) {
        self.tally.count(verdict, 1);
        drop(frame);
    }

    /// Counts a drop at the tunnel that it belongs to, too.
    #[cold]
    #[inline(never)]
    pub fn count_at(&self, tunnel: u32, verdict: Verdict) {
        let group = self.tables.tunnel(tunnel).map_or(tunnel, |child| child.group());
        if let Some(live) = self.tables.tunnel(group) {
            self.state.count_tunnel_drop(group, live.generation(), verdict);
        }
    }

    /// Ends a packet of a batch that cannot go on, counted at the tunnel that it was to leave by, too; one that misses nothing
    /// but its next hop's MAC address stays in the batch for `hold`.
    #[cold]
    #[inline(never)]
    pub fn refuse<F: Frame>(&mut self, batch: &mut Batch<F>, index: usize, verdict: Verdict) {
        match verdict {
            Verdict::NoNeighbour => batch.wait(index),
            _ => self.lose(batch, index, verdict),
        }
    }

    /// The same for one that does not wait.
    #[cold]
    #[inline(never)]
    pub fn lose<F: Frame>(&mut self, batch: &mut Batch<F>, index: usize, verdict: Verdict) {
        if let Some(tunnel) = batch.meta(index).route.tunnel() {
            self.count_at(tunnel, verdict);
        }
        self.end_of(batch, index, verdict);
    }

    /// Ends a packet of a batch.
    #[inline(never)]
    pub fn end_of<F: Frame>(&mut self, batch: &mut Batch<F>, index: usize, verdict: Verdict) {
        if let Some(frame) = batch.take(index) {
            self.end(frame, verdict);
        }
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
    /// Where the packets of a loop stand; empty between two loops.
    pub batch: Box<Batch<P::Frame>>,
    /// Its part in the work on what one worker received.
    pub spread: Spread<P::Frame>,
    /// Packets that wait for their next hop.
    pub held: Held<P::Frame>,
}

/// Is told where a loop stands, for those who measure its stages.
pub trait Probe {
    /// The loop begins.
    #[inline(always)]
    fn begin(&mut self) {}

    /// A stage is done that began where the last one ended.
    #[inline(always)]
    fn done(&mut self, stage: Stage) {
        let _ = stage;
    }
}

/// Production: nothing is measured, and nothing is compiled.
impl Probe for () {}

/// The stages that a [`Probe`] tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `rx`
    Rx,
    /// `classify`, with `parse`
    Classify,
    /// `decap`
    Decap,
    /// `route`
    Route,
    /// `encap`
    Encap,
    /// `tx`
    Tx,
}

impl<P: Port> Worker<P> {
    /// One loop: a burst of every port and of the kernel through all stages. `now` is the TSC. Returns how many frames were
    /// received or worked on; not 0 while some wait.
    #[inline(always)]
    pub fn run(&mut self, now: u64) -> usize {
        self.run_with(now, &mut ())
    }

    /// As [`Worker::run`], with every stage told to `probe`.
    pub fn run_with(&mut self, now: u64, probe: &mut impl Probe) -> usize {
        probe.begin();
        if self.spread.passes() {
            quiescence::step(&self.state.worker(self.index).quiescent);
        }
        let mut facts = [PortFacts::default(); MAX_PORTS];
        let count = self.facts(&mut facts);
        let (mut context, ports, twins, batch, spread, held) = self.split(&facts[..count], now);
        let cx = &mut context;
        let mut received = spread::help(spread, twins, cx) + spread::release(ports, twins, spread, held, cx);
        if held.is_due(now) && !spread.is_full() {
            received += hold::release(held, batch, ports, twins, spread, cx);
        }
        for port in 0..ports.len() {
            if spread.is_full() {
                break;
            }
            let (arrived, count) = rx::receive(&mut ports[port].queue, batch, cx);
            if count == 0 {
                continue;
            }
            received += count;
            if let Some(room) = spread.takes(count, cx.ports[port].spec.public) {
                spread::hand(room, (arrived, port as u8), batch, ports, twins, spread, held, cx);
                continue;
            }
            probe.done(Stage::Rx);
            let mut arriving = Arriving::new();
            let clear = classify::sort(arrived, port as u8, batch, twins, &mut arriving, cx);
            probe.done(Stage::Classify);
            let opened = decap::open(&arriving, batch, cx);
            probe.done(Stage::Decap);
            let mut leaving = Leaving::new();
            route::forward(clear, opened, batch, ports, twins, &mut leaving, cx);
            hold::collect(batch, held, cx);
            probe.done(Stage::Route);
            encap::seal(&leaving, batch, ports, cx);
            probe.done(Stage::Encap);
        }
        if spread.takes_from_kernel() {
            let mut leaving = Leaving::new();
            received += rx::from_kernel(twins, batch, ports, &mut leaving, cx);
            hold::collect(batch, held, cx);
            spread::seal(&leaving, spread.room(), batch, ports, twins, spread, cx);
        }
        ports.iter_mut().for_each(|port| tx::flush(port, cx));
        probe.done(Stage::Tx);
        received += usize::from(spread.waits());
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

    /// The parts of the worker that stages borrow at the same time.
    fn split<'a>(&'a mut self, facts: &'a [PortFacts], now: u64) -> Split<'a, P> {
        let context = Context {
            worker: self.index,
            tables: &self.tables,
            fib: self.tables.fib(),
            state: &self.state,
            engine: self.engine,
            events: self.state.events(self.index),
            tally: &mut self.tally,
            ports: facts,
            answers: &mut self.answers,
            now,
        };
        (context, &mut self.ports, &mut self.twins, &mut self.batch, &mut self.spread, &mut self.held)
    }
}

type Split<'a, P> = (
    Context<'a>,
    &'a mut [WorkerPort<P>],
    &'a mut Twins<<P as Port>::Frame>,
    &'a mut Box<Batch<<P as Port>::Frame>>,
    &'a mut Spread<<P as Port>::Frame>,
    &'a mut Held<<P as Port>::Frame>,
);
