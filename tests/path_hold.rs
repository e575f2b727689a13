//! The first packets to a neighbour that is not known wait for it: a few, for a second, and every one is counted (RFC 1122
//! section 2.3.2.2).

use penstock_dataplane::path::hold::{ALL, OF_ONE};
use penstock_dataplane::path::punt::Twin;
use penstock_dataplane::path::spread::Role;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::events::Event;
use penstock_tables::{Adjacency, Hop, Note, Verdict};

/// A station of the LAN that nobody knows.
const STRANGER: [u8; 4] = [10, 1, 200, 9];

fn stranger() -> u32 {
    u32::from_be_bytes(STRANGER)
}

/// The stranger answers ARP, and control tells the data plane.
fn answers(gateway: &mut Gateway) {
    let known = gateway.neighbour(PRIVATE, mac(1, 9));
    gateway.route(stranger(), 32, Hop::Adjacency(known));
    gateway.now += SECOND / 1000;
}

/// To the stranger, from another network behind the private port.
fn to_stranger(id: u16) -> Packet {
    Packet { destination: stranger(), id, ..between(1, 2, 100) }
}

#[test]
fn packets_in_the_clear_wait_and_leave_in_order() {
    let mut site = joined();
    for id in 1..=4 {
        site.gateway.from_host(&to_stranger(id).octets());
        let outcome = site.gateway.run_at_once();
        outcome.expect(&[], &[]);
        assert_eq!((outcome.received, outcome.events.len()), (0, 1), "who waits is not received yet");
        assert_eq!(outcome.events, [Event::NoNeighbour { port: 0, address: stranger() }]);
    }
    answers(&mut site.gateway);
    let outcome = site.gateway.run_at_once();
    outcome.expect(&[(Verdict::Sent, 4)], &[]);
    for (id, out) in (1..=4).zip(&outcome.sent[PRIVATE]) {
        let packet = site.gateway.packet_of(PRIVATE, mac(1, 9), out);
        assert_eq!(packet, to_stranger(id).forwarded().octets(), "one hop of the TTL is taken once");
    }
    assert!(site.gateway.worker.held.is_empty());
}

#[test]
fn who_waits_in_vain_is_dropped_after_a_second_and_no_more_than_a_few_wait() {
    let mut site = joined();
    for id in 1..=7 {
        site.gateway.from_host(&to_stranger(id).octets());
    }
    site.gateway.run_at_once().expect(&[(Verdict::NoNeighbour, 7 - OF_ONE as u64)], &[]);
    site.gateway.now += SECOND - 1;
    let outcome = site.gateway.run_at_once();
    outcome.expect(&[], &[]);
    assert_eq!(outcome.events, [Event::NoNeighbour { port: 0, address: stranger() }], "asked for again");
    site.gateway.now += SECOND / 1000;
    site.gateway.run_at_once().expect(&[(Verdict::NoNeighbour, OF_ONE as u64)], &[]);
    assert!(site.gateway.worker.held.is_empty());
    // Of many neighbours, no more than a bound altogether.
    for low in 0..=(ALL as u32 + 43) {
        let packet = Packet { destination: ip(10, 1, 100, 0) + low, ..between(1, 2, 100) };
        site.gateway.from_host(&packet.octets());
    }
    site.gateway.run_at_once().expect(&[(Verdict::NoNeighbour, 44)], &[]);
    assert_eq!(site.gateway.worker.held.len(), ALL);
    site.gateway.now += SECOND;
    site.gateway.run_at_once().expect(&[(Verdict::NoNeighbour, ALL as u64)], &[]);
}

#[test]
fn packets_of_a_tunnel_wait_before_they_are_sealed() {
    let mut site = joined();
    let next = site.gateway.unresolved(PUBLIC, public(2));
    site.gateway.writer.set_tunnel_adjacency(site.tunnel, Some(next));
    for id in 1..=3 {
        site.gateway.from_host(&Packet { id, ..between(1, 2, 200) }.octets());
    }
    let outcome = site.gateway.run_at_once();
    outcome.expect(&[], &[]);
    assert_eq!(outcome.events, [Event::NoNeighbour { port: 1, address: public(2) }]);
    assert_eq!(site.gateway.state.outbound(site.outbound).totals().0, 0);
    site.gateway.writer.set_adjacency(next, Ok(Adjacency { port: PUBLIC as u8, mac: mac(2, 1) }));
    site.gateway.now += SECOND / 1000;
    // What comes with it goes behind.
    site.gateway.from_host(&Packet { id: 4, ..between(1, 2, 200) }.octets());
    let outcome = site.gateway.run_at_once();
    outcome.expect(&[(Verdict::Sent, 4)], &[(Note::Sealed, 4)]);
    for (number, out) in (1..=4).zip(&outcome.sent[PUBLIC]) {
        let (_, esp) = site.gateway.esp_of(2, &site.to_peer, out);
        let inner = Packet { id: number as u16, ..between(1, 2, 200) };
        assert_eq!(
            site.to_peer.open(&esp),
            Some((number, inner.forwarded().octets())),
            "no number is wasted"
        );
    }
}

#[test]
fn what_was_opened_waits_too() {
    let mut site = joined();
    let inner = Packet { destination: stranger(), ..between(2, 1, 60) };
    site.peer_sends(1, &inner.octets());
    site.gateway.run_at_once().expect(&[], &[(Note::Opened, 1)]);
    answers(&mut site.gateway);
    let outcome = site.gateway.run_at_once();
    let out = outcome.expect(&[(Verdict::Sent, 1)], &[]).only(PRIVATE);
    assert_eq!(site.gateway.packet_of(PRIVATE, mac(1, 9), out), inner.forwarded().octets());
}

#[test]
fn a_route_that_changes_meanwhile_is_followed() {
    let mut site = joined();
    site.gateway.from_host(&to_stranger(1).octets());
    site.gateway.run_at_once().expect(&[], &[]);
    site.gateway.route(stranger(), 32, Hop::Discard);
    site.gateway.now += SECOND / 1000;
    site.gateway.run_at_once().expect(&[(Verdict::RouteDiscard, 1)], &[]);
    // What belongs to a tunnel by now does not leave in the clear.
    site.gateway.route(stranger(), 32, Hop::Glean(PRIVATE as u32));
    site.gateway.from_host(&to_stranger(2).octets());
    site.gateway.run_at_once().expect(&[], &[]);
    site.gateway.route(stranger(), 32, Hop::Tunnel(site.tunnel));
    site.gateway.now += SECOND / 1000;
    site.gateway.run_at_once().expect(&[(Verdict::SelectorOutbound, 1)], &[]);
}

#[test]
fn packets_of_the_gateway_itself_wait_for_their_tunnel_and_no_other() {
    let mut site = joined();
    let next = site.gateway.unresolved(PUBLIC, public(2));
    site.gateway.writer.set_tunnel_adjacency(site.tunnel, Some(next));
    let own = Packet { source: private(1), ..between(1, 2, 100) };
    site.gateway.from_kernel(Twin::Tunnel(site.tunnel), &own.octets());
    site.gateway.run_at_once().expect(&[], &[(Note::FromKernel, 1)]);
    site.gateway.writer.set_adjacency(next, Ok(Adjacency { port: PUBLIC as u8, mac: mac(2, 1) }));
    site.gateway.now += SECOND / 1000;
    let outcome = site.gateway.run_at_once();
    let out = outcome.expect(&[(Verdict::Sent, 1)], &[(Note::Sealed, 1)]).only(PUBLIC);
    let (_, esp) = site.gateway.esp_of(2, &site.to_peer, out);
    assert_eq!(site.to_peer.open(&esp), Some((1, own.octets())), "what the gateway sends starts whole");
    // The tunnel goes while a packet waits, and its slot is given to another.
    let unknown = site.gateway.unresolved(PUBLIC, public(2));
    site.gateway.writer.set_tunnel_adjacency(site.tunnel, Some(unknown));
    site.gateway.from_kernel(Twin::Tunnel(site.tunnel), &own.octets());
    site.gateway.run_at_once().expect(&[], &[(Note::FromKernel, 1)]);
    site.gateway.writer.retire_tunnel(site.tunnel);
    site.gateway.writer.reclaim(None);
    let spec = site.gateway.tunnel_spec(2);
    assert_eq!(site.gateway.writer.add_tunnel(&spec).expect("room"), site.tunnel, "the same slot");
    site.gateway.writer.set_tunnel_adjacency(site.tunnel, Some(next));
    site.gateway.now += SECOND / 1000;
    site.gateway.run_at_once().expect(&[(Verdict::NoSa, 1)], &[]);
}

#[test]
fn the_books_are_right_where_workers_share_what_one_receives() {
    let role = |receiver| Role { receiver, alone: receiver };
    let (mut gateway, mut others) = Gateway::with_crew(Site::new(1), &[role(true), role(false)], POOL);
    let tunnel = gateway.tunnel(2);
    let sa = sa_between(2, 1);
    gateway.open_with(tunnel, &sa, 64);
    for number in 1..=20 {
        let inner = Packet { destination: stranger(), ..between(2, 1, 60) };
        let esp = sa.seal(number, &inner.octets());
        gateway.from_internet(&outer(2, 1, &sa, &esp).octets());
    }
    let mut rounds = |gateway: &mut Gateway| {
        for _ in 0..8 {
            gateway.worker.run(gateway.now);
            others.iter_mut().for_each(|other| _ = other.run(gateway.now));
            for tally in [&gateway.worker.tally, &others[0].tally] {
                assert_eq!(tally.received, tally.ended(), "received = sent + punted + drops");
            }
        }
    };
    rounds(&mut gateway);
    let kept = gateway.worker.held.len();
    let dropped = gateway.worker.tally.of(Verdict::NoNeighbour);
    assert_eq!((kept, dropped), (OF_ONE, 20 - OF_ONE as u64));
    answers(&mut gateway);
    rounds(&mut gateway);
    assert_eq!((gateway.worker.tally.of(Verdict::Sent), gateway.worker.held.len()), (OF_ONE as u64, 0));
}
