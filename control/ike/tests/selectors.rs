//! Traffic selectors between two endpoints in virtual time: what does not fit is refused by name, what a peer narrows is asked for
//! pair by pair, and every child keeps its own selectors. RFC 7296 sections 2.9 and 2.9.2.

mod common;
use common::*;
use penstock_ike::message::TrafficSelector;
use penstock_ike::*;

fn net(third: u8, of: u8) -> TrafficSelector {
    TrafficSelector::network([10, of, third, 0].into(), 24)
}

/// A offers everything; B has these networks.
fn against(networks: Vec<TrafficSelector>, change: impl Fn(&mut World)) -> World {
    let mut w = World::new(1);
    for n in [A, B] {
        let mut c = site(n);
        child(&mut c, |c| {
            (c.local_ts, c.remote_ts) = (vec![TrafficSelector::any_v4()], vec![TrafficSelector::any_v4()])
        });
        if n == B {
            child(&mut c, |c| c.local_ts = networks.clone());
        }
        w.configure(n, c);
    }
    change(&mut w);
    assert!(w.initiate(A));
    w.run(seconds(3));
    w
}

fn reasons(w: &World, n: usize) -> Vec<Reason> {
    w.nodes[n].events.iter().filter_map(|e| e.failure.as_ref()).map(|f| f.reason).collect()
}

#[test]
fn what_needs_more_ranges_than_there_is_room_for_is_refused_and_never_widened() {
    let apart = |count: u8| (0..count).map(|at| net(2 * at, 2)).collect::<Vec<_>>();
    let w = against(apart(16), |_| ());
    assert!(w.up() && w.nodes[A].plane.inbound.values().all(|sa| sa.remote_ts.len() == 16));
    // The responder has no room.
    let w = against(apart(17), |_| ());
    assert_eq!(w.children(B), 0);
    assert!(reasons(&w, B).contains(&Reason::SelectorsTooMany), "{:?}", w.nodes[B].events);
    assert!(reasons(&w, A).contains(&Reason::SelectorsRefused), "{:?}", w.nodes[A].events);
    // What touches is one range.
    let w = against((0..40).map(|at| net(at, 2)).collect(), |_| ());
    assert!(w.up());
    // The initiator has no room for the answer: the peer hears that its SA is not taken.
    let w = against(apart(5), |w| w.nodes[A].endpoint.set_settings(Settings { ranges: 4, ..settings() }));
    assert!(reasons(&w, A).contains(&Reason::SelectorsTooMany), "{:?}", w.nodes[A].events);
    assert_eq!((w.children(A), w.children(B)), (0, 0));
    assert!(w.nodes[A].plane.inbound.is_empty() && w.nodes[A].plane.reserved.is_empty());
}

/// Two networks on either side. B's single child has what `of_b` makes of it, which may split it.
fn four_pairs(of_b: impl Fn(&mut Connection)) -> World {
    let mut w = World::new(1);
    for n in [A, B] {
        let mut c = site(n);
        let nets = |of: u8| vec![net(1, of), net(2, of)];
        child(&mut c, |c| (c.local_ts, c.remote_ts) = (nets(1 + n as u8), nets(2 - n as u8)));
        if n == B {
            of_b(&mut c);
        }
        w.configure(n, c);
    }
    w
}

/// A child for each pair, as peers have them that take one pair of networks a child.
fn split(c: &mut Connection) {
    let whole = c.children.remove(0);
    for (at, local) in whole.local_ts.iter().enumerate() {
        for (to, remote) in whole.remote_ts.iter().enumerate() {
            let name = format!("net{at}{to}").into();
            let one =
                ChildConfig { name, local_ts: vec![*local], remote_ts: vec![*remote], ..(*whole).clone() };
            c.children.push(one.into());
        }
    }
}

/// The pairs that `n` sends for, each once.
fn sends_for(w: &World, n: usize) -> Vec<String> {
    let plane = &w.nodes[n].plane;
    let text = |spi: &u32| format!("{} {}", plane.inbound[spi].local_ts[0], plane.inbound[spi].remote_ts[0]);
    let mut all: Vec<String> = plane.current.values().map(text).collect();
    all.sort();
    all
}

const FOUR: [&str; 4] = [
    "10.1.1.0/24 10.2.1.0/24",
    "10.1.1.0/24 10.2.2.0/24",
    "10.1.2.0/24 10.2.1.0/24",
    "10.1.2.0/24 10.2.2.0/24",
];

#[test]
fn after_a_narrowing_the_rest_is_asked_for_pair_by_pair() {
    let mut w = four_pairs(split);
    assert!(w.initiate(A));
    w.run(seconds(5));
    assert_eq!(sends_for(&w, A), FOUR);
    assert_eq!((w.children(A), w.children(B), w.ike(A), w.lost), (4, 4, 1, 0));
    assert!(w.agree());
    // Rekeys of each, from either side, keep its selectors; so does one of the IKE SA.
    for by in [A, B] {
        for spi in w.spis(by) {
            w.on(by, |e, now, p, out| e.rekey_child(now, spi, p, out));
            w.run(seconds(4));
            assert_eq!(
                (sends_for(&w, A), w.children(A), w.children(B)),
                (FOUR.map(String::from).into(), 4, 4)
            );
        }
        w.on(by, |e, now, p, out| e.rekey_ike(now, "site", p, out));
        w.run(seconds(4));
    }
    assert!(w.agree() && w.lost == 0, "{}", w.lost);
    assert_eq!(w.nodes[A].endpoint.pairs_without_sa("site", "net"), []);
}

#[test]
fn a_peer_that_makes_one_child_for_each_pair_is_followed() {
    let mut w = four_pairs(split);
    assert!(w.on(B, |e, now, p, out| e.initiate(now, "site", None, p, out)));
    w.run(seconds(5));
    assert_eq!(sends_for(&w, A), FOUR);
    assert_eq!((w.children(A), w.children(B), w.ike(A), w.lost), (4, 4, 1, 0));
    // One of them is deleted: its pair alone is down, and traffic asks for it again.
    let spi = w.spis(B)[2];
    w.on(B, |e, now, p, out| e.delete_child(now, spi, p, out));
    w.run(seconds(4));
    assert_eq!((w.children(A), sends_for(&w, A).len()), (3, 3));
    assert_eq!(w.nodes[A].endpoint.pairs_without_sa("site", "net").len(), 1);
    w.initiate(A);
    w.run(seconds(4));
    assert_eq!((sends_for(&w, A), w.children(B), w.lost), (FOUR.map(String::from).into(), 4, 0));
}

#[test]
fn a_pair_that_the_peer_refuses_is_named_and_the_others_are_up() {
    let mut w = four_pairs(|c| {
        split(c);
        c.children.remove(1);
    });
    assert!(w.initiate(A));
    w.run(seconds(5));
    assert_eq!(sends_for(&w, A).len(), 3);
    let without = w.nodes[A].endpoint.pairs_without_sa("site", "net");
    assert_eq!(
        without.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>(),
        ["10.1.2.0/24 10.2.1.0/24"]
    );
    assert!(reasons(&w, A).contains(&Reason::SelectorsRefused), "{:?}", w.nodes[A].events);
    let refusals = |w: &World| reasons(w, A).len();
    let before = refusals(&w);
    w.run(seconds(50));
    assert_eq!(refusals(&w), before, "not before a minute has passed");
    // A peer that takes a part of a network has its way, and is not asked again and again.
    let mut w = against(vec![net(1, 2)], |_| ());
    let sent = w.datagrams;
    w.run(seconds(20));
    assert_eq!((w.children(A), w.datagrams), (1, sent));
}
