//! The route table and the next hops: the kernel's routes and neighbours and the tunnels' prefixes enter, one trie of hops
//! leaves. The order of strength is that of a security policy before a route (RFC 4301 section 4.4.1): what belongs to a
//! tunnel by the file goes into the tunnel, whatever the kernel's routes say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use penstock_tables::TableFull;
use penstock_tables::adjacency::Unresolved;
use penstock_tables::{Adjacency, Hop, Prefix, Selector, TablesWriter};

use super::live::Live;
use super::tunnels::Tunnels;

/// Where a route of the kernel leads, as far as the data plane can follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The gateway itself.
    Local,
    /// The network of a port: destinations are neighbours.
    Link(u8),
    /// A neighbour on a port.
    Gateway(u8, Ipv4Addr),
    /// The interface of a tunnel, by name.
    Interface(String),
    /// Blackhole, unreachable, prohibit.
    Discard,
    /// Another interface of the kernel: the kernel forwards.
    Kernel,
}

/// The kernel's view of the twins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelView {
    /// Best route for each destination.
    pub routes: BTreeMap<Ipv4Net, Target>,
    /// MAC addresses by port and address.
    pub neighbours: HashMap<(u8, Ipv4Addr), [u8; 6]>,
}

impl KernelView {
    /// The neighbour that a packet to `address` is handed to, on which port.
    pub fn next_hop(&self, address: Ipv4Addr) -> Option<Neighbour> {
        self.lookup().next_hop(address)
    }

    /// Finds routes; make one for many addresses.
    pub fn lookup(&self) -> Lookup<'_> {
        let lengths: BTreeSet<u8> = self.routes.keys().map(Ipv4Net::prefix_len).collect();
        Lookup { routes: &self.routes, lengths: lengths.into_iter().rev().collect() }
    }
}

/// Longest prefix match on a [`KernelView`].
#[derive(Debug)]
pub struct Lookup<'a> {
    routes: &'a BTreeMap<Ipv4Net, Target>,
    /// The lengths that occur, longest first.
    lengths: Vec<u8>,
}

impl<'a> Lookup<'a> {
    /// The best route to `address`.
    pub(crate) fn route(&self, address: Ipv4Addr) -> Option<(Ipv4Net, &'a Target)> {
        self.lengths.iter().find_map(|len| {
            let net = Ipv4Net::new(address, *len).ok()?.trunc();
            self.routes.get(&net).map(|target| (net, target))
        })
    }

    /// The neighbour that a packet to `address` is handed to, on which port; none for 0.0.0.0, a peer that is not known yet.
    pub fn next_hop(&self, address: Ipv4Addr) -> Option<Neighbour> {
        match self.route(Some(address).filter(|address| !address.is_unspecified())?)?.1 {
            Target::Link(port) => Some((*port, address)),
            Target::Gateway(port, via) => Some((*port, *via)),
            _ => None,
        }
    }
}

/// What always belongs to the gateway or to nobody: multicast and broadcast (for routing protocols), loopback.
const SPECIAL: [(Ipv4Addr, u8, Hop); 4] = [
    (Ipv4Addr::new(224, 0, 0, 0), 4, Hop::Local),
    (Ipv4Addr::BROADCAST, 32, Hop::Local),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Hop::Discard),
    (Ipv4Addr::new(0, 0, 0, 0), 8, Hop::Discard),
];

/// A port and an address on its link.
pub type Neighbour = (u8, Ipv4Addr);

/// Next hops in the tables.
#[derive(Debug, Default)]
pub struct Routes {
    hops: HashMap<Neighbour, (u32, Option<[u8; 6]>)>,
    /// Next hops that an earlier control left: freed when nothing leads to them any more.
    inherited: Vec<u32>,
    /// Hosts that the data plane asked for lately.
    asked: HashSet<Neighbour>,
    /// Hosts that left the tables since [`Routes::take_lost`] was called last.
    lost: Vec<Neighbour>,
}

impl Routes {
    /// Takes note of what stands in `tables` already.
    pub fn adopt(tables: &TablesWriter) -> Routes {
        Routes { inherited: tables.adjacencies().map(|(index, _)| index).collect(), ..Routes::default() }
    }

    /// Makes `tables` lead where `kernel` and `tunnels` say. Unchanged routes are not touched.
    ///
    /// # Errors
    /// [`TableFull`]; as much as fits is there, and what does not fit has no route, so it is dropped.
    pub fn publish(
        &mut self,
        tables: &mut TablesWriter,
        kernel: &KernelView,
        tunnels: &Tunnels,
    ) -> Result<(), TableFull> {
        let lookup = kernel.lookup();
        let peers: Vec<(&Live, Option<Neighbour>)> =
            tunnels.iter().map(|(_, live)| (live, lookup.next_hop(live.peer()))).collect();
        let needed = gateways(kernel).chain(peers.iter().filter_map(|(_, hop)| *hop)).collect();
        let hosts = self.hosts(tables, kernel, tunnels, &needed);
        let gone = self.leave_out(&needed, &hosts);
        let mut result = self.add_hops(tables, kernel, needed.iter().chain(&hosts));
        let wanted = self.routes(kernel, tunnels, &hosts);
        result = result.and(tables.sync_routes(&wanted));
        for (live, hop) in peers {
            let index = hop.and_then(|hop| self.hops.get(&hop)).map(|(index, _)| *index);
            live.children().for_each(|child| tables.set_tunnel_adjacency(child.slot, index));
        }
        // Only now does nothing lead there any more.
        gone.into_iter().chain(self.inherited.drain(..)).for_each(|index| tables.retire_adjacency(index));
        result
    }

    /// The hosts on the ports' links that have a route of their own: plaintext goes to them, so none on public ports. What
    /// is in the tables stays. What was asked for comes next; what is heard of only, as far as there is room to spare, so
    /// that strangers who make themselves known push out nobody.
    fn hosts(
        &self,
        tables: &TablesWriter,
        kernel: &KernelView,
        tunnels: &Tunnels,
        needed: &HashSet<Neighbour>,
    ) -> BTreeSet<Neighbour> {
        let capacity = tables.capacity().neighbours as usize;
        let (lookup, policies) = (kernel.lookup(), Policies::new(tunnels));
        // Who says by ARP to be a host behind a tunnel gets nothing of that tunnel's.
        let on_link = |(port, address): &Neighbour| {
            let route = lookup.route(*address);
            matches!(route, Some((net, Target::Link(link))) if link == port && !policies.outdo(net, *address))
                && tables.ports().get(usize::from(*port)).is_some_and(|entry| !entry.get().public)
        };
        let rank = |host: &Neighbour| match self.hops.get(host) {
            Some((_, Some(_))) => 0,
            _ if self.asked.contains(host) || needed.contains(host) => 1,
            _ => 2,
        };
        let mut known: Vec<(u8, Neighbour)> =
            kernel.neighbours.keys().filter(|host| on_link(host)).map(|host| (rank(host), *host)).collect();
        known.sort_unstable();
        let (mut hosts, mut taken) = (BTreeSet::new(), needed.len());
        let mut of_port: HashMap<u8, usize> = HashMap::new();
        for (rank, host) in known {
            let here = of_port.entry(host.0).or_default();
            let spare = taken < capacity - capacity / 4 && *here < capacity / 4;
            if needed.contains(&host) {
                hosts.insert(host);
            } else if taken < capacity && (rank < 2 || spare) {
                hosts.insert(host);
                (taken, *here) = (taken + 1, *here + 1);
            }
        }
        hosts
    }

    /// Forgets all next hops but these. Returns their places in the tables, where routes still lead to them.
    fn leave_out(&mut self, needed: &HashSet<Neighbour>, hosts: &BTreeSet<Neighbour>) -> Vec<u32> {
        let mut places = Vec::new();
        for (hop, (index, mac)) in
            self.hops.extract_if(|hop, _| !needed.contains(hop) && !hosts.contains(hop))
        {
            self.lost.extend(mac.map(|_| hop));
            places.push(index);
        }
        places
    }

    /// What the data plane asked for lately comes before what only the kernel has heard of.
    pub fn prefer(&mut self, asked: HashSet<Neighbour>) {
        self.asked = asked;
    }

    /// Hosts that were reached and are no longer, each once.
    pub fn take_lost(&mut self) -> Vec<Neighbour> {
        std::mem::take(&mut self.lost)
    }

    /// The neighbours that packets are sent to or wait for.
    pub fn neighbours(&self) -> impl Iterator<Item = Neighbour> {
        self.hops.keys().copied()
    }

    /// Adds next hops and updates MAC addresses.
    fn add_hops<'a>(
        &mut self,
        tables: &mut TablesWriter,
        kernel: &KernelView,
        wanted: impl Iterator<Item = &'a Neighbour>,
    ) -> Result<(), TableFull> {
        let mut result = Ok(());
        for (port, address) in wanted {
            let mac = kernel.neighbours.get(&(*port, *address)).copied();
            let hop = match mac {
                Some(mac) => Ok(Adjacency { port: *port, mac }),
                None => Err(Unresolved { port: *port, address: address.to_bits() }),
            };
            match self.hops.get_mut(&(*port, *address)) {
                Some((_, known)) if *known == mac => (),
                Some((index, known)) => {
                    tables.set_adjacency(*index, hop);
                    *known = mac;
                }
                None => match tables.add_adjacency(hop) {
                    Ok(index) => {
                        self.hops.insert((*port, *address), (index, mac));
                    }
                    Err(error) => result = Err(error),
                },
            }
        }
        result
    }

    /// Every route as it should be.
    fn routes(
        &self,
        kernel: &KernelView,
        tunnels: &Tunnels,
        hosts: &BTreeSet<Neighbour>,
    ) -> BTreeMap<Prefix, Hop> {
        let interfaces: HashMap<&str, u32> = tunnels
            .iter()
            .filter(|(_, live)| !live.plan.spec.interface.is_empty())
            .map(|(_, live)| (live.plan.spec.interface.as_str(), live.own.slot))
            .collect();
        let policies = Policies::new(tunnels);
        let mut wanted: BTreeMap<Prefix, Hop> =
            SPECIAL.iter().map(|(address, len, hop)| (Prefix::new(address.to_bits(), *len), *hop)).collect();
        for (net, target) in &kernel.routes {
            let hop = match target {
                Target::Local => Hop::Local,
                Target::Link(port) => Hop::Glean(u32::from(*port)),
                Target::Interface(name) => {
                    interfaces.get(name.as_str()).map_or(Hop::Discard, |slot| Hop::Tunnel(*slot))
                }
                Target::Discard => Hop::Discard,
                Target::Kernel | Target::Gateway(..) if policies.covers(*net) => continue,
                Target::Kernel => Hop::Local,
                Target::Gateway(port, via) => match self.hops.get(&(*port, *via)) {
                    Some((index, _)) => Hop::Adjacency(*index),
                    None => Hop::Discard,
                },
            };
            wanted.insert(prefix(*net), hop);
        }
        for host in hosts {
            if let Some((index, Some(_))) = self.hops.get(host) {
                wanted.insert(Prefix::new(host.1.to_bits(), 32), Hop::Adjacency(*index));
            }
        }
        for (_, live) in tunnels.iter() {
            wanted.extend(live.plan.routes.iter().map(|net| (prefix(*net), Hop::Tunnel(live.own.slot))));
        }
        wanted
    }
}

/// The neighbours that routes lead to.
fn gateways(kernel: &KernelView) -> impl Iterator<Item = Neighbour> {
    kernel.routes.values().filter_map(|target| match target {
        Target::Gateway(port, via) => Some((*port, *via)),
        _ => None,
    })
}

fn prefix(net: Ipv4Net) -> Prefix {
    Prefix::new(net.network().to_bits(), net.prefix_len())
}

/// The prefixes that the file puts behind tunnels.
struct Policies<'a>(HashMap<Ipv4Net, &'a Live>);

impl<'a> Policies<'a> {
    fn new(tunnels: &'a Tunnels) -> Policies<'a> {
        Policies(
            tunnels
                .iter()
                .flat_map(|(_, live)| live.plan.routes.iter().map(move |net| (*net, live)))
                .collect(),
        )
    }

    /// Whether a prefix of a tunnel that holds `address` is as long as `net` or longer.
    fn outdo(&self, net: Ipv4Net, address: Ipv4Addr) -> bool {
        let longer = (net.prefix_len()..=32).filter_map(|len| Ipv4Net::new(address, len).ok());
        longer.into_iter().any(|net| self.0.contains_key(&net.trunc()))
    }

    /// Whether packets to `net` belong to a tunnel, so that a route through a neighbour would send them in the clear. What
    /// is also on this side of that tunnel does not.
    fn covers(&self, net: Ipv4Net) -> bool {
        let around = (0..=net.prefix_len()).rev().filter_map(|len| Ipv4Net::new(net.network(), len).ok());
        let Some(live) = around.into_iter().find_map(|outer| self.0.get(&outer.trunc())) else {
            return false;
        };
        let range = Selector::prefix(net.network().to_bits(), net.prefix_len());
        !live.own.local.iter().any(|own| *own != Selector::ANY && own.contains(range))
    }
}
