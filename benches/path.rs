//! TSC cycles per packet of encapsulation and decapsulation: whole loops of `path::Worker::run` on ports in memory, a burst of
//! 64 at a time, one tunnel, every engine that this CPU runs.
//!
//! `cargo bench --bench path -- [--rounds N] [--bursts N] [--out FILE]`. Putting frames into a port, crossing the port both ways
//! and taking them out is measured alone, with the same frames, subtracted and told. Engines, sizes and directions take turns
//! in every round. Of the bursts of a round the median counts, so that what interrupts some of them does not; of the rounds the
//! median is told, and how far apart the middle half of them lies.

use std::hint::black_box;
use std::time::Instant;

use penstock_dataplane::crypto::{self, Engine};
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::port::memory::MemoryFrame;
use penstock_dataplane::port::{BURST, Burst, Port};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::frame;
use penstock_tables::{TunnelSpec, Verdict};
use serde_json::json;

/// Octets of the inner packets.
const SIZES: [usize; 3] = [64, 512, 1420];

/// The two ends of a tunnel: one seals, the other opens.
struct Pair {
    near: Gateway,
    far: Gateway,
}

impl Pair {
    fn new(engine: &'static dyn Engine, sa: &Sa) -> Pair {
        let end = |number, peer| {
            let mut gateway = Gateway::with_engine(Site::new(number), engine);
            let tunnel = gateway.tunnel(peer);
            let spec = TunnelSpec { inner_mtu: 1500, ..gateway.tunnel_spec(peer) };
            gateway.writer.update_tunnel(tunnel, &spec).unwrap();
            (gateway, tunnel)
        };
        let ((mut near, to_far), (mut far, to_near)) = (end(1, 2), end(2, 1));
        near.seal_with(to_far, 2, sa, Limits::default());
        far.open_with(to_near, sa, 1024);
        Pair { near, far }
    }

    /// Cycles per packet of both directions, and of what surrounds each.
    fn measure(&mut self, octets: &[u8], bursts: u64) -> [f64; 4] {
        let mut samples = [(); 4].map(|()| Vec::with_capacity(bursts as usize));
        for _ in 0..bursts {
            let mut cycles = [0; 4];
            let start = tsc();
            inject(&mut self.near, octets);
            cross(&mut self.near, PRIVATE);
            let frames = drain(&mut self.near, PRIVATE);
            cycles[0] = tsc() - start;
            drop(frames);

            let start = tsc();
            inject(&mut self.near, octets);
            black_box(self.near.worker.run(start));
            let sealed = drain(&mut self.near, PUBLIC);
            cycles[1] = tsc() - start;

            let start = tsc();
            let sealed = through(&mut self.far, sealed, |gateway| cross(gateway, PUBLIC), PUBLIC);
            cycles[2] = tsc() - start;

            let start = tsc();
            let run = |gateway: &mut Gateway| {
                black_box(gateway.worker.run(start));
            };
            let opened = through(&mut self.far, sealed, run, PRIVATE);
            cycles[3] = tsc() - start;
            drop(opened);
            samples.iter_mut().zip(cycles).for_each(|(samples, cycles)| samples.push(cycles as f64));
        }
        samples.map(|samples| median(samples).0 / BURST as f64)
    }

    /// Nothing was lost: every packet that was sealed was opened.
    fn check(&self) {
        for gateway in [&self.near, &self.far] {
            let tally = &gateway.worker.tally;
            assert_eq!(
                tally.received,
                tally.of(Verdict::Sent),
                "packets were dropped: the figures mean nothing"
            );
        }
        assert_eq!(self.near.worker.tally.received, self.far.worker.tally.received);
    }
}

fn inject(gateway: &mut Gateway, octets: &[u8]) {
    (0..BURST).for_each(|_| gateway.inject(PRIVATE, octets));
}

/// A burst from a port's input to its output.
fn cross(gateway: &mut Gateway, port: usize) {
    let queue = &mut gateway.worker.ports[port].queue;
    let mut burst = Burst::new();
    queue.receive(&mut burst);
    queue.send(&mut burst);
}

fn drain(gateway: &mut Gateway, port: usize) -> Vec<MemoryFrame> {
    gateway.worker.ports[port].queue.drain_sent().collect()
}

/// Sends frames into the public port and takes what comes out of `port` after `work`.
fn through(
    gateway: &mut Gateway,
    frames: Vec<MemoryFrame>,
    work: impl Fn(&mut Gateway),
    port: usize,
) -> Vec<MemoryFrame> {
    let queue = &mut gateway.worker.ports[PUBLIC].queue;
    frames.into_iter().for_each(|frame| queue.inject_frame(frame));
    work(gateway);
    drain(gateway, port)
}

/// Median and interquartile range.
fn median(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |quarter: usize| values[(values.len() - 1) * quarter / 4];
    (at(2), at(3) - at(1))
}

struct Options {
    rounds: usize,
    bursts: u64,
    out: Option<String>,
}

fn options() -> Options {
    let mut options = Options { rounds: 9, bursts: 2000, out: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
        match argument.as_str() {
            "--rounds" => options.rounds = value().parse().expect("a number of rounds"),
            "--bursts" => options.bursts = value().parse().expect("a number of bursts"),
            "--out" => options.out = Some(value()),
            // cargo's own.
            "--bench" => {}
            other => panic!("unknown option {other}: --rounds N, --bursts N or --out FILE"),
        }
    }
    options
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn machine() -> serde_json::Value {
    let info = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value.trim()).to_owned()
    };
    let (started, first) = (Instant::now(), tsc());
    std::thread::sleep(std::time::Duration::from_millis(200));
    let mhz = (tsc() - first) as f64 / started.elapsed().as_secs_f64() / 1e6;
    json!({
        "cpu": format!("{} family {} model {}", field("model name"), field("cpu family"), field("model\t")),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "tsc_mhz": mhz.round(),
    })
}

fn load() -> String {
    read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

fn main() {
    let options = options();
    if let Some(core) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        core_affinity::set_for_current(core);
    }
    let ciphers = [("aes-128-gcm", sa_between(1, 2)), ("aes-256-gcm", sa_between(1, 2).with_aes256())];
    let engines: Vec<_> =
        crypto::names().into_iter().filter_map(|name| crypto::select(Some(name)).ok()).collect();
    let mut cases = vec![];
    for engine in &engines {
        for (cipher, sa) in &ciphers {
            for size in SIZES {
                cases.push((*engine, *cipher, size, Pair::new(*engine, sa), Vec::<[f64; 4]>::new()));
            }
        }
    }
    for round in 0..=options.rounds {
        for (_, _, size, pair, measured) in &mut cases {
            let octets = frame(mac(1, 0), mac(1, 2), None, &between(1, 2, *size).octets());
            let cycles = pair.measure(&octets, options.bursts);
            // The first round warms up.
            if round > 0 {
                measured.push(cycles);
            }
        }
    }
    let (machine, load) = (machine(), load());
    let mut lines = String::new();
    println!("engine     cipher       octets  direction  cycles/packet    (range)  surroundings");
    for (engine, cipher, size, pair, measured) in &cases {
        pair.check();
        for (direction, around, whole) in [("encap", 0, 1), ("decap", 2, 3)] {
            let (own, range) = median(measured.iter().map(|it| it[whole] - it[around]).collect());
            let (surroundings, _) = median(measured.iter().map(|it| it[around]).collect());
            let name = engine.name();
            println!(
                "{name:10} {cipher:12} {size:6}  {direction:9} {own:14.1} {range:10.1} {surroundings:13.1}"
            );
            let line = json!({
                "benchmark": "path", "port": "memory", "engine": name, "cipher": cipher, "esn": true,
                "bytes": size, "direction": direction, "burst": BURST, "replay_window": 1024,
                "tsc_cycles": (own * 10.0).round() / 10.0, "range": (range * 10.0).round() / 10.0,
                "generator_tsc_cycles": (surroundings * 10.0).round() / 10.0, "rounds": measured.len(),
                "packets": measured.len() as u64 * options.bursts * BURST as u64,
                "machine": machine, "load": load,
            });
            lines += &format!("{line}\n");
        }
    }
    println!("load average at the end: {load}");
    if let Some(file) = options.out {
        std::fs::write(&file, lines).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
}
