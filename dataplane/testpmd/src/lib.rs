//! Benchmark runs in testpmd's dialect: `penstock-testpmd EAL-OPTIONS -- OPTIONS`. No control process: the run makes its
//! own tables through the code that control uses, in regions of its own that it removes.
//!
//! Without a device, `memory` generates packets and counts cycles; with devices, `devices` moves what they give and counts rates,
//! and `tester` searches for the rate at which nothing is lost.

mod devices;
mod forward;
mod generator;
mod histogram;
mod huge;
mod lcores;
mod memory;
mod options;
mod ports;
mod probe;
mod report;
mod sites;
mod spread;
mod tester;
mod updates;

use std::error::Error;

use clap::Parser;

use devices::{Ports, Run};
use memory::Bench;
use options::{BenchOptions, Mode, Size};
use penstock_dataplane::crypto::{self, Engine};
use penstock_dataplane::dpdk::clock::tsc_hz;
use penstock_dataplane::dpdk::{DeviceName, Eal, LogLevel, Pool, PoolConfig};
use probe::Timed;
pub use report::KEYS;
use report::{About, Line, Machine};
use sites::Sites;
use tester::Tester;

type Failure = Box<dyn Error + Send + Sync>;

/// Mbufs of a worker in memory: more than it and its wire ever hold.
const FRAMES: u32 = 4096;
/// Without `--`, these are ours and not EAL's.
const HELP: [&str; 4] = ["-h", "--help", "-V", "--version"];

/// Runs the measurements that the command line (with the program's name) names, and prints their results.
///
/// # Errors
/// A sentence that says what is wrong with the options, DPDK or the region.
pub fn run(arguments: Vec<String>) -> Result<(), Failure> {
    let at = arguments.iter().position(|argument| argument == "--");
    let (eal, ours) = match at {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None if arguments.iter().any(|argument| HELP.contains(&argument.as_str())) => {
            (&[][..], &arguments[1..])
        }
        None => (&arguments[..], &[][..]),
    };
    let program = arguments.first().cloned();
    let options = BenchOptions::try_parse_from(program.into_iter().chain(ours.iter().cloned()))
        .unwrap_or_else(|error| error.exit());
    let devices = options::devices(eal)?;
    options.check(devices.len())?;
    let engine = crypto::select(options.engine.as_deref())?;
    let eal = Eal::start(eal.to_vec(), LogLevel::Error)?;
    let hz = tsc_hz(&eal);
    let bench = Setting { machine: Machine::read(hz, &eal.version()), eal, options: &options, engine, hz };
    if options.spread {
        bench.spread()
    } else if devices.is_empty() {
        bench.in_memory()
    } else if options.rfc2544 {
        bench.beside_a_tester(&devices)
    } else {
        bench.on_ports(&devices)
    }
}

/// What all measurements of a run share.
struct Setting<'o> {
    eal: Eal,
    options: &'o BenchOptions,
    engine: &'static dyn Engine,
    hz: u64,
    machine: Machine,
}

impl Setting<'_> {
    fn about<'a>(&'a self, mode: Mode, size: &'a Size, sas: u32, harness: &'a str) -> About<'a> {
        let (options, machine, engine) = (self.options, &self.machine, self.engine.name());
        About { options, machine, mode, size, sas, engine, harness }
    }

    fn print(&self, line: &Line) {
        println!("{}", if self.options.json { line.json() } else { line.text() });
    }

    /// Every mode, size and number of SAs on the generator in memory.
    fn in_memory(&self) -> Result<(), Failure> {
        let options = self.options;
        // The engine is timed by itself only where that is asked for.
        let engine = if options.stages { Box::leak(Box::new(Timed(self.engine))) } else { self.engine };
        let frames = FRAMES * u32::from(options.nb_cores);
        let pool = Pool::new(&self.eal, "bench", &PoolConfig { frames, ..PoolConfig::default() })?;
        for sas in options.sas.iter().copied() {
            let mut sites = Sites::new(options, sas)?;
            let sides = [sites.outbound.parts(), sites.inbound.parts()];
            let bench = Bench { options, sides, pool: pool.clone(), engine, sas, hz: self.hz };
            for (mode, size) in
                options.forward_mode.iter().flat_map(|mode| options.sizes.iter().map(|it| (*mode, it)))
            {
                let huge = match mode {
                    Mode::Decap => sites.inbound.in_huge_pages(),
                    Mode::Loop => sites.outbound.in_huge_pages() && sites.inbound.in_huge_pages(),
                    _ => sites.outbound.in_huge_pages(),
                };
                let beside = |crew: &lcores::Crew| match options.updates {
                    0 => Ok(updates::tell(&sites.outbound, options, crew)),
                    _ => updates::churn(&mut sites.outbound, options, sas, crew).map(Some),
                };
                let work = |index: usize, crew: &lcores::Crew| bench.work(mode, size, index, crew);
                let workers = options.workers();
                let (measured, updates) = lcores::run(&self.eal, workers, options.updates > 0, work, beside)?;
                if measured.iter().any(|it| it.lost > 0) {
                    sites.tell_drops();
                }
                self.print(&self.about(mode, size, sas, "memory").memory(&measured, updates, huge));
            }
        }
        Ok(())
    }

    /// Every mode, size and number of SAs, received by one worker and worked on by all.
    fn spread(&self) -> Result<(), Failure> {
        let options = self.options;
        let frames = FRAMES * (1 + u32::from(options.nb_cores));
        let pool = Pool::new(&self.eal, "bench", &PoolConfig { frames, ..PoolConfig::default() })?;
        for sas in options.sas.iter().copied() {
            let sites = Sites::new(options, sas)?;
            for (mode, size) in
                options.forward_mode.iter().flat_map(|mode| options.sizes.iter().map(|it| (*mode, it)))
            {
                let how = (mode, size, sas);
                let bench = spread::Bench::new(options, &sites, pool.clone(), (self.engine, self.hz), how);
                let work = |index: usize, crew: &lcores::Crew| bench.work(index, crew);
                let (measured, ()) = lcores::run(&self.eal, options.workers(), false, work, |_| Ok(()))?;
                let measured = measured.into_iter().flatten().next().unwrap_or_default();
                self.print(&self.about(mode, size, sas, "memory, one receiver").spread(&measured));
            }
            sites.tell_drops();
        }
        Ok(())
    }

    /// One mode on the ports that DPDK was given.
    fn on_ports(&self, names: &[DeviceName]) -> Result<(), Failure> {
        let (options, mode, sas) = (self.options, self.options.forward_mode[0], self.options.sas[0]);
        let sites = Sites::new(options, sas)?;
        let mut ports = Ports::open(&self.eal, names, options)?;
        let run = Run::new(options, mode, &sites, (self.engine, self.hz), &mut ports, names.len())?;
        let rates = devices::measure(&self.eal, &run)?;
        drop(run);
        sites.tell_drops();
        self.print(&self.about(mode, &options.sizes[0], sas, &ports.harness()).ports(&rates));
        ports.close();
        Ok(())
    }

    /// The search for the rate without a loss, size by size.
    fn beside_a_tester(&self, names: &[DeviceName]) -> Result<(), Failure> {
        let (options, mode, sas) = (self.options, self.options.forward_mode[0], self.options.sas[0]);
        let sites = Sites::new(options, sas)?;
        let mut ports = Ports::open(&self.eal, names, options)?;
        let run = Run::new(options, mode, &sites, (self.engine, self.hz), &mut ports, 2)?;
        let ends = [ports.take(2, 0)?, ports.take(3, 0)?];
        let harness = ports.harness();
        let mut tester = Tester::new(mode, options.udp, self.hz, ends, ports.pool.clone());
        let beside = |crew: &lcores::Crew| {
            for size in &options.sizes {
                let found = tester.search(size, options.duration);
                self.print(&self.about(mode, size, sas, &harness).tester(&found));
            }
            crew.stop();
            Ok(())
        };
        lcores::run(&self.eal, 1, true, |index, crew| run.work(index, crew), beside)?;
        drop((run, tester));
        sites.tell_drops();
        ports.close();
        Ok(())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
