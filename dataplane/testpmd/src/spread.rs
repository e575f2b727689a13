//! One tunnel on several workers, in memory: worker 0 receives everything and hands over what is too much (`path::spread`), as behind
//! a device with one queue. TSC cycles per packet of the whole come out, generator included: compare with one worker of the
//! same run, and with as many processes of one worker each.
//!
//! `encap` is fed by the generator; `decap` by packets that were sealed before, round and round: the windows forget at the end of
//! each round, when all its packets have come out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::generator::Generator;
use super::lcores::Crew;
use super::options::{BenchOptions, Mode, Size};
use super::ports::BenchPort;
use super::sites::{MACS, Site, Sites};
use super::{Failure, median};
use crate::huge::Block;
use penstock_dataplane::crypto::Engine;
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::dpdk::{Mbuf, Pool};
use penstock_dataplane::path::spread::{Role, Spread};
use penstock_dataplane::port::{Burst, Frame, Port};

/// Packets that are timed together; the median of such slices counts.
const SLICE: u64 = 8192;
/// Packets that bring code, tables and frames into the caches.
const WARM_UP: u64 = 200_000;
/// Packets of a round: 8 MiB, from which a core reads as from what a NIC wrote.
const ROUND: usize = 4096;
/// From one packet of a round to the next.
const STRIDE: usize = 2048;

/// Packets that were sealed before the run.
pub struct Round<'a> {
    pool: Pool,
    burst: usize,
    frames: Block,
    lens: Vec<usize>,
    next: usize,
    given: u64,
    /// Packets that came out.
    sunk: Rc<Cell<u64>>,
    site: &'a Site,
}

impl Round<'_> {
    /// Appends one burst, or nothing while the end of a round is on its way.
    pub fn fill(&mut self, burst: &mut Burst<Mbuf>) {
        if self.next == self.lens.len() {
            if self.sunk.get() != self.given {
                return;
            }
            self.site.forget_windows();
            self.next = 0;
        }
        let count = self.burst.min(burst.room()).min(self.lens.len() - self.next);
        if !self.pool.allocate_burst(burst, count) {
            return;
        }
        let start = burst.len() - count;
        for frame in &mut burst[start..] {
            let (at, len) = (self.next * STRIDE, self.lens[self.next]);
            if let Some(octets) = frame.append(len) {
                octets.copy_from_slice(&self.frames[at..at + len]);
            }
            self.next += 1;
        }
        self.given += count as u64;
    }
}

/// What the workers' threads need.
pub struct Bench<'o> {
    options: &'o BenchOptions,
    sites: &'o Sites,
    pool: Pool,
    engine: &'static dyn Engine,
    hz: u64,
    mode: Mode,
    size: &'o Size,
    sas: u32,
    parts: Mutex<Vec<Spread<Mbuf>>>,
}

/// What worker 0 measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// TSC cycles from one packet to the next, generator included.
    pub cycles: f64,
    /// Packets that came out.
    pub packets: u64,
    /// Packets that went to other workers.
    pub handed: u64,
}

impl<'o> Bench<'o> {
    /// A run of `mode` with packets of `size`.
    pub fn new(
        options: &'o BenchOptions,
        sites: &'o Sites,
        pool: Pool,
        (engine, hz): (&'static dyn Engine, u64),
        (mode, size, sas): (Mode, &'o Size, u32),
    ) -> Bench<'o> {
        let role = |worker| Role { receiver: worker == 0, alone: worker == 0 };
        let parts = Spread::among(&(0..options.workers()).map(role).collect::<Vec<_>>());
        Bench { options, sites, pool, engine, hz, mode, size, sas, parts: Mutex::new(parts) }
    }

    /// One worker's part; `None` of a helper.
    ///
    /// # Errors
    /// Where nothing comes out.
    pub fn work(&self, index: usize, crew: &Crew) -> Result<Option<Measured>, Failure> {
        let sunk = Rc::new(Cell::new(0));
        let sink = || BenchPort::Sink(sunk.clone());
        let source = match (index, self.mode) {
            (0, Mode::Decap) => BenchPort::Round(Box::new(self.seal(sunk.clone()))),
            (0, _) => BenchPort::Source(Box::new(self.generator())),
            _ => sink(),
        };
        let mut worker = match self.mode {
            Mode::Decap => self.sites.inbound.parts().worker(index, [sink(), source], self.engine, self.hz),
            _ => self.sites.outbound.parts().worker(index, [source, sink()], self.engine, self.hz),
        };
        worker.spread = {
            let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut parts[index], Spread::off())
        };
        crew.meet();
        if index > 0 {
            while !crew.stopped() {
                worker.run(tsc());
            }
            return Ok(None);
        }
        let mut until = |packets: u64| {
            let (start, first) = (tsc(), sunk.get());
            while sunk.get() - first < packets {
                worker.run(tsc());
            }
            (tsc() - start) as f64 / (sunk.get() - first) as f64
        };
        until(WARM_UP);
        let (mut slices, before) = (Vec::new(), sunk.get());
        let end = Instant::now() + Duration::from_secs_f64(self.options.duration);
        while Instant::now() < end {
            slices.push(until(SLICE));
        }
        crew.stop();
        let handed = worker.tally.noted(penstock_tables::Note::Handed);
        Ok(Some(Measured { cycles: median(&mut slices), packets: sunk.get() - before, handed }))
    }

    fn generator(&self) -> Generator {
        let mut generator = Generator::new(self.pool.clone(), self.options.burst, 0..self.sas, 0);
        generator.set_pattern(MACS[0], &self.size.pattern);
        generator
    }

    /// A round of packets, sealed by a worker of the outbound side.
    fn seal(&self, sunk: Rc<Cell<u64>>) -> Round<'o> {
        let wire = Rc::new(RefCell::new(Burst::new()));
        let ports = [BenchPort::Source(Box::new(self.generator())), BenchPort::Wire(wire.clone())];
        let mut worker = self.sites.outbound.parts().worker(0, ports, self.engine, self.hz);
        let (mut frames, mut lens) = (Block::new(ROUND * STRIDE), Vec::with_capacity(ROUND));
        let mut out = BenchPort::Wire(wire);
        while lens.len() < ROUND {
            worker.run(tsc());
            let mut burst = Burst::new();
            out.receive(&mut burst);
            for frame in burst.iter().take(ROUND - lens.len()) {
                let at = lens.len() * STRIDE;
                frames[at..at + frame.len()].copy_from_slice(frame.data());
                lens.push(frame.len());
            }
        }
        let (pool, burst, site) = (self.pool.clone(), usize::from(self.options.burst), &self.sites.inbound);
        site.forget_windows();
        Round { pool, burst, frames, lens, next: 0, given: 0, sunk, site }
    }
}
