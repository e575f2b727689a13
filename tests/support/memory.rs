//! A whole gateway in memory: region, tables and one worker with two ports, all in one process. Frames in, and an
//! [`Outcome`] out: what was sent, what went to the kernel, and exactly what was counted.
//!
//! After every loop of the worker the balance is checked (`received = sent + punted + drops`), and that what is published
//! in `state` is what the worker counted; after every run, that all frames are back in the pool.

use std::collections::BTreeMap;
use std::sync::Arc;

use penstock_dataplane::crypto::{self, Engine};
use penstock_dataplane::path::answer::RateLimit;
use penstock_dataplane::path::hold::Held;
use penstock_dataplane::path::punt::{Twin, Twins};
use penstock_dataplane::path::spread::{Role, Spread};
use penstock_dataplane::path::{Worker, WorkerPort};
use penstock_dataplane::port::memory::{MemoryFrame, MemoryPool, MemoryPort};
use penstock_dataplane::port::{Burst, Frame};
use penstock_tables::adjacency::{PortSpec, Unresolved};
use penstock_tables::events::{Event, EventReader};
use penstock_tables::worker::Tally;
use penstock_tables::{
    Adjacency, Capacity, Cipher, DontFragment, Hop, InboundSpec, KeyBlock, Note, OutboundSpec, Prefix,
    Selector, StateOwner, StateView, TablesView, TablesWriter, TunnelSpec, Verdict,
};

use crate::esp::Sa;
use crate::packets::{Packet, frame, ip};

/// Index of the port to the LAN.
pub const PRIVATE: usize = 0;
/// Index of the port to the Internet.
pub const PUBLIC: usize = 1;
/// Frames of a gateway's pool.
pub const POOL: usize = 512;
/// A second of the clock that a gateway is told.
pub const SECOND: u64 = 1_000_000_000;
/// MTU of both ports.
pub const MTU: u16 = 1500;
const CAPACITY: Capacity = Capacity { tunnels: 16, replay_window: 1024, neighbours: 32, fib_groups: 64 };

/// Where a gateway stands: LAN 10.n.0.0/16 with gateway 10.n.0.1 and host 10.n.0.2, public address 192.0.2.n.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// The n above.
    pub number: u8,
    /// VLAN of the private port.
    pub private_vlan: u16,
    /// VLAN of the public port.
    pub public_vlan: u16,
    /// Entries of the ring to the kernel.
    pub punt_ring: usize,
    /// ICMP answers a second; the gateway's clock of 1 GHz stands still unless it is moved.
    pub answers: u32,
}

impl Site {
    /// Without VLANs.
    pub fn new(number: u8) -> Site {
        Site { number, private_vlan: 0, public_vlan: 0, punt_ring: 256, answers: 1000 }
    }
}

/// The host of a site's LAN.
pub fn host(site: u8) -> u32 {
    ip(10, site, 0, 2)
}

/// The gateway's address in its LAN.
pub fn private(site: u8) -> u32 {
    ip(10, site, 0, 1)
}

/// The gateway's public address.
pub fn public(site: u8) -> u32 {
    ip(192, 0, 2, site)
}

/// MAC address of a site's station: port 0 or 1 of the gateway, 2 the host.
pub fn mac(site: u8, station: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, site, station]
}

/// What an outbound SA does besides sealing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Outer don't-fragment bit.
    pub dont_fragment: DontFragment,
    /// Last number used before.
    pub last_used: u64,
    /// Last number that may be used.
    pub hard_limit: u64,
    /// Where control is asked for a rekey: a power of two before the hard limit.
    pub soft_log2: u8,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { dont_fragment: DontFragment::Copy, last_used: 0, hard_limit: u64::MAX - 1, soft_log2: 20 }
    }
}

/// What one run did.
#[derive(Debug)]
pub struct Outcome {
    /// Frames sent, by port.
    pub sent: [Vec<Vec<u8>>; 2],
    /// Frames handed to the kernel.
    pub punted: Vec<(Twin, Vec<u8>)>,
    /// What control was told.
    pub events: Vec<Event>,
    /// Frames received.
    pub received: u64,
    verdicts: Vec<(Verdict, u64)>,
    notes: Vec<(Note, u64)>,
}

impl Outcome {
    /// Frames that ended in `verdict`.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts.iter().find(|(it, _)| *it == verdict).map_or(0, |(_, count)| *count)
    }

    /// How often `note` was counted.
    pub fn noted(&self, note: Note) -> u64 {
        self.notes.iter().find(|(it, _)| *it == note).map_or(0, |(_, count)| *count)
    }

    /// Fails unless exactly these were counted and nothing else.
    #[track_caller]
    pub fn expect(&self, verdicts: &[(Verdict, u64)], notes: &[(Note, u64)]) -> &Outcome {
        let sorted = |list: &[(&'static str, u64)]| {
            let present = list.iter().filter(|(_, count)| *count > 0).copied();
            present.collect::<BTreeMap<_, _>>()
        };
        let names = |list: &[(Verdict, u64)]| list.iter().map(|(it, n)| (it.name(), *n)).collect::<Vec<_>>();
        let note_names =
            |list: &[(Note, u64)]| list.iter().map(|(it, n)| (it.name(), *n)).collect::<Vec<_>>();
        assert_eq!(sorted(&names(&self.verdicts)), sorted(&names(verdicts)), "verdicts (left: counted)");
        assert_eq!(sorted(&note_names(&self.notes)), sorted(&note_names(notes)), "notes (left: counted)");
        self
    }

    /// Fails unless this one drop was counted, `count` times, nothing was sent and nothing noted.
    #[track_caller]
    pub fn dropped(&self, verdict: Verdict, count: u64) -> &Outcome {
        self.expect(&[(verdict, count)], &[]);
        assert!(self.sent.iter().all(Vec::is_empty) && self.punted.is_empty());
        self
    }

    /// The one frame sent, which must have left by `port`.
    #[track_caller]
    pub fn only(&self, port: usize) -> &[u8] {
        assert_eq!((self.sent[port].len(), self.sent[1 - port].len()), (1, 0), "frames sent");
        &self.sent[port][0]
    }
}

/// See the module.
pub struct Gateway {
    /// The worker.
    pub worker: Worker<MemoryPort>,
    /// Control's side of the tables.
    pub writer: TablesWriter,
    /// Control's side of the state.
    pub state: StateView,
    /// Where it stands.
    pub site: Site,
    /// TSC that the next run is told.
    pub now: u64,
    /// The routes that are installed.
    pub routes: BTreeMap<Prefix, Hop>,
    pool: MemoryPool,
    events: EventReader,
    directory: tempfile::TempDir,
}

impl Gateway {
    /// A gateway with its ports, its own addresses, its LAN and a neighbour there, and no tunnel.
    pub fn new(site: Site) -> Gateway {
        Gateway::with_engine(site, crypto::select(None).unwrap())
    }

    /// The same with this engine.
    pub fn with_engine(site: Site, engine: &'static dyn Engine) -> Gateway {
        Gateway::with_capacity(site, engine, CAPACITY)
    }

    /// The same with room for so much.
    pub fn with_capacity(site: Site, engine: &'static dyn Engine, capacity: Capacity) -> Gateway {
        Gateway::build(site, engine, capacity, 1, POOL)
    }

    /// A gateway whose workers have these roles, and `frames` in its pool: worker 0 is its own, the others are returned.
    pub fn with_crew(site: Site, roles: &[Role], frames: usize) -> (Gateway, Vec<Worker<MemoryPort>>) {
        let mut gateway = Gateway::build(site, crypto::select(None).unwrap(), CAPACITY, roles.len(), frames);
        let mut parts = Spread::among(roles).into_iter().enumerate();
        gateway.worker.spread = parts.next().expect("a worker").1;
        let others =
            parts.map(|(index, spread)| Worker { index, spread, ..gateway.another_worker() }).collect();
        (gateway, others)
    }

    /// A worker with ports of its own on the same tables.
    fn another_worker(&self) -> Worker<MemoryPort> {
        let port = |port: &WorkerPort<MemoryPort>| WorkerPort {
            queue: MemoryPort::new(self.pool.clone()),
            mac: port.mac,
            out: Burst::new(),
        };
        Worker {
            index: 0,
            ports: self.worker.ports.iter().map(port).collect(),
            twins: self.worker.twins.clone(),
            tables: self.worker.tables.clone(),
            state: self.worker.state.clone(),
            engine: self.worker.engine,
            tally: Tally::default(),
            answers: RateLimit::new(self.site.answers, SECOND),
            batch: Box::default(),
            spread: Spread::off(),
            held: Held::new(1, SECOND),
        }
    }

    /// Frames of the pool that somebody holds.
    pub fn frames_in_use(&self) -> usize {
        self.pool.in_use()
    }

    fn build(
        site: Site,
        engine: &'static dyn Engine,
        capacity: Capacity,
        workers: usize,
        frames: usize,
    ) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        let writer = TablesWriter::open(directory.path(), capacity).unwrap();
        let owner = StateOwner::open(directory.path(), capacity, workers).unwrap();
        let state = StateView::open(directory.path()).unwrap();
        let pool = MemoryPool::new(frames);
        let port = |station| WorkerPort {
            queue: MemoryPort::new(pool.clone()),
            mac: mac(site.number, station),
            out: Burst::new(),
        };
        let worker = Worker {
            index: 0,
            ports: vec![port(0), port(1)],
            twins: Twins::new(site.punt_ring, capacity.tunnel_slots()),
            tables: Arc::new(TablesView::open(directory.path()).unwrap()),
            state: Arc::new(owner),
            engine,
            tally: Tally::default(),
            answers: RateLimit::new(site.answers, SECOND),
            batch: Box::default(),
            spread: Spread::off(),
            held: Held::new(workers, SECOND),
        };
        let (now, routes, events) = (1 << 40, BTreeMap::new(), EventReader::default());
        let mut gateway = Gateway { worker, writer, state, site, now, routes, pool, events, directory };
        gateway.furnish();
        gateway
    }

    fn furnish(&mut self) {
        let Site { number, private_vlan, public_vlan, .. } = self.site;
        self.worker.twins.set_present(Twin::Port(PRIVATE as u8), true);
        self.worker.twins.set_present(Twin::Port(PUBLIC as u8), true);
        let spec = |address, vlan, public| PortSpec { address, vlan, mtu: MTU, public };
        self.writer.port(PRIVATE).set(spec(private(number), private_vlan, false));
        self.writer.port(PUBLIC).set(spec(public(number), public_vlan, true));
        self.route(ip(10, number, 0, 0), 16, Hop::Glean(PRIVATE as u32));
        self.route(private(number), 32, Hop::Local);
        self.route(public(number), 32, Hop::Local);
        let neighbour = self.neighbour(PRIVATE, mac(number, 2));
        self.route(host(number), 32, Hop::Adjacency(neighbour));
    }

    /// Installs a route.
    pub fn route(&mut self, address: u32, len: u8, hop: Hop) {
        self.routes.insert(Prefix::new(address, len), hop);
        self.writer.sync_routes(&self.routes).unwrap();
    }

    /// Takes a route out.
    pub fn unroute(&mut self, address: u32, len: u8) {
        self.routes.remove(&Prefix::new(address, len)).expect("the route is there");
        self.writer.sync_routes(&self.routes).unwrap();
    }

    /// Installs a resolved next hop.
    pub fn neighbour(&mut self, port: usize, mac: [u8; 6]) -> u32 {
        self.writer.add_adjacency(Ok(Adjacency { port: port as u8, mac })).unwrap()
    }

    /// Installs a next hop whose MAC address is not known.
    pub fn unresolved(&mut self, port: usize, address: u32) -> u32 {
        self.writer.add_adjacency(Err(Unresolved { port: port as u8, address })).unwrap()
    }

    /// What a tunnel to another site is installed with: LAN to LAN.
    pub fn tunnel_spec(&self, peer: u8) -> TunnelSpec {
        let lan = |site| Selector::prefix(ip(10, site, 0, 0), 16);
        TunnelSpec {
            name: format!("site{peer}"),
            local: vec![lan(self.site.number)],
            remote: vec![lan(peer)],
            inner_mtu: 1400,
            interface: String::new(),
            peer: public(peer),
        }
    }

    /// Installs a tunnel without SA, the route to the peer's LAN over it and the next hop to the peer.
    pub fn tunnel(&mut self, peer: u8) -> u32 {
        self.tunnel_with(peer, &self.tunnel_spec(peer))
    }

    /// As [`Gateway::tunnel`], of this kind.
    pub fn tunnel_with(&mut self, peer: u8, spec: &TunnelSpec) -> u32 {
        let slot = self.writer.add_tunnel(spec).unwrap();
        let hop = self.neighbour(PUBLIC, mac(peer, 1));
        self.writer.set_tunnel_adjacency(slot, Some(hop));
        self.route(ip(10, peer, 0, 0), 16, Hop::Tunnel(slot));
        slot
    }

    /// Lets a tunnel go on in another slot, which has other selectors: its SAs are judged by these from now on, and its routes
    /// lead there. Returns the slot.
    pub fn replace_tunnel(&mut self, old: u32, spec: &TunnelSpec) -> u32 {
        let slot = self.writer.add_tunnel(spec).unwrap();
        let (adjacency, sealing) = (self.writer.tunnel(old).adjacency(), self.writer.tunnel(old).outbound());
        self.writer.set_tunnel_adjacency(slot, adjacency);
        self.writer.switch_outbound(slot, sealing);
        self.routes
            .values_mut()
            .filter(|hop| **hop == Hop::Tunnel(old))
            .for_each(|hop| *hop = Hop::Tunnel(slot));
        self.writer.sync_routes(&self.routes).unwrap();
        let of_it: Vec<u32> =
            self.writer.outbound().filter(|(_, sa)| sa.tunnel() == old).map(|(sa, _)| sa).collect();
        of_it.into_iter().for_each(|sa| self.writer.move_outbound(sa, slot));
        let of_it: Vec<u32> =
            self.writer.inbound().filter(|(_, sa)| sa.tunnel() == old).map(|(sa, _)| sa).collect();
        of_it.into_iter().for_each(|sa| self.writer.move_inbound(sa, slot));
        self.writer.retire_tunnel(old);
        slot
    }

    /// Installs an outbound SA and lets the tunnel seal with it. Returns its slot.
    pub fn seal_with(&mut self, tunnel: u32, peer: u8, sa: &Sa, limits: Limits) -> u32 {
        let outbound = self.install_outbound(tunnel, peer, sa, key_block(sa), limits);
        self.writer.switch_outbound(tunnel, Some(outbound));
        outbound
    }

    /// Installs an outbound SA with this key, without using it.
    pub fn install_outbound(&mut self, tunnel: u32, peer: u8, sa: &Sa, key: KeyBlock, limits: Limits) -> u32 {
        let spec = OutboundSpec {
            spi: sa.spi,
            tunnel,
            key,
            esn: sa.esn,
            udp: sa.udp,
            dont_fragment: limits.dont_fragment,
            template: template(public(self.site.number), public(peer), sa.udp),
            last_used: limits.last_used,
            hard_limit: limits.hard_limit,
            soft_log2: limits.soft_log2,
        };
        self.writer.install_outbound(spec, &self.state).unwrap()
    }

    /// Installs an inbound SA with a replay window of `window` packets. Returns its slot.
    pub fn open_with(&mut self, tunnel: u32, sa: &Sa, window: u32) -> u32 {
        let slot = self.writer.reserve_spi(sa.spi).unwrap();
        let spec = InboundSpec { tunnel, key: key_block(sa), esn: sa.esn, window };
        self.writer.install_inbound_at(slot, sa.spi, spec, &self.state);
        slot
    }

    /// What a crash of the machine does: the state is lost, the tables are adopted.
    pub fn lose_state(&mut self) {
        let path = self.directory.path();
        std::fs::remove_file(path.join("state")).unwrap();
        let capacity = self.writer.capacity();
        self.worker.state = Arc::new(StateOwner::open(path, capacity, 1).unwrap());
        self.state = StateView::open(path).unwrap();
        (self.worker.tally, self.events) = (Tally::default(), EventReader::default());
    }

    /// Offers octets to a port; they must fit into a buffer.
    #[track_caller]
    pub fn inject(&mut self, port: usize, octets: &[u8]) {
        assert!(self.worker.ports[port].queue.inject(octets), "pool empty or frame too long");
    }

    /// Offers a packet of the LAN's host.
    #[track_caller]
    pub fn from_host(&mut self, packet: &[u8]) {
        let (site, vlan) = (self.site.number, self.site.private_vlan);
        let frame = frame(mac(site, 0), mac(site, 2), (vlan != 0).then_some(vlan), packet);
        self.inject(PRIVATE, &frame);
    }

    /// Offers a packet on the public port.
    #[track_caller]
    pub fn from_internet(&mut self, packet: &[u8]) {
        let (site, vlan) = (self.site.number, self.site.public_vlan);
        let frame = frame(mac(site, 1), mac(99, 1), (vlan != 0).then_some(vlan), packet);
        self.inject(PUBLIC, &frame);
    }

    /// Offers a frame of the kernel.
    #[track_caller]
    pub fn from_kernel(&mut self, twin: Twin, octets: &[u8]) {
        let frame = self.frame(octets);
        assert!(self.worker.twins.from_kernel.push((twin, frame)).is_ok(), "ring from the kernel is full");
    }

    /// A frame of the gateway's pool.
    #[track_caller]
    pub fn frame(&self, octets: &[u8]) -> MemoryFrame {
        self.pool.frame(octets).expect("pool empty or frame too long")
    }

    /// Runs the worker until nothing waits, not for a neighbour either, and takes away all that came out.
    #[track_caller]
    pub fn run(&mut self) -> Outcome {
        let before = self.worker.tally.clone();
        self.loops();
        if !self.worker.held.is_empty() {
            self.now += SECOND;
            self.loops();
        }
        let outcome = self.collect(&before);
        assert_eq!(self.pool.in_use(), 0, "frames lost");
        outcome
    }

    /// Runs the worker until nothing waits but for neighbours, and takes away all that came out.
    #[track_caller]
    pub fn run_at_once(&mut self) -> Outcome {
        let before = self.worker.tally.clone();
        self.loops();
        let outcome = self.collect(&before);
        assert_eq!(self.pool.in_use(), self.worker.held.len(), "frames lost");
        outcome
    }

    #[track_caller]
    fn loops(&mut self) {
        self.worker.state.events(0).allow_repeat();
        while self.worker.run(self.now) > 0 {
            let tally = &self.worker.tally;
            assert_eq!(tally.received, tally.ended(), "received = sent + punted + drops");
            assert_eq!(self.state.workers()[0].read(), *tally, "published counters");
        }
    }

    /// What came out since the worker's counters were these.
    pub fn collect(&mut self, before: &Tally) -> Outcome {
        let tally = &self.worker.tally;
        let verdicts = Verdict::ALL.iter().map(|it| (*it, tally.of(*it) - before.of(*it)));
        let notes = Note::ALL.iter().map(|it| (*it, tally.noted(*it) - before.noted(*it)));
        let (verdicts, notes) =
            (verdicts.filter(|it| it.1 > 0).collect(), notes.filter(|it| it.1 > 0).collect());
        let received = tally.received - before.received;
        let mut events = vec![];
        assert_eq!(self.events.drain(self.worker.state.events(0), |event| events.push(event)), 0);
        // While a packet waits for a neighbour, the same hint comes again.
        events.dedup();
        let octets = |frame: MemoryFrame| frame.data().to_vec();
        let ports = &mut self.worker.ports;
        let sent =
            [PRIVATE, PUBLIC].map(|port| ports[port].queue.drain_sent().map(octets).collect::<Vec<_>>());
        let twins = &self.worker.twins;
        let next = || twins.to_kernel.pop().map(|(twin, frame)| (twin, octets(frame)));
        let punted: Vec<_> = std::iter::from_fn(next).collect();
        let outcome = Outcome { sent, punted, events, received, verdicts, notes };
        let frames: usize = outcome.sent.iter().map(Vec::len).sum();
        assert_eq!(outcome.of(Verdict::Sent), frames as u64, "sent as counted");
        assert_eq!(outcome.of(Verdict::Punted), outcome.punted.len() as u64, "punted as counted");
        outcome
    }

    /// The packet in a frame that this gateway sent by `port`; its Ethernet header must be right for a next hop `to`.
    #[track_caller]
    pub fn packet_of<'a>(&self, port: usize, to: [u8; 6], frame: &'a [u8]) -> &'a [u8] {
        let vlan = if port == PRIVATE { self.site.private_vlan } else { self.site.public_vlan };
        let right =
            crate::packets::frame(to, mac(self.site.number, port as u8), (vlan != 0).then_some(vlan), &[]);
        assert_eq!(frame[..right.len()], right, "Ethernet header");
        &frame[right.len()..]
    }

    /// ESP of a frame that this gateway sent to `peer` and the outer header; the headers around it must be right.
    #[track_caller]
    pub fn esp_of(&self, peer: u8, sa: &Sa, frame: &[u8]) -> (Packet, Vec<u8>) {
        let outer = Packet::parse(self.packet_of(PUBLIC, mac(peer, 1), frame));
        assert_eq!((outer.source, outer.destination), (public(self.site.number), public(peer)));
        assert!(outer.options.is_empty() && outer.ttl == 64 && outer.fragment & !0x4000 == 0);
        let esp = match sa.udp {
            false => outer.payload.clone(),
            true => {
                let len = outer.payload.len() as u16;
                let header = [4500, 4500, len, 0].map(u16::to_be_bytes).concat();
                assert_eq!(outer.payload[..8], header, "UDP: ports, length, checksum 0");
                outer.payload[8..].to_vec()
            }
        };
        assert_eq!(outer.protocol, if sa.udp { 17 } else { 50 });
        (outer, esp)
    }
}

/// The expanded key of an SA.
pub fn key_block(sa: &Sa) -> KeyBlock {
    let cipher = if sa.key.len() == 16 { Cipher::Aes128Gcm16 } else { Cipher::Aes256Gcm16 };
    KeyBlock::expand(cipher, &sa.key, sa.salt).unwrap()
}

/// Outer headers as control makes them.
fn template(source: u32, destination: u32, udp: bool) -> [u8; 28] {
    let mut template = [0; 28];
    (template[0], template[8], template[9]) = (0x45, 64, if udp { 17 } else { 50 });
    template[12..16].copy_from_slice(&source.to_be_bytes());
    template[16..20].copy_from_slice(&destination.to_be_bytes());
    if udp {
        template[20..24].copy_from_slice(&[0x11, 0x94, 0x11, 0x94]);
    }
    template
}

/// Outer packet around ESP from `peer` to `site`, in UDP where the SA says so.
pub fn outer(peer: u8, site: u8, sa: &Sa, esp: &[u8]) -> Packet {
    let (source, destination) = (public(peer), public(site));
    match sa.udp {
        true => Packet::udp((source, 4500), (destination, 4500), esp),
        false => Packet { payload: esp.to_vec(), ..Packet::new(source, destination, 50, 20) },
    }
}

/// The association from one site to another.
pub fn sa_between(from: u8, to: u8) -> Sa {
    Sa::new(0x4000_0000 | u32::from(from) << 16 | u32::from(to))
}

/// A gateway with a working tunnel.
pub struct Joined {
    /// The gateway.
    pub gateway: Gateway,
    /// Slot of its tunnel.
    pub tunnel: u32,
    /// Slot of its outbound SA.
    pub outbound: u32,
    /// Slot of its inbound SA.
    pub inbound: u32,
    /// Seals towards the peer.
    pub to_peer: Sa,
    /// Opens what the peer sent.
    pub from_peer: Sa,
}

/// Site 1 with a tunnel to site 2, associations as [`sa_between`] says changed by `change`, a window of 64 packets.
pub fn joined_with(site: Site, peer: u8, limits: Limits, change: impl Fn(Sa) -> Sa) -> Joined {
    let mut gateway = Gateway::new(site);
    let number = site.number;
    let (to_peer, from_peer) = (change(sa_between(number, peer)), change(sa_between(peer, number)));
    let tunnel = gateway.tunnel(peer);
    let outbound = gateway.seal_with(tunnel, peer, &to_peer, limits);
    let inbound = gateway.open_with(tunnel, &from_peer, 64);
    Joined { gateway, tunnel, outbound, inbound, to_peer, from_peer }
}

/// [`joined_with`] nothing special, sites 1 and 2.
pub fn joined() -> Joined {
    joined_with(Site::new(1), 2, Limits::default(), |sa| sa)
}

impl Joined {
    /// The peer sends an inner packet under `number`.
    #[track_caller]
    pub fn peer_sends(&mut self, number: u64, inner: &[u8]) {
        let esp = self.from_peer.seal(number, inner);
        self.peer_sends_esp(&esp);
    }

    /// The peer sends this ESP packet.
    #[track_caller]
    pub fn peer_sends_esp(&mut self, esp: &[u8]) {
        let packet = outer(2, self.gateway.site.number, &self.from_peer, esp);
        self.gateway.from_internet(&packet.octets());
    }
}

/// A packet from one site's host to another's, of `total` octets.
pub fn between(from: u8, to: u8, total: usize) -> Packet {
    Packet::new(host(from), host(to), 17, total)
}
