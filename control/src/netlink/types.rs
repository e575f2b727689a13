//! What the kernel tells, as types: links, addresses, nexthop objects, routes, neighbours, and what changed of them.
//!
//! `message` makes [`Event`]s of the kernel's octets (RFC 3549), `kernel` keeps what they say.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Name.
    pub name: String,
    /// What made it, as `ip -d link` says: `tun` (TAP too), `veth`; `None` for a plain device.
    pub kind: Option<String>,
    /// MAC address; `None` for devices without Ethernet, as a TUN.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet, in octets.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// Has a carrier: of a twin, that the data plane is attached to it and that its port has a link, its tunnel an SA.
    pub carrier: bool,
    /// The alias, where a device's owner leaves a mark.
    pub alias: Option<String>,
}

/// What the alias of a twin begins with.
pub(crate) const TWIN: &str = "penstock:";

impl Link {
    /// Whether a route may go by it. On twins the kernel ignores routes without a carrier (their setting
    /// `ignore_routes_with_linkdown`), on other interfaces it does not by default.
    pub(crate) fn carries(&self) -> bool {
        self.up && (self.carrier || !self.is_twin())
    }

    /// Whether it is the interface of a tunnel that is down, so that what its routes lead to is not sent elsewhere.
    pub(crate) fn is_silent_tunnel(&self) -> bool {
        self.up && !self.carrier && self.mac.is_none() && self.is_twin()
    }

    fn is_twin(&self) -> bool {
        self.kind.as_deref() == Some("tun")
            && self.alias.as_ref().is_some_and(|alias| alias.starts_with(TWIN))
    }
}

/// An IPv4 address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Index of the interface.
    pub ifindex: u32,
    /// The gateway's own address, with the length of its network.
    pub address: Ipv4Net,
    /// The other end, of a point-to-point address.
    pub peer: Option<Ipv4Addr>,
    /// Who set it (IFA_PROTO; Linux 5.18 or newer), 0 where nobody said so.
    pub protocol: u8,
}

/// One way on: an interface, and who takes the packet there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// Index of the interface.
    pub ifindex: u32,
    /// The next router; `None` where the destination itself is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// Share of the traffic among the hops of one route, from 1.
    pub weight: u32,
}

/// What becomes of a packet that a route matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// It goes on by one of these hops, of which there is at least one.
    Via(Arc<[Hop]>),
    /// It is for the gateway itself.
    Local,
    /// It is dropped in silence.
    Blackhole,
    /// It is dropped, the sender is told "host unreachable". Also what stands for hops that cannot be followed (a
    /// gateway with an IPv6 address, an encapsulation): better a drop than a wrong way.
    Unreachable,
    /// It is dropped, the sender is told "prohibited".
    Prohibit,
}

impl Candidate {
    /// Whether it goes on by this hop alone.
    pub(crate) fn is_via(&self, ifindex: u32, gateway: Option<Ipv4Addr>) -> bool {
        let Way::Target(target) = &self.way else { return false };
        matches!(target.hops(), [hop] if (hop.ifindex, hop.gateway) == (ifindex, gateway))
    }

    /// Whether it goes on by no interface but these.
    pub(crate) fn is_by(&self, ifindices: &[u32]) -> bool {
        match &self.way {
            Way::Target(target) if !target.hops().is_empty() => {
                target.hops().iter().all(|hop| ifindices.contains(&hop.ifindex))
            }
            _ => false,
        }
    }
}

impl Target {
    /// The hops, none where the packet does not go on.
    pub fn hops(&self) -> &[Hop] {
        match self {
            Target::Via(hops) => hops,
            _ => &[],
        }
    }
}

/// The best route of a prefix, nexthop objects resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What becomes of the packet.
    pub target: Target,
    /// The metric; lower wins.
    pub metric: u32,
    /// Who made it (RTPROT_*): 2 kernel, 4 static, 11 zebra, 186 BGP.
    pub protocol: u8,
    /// The source address for the gateway's own packets.
    pub source: Option<Ipv4Addr>,
}

/// How much the kernel trusts a neighbour entry (NUD_*; RFC 4861 section 7.3.2 names the states).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nud {
    /// Made, nothing asked yet.
    #[default]
    None,
    /// Asked, no answer yet.
    Incomplete,
    /// Confirmed lately.
    Reachable,
    /// Not confirmed for a while, not in use.
    Stale,
    /// In use again, will be probed soon.
    Delay,
    /// Being probed.
    Probe,
    /// No answer.
    Failed,
    /// Needs no resolution.
    NoArp,
    /// Written by hand.
    Permanent,
}

impl Nud {
    /// Whether the MAC address of such an entry may be used.
    pub fn usable(self) -> bool {
        !matches!(self, Nud::None | Nud::Incomplete | Nud::Failed)
    }
}

/// A neighbour entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// The MAC address, if the kernel has one; see [`Neighbour::usable`].
    pub mac: Option<[u8; 6]>,
    /// The entry's state.
    pub state: Nud,
    /// Whoever made it keeps it (NTF_EXT_LEARNED): the kernel does not collect it when it has too many.
    pub guarded: bool,
}

impl Neighbour {
    /// The MAC address, if packets may be sent to it.
    pub fn usable(&self) -> Option<[u8; 6]> {
        self.mac.filter(|_| self.state.usable())
    }
}

/// A nexthop object, that routes name by a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nexthop {
    /// One hop.
    Hop(Hop),
    /// Drops.
    Blackhole,
    /// Other objects, each with its weight from 1.
    Group(Vec<(u32, u32)>),
    /// A hop that cannot be followed.
    Unsupported,
}

/// Where a route says that packets go, before nexthop objects are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Target(Target),
    /// To this nexthop object.
    Object(u32),
    /// RTN_THROW and the like: the lookup goes on as if the prefix were not in this table.
    Nowhere,
}

/// One route of the main table, of perhaps several for its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) way: Way,
    pub(crate) metric: u32,
    pub(crate) tos: u8,
    pub(crate) protocol: u8,
    pub(crate) source: Option<Ipv4Addr>,
}

/// How a new route stands to those of the same prefix, type of service and metric (NLM_F_REPLACE, NLM_F_APPEND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    Replace,
    Append,
    Prepend,
}

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Link(u32, Link),
    LinkGone(u32),
    Address(Address),
    AddressGone(Address),
    Nexthop(u32, Nexthop),
    NexthopGone(u32),
    Route(Ipv4Net, Candidate, Placement),
    RouteGone(Ipv4Net, Candidate),
    Neighbour(u32, Ipv4Addr, Neighbour),
    NeighbourGone(u32, Ipv4Addr),
}

/// What changed since the last batch: keys to look up in the [`Kernel`]; a key that is not there is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces.
    pub links: BTreeSet<u32>,
    /// Interfaces whose addresses changed.
    pub addresses: BTreeSet<u32>,
    /// Prefixes whose best route changed.
    pub routes: BTreeSet<Ipv4Net>,
    /// Neighbours that changed.
    pub neighbours: BTreeSet<(u32, Ipv4Addr)>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.links.len() + self.addresses.len() + self.routes.len() + self.neighbours.len()
    }

    pub(crate) fn merge(&mut self, other: Changes) {
        self.links.extend(other.links);
        self.addresses.extend(other.addresses);
        self.routes.extend(other.routes);
        self.neighbours.extend(other.neighbours);
    }
}
