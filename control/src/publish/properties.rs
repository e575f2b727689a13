//! Publication against a model: after every event of a random sequence, nothing that is published leads to what is not
//! there, a host with a usable neighbour entry is reached, and one without is asked for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use ipnet::Ipv4Net;
use penstock_tables::adjacency::{PortSpec, Unresolved};
use penstock_tables::{Adjacency, Capacity, Hop as Leads, StateOwner, StateView, TablesView, TablesWriter};
use proptest::prelude::*;

use super::journal::Journal;
use super::plan::{Plan, plans};
use super::routes::Routes;
use super::tunnels::Tunnels;
use super::view::TwinIndex;
use crate::config::{Config, Machine};
use crate::netlink::types::{Address, Candidate, Event, Link, Neighbour, Nexthop, Nud, Placement, Way};
use crate::netlink::{Hop, Kernel, Target};

const CAPACITY: Capacity = Capacity { tunnels: 8, replay_window: 64, neighbours: 64, fib_groups: 64 };
/// Interfaces 1 and 2 are the twins of ports 0 (private) and 1 (public), 3 is a tunnel's, 4 is nobody's.
const LINKS: [&str; 4] = ["lan", "wan", "vti", "dummy"];
const HOSTS: [Ipv4Addr; 6] = [
    Ipv4Addr::new(10, 1, 0, 2),
    Ipv4Addr::new(10, 1, 0, 3),
    Ipv4Addr::new(10, 1, 9, 9),
    Ipv4Addr::new(192, 0, 2, 2),
    Ipv4Addr::new(192, 0, 2, 254),
    Ipv4Addr::new(10, 2, 3, 4),
];
const PREFIXES: [&str; 7] = [
    "10.1.0.0/24",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "10.1.9.9/32",
    "10.2.3.0/24",
    "10.1.9.0/24",
    "172.16.0.0/12",
];
const OWN: [(u32, &str); 3] = [(1, "10.1.0.1/24"), (2, "192.0.2.1/24"), (1, "10.1.0.3/24")];
const TUNNELS: [&str; 3] = [
    "  policy: {peer: 192.0.2.2, local_prefixes: [10.1.0.0/16], remote_prefixes: [10.2.0.0/16], lab_keys: {secret_file: s, context: a}}\n",
    "  far: {peer: 198.51.100.7, local: 192.0.2.1, local_prefixes: [10.1.0.0/16], remote_prefixes: [10.3.0.0/16], lab_keys: {secret_file: s, context: b}}\n",
    "  routed: {peer: 192.0.2.9, interface: vti, interface_addresses: [169.254.0.1/30], lab_keys: {secret_file: s, context: c}}\n",
];

#[derive(Clone, Debug)]
enum Step {
    /// The kernel says so.
    Told(Event),
    /// The kernel did so, and its word was lost.
    Lost(Event),
    /// Everything is read anew.
    Resync,
    /// Another file is applied: which of the tunnels are there.
    Apply([bool; 3]),
    /// Every worker passes a quiescent point.
    Pass,
    /// Control starts anew on what is there.
    Restart,
}

fn hop() -> impl Strategy<Value = Hop> {
    let gateway = prop::option::of(prop::sample::select(HOSTS.to_vec()));
    (1..=4_u32, gateway).prop_map(|(ifindex, gateway)| Hop { ifindex, gateway, weight: 1 })
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        6 => prop::collection::vec(hop(), 1..3).prop_map(|hops| Way::Target(Target::Via(hops.into()))),
        2 => (1..4_u32).prop_map(Way::Object),
        1 => Just(Way::Target(Target::Blackhole)),
    ]
}

fn route() -> impl Strategy<Value = (Ipv4Net, Candidate)> {
    (prop::sample::select(PREFIXES.to_vec()), way(), 0..2_u32).prop_map(|(prefix, way, metric)| {
        let candidate = Candidate { way, metric, tos: 0, protocol: 4, source: None };
        (prefix.parse().expect("a prefix"), candidate)
    })
}

/// The MAC address says whose it is.
fn neighbour() -> impl Strategy<Value = Event> {
    let states = [Nud::Reachable, Nud::Stale, Nud::Failed, Nud::Incomplete, Nud::Permanent];
    let state = prop::sample::select(states.to_vec());
    (1..=4_u32, 0..HOSTS.len(), state, 0..2_u8).prop_map(|(link, host, state, version)| {
        let mac = Some([2, 0, 0, link as u8, host as u8, version]).filter(|_| state != Nud::Incomplete);
        Event::Neighbour(link, HOSTS[host], Neighbour { mac, state, ..Neighbour::default() })
    })
}

fn event() -> impl Strategy<Value = Event> {
    let own = prop::sample::select(OWN.to_vec()).prop_map(|(ifindex, net)| Address {
        ifindex,
        address: net.parse().expect("an address"),
        peer: None,
        protocol: 0,
    });
    let object = prop_oneof![
        hop().prop_map(Nexthop::Hop),
        Just(Nexthop::Blackhole),
        prop::collection::vec((1..3_u32, 1..2_u32), 1..3).prop_map(Nexthop::Group),
    ];
    let gone = (1..=4_u32, prop::sample::select(HOSTS.to_vec()));
    let link = (1..=4_u32, any::<bool>()).prop_map(|(index, up)| Event::Link(index, link(index, up)));
    prop_oneof![
        8 => neighbour(),
        5 => gone.prop_map(|(link, host)| Event::NeighbourGone(link, host)),
        5 => route().prop_map(|(prefix, one)| Event::Route(prefix, one, Placement::Replace)),
        3 => route().prop_map(|(prefix, one)| Event::RouteGone(prefix, one)),
        2 => (1..4_u32, object).prop_map(|(id, object)| Event::Nexthop(id, object)),
        1 => (1..4_u32).prop_map(Event::NexthopGone),
        2 => own.clone().prop_map(Event::Address),
        1 => own.prop_map(Event::AddressGone),
        2 => link,
        1 => (1..=4_u32).prop_map(Event::LinkGone),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => event().prop_map(Step::Told),
        3 => event().prop_map(Step::Lost),
        2 => Just(Step::Resync),
        2 => any::<[bool; 3]>().prop_map(Step::Apply),
        3 => Just(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

fn link(index: u32, up: bool) -> Link {
    Link { name: LINKS[index as usize - 1].into(), up, carrier: up, ..Link::default() }
}

/// A gateway whose kernel is this test.
struct World {
    directory: tempfile::TempDir,
    truth: Kernel,
    seen: Kernel,
    workers: StateOwner,
    state: StateView,
    tables: TablesWriter,
    view: TablesView,
    tunnels: Tunnels,
    routes: Routes,
    plans: BTreeMap<String, Plan>,
    /// What a worker may still hold since its last quiescent point: next hop, and whose it was.
    in_hand: Vec<(u32, [u8; 2])>,
}

fn planned(directory: &Path, there: [bool; 3]) -> BTreeMap<String, Plan> {
    let tunnels: String =
        TUNNELS.iter().zip(there).filter(|(_, there)| *there).map(|(one, _)| *one).collect();
    let tunnels = if tunnels.is_empty() { String::new() } else { format!("tunnels:\n{tunnels}") };
    let text = format!(
        "lab: true\nports:\n  lan: {{device: net_null0, addresses: [10.1.0.1/24]}}\n  \
         wan: {{device: net_null1, addresses: [192.0.2.1/24]}}\n{tunnels}"
    );
    let machine = Machine { cores: vec![0, 1], interfaces: Vec::new() };
    let checked = Config::parse(&directory.join("a.yaml"), &text, &machine);
    plans(&checked.unwrap_or_else(|error| panic!("{error}")).config).expect("plans")
}

impl World {
    fn new() -> World {
        let directory = tempfile::tempdir().expect("temporary directory");
        let secret = directory.path().join("s");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").expect("written");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("mode");
        let tables = TablesWriter::open(directory.path(), CAPACITY).expect("tables");
        let workers = StateOwner::open(directory.path(), CAPACITY, 1).expect("state");
        for (index, public) in [(0, false), (1, true)] {
            tables.port(index).set(PortSpec { public, ..PortSpec::default() });
        }
        let mut truth = Kernel::default();
        (1..=4).for_each(|index| truth.apply(Event::Link(index, link(index, true))));
        for (ifindex, prefix) in [(1, PREFIXES[0]), (2, PREFIXES[1])] {
            let way = Way::Target(Target::Via([Hop { ifindex, gateway: None, weight: 1 }].into()));
            let candidate = Candidate { way, metric: 0, tos: 0, protocol: 2, source: None };
            truth.apply(Event::Route(prefix.parse().expect("a prefix"), candidate, Placement::Prepend));
        }
        truth.settle();
        let journal = Journal::open(&directory.path().join("kept")).expect("journal");
        let mut world = World {
            seen: truth.clone(),
            truth,
            workers,
            state: StateView::open(directory.path()).expect("view"),
            view: TablesView::open(directory.path()).expect("view"),
            tunnels: Tunnels::new(journal),
            routes: Routes::adopt(&tables),
            plans: BTreeMap::new(),
            tables,
            in_hand: Vec::new(),
            directory,
        };
        world.apply([true; 3]);
        world
    }

    /// As `Gateway::settle` does.
    fn apply(&mut self, there: [bool; 3]) {
        self.plans = planned(self.directory.path(), there);
        let (_, gone) = self.tunnels.prepare(&mut self.tables, &self.state, &self.plans);
        self.publish();
        gone.into_iter().for_each(|slot| self.tables.retire_tunnel(slot));
        self.tables.reclaim(Some(&self.state));
        self.tunnels.fill(&mut self.tables, &self.state, &self.plans).expect("journal");
        self.publish();
    }

    fn publish(&mut self) {
        let ports = ["lan".to_string(), "wan".to_string()];
        let twins = TwinIndex::find(&self.seen, ports.iter(), [&"vti".to_string()].into_iter());
        let view = twins.view(&self.seen);
        self.routes.publish(&mut self.tables, &view, &self.tunnels).expect("room");
        self.tables.reclaim(Some(&self.state));
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Told(event) => {
                self.truth.apply(event.clone());
                self.seen.apply(event);
            }
            Step::Lost(event) => self.truth.apply(event),
            Step::Resync => self.seen = self.truth.clone(),
            Step::Apply(there) => self.apply(there),
            Step::Pass => {
                self.workers.worker(0).quiescent.fetch_add(1, Ordering::Relaxed);
                self.in_hand.clear();
            }
            Step::Restart => self.routes = Routes::adopt(&self.tables),
        }
        self.truth.settle();
        self.seen.settle();
        self.publish();
        self.nothing_leads_to_what_is_gone();
        self.what_is_in_hand_is_not_given_to_another();
        HOSTS.into_iter().for_each(|host| self.is_reached_or_asked_for(host));
    }

    fn nothing_leads_to_what_is_gone(&self) {
        let hops: BTreeMap<u32, _> = self.tables.adjacencies().collect();
        let tunnels: BTreeMap<u32, _> = self.view.tunnels().collect();
        let leads = self.tables.routes().iter().map(|(prefix, leads)| (*prefix, *leads));
        for (prefix, leads) in
            leads.chain(self.tables.routes().keys().map(|it| (*it, self.view.route(it.address))))
        {
            match leads {
                Leads::Adjacency(index) => {
                    assert!(hops.contains_key(&index), "{prefix:?} leads to a hop that is gone")
                }
                Leads::Tunnel(slot) => assert!(tunnels.contains_key(&slot), "{prefix:?} leads to no tunnel"),
                Leads::Glean(port) => assert!(port < 2, "{prefix:?} leads to no port"),
                Leads::None | Leads::Local | Leads::Discard => (),
            }
        }
        for (_, tunnel) in tunnels {
            assert!(
                tunnel.adjacency().is_none_or(|index| hops.contains_key(&index)),
                "a tunnel's hop is gone"
            );
        }
    }

    /// The kernel is asked before, since a worker that holds an index must never send to another station by it.
    fn what_is_in_hand_is_not_given_to_another(&mut self) {
        for (index, whose) in &self.in_hand {
            if let Ok(next) = self.view.adjacency(*index) {
                assert_eq!(&next.mac[3..5], whose, "next hop {index} changed hands under a worker");
            }
        }
        let resolved = self.tables.adjacencies().filter_map(|(index, hop)| Some((index, hop.ok()?.mac)));
        self.in_hand.extend(resolved.map(|(index, mac)| (index, [mac[3], mac[4]])));
    }

    fn is_reached_or_asked_for(&self, host: Ipv4Addr) {
        let leads = self.view.route(host.to_bits());
        if self.seen.addresses().iter().any(|own| own.address.addr() == host && own.ifindex <= 2) {
            return assert_eq!(leads, Leads::Local, "{host} is ours");
        }
        let covered = self.plans.values().any(|plan| plan.routes.iter().any(|net| net.contains(&host)));
        let Some((net, route)) = self.seen.lookup(host) else { return };
        let Some(hop) = route.target.hops().first().filter(|hop| hop.ifindex <= 2) else { return };
        let (next, port) = (hop.gateway.unwrap_or(host), hop.ifindex as u8 - 1);
        if !self.seen.links().contains_key(&hop.ifindex) {
            return;
        }
        if covered && (hop.gateway.is_some() || net.prefix_len() < 16) {
            return assert!(matches!(leads, Leads::Tunnel(_)), "{host} belongs to a tunnel: {leads:?}");
        }
        let mac = self.seen.neighbours().get(&(hop.ifindex, next)).and_then(Neighbour::usable);
        let expected = match (mac, hop.gateway) {
            (Some(mac), _) if hop.gateway.is_some() || port == 0 => Ok(Adjacency { port, mac }),
            (_, None) => return assert_eq!(leads, Leads::Glean(u32::from(port)), "{host} is asked for"),
            (_, Some(via)) => Err(Unresolved { port, address: via.to_bits() }),
        };
        let Leads::Adjacency(index) = leads else { panic!("{host} by {route:?} leads to {leads:?}") };
        assert_eq!(self.view.adjacency(index), expected, "{host} by {route:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_leads_to_what_is_gone_and_every_host_is_reached_or_asked_for(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.take(step));
    }
}

#[test]
fn a_station_that_says_to_be_a_host_behind_a_tunnel_gets_nothing_of_it() {
    let mut world = World::new();
    let way = Way::Target(Target::Via([Hop { ifindex: 1, gateway: None, weight: 1 }].into()));
    let candidate = Candidate { way, metric: 0, tos: 0, protocol: 4, source: None };
    world.take(Step::Told(Event::Route(Ipv4Net::default(), candidate, Placement::Prepend)));
    let entry = Neighbour { mac: Some([2, 0, 0, 1, 5, 0]), state: Nud::Reachable, ..Neighbour::default() };
    world.take(Step::Told(Event::Neighbour(1, HOSTS[5], entry)));
    assert!(matches!(world.view.route(HOSTS[5].to_bits()), Leads::Tunnel(_)));
}

#[test]
fn a_host_whose_entry_goes_is_asked_for() {
    let mut world = World::new();
    let entry = Neighbour { mac: Some([2, 0, 0, 1, 0, 0]), state: Nud::Stale, ..Neighbour::default() };
    world.take(Step::Told(Event::Neighbour(1, HOSTS[0], entry)));
    assert!(matches!(world.view.route(HOSTS[0].to_bits()), Leads::Adjacency(_)));
    world.take(Step::Told(Event::NeighbourGone(1, HOSTS[0])));
    assert_eq!(world.view.route(HOSTS[0].to_bits()), Leads::Glean(0));
}
