//! The harness in memory: a generator feeds a worker, a sink frees what comes out; cycles per packet come out.
//!
//! `encap` runs a worker between generator and sink. `decap` runs a second worker on what the first one sealed and times only
//! the second, so it has its replay window and true sequence numbers, and no packet is opened twice. `loop` times both.
//! Buffers are freed within what is timed, and taken within the generator, which is measured alone and subtracted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::generator::Generator;
use super::histogram::Histogram;
use super::lcores::Crew;
use super::options::{BenchOptions, Mode, Size};
use super::ports::BenchPort;
use super::probe::{Sliced, Stopwatch};
use super::sites::{MACS, PRIVATE, Parts};
use super::{Failure, forward, median};
use penstock_dataplane::crypto::Engine;
use penstock_dataplane::dpdk::Pool;
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::path::Worker;
use penstock_dataplane::port::Burst;

/// Bursts that are timed together; the median of such slices counts, so that what interrupts some of them does not.
const SLICE: u32 = 64;
/// The generator is measured alone in one slice of so many.
const ALONE: u32 = 8;
/// Bursts that bring code, tables and frames into the caches.
const WARM_UP: u32 = 2000;

/// What one worker measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// TSC cycles per packet, with the generator's.
    pub cycles: f64,
    /// TSC cycles per packet of the generator alone, where it is in `cycles`.
    pub generator: f64,
    /// Packets that entered.
    pub packets: u64,
    /// Packets that did not come out.
    pub lost: u64,
    /// TSC cycles from one poll to the next.
    pub gaps: Histogram,
    /// TSC cycles per packet by stage, where they were asked for.
    pub stages: Option<[f64; 7]>,
    /// Whether the prepared frames lay in huge pages.
    pub huge: bool,
}

/// What a worker's thread needs.
pub struct Bench<'o> {
    /// The options.
    pub options: &'o BenchOptions,
    /// Outbound and inbound side.
    pub sides: [Parts; 2],
    /// Where mbufs come from.
    pub pool: Pool,
    /// Seals and opens.
    pub engine: &'static dyn Engine,
    /// SAs in each direction.
    pub sas: u32,
    /// Cycles in a second.
    pub hz: u64,
}

impl Bench<'_> {
    /// One worker's part of a measurement.
    ///
    /// # Errors
    /// None of its own.
    pub fn work(&self, mode: Mode, size: &Size, index: usize, crew: &Crew) -> Result<Measured, Failure> {
        let mut rig = Rig::new(self, mode, index, crew.workers());
        rig.set_size(size);
        let mut nothing = Histogram::default();
        for _ in 0..WARM_UP / SLICE {
            rig.slice(&mut nothing, &mut ());
        }
        rig.forget();
        crew.meet();
        let duration = Duration::from_secs_f64(self.options.duration);
        let measured = match self.options.stages {
            true => rig.measure(duration, &mut Stopwatch::default()),
            false => rig.measure(duration, &mut ()),
        };
        // The others are still at it.
        crew.meet();
        crew.stop();
        Ok(measured)
    }
}

/// Medians by stage; the generator is taken out of rx.
fn stages(slices: &[[f64; 7]], generator: f64) -> Option<[f64; 7]> {
    let of = |stage: usize| median(&mut slices.iter().map(|slice| slice[stage]).collect::<Vec<_>>());
    let mut stages: [f64; 7] = std::array::from_fn(of);
    stages[0] -= generator;
    (!slices.is_empty()).then_some(stages)
}

/// Two workers, and what connects them.
struct Rig {
    mode: Mode,
    outbound: Worker<BenchPort<'static>>,
    inbound: Worker<BenchPort<'static>>,
    sunk: Rc<Cell<u64>>,
    last: u64,
    packets: u64,
    lost: u64,
}

impl Rig {
    fn new(bench: &Bench<'_>, mode: Mode, index: usize, workers: usize) -> Rig {
        let wire = Rc::new(RefCell::new(Burst::new()));
        let sunk = Rc::new(Cell::new(0));
        let sink = || BenchPort::Sink(sunk.clone());
        // Workers begin at different tunnels, and keep to those where that is asked for.
        let share = |index: usize| (u64::from(bench.sas) * index as u64 / workers as u64) as u32;
        let first = share(index);
        let tunnels = if bench.options.own_sas { first..share(index + 1) } else { 0..bench.sas };
        let generator = Generator::new(bench.pool.clone(), bench.options.burst, tunnels, first);
        let source = BenchPort::Source(Box::new(generator));
        let between = || BenchPort::Wire(wire.clone());
        let out = if matches!(mode, Mode::Decap | Mode::Loop) { between() } else { sink() };
        let [seals, opens] = &bench.sides;
        Rig {
            mode,
            outbound: seals.worker(index, [source, out], bench.engine, bench.hz),
            inbound: opens.worker(index, [sink(), between()], bench.engine, bench.hz),
            sunk,
            last: tsc(),
            packets: 0,
            lost: 0,
        }
    }

    fn generator(&mut self) -> Option<&mut Generator> {
        self.outbound.ports[usize::from(PRIVATE)].queue.generator()
    }

    fn set_size(&mut self, size: &Size) {
        if let Some(generator) = self.generator() {
            generator.set_pattern(MACS[0], &size.pattern);
        }
    }

    /// What was counted so far does not count.
    fn forget(&mut self) {
        (self.packets, self.lost, self.last) = (0, 0, tsc());
    }

    fn measure(&mut self, duration: Duration, probe: &mut impl Sliced) -> Measured {
        let room = (duration.as_secs_f64() * 20_000.0) as usize;
        let (mut work, mut alone) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let (mut gaps, mut parts) = (Histogram::default(), Vec::new());
        let until = Instant::now() + duration;
        for number in 0u32.. {
            if number % ALONE == 0 {
                alone.push(self.alone());
                self.last = tsc();
            }
            let before = self.packets;
            work.push(self.slice(&mut gaps, probe));
            parts.extend(probe.slice(self.packets - before));
            if Instant::now() >= until {
                break;
            }
        }
        let generator = if self.mode == Mode::Decap { 0.0 } else { median(&mut alone) };
        Measured {
            cycles: median(&mut work),
            generator,
            packets: self.packets,
            lost: self.lost,
            gaps,
            stages: stages(&parts, generator),
            huge: self.generator().is_some_and(|generator| generator.in_huge_pages()),
        }
    }

    /// TSC cycles per packet of the generator alone: its buffers are freed outside of what is timed.
    fn alone(&mut self) -> f64 {
        let (mut cycles, mut packets) = (0, 0);
        let Some(generator) = self.generator() else { return 0.0 };
        for _ in 0..SLICE {
            let mut burst = Burst::new();
            let start = tsc();
            generator.fill(&mut burst);
            cycles += tsc() - start;
            packets += burst.len() as u64;
        }
        cycles as f64 / packets.max(1) as f64
    }

    /// One slice of the mode; returns TSC cycles per packet.
    fn slice(&mut self, gaps: &mut Histogram, probe: &mut impl Sliced) -> f64 {
        let (mut cycles, mut sent) = (0, 0);
        let before = self.sunk.get();
        for _ in 0..SLICE {
            let start = tsc();
            gaps.add(start - self.last);
            self.last = start;
            sent += self.turn(start, probe);
            if self.mode == Mode::Decap {
                let middle = tsc();
                self.inbound.run_with(middle, probe);
                cycles += tsc() - middle;
            } else {
                cycles += tsc() - start;
            }
        }
        self.packets += sent;
        self.lost += sent - (self.sunk.get() - before);
        cycles as f64 / sent.max(1) as f64
    }

    /// What comes before the second worker, or all of it; returns packets that entered.
    #[inline(always)]
    fn turn(&mut self, now: u64, probe: &mut impl Sliced) -> u64 {
        match self.mode {
            Mode::Encap => self.outbound.run_with(now, probe) as u64,
            Mode::Decap => self.outbound.run(now) as u64,
            Mode::Loop => {
                let sent = self.outbound.run_with(now, probe);
                self.inbound.run_with(tsc(), probe);
                sent as u64
            }
            Mode::Io | Mode::Mac => {
                let macs = (self.mode == Mode::Mac).then_some([MACS[1], MACS[0]]);
                let [from, to] = &mut self.outbound.ports[..] else { return 0 };
                forward::burst(&mut from.queue, &mut to.queue, macs).received
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_medians_and_the_generator_is_no_stage() {
        let slices = [[5.0; 7], [4.0; 7], [900.0; 7]];
        assert_eq!(stages(&slices, 3.0), Some([2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]));
        assert_eq!(stages(&[], 3.0), None);
    }
}
