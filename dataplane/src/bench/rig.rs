//! The rig of a benchmark: a region with its tunnels, an outbound and an inbound worker, and what connects them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use penstock_tables::adjacency::PortSpec;
use penstock_tables::worker::Tally;
use penstock_tables::{
    Adjacency, Capacity, DontFragment, Hop, InboundSpec, KeyBlock, OutboundSpec, Prefix, Selector,
    StateOwner, StateView, TablesView, TablesWriter, TunnelSpec, Verdict,
};

use super::Failure;
use super::generator::{BenchPort, FAR, Generator, NEAR};
use super::options::{BenchOptions, Size};
use crate::crypto::Engine;
use crate::dpdk::{Eal, Mbuf, Pool, PoolConfig};
use crate::path::answer::RateLimit;
use crate::path::punt::Twins;
use crate::path::{Worker, WorkerPort};
use crate::port::{Burst, Port};

const LAN: u8 = 0;
const WAN: u8 = 1;
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// Outer addresses, host order: the rig is its own peer.
const OUTER: u32 = 0xc000_0201;
/// Mbufs of the rig: more than both workers and the wire hold.
const FRAMES: u32 = 4096;

/// See the module.
pub struct Rig {
    outbound: Gateway,
    inbound: Gateway,
    sunk: Rc<Cell<u64>>,
    inner: f64,
}

/// One side: its region and its worker.
struct Gateway {
    worker: Worker<BenchPort>,
    writer: TablesWriter,
    state: StateView,
    directory: PathBuf,
}

/// What one burst cost, in TSC cycles: the generator alone, the outbound worker with it, the inbound worker.
pub struct BurstCost {
    /// Packets that entered.
    pub sent: u64,
    /// Packets that came out.
    pub opened: u64,
    /// Cycles.
    pub cycles: [u64; 3],
}

impl Rig {
    /// Sets up `sas` tunnels with an SA in each direction.
    pub fn new(
        eal: &Eal,
        options: &BenchOptions,
        engine: &'static dyn Engine,
        sas: u32,
        hz: u64,
    ) -> Result<Rig, Failure> {
        let pool =
            Pool::new(eal, &format!("bench{sas}"), &PoolConfig { frames: FRAMES, ..PoolConfig::default() })?;
        let wire = Rc::new(RefCell::new(Burst::new()));
        let sunk = Rc::new(Cell::new(0));
        let source = BenchPort::Source(Box::new(Generator::new(pool, options.burst, sas)));
        let sink = BenchPort::Sink(sunk.clone());
        let mut outbound =
            Gateway::new("out", source, BenchPort::Wire(wire.clone()), options, engine, sas, hz)?;
        let mut inbound = Gateway::new("in", sink, BenchPort::Wire(wire), options, engine, sas, hz)?;
        fill(&mut outbound, &mut inbound, options, sas)?;
        Ok(Rig { outbound, inbound, sunk, inner: 0.0 })
    }

    /// Prepares packets of a size.
    pub fn set_size(&mut self, size: &Size) {
        if let Some(generator) = self.outbound.worker.ports[usize::from(LAN)].queue.generator() {
            generator.set_pattern(MACS[0], &size.pattern);
        }
        self.inner = size.pattern.iter().sum::<usize>() as f64 / size.pattern.len() as f64;
    }

    /// Inner octets per packet of the present size.
    pub fn inner_octets(&self) -> f64 {
        self.inner
    }

    /// Brings code, tables and frames into the caches.
    pub fn warm_up(&mut self) {
        for _ in 0..2000 {
            self.burst(|| 0);
        }
    }

    /// One burst through both workers, timed by `clock`.
    pub fn burst(&mut self, clock: impl Fn() -> u64) -> BurstCost {
        let alone = {
            let mut burst = Burst::new();
            let start = clock();
            self.outbound.worker.ports[usize::from(LAN)].queue.receive(&mut burst);
            clock() - start
        };
        let before = self.sunk.get();
        let start = clock();
        let sent = self.outbound.worker.run(start);
        let middle = clock();
        self.inbound.worker.run(middle);
        let end = clock();
        BurstCost {
            sent: sent as u64,
            opened: self.sunk.get() - before,
            cycles: [alone, middle - start, end - middle],
        }
    }

    /// Takes the regions down; says where packets went that did not come out.
    pub fn finish(self) -> Result<(), Failure> {
        for (name, gateway) in [("outbound", self.outbound), ("inbound", self.inbound)] {
            let tally = &gateway.worker.tally;
            for verdict in Verdict::drops().filter(|verdict| tally.of(*verdict) > 0) {
                eprintln!("{name}: {} packets dropped: {}", tally.of(verdict), verdict.describe());
            }
            gateway.writer.remove()?;
            std::fs::remove_dir_all(&gateway.directory)?;
        }
        Ok(())
    }
}

impl Gateway {
    fn new(
        side: &str,
        lan: BenchPort,
        wan: BenchPort,
        options: &BenchOptions,
        engine: &'static dyn Engine,
        sas: u32,
        hz: u64,
    ) -> Result<Gateway, Failure> {
        let directory = std::env::temp_dir().join(format!("penstock-bench-{}-{side}", std::process::id()));
        let capacity = Capacity {
            tunnels: sas.max(1),
            replay_window: options.replay_window,
            neighbours: 16,
            fib_groups: (sas / 200 + 64).min(4_000_000),
        };
        let writer = TablesWriter::open(&directory, capacity)?;
        let worker = Worker {
            index: 0,
            state: Arc::new(StateOwner::open(&directory, capacity, 1)?),
            tables: Arc::new(TablesView::open(&directory)?),
            ports: vec![port(lan, MACS[0]), port(wan, MACS[1])],
            twins: Twins::<Mbuf>::new(64, 1),
            engine,
            tally: Tally::default(),
            answers: RateLimit::new(1, hz),
            batch: Box::default(),
        };
        let state = StateView::open(&directory)?;
        writer.port(0).set(PortSpec { address: NEAR & !0xff, vlan: 0, mtu: 9000, public: false });
        writer.port(1).set(PortSpec { address: OUTER, vlan: 0, mtu: 9000, public: true });
        Ok(Gateway { worker, writer, state, directory })
    }

    fn add_tunnel(&mut self, number: u32) -> Result<u32, Failure> {
        let any = Selector::default();
        let spec = TunnelSpec {
            name: format!("t{number}"),
            local: vec![any],
            remote: vec![any],
            inner_mtu: 8900,
            interface: String::new(),
            peer: OUTER,
        };
        Ok(self.writer.add_tunnel(&spec)?)
    }
}

fn port(queue: BenchPort, mac: [u8; 6]) -> WorkerPort<BenchPort> {
    WorkerPort { queue, mac, out: Burst::new() }
}

/// Next hops, tunnels, SAs and routes of both sides, through control's code.
fn fill(
    outbound: &mut Gateway,
    inbound: &mut Gateway,
    options: &BenchOptions,
    sas: u32,
) -> Result<(), Failure> {
    let outer = outbound.writer.add_adjacency(Ok(Adjacency { port: WAN, mac: MACS[1] }))?;
    let inner = inbound.writer.add_adjacency(Ok(Adjacency { port: LAN, mac: MACS[0] }))?;
    let mut routes = BTreeMap::new();
    let cipher = options.cipher.cipher();
    for number in 0..sas {
        let octets: [u8; 32] = std::array::from_fn(|at| (number.rotate_left(at as u32) ^ at as u32) as u8);
        let key = || KeyBlock::expand(cipher, &octets[..cipher.key_len()], [1, 2, 3, 4]);
        let tunnel = inbound.add_tunnel(number)?;
        let spi = inbound.writer.allocate_spi()?;
        let spec = InboundSpec { tunnel, key: key()?, esn: options.esn, window: options.replay_window };
        inbound.writer.install_inbound(spi, spec, &inbound.state);
        let tunnel = outbound.add_tunnel(number)?;
        let spec = OutboundSpec {
            spi,
            tunnel,
            key: key()?,
            esn: options.esn,
            udp: options.udp,
            dont_fragment: DontFragment::Copy,
            template: template(options.udp),
            last_used: 0,
            hard_limit: u64::MAX - 1,
            soft_log2: 20,
        };
        let slot = outbound.writer.install_outbound(spec, &outbound.state)?;
        outbound.writer.switch_outbound(tunnel, Some(slot));
        outbound.writer.set_tunnel_adjacency(tunnel, Some(outer));
        routes.insert(Prefix::new(FAR + (number << 8), 24), Hop::Tunnel(tunnel));
    }
    outbound.writer.sync_routes(&routes)?;
    let far_side = [(Prefix::new(OUTER, 32), Hop::Local), (Prefix::new(FAR, 6), Hop::Adjacency(inner))];
    inbound.writer.sync_routes(&BTreeMap::from(far_side))?;
    Ok(())
}

fn template(udp: bool) -> [u8; 28] {
    let mut octets = [0; 28];
    octets[0] = 0x45;
    octets[8] = 64;
    octets[9] = if udp { crate::wire::ipv4::UDP } else { crate::wire::ipv4::ESP };
    octets[12..16].copy_from_slice(&OUTER.to_be_bytes());
    octets[16..20].copy_from_slice(&OUTER.to_be_bytes());
    octets[20..22].copy_from_slice(&crate::wire::esp::NAT_PORT.to_be_bytes());
    octets[22..24].copy_from_slice(&crate::wire::esp::NAT_PORT.to_be_bytes());
    octets
}
