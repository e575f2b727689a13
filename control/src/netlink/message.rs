//! Datagrams of an rtnetlink socket enter, [`Incoming`] messages leave; and the requests that the mirror sends.
//!
//! RFC 3549 describes the framing, rtnetlink(7) the messages. Just the attributes that the mirror needs are read, by
//! hand over the attribute iterator of netlink-packet-core: nexthop objects have no typed messages there, and a newer
//! kernel must not make a message unreadable by an attribute that nobody here asks for. Nothing in here panics,
//! whatever the octets are.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::{
    NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REPLACE, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NlasIterator,
};

use super::types::{Address, Candidate, Event, Hop, Link, Neighbour, Nexthop, Nud, Placement, Target, Way};

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const RT_TABLE_MAIN: u32 = 254;
const RTM_F_CLONED: u32 = 0x200;
const NTF_USE: u8 = 0x01;
const NTF_PROXY: u8 = 0x08;
const NTF_EXT_LEARNED: u8 = 0x10;
const IFF_UP: u32 = 0x1;
const IFF_LOWER_UP: u32 = 0x1_0000;

/// The message types that are listened to (linux/rtnetlink.h); each DEL is its NEW plus one, each GET plus two.
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWNEXTHOP: u16 = 104;

/// What a whole dump consists of, in its order: a link dump waits for a change of links that is under way, and what
/// comes later refers to what came before.
pub(super) const DUMPS: [u16; 5] = [RTM_NEWLINK, RTM_NEWADDR, RTM_NEWNEXTHOP, RTM_NEWROUTE, RTM_NEWNEIGH];

/// One message that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// News.
    Event(Event),
    /// A part of the dump of this sequence number.
    Part(u32, Event),
    /// The dump of this sequence number is complete; with an error number of the kernel, or 0.
    Done(u32, i32),
    /// A request was answered: an error number of the kernel, or 0.
    Answer(u32, i32),
    /// What this dump tells may lack something, since the kernel's tables changed meanwhile.
    Interrupted(u32),
    /// The kernel lost messages.
    Overrun,
    /// A message of a known type that cannot be read.
    Malformed,
}

/// Reads a datagram.
pub(super) fn read(datagram: &[u8], mut sink: impl FnMut(Incoming)) {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Ok(message) = NetlinkBuffer::new_checked(rest) else { return sink(Incoming::Malformed) };
        let (sequence, flags, payload) = (message.sequence_number(), message.flags(), message.payload());
        if flags & NLM_F_DUMP_INTR != 0 {
            sink(Incoming::Interrupted(sequence));
        }
        match message.message_type() {
            NLMSG_DONE => sink(Incoming::Done(sequence, errno(payload))),
            NLMSG_ERROR => sink(Incoming::Answer(sequence, errno(payload))),
            NLMSG_OVERRUN => sink(Incoming::Overrun),
            kind => match event(kind, flags, payload) {
                Ok(Some(event)) if flags & NLM_F_MULTIPART != 0 => sink(Incoming::Part(sequence, event)),
                Ok(Some(event)) => sink(Incoming::Event(event)),
                Ok(None) => (),
                Err(Malformed) => sink(Incoming::Malformed),
            },
        }
        rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
}

struct Malformed;

fn errno(payload: &[u8]) -> i32 {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    code.checked_neg().unwrap_or(i32::MAX)
}

fn event(kind: u16, flags: u16, payload: &[u8]) -> Result<Option<Event>, Malformed> {
    let (new, gone) = (kind & !3, kind & 3 == 1);
    match (new, kind & 3) {
        (RTM_NEWLINK, 0 | 1) => link(payload, gone),
        (RTM_NEWADDR, 0 | 1) => address(payload, gone),
        (RTM_NEWROUTE, 0 | 1) => route(payload, flags, gone),
        (RTM_NEWNEIGH, 0 | 1) => neighbour(payload, gone),
        (RTM_NEWNEXTHOP, 0 | 1) => nexthop(payload, gone),
        _ => Ok(None),
    }
}

/// The fixed head of a message, and its attributes.
fn split<const HEAD: usize>(payload: &[u8]) -> Result<(&[u8; HEAD], &[u8]), Malformed> {
    payload.split_first_chunk().ok_or(Malformed)
}

/// Kind and value of each attribute, up to the first that is cut off.
fn attributes_of(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(octets).map_while(Result::ok).map(|attribute| {
        let octets: &[u8] = attribute.into_inner();
        let value = octets.get(4..attribute.length() as usize).unwrap_or_default();
        (attribute.kind(), value)
    })
}

fn u32_of(value: &[u8]) -> Result<u32, Malformed> {
    value.first_chunk().map(|octets| u32::from_ne_bytes(*octets)).ok_or(Malformed)
}

fn ipv4_of(value: &[u8]) -> Result<Ipv4Addr, Malformed> {
    value.first_chunk().map(|octets: &[u8; 4]| Ipv4Addr::from(*octets)).ok_or(Malformed)
}

fn text_of(value: &[u8]) -> String {
    let text = value.split(|&octet| octet == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

fn mac_of(value: &[u8]) -> Option<[u8; 6]> {
    value.try_into().ok()
}

fn link(payload: &[u8], gone: bool) -> Result<Option<Event>, Malformed> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_IFALIAS: u16 = 20;
    let (head, attributes) = split::<16>(payload)?;
    // Bridges tell of their ports in the same group: a port that leaves is no link that is gone.
    if head[0] != AF_UNSPEC {
        return Ok(None);
    }
    let (ifindex, flags) = (u32_of(&head[4..])?, u32_of(&head[8..])?);
    if gone {
        return Ok(Some(Event::LinkGone(ifindex)));
    }
    let mut link = Link { up: flags & IFF_UP != 0, carrier: flags & IFF_LOWER_UP != 0, ..Link::default() };
    for (kind, value) in attributes_of(attributes) {
        match kind {
            IFLA_ADDRESS => link.mac = mac_of(value),
            IFLA_IFNAME => link.name = text_of(value),
            IFLA_MTU => link.mtu = u32_of(value)?,
            IFLA_IFALIAS => link.alias = Some(text_of(value)),
            IFLA_LINKINFO => {
                let mut kinds = attributes_of(value).filter(|&(kind, _)| kind == IFLA_INFO_KIND);
                link.kind = kinds.next().map(|(_, value)| text_of(value));
            }
            _ => (),
        }
    }
    Ok(Some(Event::Link(ifindex, link)))
}

fn address(payload: &[u8], gone: bool) -> Result<Option<Event>, Malformed> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_PROTO: u16 = 11;
    let (head, attributes) = split::<8>(payload)?;
    if head[0] != AF_INET {
        return Ok(None);
    }
    let (mut far, mut local, mut protocol) = (None, None, 0);
    for (kind, value) in attributes_of(attributes) {
        match kind {
            IFA_ADDRESS => far = Some(ipv4_of(value)?),
            IFA_LOCAL => local = Some(ipv4_of(value)?),
            IFA_PROTO => protocol = value.first().copied().unwrap_or(0),
            _ => (),
        }
    }
    let own = local.or(far).ok_or(Malformed)?;
    let address = Ipv4Net::new(own, head[1]).map_err(|_| Malformed)?;
    let (ifindex, peer) = (u32_of(&head[4..])?, far.filter(|&far| far != own));
    let address = Address { ifindex, address, peer, protocol };
    Ok(Some(if gone { Event::AddressGone(address) } else { Event::Address(address) }))
}

fn neighbour(payload: &[u8], gone: bool) -> Result<Option<Event>, Malformed> {
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    let (head, attributes) = split::<12>(payload)?;
    if head[0] != AF_INET || head[10] & NTF_PROXY != 0 {
        return Ok(None);
    }
    let (ifindex, state) = (u32_of(&head[4..])?, nud(u16::from_ne_bytes([head[8], head[9]])));
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes_of(attributes) {
        match kind {
            NDA_DST => address = Some(ipv4_of(value)?),
            NDA_LLADDR => mac = mac_of(value),
            _ => (),
        }
    }
    let address = address.ok_or(Malformed)?;
    Ok(Some(match gone {
        true => Event::NeighbourGone(ifindex, address),
        false => {
            let guarded = head[10] & NTF_EXT_LEARNED != 0;
            Event::Neighbour(ifindex, address, Neighbour { mac, state, guarded })
        }
    }))
}

fn nud(bits: u16) -> Nud {
    match bits {
        0x01 => Nud::Incomplete,
        0x02 => Nud::Reachable,
        0x04 => Nud::Stale,
        0x08 => Nud::Delay,
        0x10 => Nud::Probe,
        0x20 => Nud::Failed,
        0x40 => Nud::NoArp,
        0x80 => Nud::Permanent,
        _ => Nud::None,
    }
}

const RTN_UNICAST: u8 = 1;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;

/// One hop as routes tell it; `None` where it cannot be followed.
struct RawHop {
    ifindex: u32,
    gateway: Option<Ipv4Addr>,
    foreign: bool,
}

impl RawHop {
    fn read(&mut self, kind: u16, value: &[u8]) -> Result<(), Malformed> {
        match kind {
            RTA_GATEWAY => self.gateway = Some(ipv4_of(value)?),
            RTA_VIA | RTA_ENCAP => self.foreign = true,
            _ => (),
        }
        Ok(())
    }

    fn hop(&self, weight: u32) -> Option<Hop> {
        let Self { ifindex, gateway, foreign } = *self;
        (!foreign && ifindex != 0).then_some(Hop { ifindex, gateway, weight })
    }
}

fn route(payload: &[u8], flags: u16, gone: bool) -> Result<Option<Event>, Malformed> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_PRIORITY: u16 = 6;
    const RTA_PREFSRC: u16 = 7;
    const RTA_MULTIPATH: u16 = 9;
    const RTA_TABLE: u16 = 15;
    const RTA_NH_ID: u16 = 30;
    let (head, attributes) = split::<12>(payload)?;
    let &[family, length, _, tos, table, protocol, _, kind, ..] = head;
    if family != AF_INET || u32_of(&head[8..])? & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let (mut table, mut destination, mut metric, mut source) =
        (u32::from(table), Ipv4Addr::UNSPECIFIED, 0, None);
    let (mut single, mut many, mut object) =
        (RawHop { ifindex: 0, gateway: None, foreign: false }, None, None);
    for (kind, value) in attributes_of(attributes) {
        match kind {
            RTA_TABLE => table = u32_of(value)?,
            RTA_DST => destination = ipv4_of(value)?,
            RTA_PRIORITY => metric = u32_of(value)?,
            RTA_PREFSRC => source = Some(ipv4_of(value)?),
            RTA_OIF => single.ifindex = u32_of(value)?,
            RTA_MULTIPATH => many = Some(multipath(value)?),
            RTA_NH_ID => object = Some(u32_of(value)?),
            _ => single.read(kind, value)?,
        }
    }
    if table != RT_TABLE_MAIN {
        return Ok(None);
    }
    let hops = many.unwrap_or_else(|| Vec::from_iter(single.hop(1)));
    let way = match object {
        // What else the message says of the hop is a copy, that is not told again when the object changes.
        Some(id) => Way::Object(id),
        None => way(kind, hops),
    };
    let prefix = Ipv4Net::new(destination, length).map_err(|_| Malformed)?.trunc();
    let candidate = Candidate { way, metric, tos, protocol, source };
    let placement = match flags {
        flags if flags & NLM_F_REPLACE != 0 => Placement::Replace,
        // The parts of a dump come in the order of the table.
        flags if flags & NLM_F_APPEND != 0 || flags & NLM_F_CREATE == 0 => Placement::Append,
        _ => Placement::Prepend,
    };
    Ok(Some(match gone {
        true => Event::RouteGone(prefix, candidate),
        false => Event::Route(prefix, candidate, placement),
    }))
}

fn way(kind: u8, hops: Vec<Hop>) -> Way {
    match kind {
        RTN_UNICAST if hops.is_empty() => Way::Target(Target::Unreachable),
        RTN_UNICAST => Way::Target(Target::Via(hops.into())),
        2 => Way::Target(Target::Local),
        6 => Way::Target(Target::Blackhole),
        7 => Way::Target(Target::Unreachable),
        8 => Way::Target(Target::Prohibit),
        _ => Way::Nowhere,
    }
}

/// struct rtnexthop: length, flags, weight less one, interface; then attributes.
fn multipath(mut rest: &[u8]) -> Result<Vec<Hop>, Malformed> {
    let mut hops = Vec::new();
    while let Some(head) = rest.first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let one = rest.get(8..length).ok_or(Malformed)?;
        let mut hop = RawHop { ifindex: u32_of(&head[4..])?, gateway: None, foreign: false };
        for (kind, value) in attributes_of(one) {
            hop.read(kind, value)?;
        }
        hops.extend(hop.hop(u32::from(head[3]) + 1));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

fn nexthop(payload: &[u8], gone: bool) -> Result<Option<Event>, Malformed> {
    const NHA_ID: u16 = 1;
    const NHA_GROUP: u16 = 2;
    const NHA_BLACKHOLE: u16 = 4;
    const NHA_OIF: u16 = 5;
    const NHA_GATEWAY: u16 = 6;
    const NHA_ENCAP: u16 = 8;
    let (head, attributes) = split::<8>(payload)?;
    let mut hop = RawHop { ifindex: 0, gateway: None, foreign: !matches!(head[0], AF_UNSPEC | AF_INET) };
    let (mut id, mut group, mut blackhole) = (None, None, false);
    for (kind, value) in attributes_of(attributes) {
        match kind {
            NHA_ID => id = Some(u32_of(value)?),
            // struct nexthop_grp: number, weight less one (two octets, low first), reserved.
            NHA_GROUP => {
                let (members, _) = value.as_chunks::<8>();
                let weight = |m: &[u8; 8]| u32::from(u16::from_le_bytes([m[4], m[5]])) + 1;
                let member = |m: &[u8; 8]| (u32::from_ne_bytes([m[0], m[1], m[2], m[3]]), weight(m));
                group = Some(members.iter().map(member).collect());
            }
            NHA_BLACKHOLE => blackhole = true,
            NHA_OIF => hop.ifindex = u32_of(value)?,
            NHA_GATEWAY if !hop.foreign => hop.gateway = Some(ipv4_of(value)?),
            NHA_ENCAP => hop.foreign = true,
            _ => (),
        }
    }
    let id = id.ok_or(Malformed)?;
    let nexthop = match (group, blackhole) {
        (Some(members), _) => Nexthop::Group(members),
        (None, true) => Nexthop::Blackhole,
        (None, false) => hop.hop(1).map_or(Nexthop::Unsupported, Nexthop::Hop),
    };
    Ok(Some(if gone { Event::NexthopGone(id) } else { Event::Nexthop(id, nexthop) }))
}

fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut octets = vec![0; 16];
    octets.extend_from_slice(payload);
    let length = u32::try_from(octets.len()).unwrap_or(u32::MAX);
    let mut message = NetlinkBuffer::new(&mut octets);
    message.set_length(length);
    message.set_message_type(kind);
    message.set_flags(NLM_F_REQUEST | flags);
    message.set_sequence_number(sequence);
    octets
}

/// Asks for all objects of a kind, one of [`DUMPS`].
pub(super) fn dump_request(kind: u16, sequence: u32) -> Vec<u8> {
    let (family, length) = match kind {
        RTM_NEWLINK => (AF_UNSPEC, 16),
        RTM_NEWNEXTHOP => (AF_UNSPEC, 8),
        RTM_NEWADDR => (AF_INET, 8),
        _ => (AF_INET, 12),
    };
    let mut payload = vec![0; length];
    payload[0] = family;
    request(kind + 2, NLM_F_DUMP, sequence, &payload)
}

/// Tells the kernel that a neighbour is in use (NTF_USE): it makes the entry if there is none, and asks by ARP unless
/// it knows the answer and that is fresh. `guard` says whether it may collect the entry when it has too many.
pub(super) fn use_request(ifindex: u32, address: Ipv4Addr, guard: bool, sequence: u32) -> Vec<u8> {
    let flags = NTF_USE | if guard { NTF_EXT_LEARNED } else { 0 };
    request(RTM_NEWNEIGH, NLM_F_CREATE, sequence, &neighbour_payload(ifindex, address, flags))
}

/// Has the kernel forget a neighbour.
pub(super) fn forget_request(ifindex: u32, address: Ipv4Addr, sequence: u32) -> Vec<u8> {
    request(RTM_NEWNEIGH + 1, 0, sequence, &neighbour_payload(ifindex, address, 0))
}

fn neighbour_payload(ifindex: u32, address: Ipv4Addr, flags: u8) -> [u8; 20] {
    let mut payload = [0; 20];
    payload[0] = AF_INET;
    payload[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    payload[10] = flags;
    // NDA_DST, 8 octets with its head.
    payload[12..16].copy_from_slice(&[8u16.to_ne_bytes(), 1u16.to_ne_bytes()].concat());
    payload[16..].copy_from_slice(&address.octets());
    payload
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend_from_slice(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn message(kind: u16, flags: u16, head: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut payload = head.to_vec();
        attributes.iter().for_each(|(kind, value)| payload.extend(attribute(*kind, value)));
        request(kind, flags, 77, &payload)
    }

    fn all(datagram: &[u8]) -> Vec<Incoming> {
        let mut list = Vec::new();
        read(datagram, |incoming| list.push(incoming));
        list
    }

    fn route_head(length: u8, table: u8, kind: u8) -> [u8; 12] {
        [AF_INET, length, 0, 0, table, 11, 0, kind, 0, 0, 0, 0]
    }

    #[test]
    fn a_route_by_an_object_ignores_the_copy_of_the_hop() {
        let attributes: [(u16, &[u8]); 5] = [
            (1, &[10, 2, 0, 0]),
            (4, &3u32.to_ne_bytes()),
            (5, &[192, 0, 2, 1]),
            (6, &20u32.to_ne_bytes()),
            (30, &7u32.to_ne_bytes()),
        ];
        let octets = message(RTM_NEWROUTE, NLM_F_REPLACE, &route_head(16, 254, 1), &attributes);
        let candidate = Candidate { way: Way::Object(7), metric: 20, tos: 0, protocol: 11, source: None };
        let event = Event::Route("10.2.0.0/16".parse().unwrap(), candidate, Placement::Replace);
        assert_eq!(all(&octets), [Incoming::Event(event)]);
    }

    #[test]
    fn multipath_and_its_weights_are_read_and_foreign_gateways_left_out() {
        let hop = |hops: u8, ifindex: u32, attribute: &[u8]| {
            let length = u16::try_from(8 + attribute.len()).unwrap().to_ne_bytes();
            [&[length[0], length[1], 0, hops][..], &ifindex.to_ne_bytes(), attribute].concat()
        };
        let gateway = attribute(RTA_GATEWAY, &[192, 0, 2, 1]);
        let via = attribute(RTA_VIA, &[10, 0, 0xfe, 0x80]);
        let many = [hop(0, 1, &gateway), hop(9, 2, &[]), hop(0, 3, &via)].concat();
        let octets = message(RTM_NEWROUTE, NLM_F_CREATE, &route_head(0, 254, 1), &[(9, &many)]);
        let [Incoming::Event(Event::Route(prefix, candidate, Placement::Prepend))] = &all(&octets)[..] else {
            panic!("{:?}", all(&octets));
        };
        assert_eq!(*prefix, Ipv4Net::default());
        let hops = [
            Hop { ifindex: 1, gateway: Some(Ipv4Addr::new(192, 0, 2, 1)), weight: 1 },
            Hop { ifindex: 2, gateway: None, weight: 10 },
        ];
        assert_eq!(candidate.way, Way::Target(Target::Via(hops.into())));
        let foreign = message(RTM_NEWROUTE, 0, &route_head(0, 254, 1), &[(9, &hop(0, 3, &via))]);
        let [Incoming::Event(Event::Route(_, candidate, Placement::Append))] = &all(&foreign)[..] else {
            panic!()
        };
        assert_eq!(candidate.way, Way::Target(Target::Unreachable));
    }

    #[test]
    fn other_tables_families_and_types_are_passed_over() {
        assert_eq!(all(&message(RTM_NEWROUTE, 0, &route_head(32, 255, 2), &[])), []);
        let other: [(u16, &[u8]); 1] = [(15, &1000u32.to_ne_bytes())];
        assert_eq!(all(&message(RTM_NEWROUTE, 0, &route_head(0, 0, 1), &other)), []);
        let mut ipv6 = route_head(0, 254, 1);
        ipv6[0] = 10;
        assert_eq!(all(&message(RTM_NEWROUTE, 0, &ipv6, &[])), []);
        assert_eq!(all(&message(36, 0, &[0; 20], &[])), []);
        let mut bridge = [0; 16];
        bridge[0] = 7;
        assert_eq!(all(&message(RTM_NEWLINK + 1, 0, &bridge, &[])), []);
        let drops = [(6, Target::Blackhole), (7, Target::Unreachable), (8, Target::Prohibit)];
        for (kind, target) in drops {
            let octets = message(RTM_NEWROUTE, 0, &route_head(0, 254, kind), &[]);
            let [Incoming::Event(Event::Route(_, candidate, _))] = &all(&octets)[..] else { panic!() };
            assert_eq!(candidate.way, Way::Target(target));
        }
    }

    #[test]
    fn objects_and_groups_are_read() {
        let id: (u16, &[u8]) = (1, &9u32.to_ne_bytes());
        let group = [&7u32.to_ne_bytes()[..], &[2, 0, 0, 0], &8u32.to_ne_bytes(), &[0, 1, 0, 0]].concat();
        let octets = message(RTM_NEWNEXTHOP, 0, &[0; 8], &[id, (2, &group)]);
        let event = Event::Nexthop(9, Nexthop::Group(vec![(7, 3), (8, 257)]));
        assert_eq!(all(&octets), [Incoming::Event(event)]);
        let ipv6 = message(RTM_NEWNEXTHOP, 0, &[10, 0, 0, 0, 0, 0, 0, 0], &[id, (6, &[0xfe; 16])]);
        assert_eq!(all(&ipv6), [Incoming::Event(Event::Nexthop(9, Nexthop::Unsupported))]);
        let gone = message(RTM_NEWNEXTHOP + 1, 0, &[0; 8], &[id]);
        assert_eq!(all(&gone), [Incoming::Event(Event::NexthopGone(9))]);
        let nameless = message(RTM_NEWNEXTHOP, 0, &[0; 8], &[(4, &[])]);
        assert_eq!(all(&nameless), [Incoming::Malformed]);
    }

    #[test]
    fn the_ends_of_dumps_and_the_refusals_are_told() {
        let done = request(NLMSG_DONE, NLM_F_DUMP_INTR, 5, &0i32.to_ne_bytes());
        let refused = request(NLMSG_ERROR, 0, 6, &(-1i32).to_ne_bytes());
        let lost = request(NLMSG_OVERRUN, 0, 0, &[]);
        let expected =
            [Incoming::Interrupted(5), Incoming::Done(5, 0), Incoming::Answer(6, 1), Incoming::Overrun];
        assert_eq!(all(&[done, refused, lost].concat()), expected);
    }

    #[test]
    fn a_use_request_is_what_iproute2_would_send() {
        let address = Ipv4Addr::new(192, 0, 2, 9);
        for (guarded, flags) in [(false, NTF_USE), (true, NTF_USE | NTF_EXT_LEARNED)] {
            let octets = use_request(3, address, guarded, 5);
            let event = Event::Neighbour(3, address, Neighbour { guarded, ..Neighbour::default() });
            assert_eq!(all(&octets), [Incoming::Event(event)]);
            assert_eq!((octets.len(), octets[16 + 10]), (36, flags));
        }
        assert_eq!(all(&forget_request(3, address, 6)), [Incoming::Event(Event::NeighbourGone(3, address))]);
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            all(&octets);
        }

        #[test]
        fn no_payload_makes_it_panic(kind in prop::sample::select(DUMPS.to_vec()), gone in 0..2u16, flags: u16,
                                     family in prop::sample::select(vec![0u8, 2, 7, 10]),
                                     mut payload in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(first) = payload.first_mut() {
                *first = family;
            }
            all(&request(kind + gone, flags, 0, &payload));
        }

        #[test]
        fn a_message_cut_off_anywhere_is_no_panic(cut in 0..60usize, kind in prop::sample::select(DUMPS.to_vec())) {
            let full = message(kind, 0, &route_head(16, 254, 1), &[(1, &[10, 0, 0, 0]), (9, &[16, 0, 0, 0, 1, 0, 0, 0])]);
            all(&full[..full.len().saturating_sub(cut)]);
        }
    }
}
