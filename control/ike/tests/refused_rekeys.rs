//! Rekeys that one end refuses: PFS on one end only, groups that differ, an IKE proposal that is no longer allowed. The tunnel
//! outlives its keys all the same, and loses no packet. RFC 7296 sections 1.3.1, 2.8.3 and 2.17.

mod common;
use common::*;
use penstock_ike::crypto::Suite;
use penstock_ike::*;
use std::collections::HashSet;
use std::time::Duration;

const SHORT: u64 = 60;

fn of_suite(n: usize, suite: &Suite) -> Connection {
    let mut c = site(n);
    c.ike = suite.ike.clone();
    child(&mut c, |c| c.esp = suite.esp.clone());
    c
}

/// The suite's first ESP cipher and sequence numbers with this key exchange: what a peer's file would say.
fn peer_esp(suite: &str, pfs: &str) -> String {
    let esn = match suite {
        "azure" | "aws" => "-noesn",
        "cnsa2" => "-esn",
        _ => "",
    };
    format!("aes256gcm16{pfs}{esn}")
}

/// Lets the end with short-lived keys replace them three times.
fn three_rekeys(w: &mut World, what: &str) {
    w.run(seconds(3));
    assert!(w.up(), "{what}: {:?} {:?}", w.why(A), w.why(B));
    let mut seen: HashSet<u32> = w.spis(A).into_iter().collect();
    for _ in 0..4 * SHORT {
        w.run(seconds(1));
        seen.extend(w.spis(A));
    }
    assert!(seen.len() >= 4, "{what}: {seen:x?} {:?} {:?}", w.why(A), w.why(B));
    assert_eq!(w.lost, 0, "{what}: of {}: {:?} {:?}", w.sent, w.why(A), w.why(B));
    w.run(seconds(5));
    assert!(w.up() && w.ike(A) <= 2 && w.ike(B) <= 2, "{what}: {} and {} IKE SAs", w.ike(A), w.ike(B));
    assert!(w.children(A) <= 2 && w.children(B) <= 2, "{what}: {} children", w.children(A));
    // The sum of what flowed is what was to flow: no end was ever without an SA.
    let expected = 2 * (4 * SHORT + 5) * 50;
    assert!(w.sent + 100 >= expected, "{what}: {} of {expected} packets were sent at all", w.sent);
}

#[test]
fn three_rekeys_with_every_suite_and_every_pfs_of_the_peer() {
    for suite in ["default", "azure", "aws", "cnsa2"] {
        let ours = Suite::named(suite).unwrap();
        for pfs in ["", "-x25519", "-ecp384", "-ecp256", "-modp2048"] {
            // Who begins, whose keys end first, and which end can make no new IKE SA.
            for (begins, short, mute) in [(A, A, B), (A, B, A), (B, A, A), (B, B, B), (A, A, 2), (B, B, 2)] {
                let what = format!("{suite}, peer{pfs}, {begins} begins, {short} rekeys, {mute} is mute");
                let mut w = World::new(31);
                let (a, mut b) = (of_suite(A, &ours), of_suite(B, &ours));
                child(&mut b, |c| c.esp = esp(&peer_esp(suite, pfs)));
                for (n, mut c) in [(A, a), (B, b)] {
                    if n == short {
                        child(&mut c, |c| c.lifetime = Lifetime::of(seconds(SHORT)));
                    }
                    w.configure(n, c);
                }
                w.initiate(begins);
                w.run(seconds(2));
                w.mute = [A, B].map(|n| n == mute);
                three_rekeys(&mut w, &what);
            }
        }
    }
}

/// The other end of `who` has no room for a moment: it refuses `who`'s next rekey, of the child or of the IKE SA.
fn refuse_a_rekey(w: &mut World, who: usize, of_ike: bool) {
    let other = 1 - who;
    let mut refusing = site(other);
    refusing.ike = ike("aes128-sha512-prfsha512-modp2048");
    match of_ike {
        true => w.configure(other, refusing),
        false => w.nodes[other].plane.free = Some(0),
    }
    let before = w.reasons(who).len();
    let spi = w.current(who);
    w.on(who, |e, now, p, out| match of_ike {
        true => e.rekey_ike(now, "site", p, out),
        false => e.rekey_child(now, spi, p, out),
    });
    while w.reasons(who).len() == before {
        w.run(Duration::from_millis(10));
    }
    w.nodes[other].plane.free = None;
    w.configure(other, site(other));
}

fn connected(begins: usize) -> World {
    let mut w = World::new(12);
    [A, B].into_iter().for_each(|n| w.configure(n, site(n)));
    w.initiate(begins);
    w.run(seconds(2));
    assert!(w.up());
    w
}

#[test]
fn a_new_ike_sa_takes_the_place_of_a_refused_rekey() {
    for of_ike in [false, true] {
        for begins in [A, B] {
            // Whose rekey is refused, and which end cannot begin.
            for (who, mute) in [(A, B), (A, A), (B, A), (B, B), (A, 2), (B, 2)] {
                let what = format!("IKE {of_ike}, {begins} began, rekey of {who} refused, {mute} is mute");
                let mut w = connected(begins);
                w.mute = [A, B].map(|n| n == mute);
                for round in 0..3 {
                    let before = w.pairs(A);
                    refuse_a_rekey(&mut w, who, of_ike);
                    let why = w.nodes[who].endpoint.why("site").unwrap();
                    assert!(why.text.contains("site is up until "), "{what}, {round}: {}", why.text);
                    w.run(seconds(20));
                    let after = w.pairs(A);
                    let renewed = after.len() == 1 && before.len() == 1 && after != before;
                    assert!(renewed && w.agree() && w.up(), "{what}, {round}: {before:x?} {after:x?}");
                    assert_eq!((w.ike(A), w.ike(B), w.lost), (1, 1, 0), "{what}, {round}");
                    assert_eq!([w.why(A).0, w.why(B).0], ["up", "up"], "{what}, {round}");
                }
            }
        }
    }
}

#[test]
fn a_refused_rekey_is_told_at_once_and_the_end_that_it_means() {
    let mut w = connected(A);
    w.mute = [true, true];
    refuse_a_rekey(&mut w, A, false);
    let (code, text) = w.why(A);
    // The clock of the tests stood at noon of some day; an hour of lifetime began two seconds later.
    let end = penstock_ike::clock(NOON + 102 + 3600 - 2);
    assert_eq!(code, "no-additional-sas");
    let expected = "then down: the peer takes no further child SA (NO_ADDITIONAL_SAS)";
    assert_eq!(text, format!("site is up until {end}, {expected}"));
    let (code, text) = w.why(B);
    assert_eq!((code, text.contains("up until")), ("spis-exhausted", true), "{text}");
    let status = w.nodes[A].endpoint.connection("site").unwrap();
    let refused = status.refused(Some("net")).expect("told in the status too");
    assert_eq!(penstock_ike::clock(refused.until_unix_seconds), end);
    let log = w.nodes[A].endpoint.log("site").iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(log.iter().any(|line| line.contains("failed net: up until")), "{log:#?}");
    // The next rekey is not refused: nothing ends.
    w.run(seconds(70));
    assert_eq!([w.why(A), w.why(B)].map(|why| why.0), ["up", "up"]);
    assert_eq!(w.lost, 0);
}
