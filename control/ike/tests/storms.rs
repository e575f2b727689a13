//! Two endpoints through loss, duplication, reordering and collisions in virtual time, one schedule per seed. The
//! invariants: the two ends agree again within the retransmission limit after the weather clears, no data packet meets a
//! missing SA because of a rekey, and nothing is left behind when all is closed. `STORM_SEEDS` sets how many seeds,
//! `STORM_FIRST` the first one.

mod common;
use common::*;
use penstock_ike::*;
use rand_core::Rng;
use std::time::Duration;

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number =
        |name, default| std::env::var(name).ok().and_then(|v: String| v.parse().ok()).unwrap_or(default);
    let first = number("STORM_FIRST", 0);
    first..first + number("STORM_SEEDS", default)
}

fn established(seed: u64) -> World {
    let mut w = World::new(seed);
    let hybrid = seed % 7 == 3;
    for n in [A, B] {
        let mut c = site(n);
        if hybrid {
            c.ike = ike("aes256gcm16-prfsha256-x25519-ke1_mlkem768");
            c.fragment_bytes = Some(600);
        } else if seed % 2 == 1 {
            c.ike = ike("aes128-sha256-x25519");
        }
        if seed % 3 == 1 {
            child(&mut c, |c| c.esp = esp("aes128gcm16-x25519"));
        }
        w.configure(n, c);
    }
    assert!(w.initiate(A));
    w.run(seconds(2));
    assert!(w.up() && w.agree(), "seed {seed}");
    w.lost = 0;
    w
}

fn storm(w: &mut World, seed: u64) {
    let loss = [0, 50, 100, 200][(seed / 2 % 4) as usize];
    let duplication = [0, 100, 300][(seed / 3 % 3) as usize];
    let jitter_ms = [0, 30, 400, 3000][(seed / 5 % 4) as usize];
    w.weather = Weather { loss, duplication, jitter_ms };
}

fn report(w: &World) -> String {
    let events = |n: usize| {
        w.nodes[n].events.iter().map(|e| format!("\n  {} {e}", e.at.at.0.as_millis())).collect::<String>()
    };
    format!("A {:?}{}\nB {:?}{}", w.pairs(A), events(A), w.pairs(B), events(B))
}

/// An SA that ended because requests were lost too often: then, and only then, packets may be lost.
fn gave_up(w: &World) -> bool {
    [A, B]
        .iter()
        .any(|n| w.reasons(*n).iter().any(|r| matches!(r, Reason::PeerUnresponsive | Reason::DeletedByPeer)))
}

fn settle(w: &mut World) {
    w.weather = Weather::default();
    w.run(settings().retransmission_limit() * 2 + seconds(40));
}

#[test]
fn rekeys_in_storms_lose_no_packet() {
    let mut gave = 0;
    for seed in seeds(400) {
        let mut w = established(seed);
        storm(&mut w, seed);
        for _ in 0..6 {
            let choice = w.rng.next_u32();
            let actions = if choice & 1 == 0 { vec![(choice >> 1) as usize % 2] } else { vec![A, B] };
            for (i, n) in actions.into_iter().enumerate() {
                let shift = 8 + 4 * i;
                match (choice >> shift) % 3 {
                    0 => w.on(n, |e, now, p, out| e.rekey_ike(now, "site", p, out)),
                    _ => {
                        for spi in w.spis(n) {
                            w.on(n, |e, now, p, out| e.rekey_child(now, spi, p, out));
                        }
                    }
                }
                if choice & 2 == 0 {
                    let pause = Duration::from_millis(w.rng.next_u64() % 60);
                    w.run(pause);
                }
            }
            let pause = Duration::from_millis(w.rng.next_u64() % 9000);
            w.run(pause);
        }
        settle(&mut w);
        if gave_up(&w) {
            gave += 1;
            assert!(w.agree(), "seed {seed}\n{}", report(&w));
            nothing_left(&mut w, seed);
            continue;
        }
        assert!(w.agree() && w.up(), "seed {seed}\n{}", report(&w));
        assert_eq!(
            (w.ike(A), w.ike(B), w.children(A), w.children(B)),
            (1, 1, 1, 1),
            "seed {seed}\n{}",
            report(&w)
        );
        assert_eq!(w.lost, 0, "seed {seed}: {} of {} packets met no SA\n{}", w.lost, w.sent, report(&w));
        nothing_left(&mut w, seed);
    }
    assert!(gave * 4 < seeds(400).count(), "{gave} seeds gave up");
}

#[test]
fn chaos_ends_in_agreement_and_leaves_nothing() {
    for seed in seeds(400) {
        let mut w = established(seed);
        storm(&mut w, seed);
        for _ in 0..10 {
            let choice = w.rng.next_u32();
            let n = choice as usize % 2;
            match (choice >> 4) % 8 {
                0 | 1 => w.on(n, |e, now, p, out| e.rekey_ike(now, "site", p, out)),
                2 | 3 => {
                    for spi in w.spis(n) {
                        w.on(n, |e, now, p, out| e.rekey_child(now, spi, p, out));
                    }
                }
                4 => {
                    for spi in w.spis(n) {
                        w.on(n, |e, now, p, out| e.delete_child(now, spi, p, out));
                    }
                }
                5 => w.on(n, |e, now, p, out| e.delete(now, "site", p, out)),
                _ => assert!(w.initiate(n)),
            }
            let pause = Duration::from_millis(w.rng.next_u64() % 5000);
            w.run(pause);
        }
        settle(&mut w);
        assert!(w.agree(), "seed {seed}\n{}", report(&w));
        assert_eq!((w.ike(A), w.children(A)), (w.ike(B), w.children(B)), "seed {seed}\n{}", report(&w));
        // In fair weather it comes up again, whatever was before.
        assert!(w.initiate(A));
        w.run(seconds(5));
        assert!(w.up() && w.agree(), "seed {seed}\n{}", report(&w));
        nothing_left(&mut w, seed);
    }
}

fn nothing_left(w: &mut World, seed: u64) {
    for n in [A, B] {
        w.on(n, |e, now, p, out| e.delete(now, "site", p, out));
    }
    w.run(settings().retransmission_limit() + seconds(30));
    for n in [A, B] {
        let node = &w.nodes[n];
        assert_eq!(node.endpoint.counts(), (0, 0, 0), "seed {seed}, node {n}\n{}", report(w));
        assert!(
            node.plane.inbound.is_empty() && node.plane.reserved.is_empty() && node.plane.outbound.is_empty()
        );
        assert_eq!(node.endpoint.next_timeout(), None, "seed {seed}");
    }
}
