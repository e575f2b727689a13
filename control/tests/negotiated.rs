//! Negotiated SAs in a real region: what the protocol machine wants is done, and a stand-in for a worker takes sequence
//! numbers as workers do. No number of a key comes twice, whatever moves.

mod gateway;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use gateway::{Gateway, planned};
use penstock_control::publish::plan::Plan;
use penstock_ike::crypto::{DirectionKey, EspChoice, EspCipher};
use penstock_ike::message::TrafficSelector;
use penstock_ike::{ChildSa, Encapsulation};
use penstock_tables::Selector;
use penstock_tables::events::Source;
use zeroize::Zeroizing;

const TEXT: &str = "
ports:
  lan: {device: net_null0, addresses: [10.1.0.1/24]}
  wan: {device: net_null1, addresses: [192.0.2.1/24]}
tunnels:
  t:
    peer: PEER
    local_prefixes: [10.1.0.0/16]
    remote_prefixes: [10.2.0.0/16]
    ike: {psk_file: secret}
";

fn configuration(directory: &Path, peer: &str) -> BTreeMap<String, Plan> {
    planned(directory, &TEXT.replace("PEER", peer))
}

impl Gateway {
    fn new(peer: &str) -> Gateway {
        Gateway::with(|directory| configuration(directory, peer))
    }

    /// Control dies and comes back, with the same tunnel in its file.
    fn restart(self) -> Gateway {
        self.restart_control().0
    }

    /// An SA that was negotiated; `number` tells its keys and SPIs from others.
    fn negotiate(&mut self, number: u8) -> ChildSa {
        let sa = child_sa(self.tables.allocate_spi().expect("room"), number);
        self.tunnels.install_inbound(&mut self.tables, &self.state, &sa).expect("installed");
        sa
    }

    fn switch(&mut self, sa: &ChildSa) -> bool {
        self.tunnels.switch_to(&mut self.tables, &self.state, sa).expect("switched")
    }

    fn remove(&mut self, spi_in: u32) {
        self.tunnels.remove_outbound(&mut self.tables, &self.state, "t", spi_in);
        self.tunnels.remove_inbound(&mut self.tables, &self.state, "t", spi_in);
        self.reclaim();
    }

    fn inbound(&self) -> HashSet<u32> {
        self.tables.inbound().filter_map(|(_, sa)| sa.spi()).collect()
    }

    fn template(&self) -> [u8; 28] {
        let slot = self.tunnels.get("t").expect("there").outbound().expect("an SA").slot;
        *self.tables.outbound_sa(slot).template()
    }
}

fn child_sa(spi_in: u32, number: u8) -> ChildSa {
    let key =
        |octet| DirectionKey { key: Zeroizing::new(vec![octet; 32]), salt: Zeroizing::new(vec![octet; 4]) };
    let net = |address: &str, len| vec![TrafficSelector::network(address.parse().expect("address"), len)];
    ChildSa {
        connection: "t".into(),
        child: "t".into(),
        peer: "gw".into(),
        spi_in,
        spi_out: 0x1000 + u32::from(number),
        outer: ("192.0.2.1".parse().expect("address"), "192.0.2.2".parse().expect("address")),
        encapsulation: None,
        local_ts: net("10.1.0.0", 16),
        remote_ts: net("10.2.7.0", 24),
        esp: EspChoice { cipher: EspCipher::AesGcm256, esn: true, pfs: None },
        key_in: key(number),
        key_out: key(number | 0x80),
        replaces: None,
        resource: None,
    }
}

#[test]
fn the_tunnel_is_dead_until_it_is_switched_and_narrowed_then() {
    let mut gateway = Gateway::new("192.0.2.2");
    assert_eq!(gateway.seal(1), None, "no SA was negotiated");
    let sa = gateway.negotiate(1);
    assert_eq!(gateway.inbound(), [sa.spi_in].into(), "the peer may send at once");
    assert_eq!(gateway.seal(1), None, "the peer may not be able to open yet");
    assert!(!gateway.switch(&sa), "the peer's address is that of the file");
    assert_eq!(gateway.seal(2), Some((0x1001, vec![1, 2])));
    let live = gateway.tunnels.get("t").expect("there");
    assert_eq!(live.spec().remote, [Selector::prefix(0x0a02_0700, 24)]);
    // Read again, the file does not widen what was negotiated.
    gateway.settle();
    assert_eq!(gateway.tunnels.get("t").expect("there").spec().remote, [Selector::prefix(0x0a02_0700, 24)]);
    gateway.remove(sa.spi_in);
    assert_eq!((gateway.seal(1), gateway.inbound()), (None, HashSet::new()));
    assert_eq!(gateway.tunnels.get("t").expect("there").spec().remote, [Selector::prefix(0x0a02_0000, 16)]);
}

#[test]
fn a_rekey_overlaps_and_can_be_taken_back_without_a_number_twice() {
    let mut gateway = Gateway::new("192.0.2.2");
    let (old, new) = (gateway.negotiate(1), gateway.negotiate(2));
    gateway.switch(&old);
    assert_eq!(gateway.seal(3), Some((0x1001, vec![1, 2, 3])));
    gateway.switch(&new);
    assert_eq!(gateway.seal(1), Some((0x1002, vec![1])));
    assert_eq!(gateway.inbound(), [old.spi_in, new.spi_in].into(), "the old one drains");
    assert!(gateway.tunnels.switch_back(&mut gateway.tables, "t", old.spi_in));
    gateway.tunnels.remove_outbound(&mut gateway.tables, &gateway.state, "t", new.spi_in);
    assert_eq!(gateway.seal(1), Some((0x1001, vec![4])));
    gateway.remove(new.spi_in);
    assert_eq!(gateway.inbound(), [old.spi_in].into());
    let (sent, _) = gateway.tunnels.get("t").expect("there").traffic(&gateway.state);
    assert_eq!(sent.packets, 0, "workers account for what they have sent, and these have not");
}

#[test]
fn a_peer_behind_a_nat_is_expected_where_it_is_and_others_are_not() {
    let mut gateway = Gateway::new("192.0.2.2");
    let udp = |follow| Some(Encapsulation { local_port: 4500, remote_port: 61_000, follow });
    let mut sources = Vec::new();
    for (number, encapsulation) in [(1, None), (2, udp(false)), (3, udp(true))] {
        let spi_in = gateway.tables.allocate_spi().expect("room");
        let sa = ChildSa { encapsulation, ..child_sa(spi_in, number) };
        gateway.tunnels.install_inbound(&mut gateway.tables, &gateway.state, &sa).expect("installed");
        let to = "198.51.100.9:61001".parse().expect("address");
        let slot = spi_in & (gateway.tables.capacity().inbound_slots() as u32 - 1);
        let before = gateway.tables.inbound_sa(slot).source();
        gateway.tunnels.expect_from(&gateway.tables, ("t", spi_in), to);
        sources.push((before, gateway.tables.inbound_sa(slot).source()));
    }
    let source = |address: [u8; 4], port| Source { address: u32::from_be_bytes(address), port }.pack();
    let followed = (source([192, 0, 2, 2], 61_000), source([198, 51, 100, 9], 61_001));
    assert_eq!(sources, [(0, 0), (0, 0), followed]);
}

#[test]
fn a_peer_that_moves_gets_no_number_twice() {
    let mut gateway = Gateway::new("192.0.2.2");
    let mut sa = gateway.negotiate(1);
    sa.encapsulation = Some(Encapsulation { local_port: 4500, remote_port: 61_000, follow: true });
    gateway.switch(&sa);
    assert_eq!(gateway.template()[20..24], [0x11, 0x94, 0xee, 0x48]);
    let (spi, before) = gateway.seal(100).expect("an SA");
    let old = gateway.tunnels.get("t").expect("there").outbound().cloned().expect("an SA");
    let to = "198.51.100.9:61001".parse().expect("address");
    let key = ("t", sa.spi_in);
    gateway.tunnels.move_peer(&mut gateway.tables, &gateway.state, key, to).expect("moved");
    assert_eq!(gateway.template()[16..24], [198, 51, 100, 9, 0x11, 0x94, 0xee, 0x49]);
    assert_eq!(gateway.tunnels.get("t").expect("there").peer().to_string(), "198.51.100.9");
    let (same, after) = gateway.seal(100).expect("an SA");
    // A worker that has not seen the new slot yet takes from the old one, as long as it is there.
    let limit = gateway.tables.outbound_sa(old.slot).hard_limit();
    let mut run = gateway.workers.outbound(old.slot).reserve(2_000_000, old.offset, limit);
    let late: Vec<u64> = std::iter::from_fn(|| run.take()).collect();
    assert_eq!(spi, same);
    let all: HashSet<u64> = before.iter().chain(&after).chain(&late).copied().collect();
    assert_eq!(all.len(), before.len() + after.len() + late.len(), "a number came twice");
    assert!(late.len() > 1_000_000 && late.last() < after.first());
    gateway.reclaim();
}

#[test]
fn a_restarted_control_finds_what_was_negotiated() {
    let mut gateway = Gateway::new("192.0.2.0/24");
    let (old, new) = (gateway.negotiate(1), gateway.negotiate(2));
    gateway.switch(&old);
    assert!(
        gateway.switch(&new) || gateway.tunnels.get("t").expect("there").peer().to_string() == "192.0.2.2"
    );
    assert_eq!(gateway.seal(2), Some((0x1002, vec![1, 2])));
    let mut gateway = gateway.restart();
    let live = gateway.tunnels.get("t").expect("adopted");
    assert_eq!(live.peer().to_string(), "192.0.2.2");
    assert_eq!(live.spec().remote, [Selector::prefix(0x0a02_0700, 24)]);
    assert_eq!(live.inbound.keys().copied().collect::<HashSet<_>>(), [old.spi_in, new.spi_in].into());
    let pair = live.outbound().expect("adopted").pair;
    assert!(live.inbound.contains_key(&pair) && live.standby.is_empty());
    assert_eq!(gateway.seal(1), Some((0x1002, vec![3])));
    gateway.reclaim();
    assert_eq!(gateway.tables.outbound().count(), 1, "the one that sealed before is of no use");
    // The one that seals goes with its inbound half, whichever that is taken to be.
    gateway.remove(pair);
    assert_eq!(gateway.seal(1), None);
}

#[test]
fn sas_to_another_peer_than_the_file_names_are_not_adopted() {
    let mut gateway = Gateway::new("192.0.2.2");
    let sa = gateway.negotiate(1);
    gateway.switch(&sa);
    gateway.plans = configuration(gateway.directory.path(), "192.0.2.3");
    let gateway = gateway.restart();
    assert_eq!((gateway.seal(1), gateway.inbound()), (None, HashSet::new()));
    assert_eq!(gateway.tunnels.get("t").expect("there").peer().to_string(), "192.0.2.3");
}

#[test]
fn a_worker_seals_with_its_own_sa_as_long_as_there_is_a_shared_one() {
    let mut gateway = Gateway::new("192.0.2.2");
    let seals = |gateway: &Gateway, worker| {
        let view = gateway.view();
        let slot = view.tunnels().find_map(|(_, tunnel)| tunnel.outbound_of(worker))?;
        view.outbound(slot).expect("live").0.spi()
    };
    let (shared, mut own) = (gateway.negotiate(1), gateway.negotiate(2));
    own.resource = Some(1);
    let error =
        gateway.tunnels.switch_to(&mut gateway.tables, &gateway.state, &own).expect_err("no shared one");
    assert!(error.to_string().contains("the tunnel has none for all"), "{error}");
    gateway.switch(&shared);
    gateway.switch(&own);
    assert_eq!([seals(&gateway, 0), seals(&gateway, 1)], [Some(0x1001), Some(0x1002)]);
    // It is replaced like any other.
    let mut new = gateway.negotiate(3);
    new.resource = Some(1);
    gateway.switch(&new);
    gateway.remove(own.spi_in);
    assert_eq!([seals(&gateway, 0), seals(&gateway, 1)], [Some(0x1001), Some(0x1003)]);
    // A restarted control has workers share again.
    let mut gateway = gateway.restart();
    assert_eq!([seals(&gateway, 0), seals(&gateway, 1)], [Some(0x1001); 2]);
    gateway.reclaim();
    assert_eq!(gateway.tables.outbound().count(), 1);
    let pair = gateway.tunnels.get("t").expect("there").outbound().expect("shared").pair;
    gateway.remove(pair);
    assert_eq!([seals(&gateway, 0), seals(&gateway, 1)], [None; 2]);
}

/// An SA for these ranges.
fn child_of(spi_in: u32, number: u8, local: (&str, &str), remote: (&str, &str)) -> ChildSa {
    let range = |(start, end): (&str, &str)| {
        let (start, end) = (start.parse().expect("address"), end.parse().expect("address"));
        vec![TrafficSelector { start, end, ..TrafficSelector::any_v4() }]
    };
    ChildSa { local_ts: range(local), remote_ts: range(remote), ..child_sa(spi_in, number) }
}

impl Gateway {
    fn negotiate_for(&mut self, number: u8, local: (&str, &str), remote: (&str, &str)) -> ChildSa {
        let sa = child_of(self.tables.allocate_spi().expect("room"), number, local, remote);
        self.tunnels.install_inbound(&mut self.tables, &self.state, &sa).expect("installed");
        self.switch(&sa);
        sa
    }

    /// SPI that a packet leaves with, and whether one that comes by the SA passes, as the data plane finds both.
    fn leaves_by(&self, source: u32, destination: u32) -> Option<u32> {
        let view = self.view();
        let own = view.tunnels().find(|(slot, tunnel)| tunnel.group() == *slot).expect("a tunnel").1;
        let next = |tunnel: &&penstock_tables::Tunnel| view.tunnel(tunnel.next()?);
        let mut all: Vec<_> = std::iter::successors(Some(own), next).collect();
        all.rotate_left(1);
        let covers = |tunnel: &penstock_tables::Tunnel| tunnel.covers_outbound(source, destination);
        let sealing =
            all.into_iter().filter(|one| covers(own) && covers(one)).find_map(|one| one.outbound())?;
        view.outbound(sealing).map(|(_, spi)| spi)
    }

    fn lets_in(&self, spi_in: u32, source: u32, destination: u32) -> bool {
        let view = self.view();
        let tunnel =
            view.tunnel(view.inbound(view.inbound_slot(spi_in).expect("there")).tunnel()).expect("live");
        let own = view.tunnel(tunnel.group()).expect("live");
        [tunnel, own].iter().all(|one| one.covers_inbound(source, destination))
    }
}

const HERE: [(&str, &str); 2] = [("10.1.0.0", "10.1.0.255"), ("10.1.1.0", "10.1.1.255")];
const THERE: [(&str, &str); 2] = [("10.2.0.0", "10.2.0.255"), ("10.2.1.0", "10.2.1.255")];
const AT: [[u32; 2]; 2] = [[0x0a01_0007, 0x0a01_0107], [0x0a02_0007, 0x0a02_0107]];

#[test]
fn each_pair_of_networks_seals_with_its_own_child_through_rekeys_and_a_restart() {
    let mut gateway = Gateway::new("192.0.2.2");
    let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let mut sas: Vec<ChildSa> = Vec::new();
    for (number, (here, there)) in (1..).zip(pairs) {
        sas.push(gateway.negotiate_for(number, HERE[here], THERE[there]));
    }
    let check = |gateway: &Gateway, spis: [u32; 4]| {
        for ((here, there), spi) in pairs.into_iter().zip(spis) {
            assert_eq!(gateway.leaves_by(AT[0][here], AT[1][there]), Some(spi), "{here} to {there}");
        }
    };
    check(&gateway, [0x1001, 0x1002, 0x1003, 0x1004]);
    for (sa, (here, there)) in sas.iter().zip(pairs) {
        for (to, from) in pairs {
            let inside = gateway.lets_in(sa.spi_in, AT[1][from], AT[0][to]);
            assert_eq!(inside, (to, from) == (here, there), "{here} to {there}: {to} from {from}");
        }
    }
    assert_eq!(gateway.tables.tunnels().count(), 5);
    // A rekey of one takes its place, and the others stay.
    let new = gateway.negotiate_for(9, HERE[1], THERE[0]);
    gateway.remove(sas[2].spi_in);
    check(&gateway, [0x1001, 0x1002, 0x1009, 0x1004]);
    assert_eq!(gateway.tables.tunnels().count(), 5);
    let mut gateway = gateway.restart();
    gateway.reclaim();
    check(&gateway, [0x1001, 0x1002, 0x1009, 0x1004]);
    assert_eq!(gateway.inbound().len(), 4);
    // One goes: its pair alone is without an SA, and its slot is free.
    gateway.remove(new.spi_in);
    assert_eq!(gateway.leaves_by(AT[0][1], AT[1][0]), None);
    assert_eq!(gateway.leaves_by(AT[0][1], AT[1][1]), Some(0x1004));
    assert_eq!(gateway.tables.tunnels().count(), 4);
    [0, 1, 3].iter().for_each(|at| gateway.remove(sas[*at].spi_in));
    assert_eq!((gateway.tables.tunnels().count(), gateway.seal(1)), (1, None));
    assert!(gateway.tunnels.get("t").expect("there").negotiated.is_none());
}

#[test]
fn any_range_is_covered_exactly_and_what_does_not_fit_is_refused_by_name() {
    let mut gateway = Gateway::new("192.0.2.2");
    let sa = gateway.negotiate_for(1, ("10.1.0.1", "10.1.0.6"), ("10.2.0.1", "10.2.255.254"));
    let first = |last: u32| gateway.leaves_by(0x0a01_0001, last);
    assert_eq!([first(0x0a02_0001), first(0x0a02_8000), first(0x0a02_fffe)], [Some(0x1001); 3]);
    assert_eq!([first(0x0a02_0000), first(0x0a02_ffff)], [None; 2], "the peer did not agree to these");
    assert_eq!(gateway.leaves_by(0x0a01_0007, 0x0a02_0001), None);
    assert!(gateway.lets_in(sa.spi_in, 0x0a02_fffe, 0x0a01_0006));
    assert!(!gateway.lets_in(sa.spi_in, 0x0a02_ffff, 0x0a01_0006));
    let mut many = child_sa(gateway.tables.allocate_spi().expect("room"), 2);
    let one = |at: u8| TrafficSelector::network([10, 2, at, 0].into(), 25);
    many.remote_ts = (0..17).map(one).collect();
    let error =
        gateway.tunnels.install_inbound(&mut gateway.tables, &gateway.state, &many).expect_err("refused");
    assert_eq!(error.to_string(), "its selectors have 17 ranges on one side, and a tunnel holds 16");
    assert_eq!(gateway.inbound(), [sa.spi_in].into());
}

#[test]
fn a_file_with_other_selectors_holds_at_once_and_the_old_child_carries_what_both_allow() {
    let mut gateway = Gateway::new("192.0.2.2");
    let old = gateway.negotiate_for(1, ("10.1.0.0", "10.1.255.255"), ("10.2.0.0", "10.2.255.255"));
    assert_eq!(gateway.tables.tunnels().count(), 1, "the selectors of the file need no other slot");
    let text = TEXT.replace("10.2.0.0/16", "10.2.1.0/24").replace("PEER", "192.0.2.2");
    gateway.plans = planned(gateway.directory.path(), &text);
    assert_eq!(
        gateway.settle(),
        penstock_control::publish::tunnels::Changes { updated: 1, ..Default::default() }
    );
    assert_eq!(gateway.leaves_by(AT[0][0], AT[1][1]), Some(0x1001));
    assert_eq!(gateway.leaves_by(AT[0][0], AT[1][0]), None, "the file has it no more");
    assert!(
        gateway.lets_in(old.spi_in, AT[1][1], AT[0][0]) && !gateway.lets_in(old.spi_in, AT[1][0], AT[0][0])
    );
    let mut gateway = gateway.restart();
    gateway.reclaim();
    assert_eq!(gateway.leaves_by(AT[0][0], AT[1][1]), Some(0x1001), "adopted");
    // The new child stands in the tunnel's own slot; the old one goes.
    let new = gateway.negotiate_for(2, ("10.1.0.0", "10.1.255.255"), THERE[1]);
    gateway.remove(old.spi_in);
    assert_eq!(gateway.leaves_by(AT[0][0], AT[1][1]), Some(0x1002));
    assert_eq!(gateway.tables.tunnels().count(), 1);
    gateway.remove(new.spi_in);
    assert_eq!(gateway.leaves_by(AT[0][0], AT[1][1]), None);
}
