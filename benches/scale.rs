//! What 100,000 tunnels cost control, and what publishing them costs a worker that runs meanwhile.
//!
//! `cargo bench --bench scale -- [--tunnels N] [--rounds N] [--out FILE]`; RAYON_NUM_THREADS=1 for the figures of one core. A round
//! reads a file of so many tunnels with keys from a lab secret, publishes, compares with the same file, rekeys all, adopts what
//! stands there as a restarted control does, and takes all but one out. Meanwhile a worker on core 1 seals bursts of 64 on that one,
//! on ports in memory; its longest time between two polls is told beside that of as long a run without changes, 0 where it stayed
//! below 20 us. Gaps in which the kernel gave the worker's core to another thread are told apart. Prints a line of JSON for each
//! step: medians over the rounds.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use penstock_control::config::{Config, Machine};
use penstock_control::publish::journal::Journal;
use penstock_control::publish::plan::{Plan, plans};
use penstock_control::publish::routes::{KernelView, Routes, Target};
use penstock_control::publish::tunnels::Tunnels;
use penstock_dataplane::crypto;
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::path::Worker;
use penstock_dataplane::port::memory::MemoryPort;
use penstock_suite::memory::{Gateway, PRIVATE, PUBLIC, Site, mac};
use penstock_suite::packets::{Packet, frame, ip};
use penstock_tables::{Capacity, StateView, TablesWriter, Verdict};
use serde_json::json;

/// Longer than any loop with a burst takes: such gaps are looked at.
const LONG_MICROS: f64 = 20.0;

/// What is told of a step, a value for each round.
type Figures = BTreeMap<&'static str, Vec<f64>>;

struct Arguments {
    tunnels: u32,
    rounds: usize,
    out: Option<String>,
}

fn main() {
    let arguments = arguments();
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = configuration(arguments.tunnels);
    mhz();
    let mut figures = Figures::new();
    for _ in 0..arguments.rounds {
        round(directory.path(), &text, arguments.tunnels, &mut figures);
    }
    let machine = json!({ "cpu": cpu(), "load": fs::read_to_string("/proc/loadavg").unwrap().trim() });
    let threads = rayon_threads();
    let lines: String = figures
        .into_iter()
        .map(|(step, mut values)| {
            values.sort_by(f64::total_cmp);
            let line = json!({
                "benchmark": "scale", "tunnels": arguments.tunnels, "step": step, "value": values[values.len() / 2],
                "least": values[0], "most": values[values.len() - 1], "rounds": values.len(), "threads": threads,
                "machine": machine,
            });
            format!("{line}\n")
        })
        .collect();
    print!("{lines}");
    if let Some(out) = arguments.out {
        use std::io::Write as _;
        let file = fs::OpenOptions::new().append(true).create(true).open(out);
        file.unwrap().write_all(lines.as_bytes()).unwrap();
    }
}

fn arguments() -> Arguments {
    let mut arguments = Arguments { tunnels: 100_000, rounds: 3, out: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().expect("a value");
        match word.as_str() {
            "--tunnels" => arguments.tunnels = value().parse().expect("a number"),
            "--rounds" => arguments.rounds = value().parse().expect("a number"),
            "--out" => arguments.out = Some(value()),
            // What cargo adds.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    arguments
}

fn rayon_threads() -> usize {
    let said = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    said.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1));
        line.unwrap_or("?").to_owned()
    };
    format!("{} family {} model {}", line("vendor_id"), line("cpu family"), line("model\t"))
}

/// A file of `tunnels` tunnels: each its own peer in 198.18.0.0/15 and its own /26 of 10.0.0.0/8.
fn configuration(tunnels: u32) -> String {
    let tunnel = |index: u32| {
        let peer = Ipv4Addr::from_bits(0xc612_0000 + 256 + index);
        let remote = Ipv4Addr::from_bits(0x0a00_0000 + (index << 6));
        format!(
            "  t{index:06}:\n    peer: {peer}\n    local_prefixes: [172.16.0.0/16]\n    remote_prefixes: [{remote}/26]\n    \
             lab_keys: {{secret_file: secret}}\n"
        )
    };
    let all: String = (0..tunnels).map(tunnel).collect();
    format!(
        "lab: true\ncapacity: {{tunnels: {room}, routes: {room}}}\nports:\n  lan: {{device: net_null0, addresses: [172.16.0.1/16]}}\n  \
         wan: {{device: net_null1, addresses: [192.0.2.1/24]}}\nroutes: [{{to: 198.18.0.0/15, via: 192.0.2.254}}]\n\
         tunnels:\n{all}",
        room = tunnels + 64
    )
}

/// The kernel of that gateway.
fn kernel() -> KernelView {
    let via = Ipv4Addr::new(192, 0, 2, 254);
    let mut view = KernelView::default();
    view.routes.insert("198.18.0.0/15".parse().unwrap(), Target::Gateway(1, via));
    view.routes.insert("192.0.2.0/24".parse().unwrap(), Target::Link(1));
    view.neighbours.insert((1, via), [2, 0, 0, 0, 0, 9]);
    view
}

fn timed<T>(figures: &mut Figures, step: &'static str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    figures.entry(step).or_default().push(start.elapsed().as_secs_f64());
    result
}

fn round(directory: &Path, text: &str, tunnels: u32, figures: &mut Figures) {
    let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
    let file = directory.join("many.yaml");
    let checked = timed(figures, "read and check the file, s", || {
        Config::parse(&file, text, &machine).unwrap_or_else(|error| panic!("{error}"))
    });
    let plans = timed(figures, "make plans, s", || plans(&checked.config).unwrap());
    let capacity =
        Capacity { tunnels: tunnels + 16, replay_window: 1024, neighbours: 64, fib_groups: 1 << 16 };
    let mut gateway = timed(figures, "make the region, s", || {
        Gateway::with_capacity(Site::new(200), crypto::select(None).unwrap(), capacity)
    });
    let packet = Packet::new(ip(172, 16, 0, 2), ip(10, 0, 0, 1), 17, 512).octets();
    let octets = frame(mac(200, 0), mac(200, 2), None, &packet);
    let (worker, writer, state) = (&mut gateway.worker, &mut gateway.writer, &gateway.state);
    // The tunnel that the worker uses is there before it begins: it loses nothing.
    let mut control = Control::new(plans, directory.join("journal"), writer, state);
    let stop = AtomicBool::new(false);
    let watch = Watch::default();
    std::thread::scope(|scope| {
        scope.spawn(|| seal(worker, &octets, &stop, &watch));
        let start = Instant::now();
        control.round(&watch, figures);
        // As long again without changes.
        let length = start.elapsed();
        watch.take();
        std::thread::sleep(length);
        watch.told(["gap without changes, us", "core taken away, without changes, us"], figures);
        stop.store(true, Ordering::Relaxed);
    });
    fs::remove_dir_all(directory.join("journal")).unwrap();
}

/// Control's side of a round.
struct Control<'a> {
    plans: BTreeMap<String, Plan>,
    /// The first of the plans: the worker's.
    one: BTreeMap<String, Plan>,
    journal: PathBuf,
    tunnels: Tunnels,
    routes: Routes,
    writer: &'a mut TablesWriter,
    state: &'a StateView,
}

impl<'a> Control<'a> {
    /// With the first tunnel published.
    fn new(
        plans: BTreeMap<String, Plan>,
        journal: PathBuf,
        writer: &'a mut TablesWriter,
        state: &'a StateView,
    ) -> Control<'a> {
        let one: BTreeMap<String, Plan> =
            plans.iter().take(1).map(|(name, plan)| (name.clone(), plan.clone())).collect();
        let (mut tunnels, mut routes) = (Tunnels::new(Journal::open(&journal).unwrap()), Routes::default());
        tunnels.fill(writer, state, &one).unwrap();
        routes.publish(writer, &kernel(), &tunnels).unwrap();
        Control { plans, one, journal, tunnels, routes, writer, state }
    }

    fn round(&mut self, watch: &Watch, figures: &mut Figures) {
        let (kernel, count) = (kernel(), self.plans.len());
        let Control { plans, one, journal, tunnels, routes, writer, state } = self;
        watch.take();
        let problems = timed(figures, "publish SAs, s", || tunnels.fill(writer, state, plans).unwrap());
        assert_eq!(problems, Vec::<String>::new());
        watch.told(["gap while SAs are published, us", "core taken away, SAs published, us"], figures);
        timed(figures, "publish routes, s", || routes.publish(writer, &kernel, tunnels).unwrap());
        watch.told(["gap while routes are published, us", "core taken away, routes published, us"], figures);
        assert_eq!(tunnels.iter().filter(|(_, live)| live.outbound().is_some()).count(), count);
        let (changes, leaving) =
            timed(figures, "compare with the same file, s", || tunnels.prepare(writer, state, plans));
        assert_eq!((changes.untouched, leaving.len()), (count, 0));
        let stepped = timed(figures, "rekey all, s", || tunnels.step_all(writer, state, true).unwrap());
        assert_eq!((stepped.stepped, stepped.problems.len()), (count, 0), "{stepped:?}");
        timed(figures, "wipe what the rekey replaced, s", || reclaim(writer, state));
        watch.told(["gap while all are rekeyed, us", "core taken away, all rekeyed, us"], figures);
        drop(std::mem::replace(tunnels, Tunnels::new(Journal::open(journal).unwrap())));
        timed(figures, "adopt after a restart, s", || tunnels.adopt(writer, state, plans));
        let leaving = timed(figures, "take all out, s", || {
            let (_, leaving) = tunnels.prepare(writer, state, one);
            routes.publish(writer, &kernel, tunnels).unwrap();
            leaving
        });
        assert_eq!(leaving.len(), count - 1);
        leaving.into_iter().for_each(|slot| writer.retire_tunnel(slot));
        timed(figures, "wipe all, s", || reclaim(writer, state));
        watch.told(["gap while all are taken out, us", "core taken away, all taken out, us"], figures);
    }
}

fn reclaim(writer: &mut TablesWriter, state: &StateView) {
    while writer.reclaim(Some(state)) > 0 {
        std::thread::yield_now();
    }
}

/// The worker's longest gaps, in cycles: by itself, and with its core taken away.
#[derive(Default)]
struct Watch {
    own: AtomicU64,
    taken: AtomicU64,
}

impl Watch {
    fn take(&self) -> (u64, u64) {
        (self.own.swap(0, Ordering::Relaxed), self.taken.swap(0, Ordering::Relaxed))
    }

    fn told(&self, [by_itself, taken_away]: [&'static str; 2], figures: &mut Figures) {
        let (own, taken) = self.take();
        for (name, cycles) in [(by_itself, own), (taken_away, taken)] {
            figures.entry(name).or_default().push(cycles as f64 / mhz());
        }
    }
}

/// The worker: a burst of 64 after the other until `stop`. Every frame is sealed and sent.
fn seal(worker: &mut Worker<MemoryPort>, octets: &[u8], stop: &AtomicBool, watch: &Watch) {
    core_affinity::set_for_current(core_affinity::CoreId { id: 1 });
    let mhz = mhz();
    let (mut last, mut turns, mut offered) = (tsc(), turns(), 0);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..64 {
            assert!(worker.ports[PRIVATE].queue.inject(octets), "pool empty");
        }
        offered += 64;
        let now = tsc();
        let gap = now - last;
        last = now;
        if gap as f64 > LONG_MICROS * mhz {
            let before = std::mem::replace(&mut turns, self::turns());
            let longest = if turns == before { &watch.own } else { &watch.taken };
            longest.fetch_max(gap, Ordering::Relaxed);
            // What it took to look is not the worker's.
            last = tsc();
        }
        worker.run(now);
        worker.ports[PUBLIC].queue.drain_sent().for_each(drop);
    }
    assert_eq!((worker.tally.received, worker.tally.of(Verdict::Sent)), (offered, offered));
}

/// How often this thread was given a core.
fn turns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().nth(2).and_then(|word| word.parse().ok()).unwrap()
}

/// Cycles of the TSC in a microsecond, measured once.
fn mhz() -> f64 {
    static MHZ: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *MHZ.get_or_init(|| {
        let (start, cycles) = (Instant::now(), tsc());
        std::thread::sleep(std::time::Duration::from_millis(100));
        (tsc() - cycles) as f64 / start.elapsed().as_secs_f64() / 1e6
    })
}
