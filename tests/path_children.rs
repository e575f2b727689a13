//! A tunnel with several children: each packet leaves by the child whose selectors cover it, and what a child opens is judged by
//! its own selectors (RFC 4301 sections 4.4.1 and 5.2, RFC 7296 section 2.9).

use penstock_dataplane::path::punt::Twin;
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::events::Event;
use penstock_tables::{Note, Selector, TunnelSpec, Verdict};

const SENT: &[(Verdict, u64)] = &[(Verdict::Sent, 1)];
const SEALED: &[(Note, u64)] = &[(Note::Sealed, 1)];
const OPENED: &[(Note, u64)] = &[(Note::Opened, 1)];

/// Networks of site 1 and of site 2: 10.site.net.0/24.
fn network(site: u8, net: u8) -> Selector {
    Selector::prefix(ip(10, site, net, 0), 24)
}

/// A station in one of them.
fn station(site: u8, net: u8) -> u32 {
    ip(10, site, net, 9)
}

/// Site 1, whose tunnel to site 2 carries networks 1 and 2 of each, with a child for some of the four pairs.
struct Pairs {
    gateway: Gateway,
    tunnel: u32,
    /// Networks here and there, slot, SA to the peer, SA from the peer.
    children: Vec<(u8, u8, u32, Sa, Sa)>,
}

fn pairs(some: &[(u8, u8)]) -> Pairs {
    let mut gateway = Gateway::new(Site::new(1));
    let spec = TunnelSpec {
        local: vec![network(1, 1), network(1, 2)],
        remote: vec![network(2, 1), network(2, 2)],
        interface: "tun0".into(),
        ..gateway.tunnel_spec(2)
    };
    let tunnel = gateway.tunnel_with(2, &spec);
    let way = gateway.writer.tunnel(tunnel).adjacency();
    gateway.worker.twins.set_present(Twin::Tunnel(tunnel), true);
    let mut children = Vec::new();
    for (here, there) in some.iter().copied() {
        let (local, remote) = (vec![network(1, here)], vec![network(2, there)]);
        let spec = TunnelSpec { local, remote, interface: String::new(), ..spec.clone() };
        let slot = gateway.writer.add_tunnel(&spec).unwrap();
        gateway.writer.set_tunnel_adjacency(slot, way);
        let (to, from) = (sa_between(10 * here, there), sa_between(there, 10 * here));
        gateway.seal_with(slot, 2, &to, Limits::default());
        gateway.open_with(slot, &from, 64);
        children.push((here, there, slot, to, from));
    }
    let slots: Vec<u32> = children.iter().map(|child| child.2).collect();
    gateway.writer.link_tunnel(tunnel, &slots);
    Pairs { gateway, tunnel, children }
}

fn packet(source: u32, destination: u32) -> Packet {
    Packet { source, destination, ..between(1, 2, 100) }
}

const ALL: [(u8, u8); 4] = [(1, 1), (1, 2), (2, 1), (2, 2)];

#[test]
fn each_of_four_pairs_leaves_by_its_own_child() {
    let mut pairs = pairs(&ALL);
    for number in 1..=3 {
        // All in one burst, then one by one.
        for (here, there) in ALL {
            pairs.gateway.from_host(&packet(station(1, here), station(2, there)).octets());
        }
        let outcome = pairs.gateway.run();
        outcome.expect(&[(Verdict::Sent, 4)], &[(Note::Sealed, 4)]);
        for (sent, (here, there, _, to, _)) in outcome.sent[PUBLIC].iter().zip(&pairs.children) {
            let (_, esp) = pairs.gateway.esp_of(2, to, sent);
            let inner = packet(station(1, *here), station(2, *there)).forwarded().octets();
            assert_eq!(to.open(&esp), Some((number, inner)), "{here} to {there}");
        }
    }
    let stranger = packet(station(1, 3), station(2, 1));
    pairs.gateway.from_host(&stranger.octets());
    pairs.gateway.run().dropped(Verdict::SelectorOutbound, 1);
}

#[test]
fn what_a_child_opens_is_judged_by_its_own_selectors() {
    let mut pairs = pairs(&ALL);
    for at in 0..4 {
        let (here, there, .., from) = pairs.children[at].clone();
        for (number, (to_here, from_there)) in (1..).zip(ALL) {
            let inner = packet(station(2, from_there), station(1, to_here)).octets();
            pairs.gateway.from_internet(&outer(2, 1, &from, &from.seal(number, &inner)).octets());
            let outcome = pairs.gateway.run();
            match (to_here, from_there) == (here, there) {
                // No station of these networks is known to the gateway.
                true => outcome.expect(&[(Verdict::NoNeighbour, 1)], OPENED),
                false => outcome.expect(&[(Verdict::SelectorInbound, 1)], OPENED),
            };
        }
    }
}

#[test]
fn a_pair_without_a_child_is_dropped_and_control_hears_of_its_tunnel() {
    let mut pairs = pairs(&ALL[..3]);
    let without = packet(station(1, 2), station(2, 2)).octets();
    let dropped = |pairs: &mut Pairs| {
        pairs.gateway.from_host(&without);
        let outcome = pairs.gateway.run();
        outcome.dropped(Verdict::NoSa, 1);
        assert_eq!(outcome.events, [Event::NoSa { tunnel: pairs.tunnel }]);
    };
    dropped(&mut pairs);
    // A child whose SA is gone is none. The others stay as they are.
    let (_, _, slot, to, _) = pairs.children[0].clone();
    pairs.gateway.writer.switch_outbound(slot, None);
    pairs.gateway.from_host(&packet(station(1, 1), station(2, 1)).octets());
    pairs.gateway.run().dropped(Verdict::NoSa, 1);
    pairs.gateway.from_host(&packet(station(1, 1), station(2, 2)).octets());
    pairs.gateway.run().expect(SENT, SEALED);
    // The tunnel's own SA takes what no child does.
    let own = pairs.gateway.seal_with(pairs.tunnel, 2, &sa_between(1, 2), Limits::default());
    pairs.gateway.from_host(&without);
    let outcome = pairs.gateway.run();
    let sent = outcome.expect(SENT, SEALED).only(PUBLIC).to_vec();
    pairs.gateway.esp_of(2, &sa_between(1, 2), &sent);
    pairs.gateway.writer.switch_outbound(pairs.tunnel, None);
    pairs.gateway.writer.retire_outbound(own);
    dropped(&mut pairs);
    drop(to);
}

#[test]
fn nothing_passes_a_child_that_the_tunnels_own_selectors_do_not_cover() {
    let mut pairs = pairs(&[]);
    // As after a change of the file: the old child covers more than the file still does.
    let spec = TunnelSpec {
        local: vec![Selector::ANY],
        remote: vec![Selector::ANY],
        ..pairs.gateway.tunnel_spec(2)
    };
    let slot = pairs.gateway.writer.add_tunnel(&spec).unwrap();
    let way = pairs.gateway.writer.tunnel(pairs.tunnel).adjacency();
    pairs.gateway.writer.set_tunnel_adjacency(slot, way);
    pairs.gateway.writer.link_tunnel(pairs.tunnel, &[slot]);
    let (to, from) = (sa_between(1, 2), sa_between(2, 1));
    pairs.gateway.seal_with(slot, 2, &to, Limits::default());
    pairs.gateway.open_with(slot, &from, 64);
    pairs.gateway.from_host(&packet(station(1, 3), station(2, 1)).octets());
    pairs.gateway.run().dropped(Verdict::SelectorOutbound, 1);
    pairs.gateway.from_host(&packet(station(1, 1), station(2, 1)).octets());
    pairs.gateway.run().expect(SENT, SEALED);
    for (number, (net, verdict)) in
        (1..).zip([(3, Verdict::SelectorInbound), (1, Verdict::NoNeighbour), (4, Verdict::SelectorInbound)])
    {
        let inner = packet(station(2, net), station(1, 1)).octets();
        pairs.gateway.from_internet(&outer(2, 1, &from, &from.seal(number, &inner)).octets());
        pairs.gateway.run().expect(&[(verdict, 1)], OPENED);
    }
}

#[test]
fn children_are_one_tunnel_to_loops_and_to_the_kernel() {
    let mut pairs = pairs(&ALL);
    let (tunnel, from) = (pairs.tunnel, pairs.children[3].4.clone());
    // For the gateway itself: by the tunnel's device, whichever child brought it.
    let own = ip(10, 1, 2, 1);
    pairs.gateway.route(own, 32, penstock_tables::Hop::Local);
    let ping = Packet { protocol: ICMP, ..packet(station(2, 2), own) }.octets();
    pairs.gateway.from_internet(&outer(2, 1, &from, &from.seal(1, &ping)).octets());
    assert_eq!(pairs.gateway.run().punted, [(Twin::Tunnel(tunnel), ping)]);
    // What the kernel sends into that device leaves by the child that covers it.
    let reply = packet(own, station(2, 1));
    pairs.gateway.from_kernel(Twin::Tunnel(tunnel), &reply.octets());
    let outcome = pairs.gateway.run();
    let sent = outcome.expect(SENT, &[(Note::FromKernel, 1), (Note::Sealed, 1)]).only(PUBLIC).to_vec();
    let to = &pairs.children[2].3;
    let (_, esp) = pairs.gateway.esp_of(2, to, &sent);
    assert_eq!(to.open(&esp), Some((1, reply.octets())));
    // Back into the tunnel that it came by, through another child: never.
    pairs.gateway.route(ip(10, 1, 2, 0), 24, penstock_tables::Hop::Tunnel(tunnel));
    let back = packet(station(2, 2), station(1, 2)).octets();
    pairs.gateway.from_internet(&outer(2, 1, &from, &from.seal(2, &back)).octets());
    pairs.gateway.run().expect(&[(Verdict::TunnelLoop, 1)], OPENED);
    // The tunnel goes on in another slot: its device keeps its number.
    let spec = pairs.gateway.writer.tunnel(tunnel).spec();
    let slots: Vec<u32> = std::iter::once(tunnel).chain(pairs.children.iter().map(|child| child.2)).collect();
    let new = pairs.gateway.replace_tunnel(tunnel, &TunnelSpec { remote: vec![network(2, 1)], ..spec });
    assert_ne!(new, tunnel);
    pairs.gateway.writer.set_tunnel_device(new, tunnel);
    pairs.gateway.writer.link_tunnel(new, &slots[1..]);
    let ping = Packet { protocol: ICMP, ..packet(station(2, 1), own) }.octets();
    let from = pairs.children[2].4.clone();
    pairs.gateway.from_internet(&outer(2, 1, &from, &from.seal(3, &ping)).octets());
    assert_eq!(pairs.gateway.run().punted, [(Twin::Tunnel(tunnel), ping)]);
}
