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
