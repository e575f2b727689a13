//! What the kernel knows, as plain data: links, addresses, nexthop objects, IPv4 routes of the main table, neighbours.
//!
//! [`Event`]s enter, in the order of the kernel; [`Kernel::settle`] gives out what they changed. No I/O, no clock. The
//! choice among routes is the kernel's: longest prefix by the reader, then lowest metric, then the first of the list,
//! never over links that are down, and over twins without a carrier only where they are of tunnels and nothing else
//! has the prefix. RFC 1812 section 5.2.4 is the forwarding rule that this serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

use super::types::{
    Address, Candidate, Changes, Event, Hop, Link, Neighbour, Nexthop, Placement, Route, Target, Way,
};

/// The mirror's content.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Address>,
    nexthops: BTreeMap<u32, Nexthop>,
    candidates: BTreeMap<Ipv4Net, Vec<Candidate>>,
    routes: BTreeMap<Ipv4Net, Route>,
    neighbours: BTreeMap<(u32, Ipv4Addr), Neighbour>,
    changes: Changes,
    /// Prefixes whose best route must be chosen anew.
    unsettled: BTreeSet<Ipv4Net>,
    /// Nexthop objects whose routes must be chosen anew.
    moved: BTreeSet<u32>,
    /// Objects that a route named and that were not there.
    missing: BTreeSet<u32>,
    /// All routes must be chosen anew, since a link came or went.
    all: bool,
}

impl Kernel {
    /// The interfaces by index.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The index of an interface.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(&ifindex, _)| ifindex)
    }

    /// The gateway's own IPv4 addresses, by interface.
    pub fn addresses(&self) -> &BTreeSet<Address> {
        &self.addresses
    }

    /// The addresses of one interface.
    pub fn addresses_of(&self, ifindex: u32) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |address| address.ifindex == ifindex)
    }

    /// The best route of each prefix that has one which can be used.
    pub fn routes(&self) -> &BTreeMap<Ipv4Net, Route> {
        &self.routes
    }

    /// The nexthop objects by their number.
    pub fn nexthops(&self) -> &BTreeMap<u32, Nexthop> {
        &self.nexthops
    }

    /// The IPv4 neighbours by interface and address.
    pub fn neighbours(&self) -> &BTreeMap<(u32, Ipv4Addr), Neighbour> {
        &self.neighbours
    }

    /// All routes of the main table, also those that another one outdoes.
    pub(crate) fn candidates(&self) -> impl Iterator<Item = (Ipv4Net, &Candidate)> {
        self.candidates.iter().flat_map(|(prefix, list)| list.iter().map(move |one| (*prefix, one)))
    }

    /// The longest prefix that holds `destination`, and its route. Slow (33 lookups): for control, never per packet.
    pub fn lookup(&self, destination: Ipv4Addr) -> Option<(Ipv4Net, &Route)> {
        (0..=32).rev().find_map(|length| {
            let prefix = Ipv4Net::new(destination, length).ok()?.trunc();
            self.routes.get(&prefix).map(|route| (prefix, route))
        })
    }

    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Link(ifindex, link) => self.link(ifindex, Some(link)),
            Event::LinkGone(ifindex) => self.link_gone(ifindex),
            Event::Address(address) => {
                if self.addresses.insert(address) {
                    self.changes.addresses.insert(address.ifindex);
                }
            }
            Event::AddressGone(address) => {
                if self.addresses.remove(&address) {
                    self.changes.addresses.insert(address.ifindex);
                }
            }
            Event::Nexthop(id, nexthop) => {
                let old = self.nexthops.insert(id, nexthop);
                if old.as_ref() != self.nexthops.get(&id) && (old.is_some() || self.missing.remove(&id)) {
                    self.moved.insert(id);
                }
            }
            Event::NexthopGone(id) => {
                if self.nexthops.remove(&id).is_some() {
                    self.moved.insert(id);
                }
            }
            Event::Route(prefix, candidate, placement) => self.route(prefix, candidate, placement),
            Event::RouteGone(prefix, candidate) => self.route_gone(prefix, &candidate),
            Event::Neighbour(ifindex, address, neighbour) => {
                if self.neighbours.insert((ifindex, address), neighbour) != Some(neighbour) {
                    self.changes.neighbours.insert((ifindex, address));
                }
            }
            Event::NeighbourGone(ifindex, address) => {
                if self.neighbours.remove(&(ifindex, address)).is_some() {
                    self.changes.neighbours.insert((ifindex, address));
                }
            }
        }
    }

    fn link(&mut self, ifindex: u32, new: Option<Link>) {
        let up = |link: &Option<Link>| link.as_ref().map(|link| (link.carries(), link.is_silent_tunnel()));
        let old = match &new {
            Some(link) => self.links.insert(ifindex, link.clone()),
            None => self.links.remove(&ifindex),
        };
        self.all |= up(&old) != up(&new);
        if old != new {
            self.changes.links.insert(ifindex);
        }
    }

    fn link_gone(&mut self, ifindex: u32) {
        self.link(ifindex, None);
        let addresses = self.addresses.len();
        self.addresses.retain(|address| address.ifindex != ifindex);
        if self.addresses.len() != addresses {
            self.changes.addresses.insert(ifindex);
        }
        let range = (ifindex, Ipv4Addr::UNSPECIFIED)..=(ifindex, Ipv4Addr::BROADCAST);
        let gone: Vec<_> = self.neighbours.range(range).map(|(&key, _)| key).collect();
        for key in gone {
            self.neighbours.remove(&key);
            self.changes.neighbours.insert(key);
        }
    }

    fn route(&mut self, prefix: Ipv4Net, new: Candidate, placement: Placement) {
        let list = self.candidates.entry(prefix).or_default();
        // Events may repeat what a dump has told already.
        if !list.contains(&new) {
            let key = |candidate: &Candidate| (candidate.tos, candidate.metric);
            let first = list.partition_point(|candidate| key(candidate) < key(&new));
            let after = list.partition_point(|candidate| key(candidate) <= key(&new));
            match placement {
                Placement::Replace if first < after => list[first] = new,
                Placement::Append => list.insert(after, new),
                _ => list.insert(first, new),
            }
            self.unsettled.insert(prefix);
        }
    }

    fn route_gone(&mut self, prefix: Ipv4Net, gone: &Candidate) {
        let Some(list) = self.candidates.get_mut(&prefix) else { return };
        let same = list.iter().position(|candidate| candidate == gone);
        let similar = |candidate: &Candidate| {
            candidate.tos == gone.tos && candidate.metric == gone.metric && candidate.way == gone.way
        };
        let Some(found) = same.or_else(|| list.iter().position(similar)) else { return };
        list.remove(found);
        if list.is_empty() {
            self.candidates.remove(&prefix);
        }
        self.unsettled.insert(prefix);
    }

    /// Chooses anew what the events touched. Returns what changed since the last call.
    pub(crate) fn settle(&mut self) -> Changes {
        let members = |nexthop: &Nexthop| match nexthop {
            Nexthop::Group(members) => members.iter().any(|(member, _)| self.moved.contains(member)),
            _ => false,
        };
        let groups = self.nexthops.iter().filter(|(_, nexthop)| members(nexthop)).map(|(&id, _)| id);
        let moved: BTreeSet<u32> = groups.chain(self.moved.iter().copied()).collect();
        let touched = |candidate: &Candidate| match candidate.way {
            Way::Object(id) => self.all || moved.contains(&id),
            _ => self.all,
        };
        if self.all || !moved.is_empty() {
            let prefixes = self.candidates.iter().filter(|(_, list)| list.iter().any(touched));
            self.unsettled.extend(prefixes.map(|(&prefix, _)| prefix));
        }
        (self.all, self.moved) = (false, BTreeSet::new());
        // Routes of one object share its hops.
        let mut resolved = BTreeMap::new();
        for prefix in std::mem::take(&mut self.unsettled) {
            let best = self.best(prefix, &mut resolved);
            let changed = best.as_ref() != self.routes.get(&prefix);
            if changed {
                match best {
                    Some(route) => self.routes.insert(prefix, route),
                    None => self.routes.remove(&prefix),
                };
                self.changes.routes.insert(prefix);
            }
        }
        std::mem::take(&mut self.changes)
    }

    /// The best route that can be used now. Where all that is left of a prefix leads into tunnels that are down, it still
    /// leads there: a shorter prefix would take in the clear what belongs to them.
    fn best(&mut self, prefix: Ipv4Net, resolved: &mut Resolved) -> Option<Route> {
        let carrying = self.best_by(prefix, Link::carries, false, resolved)?;
        carrying.or_else(|| self.best_by(prefix, Link::is_silent_tunnel, true, resolved).flatten())
    }

    /// The best route over links that `serves` is true of: `None` where a route of type throw ends the search.
    fn best_by(
        &mut self,
        prefix: Ipv4Net,
        serves: fn(&Link) -> bool,
        silent: bool,
        resolved: &mut Resolved,
    ) -> Option<Option<Route>> {
        // A type of service other than 0 is a choice that the data plane does not make.
        let list: &[Candidate] = self.candidates.get(&prefix).map_or(&[], Vec::as_slice);
        for candidate in list.iter().filter(|candidate| candidate.tos == 0) {
            let target = match &candidate.way {
                Way::Nowhere => return None,
                Way::Target(Target::Via(hops)) => {
                    via(hops.iter().filter(|hop| self.is_by(hop, serves)).copied(), hops)
                }
                Way::Target(target) => Some(target.clone()),
                Way::Object(id) => {
                    if !self.nexthops.contains_key(id) {
                        self.missing.insert(*id);
                    }
                    resolved.entry((*id, silent)).or_insert_with(|| self.resolve(*id, serves)).clone()
                }
            };
            if let Some(target) = target {
                let Candidate { metric, protocol, source, .. } = *candidate;
                return Some(Some(Route { target, metric, protocol, source }));
            }
        }
        Some(None)
    }

    fn is_by(&self, hop: &Hop, serves: fn(&Link) -> bool) -> bool {
        self.links.get(&hop.ifindex).is_some_and(serves)
    }

    /// Where an object leads; `None` where it is not there or no link of it serves.
    fn resolve(&self, id: u32, serves: fn(&Link) -> bool) -> Option<Target> {
        let members = match self.nexthops.get(&id)? {
            Nexthop::Group(members) => members.as_slice(),
            _ => &[(id, 1)],
        };
        let mut refused = None;
        let mut hops = Vec::with_capacity(members.len());
        for &(member, weight) in members {
            match self.nexthops.get(&member) {
                Some(Nexthop::Hop(hop)) if self.is_by(hop, serves) => hops.push(Hop { weight, ..*hop }),
                Some(Nexthop::Blackhole) => refused = Some(Target::Blackhole),
                // A group within a group is refused by the kernel.
                Some(Nexthop::Unsupported | Nexthop::Group(_)) => refused = Some(Target::Unreachable),
                Some(Nexthop::Hop(_)) | None => (),
            }
        }
        if hops.is_empty() { refused } else { Some(Target::Via(hops.into())) }
    }

    /// The changes from `old` to `self`, which must be settled.
    pub(crate) fn difference(&self, old: &Kernel) -> Changes {
        let addresses = self.addresses.symmetric_difference(&old.addresses);
        Changes {
            links: differing(&self.links, &old.links),
            addresses: addresses.map(|address| address.ifindex).collect(),
            routes: differing(&self.routes, &old.routes),
            neighbours: differing(&self.neighbours, &old.neighbours),
        }
    }
}

/// Where objects lead, by their number and by whether tunnels that are down count.
type Resolved = BTreeMap<(u32, bool), Option<Target>>;

/// The living hops of a list, sharing it where all live.
fn via(living: impl Iterator<Item = Hop> + Clone, all: &Arc<[Hop]>) -> Option<Target> {
    match living.clone().count() {
        0 => None,
        count if count == all.len() => Some(Target::Via(all.clone())),
        _ => Some(Target::Via(living.collect())),
    }
}

fn differing<K: Ord + Copy, V: PartialEq>(new: &BTreeMap<K, V>, old: &BTreeMap<K, V>) -> BTreeSet<K> {
    let changed = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(&key, _)| key);
    let gone = old.keys().filter(|key| !new.contains_key(key)).copied();
    changed.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::types::Nud;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn hop(ifindex: u32, gateway: &str) -> Hop {
        Hop { ifindex, gateway: gateway.parse().ok(), weight: 1 }
    }

    fn hops(list: &[Hop]) -> Target {
        Target::Via(list.into())
    }

    fn candidate(way: Way, metric: u32) -> Candidate {
        Candidate { way, metric, tos: 0, protocol: 4, source: None }
    }

    fn link(kernel: &mut Kernel, ifindex: u32, up: bool) {
        kernel.apply(Event::Link(ifindex, Link { name: format!("l{ifindex}"), up, ..Link::default() }));
    }

    fn route(kernel: &mut Kernel, prefix: &str, way: Way, metric: u32, placement: Placement) {
        kernel.apply(Event::Route(net(prefix), candidate(way, metric), placement));
    }

    /// A kernel with links 1 to 3 up.
    fn kernel() -> Kernel {
        let mut kernel = Kernel::default();
        (1..=3).for_each(|ifindex| link(&mut kernel, ifindex, true));
        assert_eq!(kernel.settle().links, BTreeSet::from([1, 2, 3]));
        kernel
    }

    fn target(kernel: &Kernel, prefix: &str) -> Option<Target> {
        kernel.routes().get(&net(prefix)).map(|route| route.target.clone())
    }

    #[test]
    fn the_lowest_metric_wins_and_the_next_follows() {
        let mut kernel = kernel();
        let ways = [(1, 200), (2, 100), (3, 300)].map(|(index, metric)| (hops(&[hop(index, "")]), metric));
        for (way, metric) in &ways {
            route(&mut kernel, "10.0.0.0/8", Way::Target(way.clone()), *metric, Placement::Prepend);
        }
        assert_eq!(kernel.settle().routes, BTreeSet::from([net("10.0.0.0/8")]));
        for at in [1, 0, 2] {
            assert_eq!(target(&kernel, "10.0.0.0/8"), Some(ways[at].0.clone()));
            let gone = candidate(Way::Target(ways[at].0.clone()), ways[at].1);
            kernel.apply(Event::RouteGone(net("10.0.0.0/8"), gone));
            assert_eq!(kernel.settle().routes.len(), 1);
        }
        assert_eq!(target(&kernel, "10.0.0.0/8"), None);
        assert!(kernel.candidates.is_empty());
    }

    #[test]
    fn a_replacement_takes_the_place_of_the_first_alone() {
        let mut kernel = kernel();
        let way = |index| Way::Target(hops(&[hop(index, "192.0.2.1")]));
        route(&mut kernel, "10.0.0.0/8", way(1), 0, Placement::Prepend);
        route(&mut kernel, "10.0.0.0/8", way(2), 0, Placement::Append);
        route(&mut kernel, "10.0.0.0/8", way(3), 0, Placement::Replace);
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(hops(&[hop(3, "192.0.2.1")])));
        kernel.apply(Event::RouteGone(net("10.0.0.0/8"), candidate(way(3), 0)));
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(hops(&[hop(2, "192.0.2.1")])));
        // What was not there stays without effect.
        kernel.apply(Event::RouteGone(net("10.0.0.0/8"), candidate(way(1), 0)));
        kernel.apply(Event::RouteGone(net("11.0.0.0/8"), candidate(way(1), 0)));
        assert!(kernel.settle().is_empty());
    }

    #[test]
    fn repeated_events_change_nothing() {
        let mut kernel = kernel();
        let way = || Way::Target(hops(&[hop(1, "192.0.2.1")]));
        let neighbour = Neighbour { mac: Some([2; 6]), state: Nud::Reachable, guarded: false };
        for round in 0..3 {
            route(&mut kernel, "10.0.0.0/8", way(), 5, Placement::Replace);
            kernel.apply(Event::Neighbour(1, Ipv4Addr::LOCALHOST, neighbour));
            assert_eq!(kernel.settle().is_empty(), round > 0);
        }
    }

    #[test]
    fn objects_are_resolved_and_their_change_moves_the_routes() {
        let mut kernel = kernel();
        kernel.apply(Event::Nexthop(7, Nexthop::Hop(hop(1, "192.0.2.7"))));
        kernel.apply(Event::Nexthop(8, Nexthop::Hop(hop(2, "192.0.2.8"))));
        kernel.apply(Event::Nexthop(9, Nexthop::Group(vec![(7, 3), (8, 1)])));
        route(&mut kernel, "10.7.0.0/16", Way::Object(7), 0, Placement::Prepend);
        route(&mut kernel, "10.9.0.0/16", Way::Object(9), 0, Placement::Prepend);
        kernel.settle();
        assert_eq!(target(&kernel, "10.7.0.0/16"), Some(hops(&[hop(1, "192.0.2.7")])));
        let heavy = Hop { weight: 3, ..hop(1, "192.0.2.7") };
        assert_eq!(target(&kernel, "10.9.0.0/16"), Some(hops(&[heavy, hop(2, "192.0.2.8")])));

        kernel.apply(Event::Nexthop(7, Nexthop::Hop(hop(3, "192.0.2.77"))));
        assert_eq!(kernel.settle().routes, BTreeSet::from([net("10.7.0.0/16"), net("10.9.0.0/16")]));
        assert_eq!(target(&kernel, "10.7.0.0/16"), Some(hops(&[hop(3, "192.0.2.77")])));

        kernel.apply(Event::NexthopGone(7));
        kernel.settle();
        assert_eq!(target(&kernel, "10.7.0.0/16"), None);
        assert_eq!(target(&kernel, "10.9.0.0/16"), Some(hops(&[hop(2, "192.0.2.8")])));
        kernel.apply(Event::Nexthop(8, Nexthop::Blackhole));
        kernel.settle();
        assert_eq!(target(&kernel, "10.9.0.0/16"), Some(Target::Blackhole));
        // An object that comes after its route.
        kernel.apply(Event::Nexthop(7, Nexthop::Unsupported));
        kernel.settle();
        assert_eq!(target(&kernel, "10.7.0.0/16"), Some(Target::Unreachable));
    }

    #[test]
    fn links_that_are_down_carry_nothing() {
        let mut kernel = kernel();
        let (one, two) = (hop(1, "192.0.2.1"), hop(2, "192.0.2.2"));
        route(&mut kernel, "10.0.0.0/8", Way::Target(hops(&[one, two])), 0, Placement::Prepend);
        route(&mut kernel, "10.0.0.0/8", Way::Target(Target::Prohibit), 10, Placement::Prepend);
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(hops(&[one, two])));
        link(&mut kernel, 1, false);
        assert_eq!(kernel.settle().routes.len(), 1);
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(hops(&[two])));
        kernel.apply(Event::LinkGone(2));
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(Target::Prohibit));
        link(&mut kernel, 1, true);
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), Some(hops(&[one])));
    }

    #[test]
    fn a_tunnel_without_a_carrier_gives_way_to_a_route_of_the_same_prefix_and_to_no_shorter_one() {
        let mut kernel = kernel();
        let twin = |kernel: &mut Kernel, carrier| {
            let (kind, alias) = (Some("tun".into()), Some("penstock:a".into()));
            let link = Link { name: "t".into(), up: true, carrier, kind, alias, ..Link::default() };
            kernel.apply(Event::Link(4, link));
            kernel.settle()
        };
        twin(&mut kernel, true);
        let way = |ifindex| Way::Target(hops(&[hop(ifindex, "")]));
        kernel.apply(Event::Nexthop(7, Nexthop::Hop(hop(4, ""))));
        route(&mut kernel, "0.0.0.0/0", way(1), 0, Placement::Prepend);
        route(&mut kernel, "10.2.0.0/16", way(4), 10, Placement::Prepend);
        route(&mut kernel, "10.3.0.0/16", Way::Object(7), 10, Placement::Prepend);
        kernel.settle();
        assert!(twin(&mut kernel, false).routes.is_empty());
        let targets = |kernel: &Kernel| ["10.2.0.0/16", "10.3.0.0/16"].map(|net| target(kernel, net));
        let by = |ifindex| [Some(hops(&[hop(ifindex, "")])), Some(hops(&[hop(ifindex, "")]))];
        assert_eq!(targets(&kernel), by(4));
        for prefix in ["10.2.0.0/16", "10.3.0.0/16"] {
            route(&mut kernel, prefix, way(2), 20, Placement::Prepend);
        }
        kernel.settle();
        assert_eq!(targets(&kernel), by(2));
        assert_eq!(twin(&mut kernel, true).routes.len(), 2);
        assert_eq!(targets(&kernel), by(4));
    }

    #[test]
    fn a_port_without_a_link_carries_no_route_and_foreign_devices_do() {
        let mut kernel = kernel();
        for (ifindex, alias) in [(4, "penstock:a"), (5, "of somebody else")] {
            let (kind, alias) = (Some("tun".into()), Some(alias.into()));
            let link = Link { up: true, mac: Some([2; 6]), kind, alias, ..Link::default() };
            kernel.apply(Event::Link(ifindex, link));
        }
        route(&mut kernel, "10.4.0.0/16", Way::Target(hops(&[hop(4, "")])), 0, Placement::Prepend);
        route(&mut kernel, "10.5.0.0/16", Way::Target(hops(&[hop(5, "")])), 0, Placement::Prepend);
        kernel.settle();
        assert_eq!(target(&kernel, "10.4.0.0/16"), None);
        assert_eq!(target(&kernel, "10.5.0.0/16"), Some(hops(&[hop(5, "")])));
    }

    #[test]
    fn a_throw_is_no_route_and_hides_what_stands_behind_it() {
        let mut kernel = kernel();
        route(&mut kernel, "10.0.0.0/8", Way::Nowhere, 1, Placement::Prepend);
        route(&mut kernel, "10.0.0.0/8", Way::Target(Target::Blackhole), 2, Placement::Prepend);
        kernel.settle();
        assert_eq!(target(&kernel, "10.0.0.0/8"), None);
    }

    #[test]
    fn a_link_takes_its_addresses_and_neighbours_away() {
        let mut kernel = kernel();
        let address = Address { ifindex: 2, address: net("192.0.2.1/24"), peer: None, protocol: 0 };
        kernel.apply(Event::Address(address));
        let neighbour = Neighbour { mac: Some([2; 6]), state: Nud::Stale, guarded: true };
        for ifindex in [1, 2, 3] {
            kernel.apply(Event::Neighbour(ifindex, Ipv4Addr::LOCALHOST, neighbour));
        }
        assert_eq!(kernel.settle().addresses, BTreeSet::from([2]));
        kernel.apply(Event::LinkGone(2));
        let changes = kernel.settle();
        assert_eq!((changes.links, changes.addresses), (BTreeSet::from([2]), BTreeSet::from([2])));
        assert_eq!(changes.neighbours, BTreeSet::from([(2, Ipv4Addr::LOCALHOST)]));
        assert_eq!((kernel.addresses().len(), kernel.neighbours().len()), (0, 2));
    }

    #[test]
    fn the_difference_of_two_mirrors_names_what_came_went_and_changed() {
        let mut old = kernel();
        route(&mut old, "10.1.0.0/16", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        route(&mut old, "10.2.0.0/16", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        route(&mut old, "10.3.0.0/16", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        old.settle();
        let mut new = kernel();
        route(&mut new, "10.2.0.0/16", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        route(&mut new, "10.3.0.0/16", Way::Target(Target::Prohibit), 0, Placement::Prepend);
        route(&mut new, "10.4.0.0/16", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        new.settle();
        let expected = ["10.1.0.0/16", "10.3.0.0/16", "10.4.0.0/16"].map(net);
        let changes = new.difference(&old);
        assert_eq!((changes.routes, changes.links.len()), (BTreeSet::from(expected), 0));
    }

    #[test]
    fn the_longest_prefix_is_looked_up() {
        let mut kernel = kernel();
        route(&mut kernel, "0.0.0.0/0", Way::Target(Target::Unreachable), 0, Placement::Prepend);
        route(&mut kernel, "10.0.0.0/8", Way::Target(Target::Prohibit), 0, Placement::Prepend);
        route(&mut kernel, "10.1.2.3/32", Way::Target(Target::Blackhole), 0, Placement::Prepend);
        kernel.settle();
        let prefix = |text: &str| kernel.lookup(text.parse().unwrap()).map(|(prefix, _)| prefix);
        assert_eq!(prefix("10.1.2.3"), Some(net("10.1.2.3/32")));
        assert_eq!(prefix("10.1.2.4"), Some(net("10.0.0.0/8")));
        assert_eq!(prefix("255.255.255.255"), Some(net("0.0.0.0/0")));
    }
}
