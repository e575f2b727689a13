//! Both sides of a benchmark's tunnels: a region each, filled through control's code. Options enter, workers leave.
//!
//! The outbound side seals what the inbound side opens; keys, SPIs and addresses are fixed, so that a capture of one run can be
//! fed to another. They are for benchmarks and protect nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use penstock_tables::adjacency::PortSpec;
use penstock_tables::segment::RegionError;
use penstock_tables::worker::Tally;
use penstock_tables::{
    Adjacency, Capacity, DontFragment, Hop, InboundSpec, KeyBlock, OutboundSpec, Prefix, Selector,
    StateOwner, StateView, TablesView, TablesWriter, TunnelSpec, Verdict,
};

use super::Failure;
use super::generator::{FAR, FAR_PREFIX, NEAR};
use super::options::BenchOptions;
use super::ports::BenchPort;
use penstock_dataplane::crypto::Engine;
use penstock_dataplane::dpdk::Mbuf;
use penstock_dataplane::path::answer::RateLimit;
use penstock_dataplane::path::hold::Held;
use penstock_dataplane::path::punt::Twins;
use penstock_dataplane::path::spread::Spread;
use penstock_dataplane::path::{Worker, WorkerPort};
use penstock_dataplane::port::Burst;

/// Index of the private port.
pub const PRIVATE: u8 = 0;
/// Index of the public port.
pub const PUBLIC: u8 = 1;
/// MAC addresses of private and public port.
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Outer addresses, host order: the gateway is its own peer.
const OUTER: u32 = 0xc000_0201;
/// SPI of the first SA; the others follow.
const FIRST_SPI: u32 = 0x1000;
/// Octets of the largest inner packet.
const INNER_MTU: u16 = 8900;

/// One side: its region and who may write it.
pub struct Site {
    writer: TablesWriter,
    state: StateView,
    parts: Parts,
    /// Whether the region lies in huge pages.
    huge: bool,
    /// Slots of the inbound SAs.
    inbound: Vec<u32>,
    outer: Option<u32>,
}

/// What a worker of a side is made of.
#[derive(Clone)]
pub struct Parts {
    tables: Arc<TablesView>,
    state: Arc<StateOwner>,
}

/// Both sides.
pub struct Sites {
    /// Seals.
    pub outbound: Site,
    /// Opens.
    pub inbound: Site,
}

impl Sites {
    /// Makes both regions and fills them with `sas` tunnels and an SA in each direction, and room for the updates.
    ///
    /// # Errors
    /// What the region or the tables say.
    pub fn new(options: &BenchOptions, sas: u32) -> Result<Sites, Failure> {
        let mut outbound = Site::new("out", options, sas)?;
        let mut inbound = Site::new("in", options, sas)?;
        let outer = outbound.writer.add_adjacency(Ok(Adjacency { port: PUBLIC, mac: MACS[1] }))?;
        let inner = inbound.writer.add_adjacency(Ok(Adjacency { port: PRIVATE, mac: MACS[0] }))?;
        outbound.outer = Some(outer);
        let mut routes = BTreeMap::new();
        for number in 0..sas {
            inbound.add_inbound(number, options)?;
            let (tunnel, _) = outbound.add_outbound(number, options)?;
            routes.insert(network(number), Hop::Tunnel(tunnel));
        }
        outbound.writer.sync_routes(&routes)?;
        let far_side =
            [(Prefix::new(OUTER, 32), Hop::Local), (Prefix::new(FAR, FAR_PREFIX), Hop::Adjacency(inner))];
        inbound.writer.sync_routes(&BTreeMap::from(far_side))?;
        Ok(Sites { outbound, inbound })
    }

    /// Packets that both sides dropped, by name.
    fn drops(&self) -> Vec<(&'static str, Verdict, u64)> {
        let sides = [("outbound", &self.outbound), ("inbound", &self.inbound)];
        let drops = sides.into_iter().flat_map(|(side, site)| {
            let tally = site.tally();
            Verdict::drops().map(move |verdict| (side, verdict, tally.of(verdict)))
        });
        drops.filter(|(_, _, count)| *count > 0).collect()
    }

    /// Says on stderr where packets went that did not come out.
    pub fn tell_drops(&self) {
        for (side, verdict, count) in self.drops() {
            eprintln!("{side}: {count} packets dropped: {}", verdict.describe());
        }
    }
}

/// The network behind tunnel `number`.
pub fn network(number: u32) -> Prefix {
    Prefix::new(FAR + (number << 8), 24)
}

impl Site {
    fn new(side: &str, options: &BenchOptions, sas: u32) -> Result<Site, Failure> {
        let tunnels = sas + options.updates;
        let capacity = Capacity {
            tunnels: tunnels.max(1),
            replay_window: options.replay_window,
            neighbours: 16,
            fib_groups: (tunnels / 100 + 64).min(4_000_000),
        };
        let name = format!("penstock-bench-{}-{side}", std::process::id());
        let (directory, writer) = open(&name, capacity)?;
        let state = Arc::new(StateOwner::open(&directory, capacity, options.workers())?);
        let tables = Arc::new(TablesView::open(&directory)?);
        let view = StateView::open(&directory)?;
        writer.port(PRIVATE.into()).set(PortSpec {
            address: NEAR & !0xff,
            vlan: 0,
            mtu: 9000,
            public: false,
        });
        writer.port(PUBLIC.into()).set(PortSpec { address: OUTER, vlan: 0, mtu: 9000, public: true });
        let parts = Parts { tables, state };
        let huge = directory.starts_with("/dev/shm") || directory.starts_with(std::env::temp_dir());
        // Everybody has it mapped: without its name nothing is left behind, however the run ends.
        std::fs::remove_dir_all(&directory)?;
        Ok(Site { writer, state: view, parts, huge: !huge, inbound: vec![], outer: None })
    }

    /// What workers are made of.
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }

    /// The counters of all workers together.
    pub fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.state.workers().iter().for_each(|worker| sum.add(&worker.read()));
        sum
    }

    /// Whether the region lies in huge pages.
    pub fn in_huge_pages(&self) -> bool {
        self.huge
    }

    /// Lets all inbound SAs take every number once more.
    #[inline]
    pub fn forget_windows(&self) {
        self.inbound.iter().for_each(|slot| self.writer.forget_window(*slot, &self.state));
    }

    fn add_tunnel(&mut self, number: u32) -> Result<u32, Failure> {
        let any = Selector::ANY;
        let spec = TunnelSpec {
            name: format!("t{number}"),
            local: vec![any],
            remote: vec![any],
            inner_mtu: INNER_MTU,
            interface: String::new(),
            peer: OUTER,
        };
        Ok(self.writer.add_tunnel(&spec)?)
    }

    fn add_inbound(&mut self, number: u32, options: &BenchOptions) -> Result<(), Failure> {
        let tunnel = self.add_tunnel(number)?;
        let spec = InboundSpec {
            tunnel,
            key: key(number, options)?,
            esn: options.esn,
            window: options.replay_window,
        };
        let spi = FIRST_SPI + number;
        let slot = self.writer.reserve_spi(spi)?;
        self.writer.install_inbound_at(slot, spi, spec, &self.state);
        self.inbound.push(slot);
        Ok(())
    }

    /// Adds a tunnel that seals; returns its slot and that of its SA. Its route is the caller's.
    ///
    /// # Errors
    /// Where a table is full.
    pub fn add_outbound(&mut self, number: u32, options: &BenchOptions) -> Result<(u32, u32), Failure> {
        let tunnel = self.add_tunnel(number)?;
        let spec = OutboundSpec {
            spi: FIRST_SPI + number,
            tunnel,
            key: key(number, options)?,
            esn: options.esn,
            udp: options.udp,
            dont_fragment: DontFragment::Copy,
            template: template(options.udp),
            last_used: 0,
            hard_limit: u64::MAX - 1,
            soft_log2: 20,
        };
        let slot = self.writer.install_outbound(spec, &self.state)?;
        self.writer.switch_outbound(tunnel, Some(slot));
        self.writer.set_tunnel_adjacency(tunnel, self.outer);
        Ok((tunnel, slot))
    }

    /// Takes a tunnel and its SA out; its routes are gone already.
    pub fn remove_outbound(&mut self, (tunnel, slot): (u32, u32)) {
        self.writer.switch_outbound(tunnel, None);
        self.writer.retire_outbound(slot);
        self.writer.retire_tunnel(tunnel);
    }

    /// The routes as they stand.
    pub fn routes(&self) -> BTreeMap<Prefix, Hop> {
        self.writer.routes().clone()
    }

    /// Makes the routes these.
    ///
    /// # Errors
    /// Where the trie is full.
    pub fn set_routes(&mut self, routes: &BTreeMap<Prefix, Hop>) -> Result<(), Failure> {
        Ok(self.writer.sync_routes(routes)?)
    }

    /// Frees what no worker holds any more; returns how many slots still wait.
    pub fn reclaim(&mut self) -> usize {
        self.writer.reclaim(Some(&self.state))
    }
}

impl Parts {
    /// Worker number `index` of this side.
    pub fn worker<'a>(
        &self,
        index: usize,
        [private, public]: [BenchPort<'a>; 2],
        engine: &'static dyn Engine,
        hz: u64,
    ) -> Worker<BenchPort<'a>> {
        Worker {
            index,
            state: self.state.clone(),
            tables: self.tables.clone(),
            ports: vec![port(private, MACS[0]), port(public, MACS[1])],
            twins: Twins::<Mbuf>::new(64, 1),
            engine,
            tally: Tally::default(),
            answers: RateLimit::new(1, hz),
            batch: Box::default(),
            spread: Spread::off(),
            held: Held::new(1, hz),
        }
    }
}

fn port(queue: BenchPort<'_>, mac: [u8; 6]) -> WorkerPort<BenchPort<'_>> {
    WorkerPort { queue, mac, out: Burst::new() }
}

/// Takes huge pages where there are enough, as a gateway does, else the kernel's memory file system.
fn open(name: &str, capacity: Capacity) -> Result<(PathBuf, TablesWriter), Failure> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let huge = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find_map(|fields| (fields.get(2) == Some(&"hugetlbfs")).then(|| PathBuf::from(fields[1])));
    if let Some(root) = huge {
        let directory = root.join(name);
        match TablesWriter::open(&directory, capacity) {
            Ok(writer) => return Ok((directory, writer)),
            Err(RegionError::Full { .. } | RegionError::Permission { .. } | RegionError::Io { .. }) => {
                drop(std::fs::remove_dir_all(&directory));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let memory = Path::new("/dev/shm");
    let directory = if memory.is_dir() { memory.join(name) } else { std::env::temp_dir().join(name) };
    let writer = TablesWriter::open(&directory, capacity)?;
    Ok((directory, writer))
}

fn key(number: u32, options: &BenchOptions) -> Result<KeyBlock, Failure> {
    let cipher = options.cipher.cipher();
    let octets: [u8; 32] = std::array::from_fn(|at| (number.rotate_left(at as u32) ^ at as u32) as u8);
    Ok(KeyBlock::expand(cipher, &octets[..cipher.key_len()], [1, 2, 3, 4])?)
}

fn template(udp: bool) -> [u8; 28] {
    let mut octets = [0; 28];
    octets[0] = 0x45;
    octets[8] = 64;
    octets[9] = if udp { penstock_dataplane::wire::ipv4::UDP } else { penstock_dataplane::wire::ipv4::ESP };
    octets[12..16].copy_from_slice(&OUTER.to_be_bytes());
    octets[16..20].copy_from_slice(&OUTER.to_be_bytes());
    octets[20..22].copy_from_slice(&penstock_dataplane::wire::esp::NAT_PORT.to_be_bytes());
    octets[22..24].copy_from_slice(&penstock_dataplane::wire::esp::NAT_PORT.to_be_bytes());
    octets
}
