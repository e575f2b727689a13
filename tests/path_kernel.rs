//! The kernel's side: what is punted to which twin and how it looks there, what the kernel sends and where that leaves;
//! and that no plaintext ever crosses a public port, whatever is missing (RFC 4301 section 5).

use penstock_dataplane::path::punt::Twin;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::events::Event;
use penstock_tables::{Hop, Note, Prefix, Selector, TunnelSpec, Verdict};

const FROM_KERNEL: (Note, u64) = (Note::FromKernel, 1);
const PUNTED: &[(Verdict, u64)] = &[(Verdict::Punted, 1)];
const SENT: &[(Verdict, u64)] = &[(Verdict::Sent, 1)];
const PRIVATE_TWIN: Twin = Twin::Port(PRIVATE as u8);
const PUBLIC_TWIN: Twin = Twin::Port(PUBLIC as u8);

/// Gives a tunnel a TUN.
fn with_interface(site: &mut Joined) {
    let spec = TunnelSpec { interface: "tun0".into(), ..site.gateway.tunnel_spec(2) };
    site.gateway.writer.update_tunnel(site.tunnel, &spec).unwrap();
    site.gateway.worker.twins.set_present(Twin::Tunnel(site.tunnel), true);
}

#[test]
fn what_is_not_ours_to_handle_goes_to_the_ports_twin_as_it_came() {
    let mut site = joined();
    let (broadcast, group) = ([0xff; 6], [1, 0, 0x5e, 0, 0, 5]);
    let arp = |to| frame_of(to, mac(1, 2), None, 0x0806, &[1; 28]);
    let ospf = Packet { destination: ip(224, 0, 0, 5), ..Packet::new(host(1), 0, 89, 64) }.octets();
    let kernels = [
        arp(broadcast),
        arp(mac(1, 0)),
        frame_of(mac(1, 0), mac(1, 2), None, 0x86dd, &[0x60; 40]),
        frame_of(group, mac(1, 2), None, 0x0800, &ospf),
        frame(mac(1, 0), mac(1, 2), None, &ospf),
        frame(broadcast, mac(1, 2), None, &between(1, 2, 60).octets()),
        frame(mac(1, 0), mac(1, 2), None, &Packet::new(host(1), private(1), ICMP, 84).octets()),
        frame(mac(1, 0), mac(1, 2), None, &Packet::new(host(1), public(1), 6, 40).octets()),
    ];
    for octets in kernels {
        site.gateway.inject(PRIVATE, &octets);
        let outcome = site.gateway.run();
        assert_eq!(outcome.expect(PUNTED, &[]).punted, [(PRIVATE_TWIN, octets)]);
    }
    let ike = Packet::udp((public(2), 500), (public(1), 500), b"IKE");
    site.gateway.from_internet(&ike.octets());
    let outcome = site.gateway.run();
    let octets = frame(mac(1, 1), mac(99, 1), None, &ike.octets());
    assert_eq!(outcome.expect(PUNTED, &[]).punted, [(PUBLIC_TWIN, octets)]);
}

#[test]
fn a_full_ring_to_the_kernel_drops_and_counts() {
    let mut site = joined_with(Site { punt_ring: 5, ..Site::new(1) }, 2, Limits::default(), |sa| sa);
    let ping = Packet::new(host(1), private(1), ICMP, 84).octets();
    (0..100).for_each(|_| site.gateway.from_host(&ping));
    site.gateway.run().expect(&[(Verdict::Punted, 5), (Verdict::PuntFull, 95)], &[]);
    (0..5).for_each(|_| site.gateway.from_host(&ping));
    site.gateway.run().expect(&[(Verdict::Punted, 5)], &[]);
}

#[test]
fn what_is_decrypted_for_the_gateway_goes_to_the_tunnels_twin_or_the_ports() {
    let mut site = joined();
    let ping = Packet { ttl: 1, ..Packet::new(host(2), private(1), ICMP, 84) };
    site.peer_sends(1, &ping.octets());
    let outcome = site.gateway.run();
    outcome.expect(PUNTED, &[(Note::Opened, 1)]);
    let (twin, octets) = &outcome.punted[0];
    assert_eq!((*twin, &octets[..6], &octets[12..14]), (PUBLIC_TWIN, &mac(1, 1)[..], &[8, 0][..]));
    assert_eq!(octets[14..], ping.octets(), "as it was, its TTL too: it is not forwarded");

    with_interface(&mut site);
    site.peer_sends(2, &ping.octets());
    let outcome = site.gateway.run();
    outcome.expect(PUNTED, &[(Note::Opened, 1)]);
    assert_eq!(outcome.punted, [(Twin::Tunnel(site.tunnel), ping.octets())]);

    site.gateway.worker.twins.set_present(Twin::Tunnel(site.tunnel), false);
    site.peer_sends(3, &ping.octets());
    site.gateway.run().expect(&[(Verdict::PuntNoTwin, 1)], &[(Note::Opened, 1)]);
}

/// Everything may go through the tunnel, in both directions, and the default route leads into it.
fn take_all(site: &mut Joined) {
    let all = vec![Selector::ANY];
    let spec = TunnelSpec { local: all.clone(), remote: all, ..site.gateway.tunnel_spec(2) };
    site.tunnel = site.gateway.replace_tunnel(site.tunnel, &spec);
    site.gateway.route(0, 0, Hop::Tunnel(site.tunnel));
}

#[test]
fn groups_are_the_kernels_wherever_they_come_from() {
    let mut site = joined();
    take_all(&mut site);
    let hello = Packet { ttl: 1, ..Packet::new(private(2), ip(224, 0, 0, 5), 89, 64) };
    // Out of the tunnel: to the kernel, never on by the default route.
    site.peer_sends(1, &hello.octets());
    let outcome = site.gateway.run();
    outcome.expect(PUNTED, &[(Note::Opened, 1)]);
    assert_eq!(outcome.punted[0].1[14..], hello.octets());
    // Of the kernel, for the stations of a port: to these, not into the tunnel.
    for destination in [ip(224, 0, 0, 5), ip(255, 255, 255, 255)] {
        let packet = Packet { destination, source: private(1), ..hello.clone() };
        let octets = frame([1, 0, 0x5e, 0, 0, 5], mac(1, 0), None, &packet.octets());
        site.gateway.from_kernel(PRIVATE_TWIN, &octets);
        let outcome = site.gateway.run();
        assert_eq!(outcome.expect(SENT, &[FROM_KERNEL]).only(PRIVATE), octets);
    }
}

#[test]
fn frames_of_the_kernel_leave_by_the_port_of_their_twin() {
    let mut site = joined();
    let arp = frame_of([0xff; 6], mac(1, 1), None, 0x0806, &[1; 28]);
    let ike =
        frame(mac(9, 9), mac(1, 1), None, &Packet::udp((public(1), 500), (public(2), 500), b"IKE").octets());
    let ping = frame(mac(1, 2), mac(1, 0), None, &Packet::new(private(1), host(1), ICMP, 84).octets());
    for (twin, port, octets) in
        [(PUBLIC_TWIN, PUBLIC, &arp), (PUBLIC_TWIN, PUBLIC, &ike), (PRIVATE_TWIN, PRIVATE, &ping)]
    {
        site.gateway.from_kernel(twin, octets);
        let outcome = site.gateway.run();
        assert_eq!(outcome.expect(SENT, &[FROM_KERNEL]).only(port), octets);
    }
    site.gateway.from_kernel(Twin::Port(2), &arp);
    site.gateway.run().expect(&[(Verdict::PortDown, 1)], &[FROM_KERNEL]);
    for len in 0..14 {
        site.gateway.from_kernel(PUBLIC_TWIN, &arp[..len]);
        site.gateway.run().expect(&[(Verdict::EthernetRunt, 1)], &[FROM_KERNEL]);
    }
}

#[test]
fn frames_of_the_kernel_get_the_ports_tag() {
    let place = Site { private_vlan: 7, public_vlan: 8, ..Site::new(1) };
    let mut site = joined_with(place, 2, Limits::default(), |sa| sa);
    for (twin, port, tag) in [(PRIVATE_TWIN, PRIVATE, 7), (PUBLIC_TWIN, PUBLIC, 8)] {
        let arp = |tag| frame_of([0xff; 6], mac(1, port as u8), tag, 0x0806, &[1; 28]);
        site.gateway.from_kernel(twin, &arp(None));
        let outcome = site.gateway.run();
        assert_eq!(outcome.expect(SENT, &[FROM_KERNEL]).only(port), arp(Some(tag)));
    }
}

#[test]
fn the_kernels_own_packets_take_the_tunnel_too() {
    let mut site = joined();
    with_interface(&mut site);
    let ping = Packet { ttl: 1, ..Packet::new(private(1), host(2), ICMP, 84) };
    let in_frame = |tag| frame(mac(9, 9), mac(1, 1), tag, &ping.octets());
    let ways = [
        (PUBLIC_TWIN, in_frame(None)),
        (PRIVATE_TWIN, in_frame(None)),
        // A VLAN device on top of the twin is no way around.
        (PUBLIC_TWIN, in_frame(Some(5))),
        (Twin::Tunnel(site.tunnel), ping.octets()),
    ];
    for (number, (twin, octets)) in (1..).zip(ways) {
        site.gateway.from_kernel(twin, &octets);
        let outcome = site.gateway.run();
        let out = outcome.expect(SENT, &[FROM_KERNEL, (Note::Sealed, 1)]).only(PUBLIC);
        let (_, esp) = site.gateway.esp_of(2, &site.to_peer, out);
        assert_eq!(site.to_peer.open(&esp), Some((number, ping.octets())), "not forwarded: the TTL stays");
    }
}

#[test]
fn what_the_kernel_may_not_send_into_the_tunnel_is_named() {
    let mut site = joined();
    with_interface(&mut site);
    let tun = Twin::Tunnel(site.tunnel);
    let good = Packet::new(private(1), host(2), ICMP, 84);
    let mut wrong_sum = good.octets();
    wrong_sum[10] ^= 1;
    let cases = [
        (good.octets()[..83].to_vec(), Verdict::Ipv4Malformed),
        (vec![], Verdict::Ipv4Malformed),
        (wrong_sum, Verdict::Ipv4Checksum),
        (Packet { source: public(1), ..good.clone() }.octets(), Verdict::SelectorOutbound),
        (Packet::new(private(1), host(2), ICMP, 1401).octets(), Verdict::TooBig),
    ];
    for (octets, verdict) in cases {
        site.gateway.from_kernel(tun, &octets);
        site.gateway.run().expect(&[(verdict, 1)], &[FROM_KERNEL]);
    }
    site.gateway.writer.switch_outbound(site.tunnel, None);
    site.gateway.from_kernel(tun, &good.octets());
    let outcome = site.gateway.run();
    outcome.expect(&[(Verdict::NoSa, 1)], &[FROM_KERNEL]);
    assert_eq!(outcome.events, [Event::NoSa { tunnel: site.tunnel }]);
}

#[test]
fn ike_reaches_a_peer_that_stands_inside_its_own_tunnel() {
    let mut site = joined();
    take_all(&mut site);
    let ike = Packet::udp((public(1), 500), (public(2), 500), b"IKE").octets();
    let octets = frame(mac(9, 9), mac(1, 1), None, &ike);
    site.gateway.from_kernel(PUBLIC_TWIN, &octets);
    let outcome = site.gateway.run();
    assert_eq!(outcome.expect(SENT, &[FROM_KERNEL]).only(PUBLIC), octets);
    site.gateway.from_internet(&Packet::udp((public(2), 500), (public(1), 500), b"IKE").octets());
    site.gateway.run().expect(PUNTED, &[]);
}

#[test]
fn what_should_have_come_through_the_tunnel_does_not_reach_the_kernel_in_the_clear() {
    let mut site = joined();
    let spoofed = Packet::new(host(2), private(1), 6, 60).octets();
    site.gateway.from_internet(&spoofed);
    site.gateway.run().dropped(Verdict::ClearOnPublic, 1);
    // The same on the private port is a matter of that network, and others may come as they are.
    site.gateway.from_host(&spoofed);
    site.gateway.run().expect(PUNTED, &[]);
    for fine in [Packet::new(ip(8, 8, 8, 8), public(1), ICMP, 84), Packet::new(host(2), public(1), 6, 60)] {
        site.gateway.from_internet(&fine.octets());
        site.gateway.run().expect(PUNTED, &[]);
    }
}

/// The packets of a site that must never be read on the Internet: of its host and of the gateway.
fn secrets(site: &mut Joined) {
    let marked = |source, total| {
        let mut packet = Packet::new(source, host(2), 17, total);
        packet.payload.fill(0xa5);
        packet
    };
    for total in [60, 500, 1400] {
        site.gateway.from_host(&marked(host(1), total).octets());
        let own = marked(private(1), total).octets();
        site.gateway.from_kernel(PUBLIC_TWIN, &frame(mac(9, 9), mac(1, 1), None, &own));
        site.gateway.from_kernel(PUBLIC_TWIN, &frame(mac(9, 9), mac(1, 1), Some(3), &own));
        site.gateway.from_kernel(PUBLIC_TWIN, &frame(mac(9, 9), mac(1, 1), None, &own[..total - 1]));
    }
}

/// What leaves by the public port holds nothing of what was marked.
#[track_caller]
fn keeps_secrets(site: &mut Joined) -> u64 {
    secrets(site);
    let outcome = site.gateway.run();
    for frame in &outcome.sent[PUBLIC] {
        assert!(!frame.windows(8).any(|octets| octets == [0xa5; 8]), "plaintext on the public port");
    }
    assert!(outcome.sent[PRIVATE].is_empty());
    outcome.of(Verdict::Sent)
}

#[test]
fn plaintext_never_leaves_by_the_public_port() {
    let mut site = joined();
    // A default route to the Internet, as every gateway has one.
    let router = site.gateway.neighbour(PUBLIC, mac(9, 9));
    site.gateway.route(0, 0, Hop::Adjacency(router));
    let (tunnel, first) = (site.tunnel, site.outbound);
    // Before the first SA.
    site.gateway.writer.switch_outbound(tunnel, None);
    assert_eq!(keeps_secrets(&mut site), 0);
    // With one, and between two: the old one retired, the new one not there yet.
    site.gateway.writer.switch_outbound(tunnel, Some(first));
    assert_eq!(keeps_secrets(&mut site), 9);
    site.gateway.writer.switch_outbound(tunnel, None);
    site.gateway.writer.retire_outbound(first);
    assert_eq!(keeps_secrets(&mut site), 0);
    let second = sa_between(1, 7);
    site.outbound = site.gateway.seal_with(tunnel, 2, &second, Limits::default());
    assert_eq!(keeps_secrets(&mut site), 9);
    // After the state was lost, after the last number, after the last SA, after the tunnel.
    site.gateway.lose_state();
    assert_eq!(keeps_secrets(&mut site), 0);
    let used_up = Limits { last_used: 9, hard_limit: 9, ..Limits::default() };
    site.gateway.seal_with(tunnel, 2, &sa_between(1, 8), used_up);
    assert_eq!(keeps_secrets(&mut site), 0);
    site.gateway.writer.switch_outbound(tunnel, None);
    assert_eq!(keeps_secrets(&mut site), 0);
    site.gateway.writer.retire_tunnel(tunnel);
    assert_eq!(keeps_secrets(&mut site), 0);
    // Even where its route went first, what is forwarded does not follow the default route.
    site.gateway.unroute(ip(10, 2, 0, 0), 16);
    site.gateway.from_host(&between(1, 2, 60).octets());
    site.gateway.run().dropped(Verdict::ClearOnPublic, 1);
    assert!(!site.gateway.routes.contains_key(&Prefix::new(ip(10, 2, 0, 0), 16)));
}

#[test]
fn plaintext_is_forwarded_neither_to_nor_from_a_public_port() {
    let mut site = joined();
    let router = site.gateway.neighbour(PUBLIC, mac(9, 9));
    site.gateway.route(0, 0, Hop::Adjacency(router));
    site.gateway.route(ip(203, 0, 113, 0), 24, Hop::Glean(PUBLIC as u32));
    for destination in [ip(8, 8, 8, 8), ip(203, 0, 113, 5)] {
        site.gateway.from_host(&Packet { destination, ..between(1, 2, 60) }.octets());
        site.gateway.run().dropped(Verdict::ClearOnPublic, 1);
    }
    for destination in [host(1), host(2), ip(8, 8, 8, 8), ip(10, 1, 9, 9)] {
        site.gateway.from_internet(&Packet { destination, ..between(2, 1, 60) }.octets());
        site.gateway.run().dropped(Verdict::ClearOnPublic, 1);
    }
    // Decrypted, it may not go out either.
    let spec = TunnelSpec { local: vec![Selector::ANY], ..site.gateway.tunnel_spec(2) };
    site.tunnel = site.gateway.replace_tunnel(site.tunnel, &spec);
    site.peer_sends(1, &Packet { destination: ip(8, 8, 8, 8), ..between(2, 1, 60) }.octets());
    site.gateway.run().expect(&[(Verdict::ClearOnPublic, 1)], &[(Note::Opened, 1)]);
}
