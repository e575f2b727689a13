//! Where packets go (RFC 1812): LAN to LAN, through a hub from spoke to spoke, with VLANs, out of time, too big; and the
//! ICMP errors that their senders are told, octet by octet (RFC 792, RFC 1191).

use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::adjacency::PortSpec;
use penstock_tables::events::Event;
use penstock_tables::{Hop, Note, Verdict};

const SENT: &[(Verdict, u64)] = &[(Verdict::Sent, 1)];

/// The ICMP error that a router at `from` sends for a packet, as RFC 792 and RFC 1191 lay it out.
fn icmp_error(from: u32, cause: &Packet, kind: u8, code: u8, mtu: u16) -> Packet {
    let mut quoted = cause.octets();
    quoted.truncate(576 - 28);
    let mut message = vec![kind, code, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let sum = checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    let header = Packet::new(from, cause.source, ICMP, 20);
    Packet { tos: 0xc0, id: 0, payload: message, ..header }
}

#[track_caller]
fn host_is_told(site: &mut Joined, cause: &Packet, note: Note, kind: u8, code: u8, mtu: u16) {
    site.gateway.from_host(&cause.octets());
    let outcome = site.gateway.run();
    let out = outcome.expect(SENT, &[(note, 1)]).only(PRIVATE);
    let told = Packet::parse(site.gateway.packet_of(PRIVATE, mac(1, 2), out));
    assert_eq!(told, icmp_error(private(1), cause, kind, code, mtu));
}

#[test]
fn time_exceeded_goes_back_to_the_sender() {
    let mut site = joined();
    for ttl in [0, 1] {
        for total in [20, 28, 61, 547, 548, 549, 1400] {
            let cause = Packet { ttl, ..between(1, 2, total) };
            host_is_told(&mut site, &cause, Note::AnsweredTtl, 11, 0, 0);
        }
        let options = Packet { ttl, options: vec![1; 40], ..between(1, 2, 100) };
        host_is_told(&mut site, &options, Note::AnsweredTtl, 11, 0, 0);
    }
    // One hop is enough for one hop.
    site.gateway.from_host(&Packet { ttl: 2, ..between(1, 2, 60) }.octets());
    site.gateway.run().expect(SENT, &[(Note::Sealed, 1)]);
}

#[test]
fn fragmentation_needed_tells_the_tunnels_mtu() {
    let mut site = joined();
    for total in [1401, 1499, 1500, 1900] {
        let cause = Packet { fragment: DF, ..between(1, 2, total) };
        host_is_told(&mut site, &cause, Note::AnsweredTooBig, 3, 4, 1400);
        // Without don't-fragment, nobody is told.
        site.gateway.from_host(&between(1, 2, total).octets());
        site.gateway.run().dropped(Verdict::TooBig, 1);
    }
    site.gateway.from_host(&Packet { fragment: DF, ..between(1, 2, 1400) }.octets());
    site.gateway.run().expect(SENT, &[(Note::Sealed, 1)]);
    // And of a port, where no tunnel is on the way.
    let other = site.gateway.neighbour(PRIVATE, mac(1, 3));
    site.gateway.route(ip(172, 16, 0, 0), 12, Hop::Adjacency(other));
    let cause = Packet { destination: ip(172, 16, 5, 5), fragment: DF, ..between(1, 2, 1501) };
    host_is_told(&mut site, &cause, Note::AnsweredTooBig, 3, 4, 1500);
}

#[test]
fn no_error_is_sent_where_none_is_due() {
    let mut site = joined();
    let dead = Packet { ttl: 1, ..between(1, 2, 100) };
    let error = Packet { protocol: ICMP, payload: vec![3, 4, 0, 0, 0, 0, 0, 0], ..dead.clone() };
    let not_first = Packet { fragment: 100, ..dead.clone() };
    let from_group = Packet { source: ip(224, 0, 0, 5), ..dead.clone() };
    let from_nobody = Packet { source: 0, ..dead.clone() };
    let from_loopback = Packet { source: ip(127, 0, 0, 1), ..dead.clone() };
    for packet in [error, not_first, from_group, from_nobody, from_loopback] {
        site.gateway.from_host(&packet.octets());
        site.gateway.run().dropped(Verdict::TtlExceeded, 1);
    }
    let piece = Packet { fragment: DF | 5, ..between(1, 2, 1450) };
    site.gateway.from_host(&piece.octets());
    site.gateway.run().dropped(Verdict::TooBig, 1);
    // An echo request is a question, the start of a fragmented packet is good enough to quote.
    let echo = Packet { protocol: ICMP, payload: vec![8, 0, 0, 0, 0, 1, 0, 1], ..dead.clone() };
    host_is_told(&mut site, &echo, Note::AnsweredTtl, 11, 0, 0);
    host_is_told(&mut site, &Packet { fragment: MF, ..dead }, Note::AnsweredTtl, 11, 0, 0);
}

#[test]
fn errors_are_sent_at_a_bounded_rate() {
    let mut site = joined_with(Site { answers: 10, ..Site::new(1) }, 2, Limits::default(), |sa| sa);
    let cause = Packet { ttl: 1, ..between(1, 2, 100) };
    let offer = |site: &mut Joined| {
        (0..25).for_each(|_| site.gateway.from_host(&cause.octets()));
        site.gateway.run()
    };
    offer(&mut site).expect(&[(Verdict::Sent, 10), (Verdict::TtlExceeded, 15)], &[(Note::AnsweredTtl, 10)]);
    site.gateway.now += 350_000_000;
    offer(&mut site).expect(&[(Verdict::Sent, 3), (Verdict::TtlExceeded, 22)], &[(Note::AnsweredTtl, 3)]);
    // What is left of a token is not lost: 50 ms were.
    site.gateway.now += 250_000_000;
    offer(&mut site).expect(&[(Verdict::Sent, 3), (Verdict::TtlExceeded, 22)], &[(Note::AnsweredTtl, 3)]);
}

#[test]
fn errors_for_what_came_out_of_the_tunnel_go_back_through_it() {
    let mut site = joined();
    let dead = Packet { ttl: 1, ..between(2, 1, 700) };
    site.peer_sends(1, &dead.octets());
    let outcome = site.gateway.run();
    outcome.expect(SENT, &[(Note::Opened, 1), (Note::AnsweredTtl, 1), (Note::Sealed, 1)]);
    let (_, esp) = site.gateway.esp_of(2, &site.to_peer, outcome.only(PUBLIC));
    let (_, told) = site.to_peer.open(&esp).unwrap();
    assert_eq!(Packet::parse(&told), icmp_error(private(1), &dead, 11, 0, 0));
}

#[test]
fn of_several_addresses_of_a_port_the_one_that_the_tunnel_takes_speaks() {
    let mut site = joined();
    let spec = PortSpec { address: ip(172, 20, 0, 1), vlan: 0, mtu: MTU, public: false };
    site.gateway.writer.port(PRIVATE).set(spec);
    site.gateway.writer.port(PRIVATE).set_others([ip(10, 1, 77, 1), private(1)].into_iter());
    let dead = Packet { ttl: 1, ..between(2, 1, 700) };
    site.peer_sends(1, &dead.octets());
    let outcome = site.gateway.run();
    outcome.expect(SENT, &[(Note::Opened, 1), (Note::AnsweredTtl, 1), (Note::Sealed, 1)]);
    let (_, esp) = site.gateway.esp_of(2, &site.to_peer, outcome.only(PUBLIC));
    let (_, told) = site.to_peer.open(&esp).unwrap();
    assert_eq!(Packet::parse(&told), icmp_error(private(1), &dead, 11, 0, 0));
    // In the clear, the one on the sender's network.
    host_is_told(&mut site, &Packet { ttl: 1, ..between(1, 2, 100) }, Note::AnsweredTtl, 11, 0, 0);
}

#[test]
fn lan_to_lan_takes_one_hop() {
    let mut site = joined();
    let other = site.gateway.neighbour(PRIVATE, mac(1, 3));
    site.gateway.route(ip(172, 16, 0, 0), 12, Hop::Adjacency(other));
    for ttl in 2..=255 {
        let packet = Packet { ttl, tos: ttl, id: u16::from(ttl) << 8, ..between(1, 2, 100) };
        let packet = Packet { destination: ip(172, 31, 255, 255), ..packet };
        site.gateway.from_host(&packet.octets());
        let outcome = site.gateway.run();
        let out = outcome.expect(SENT, &[]).only(PRIVATE);
        assert_eq!(site.gateway.packet_of(PRIVATE, mac(1, 3), out), packet.forwarded().octets());
    }
}

#[test]
fn an_unknown_station_of_a_connected_network_is_asked_for() {
    let mut site = joined();
    let address = ip(10, 1, 200, 9);
    site.peer_sends(1, &Packet { destination: address, ..between(2, 1, 60) }.octets());
    let outcome = site.gateway.run();
    outcome.expect(&[(Verdict::NoNeighbour, 1)], &[(Note::Opened, 1)]);
    assert_eq!(outcome.events, [Event::NoNeighbour { port: 0, address }]);
    let known = site.gateway.neighbour(PRIVATE, mac(1, 9));
    site.gateway.route(address, 32, Hop::Adjacency(known));
    site.peer_sends(2, &Packet { destination: address, ..between(2, 1, 60) }.octets());
    site.gateway.run().expect(SENT, &[(Note::Opened, 1)]);
}

#[test]
fn vlans_are_taken_off_and_put_on() {
    let tagged = Site { private_vlan: 100, public_vlan: 4094, ..Site::new(1) };
    let mut site = joined_with(tagged, 2, Limits::default(), |sa| sa);
    let inner = between(1, 2, 100);
    site.gateway.from_host(&inner.octets());
    let outcome = site.gateway.run();
    let out = outcome.expect(SENT, &[(Note::Sealed, 1)]).only(PUBLIC);
    let (_, esp) = site.gateway.esp_of(2, &site.to_peer, out);
    assert_eq!(site.to_peer.open(&esp), Some((1, inner.forwarded().octets())));
    let back = between(2, 1, 100);
    site.peer_sends(1, &back.octets());
    let outcome = site.gateway.run();
    let out = outcome.expect(SENT, &[(Note::Opened, 1)]).only(PRIVATE);
    assert_eq!(site.gateway.packet_of(PRIVATE, mac(1, 2), out), back.forwarded().octets());
    // Priority and drop eligibility are not part of the VLAN.
    let urgent = frame(mac(1, 0), mac(1, 2), Some(0xf000 | 100), &inner.octets());
    site.gateway.inject(PRIVATE, &urgent);
    site.gateway.run().expect(SENT, &[(Note::Sealed, 1)]);
    // What goes to the kernel has no tag.
    site.gateway.from_host(&Packet { destination: private(1), ..inner }.octets());
    let outcome = site.gateway.run();
    assert_eq!(outcome.punted[0].1[12..14], [0x08, 0x00]);
}

#[test]
fn other_vlans_are_dropped() {
    let inner = between(1, 2, 100).octets();
    for (port_vlan, tag, verdict) in [
        (100, Some(101), Verdict::VlanOther),
        (100, None, Verdict::VlanOther),
        // A priority tag names no VLAN: such a frame is an untagged one.
        (100, Some(0), Verdict::VlanOther),
        (100, Some(0xe000), Verdict::VlanOther),
        (0, Some(100), Verdict::VlanOther),
        (0, Some(0), Verdict::Sent),
        (0, Some(0xe000), Verdict::Sent),
    ] {
        let place = Site { private_vlan: port_vlan, ..Site::new(1) };
        let mut site = joined_with(place, 2, Limits::default(), |sa| sa);
        site.gateway.inject(PRIVATE, &frame(mac(1, 0), mac(1, 2), tag, &inner));
        let outcome = site.gateway.run();
        assert_eq!(outcome.of(verdict), 1, "port {port_vlan}, tag {tag:?}");
    }
    // A tag cut off.
    let mut site = joined();
    let whole = frame(mac(1, 0), mac(1, 2), Some(0), &inner);
    for len in 14..18 {
        site.gateway.inject(PRIVATE, &whole[..len]);
        site.gateway.run().dropped(Verdict::EthernetRunt, 1);
    }
}

/// A hub at site 1 with spokes 2 and 3: the associations to and from each.
fn hub() -> (Gateway, [Sa; 4]) {
    let mut hub = Gateway::new(Site::new(1));
    let sas = [sa_between(2, 1), sa_between(1, 2), sa_between(3, 1), sa_between(1, 3)];
    for (peer, sas) in [2, 3].into_iter().zip(sas.chunks(2)) {
        let mut spec = hub.tunnel_spec(peer);
        // Towards a spoke, the other spokes stand behind the hub.
        spec.local.push(penstock_tables::Selector::prefix(ip(10, 0, 0, 0), 8));
        let tunnel = hub.tunnel_with(peer, &spec);
        hub.open_with(tunnel, &sas[0], 64);
        hub.seal_with(tunnel, peer, &sas[1], Limits::default());
    }
    (hub, sas)
}

#[test]
fn a_hub_takes_packets_from_spoke_to_spoke() {
    let (mut hub, [from2, _, _, to3]) = hub();
    let inner = between(2, 3, 300);
    hub.from_internet(&outer(2, 1, &from2, &from2.seal(1, &inner.octets())).octets());
    let outcome = hub.run();
    let out = outcome.expect(SENT, &[(Note::Opened, 1), (Note::Sealed, 1)]).only(PUBLIC);
    let (_, esp) = hub.esp_of(3, &to3, out);
    assert_eq!(to3.open(&esp), Some((1, inner.forwarded().octets())));
}

#[test]
fn congestion_met_on_the_first_leg_is_told_on_the_second() {
    let (mut hub, [from2, _, _, to3]) = hub();
    let inner = Packet { tos: 2, ..between(2, 3, 300) };
    let first = outer(2, 1, &from2, &from2.seal(1, &inner.octets()));
    hub.from_internet(&Packet { tos: 3, ..first }.octets());
    let outcome = hub.run();
    let (second, esp) = hub.esp_of(3, &to3, outcome.only(PUBLIC));
    let (_, opened) = to3.open(&esp).unwrap();
    assert_eq!(Packet::parse(&opened), Packet { tos: 3, ..inner.forwarded() });
    assert_eq!(second.tos, 3, "the outer header copies the inner one (RFC 6040 4.1)");
}

#[test]
fn a_hub_tells_a_spoke_what_does_not_reach_the_other() {
    let (mut hub, [from2, to2, ..]) = hub();
    for (number, cause, kind, code, mtu) in [
        (1, Packet { ttl: 1, ..between(2, 3, 300) }, 11, 0, 0),
        (2, Packet { fragment: DF, ..between(2, 3, 1401) }, 3, 4, 1400),
    ] {
        hub.from_internet(&outer(2, 1, &from2, &from2.seal(number, &cause.octets())).octets());
        let outcome = hub.run();
        let (_, esp) = hub.esp_of(2, &to2, outcome.only(PUBLIC));
        let (_, told) = to2.open(&esp).unwrap();
        assert_eq!(Packet::parse(&told), icmp_error(private(1), &cause, kind, code, mtu));
    }
}

#[test]
fn a_packet_does_not_turn_round_in_its_tunnel() {
    let mut site = joined();
    site.gateway.route(ip(10, 1, 5, 0), 24, Hop::Tunnel(site.tunnel));
    let inner = Packet { destination: ip(10, 1, 5, 5), ..between(2, 1, 100) };
    site.peer_sends(1, &inner.octets());
    site.gateway.run().expect(&[(Verdict::TunnelLoop, 1)], &[(Note::Opened, 1)]);
}

#[test]
fn garbage_is_counted_and_forgotten() {
    let mut site = joined();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut octet = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    let mut received = 0;
    for len in 0..2000 {
        for port in [PRIVATE, PUBLIC] {
            let mut frame: Vec<u8> = (0..len).map(|_| octet()).collect();
            // Half of it bears the port's address and says that it is IPv4.
            if len % 2 == 0 && len > 14 {
                frame[..6].copy_from_slice(&mac(1, port as u8));
                frame[12..14].copy_from_slice(&[8, 0]);
            }
            site.gateway.inject(port, &frame);
        }
        let outcome = site.gateway.run();
        assert_eq!(outcome.of(Verdict::Sent), 0);
        received += outcome.received;
    }
    assert_eq!(received, 4000);
    site.gateway.from_host(&between(1, 2, 60).octets());
    site.gateway.run().expect(SENT, &[(Note::Sealed, 1)]);
}
