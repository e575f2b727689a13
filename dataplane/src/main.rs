//! `penstock-dataplane`: opens region, DPDK, ports and twins, starts the workers, and reports on the ports until it is told
//! to stop. Everything is allocated here, before the first packet.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Parser;
use penstock_dataplane::crypto;
use penstock_dataplane::dpdk::clock::{tsc, tsc_hz};
use penstock_dataplane::dpdk::{
    Device, DeviceConfig, Eal, EalConfig, Error as DpdkError, LogLevel, Mbuf, Memory, Pool, PoolConfig,
};
use penstock_dataplane::options::{HugePages, Options, PortOption};
use penstock_dataplane::path::answer::RateLimit;
use penstock_dataplane::path::hold::Held;
use penstock_dataplane::path::punt::Twins;
use penstock_dataplane::path::{Worker, WorkerPort};
use penstock_dataplane::plan::Plan;
use penstock_dataplane::port::Burst;
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::steering::Offer;
use penstock_dataplane::twin::{TwinBooks, TwinThread};
use penstock_dataplane::worker::{self, Idle};
use penstock_tables::segment::RegionError;
use penstock_tables::state::PortReport;
use penstock_tables::worker::Tally;
use penstock_tables::{StateOwner, TablesView};

type Failure = Box<dyn Error + Send + Sync>;

/// How long control may take to write the tables.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often ports are reported on.
const REPORT: Duration = Duration::from_millis(100);
/// Frames that wait between workers and twins, each way.
const TWIN_RING: usize = 2048;
/// ICMP errors a second and worker.
const ANSWERS_PER_SECOND: u32 = 1000;
/// Octets of a packet buffer besides its room for a frame: headroom and mbuf.
const BUFFER_OVERHEAD: u32 = 384;

fn main() -> ExitCode {
    let options = Options::parse();
    match options.check().map_err(Failure::from).and_then(|()| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-dataplane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if let Err(error) = penstock_tables::dump::leave_out() {
        eprintln!("penstock-dataplane: core dumps cannot be switched off: {error}");
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let engine = crypto::select(options.engine.as_deref())?;
    let Some(tables) = wait_for_tables(options, &stop)? else { return Ok(()) };
    let state = Arc::new(StateOwner::open(&options.region, tables.capacity(), options.cores.len())?);
    let eal = start_dpdk(options)?;
    let hz = tsc_hz(&eal);
    state.set_tsc_hz(hz);
    let data_room = options.data_room();
    let buffer = (u32::from(data_room) + BUFFER_OVERHEAD) / 1024 + 1;
    let frames = (options.memory * 5 / 8 * 1024 / buffer).clamp(4096, 1 << 20);
    let pool = Pool::new(&eal, "packets", &PoolConfig { frames, data_room, ..PoolConfig::default() })?;
    let (mut ports, plan) = open_ports(options, &eal, &pool, &tables)?;
    let twins: Twins<Mbuf> = Twins::new(TWIN_RING, tables.capacity().tunnel_slots());
    let parts = Parts { tables: Arc::new(tables), state: state.clone(), twins, engine, hz };
    let (twin_thread, books) = start_twins(options, &pool, &parts, &stop)?;
    let workers = start_workers(options, &eal, &mut ports, &plan, &pool, &parts, &stop)?;
    eprintln!(
        "penstock-dataplane: {} ports, {} workers on CPUs {:?}, engine {}, {}",
        ports.len(),
        workers.len(),
        options.cores,
        engine.name(),
        eal.version(),
    );
    plan.lines().iter().for_each(|line| eprintln!("penstock-dataplane: {line}"));
    let died = report_until(&stop, &ports, &pool, (&parts.twins, &books), &state, &workers);
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| "a worker died of a defect; please report it")??;
    }
    twin_thread.join().map_err(|_| "the twins' thread died of a defect; please report it")?;
    if died { Err("a worker ended before it was told to".into()) } else { Ok(()) }
}

/// Control may start later than we do.
fn wait_for_tables(options: &Options, stop: &AtomicBool) -> Result<Option<TablesView>, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        match TablesView::open(&options.region) {
            Ok(tables) => return Ok(Some(tables)),
            Err(RegionError::Missing { .. } | RegionError::Foreign { .. }) if Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start_dpdk(options: &Options) -> Result<Eal, Failure> {
    let config = |memory| EalConfig {
        main_core: options.control_core,
        memory,
        file_prefix: options.file_prefix.clone(),
        devices: options.ports.iter().map(|port| port.device.clone()).collect(),
        log_level: LogLevel::Critical,
        telemetry: false,
    };
    let huge = Memory::HugePages { reserve_mib: options.memory };
    let ordinary = Memory::Ordinary { mib: options.memory };
    let eal = match options.hugepages {
        HugePages::On => Eal::init(&config(huge)),
        HugePages::Off => Eal::init(&config(ordinary)),
        HugePages::Auto => match Eal::init(&config(huge)) {
            Err(DpdkError::NoHugePages | DpdkError::TooFewHugePages { .. }) => Eal::init(&config(ordinary)),
            result => result,
        },
    };
    Ok(eal?)
}

/// A port and what is known of it from the start.
struct OpenPort {
    name: String,
    device: Device,
    mac: [u8; 6],
    driver: String,
    queues: Vec<DpdkPort>,
    queue_count: u64,
}

/// Opens all devices, plans who receives what, starts them, and has them steer ESP.
fn open_ports(
    options: &Options,
    eal: &Eal,
    pool: &Pool,
    tables: &TablesView,
) -> Result<(Vec<OpenPort>, Plan), Failure> {
    let failed = |port: &PortOption, error: DpdkError| Failure::from(format!("port {}: {error}", port.name));
    let (mut devices, mut offers) = (Vec::new(), Vec::new());
    for (index, port) in options.ports.iter().enumerate() {
        let device = Device::open(eal, &port.device).map_err(|error| failed(port, error))?;
        let info = device.info().map_err(|error| failed(port, error))?;
        offers.push(Offer {
            port: port.name.clone(),
            driver: info.driver,
            max_queues: info.max_queues,
            rss_by_spi: info.rss_by_spi,
            public: tables.port(index).get().public,
        });
        devices.push(device);
    }
    let mut plan = Plan::new(options.spread, options.cores.len() as u16, offers)?;
    let mut ports = Vec::new();
    for (index, (port, device)) in options.ports.iter().zip(devices).enumerate() {
        let mut open =
            open_port(options, port, device, plan.queues(), pool).map_err(|error| failed(port, error))?;
        plan.steer(index, |rules| match open.device.steer(rules) {
            Err(DpdkError::Refused { cause, .. }) => Err(cause.to_string()),
            result => result.map_err(|error| error.to_string()),
        });
        ports.push(open);
    }
    Ok((ports, plan))
}

/// Starts a device with so many queue pairs.
fn open_port(
    options: &Options,
    port: &PortOption,
    mut device: Device,
    queues: u16,
    pool: &Pool,
) -> Result<OpenPort, DpdkError> {
    let mtu = options.mtu_of(&port.name);
    device.configure(&DeviceConfig { queues, mtu, ..DeviceConfig::default() }, pool)?;
    let pairs = device.start()?;
    if options.promiscuous.contains(&port.name) {
        device.set_promiscuous(true)?;
    }
    let info = device.info()?;
    let mut queues: Vec<DpdkPort> = pairs.into_iter().map(|pair| DpdkPort::new(pair, pool.clone())).collect();
    let queue_count = queues.len() as u64;
    queues.resize_with(options.cores.len(), || DpdkPort::absent(pool.clone()));
    let (name, mac, driver) = (port.name.clone(), info.mac, info.driver);
    Ok(OpenPort { name, device, mac, driver, queues, queue_count })
}

/// What every worker gets a share of.
struct Parts {
    tables: Arc<TablesView>,
    state: Arc<StateOwner>,
    twins: Twins<Mbuf>,
    engine: &'static dyn crypto::Engine,
    hz: u64,
}

fn start_twins(
    options: &Options,
    pool: &Pool,
    parts: &Parts,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<(JoinHandle<()>, TwinBooks)> {
    let names = options.ports.iter().map(|port| port.name.clone()).collect();
    let (pool, stop) = (pool.clone(), stop.clone());
    let mut twins =
        TwinThread::new(names, parts.tables.clone(), parts.twins.clone(), move || pool.allocate());
    let books = twins.counters();
    let thread = std::thread::Builder::new().name("twins".into()).spawn(move || twins.run(&stop))?;
    Ok((thread, books))
}

fn start_workers(
    options: &Options,
    eal: &Eal,
    ports: &mut [OpenPort],
    plan: &Plan,
    pool: &Pool,
    parts: &Parts,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<Result<(), Failure>>>, Failure> {
    let idle = Idle::from(options.idle);
    let mut workers = Vec::new();
    let shares = options.cores.iter().copied().zip(plan.parts());
    for (index, (core, spread)) in shares.enumerate().collect::<Vec<_>>().into_iter().rev() {
        let queues = ports.iter_mut().map(|port| {
            let queue = port.queues.pop().ok_or_else(|| format!("port {}: too few queues", port.name))?;
            Ok(WorkerPort { queue, mac: port.mac, out: Burst::new() })
        });
        let mut worker = Worker {
            index,
            ports: queues.collect::<Result<Vec<_>, Failure>>()?,
            twins: parts.twins.clone(),
            tables: parts.tables.clone(),
            state: parts.state.clone(),
            engine: parts.engine,
            tally: Tally::default(),
            answers: RateLimit::new(ANSWERS_PER_SECOND, parts.hz),
            batch: Box::default(),
            spread,
            held: Held::new(options.cores.len(), parts.hz),
        };
        let (eal, stop, hz, pool) = (eal.clone(), stop.clone(), parts.hz, pool.clone());
        let body = move || -> Result<(), Failure> {
            let _registered = eal.register_thread()?;
            if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
                return Err(format!("worker {index} cannot be pinned to CPU {core}").into());
            }
            worker::spin(&mut worker, idle, &stop, hz, tsc);
            drop((worker, pool));
            Ok(())
        };
        workers.push(std::thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
    }
    Ok(workers)
}

/// Tells control about the ports until it is time to stop. Says whether a worker ended on its own.
fn report_until(
    stop: &AtomicBool,
    ports: &[OpenPort],
    pool: &Pool,
    (twins, books): (&Twins<Mbuf>, &TwinBooks),
    state: &StateOwner,
    workers: &[JoinHandle<Result<(), Failure>>],
) -> bool {
    for reports in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (index, port) in ports.iter().enumerate() {
            state.port(index).set(&PortReport { reports, ..report(port, pool, twins) });
            state.twin(Some(index)).set(&books.at(Some(index)).report());
        }
        state.twin(None).set(&books.at(None).report());
        if workers.iter().any(JoinHandle::is_finished) {
            return true;
        }
        std::thread::sleep(REPORT);
    }
    false
}

fn report(port: &OpenPort, pool: &Pool, twins: &Twins<Mbuf>) -> PortReport {
    let stats = port.device.stats().unwrap_or_default();
    let link = port.device.link().ok();
    PortReport {
        mac: port.mac,
        link_up: link.is_some_and(|link| link.up),
        speed_mbit: link.and_then(|link| link.speed_mbps).unwrap_or(0),
        queues: port.queue_count,
        mtu: u64::from(port.device.mtu().unwrap_or(0)),
        rx_packets: stats.rx_packets,
        rx_bytes: stats.rx_bytes,
        rx_missed: stats.rx_missed,
        rx_errors: stats.rx_errors,
        rx_no_buffer: stats.rx_no_mbuf,
        tx_packets: stats.tx_packets,
        tx_bytes: stats.tx_bytes,
        tx_errors: stats.tx_errors,
        pool_size: pool.capacity() as u64,
        pool_in_use: pool.in_use() as u64,
        pool_waiting: (twins.to_kernel.len() + twins.from_kernel.len()) as u64,
        rx_multisegment: port.device.rx_multisegment(),
        reports: 0,
        driver: port.driver.clone(),
    }
}
