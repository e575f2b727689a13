//! What holds for every packet: random ones go from gateway to gateway byte for byte; whatever happens to a frame on the
//! wire, nothing panics, no plaintext comes out that was not sealed by the peer, and all is counted.
//!
//! `Gateway::run` asserts after every loop that `received = sent + punted + drops` and after every run that no frame is lost.

use proptest::prelude::*;

use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::{Note, Verdict};

/// Two sites whose gateways know each other.
struct Pair {
    near: Gateway,
    far: Gateway,
}

fn pair(change: impl Fn(Sa) -> Sa, first: u64) -> Pair {
    let limits = Limits { last_used: first - 1, ..Limits::default() };
    let [near, far] = [(1, 2), (2, 1)].map(|(here, there)| {
        let mut site = joined_with(Site::new(here), there, limits, &change);
        // Copies are told from replays by a window that holds them all.
        site.gateway.writer.retire_inbound(site.inbound);
        (0..3).for_each(|_| {
            site.gateway.run();
            site.gateway.writer.reclaim(Some(&site.gateway.state));
        });
        site.gateway.open_with(site.tunnel, &site.from_peer, 1024);
        site.gateway
    });
    Pair { near, far }
}

fn any_sa() -> impl Strategy<Value = (bool, bool, bool, u64)> {
    let first = prop_oneof![Just(1), 1u64..1 << 31, (1u64 << 32) - 40..1 << 32];
    (any::<bool>(), any::<bool>(), any::<bool>(), first).prop_map(|(aes256, esn, udp, first)| {
        // Without ESN there is nothing behind 32 bits.
        (aes256, esn, udp, if esn { first } else { first.min(1 << 31) })
    })
}

fn pair_of((aes256, esn, udp, first): (bool, bool, bool, u64)) -> Pair {
    let change = |sa: Sa| {
        let sa = Sa { esn, udp, ..sa };
        if aes256 { sa.with_aes256() } else { sa }
    };
    let mut pair = pair(change, first);
    // From one packet the receiver learns where the sender is: those of one burst are extended by what was seen before it.
    pair.near.from_host(&between(1, 2, 60).octets());
    let wire = pair.near.run();
    pair.far.inject(PUBLIC, wire.only(PUBLIC));
    pair.far.run().expect(&[(Verdict::Sent, 1)], &[(Note::Opened, 1)]);
    pair
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let fields = (any::<u8>(), any::<u16>(), 0u16..0x8000, 3u8..=255, any::<u8>());
    let addresses = (any::<u16>(), 0usize..=10);
    (fields, addresses, prop::collection::vec(any::<u8>(), 0..1340)).prop_map(
        |((tos, id, fragment, ttl, protocol), (source, options), payload)| Packet {
            source: ip(10, 1, 0, 0) | u32::from(source),
            destination: host(2),
            tos,
            id,
            fragment,
            ttl,
            protocol,
            options: vec![1; options * 4],
            payload,
        },
    )
}

/// One change of a frame on the wire.
#[derive(Clone, Debug)]
enum Change {
    Flip(usize, u8),
    Cut(usize),
    Grow(Vec<u8>),
    Twice,
    Swap(usize, usize),
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any::<usize>(), 1u8..).prop_map(|(at, bits)| Change::Flip(at, bits)),
        1 => any::<usize>().prop_map(Change::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Change::Grow),
        1 => Just(Change::Twice),
        1 => (any::<usize>(), any::<usize>()).prop_map(|(one, other)| Change::Swap(one, other)),
    ]
}

/// The frame after the change, once or twice. The outer header's checksum is mended, so that the change is looked at by
/// those who must find it.
fn changed(frame: &[u8], change: &Change, mend: bool) -> Vec<Vec<u8>> {
    let mut octets = frame.to_vec();
    let len = octets.len();
    match change {
        Change::Flip(at, bits) => octets[at % len] ^= bits,
        Change::Cut(at) => octets.truncate(at % len),
        Change::Grow(more) => octets.extend(more),
        Change::Swap(one, other) => octets.swap(one % len, other % len),
        Change::Twice => return vec![octets.clone(), octets],
    }
    if mend && octets.len() >= 34 {
        octets[24..26].fill(0);
        let sum = checksum(&octets[14..34]);
        octets[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    vec![octets]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_go_from_site_to_site_as_they_are(
        sa in any_sa(),
        packets in prop::collection::vec(any_packet(), 1..100),
    ) {
        let mut pair = pair_of(sa);
        packets.iter().for_each(|packet| pair.near.from_host(&packet.octets()));
        let count = packets.len() as u64;
        let wire = pair.near.run();
        wire.expect(&[(Verdict::Sent, count)], &[(Note::Sealed, count)]);
        wire.sent[PUBLIC].iter().for_each(|frame| pair.far.inject(PUBLIC, frame));
        let outcome = pair.far.run();
        outcome.expect(&[(Verdict::Sent, count)], &[(Note::Opened, count)]);
        for (packet, frame) in packets.iter().zip(&outcome.sent[PRIVATE]) {
            let twice = packet.forwarded().forwarded().octets();
            prop_assert_eq!(pair.far.packet_of(PRIVATE, mac(2, 2), frame), &twice[..]);
        }
    }

    #[test]
    fn changed_frames_bring_out_nothing_that_was_not_sealed(
        sa in any_sa(),
        packets in prop::collection::vec((any_packet(), prop::option::of(any_change()), any::<bool>()), 1..60),
    ) {
        let mut pair = pair_of(sa);
        packets.iter().for_each(|(packet, ..)| pair.near.from_host(&packet.octets()));
        let wire = pair.near.run();
        let mut offered = 0;
        let mut whole = 0;
        for (frame, (_, change, mend)) in wire.sent[PUBLIC].iter().zip(&packets) {
            let frames = match change {
                None => { whole += 1; vec![frame.clone()] }
                Some(change) => changed(frame, change, *mend),
            };
            offered += frames.len() as u64;
            frames.iter().for_each(|frame| pair.far.inject(PUBLIC, frame));
        }
        let outcome = pair.far.run();
        prop_assert_eq!(outcome.received, offered);
        prop_assert!(outcome.of(Verdict::Sent) >= whole, "a frame that was not changed was lost");
        // What comes out by the private port is one of the packets, at most once each; ECN may have been combined.
        let mut sealed: Vec<Vec<u8>> = packets.iter().map(|(packet, ..)| flat(&packet.forwarded().forwarded().octets())).collect();
        for frame in &outcome.sent[PRIVATE] {
            let found = sealed.iter().position(|packet| *packet == flat(&frame[14..]));
            prop_assert!(found.is_some(), "nobody sent {:02x?}", frame);
            sealed.swap_remove(found.unwrap());
        }
        // By the public port nothing leaves; what the kernel gets came in the clear: it is no decrypted packet.
        prop_assert!(outcome.sent[PUBLIC].is_empty());
        for (_, frame) in &outcome.punted {
            prop_assert!(!sealed.iter().any(|packet| frame.len() > 34 && frame[14..].starts_with(&packet[..20])));
        }
    }

    #[test]
    fn any_octets_at_any_port_are_counted(
        frames in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..200)), 1..60),
    ) {
        let mut gateway = joined().gateway;
        for (public, octets) in &frames {
            gateway.inject(usize::from(*public), octets);
        }
        let outcome = gateway.run();
        prop_assert_eq!(outcome.received, frames.len() as u64);
        prop_assert!(outcome.sent[PUBLIC].is_empty());
    }
}

/// A packet without ECN and checksum, which the outer header may have changed.
fn flat(packet: &[u8]) -> Vec<u8> {
    let mut flat = packet.to_vec();
    flat[1] &= !3;
    flat[10..12].fill(0);
    flat
}
