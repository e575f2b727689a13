//! Benchmark runs in testpmd's dialect: `penstock-dataplane EAL-OPTIONS -- OPTIONS`. No control process: the run makes its
//! own tables through the code that control uses, in a region of its own that it removes.
//!
//! `encap` and `decap` are timed apart in one thread: a burst of fresh packets enters an outbound worker, its ESP packets
//! enter an inbound worker, and what comes out is freed; so decapsulation has its replay window and true sequence
//! numbers, and no packet is opened twice.

mod generator;
mod options;
mod report;
mod rig;

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::crypto;
use crate::dpdk::clock::{tsc, tsc_hz};
use crate::dpdk::{Eal, LogLevel};
use options::{BenchOptions, Mode};
use report::{Line, Machine};
use rig::Rig;

type Failure = Box<dyn Error + Send + Sync>;

/// How many bursts are timed between two looks at the clock of the run.
const SLICE: u32 = 64;

/// Whether the command line is testpmd's dialect: it has a `--`.
pub fn is_bench(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "--")
}

/// Runs what the command line asks for and prints it.
///
/// # Errors
/// A sentence that says what is wrong with the options, DPDK or the region.
pub fn run(arguments: Vec<String>) -> Result<(), Failure> {
    let at = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let program = arguments.first().cloned().unwrap_or_default();
    let ours = std::iter::once(program).chain(arguments.iter().skip(at + 1).cloned());
    let options = BenchOptions::try_parse_from(ours).unwrap_or_else(|error| error.exit());
    let engine = crypto::select(options.engine.as_deref())?;
    let eal = Eal::start(arguments[..at].to_vec(), LogLevel::Error)?;
    let hz = tsc_hz(&eal);
    let machine = Machine::read(hz);
    for sas in options.sas() {
        let mut rig = Rig::new(&eal, &options, engine, sas, hz)?;
        for size in &options.sizes {
            let measured = measure(&mut rig, size, &options);
            for mode in options.modes() {
                let line = Line::new(mode, size, sas, engine.name(), &options, &measured, hz);
                println!("{}", if options.json { line.json(&machine) } else { line.text() });
            }
        }
        rig.finish()?;
    }
    Ok(())
}

/// Cycles and packets of one measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Cycles per packet of the generator alone.
    pub generator: f64,
    /// Cycles per packet of the outbound worker, with its generator.
    pub encap: f64,
    /// Cycles per packet of the inbound worker.
    pub decap: f64,
    /// Inner octets per packet.
    pub inner: f64,
    /// Packets that were counted.
    pub packets: u64,
    /// Packets that did not come out at the far end.
    pub lost: u64,
}

/// Runs one size for the options' duration; medians over slices.
fn measure(rig: &mut Rig, size: &options::Size, options: &BenchOptions) -> Measured {
    rig.set_size(size);
    rig.warm_up();
    let (mut generator, mut encap, mut decap) = (Vec::new(), Vec::new(), Vec::new());
    let (mut packets, mut lost) = (0u64, 0u64);
    let until = Instant::now() + Duration::from_secs_f64(options.duration);
    while Instant::now() < until {
        let (mut sent, mut opened, mut cycles) = (0, 0, [0u64; 3]);
        for _ in 0..SLICE {
            let burst = rig.burst(tsc);
            sent += burst.sent;
            opened += burst.opened;
            cycles.iter_mut().zip(burst.cycles).for_each(|(sum, part)| *sum += part);
        }
        generator.push(cycles[0] as f64 / sent.max(1) as f64);
        encap.push(cycles[1] as f64 / sent.max(1) as f64);
        decap.push(cycles[2] as f64 / opened.max(1) as f64);
        packets += sent;
        lost += sent - opened;
    }
    let inner = rig.inner_octets();
    Measured {
        generator: median(&mut generator),
        encap: median(&mut encap),
        decap: median(&mut decap),
        inner,
        packets,
        lost,
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Mode {
    /// Cycles per packet of the mode, generator subtracted.
    fn cycles(self, measured: &Measured) -> f64 {
        match self {
            Mode::Encap => measured.encap - measured.generator,
            Mode::Decap => measured.decap,
            Mode::Loop => measured.encap - measured.generator + measured.decap,
        }
    }
}
