//! The exchanges between two endpoints in virtual time: establishment in every variety, rekeys, deletes, failures.

mod common;
use common::*;
use penstock_ike::*;

fn established(change: impl Fn(usize, &mut Connection)) -> World {
    let mut w = World::new(1);
    for n in [A, B] {
        let mut c = site(n);
        change(n, &mut c);
        w.configure(n, c);
    }
    assert!(w.initiate(A));
    w.run(seconds(2));
    assert!(w.up() && w.agree(), "{:?} {:?}", w.nodes[A].events, w.nodes[B].events);
    w
}

#[test]
fn psk_establishes_with_every_key_exchange_and_cipher() {
    let ikes = [
        "aes128gcm16-prfsha256-x25519",
        "aes256gcm16-prfsha384-ecp384",
        "aes128-sha256-ecp256",
        "aes256-sha512-prfsha512-modp2048",
        "aes256-sha384-prfsha256-x25519",
    ];
    for i in ikes {
        let w = established(|_, c| c.ike = ike(i));
        assert_eq!((w.lost, w.ike(A), w.ike(B)), (0, 1, 1));
        assert!(w.sent > 10);
    }
    for e in ["aes128gcm16-esn", "aes256gcm16-noesn", "chacha20poly1305-esn", "aes256gcm16-x25519"] {
        let w = established(|_, c| child(c, |c| c.esp = esp(e)));
        let sa = w.nodes[A].plane.inbound.values().next().unwrap();
        assert_eq!(sa.esp.esn, !e.ends_with("-noesn"));
        assert_eq!(w.lost, 0);
    }
}

#[test]
fn named_suites_establish_and_rekey() {
    for name in ["default", "azure", "aws", "cnsa2"] {
        let suite = penstock_ike::crypto::Suite::named(name).unwrap();
        let mut w = established(|_, c| {
            c.ike = suite.ike.clone();
            child(c, |c| c.esp = suite.esp.clone());
        });
        w.on(A, |e, now, p, out| e.rekey_ike(now, "site", p, out));
        w.run(seconds(2));
        let spi = w.spis(B)[0];
        w.on(B, |e, now, p, out| e.rekey_child(now, spi, p, out));
        w.run(seconds(5));
        assert!(w.up() && w.agree(), "{name}");
        assert_eq!((w.lost, w.ike(A), w.ike(B), w.children(A), w.children(B)), (0, 1, 1, 1, 1), "{name}");
        assert!(w.nodes[B].events.iter().any(|e| e.kind == EventKind::IkeRekeyed));
    }
}

#[test]
fn rekeys_from_either_side_lose_nothing() {
    for by in [A, B] {
        for pfs in ["aes256gcm16", "aes256gcm16-ecp256-x25519"] {
            let mut w = established(|_, c| child(c, |c| c.esp = esp(pfs)));
            for _ in 0..3 {
                let before = w.spis(by)[0];
                w.on(by, |e, now, p, out| e.rekey_child(now, before, p, out));
                w.run(seconds(4));
                assert_ne!(w.spis(by), [before]);
                w.on(by, |e, now, p, out| e.rekey_ike(now, "site", p, out));
                w.run(seconds(4));
            }
            assert!(w.up() && w.agree());
            assert_eq!((w.lost, w.ike(A), w.ike(B), w.children(A), w.children(B)), (0, 1, 1, 1, 1));
        }
    }
}

#[test]
fn simultaneous_rekeys_end_with_one_sa() {
    for seed in 0..20 {
        let mut w = World::new(seed);
        [A, B].iter().for_each(|&n| w.configure(n, site(n)));
        w.initiate(A);
        w.run(seconds(2));
        for n in [A, B] {
            let spi = w.spis(n)[0];
            w.on(n, |e, now, p, out| e.rekey_child(now, spi, p, out));
        }
        w.run(seconds(5));
        assert!(w.agree(), "{seed}: {:?} {:?}", w.pairs(A), w.pairs(B));
        assert_eq!((w.children(A), w.children(B), w.lost), (1, 1, 0), "child, seed {seed}");
        [A, B].iter().for_each(|&n| w.on(n, |e, now, p, out| e.rekey_ike(now, "site", p, out)));
        w.run(seconds(5));
        assert_eq!(
            (w.ike(A), w.ike(B), w.children(A), w.children(B), w.lost),
            (1, 1, 1, 1, 0),
            "IKE, seed {seed}"
        );
        assert!(w.agree());
        w.on(A, |e, now, p, out| e.rekey_ike(now, "site", p, out));
        let spi = w.spis(B)[0];
        w.on(B, |e, now, p, out| e.rekey_child(now, spi, p, out));
        w.run(seconds(8));
        assert_eq!(
            (w.ike(A), w.ike(B), w.children(A), w.children(B), w.lost),
            (1, 1, 1, 1, 0),
            "mixed, seed {seed}"
        );
    }
}

#[test]
fn simultaneous_initiation_ends_with_one_ike_sa() {
    for seed in 0..20 {
        let mut w = World::new(seed);
        [A, B].iter().for_each(|&n| w.configure(n, site(n)));
        assert!(w.initiate(A) && w.initiate(B));
        w.run(seconds(8));
        assert!(w.up() && w.agree(), "{seed}");
        assert_eq!((w.ike(A), w.ike(B), w.children(A), w.children(B), w.lost), (1, 1, 1, 1, 0), "{seed}");
    }
}

#[test]
fn deletes_leave_nothing_behind() {
    for by in [A, B] {
        let mut w = established(|_, _| {});
        w.on(by, |e, now, p, out| e.delete(now, "site", p, out));
        w.run(seconds(10));
        for n in [A, B] {
            assert_eq!(w.nodes[n].endpoint.counts(), (0, 0, 0));
            assert!(w.nodes[n].plane.inbound.is_empty() && w.nodes[n].plane.reserved.is_empty());
            assert_eq!(w.nodes[n].endpoint.next_timeout(), None);
        }
        assert_eq!(w.lost, 0);
        assert_eq!(w.why(by).0, "deleted-by-operator");
        assert_eq!(w.why(1 - by).0, "deleted-by-peer");
    }
    let mut w = established(|_, _| {});
    let spi = w.spis(A)[0];
    w.on(A, |e, now, p, out| e.delete_child(now, spi, p, out));
    w.run(seconds(10));
    assert_eq!((w.children(A), w.children(B), w.ike(A), w.ike(B)), (0, 0, 1, 1));
    assert!(w.nodes[A].plane.inbound.is_empty() && w.nodes[B].plane.inbound.is_empty());
}

#[test]
fn both_delete_the_same_child_at_once() {
    let mut w = established(|_, _| {});
    for n in [A, B] {
        let spi = w.spis(n)[0];
        w.on(n, |e, now, p, out| e.delete_child(now, spi, p, out));
    }
    w.run(seconds(10));
    assert_eq!((w.children(A), w.children(B), w.ike(A), w.ike(B)), (0, 0, 1, 1));
    [A, B].iter().for_each(|&n| assert!(w.nodes[n].plane.inbound.is_empty()));
}

#[test]
fn a_dead_peer_is_noticed_and_reconnected() {
    let mut w = established(|n, c| child(c, |c| c.start = if n == A { Start::Now } else { Start::Wait }));
    // B dies without a word and comes back empty.
    w.nodes[B].endpoint = World::new(77).nodes.remove(B).endpoint;
    w.nodes[B].plane = Plane::default();
    let mut c = site(B);
    c.dpd = None;
    w.configure(B, c);
    w.run(seconds(150));
    assert!(w.reasons(A).contains(&Reason::PeerUnresponsive));
    assert!(w.up() && w.agree());
    assert_eq!((w.ike(A), w.ike(B)), (1, 1));
}

#[test]
fn a_restarted_initiator_replaces_its_old_self_at_once() {
    let mut w = established(|n, c| child(c, |c| c.start = if n == A { Start::Now } else { Start::Wait }));
    w.run(seconds(70));
    w.nodes[A].endpoint = World::new(78).nodes.remove(A).endpoint;
    w.nodes[A].plane = Plane::default();
    let mut c = site(A);
    child(&mut c, |c| c.start = Start::Now);
    w.configure(A, c);
    w.run(seconds(5));
    assert!(w.reasons(B).contains(&Reason::InitialContact));
    assert_eq!((w.ike(A), w.ike(B), w.children(B)), (1, 1, 1));
    assert!(w.agree());
}

#[test]
fn lifetimes_rekey_by_themselves() {
    let mut w = established(|_, c| {
        c.lifetime = Lifetime::of(seconds(300));
        child(c, |c| c.lifetime = Lifetime::of(seconds(100)));
    });
    w.run(seconds(2000));
    let count = |n: usize, k| w.nodes[n].events.iter().filter(|e| e.kind == k).count();
    assert!(count(A, EventKind::ChildRekeyed) >= 20, "{}", count(A, EventKind::ChildRekeyed));
    assert!(count(A, EventKind::IkeRekeyed) >= 6);
    assert_eq!((w.lost, w.ike(A), w.ike(B), w.children(A), w.children(B)), (0, 1, 1, 1, 1));
    assert!(!w.reasons(A).contains(&Reason::LifetimeExpired));
}

#[test]
fn bytes_and_packets_rekey_too() {
    let mut w = established(|_, c| {
        child(c, |c| c.lifetime = Lifetime { soft_packets: Some(200), ..Lifetime::of(seconds(3600)) });
    });
    w.run(seconds(30));
    assert!(w.nodes[A].events.iter().any(|e| e.kind == EventKind::ChildRekeyed));
    assert_eq!((w.lost, w.children(A)), (0, 1));
}

#[test]
fn nat_is_found_and_both_float_to_4500() {
    let mut w = World::new(3);
    w.nat[A] = Some("198.51.100.7:40000".parse().unwrap());
    let mut b = site(B);
    b.remote = Remote::Network(net("0.0.0.0/0"));
    w.configure(A, site(A));
    w.configure(B, b);
    w.initiate(A);
    w.run(seconds(2));
    assert!(w.up() && w.agree());
    let sa = w.nodes[B].plane.inbound.values().next().unwrap();
    assert_eq!(sa.outer.1.to_string(), "198.51.100.7");
    assert_eq!(sa.encapsulation, Some(Encapsulation { local_port: 4500, remote_port: 40001, follow: true }));
    assert!(w.nodes[A].events.iter().any(|e| e.kind == EventKind::NatFound));
    // The NAT forgets its mapping: the peer follows the next authentic request.
    w.nat[A] = Some("198.51.100.9:50000".parse().unwrap());
    let spi = w.spis(A)[0];
    w.on(A, |e, now, p, out| e.rekey_child(now, spi, p, out));
    w.run(seconds(5));
    assert!(w.nodes[B].events.iter().any(|e| e.kind == EventKind::PeerMoved));
    assert!(w.agree());
    let before = w.datagrams;
    w.run(seconds(100));
    assert!(w.datagrams > before + 3, "keepalives");
}

#[test]
fn a_rebinding_is_followed_at_the_first_authentic_esp_packet() {
    let mut w = World::new(3);
    w.nat[A] = Some("198.51.100.7:40000".parse().unwrap());
    let mut b = site(B);
    b.remote = Remote::Network(net("0.0.0.0/0"));
    w.configure(A, site(A));
    w.configure(B, b);
    w.initiate(A);
    w.run(seconds(2));
    assert!(w.up() && w.agree());
    let moved =
        |w: &World, n: usize| w.nodes[n].events.iter().filter(|e| e.kind == EventKind::PeerMoved).count();
    let now_at: std::net::SocketAddr = "198.51.100.9:50001".parse().unwrap();
    w.nat[A] = Some("198.51.100.9:50000".parse().unwrap());
    let (ours, theirs) = (w.spis(B)[0], w.spis(A)[0]);
    assert!(w.on(B, |e, now, p, out| e.peer_moved(now, ours, now_at, p, out)));
    assert_eq!(moved(&w, B), 1);
    // Told again before the data plane has followed: nothing moves.
    assert!(w.on(B, |e, now, p, out| e.peer_moved(now, ours, now_at, p, out)));
    assert_eq!(moved(&w, B), 1);
    // IKE goes there at once: what B begins arrives, and no message of A was needed.
    let spi = w.spis(B)[0];
    w.on(B, |e, now, p, out| e.rekey_child(now, spi, p, out));
    w.run(seconds(1));
    assert!(w.nodes[B].events.iter().any(|e| e.kind == EventKind::ChildRekeyed));
    let newest =
        w.nodes[B].plane.inbound.values().map(|sa| (sa.outer.1, sa.encapsulation)).collect::<Vec<_>>();
    let udp = Some(Encapsulation { local_port: 4500, remote_port: 50001, follow: true });
    assert!(newest.contains(&(now_at.ip(), udp)), "{newest:?}");
    // Who is behind a NAT himself follows nobody (RFC 7296 section 2.23); of an SA that nobody negotiated nothing is known.
    let elsewhere = "203.0.113.1:4500".parse().unwrap();
    w.on(A, |e, now, p, out| e.peer_moved(now, theirs, elsewhere, p, out));
    assert_eq!(moved(&w, A), 0);
    assert!(!w.on(B, |e, now, p, out| e.peer_moved(now, 0x9999_9999, elsewhere, p, out)));
    w.run(seconds(5));
    assert!(w.agree());
}

#[test]
fn without_a_nat_nobody_is_followed_by_his_esp() {
    for forced in [false, true] {
        let mut w = established(|_, c| c.force_encapsulation = forced);
        for n in [A, B] {
            let spi = w.spis(n)[0];
            let elsewhere = "203.0.113.1:4500".parse().unwrap();
            w.on(n, |e, now, p, out| e.peer_moved(now, spi, elsewhere, p, out));
            assert!(!w.nodes[n].events.iter().any(|e| e.kind == EventKind::PeerMoved));
        }
        w.run(seconds(2));
        assert!(w.agree());
    }
}

#[test]
fn encapsulation_can_be_forced() {
    for by in [A, B] {
        let w = established(|n, c| c.force_encapsulation = n == by);
        for n in [A, B] {
            let sa = w.nodes[n].plane.inbound.values().next().unwrap();
            // The other end takes it for a NAT before the one that forces it.
            let follow = n != by;
            let udp = Encapsulation { local_port: 4500, remote_port: 4500, follow };
            assert_eq!(sa.encapsulation, Some(udp));
        }
    }
}

#[test]
fn large_messages_are_fragmented() {
    let w = established(|_, c| {
        c.ike = ike("aes256gcm16-prfsha384-ecp384-ke1_mlkem1024");
        c.fragment_bytes = Some(576);
    });
    assert!(w.largest <= 576 + 4, "{}", w.largest);
    let w = established(|_, c| c.ike = ike("aes128-sha256-ecp256-ke1_mlkem768"));
    assert!(w.largest <= 1232, "{}", w.largest);
}

#[test]
fn several_children_come_up_and_cookies_do_not_hurt() {
    let mut w = World::with(5, Settings { cookie_threshold: 0, ..settings() });
    for n in [A, B] {
        let mut c = site(n);
        for (i, name) in ["second", "third"].into_iter().enumerate() {
            let mut more = (*c.children[0]).clone();
            more.name = name.into();
            let (l, r) =
                (format!("10.{}.0.0/16", 11 + i + 10 * n), format!("10.{}.0.0/16", 11 + i + 10 * (1 - n)));
            (more.local_ts, more.remote_ts) = (vec![net(&l)], vec![net(&r)]);
            c.children.push(more.into());
        }
        w.configure(n, c);
    }
    w.initiate(A);
    w.run(seconds(3));
    assert_eq!((w.children(A), w.children(B), w.lost), (3, 3, 0));
    assert!(w.agree());
}

#[test]
fn groups_are_corrected() {
    let w = established(|n, c| {
        c.ike =
            ike(if n == A { "aes256gcm16-prfsha256-x25519-ecp256" } else { "aes256gcm16-prfsha256-ecp256" });
        let e = if n == A { "aes256gcm16-x25519-ecp384" } else { "aes256gcm16-ecp384" };
        child(c, |c| c.esp = esp(e));
    });
    let mut w = w;
    let spi = w.spis(A)[0];
    w.on(A, |e, now, p, out| e.rekey_child(now, spi, p, out));
    w.run(seconds(5));
    let rekeyed = w.nodes[A].plane.inbound.values().next().unwrap();
    assert_eq!(rekeyed.esp.pfs, Some(penstock_ike::crypto::Method::P384));
    assert_eq!(w.lost, 0);
}

#[test]
fn traffic_keeps_probes_away_and_its_end_brings_them() {
    let mut w = established(|_, c| c.dpd = Some(seconds(5)));
    let before = w.datagrams;
    w.run(seconds(60));
    assert_eq!(w.datagrams, before, "traffic is a sign of life");
    w.nodes.iter_mut().for_each(|n| n.plane.current.clear());
    w.run(seconds(60));
    assert!(w.datagrams > before + 8);
    assert_eq!((w.ike(A), w.ike(B)), (1, 1));
}

#[test]
fn selectors_are_narrowed() {
    let w = established(|n, c| {
        child(c, |c| match n {
            A => (c.local_ts, c.remote_ts) = (vec![net("10.1.2.0/24")], vec![net("0.0.0.0/0")]),
            _ => {
                (c.local_ts, c.remote_ts) =
                    (vec![net("10.2.0.0/16"), net("10.3.0.0/16")], vec![net("10.0.0.0/8")])
            }
        })
    });
    let sa = w.nodes[A].plane.inbound.values().next().unwrap();
    assert_eq!(
        (&sa.local_ts[..], &sa.remote_ts[..]),
        (&[net("10.1.2.0/24")][..], &[net("10.2.0.0/16"), net("10.3.0.0/16")][..])
    );
    let sb = w.nodes[B].plane.inbound.values().next().unwrap();
    assert_eq!((&sb.local_ts, &sb.remote_ts), (&sa.remote_ts, &sa.local_ts));
}

/// A responder with a range gives each peer the one pair of networks that it asks for.
#[test]
fn a_responder_takes_one_pair_out_of_its_range() {
    for asked in ["10.64.0.0/24", "10.79.255.0/24", "10.70.1.1/32"] {
        let w = established(|n, c| {
            child(c, |c| match n {
                A => (c.local_ts, c.remote_ts) = (vec![net(asked)], vec![net("10.1.0.0/16")]),
                _ => (c.local_ts, c.remote_ts) = (vec![net("10.1.0.0/16")], vec![net("10.64.0.0/12")]),
            })
        });
        let sa = w.nodes[B].plane.inbound.values().next().unwrap();
        assert_eq!((&sa.local_ts[..], &sa.remote_ts[..]), (&[net("10.1.0.0/16")][..], &[net(asked)][..]));
        assert_eq!(w.lost, 0);
    }
}

#[test]
fn adopted_sas_carry_traffic_until_new_ones_take_over() {
    let mut w = established(|_, _| {});
    // Control at A dies; its data plane does not.
    let old = w.nodes[A].plane.inbound.values().next().unwrap().clone();
    w.nodes[A].endpoint = World::new(79).nodes.remove(A).endpoint;
    w.configure(A, site(A));
    assert!(w.on(A, |e, now, _, _| e.adopt(
        now,
        ("site", "net"),
        (old.spi_in, old.spi_out),
        (old.local_ts, old.remote_ts)
    )));
    w.run(seconds(10));
    assert_eq!(w.lost, 0);
    assert!(!w.nodes[A].plane.inbound.contains_key(&old.spi_in));
    assert_eq!((w.children(A), w.ike(A)), (1, 1));
    // B gives up soon what A does not know any more, long before a silent peer would count as dead.
    w.run(seconds(5));
    assert_eq!((w.ike(B), w.lost), (1, 0));
    assert!(w.agree());
}

#[test]
fn per_worker_children_stand_side_by_side() {
    let mut w = established(|_, c| child(c, |c| c.per_worker = 4));
    for worker in 1..4 {
        w.on(A, |e, now, p, out| e.initiate_for_worker(now, "site", "net", worker, p, out));
        w.run(seconds(1));
    }
    assert_eq!((w.children(A), w.children(B)), (4, 4));
    let mut resources: Vec<_> = w.nodes[B].plane.inbound.values().map(|s| s.resource).collect();
    resources.sort_unstable();
    assert_eq!(resources, [None, Some(1), Some(2), Some(3)]);
}

#[test]
fn a_collision_that_the_network_cuts_short_leaves_nothing() {
    for wait in 0..40 {
        let mut w = established(|_, _| {});
        w.weather.jitter_ms = 20;
        for n in [A, B] {
            w.on(n, |e, now, p, out| e.rekey_ike(now, "site", p, out));
        }
        w.run(std::time::Duration::from_millis(wait));
        w.weather.loss = 1000;
        for n in [A, B] {
            w.on(n, |e, now, p, out| e.remove_connection(now, "site", p, out));
        }
        w.run(settings().retransmission_limit() * 2 + seconds(10));
        for n in [A, B] {
            assert_eq!(w.nodes[n].endpoint.counts(), (0, 0, 0), "after {wait} ms, node {n}");
            assert!(w.nodes[n].plane.inbound.is_empty() && w.nodes[n].plane.reserved.is_empty());
        }
    }
}
