//! The ports of a benchmark's worker: a generator, a queue to the next worker, a sink, or a device of DPDK.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::generator::Generator;
use super::sites::Site;
use super::spread::Round;
use penstock_dataplane::dpdk::Mbuf;
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::port::{BURST, Burst, Port};

/// See the module.
pub enum BenchPort<'a> {
    /// Gives fresh packets; never takes one.
    Source(Box<Generator>),
    /// Gives packets that were sealed before, round and round; never takes one.
    Round(Box<Round<'a>>),
    /// Hands packets from the worker that sends to the one that receives.
    Wire(Rc<RefCell<Burst<Mbuf>>>),
    /// Takes and frees packets, and counts them.
    Sink(Rc<Cell<u64>>),
    /// A queue pair of a device.
    Device {
        /// The queue pair.
        port: Box<DpdkPort>,
        /// Frames of a burst at most.
        burst: usize,
        /// Where the same packets come again and again: whose windows forget before each burst.
        circle: Option<&'a Site>,
    },
}

impl BenchPort<'_> {
    /// The generator of a source.
    pub fn generator(&mut self) -> Option<&mut Generator> {
        match self {
            BenchPort::Source(generator) => Some(generator),
            _ => None,
        }
    }
}

impl Port for BenchPort<'_> {
    type Frame = Mbuf;

    #[inline]
    fn receive(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        let before = burst.len();
        match self {
            BenchPort::Source(generator) => generator.fill(burst),
            BenchPort::Round(round) => round.fill(burst),
            BenchPort::Wire(wire) => {
                let mut wire = wire.borrow_mut();
                let count = wire.len().min(burst.room());
                burst.extend(wire.drain(..count));
            }
            BenchPort::Sink(_) => {}
            BenchPort::Device { port, burst: most, circle } => {
                if let Some(site) = circle {
                    site.forget_windows();
                }
                port.receive_at_most(burst, *most);
            }
        }
        burst.len() - before
    }

    #[inline]
    fn send(&mut self, burst: &mut Burst<Mbuf>) -> usize {
        match self {
            BenchPort::Source(_) | BenchPort::Round(_) => 0,
            BenchPort::Wire(wire) => {
                let mut wire = wire.borrow_mut();
                let count = wire.room().min(burst.len());
                wire.extend(burst.drain(..count));
                count
            }
            BenchPort::Sink(count) => {
                let taken = burst.len();
                count.set(count.get() + taken as u64);
                burst.clear();
                taken
            }
            BenchPort::Device { port, .. } => port.send(burst),
        }
    }

    fn allocate(&mut self) -> Option<Mbuf> {
        match self {
            BenchPort::Device { port, .. } => port.allocate(),
            _ => None,
        }
    }
}

// A wire holds the whole burst of the worker before it.
const _: () = assert!(BURST == 64);
