//! Publication to a real region: two gateways whose tables and state stand in temporary directories, and a stand-in for
//! their workers that takes sequence numbers and marks them in the other's replay window, as workers do.

mod gateway;

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::Path;

use gateway::{Gateway, planned};
use penstock_control::publish::journal::Journal;
use penstock_control::publish::plan::{Keys, Plan};
use penstock_control::publish::rekey::StepError;
use penstock_control::publish::routes::{KernelView, Routes, Target};
use penstock_control::publish::tunnels::Changes;
use penstock_tables::{Cipher, Hop, InboundSpec, KeyBlock};

fn configuration(directory: &Path, site: u8, tunnels: &str) -> BTreeMap<String, Plan> {
    let other = 3 - site;
    let text = format!(
        "lab: true\nports:\n  lan: {{device: net_null0, addresses: [10.{site}.0.1/24]}}\n  \
         wan: {{device: net_null1, addresses: [192.0.2.{site}/24]}}\ntunnels:\n{tunnels}"
    );
    let text = text.replace("PEER", &format!("192.0.2.{other}")).replace("OWN", &site.to_string());
    planned(directory, &text.replace("OTHER", &other.to_string()))
}

const TUNNEL: &str = "  t: {peer: PEER, local_prefixes: [10.OWN.0.0/16], remote_prefixes: [10.OTHER.0.0/16], \
                      lab_keys: {secret_file: secret}}\n";

impl Gateway {
    fn new(site: u8) -> Gateway {
        Gateway::with(|directory| configuration(directory, site, TUNNEL))
    }

    fn step(&mut self, to: Option<u32>, force: bool) -> Result<u32, StepError> {
        let stepped = self.tunnels.step(&mut self.tables, &self.state, "t", to, force);
        self.reclaim();
        stepped
    }

    fn watch(&mut self) {
        let problems = self.tunnels.watch(&mut self.tables, &self.state);
        assert_eq!(problems, Vec::<String>::new());
        self.reclaim();
    }

    fn generation(&self) -> u32 {
        self.tunnels.get("t").expect("there").generation
    }

    /// As [`Gateway::seal`]; `None` for numbers that the hard limit forbids.
    fn send(&self, count: u32) -> Option<(u32, Vec<u64>)> {
        self.seal(count).filter(|(_, numbers)| numbers.len() == count as usize)
    }

    /// Opens what the other gateway sent; false for an SPI that it does not know.
    fn receive(&self, spi: u32, numbers: &[u64]) -> bool {
        let view = self.view();
        let Some(slot) = view.inbound_slot(spi) else { return false };
        let window = self.workers.window(slot, view.inbound(slot));
        numbers.iter().all(|number| window.mark(*number).is_ok())
    }

    fn sends_to(&self, other: &Gateway) -> bool {
        let (spi, numbers) = self.send(8).expect("granted");
        other.receive(spi, &numbers)
    }

    fn slots(&self) -> Vec<(u32, u32)> {
        let out = self.tables.outbound().filter_map(|(slot, sa)| Some((slot, sa.spi()?)));
        out.chain(self.tables.inbound().filter_map(|(slot, sa)| Some((slot, sa.spi()?)))).collect()
    }
}

#[test]
fn both_gateways_open_what_the_other_sends() {
    let (a, b) = (Gateway::new(1), Gateway::new(2));
    assert!(a.sends_to(&b) && b.sends_to(&a));
    assert_eq!((a.tables.outbound().count(), a.tables.inbound().count()), (1, 2));
    let (key_a, key_b) = (a.tables.outbound().next().expect("SA").0, b.tables.inbound());
    let opened = key_b
        .into_iter()
        .any(|(slot, _)| b.tables.inbound_key(slot).raw_key() == a.tables.outbound_key(key_a).raw_key());
    assert!(opened, "the keys are the same");
}

#[test]
fn either_side_may_step_first_and_nothing_is_unknown() {
    let (mut a, mut b) = (Gateway::new(1), Gateway::new(2));
    for round in 0..20_u32 {
        let (first, second) = if round % 3 == 0 { (&mut b, &mut a) } else { (&mut a, &mut b) };
        let before = first.send(4).expect("granted");
        first.step(None, false).expect("the peer followed the last step");
        assert!(second.receive(before.0, &before.1), "what was under way is opened, round {round}");
        assert!(first.sends_to(second) && second.sends_to(first), "round {round}");
        second.watch();
        assert_eq!(first.generation(), second.generation(), "the other side followed");
        assert!(first.sends_to(second) && second.sends_to(first), "round {round}");
        first.watch();
    }
    assert_eq!(a.generation(), 21);
    assert_eq!((a.tables.outbound().count(), a.tables.inbound().count()), (1, 3));
}

#[test]
fn both_may_step_at_once() {
    let (mut a, mut b) = (Gateway::new(1), Gateway::new(2));
    a.step(None, false).expect("first step");
    b.step(None, false).expect("first step");
    assert!(a.sends_to(&b) && b.sends_to(&a));
    a.watch();
    b.watch();
    assert_eq!((a.generation(), b.generation()), (2, 2));
}

#[test]
fn a_step_that_could_leave_the_peer_behind_is_refused() {
    let (mut a, b) = (Gateway::new(1), Gateway::new(2));
    a.step(None, false).expect("the peer opens the next generation");
    assert!(matches!(a.step(None, false), Err(StepError::Behind { seen: 1, own: 2, .. })));
    assert!(a.sends_to(&b), "the refusal changed nothing");
    assert_eq!(a.step(Some(2), false).expect("there already"), 2);
    assert!(matches!(a.step(Some(1), true), Err(StepError::Back { own: 2, asked: 1, .. })));
    a.step(None, true).expect("insisted");
    assert!(!a.sends_to(&b), "two steps ahead is behind the peer's back");
    assert!(matches!(a.tunnels.step(&mut a.tables, &a.state, "x", None, false), Err(StepError::Unknown(_))));
}

#[test]
fn a_restarted_control_touches_nothing_that_is_right() {
    let (mut a, b) = (Gateway::new(1), Gateway::new(2));
    a.step(None, false).expect("stepped");
    let (before, sent) = (a.slots(), a.send(5).expect("granted"));
    let (mut a, left) = a.restart_control();
    assert_eq!((a.slots(), left), (before, 0));
    assert_eq!(a.generation(), 2);
    let next = a.send(1).expect("granted");
    assert_eq!(next.1, [sent.1[4] + 1], "numbers go on");
    assert!(b.receive(sent.0, &sent.1) && b.receive(next.0, &next.1));
    assert_eq!(a.settle(), Changes { untouched: 1, ..Changes::default() });
}

#[test]
fn what_the_file_no_longer_says_is_taken_out_after_a_restart() {
    let a = Gateway::new(1);
    let (mut a, left) = Gateway { plans: BTreeMap::new(), ..a }.restart_control();
    assert_eq!(left, 1);
    a.reclaim();
    assert_eq!(
        (a.tables.tunnels().count(), a.tables.outbound().count(), a.tables.inbound().count()),
        (0, 0, 0)
    );
}

#[test]
fn numbers_are_never_used_twice_although_state_and_tables_are_lost() {
    let a = Gateway::new(1);
    let (spi, first) = a.send(100).expect("granted");
    let Gateway { directory, plans, workers, state, tables, tunnels } = a;
    drop((workers, state, tables, tunnels));
    for name in ["tables", "state"] {
        std::fs::remove_file(directory.path().join(name)).expect("removed, as a reboot does");
    }
    let a = Gateway::open(directory, plans);
    let (again, second) = a.send(100).expect("granted");
    assert_eq!(spi, again, "the same key");
    assert!(second[0] > first[99]);
}

#[test]
fn a_grant_is_extended_before_it_runs_out_and_never_without_the_journal() {
    let mut a = Gateway::new(1);
    let granted =
        |a: &Gateway| a.tunnels.get("t").and_then(|live| live.outbound().cloned()).expect("an SA").granted;
    let first = granted(&a);
    a.watch();
    assert_eq!(granted(&a), first, "there is enough");
    a.send(1 << 29).expect("granted");
    a.send(1 << 28).expect("granted");
    a.watch();
    assert_eq!(granted(&a), first + (1 << 30));
    let kept = Journal::open(&a.directory.path().join("kept")).expect("journal");
    let chain = match &a.plans["t"].keys {
        Keys::Derived { chain, .. } => chain.id(),
        other => panic!("{other:?}"),
    };
    assert_eq!(kept.get(chain).expect("recorded").granted, first + (1 << 30));
}

#[test]
fn a_changed_tunnel_is_replaced_and_the_others_are_untouched() {
    let more =
        TUNNEL.replace("  t:", "  u:").replace("10.OTHER", "10.99").replace("secret}", "secret, context: u}");
    let mut a = Gateway::new(1);
    let before = a.slots();
    a.plans = configuration(a.directory.path(), 1, &format!("{TUNNEL}{more}"));
    assert_eq!(a.settle(), Changes { added: 1, untouched: 1, ..Changes::default() });
    assert!(before.iter().all(|slot| a.slots().contains(slot)));
    let wider = TUNNEL.replace("10.OTHER.0.0/16", "10.64.0.0/10");
    a.plans = configuration(a.directory.path(), 1, &format!("{wider}{more}"));
    assert_eq!(a.settle(), Changes { updated: 1, untouched: 1, ..Changes::default() });
    assert!(before.iter().all(|slot| a.slots().contains(slot)), "SAs stay where selectors change");
    let other = more.replace("peer:", "cipher: aes256gcm16, peer:");
    a.plans = configuration(a.directory.path(), 1, &format!("{wider}{other}"));
    assert_eq!(a.settle(), Changes { replaced: 1, untouched: 1, ..Changes::default() });
    assert!(before.iter().all(|slot| a.slots().contains(slot)));
    a.plans = configuration(a.directory.path(), 1, &other);
    assert_eq!(a.settle(), Changes { removed: 1, untouched: 1, ..Changes::default() });
    assert!(before.iter().all(|slot| !a.slots().contains(slot)));
}

fn kernel(routes: &[(&str, Target)], neighbours: &[(u8, [u8; 4])]) -> KernelView {
    KernelView {
        routes: routes.iter().map(|(net, target)| (net.parse().expect("a prefix"), target.clone())).collect(),
        neighbours: neighbours
            .iter()
            .map(|(port, address)| ((*port, Ipv4Addr::from(*address)), [2; 6]))
            .collect::<HashMap<_, _>>(),
    }
}

#[test]
fn what_belongs_to_a_tunnel_never_follows_a_route_in_the_clear() {
    let mut a = Gateway::new(1);
    let wan = Ipv4Addr::new(192, 0, 2, 254);
    let lan = Ipv4Addr::new(10, 1, 0, 9);
    let view = kernel(
        &[
            ("192.0.2.0/24", Target::Link(1)),
            ("10.1.0.0/24", Target::Link(0)),
            ("0.0.0.0/0", Target::Gateway(1, wan)),
            ("10.2.3.0/24", Target::Gateway(1, wan)),
            ("10.1.5.0/24", Target::Gateway(0, lan)),
        ],
        &[(1, [192, 0, 2, 2]), (1, [192, 0, 2, 254])],
    );
    let mut routes = Routes::adopt(&a.tables);
    routes.publish(&mut a.tables, &view, &a.tunnels).expect("room");
    let data_plane = a.view();
    let slot = a.tunnels.get("t").expect("there").own.slot;
    let leads = |address: [u8; 4]| data_plane.route(u32::from_be_bytes(address));
    assert_eq!(
        leads([10, 2, 3, 4]),
        Hop::Tunnel(slot),
        "a narrower route of the kernel does not outdo the policy"
    );
    assert_eq!(leads([10, 2, 200, 1]), Hop::Tunnel(slot));
    assert!(matches!(leads([10, 1, 5, 1]), Hop::Adjacency(_)));
    assert_eq!(leads([10, 1, 0, 77]), Hop::Glean(0));
    assert!(matches!(leads([8, 8, 8, 8]), Hop::Adjacency(_)));
    assert_eq!(leads([224, 0, 0, 5]), Hop::Local);
    assert_eq!(leads([127, 0, 0, 1]), Hop::Discard);
    let (_, tunnel) = data_plane.tunnels().next().expect("a tunnel");
    let next = data_plane.adjacency(tunnel.adjacency().expect("a way to the peer")).expect("resolved");
    assert_eq!((next.port, next.mac), (1, [2; 6]));
    routes.publish(&mut a.tables, &kernel(&[], &[]), &a.tunnels).expect("room");
    let (_, tunnel) = data_plane.tunnels().next().expect("a tunnel");
    assert_eq!(
        (tunnel.adjacency(), leads([8, 8, 8, 8]), leads([10, 2, 3, 4])),
        (None, Hop::None, Hop::Tunnel(slot))
    );
    assert_eq!(a.tables.adjacencies().count(), 0);
}

#[test]
fn routes_over_a_tunnels_interface_lead_into_it() {
    let mut a = Gateway::new(1);
    let tunnel = "  t: {peer: PEER, interface: vti, interface_addresses: [169.254.0.1/30], lab_keys: {secret_file: secret}}\n";
    a.plans = configuration(a.directory.path(), 1, tunnel);
    assert_eq!(a.settle(), Changes { updated: 1, ..Changes::default() });
    let view = kernel(
        &[
            ("172.16.0.0/12", Target::Interface("vti".into())),
            ("172.16.1.0/24", Target::Interface("x".into())),
        ],
        &[],
    );
    Routes::adopt(&a.tables).publish(&mut a.tables, &view, &a.tunnels).expect("room");
    let data_plane = a.view();
    let (slot, live) = data_plane.tunnels().next().expect("a tunnel");
    assert!(live.has_interface());
    assert_eq!(data_plane.route(0xac10_0005), Hop::Tunnel(slot));
    assert_eq!(
        data_plane.route(0xac10_0105),
        Hop::Discard,
        "an interface that is gone leads nowhere, not out in the clear"
    );
}

/// Another tunnel's SA has this SPI. Returns its slot.
fn occupy(gateway: &mut Gateway, spi: u32) -> u32 {
    let key = KeyBlock::expand(Cipher::Aes128Gcm16, &[1; 16], [0; 4]).expect("a key");
    let spec = InboundSpec { tunnel: 7, key, esn: true, window: 64 };
    let slot = gateway.tables.reserve_spi(spi).expect("free");
    gateway.tables.install_inbound_at(slot, spi, spec, &gateway.state);
    slot
}

fn inbound_spi(gateway: &Gateway, generation: u32) -> u32 {
    match &gateway.plans["t"].keys {
        Keys::Derived { chain, .. } => chain.inbound(generation).spi,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tunnel_whose_spi_is_taken_steps_on_and_its_peer_follows() {
    let (mut a, mut b) = (Gateway::new(1), Gateway::new(2));
    let taken = inbound_spi(&a, 1);
    let plans = std::mem::take(&mut a.plans);
    a.settle();
    occupy(&mut a, taken);
    a.plans = plans;
    a.settle();
    assert_eq!(a.generation(), 2);
    assert_eq!(a.tunnels.get("t").expect("there").inbound.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert!(a.sends_to(&b), "the peer opens the next generation");
    b.watch();
    assert_eq!(b.generation(), 2);
    assert!(b.sends_to(&a));
}

#[test]
fn an_spi_that_is_free_again_is_taken() {
    let mut a = Gateway::new(1);
    let taken = inbound_spi(&a, 3);
    let slot = occupy(&mut a, taken);
    assert_eq!(a.step(None, false).expect("the generation to come matters later"), 2);
    let opens = |a: &Gateway| a.tunnels.get("t").expect("there").inbound.keys().copied().collect::<Vec<_>>();
    a.watch();
    assert_eq!((a.generation(), opens(&a)), (2, vec![1, 2]));
    a.tables.retire_inbound(slot);
    a.reclaim();
    a.watch();
    assert_eq!((a.generation(), opens(&a)), (2, vec![1, 2, 3]));
}

#[test]
fn all_tunnels_step_at_once_but_those_whose_peer_is_behind() {
    let (mut a, mut b) = (Gateway::new(1), Gateway::new(2));
    let step = |a: &mut Gateway| {
        let stepped = a.tunnels.step_all(&mut a.tables, &a.state, false).expect("journal");
        a.reclaim();
        assert_eq!(stepped.problems, Vec::<String>::new());
        (stepped.stepped, stepped.behind)
    };
    assert_eq!((step(&mut a), a.generation()), ((1, 0), 2));
    assert_eq!((step(&mut a), a.generation()), ((0, 1), 2));
    assert!(a.sends_to(&b) && b.sends_to(&a));
    b.watch();
    assert!(b.sends_to(&a));
    a.watch();
    assert_eq!((step(&mut a), a.generation()), ((1, 0), 3));
}
