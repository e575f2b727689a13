//! The harness of ports: any devices of DPDK, such as net_pcap in a circle, net_null, net_memif or a NIC; rates come out.
//!
//! Workers run as in a gateway, and their counters are read from beside them over a stretch of time. Nothing is subtracted:
//! the figures hold the devices' own cost.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::lcores::{self, Crew};
use super::options::{BenchOptions, Mode};
use super::ports::BenchPort;
use super::sites::{MACS, Site, Sites};
use super::{Failure, forward};
use penstock_dataplane::crypto::Engine;
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::dpdk::{Device, DeviceConfig, DeviceName, Eal, Pool, PoolConfig};
use penstock_dataplane::port::Burst;
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::worker::{self, Idle};

/// Descriptors of a queue.
const DESCRIPTORS: u16 = 1024;
/// How long links may take to come up.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// How long an end of net_memif takes to see that the other one has gone.
const SETTLE: Duration = Duration::from_millis(200);
/// Slots whose windows may be made to forget before each burst.
const CIRCLE: u32 = 64;

/// Ports that run, with their queue pairs by worker.
pub struct Ports {
    devices: Vec<Device>,
    /// By port and queue.
    queues: Vec<Vec<Option<DpdkPort>>>,
    drivers: Vec<String>,
    in_a_circle: bool,
    /// Where their mbufs come from.
    pub pool: Pool,
}

impl Ports {
    /// Opens and starts all of them.
    ///
    /// # Errors
    /// What the devices say.
    pub fn open(eal: &Eal, names: &[DeviceName], options: &BenchOptions) -> Result<Ports, Failure> {
        let queues = u32::from(options.queues());
        let enough = (names.len() as u32 * queues * 2 * u32::from(DESCRIPTORS) + 4096).next_power_of_two();
        let frames = options.total_num_mbufs.unwrap_or(enough);
        let pool = Pool::new(eal, "ports", &PoolConfig { frames, ..PoolConfig::default() })?;
        let mut ports = Ports {
            devices: vec![],
            queues: vec![],
            drivers: vec![],
            in_a_circle: false,
            pool: pool.clone(),
        };
        for name in names {
            let mut device = Device::open(eal, name)?;
            let config = DeviceConfig {
                queues: options.queues(),
                rx_descriptors: DESCRIPTORS,
                tx_descriptors: DESCRIPTORS,
                ..DeviceConfig::default()
            };
            device.configure(&config, &pool)?;
            let pairs = device.start()?;
            // Feeds are addressed to the benchmark's own MACs, not to the device's; some soft devices know no such mode.
            drop(device.set_promiscuous(true));
            ports
                .queues
                .push(pairs.into_iter().map(|pair| Some(DpdkPort::new(pair, pool.clone()))).collect());
            ports.drivers.push(device.info()?.driver);
            ports.devices.push(device);
            ports.in_a_circle |= name.as_str().contains("infinite_rx=1");
        }
        ports.wait_for_links();
        Ok(ports)
    }

    fn wait_for_links(&self) {
        let until = Instant::now() + LINK_PATIENCE;
        let down = |device: &&Device| !device.link().is_ok_and(|link| link.up);
        while self.devices.iter().any(|device| down(&device)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        for device in self.devices.iter().filter(down) {
            eprintln!("penstock-testpmd: the link of {} is down; going on", device.name());
        }
    }

    /// Takes a queue pair out, for whoever is to own it.
    ///
    /// # Errors
    /// Where it is taken or was never there.
    pub fn take(&mut self, port: usize, queue: usize) -> Result<DpdkPort, Failure> {
        let pair = self.queues.get_mut(port).and_then(|queues| queues.get_mut(queue)).and_then(Option::take);
        pair.ok_or_else(|| format!("port {port} has no queue pair {queue} left").into())
    }

    /// Closes one after the other. net_memif tells its peer from a thread of DPDK's: where both ends are ours, that must be
    /// over before the other end goes.
    pub fn close(self) {
        drop(self.queues);
        for (device, driver) in self.devices.into_iter().zip(&self.drivers) {
            drop(device);
            if driver == "net_memif" {
                std::thread::sleep(SETTLE);
            }
        }
    }

    /// The drivers, for reports: `net_pcap+net_null`.
    pub fn harness(&self) -> String {
        self.drivers.join("+")
    }
}

/// What a stretch of time brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// Seconds of it.
    pub seconds: f64,
    /// Frames that entered.
    pub received: u64,
    /// Frames that left.
    pub sent: u64,
    /// Frames that entered and never left.
    pub lost: u64,
    /// TSC cycles of loops that had frames; 0 where nobody counts them.
    pub busy: u64,
}

impl Rates {
    fn since(self, before: Rates, seconds: f64) -> Rates {
        Rates {
            seconds,
            received: self.received - before.received,
            sent: self.sent - before.sent,
            lost: 0,
            busy: self.busy - before.busy,
        }
    }
}

/// Frames that a forwarding worker counted; the gateway's are in its region.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Counts {
    received: AtomicU64,
    sent: AtomicU64,
}

/// A run over ports, before it starts.
pub struct Run<'a> {
    /// The options.
    pub options: &'a BenchOptions,
    /// What the workers do.
    pub mode: Mode,
    /// The regions.
    pub sites: &'a Sites,
    /// Seals and opens.
    pub engine: &'static dyn Engine,
    /// Cycles in a second.
    pub hz: u64,
    counts: Vec<Counts>,
    /// By worker: its queue pairs, private and public by turns.
    pairs: Vec<Mutex<Vec<DpdkPort>>>,
    /// Whether the same ESP packets come again and again.
    circle: bool,
    /// Ports that are wired to each other: two, or one to itself.
    width: usize,
}

impl<'a> Run<'a> {
    /// Deals the queue pairs of the ports in `dealt` to the workers.
    ///
    /// # Errors
    /// Where the SAs are too many to be fed in a circle, or queue pairs lack.
    pub fn new(
        options: &'a BenchOptions,
        mode: Mode,
        sites: &'a Sites,
        (engine, hz): (&'static dyn Engine, u64),
        ports: &mut Ports,
        dealt: usize,
    ) -> Result<Run<'a>, Failure> {
        let circle = ports.in_a_circle && mode == Mode::Decap;
        if circle && options.sas.iter().any(|sas| *sas > CIRCLE) {
            return Err(format!("a capture in a circle (infinite_rx) can have at most {CIRCLE} SAs").into());
        }
        let workers = options.workers();
        let mut pairs: Vec<Vec<DpdkPort>> = (0..workers).map(|_| vec![]).collect();
        for queue in 0..usize::from(options.queues()) {
            for port in 0..dealt {
                pairs[queue % workers].push(ports.take(port, queue)?);
            }
        }
        let counts = (0..workers).map(|_| Counts::default()).collect();
        let pairs = pairs.into_iter().map(Mutex::new).collect();
        Ok(Run { options, mode, sites, engine, hz, counts, pairs, circle, width: dealt.min(2) })
    }

    /// One worker, until the crew stops.
    ///
    /// # Errors
    /// Where its ports are gone.
    pub fn work(&self, index: usize, crew: &Crew) -> Result<(), Failure> {
        let pairs = std::mem::take(&mut *self.pairs[index].lock().map_err(|_| "another worker failed")?);
        let burst = usize::from(self.options.burst);
        let mut ports = pairs.into_iter().enumerate().map(|(at, pair)| {
            // ESP comes in by the public side.
            let circle = (self.circle && at % 2 == 1).then_some(&self.sites.inbound);
            BenchPort::Device { port: Box::new(pair), burst, circle }
        });
        let mut next = || ports.next().ok_or("a worker has no ports");
        match self.mode {
            Mode::Encap | Mode::Decap => {
                let site = if self.mode == Mode::Encap { &self.sites.outbound } else { &self.sites.inbound };
                let mut worker = site.parts().worker(index, [next()?, next()?], self.engine, self.hz);
                worker::spin(&mut worker, Idle::Poll, crew.stop_flag(), self.hz, tsc);
            }
            Mode::Loop => self.seal_and_open(index, [next()?, next()?], crew),
            Mode::Io | Mode::Mac => self.forward(index, ports.collect(), crew),
        }
        Ok(())
    }

    fn seal_and_open(&self, index: usize, [private, far]: [BenchPort<'a>; 2], crew: &Crew) {
        let wire = std::rc::Rc::new(std::cell::RefCell::new(Burst::new()));
        let between = || BenchPort::Wire(wire.clone());
        let worker = |site: &Site, port| site.parts().worker(index, [port, between()], self.engine, self.hz);
        let (mut seals, mut opens) =
            (worker(&self.sites.outbound, private), worker(&self.sites.inbound, far));
        while !crew.stopped() {
            let now = tsc();
            let received = seals.run(now);
            opens.run(tsc());
            if received > 0 {
                seals.tally.busy_cycles += tsc() - now;
            }
        }
    }

    fn forward(&self, index: usize, mut ports: Vec<BenchPort<'a>>, crew: &Crew) {
        let macs = (self.mode == Mode::Mac).then_some([MACS[1], MACS[0]]);
        let counts = &self.counts[index];
        let (mut received, mut sent) = (0, 0);
        while !crew.stopped() {
            for pair in ports.chunks_mut(self.width) {
                let forwarded = match pair {
                    [left, right] => {
                        let (there, back) =
                            (forward::burst(left, right, macs), forward::burst(right, left, macs));
                        [there, back]
                    }
                    [alone] => [forward::back(alone, macs), Default::default()],
                    _ => continue,
                };
                received += forwarded.iter().map(|it| it.received).sum::<u64>();
                sent += forwarded.iter().map(|it| it.sent).sum::<u64>();
            }
            counts.received.store(received, Ordering::Relaxed);
            counts.sent.store(sent, Ordering::Relaxed);
        }
    }

    /// What was counted until now.
    pub fn counted(&self) -> Rates {
        let (enters, leaves) = match self.mode {
            Mode::Encap => (self.sites.outbound.tally(), self.sites.outbound.tally()),
            Mode::Decap => (self.sites.inbound.tally(), self.sites.inbound.tally()),
            Mode::Loop => (self.sites.outbound.tally(), self.sites.inbound.tally()),
            Mode::Io | Mode::Mac => {
                let sum = |of: fn(&Counts) -> &AtomicU64| -> u64 {
                    self.counts.iter().map(|counts| of(counts).load(Ordering::Relaxed)).sum()
                };
                let (received, sent) = (sum(|counts| &counts.received), sum(|counts| &counts.sent));
                return Rates { received, sent, ..Rates::default() };
            }
        };
        Rates {
            seconds: 0.0,
            received: enters.received,
            sent: leaves.of(penstock_tables::Verdict::Sent),
            lost: 0,
            busy: enters.busy_cycles,
        }
    }

    /// From beside the workers: lets them run in, then watches them for the options' duration. Returns what was counted before,
    /// and what came then.
    pub fn watch(&self, crew: &Crew) -> (Rates, Rates) {
        std::thread::sleep(Duration::from_millis(300));
        let duration = Duration::from_secs_f64(self.options.duration);
        let period = match self.options.stats_period {
            period if period > 0.0 => Duration::from_secs_f64(period),
            _ => duration,
        };
        let (first, started) = (self.counted(), Instant::now());
        let (mut last, mut at) = (first, started);
        while started.elapsed() < duration && !crew.stopped() {
            std::thread::sleep(period.min(duration.saturating_sub(started.elapsed())));
            let (now, rates) = (Instant::now(), self.counted());
            if self.options.stats_period > 0.0 {
                let step = rates.since(last, (now - at).as_secs_f64());
                let mpps = |frames: u64| frames as f64 / step.seconds / 1e6;
                eprintln!("rx {:.3} Mpps, tx {:.3} Mpps", mpps(step.received), mpps(step.sent));
            }
            (last, at) = (rates, now);
        }
        (first, last.since(first, (at - started).as_secs_f64()))
    }
}

/// Runs one mode over the ports and measures it.
///
/// # Errors
/// What the ports, the region or the threads say.
pub fn measure(eal: &Eal, run: &Run<'_>) -> Result<Rates, Failure> {
    let beside = |crew: &Crew| {
        let watched = run.watch(crew);
        crew.stop();
        Ok(watched)
    };
    let (_, (first, rates)) =
        lcores::run(eal, run.options.workers(), false, |index, crew| run.work(index, crew), beside)?;
    // Where the workers stand still no burst is under way between two ports, or between sealing and opening.
    let all = run.counted().since(first, 0.0);
    Ok(Rates { lost: all.received.saturating_sub(all.sent), ..rates })
}
