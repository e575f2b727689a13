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
        let (gateway, left) = self.restart_control();
        assert_eq!(left, 0);
        gateway
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
        let slot = self.tunnels.get("t").expect("there").outbound.as_ref().expect("an SA").slot;
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
    let narrowed = &live.spec().remote[0];
    assert_eq!((narrowed.address, narrowed.mask), (0x0a02_0700, 0xffff_ff00));
    // Read again, the file does not widen what was negotiated.
    gateway.settle();
    assert_eq!(gateway.tunnels.get("t").expect("there").spec().remote[0].mask, 0xffff_ff00);
    gateway.remove(sa.spi_in);
    assert_eq!((gateway.seal(1), gateway.inbound()), (None, HashSet::new()));
    assert_eq!(gateway.tunnels.get("t").expect("there").spec().remote[0].mask, 0xffff_0000);
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
fn a_peer_that_moves_gets_no_number_twice() {
    let mut gateway = Gateway::new("192.0.2.2");
    let mut sa = gateway.negotiate(1);
    sa.encapsulation = Some(Encapsulation { local_port: 4500, remote_port: 61_000 });
    gateway.switch(&sa);
    assert_eq!(gateway.template()[20..24], [0x11, 0x94, 0xee, 0x48]);
    let (spi, before) = gateway.seal(100).expect("an SA");
    let old = gateway.tunnels.get("t").expect("there").outbound.clone().expect("an SA");
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
    assert_eq!(live.spec().remote[0].mask, 0xffff_ff00);
    assert_eq!(live.inbound.keys().copied().collect::<HashSet<_>>(), [old.spi_in, new.spi_in].into());
    let pair = live.outbound.as_ref().expect("adopted").pair;
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
        let slot = view.tunnels().next().expect("a tunnel").1.outbound_of(worker)?;
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
    let pair = gateway.tunnels.get("t").expect("there").outbound.as_ref().expect("shared").pair;
    gateway.remove(pair);
    assert_eq!([seals(&gateway, 0), seals(&gateway, 1)], [None; 2]);
}
