//! Inner packets in, ESP out (RFC 4303 section 3.3, RFC 4106, RFC 3948): what leaves is opened by another implementation
//! byte for byte; numbers are used once and end where they must; what cannot be sealed is dropped and control told.

use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::events::Event;
use penstock_tables::{DontFragment, Note, Verdict};

fn site_with(limits: Limits, change: impl Fn(Sa) -> Sa) -> Joined {
    joined_with(Site::new(1), 2, limits, change)
}

/// The host sends a packet; the gateway sends it sealed under `number`. Returns the outer packet.
#[track_caller]
fn seals(site: &mut Joined, number: u64, inner: &Packet) -> Packet {
    site.gateway.from_host(&inner.octets());
    let outcome = site.gateway.run();
    let out = outcome.expect(&[(Verdict::Sent, 1)], &[(Note::Sealed, 1)]).only(PUBLIC);
    let (outer, esp) = site.gateway.esp_of(2, &site.to_peer, out);
    assert_eq!(site.to_peer.open(&esp), Some((number, inner.forwarded().octets())));
    assert_eq!(outer.id, number as u16);
    outer
}

#[test]
fn another_implementation_opens_what_is_sealed() {
    for bits in 0..8 {
        let mut site = site_with(Limits::default(), |sa| {
            let sa = Sa { esn: bits & 1 != 0, udp: bits & 2 != 0, ..sa };
            if bits & 4 != 0 { sa.with_aes256() } else { sa }
        });
        let mut octets = 0;
        for (number, total) in (1..).zip((20..100).chain(1350..=1400)) {
            seals(&mut site, number, &between(1, 2, total));
            octets += total as u64;
        }
        let (packets, bytes, last) = site.gateway.state.outbound(site.outbound).totals();
        assert_eq!((packets, bytes, last), (131, octets, site.gateway.now));
    }
}

#[test]
fn options_and_fragments_are_sealed_whole() {
    let mut site = joined();
    let mut number = 0;
    for options in [0, 4, 40] {
        for fragment in [0, DF, MF, MF | 185, 185] {
            number += 1;
            let inner = Packet { options: vec![1; options], fragment, ..between(1, 2, 300) };
            let outer = seals(&mut site, number, &inner);
            assert_eq!(outer.fragment, fragment & DF);
        }
    }
}

#[test]
fn the_outer_header_has_dscp_and_ecn_of_the_inner_one() {
    let mut site = joined();
    for tos in 0..=255u8 {
        let outer = seals(&mut site, u64::from(tos) + 1, &Packet { tos, ..between(1, 2, 60) });
        assert_eq!(outer.tos, tos);
    }
}

#[test]
fn dont_fragment_is_copied_set_or_cleared() {
    for (rule, copies) in
        [(DontFragment::Copy, [0, DF]), (DontFragment::Set, [DF, DF]), (DontFragment::Clear, [0, 0])]
    {
        let mut site = site_with(Limits { dont_fragment: rule, ..Limits::default() }, |sa| sa);
        for (number, (inner, want)) in (1..).zip([0, DF].into_iter().zip(copies)) {
            let outer = seals(&mut site, number, &Packet { fragment: inner, ..between(1, 2, 60) });
            assert_eq!(outer.fragment, want, "{rule:?}");
        }
    }
}

#[test]
fn numbers_cross_32_bits_with_esn_and_end_without() {
    let last_used = u64::from(u32::MAX) - 3;
    let mut site = site_with(Limits { last_used, ..Limits::default() }, |sa| sa);
    for number in last_used + 1..last_used + 10 {
        seals(&mut site, number, &between(1, 2, 60));
    }
    let mut site = site_with(Limits { last_used, ..Limits::default() }, |sa| Sa { esn: false, ..sa });
    for number in last_used + 1..=u64::from(u32::MAX) {
        site.gateway.from_host(&between(1, 2, 60).octets());
        let outcome = site.gateway.run();
        let (_, esp) = site.gateway.esp_of(2, &site.to_peer, outcome.only(PUBLIC));
        assert_eq!(site.to_peer.open(&esp).unwrap().0, number);
    }
    (0..3).for_each(|_| site.gateway.from_host(&between(1, 2, 60).octets()));
    site.gateway.run().dropped(Verdict::SequenceExhausted, 3);
}

#[test]
fn the_hard_limit_holds_inside_a_burst_and_can_be_raised() {
    let limits = Limits { last_used: 100, hard_limit: 105, soft_log2: 0, ..Limits::default() };
    let mut site = site_with(limits, |sa| sa);
    (0..50).for_each(|_| site.gateway.from_host(&between(1, 2, 60).octets()));
    let outcome = site.gateway.run();
    outcome.expect(&[(Verdict::Sent, 5), (Verdict::SequenceExhausted, 45)], &[(Note::Sealed, 5)]);
    assert_eq!(outcome.events, [Event::SoftLimit { outbound: site.outbound }]);
    site.gateway.from_host(&between(1, 2, 60).octets());
    let outcome = site.gateway.run();
    assert_eq!(outcome.dropped(Verdict::SequenceExhausted, 1).events.len(), 1);
    // Numbers that were asked for in vain are not given out later: 51 are gone.
    site.gateway.writer.raise_hard_limit(site.outbound, 1000);
    seals(&mut site, 152, &between(1, 2, 60));
}

#[test]
fn control_is_asked_for_a_rekey_in_time() {
    let limits = Limits { hard_limit: 1000, soft_log2: 9, ..Limits::default() };
    let mut site = site_with(limits, |sa| sa);
    let mut asked = vec![];
    for number in 1..=500 {
        site.gateway.from_host(&between(1, 2, 60).octets());
        let events = site.gateway.run().events;
        if !events.is_empty() {
            assert_eq!(events, [Event::SoftLimit { outbound: site.outbound }]);
            asked.push(number);
        }
    }
    assert_eq!(asked, (1000 - 512..=500).collect::<Vec<_>>());
}

#[test]
fn a_worker_with_an_sa_of_its_own_seals_with_that() {
    let mut site = joined();
    let (shared, tunnel) = (site.to_peer.clone(), site.tunnel);
    let own = Sa::new(0x7777_0001).with_aes256();
    let slot = site.gateway.install_outbound(tunnel, 2, &own, key_block(&own), Limits::default());
    seals(&mut site, 1, &between(1, 2, 60));
    // RFC 9611: worker 0 has its own SA, with numbers of its own.
    assert!(site.gateway.writer.switch_outbound_of_worker(tunnel, 0, Some(slot)));
    site.to_peer = own;
    for number in 1..=3 {
        seals(&mut site, number, &between(1, 2, 60));
    }
    // Another worker still has the shared one.
    site.gateway.writer.switch_outbound_of_worker(tunnel, 0, None);
    site.gateway.writer.switch_outbound_of_worker(tunnel, 1, Some(slot));
    site.to_peer = shared;
    seals(&mut site, 2, &between(1, 2, 60));
}

#[test]
fn without_what_it_needs_nothing_leaves_and_control_is_told() {
    let mut site = joined();
    let tunnel = site.tunnel;
    let packet = between(1, 2, 60).octets();
    let dropped = |site: &mut Joined, verdict, events: &[Event]| {
        (0..3).for_each(|_| site.gateway.from_host(&packet));
        let outcome = site.gateway.run();
        outcome.dropped(verdict, 3);
        assert_eq!(outcome.events, events);
    };
    // Between SAs: none is chosen; the one chosen is gone.
    site.gateway.writer.switch_outbound(tunnel, None);
    dropped(&mut site, Verdict::NoSa, &[Event::NoSa { tunnel }]);
    site.gateway.writer.switch_outbound(tunnel, Some(site.outbound));
    seals(&mut site, 1, &between(1, 2, 60));
    site.gateway.writer.retire_outbound(site.outbound);
    // Who was led there before may still seal with it.
    seals(&mut site, 2, &between(1, 2, 60));
    for _ in 0..3 {
        site.gateway.writer.reclaim(Some(&site.gateway.state));
        site.gateway.run();
    }
    assert_eq!(site.gateway.writer.reclaim(Some(&site.gateway.state)), 0);
    dropped(&mut site, Verdict::NoSa, &[Event::NoSa { tunnel }]);
    site.outbound = site.gateway.seal_with(tunnel, 2, &site.to_peer, Limits::default());
    seals(&mut site, 1, &between(1, 2, 60));
    // No way to the peer, then a way whose next hop is not known, then one by a port that is not there.
    site.gateway.writer.set_tunnel_adjacency(tunnel, None);
    dropped(&mut site, Verdict::NoRoute, &[]);
    let unknown = site.gateway.unresolved(PUBLIC, public(2));
    site.gateway.writer.set_tunnel_adjacency(tunnel, Some(unknown));
    dropped(&mut site, Verdict::NoNeighbour, &[Event::NoNeighbour { port: 1, address: public(2) }]);
    let nowhere = site.gateway.neighbour(7, mac(2, 1));
    site.gateway.writer.set_tunnel_adjacency(tunnel, Some(nowhere));
    dropped(&mut site, Verdict::PortDown, &[]);
    // The state is lost.
    site.gateway.lose_state();
    dropped(&mut site, Verdict::SaOrphaned, &[Event::Orphaned { tunnel }]);
    // The tunnel goes away under its route: who was led there before finds it as it was, and then nothing.
    site.gateway.writer.retire_tunnel(tunnel);
    dropped(&mut site, Verdict::SaOrphaned, &[Event::Orphaned { tunnel }]);
    site.gateway.writer.reclaim(None);
    dropped(&mut site, Verdict::NoSa, &[]);
}

#[test]
fn a_refused_packet_uses_no_number() {
    let mut site = joined();
    seals(&mut site, 1, &between(1, 2, 60));
    let foreign = Packet { source: ip(10, 7, 0, 2), ..between(1, 2, 60) };
    site.gateway.from_host(&foreign.octets());
    site.gateway.run().dropped(Verdict::SelectorOutbound, 1);
    site.gateway.from_host(&between(1, 2, 1401).octets());
    site.gateway.run().dropped(Verdict::TooBig, 1);
    seals(&mut site, 2, &between(1, 2, 60));
}

#[test]
fn a_burst_over_many_tunnels_keeps_each_ones_numbers() {
    let mut gateway = Gateway::new(Site::new(1));
    let sas: Vec<Sa> = (2..10).map(|peer| sa_between(1, peer)).collect();
    for (peer, sa) in (2..).zip(&sas) {
        let tunnel = gateway.tunnel(peer);
        gateway.seal_with(tunnel, peer, sa, Limits::default());
    }
    let peers: Vec<u8> = (0..200u32).map(|at| 2 + (at * at % 31 % 8) as u8).collect();
    for peer in &peers {
        gateway.from_host(&between(1, *peer, 60).octets());
    }
    let outcome = gateway.run();
    outcome.expect(&[(Verdict::Sent, 200)], &[(Note::Sealed, 200)]);
    let mut next = [1u64; 16];
    for (peer, frame) in peers.iter().zip(&outcome.sent[PUBLIC]) {
        let sa = &sas[usize::from(peer - 2)];
        let (_, esp) = gateway.esp_of(*peer, sa, frame);
        let inner = between(1, *peer, 60).forwarded().octets();
        assert_eq!(sa.open(&esp), Some((next[usize::from(*peer)], inner)));
        next[usize::from(*peer)] += 1;
    }
}

#[test]
fn a_switch_of_sa_loses_nothing_and_begins_at_one() {
    let mut site = joined();
    for generation in 1..20u8 {
        for number in 1..=3 {
            seals(&mut site, number, &between(1, 2, 60));
        }
        let old = site.outbound;
        site.to_peer = sa_between(1, 100 + generation);
        site.outbound = site.gateway.seal_with(site.tunnel, 2, &site.to_peer, Limits::default());
        site.gateway.writer.retire_outbound(old);
        site.gateway.writer.reclaim(Some(&site.gateway.state));
    }
}

#[test]
fn a_frame_without_room_is_dropped() {
    let mut site = joined();
    let spec = penstock_tables::TunnelSpec { inner_mtu: 9000, ..site.gateway.tunnel_spec(2) };
    site.gateway.writer.update_tunnel(site.tunnel, &spec).unwrap();
    // A buffer ends 2048 octets behind the headroom; the trailer and the ICV need 18 and up to 3 of padding.
    for (total, verdict) in [(2048 - 14 - 18, Verdict::Sent), (2048 - 14 - 17, Verdict::NoHeadroom)] {
        let total = total - (total + 2) % 4 + if verdict == Verdict::Sent { 0 } else { 4 };
        site.gateway.from_host(&between(1, 2, total).octets());
        assert_eq!(site.gateway.run().of(verdict), 1, "{total}");
    }
}

#[test]
fn what_the_port_does_not_take_is_counted() {
    let mut site = joined();
    let queue = |site: &mut Joined, limit| site.gateway.worker.ports[PUBLIC].queue.set_send_limit(limit);
    let offer = |site: &mut Joined, count: usize| {
        (0..count).for_each(|_| site.gateway.from_host(&between(1, 2, 60).octets()));
        site.gateway.run()
    };
    queue(&mut site, 0);
    offer(&mut site, 10)
        .expect(&[(Verdict::TransmitFull, 10)], &[(Note::Sealed, 10), (Note::TransmitRetried, 1)]);
    // A first try and eight more, one frame each.
    queue(&mut site, 1);
    offer(&mut site, 64).expect(
        &[(Verdict::Sent, 9), (Verdict::TransmitFull, 55)],
        &[(Note::Sealed, 64), (Note::TransmitRetried, 1)],
    );
    queue(&mut site, 8);
    offer(&mut site, 64).expect(&[(Verdict::Sent, 64)], &[(Note::Sealed, 64), (Note::TransmitRetried, 1)]);
    queue(&mut site, usize::MAX);
    offer(&mut site, 200).expect(&[(Verdict::Sent, 200)], &[(Note::Sealed, 200)]);
}
