//! Every way in which a packet can end, and every note, reached at least once with exact counters. The two `match`es are
//! exhaustive: a new verdict or note does not compile until it has its case here.

use penstock_dataplane::path::punt::Twin;
use penstock_dataplane::path::spread::Role;
use penstock_dataplane::port::{BURST, Frame};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::losses::TUNNEL_DROPS;
use penstock_tables::{Hop, KeyBlock, Note, TunnelDrops, Verdict};
use zeroize::Zeroize;

#[test]
fn every_verdict_is_reached_and_no_other() {
    for verdict in Verdict::ALL {
        let (outcome, lost) = outcome_with(*verdict);
        let others = Verdict::ALL.iter().filter(|it| *it != verdict && outcome.of(**it) > 0);
        let others: Vec<_> = others.map(|it| it.name()).collect();
        assert!(outcome.of(*verdict) > 0, "{} was not reached, but {others:?}", verdict.name());
        let more: u64 = Verdict::ALL.iter().map(|it| outcome.of(*it)).sum();
        assert_eq!(outcome.received, more, "{}", verdict.name());
        let allowed: &[&str] = match verdict {
            Verdict::TransmitFull => &["sent"],
            Verdict::PuntFull => &["punted"],
            Verdict::Replayed | Verdict::TooOld => &["sent"],
            _ => &[],
        };
        assert_eq!(others, allowed, "besides {}", verdict.name());
        // What belongs to the tunnel is counted there too, and nothing else is.
        let of_tunnel = match verdict {
            // Here by a route in the clear.
            Verdict::NoRoute | Verdict::NoNeighbour | Verdict::PortDown => 0,
            _ if TUNNEL_DROPS.contains(verdict) => outcome.of(*verdict),
            _ => 0,
        };
        assert_eq!((lost.of(*verdict), lost.total()), (of_tunnel, of_tunnel), "{}", verdict.name());
    }
}

#[test]
fn every_note_is_reached() {
    for note in Note::ALL {
        let outcome = outcome_noting(*note);
        assert!(outcome.noted(*note) > 0, "{}", note.name());
    }
}

/// A run that ends at least one packet in `verdict`, and what it counted at its tunnel.
fn outcome_with(verdict: Verdict) -> (Outcome, TunnelDrops) {
    let mut site = joined();
    let good = between(1, 2, 200);
    let back = between(2, 1, 100).octets();
    let (to_kernel, to_internet) = (Packet::new(host(1), private(1), ICMP, 84), ip(8, 8, 8, 8));
    let gateway = &mut site.gateway;
    match verdict {
        Verdict::Sent => gateway.from_host(&good.octets()),
        Verdict::Punted => gateway.from_host(&to_kernel.octets()),
        Verdict::EthernetRunt => gateway.inject(PRIVATE, &[2; 13]),
        Verdict::VlanOther => {
            gateway.inject(PRIVATE, &frame(mac(1, 0), mac(1, 2), Some(7), &good.octets()));
        }
        Verdict::MacOther => gateway.inject(PRIVATE, &frame(mac(9, 0), mac(1, 2), None, &good.octets())),
        Verdict::Ipv4Malformed => gateway.from_host(&good.octets()[..199]),
        Verdict::Ipv4Checksum => {
            let mut wrong = good.octets();
            wrong[10] ^= 1;
            gateway.from_host(&wrong);
        }
        Verdict::TtlExceeded => {
            // A later fragment is never answered.
            gateway.from_host(&Packet { ttl: 1, fragment: 5, ..good }.octets());
        }
        Verdict::NoRoute => gateway.from_host(&Packet { destination: to_internet, ..good }.octets()),
        Verdict::RouteDiscard => {
            gateway.route(to_internet, 32, Hop::Discard);
            gateway.from_host(&Packet { destination: to_internet, ..good }.octets());
        }
        Verdict::NoNeighbour => {
            gateway.from_host(&Packet { destination: ip(10, 1, 0, 77), ..good }.octets());
        }
        Verdict::PortDown => {
            gateway.route(to_internet, 32, Hop::Glean(5));
            gateway.from_host(&Packet { destination: to_internet, ..good }.octets());
        }
        Verdict::ClearOnPublic => gateway.from_internet(&between(2, 1, 100).octets()),
        Verdict::NoSa => {
            gateway.writer.switch_outbound(site.tunnel, None);
            gateway.from_host(&good.octets());
        }
        Verdict::SaOrphaned => {
            gateway.lose_state();
            gateway.from_host(&good.octets());
        }
        Verdict::SequenceExhausted => {
            let limits = Limits { last_used: 10, hard_limit: 10, ..Limits::default() };
            gateway.seal_with(site.tunnel, 2, &sa_between(1, 3), limits);
            gateway.from_host(&good.octets());
        }
        Verdict::SelectorOutbound => {
            gateway.from_host(&Packet { source: ip(10, 7, 0, 2), ..good }.octets());
        }
        Verdict::TooBig => gateway.from_host(&between(1, 2, 1401).octets()),
        Verdict::TunnelLoop => {
            gateway.route(ip(10, 1, 5, 0), 24, Hop::Tunnel(site.tunnel));
            site.peer_sends(1, &Packet { destination: ip(10, 1, 5, 5), ..between(2, 1, 100) }.octets());
        }
        Verdict::SealFailed => {
            let mut empty: KeyBlock = key_block(&site.to_peer);
            empty.zeroize();
            let slot = gateway.install_outbound(site.tunnel, 2, &sa_between(1, 3), empty, Limits::default());
            gateway.writer.switch_outbound(site.tunnel, Some(slot));
            gateway.from_host(&good.octets());
        }
        Verdict::EspTruncated => site.peer_sends_esp(&[1; 33]),
        Verdict::EspFragment => {
            let esp = site.from_peer.seal(1, &back);
            let whole = outer(2, 1, &site.from_peer, &esp);
            gateway.from_internet(&Packet { fragment: MF, ..whole }.octets());
        }
        Verdict::UnknownSpi => site.peer_sends_esp(&sa_between(3, 1).seal(1, &back)),
        Verdict::Replayed => (0..2).for_each(|_| site.peer_sends(1, &back)),
        Verdict::TooOld => {
            site = joined_with(Site::new(1), 2, Limits::default(), |sa| Sa { esn: false, ..sa });
            site.peer_sends(65, &back);
            site.gateway.run().expect(&[(Verdict::Sent, 1)], &[(Note::Opened, 1)]);
            site.peer_sends(1, &back);
            site.peer_sends(66, &back);
        }
        Verdict::AuthFailed => {
            let mut esp = site.from_peer.seal(1, &back);
            *esp.last_mut().unwrap() ^= 1;
            site.peer_sends_esp(&esp);
        }
        Verdict::EspTrailer => {
            let esp = site.from_peer.seal_text(1, &[&back[..], &[9, 9, 2, 4]].concat());
            site.peer_sends_esp(&esp);
        }
        Verdict::EspDummy => {
            let esp = site.from_peer.seal_text(1, &[&[0xaa; 50][..], &[0, 59]].concat());
            site.peer_sends_esp(&esp);
        }
        Verdict::InnerMalformed => site.peer_sends(1, &back[..99]),
        Verdict::EcnInvalid => {
            let esp = site.from_peer.seal(1, &back);
            let whole = outer(2, 1, &site.from_peer, &esp);
            gateway.from_internet(&Packet { tos: 3, ..whole }.octets());
        }
        Verdict::SelectorInbound => site.peer_sends(1, &between(7, 1, 100).octets()),
        Verdict::Keepalive => {
            gateway.from_internet(&Packet::udp((public(2), 4500), (public(1), 4500), &[0xff]).octets());
        }
        Verdict::PuntFull => {
            let mut gateway = Gateway::new(Site { punt_ring: 4, ..Site::new(1) });
            (0..5).for_each(|_| gateway.from_host(&to_kernel.octets()));
            return (gateway.run(), TunnelDrops::default());
        }
        Verdict::PuntNoTwin => return (no_twin(), TunnelDrops::default()),
        Verdict::NoHeadroom => {
            let mut whole = gateway.frame(&[]);
            // The frame begins where its buffer begins: what is taken off in front is less than the outer headers.
            let octets = frame(mac(1, 0), mac(1, 2), None, &good.octets());
            whole.prepend(128).unwrap();
            whole.append(octets.len() - 128).unwrap();
            whole.data_mut().copy_from_slice(&octets);
            gateway.worker.ports[PRIVATE].queue.inject_frame(whole);
        }
        Verdict::TransmitFull => {
            gateway.worker.ports[PUBLIC].queue.set_send_limit(0);
            gateway.from_host(&good.octets());
            gateway.from_host(&Packet::new(host(1), host(1), 17, 40).octets());
        }
    }
    let outcome = site.gateway.run();
    let lost = site.gateway.writer.tunnel_drops(site.tunnel, &site.gateway.state);
    (outcome, lost)
}

fn no_twin() -> Outcome {
    let mut gateway = Gateway::new(Site::new(1));
    gateway.worker.twins.set_present(Twin::Port(0), false);
    gateway.from_host(&Packet::new(host(1), private(1), ICMP, 84).octets());
    gateway.run()
}

/// Two workers, one of which seals what the other received; the run is that of the one that counts the note.
fn crew_noting(note: Note) -> Outcome {
    let role = |receiver| Role { receiver, alone: receiver };
    let (mut gateway, mut others) = Gateway::with_crew(Site::new(1), &[role(true), role(false)], POOL);
    let tunnel = gateway.tunnel(2);
    gateway.seal_with(tunnel, 2, &sa_between(1, 2), Limits::default());
    (0..BURST).for_each(|_| gateway.from_host(&between(1, 2, 100).octets()));
    let before = gateway.worker.tally.clone();
    gateway.worker.run(gateway.now);
    if note == Note::Helped {
        std::mem::swap(&mut gateway.worker, &mut others[0]);
    } else if note == Note::Returned {
        others[0].run(gateway.now);
    }
    gateway.worker.run(gateway.now);
    gateway.collect(&before)
}

/// A run with this note.
fn outcome_noting(note: Note) -> Outcome {
    let mut site = joined();
    let good = between(1, 2, 100);
    match note {
        Note::Sealed => site.gateway.from_host(&good.octets()),
        Note::Opened => site.peer_sends(1, &between(2, 1, 100).octets()),
        Note::FromKernel => site.gateway.from_kernel(Twin::Port(0), &[2; 60]),
        Note::AnsweredTooBig => {
            site.gateway.from_host(&Packet { fragment: DF, ..between(1, 2, 1401) }.octets());
        }
        Note::AnsweredTtl => site.gateway.from_host(&Packet { ttl: 1, ..good }.octets()),
        Note::Handed | Note::Returned | Note::Helped => return crew_noting(note),
        Note::TransmitRetried => {
            site.gateway.worker.ports[PUBLIC].queue.set_send_limit(1);
            (0..3).for_each(|_| site.gateway.from_host(&good.octets()));
        }
    }
    site.gateway.run()
}
