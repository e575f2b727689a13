//! ESP in, inner packets out (RFC 4303 section 3.4): what is opened comes out byte for byte, what is wrong in any way is
//! dropped under its name, with exact counters.

use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::events::{Event, Source};
use penstock_tables::{Note, Verdict};

const OPENED: &[(Verdict, u64)] = &[(Verdict::Sent, 1)];
const ONE_OPENED: &[(Note, u64)] = &[(Note::Opened, 1)];

/// Every kind of association: key length, ESN, UDP.
fn kinds() -> impl Iterator<Item = (bool, bool, bool)> {
    (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0))
}

fn site((aes256, esn, udp): (bool, bool, bool)) -> Joined {
    joined_with(Site::new(1), 2, Limits::default(), |sa| {
        let sa = Sa { esn, udp, ..sa };
        if aes256 { sa.with_aes256() } else { sa }
    })
}

fn without_esn() -> Joined {
    site((false, false, false))
}

/// One inner packet came out to the host, one hop older and otherwise the same.
#[track_caller]
fn delivers(site: &mut Joined, inner: &Packet) {
    let outcome = site.gateway.run();
    let out = outcome.expect(OPENED, ONE_OPENED).only(PRIVATE);
    assert_eq!(site.gateway.packet_of(PRIVATE, mac(1, 2), out), inner.forwarded().octets());
}

#[test]
fn good_packets_come_out_as_they_were() {
    for kind in kinds() {
        let mut site = site(kind);
        let mut octets = 0;
        for (number, total) in (1..).zip((20..100).chain(1300..1500)) {
            let inner = Packet { tos: 0xb8, id: number as u16, fragment: DF, ..between(2, 1, total) };
            site.peer_sends(number, &inner.octets());
            delivers(&mut site, &inner);
            octets += total as u64;
        }
        let totals = site.gateway.state.inbound(site.inbound).totals();
        assert_eq!(totals, (280, octets, site.gateway.now), "packets and inner octets of {kind:?}");
        assert_eq!(site.gateway.state.inbound(site.inbound).refusals(), (0, 0));
    }
}

#[test]
fn inner_options_and_fragments_pass() {
    let mut site = joined();
    let options = Packet { options: vec![1; 40], ..between(2, 1, 120) };
    site.peer_sends(1, &options.octets());
    delivers(&mut site, &options);
    for (number, fragment) in [(2, MF), (3, MF | 100), (4, 0x1fff)] {
        let piece = Packet { fragment, ..between(2, 1, 120) };
        site.peer_sends(number, &piece.octets());
        delivers(&mut site, &piece);
    }
}

#[test]
fn options_of_the_outer_header_do_not_matter() {
    let mut site = joined();
    let inner = between(2, 1, 100);
    let esp = site.from_peer.seal(1, &inner.octets());
    let with_options = Packet { options: vec![1; 24], ..outer(2, 1, &site.from_peer, &esp) };
    site.gateway.from_internet(&with_options.octets());
    delivers(&mut site, &inner);
}

#[test]
fn octets_behind_the_packets_are_cut() {
    let mut site = joined();
    let inner = between(2, 1, 30);
    // Behind the inner packet: padding for confidentiality of the flow (RFC 4303 2.7).
    let padded = [inner.octets(), vec![0; 60]].concat();
    site.peer_sends(1, &padded);
    delivers(&mut site, &inner);
    // Behind the outer packet: what a NIC leaves of a short frame.
    let esp = site.from_peer.seal(2, &inner.octets());
    let frame = [outer(2, 1, &site.from_peer, &esp).octets(), vec![0xee; 9]].concat();
    site.gateway.from_internet(&frame);
    delivers(&mut site, &inner);
}

#[test]
fn truncated_esp_is_named_at_every_length() {
    for udp in [false, true] {
        let mut site = site((false, true, udp));
        let inner = between(2, 1, 60).octets();
        let esp = site.from_peer.seal(1, &inner);
        for len in 0..esp.len() {
            site.peer_sends_esp(&esp[..len]);
            let outcome = site.gateway.run();
            let short = len < 8 + 8 + 2 + 16 || len % 4 != 0;
            outcome.dropped(if short { Verdict::EspTruncated } else { Verdict::AuthFailed }, 1);
        }
        site.peer_sends_esp(&esp);
        delivers(&mut site, &between(2, 1, 60));
    }
}

#[test]
fn truncated_frames_are_named_at_every_length() {
    for udp in [false, true] {
        let mut site = site((false, true, udp));
        let esp = site.from_peer.seal(1, &between(2, 1, 60).octets());
        let whole = frame(mac(1, 1), mac(2, 1), None, &outer(2, 1, &site.from_peer, &esp).octets());
        for len in 0..whole.len() {
            site.gateway.inject(PUBLIC, &whole[..len]);
            let verdict = if len < 14 { Verdict::EthernetRunt } else { Verdict::Ipv4Malformed };
            site.gateway.run().dropped(verdict, 1);
        }
    }
}

#[test]
fn every_changed_octet_is_found() {
    let mut site = without_esn();
    let inner = between(2, 1, 60);
    let esp = site.from_peer.seal(0x0101_0101, &inner.octets());
    for at in 0..esp.len() {
        for bit in [0x01, 0x80] {
            let mut changed = esp.clone();
            changed[at] ^= bit;
            site.peer_sends_esp(&changed);
            let verdict = if at < 4 { Verdict::UnknownSpi } else { Verdict::AuthFailed };
            site.gateway.run().dropped(verdict, 1);
        }
    }
    let failed = (esp.len() as u64 - 4) * 2;
    assert_eq!(site.gateway.state.inbound(site.inbound).refusals(), (0, failed));
    // None of them moved the window.
    site.peer_sends(1, &inner.octets());
    delivers(&mut site, &inner);
    site.peer_sends_esp(&esp);
    delivers(&mut site, &inner);
}

#[test]
fn a_number_passes_once() {
    for kind in [(false, true, false), (false, false, false)] {
        let mut site = site(kind);
        let inner = between(2, 1, 80).octets();
        // Three copies in one burst: each tag is right, one is first.
        (0..3).for_each(|_| site.peer_sends(5, &inner));
        let outcome = site.gateway.run();
        outcome.expect(&[(Verdict::Sent, 1), (Verdict::Replayed, 2)], ONE_OPENED);
        site.peer_sends(5, &inner);
        site.gateway.run().dropped(Verdict::Replayed, 1);
        for late in [1, 2, 3, 4] {
            site.peer_sends(late, &inner);
            site.gateway.run().expect(OPENED, ONE_OPENED);
        }
        assert_eq!(site.gateway.state.inbound(site.inbound).refusals(), (3, 0));
    }
}

#[test]
fn the_window_ends_where_it_says() {
    let mut site = without_esn();
    let inner = between(2, 1, 80).octets();
    site.peer_sends(1000, &inner);
    site.gateway.run().expect(OPENED, ONE_OPENED);
    for (number, verdict) in [(936, Verdict::TooOld), (937, Verdict::Sent), (0, Verdict::TooOld)] {
        site.peer_sends(number, &inner);
        let outcome = site.gateway.run();
        assert_eq!(outcome.of(verdict), 1, "{number}");
    }
    assert_eq!(site.gateway.state.inbound(site.inbound).refusals(), (2, 0));
}

#[test]
fn extended_numbers_cross_the_boundary() {
    let mut site = joined();
    let inner = between(2, 1, 80);
    let boundary = 1u64 << 32;
    let in_order = (boundary - 20..boundary - 10).chain([boundary + 9]);
    let late = (boundary - 10..boundary + 9).rev();
    for number in in_order.chain(late) {
        site.peer_sends(number, &inner.octets());
        delivers(&mut site, &inner);
    }
    for number in boundary - 20..boundary + 10 {
        site.peer_sends(number, &inner.octets());
        site.gateway.run().dropped(Verdict::Replayed, 1);
    }
    // Left of the window, the low half means the next 2^32; the tag says which.
    site.peer_sends(boundary - 60, &inner.octets());
    site.gateway.run().dropped(Verdict::TooOld, 1);
    // And the next boundary, as far as the window can follow.
    for number in [boundary + (1 << 31), 2 * boundary - 1, 2 * boundary, 2 * boundary + 1] {
        site.peer_sends(number, &inner.octets());
        delivers(&mut site, &inner);
    }
}

#[test]
fn old_packets_with_extended_numbers_are_told_from_forged_ones_at_a_bounded_cost() {
    let mut site = joined();
    let inner = between(2, 1, 80).octets();
    for number in 1..=200 {
        site.peer_sends(number, &inner);
        site.gateway.run().expect(OPENED, ONE_OPENED);
    }
    site.peer_sends(7, &inner);
    site.gateway.run().dropped(Verdict::TooOld, 1);
    let mut forged = site.from_peer.seal(8, &inner);
    *forged.last_mut().unwrap() ^= 1;
    site.peer_sends_esp(&forged);
    site.gateway.run().dropped(Verdict::AuthFailed, 1);
    // More than are looked at in one burst.
    (10..20).for_each(|number| site.peer_sends(number, &inner));
    site.gateway.run().expect(&[(Verdict::TooOld, 4), (Verdict::AuthFailed, 6)], &[]);
    // What lies ahead is taken, however far.
    site.peer_sends((1 << 32) + 100, &inner);
    site.gateway.run().expect(OPENED, ONE_OPENED);
    site.peer_sends((1 << 32) + 20, &inner);
    site.gateway.run().dropped(Verdict::TooOld, 1);
}

#[test]
fn an_authentic_packet_from_elsewhere_is_told_and_no_other() {
    let mut site = joined_with(Site::new(1), 2, Limits::default(), |sa| Sa { udp: true, ..sa });
    let (inner, at) = (between(2, 1, 80).octets(), |port| Source { address: public(2), port });
    let told = |outcome: Outcome| -> Vec<Source> {
        let events = outcome.events.into_iter();
        let moved = events.filter_map(|event| match event {
            Event::PeerMoved { spi, source } if spi == sa_between(2, 1).spi => Some(source),
            _ => None,
        });
        moved.collect()
    };
    let from = |site: &mut Joined, esp: &[u8], port: u16| {
        let packet = Packet::udp((public(2), port), (public(1), 4500), esp);
        site.gateway.from_internet(&packet.octets());
        site.gateway.worker.state.events(0).allow_repeat();
        told(site.gateway.run())
    };
    // Nobody asks.
    let esp = site.from_peer.seal(1, &inner);
    assert_eq!(from(&mut site, &esp, 61_000), []);
    site.gateway.writer.expect_from(site.inbound, Some(at(4500)));
    let seal = |number| sa_between(2, 1).seal(number, &inner);
    assert_eq!(from(&mut site, &seal(2), 4500), []);
    assert_eq!(from(&mut site, &seal(3), 61_000), [at(61_000)]);
    // As often as it comes, until control has followed.
    assert_eq!(from(&mut site, &seal(4), 61_000), [at(61_000)]);
    site.gateway.writer.expect_from(site.inbound, Some(at(61_000)));
    assert_eq!(from(&mut site, &seal(6), 61_000), []);
    // Replayed, held back on the way, forged, of another SA, not allowed inside: by nobody who is the peer now.
    assert_eq!(from(&mut site, &seal(6), 61_002), []);
    assert_eq!(from(&mut site, &seal(5), 61_002), []);
    let mut forged = seal(7);
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(from(&mut site, &forged, 61_002), []);
    assert_eq!(from(&mut site, &sa_between(3, 1).seal(8, &inner), 61_002), []);
    let foreign = sa_between(2, 1).seal(9, &between(7, 1, 80).octets());
    assert_eq!(from(&mut site, &foreign, 61_002), []);
    // A burst in which forged ones stand on both sides of the one that is right.
    for (number, port, wrong) in [(11, 61_002, true), (10, 61_003, false), (12, 61_002, true)] {
        let mut esp = seal(number);
        *esp.last_mut().unwrap() ^= u8::from(wrong);
        let packet = Packet::udp((public(2), port), (public(1), 4500), &esp);
        site.gateway.from_internet(&packet.octets());
    }
    assert_eq!(told(site.gateway.run()), [at(61_003)]);
    // Plain ESP has no port to be followed (RFC 3948 section 2.1).
    let plain = Packet { payload: seal(13), ..Packet::new(public(9), public(1), 50, 20) };
    site.gateway.from_internet(&plain.octets());
    assert_eq!(told(site.gateway.run()), []);
}

#[test]
fn numbers_without_esn_end() {
    let mut site = without_esn();
    let inner = between(2, 1, 80);
    site.peer_sends(u64::from(u32::MAX), &inner.octets());
    delivers(&mut site, &inner);
    site.peer_sends(1 << 32, &inner.octets());
    site.gateway.run().dropped(Verdict::TooOld, 1);
    site.peer_sends(1 << 32 | 5, &inner.octets());
    site.gateway.run().dropped(Verdict::TooOld, 1);
}

#[test]
fn what_the_selectors_do_not_cover_is_dropped() {
    let mut site = joined();
    let wrong = [
        Packet { source: ip(10, 3, 0, 2), ..between(2, 1, 60) },
        Packet { source: host(1), ..between(2, 1, 60) },
        Packet { destination: host(3), ..between(2, 1, 60) },
        Packet { destination: ip(8, 8, 8, 8), ..between(2, 1, 60) },
        Packet { destination: public(1), ..between(2, 1, 60) },
    ];
    for (number, packet) in (1..).zip(&wrong) {
        site.peer_sends(number, &packet.octets());
        site.gateway.run().expect(&[(Verdict::SelectorInbound, 1)], ONE_OPENED);
        // It was authentic, so its number is used up.
        site.peer_sends(number, &packet.octets());
        site.gateway.run().dropped(Verdict::Replayed, 1);
    }
}

#[test]
fn padding_must_be_as_the_rfc_says() {
    let mut site = joined();
    let inner = between(2, 1, 62);
    let text = |padding: &[u8], len: u8, next: u8| [&inner.octets()[..], padding, &[len, next]].concat();
    let long: Vec<u8> = (1..=252).collect();
    site.peer_sends_esp(&site.from_peer.seal_text(1, &text(&long, 252, 4)));
    delivers(&mut site, &inner);
    let wrong = [
        text(&[], 1, 4),
        text(&[1, 2, 3, 5], 4, 4),
        text(&[0, 0, 0, 0], 4, 4),
        text(&[0, 1, 2, 3], 4, 4),
        text(&[], 255, 4),
        text(&[], 63, 4),
        text(&[], 0, 41),
        text(&[], 0, 50),
        text(&[], 0, 0),
        vec![3, 4, 4, 4],
    ];
    for (number, text) in (2..).zip(&wrong) {
        site.peer_sends_esp(&site.from_peer.seal_text(number, text));
        site.gateway.run().expect(&[(Verdict::EspTrailer, 1)], ONE_OPENED);
    }
    for (number, dummy) in [(20, text(&[1, 2, 3, 4], 4, 59)), (21, vec![0, 59, 0, 59])] {
        site.peer_sends_esp(&site.from_peer.seal_text(number, &dummy));
        site.gateway.run().expect(&[(Verdict::EspDummy, 1)], ONE_OPENED);
    }
}

#[test]
fn what_is_inside_must_be_a_whole_packet() {
    let mut site = joined();
    let good = between(2, 1, 62).octets();
    let with = |at: usize, octet: u8| {
        let mut wrong = good.clone();
        wrong[at] = octet;
        wrong
    };
    let wrong = [
        vec![],
        good[..19].to_vec(),
        good[..61].to_vec(),
        with(0, 0x65),
        with(0, 0x44),
        with(8, 63),
        with(3, 63),
    ];
    for (number, packet) in (1..).zip(&wrong) {
        site.peer_sends(number, packet);
        site.gateway.run().expect(&[(Verdict::InnerMalformed, 1)], ONE_OPENED);
    }
}

#[test]
fn ecn_is_combined_as_rfc_6040_says() {
    let mut site = joined();
    // Outer down, inner across: not-ECT, ECT(1), ECT(0), CE; 9 is a drop.
    let table = [[0, 1, 2, 3], [0, 1, 1, 3], [0, 1, 2, 3], [9, 3, 3, 3]];
    let mut number = 0;
    for (outer_ecn, row) in (0..).zip(table) {
        for (inner_ecn, want) in (0..).zip(row) {
            number += 1;
            let inner = Packet { tos: 0xb8 | inner_ecn, ..between(2, 1, 60) };
            let esp = site.from_peer.seal(number, &inner.octets());
            // The outer DSCP is nobody's business.
            let packet = Packet { tos: 0x50 | outer_ecn, ..outer(2, 1, &site.from_peer, &esp) };
            site.gateway.from_internet(&packet.octets());
            match want {
                9 => {
                    site.gateway.run().expect(&[(Verdict::EcnInvalid, 1)], ONE_OPENED);
                }
                ecn => delivers(&mut site, &Packet { tos: 0xb8 | ecn, ..inner }),
            }
        }
    }
}

#[test]
fn udp_encapsulation_is_read_as_rfc_3948_says() {
    let mut site = site((false, true, true));
    let inner = between(2, 1, 60);
    let esp = |site: &Joined, number| site.from_peer.seal(number, &inner.octets());
    // A NAT in between changes the source port and may fill in a checksum.
    let mut translated = Packet::udp((ip(203, 0, 113, 9), 61000), (public(1), 4500), &esp(&site, 1));
    translated.payload[6] = 0x77;
    site.gateway.from_internet(&translated.octets());
    delivers(&mut site, &inner);

    let to_4500 = |payload: &[u8]| Packet::udp((public(2), 4500), (public(1), 4500), payload);
    let ike = to_4500(&[&[0; 4][..], b"an IKE message"].concat());
    let other_port = Packet::udp((public(2), 4500), (public(1), 500), &esp(&site, 2));
    let piece = Packet { fragment: MF, ..to_4500(&esp(&site, 3)) };
    let headless = Packet { payload: vec![0x11, 0x94, 0x11, 0x94], ..piece.clone() };
    for kernels in [ike, other_port, piece, headless] {
        site.gateway.from_internet(&kernels.octets());
        let outcome = site.gateway.run();
        outcome.expect(&[(Verdict::Punted, 1)], &[]);
        assert_eq!(outcome.punted[0].1[14..], kernels.octets());
    }
    site.gateway.from_internet(&to_4500(&[0xff]).octets());
    site.gateway.run().dropped(Verdict::Keepalive, 1);
    for short in [&[][..], &[0xfe], &[0xff, 0xff], &[0, 0, 0]] {
        site.gateway.from_internet(&to_4500(short).octets());
        site.gateway.run().dropped(Verdict::EspTruncated, 1);
    }
}

#[test]
fn an_sa_whose_state_was_lost_opens_nothing() {
    let mut site = joined();
    let inner = between(2, 1, 60).octets();
    site.peer_sends(1, &inner);
    site.gateway.run().expect(OPENED, ONE_OPENED);
    site.gateway.lose_state();
    // The window is gone: this would be a replay.
    site.peer_sends(1, &inner);
    site.peer_sends(2, &inner);
    let outcome = site.gateway.run();
    outcome.dropped(Verdict::SaOrphaned, 2);
    assert_eq!(outcome.events, [Event::Orphaned { tunnel: site.tunnel }]);
    // A new SA in its place works, and begins with an empty window.
    let fresh = sa_between(2, 9);
    site.inbound = site.gateway.open_with(site.tunnel, &fresh, 64);
    site.from_peer = fresh;
    site.peer_sends(1, &inner);
    site.gateway.run().expect(OPENED, ONE_OPENED);
}

#[test]
fn old_and_new_sa_overlap_and_the_old_one_ends() {
    let mut site = joined();
    let inner = between(2, 1, 60).octets();
    let (old, new) = (site.from_peer.clone(), sa_between(2, 9));
    site.gateway.open_with(site.tunnel, &new, 64);
    for number in 1..5 {
        for sa in [&old, &new] {
            let packet = outer(2, 1, sa, &sa.seal(number, &inner));
            site.gateway.from_internet(&packet.octets());
        }
    }
    site.gateway.run().expect(&[(Verdict::Sent, 8)], &[(Note::Opened, 8)]);
    site.gateway.writer.retire_inbound(site.inbound);
    for (sa, verdict) in [(&old, Verdict::UnknownSpi), (&new, Verdict::Sent)] {
        let packet = outer(2, 1, sa, &sa.seal(9, &inner));
        site.gateway.from_internet(&packet.octets());
        assert_eq!(site.gateway.run().of(verdict), 1);
    }
    let reclaimed = (0..3).map(|_| {
        site.gateway.run();
        site.gateway.writer.reclaim(Some(&site.gateway.state))
    });
    assert_eq!(reclaimed.last(), Some(0));
    assert_eq!(site.gateway.writer.inbound_key(site.inbound).raw_key(), &[0u8; 0], "wiped");
}

#[test]
fn a_burst_of_everything_is_counted_exactly() {
    let mut site = without_esn();
    let inner = between(2, 1, 100).octets();
    let mut sent = 0;
    for number in 1..=120 {
        let mut esp = site.from_peer.seal(number, &inner);
        match number % 6 {
            0 => esp[20] ^= 1,
            1 => esp[1] ^= 1,
            2 => esp.truncate(33),
            3 => esp = site.from_peer.seal(number - 2, &inner),
            _ => sent += 1,
        }
        site.peer_sends_esp(&esp);
    }
    let outcome = site.gateway.run();
    // Each 3 is the number of the 1 before it, whose SPI was wrong: it passes, once.
    let verdicts = [
        (Verdict::Sent, sent + 20),
        (Verdict::AuthFailed, 20),
        (Verdict::UnknownSpi, 20),
        (Verdict::EspTruncated, 20),
    ];
    outcome.expect(&verdicts, &[(Note::Opened, sent + 20)]);
    assert_eq!(outcome.received, 120);
}
