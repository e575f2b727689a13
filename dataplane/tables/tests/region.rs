//! The region as two processes see it: who may write, what survives, what is refused, what is wiped.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use penstock_tables::TableFull;
use penstock_tables::segment::Kind;
use penstock_tables::tunnel::WORKER_SAS;
use penstock_tables::*;

const CAPACITY: Capacity = Capacity { tunnels: 64, replay_window: 256, neighbours: 32, fib_groups: 64 };

fn key(octet: u8) -> KeyBlock {
    KeyBlock::expand(Cipher::Aes128Gcm16, &[octet; 16], [octet; 4]).unwrap()
}

fn inbound(tunnel: u32, octet: u8) -> InboundSpec {
    InboundSpec { tunnel, key: key(octet), esn: true, window: 128 }
}

fn outbound(tunnel: u32, spi: u32, octet: u8, last_used: u64) -> OutboundSpec {
    OutboundSpec {
        spi,
        tunnel,
        key: key(octet),
        esn: true,
        udp: false,
        dont_fragment: DontFragment::Copy,
        template: [7; 28],
        last_used,
        hard_limit: u64::MAX - 1,
        soft_log2: 20,
    }
}

fn tunnel(name: &str) -> TunnelSpec {
    let selector = Selector::prefix;
    TunnelSpec {
        name: name.into(),
        local: vec![selector(0x0a01_0000, 16)],
        remote: vec![selector(0x0a02_0000, 16), selector(0x0a03_0000, 24)],
        inner_mtu: 1438,
        interface: "tofrankfurt".into(),
        peer: 0xc000_0202,
    }
}

fn pair(directory: &Path) -> (TablesWriter, StateOwner, TablesView, StateView) {
    let writer = TablesWriter::open(directory, CAPACITY).unwrap();
    let owner = StateOwner::open(directory, CAPACITY, 2).unwrap();
    (writer, owner, TablesView::open(directory).unwrap(), StateView::open(directory).unwrap())
}

fn step(owner: &StateOwner) {
    (0..4).for_each(|step| quiescence::step(&owner.worker(step % 2).quiescent));
}

#[test]
fn an_sa_is_seen_whole_used_and_wiped() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("frankfurt")).unwrap();
    assert_eq!(tables.tunnel(slot).unwrap().outbound(), None);
    assert_eq!(tables.tunnel(slot).unwrap().spec(), tunnel("frankfurt"));
    let spi = writer.allocate_spi().unwrap();
    assert_eq!(tables.inbound_slot(spi), None);
    let at = writer.install_inbound(spi, inbound(slot, 1), &state);
    assert_eq!(tables.inbound_slot(spi), Some(at));
    assert_eq!(tables.inbound(at).epoch(), owner.epoch());
    let sealing = writer.install_outbound(outbound(slot, 0x1234, 2, 0), &state).unwrap();
    writer.switch_outbound(slot, Some(sealing));
    let (sa, spi) = tables.outbound(tables.tunnel(slot).unwrap().outbound().unwrap()).unwrap();
    assert_eq!(spi, 0x1234);
    assert_eq!((sa.spi(), sa.esn(), sa.udp(), sa.template()), (Some(0x1234), true, false, &[7; 28]));
    assert_eq!(owner.outbound(sealing).reserve(1, sa.offset(), sa.hard_limit()).take(), Some(1));

    writer.switch_outbound(slot, None);
    writer.retire_outbound(sealing);
    let led_there = tables.outbound(sealing).map(|(_, spi)| spi);
    assert_eq!(led_there, Some(0x1234), "a worker that was led there before may still seal with it");
    assert_eq!(tables.outbound_key(sealing).raw_key(), &[2; 16], "a worker may still use it");
    assert_eq!((writer.reclaim(Some(&state)), writer.reclaim(Some(&state))), (1, 1));
    (0..5).for_each(|_| quiescence::step(&owner.worker(0).quiescent));
    assert_eq!(writer.reclaim(Some(&state)), 1, "one of two workers");
    quiescence::step(&owner.worker(1).quiescent);
    assert_eq!(writer.reclaim(Some(&state)), 1, "packets may wait across one step");
    quiescence::step(&owner.worker(1).quiescent);
    assert_eq!(writer.reclaim(Some(&state)), 0);
    assert!(tables.outbound(sealing).is_none());
    assert_eq!(tables.outbound_key(sealing).raw_key(), &[0u8; 0], "wiped");
    assert_eq!(tables.outbound_key(sealing).salt(), [0; 4]);
}

#[test]
fn a_worker_seals_with_its_own_sa_where_it_has_one_and_with_the_shared_one_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, _owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("frankfurt")).unwrap();
    let mut install = |spi| writer.install_outbound(outbound(slot, spi, spi as u8, 0), &state).unwrap();
    let (shared, own) = (install(0x1001), install(0x1002));
    let used = |worker| tables.tunnel(slot).unwrap().outbound_of(worker);
    writer.switch_outbound(slot, Some(shared));
    assert_eq!(
        (used(0), used(3), used(WORKER_SAS), used(63)),
        (Some(shared), Some(shared), Some(shared), Some(shared))
    );
    assert!(writer.switch_outbound_of_worker(slot, 3, Some(own)));
    assert_eq!((used(0), used(3), used(63)), (Some(shared), Some(own), Some(shared)));
    assert_eq!(tables.tunnel(slot).unwrap().own_outbound_of(3), Some(own));
    assert_eq!(tables.tunnel(slot).unwrap().own_outbound_of(0), None);
    assert!(!writer.switch_outbound_of_worker(slot, WORKER_SAS, Some(own)), "no room for that worker");
    assert_eq!(used(WORKER_SAS), Some(shared));
    assert!(writer.switch_outbound_of_worker(slot, 3, None));
    assert_eq!(used(3), Some(shared));
    writer.switch_outbound_of_worker(slot, 0, Some(own));
    writer.switch_outbound(slot, None);
    assert_eq!((used(0), used(1)), (None, None), "a stopped tunnel is stopped for every worker");
}

/// A reader asks again and again whether a tunnel covers a packet, while the writer works on it. Returns how often it did not.
fn refused_during(tables: &TablesView, slot: u32, work: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut asked, mut refused) = (0u64, 0);
            while !over.load(Ordering::Relaxed) || asked < 1000 {
                let tunnel = tables.tunnel(slot).expect("live");
                let covers = tunnel.covers_outbound(0x0a01_0102, 0x0a03_0004)
                    && tunnel.covers_inbound(0x0a02_0304, 0x0a01_0102);
                (asked, refused) = (asked + 1, refused + u64::from(!covers));
            }
            refused
        });
        work();
        over.store(true, Ordering::Relaxed);
        reader.join().expect("the reader")
    })
}

#[test]
fn a_live_tunnel_that_is_changed_covers_the_same_throughout() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, _owner, tables, _state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("frankfurt")).unwrap();
    let refused = refused_during(&tables, slot, || {
        for step in 0..200_000u32 {
            let spec = TunnelSpec { inner_mtu: 1400 + (step % 2) as u16, ..tunnel("frankfurt") };
            writer.update_tunnel(slot, &spec).unwrap();
        }
    });
    assert_eq!(refused, 0, "packets that the tunnel covers");
    let moved = TunnelSpec { inner_mtu: 1300, interface: "tun7".into(), peer: 7, ..tunnel("frankfurt") };
    writer.update_tunnel(slot, &moved).unwrap();
    assert_eq!(tables.tunnel(slot).unwrap().spec(), moved);
}

#[test]
fn selectors_of_a_live_slot_stay_and_children_are_linked_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("a")).unwrap();
    let other = TunnelSpec { remote: vec![Selector { first: 5, last: 9 }], ..tunnel("a") };
    assert!(matches!(writer.update_tunnel(slot, &other), Err(TableFull::Selectors(_))));
    let none = TunnelSpec { remote: vec![], ..tunnel("a") };
    let turned = TunnelSpec { remote: vec![Selector { first: 9, last: 5 }], ..tunnel("a") };
    assert!([none, turned].iter().all(|spec| matches!(writer.add_tunnel(spec), Err(TableFull::Tunnel(_)))));
    let chain = |from: u32| {
        let next = |slot: &u32| tables.tunnel(*slot).unwrap().next();
        std::iter::successors(Some(from), next).skip(1).collect::<Vec<_>>()
    };
    let children: Vec<u32> = (0..3).map(|_| writer.add_tunnel(&other).unwrap()).collect();
    assert_eq!(chain(slot), []);
    writer.link_tunnel(slot, &children);
    assert_eq!(chain(slot), children);
    writer.link_tunnel(slot, &[children[0], children[2]]);
    assert_eq!(chain(slot), [children[0], children[2]]);
    assert_eq!(chain(children[1]), [children[2]], "who stands there goes on");
    let of = |slot: u32| (tables.tunnel(slot).unwrap().group(), tables.tunnel(slot).unwrap().device());
    assert_eq!([of(slot), of(children[2])], [(slot, slot); 2]);
    // What is taken out serves those who were led there, until they have passed.
    writer.retire_tunnel(children[1]);
    assert!(tables.tunnel(children[1]).is_some());
    while writer.reclaim(Some(&state)) > 0 {
        step(&owner);
    }
    assert!(tables.tunnel(children[1]).is_none());
}

#[test]
fn a_number_is_never_handed_out_twice_across_reinstallation() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("a")).unwrap();
    let first = writer.install_outbound(outbound(slot, 0x1234, 2, 0), &state).unwrap();
    let (sa, _) = tables.outbound(first).unwrap();
    assert_eq!(owner.outbound(first).reserve(100, sa.offset(), u64::MAX - 1).left(), 100);
    let used = state.outbound(first).last_reserved(sa.offset());
    writer.retire_outbound(first);
    writer.reclaim(Some(&state));
    step(&owner);
    writer.reclaim(Some(&state));
    let again = writer.install_outbound(outbound(slot, 0x1234, 2, used), &state).unwrap();
    let (sa, _) = tables.outbound(again).unwrap();
    assert_eq!(owner.outbound(again).reserve(1, sa.offset(), u64::MAX - 1).take(), Some(101));
}

#[test]
fn both_segments_survive_both_processes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("a")).unwrap();
    let sealing = writer.install_outbound(outbound(slot, 0x1234, 2, 0), &state).unwrap();
    writer.switch_outbound(slot, Some(sealing));
    let hop = writer.add_adjacency(Ok(Adjacency { port: 1, mac: [2, 0, 0, 0, 0, 9] })).unwrap();
    let routes = BTreeMap::from([(Prefix::new(0x0a02_0000, 16), Hop::Tunnel(slot))]);
    writer.sync_routes(&routes).unwrap();
    let half_written = writer.allocate_spi().unwrap();
    let epoch = owner.epoch();
    let offset = tables.outbound(sealing).unwrap().0.offset();
    owner.outbound(sealing).reserve(500, offset, u64::MAX - 1);
    drop((writer, owner));

    let writer = TablesWriter::open(directory.path(), CAPACITY).unwrap();
    let owner = StateOwner::open(directory.path(), CAPACITY, 1).unwrap();
    assert_eq!(owner.epoch(), epoch);
    assert_eq!(
        writer.tunnels().map(|(slot, tunnel)| (slot, tunnel.spec().name)).collect::<Vec<_>>(),
        [(slot, "a".into())]
    );
    assert_eq!(
        writer.outbound().map(|(slot, sa)| (slot, sa.spi())).collect::<Vec<_>>(),
        [(sealing, Some(0x1234))]
    );
    assert_eq!(writer.inbound().count(), 0);
    assert_eq!(tables.inbound_slot(half_written), None);
    assert_eq!(*writer.routes(), routes);
    assert_eq!(
        writer.adjacencies().collect::<Vec<_>>(),
        [(hop, Ok(Adjacency { port: 1, mac: [2, 0, 0, 0, 0, 9] }))]
    );
    assert_eq!(owner.outbound(sealing).reserve(1, offset, u64::MAX - 1).take(), Some(501));
    assert!(state.data_plane_lives());
    drop(owner);
    assert!(!state.data_plane_lives());
}

#[test]
fn a_lost_state_orphans_what_counted_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, owner, tables, state) = pair(directory.path());
    let slot = writer.add_tunnel(&tunnel("a")).unwrap();
    let sealing = writer.install_outbound(outbound(slot, 0x1234, 2, 0), &state).unwrap();
    assert_eq!(tables.outbound(sealing).unwrap().0.epoch(), owner.epoch());
    drop(owner);
    std::fs::remove_file(directory.path().join("state")).unwrap();
    let fresh = StateOwner::open(directory.path(), CAPACITY, 2).unwrap();
    assert_ne!(tables.outbound(sealing).unwrap().0.epoch(), fresh.epoch());
    assert!(!state.is_current());
}

#[test]
fn every_role_is_taken_once_and_every_wrong_file_is_refused_with_advice() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, owner, ..) = pair(directory.path());
    let message = |error: RegionError| error.to_string();
    let second = message(TablesWriter::open(directory.path(), CAPACITY).unwrap_err());
    assert!(
        second.contains("another penstock (control) already runs") && second.contains("stop it first"),
        "{second}"
    );
    let second = message(StateOwner::open(directory.path(), CAPACITY, 1).unwrap_err());
    assert!(second.contains("another penstock-dataplane already runs"), "{second}");
    drop((writer, owner));

    let other = Capacity { tunnels: 65, ..CAPACITY };
    let refused = message(TablesWriter::open(directory.path(), other).unwrap_err());
    assert!(refused.contains("another `capacity`") && refused.contains("tunnels: 64"), "{refused}");

    let file = directory.path().join(Kind::Tables.file());
    let whole = std::fs::read(&file).unwrap();
    let refuse = |octets: &[u8], part: &str| {
        std::fs::write(&file, octets).unwrap();
        for refused in [
            TablesWriter::open(directory.path(), CAPACITY).map(drop).unwrap_err(),
            TablesView::open(directory.path()).map(drop).unwrap_err(),
        ] {
            assert!(refused.to_string().contains(part), "{refused} / {part}");
        }
    };
    let mut version = whole.clone();
    version[8] = 99;
    refuse(&version, "made by another version of Penstock (ABI 99");
    let mut layout = whole.clone();
    layout[16] ^= 1;
    refuse(&layout, "or the layouts differ");
    refuse(&whole[..10], "is no Penstock segment");
    refuse(&whole[..whole.len() / 2], "octets");
    refuse(&vec![0x55; whole.len()], "does not start with Penstock's mark");
    let mut kind = whole.clone();
    kind[12] = 2;
    refuse(&kind, "it is not the segment `tables`");
    std::fs::remove_file(&file).unwrap();
    let missing = TablesView::open(directory.path()).unwrap_err().to_string();
    assert!(missing.contains("is not there yet: start penstock (control) first"), "{missing}");
}

#[test]
fn files_are_private_and_kept_out_of_core_dumps() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("region");
    let _all = pair(&at);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&at), mode(&at.join("tables")), mode(&at.join("state"))), (0o700, 0o600, 0o600));
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut mine = 0;
    let mut inside = false;
    for line in maps.lines() {
        if line.contains("-") && line.split_whitespace().count() >= 5 && !line.starts_with("VmFlags") {
            inside = line.ends_with("region/tables") || line.ends_with("region/state");
        }
        if inside && line.starts_with("VmFlags") {
            assert!(line.contains(" dd"), "{line}");
            mine += 1;
        }
    }
    assert_eq!(mine, 4);
}

#[test]
fn fixed_spis_probe_and_random_ones_index() {
    let directory = tempfile::tempdir().unwrap();
    let (mut writer, _owner, tables, state) = pair(directory.path());
    let spis = [0x1001u32, 0x1101, 0x1201, 0x1301];
    for spi in spis {
        let slot = writer.reserve_spi(spi).unwrap();
        writer.install_inbound_at(slot, spi, inbound(0, 1), &state);
    }
    for (step, spi) in spis.iter().enumerate() {
        assert_eq!(tables.inbound_slot(*spi), Some(1 + step as u32));
    }
    assert_eq!(writer.reserve_spi(0x1101), Err(TableFull::Spi(0x1101)));
    assert_eq!(writer.reserve_spi(255), Err(TableFull::Spi(255)));
    for _ in 0..CAPACITY.inbound_slots() - spis.len() {
        let spi = writer.allocate_spi().unwrap();
        let slot = writer.install_inbound(spi, inbound(0, 1), &state);
        assert_eq!(tables.inbound_slot(spi), Some(slot));
    }
    assert_eq!(writer.allocate_spi(), Err(TableFull::Sas));
}

#[test]
fn no_room_is_an_error_that_says_what_to_do() {
    let huge = Capacity { tunnels: 1_000_000, replay_window: 65536, ..CAPACITY };
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let refused = StateOwner::open(directory.path(), huge, 1).unwrap_err().to_string();
    assert!(refused.contains("no room for") && refused.contains("lower `capacity`"), "{refused}");
    assert_eq!(std::fs::metadata(directory.path().join("state")).unwrap().len(), 0, "nothing is kept");
}
