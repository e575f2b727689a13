//! Two endpoints, a network between them and a model of both data planes, all in virtual time.
#![allow(dead_code)]

use penstock_ike::auth::{Identity, IdentityPattern, SharedKey};
use penstock_ike::crypto::{EspProposal, IkeProposal, Suite};
use penstock_ike::message::TrafficSelector;
use penstock_ike::*;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub const A: usize = 0;
pub const B: usize = 1;
pub const NOON: u64 = 1_800_000_000;

/// What a data plane would hold.
#[derive(Default)]
pub struct Plane {
    next: u32,
    pub free: Option<usize>,
    pub reserved: HashSet<u32>,
    pub inbound: HashMap<u32, ChildSa>,
    /// What each tunnel sends with, by connection, child and selectors: inbound SPI.
    pub current: BTreeMap<(Arc<str>, Arc<str>, String), u32>,
    pub outbound: HashSet<u32>,
}

impl SpiSource for Plane {
    fn allocate(&mut self) -> Option<u32> {
        if self.free.is_some_and(|f| self.reserved.len() + self.inbound.len() >= f) {
            return None;
        }
        self.next += 1;
        let spi = 0x1000 + self.next;
        self.reserved.insert(spi);
        Some(spi)
    }

    fn release(&mut self, spi: u32) {
        assert!(self.reserved.remove(&spi), "released what was not reserved: {spi:x}");
    }
}

impl Plane {
    fn apply(&mut self, output: &Output) {
        match output {
            Output::InstallInbound(sa) => {
                assert!(self.reserved.remove(&sa.spi_in), "installed what was not reserved");
                self.outbound.insert(sa.spi_in);
                assert!(self.inbound.insert(sa.spi_in, (**sa).clone()).is_none());
            }
            Output::SwitchOutbound { connection, child, spi_in, .. } => {
                assert!(self.outbound.contains(spi_in), "switched to an SA that cannot send");
                let sa = &self.inbound[spi_in];
                let selectors = format!("{:?} {:?}", sa.local_ts, sa.remote_ts);
                self.current.insert((connection.clone(), child.clone(), selectors), *spi_in);
            }
            Output::RemoveOutbound { spi_in, .. } => {
                assert!(self.outbound.remove(spi_in), "removed an outbound SA twice");
                self.current.retain(|_, s| s != spi_in);
            }
            Output::RemoveInbound { spi_in } => {
                assert!(!self.outbound.contains(spi_in), "inbound half removed before the outbound one");
                assert!(self.inbound.remove(spi_in).is_some(), "removed an inbound SA twice");
            }
            _ => {}
        }
    }
}

pub struct Node {
    pub endpoint: Endpoint,
    pub plane: Plane,
    pub address: IpAddr,
    pub events: Vec<Event>,
    pub wall_offset: i64,
    /// Packets received per SA, for reports.
    pub received: HashMap<u32, u64>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at: std::cmp::Reverse<(Duration, u64)>,
    to: usize,
    what: What,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Ike { local: SocketAddr, remote: SocketAddr, encapsulated: bool, bytes: Vec<u8> },
    Esp { spi: u32, key: Vec<u8> },
}

/// How bad the network is, in per mille.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    pub loss: u32,
    pub duplication: u32,
    /// Extra delay of up to this many milliseconds per datagram: reordering.
    pub jitter_ms: u64,
}

pub struct World {
    pub now: Duration,
    pub nodes: Vec<Node>,
    pub weather: Weather,
    pub rng: ChaCha20Rng,
    flights: BinaryHeap<Flight>,
    sequence: u64,
    /// Data packets sent and those that met no SA.
    pub sent: u64,
    pub lost: u64,
    /// Source address and port that the other end sees: a NAT before a node.
    pub nat: [Option<SocketAddr>; 2],
    /// IKE datagrams seen, for size checks.
    pub largest: usize,
    pub datagrams: u64,
    /// Drops everything to port 4500.
    pub block_4500: bool,
    /// Their IKE_SA_INIT requests are dropped: ends that cannot begin.
    pub mute: [bool; 2],
    /// Every IKE datagram, if asked for.
    pub capture: Option<Vec<(usize, Vec<u8>)>>,
}

pub fn settings() -> Settings {
    Settings { drain: Duration::from_secs(2), ..Settings::default() }
}

impl World {
    pub fn new(seed: u64) -> World {
        World::with(seed, settings())
    }

    pub fn with(seed: u64, settings: Settings) -> World {
        let node = |n: u64, address: &str| Node {
            endpoint: Endpoint::new(settings.clone(), Box::new(ChaCha20Rng::seed_from_u64(seed * 2 + n))),
            plane: Plane::default(),
            address: address.parse().unwrap(),
            events: Vec::new(),
            wall_offset: 0,
            received: HashMap::new(),
        };
        World {
            now: Duration::from_secs(100),
            nodes: vec![node(0, "192.0.2.1"), node(1, "192.0.2.2")],
            weather: Weather::default(),
            rng: ChaCha20Rng::seed_from_u64(seed ^ 0x5eed),
            flights: BinaryHeap::new(),
            sequence: 0,
            sent: 0,
            lost: 0,
            nat: [None, None],
            largest: 0,
            datagrams: 0,
            block_4500: false,
            mute: [false; 2],
            capture: None,
        }
    }

    pub fn now_of(&self, n: usize) -> Now {
        let unix = (NOON + self.now.as_secs()) as i64 + self.nodes[n].wall_offset;
        Now { at: Instant(self.now), unix_seconds: unix as u64 }
    }

    /// Works on one node and carries out what it wants.
    pub fn on<T>(
        &mut self,
        n: usize,
        f: impl FnOnce(&mut Endpoint, Now, &mut Plane, &mut Outputs) -> T,
    ) -> T {
        let now = self.now_of(n);
        let mut out = Outputs::new();
        let node = &mut self.nodes[n];
        let result = f(&mut node.endpoint, now, &mut node.plane, &mut out);
        for output in out {
            self.nodes[n].plane.apply(&output);
            match output {
                Output::Send(d) => self.post(n, d),
                Output::Event(e) => self.nodes[n].events.push(e),
                _ => {}
            }
        }
        result
    }

    fn post(&mut self, from: usize, d: Datagram) {
        self.datagrams += 1;
        self.largest = self.largest.max(d.bytes.len());
        if let Some(c) = &mut self.capture {
            c.push((from, d.bytes.clone()));
        }
        let plain = if d.encapsulated { &d.bytes[4.min(d.bytes.len())..] } else { &d.bytes[..] };
        let begins = |h: message::Header| h.exchange == message::ExchangeType::Init && !h.response;
        if self.mute[from] && message::Header::decode(plain).is_ok_and(begins) {
            return;
        }
        let mut source = d.local;
        if let Some(outside) = self.nat[from] {
            // The NAT keeps port numbers apart: 500 and 4500 get different ones.
            source = SocketAddr::new(outside.ip(), outside.port() + u16::from(d.encapsulated));
        }
        let to = 1 - from;
        let expected = self.nat[to].map_or(SocketAddr::new(self.nodes[to].address, d.remote.port()), |o| {
            SocketAddr::new(o.ip(), o.port() + u16::from(d.encapsulated))
        });
        if d.remote != expected || (self.block_4500 && d.encapsulated) {
            return;
        }
        let arrives = SocketAddr::new(self.nodes[to].address, if d.encapsulated { 4500 } else { 500 });
        let copies = match self.rng.next_u32() % 1000 {
            r if r < self.weather.loss => 0,
            r if r < self.weather.loss + self.weather.duplication => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let jitter =
                if self.weather.jitter_ms == 0 { 0 } else { self.rng.next_u64() % self.weather.jitter_ms };
            let at = self.now + Duration::from_millis(10 + jitter);
            let (remote, bytes) = (source, d.bytes.clone());
            self.fly(at, to, What::Ike { local: arrives, remote, encapsulated: d.encapsulated, bytes });
        }
    }

    fn fly(&mut self, at: Duration, to: usize, what: What) {
        self.sequence += 1;
        self.flights.push(Flight { at: std::cmp::Reverse((at, self.sequence)), to, what });
    }

    /// Lets time pass, with a data packet from either end every 20 ms.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut next_data = self.now;
        while self.now < end {
            let flight = self.flights.peek().map(|f| f.at.0.0);
            let timeout = self.nodes.iter().filter_map(|n| n.endpoint.next_timeout()).map(|t| t.0).min();
            let next = [flight, timeout, Some(next_data), Some(end)].into_iter().flatten().min().unwrap();
            self.now = next.max(self.now);
            while self.flights.peek().is_some_and(|f| f.at.0.0 <= self.now) {
                let Flight { to, what, .. } = self.flights.pop().unwrap();
                self.arrive(to, what);
            }
            if self.now >= next_data {
                next_data = self.now + Duration::from_millis(20);
                self.data();
            }
            for n in [A, B] {
                if self.nodes[n].endpoint.next_timeout().is_some_and(|t| t.0 <= self.now) {
                    self.on(n, |e, now, p, out| e.poll(now, p, out));
                }
            }
        }
    }

    fn arrive(&mut self, to: usize, what: What) {
        match what {
            What::Ike { local, remote, encapsulated, bytes } => {
                if std::env::var_os("WORLD_TRACE").is_some() {
                    let plain = if encapsulated { &bytes[4.min(bytes.len())..] } else { &bytes[..] };
                    let spis = self.nodes[to].plane.inbound.keys().collect::<Vec<_>>();
                    eprintln!(
                        "{} to {to}: {:?} {spis:?}",
                        self.now.as_millis(),
                        penstock_ike::message::Header::decode(plain)
                    );
                }
                let d = Datagram { local, remote, encapsulated, bytes };
                self.on(to, |e, now, p, out| e.handle(now, &d, p, out));
            }
            What::Esp { spi, key } => {
                let fits =
                    self.nodes[to].plane.inbound.get(&spi).is_some_and(|s| s.key_in.key[..] == key[..]);
                if !fits {
                    self.lost += 1;
                    return;
                }
                let count = self.nodes[to].received.entry(spi).or_default();
                *count += 1;
                let usage = Usage { packets_in: *count, ..Usage::default() };
                if *count == 1 || count.is_multiple_of(50) {
                    self.on(to, |e, now, p, out| e.child_traffic(now, spi, usage, p, out));
                }
            }
        }
    }

    fn data(&mut self) {
        for n in [A, B] {
            let plane = &self.nodes[n].plane;
            let sas: Vec<(u32, Vec<u8>)> = plane
                .current
                .values()
                .map(|s| {
                    let sa = &plane.inbound[s];
                    (sa.spi_out, sa.key_out.key.to_vec())
                })
                .collect();
            for (spi, key) in sas {
                self.sent += 1;
                let at = self.now + Duration::from_millis(10);
                self.fly(at, 1 - n, What::Esp { spi, key });
            }
        }
    }

    pub fn configure(&mut self, n: usize, c: Connection) {
        self.on(n, |e, now, _, _| e.set_connection(now, c));
    }

    pub fn initiate(&mut self, n: usize) -> bool {
        self.on(n, |e, now, p, out| e.initiate(now, "site", None, p, out))
    }

    /// Both ends' installed SAs, as (own inbound, own outbound).
    pub fn pairs(&self, n: usize) -> Vec<(u32, u32)> {
        let mut out: Vec<(u32, u32)> =
            self.nodes[n].plane.inbound.values().map(|s| (s.spi_in, s.spi_out)).collect();
        out.sort_unstable();
        out
    }

    /// The two ends have the same child SAs, and whatever one sends with the other has.
    pub fn agree(&self) -> bool {
        let mut mirrored: Vec<(u32, u32)> = self.pairs(B).into_iter().map(|(i, o)| (o, i)).collect();
        mirrored.sort_unstable();
        self.pairs(A) == mirrored
    }

    pub fn children(&self, n: usize) -> usize {
        self.nodes[n].endpoint.status().iter().flat_map(|c| &c.ike).map(|i| i.children.len()).sum()
    }

    pub fn ike(&self, n: usize) -> usize {
        self.nodes[n].endpoint.status().iter().map(|c| c.ike.len()).sum()
    }

    pub fn up(&self) -> bool {
        [A, B].iter().all(|n| self.nodes[*n].endpoint.status().iter().all(|c| c.up))
    }

    pub fn why(&self, n: usize) -> (&'static str, String) {
        let why = self.nodes[n].endpoint.why("site").unwrap();
        (why.code, why.text)
    }

    pub fn spis(&self, n: usize) -> Vec<u32> {
        let status = self.nodes[n].endpoint.status();
        status.iter().flat_map(|c| &c.ike).flat_map(|i| &i.children).map(|c| c.spis.0).collect()
    }

    /// The inbound SPI of what a node sends with.
    pub fn current(&self, n: usize) -> u32 {
        *self.nodes[n].plane.current.values().next().expect("an SA")
    }

    pub fn reasons(&self, n: usize) -> Vec<Reason> {
        self.nodes[n].events.iter().filter_map(|e| e.failure.as_ref().map(|f| f.reason)).collect()
    }
}

pub fn net(text: &str) -> TrafficSelector {
    let (a, p) = text.split_once('/').unwrap();
    TrafficSelector::network(a.parse().unwrap(), p.parse().unwrap())
}

/// One end of the connection `site` with a pre-shared key and the child `net`.
pub fn site(n: usize) -> Connection {
    let addresses = ["192.0.2.1", "192.0.2.2"];
    let names = ["gw-a.example", "gw-b.example"];
    let nets = ["10.1.0.0/16", "10.2.0.0/16"];
    let suite = Suite::named("default").unwrap();
    let child = ChildConfig {
        name: "net".into(),
        local_ts: vec![net(nets[n])],
        remote_ts: vec![net(nets[1 - n])],
        esp: suite.esp,
        lifetime: Lifetime::of(suite.child_lifetime),
        start: Start::Wait,
        per_worker: 1,
    };
    let id = |t: &str| t.parse::<Identity>().unwrap();
    Connection {
        name: "site".into(),
        local: addresses[n].parse().unwrap(),
        remote: Remote::Address(addresses[1 - n].parse().unwrap()),
        local_id: id(names[n]),
        remote_id: IdentityPattern::Exact(id(names[1 - n])),
        local_auth: LocalAuth::Psk(SharedKey::new(*b"a shared secret of tests")),
        remote_auth: RemoteAuth::Psk(SharedKey::new(*b"a shared secret of tests")),
        ike: suite.ike,
        children: vec![child.into()],
        lifetime: Lifetime::of(suite.ike_lifetime),
        dpd: Some(Duration::from_secs(30)),
        force_encapsulation: false,
        fragment_bytes: Some(1232),
    }
}

pub fn ike(text: &str) -> Vec<IkeProposal> {
    text.split(',').map(|t| IkeProposal::parse(t).unwrap()).collect()
}

pub fn esp(text: &str) -> Vec<EspProposal> {
    text.split(',').map(|t| EspProposal::parse(t).unwrap()).collect()
}

/// Changes a connection's only child.
pub fn child(c: &mut Connection, f: impl FnOnce(&mut ChildConfig)) {
    f(Arc::make_mut(&mut c.children[0]));
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
