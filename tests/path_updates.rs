//! Ten thousand tunnels, SAs and routes come and go, by the real writer in a thread of its own, while workers seal and open at
//! full rate: every frame arrives, and each is counted once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use penstock_dataplane::crypto;
use penstock_dataplane::path::Worker;
use penstock_dataplane::port::Frame;
use penstock_dataplane::port::memory::MemoryPort;
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::{Packet, frame, ip};
use penstock_tables::{
    Capacity, Hop, InboundSpec, Note, OutboundSpec, Prefix, Selector, StateView, TablesWriter, TunnelSpec,
    Verdict,
};

const MANY: u32 = 10_000;
/// Tunnels that come or go between two publications of routes.
const STEP: usize = 500;
const CAPACITY: Capacity =
    Capacity { tunnels: MANY + 16, replay_window: 1024, neighbours: 32, fib_groups: 4096 };

/// The next hop that [`end`] installs second: the other gateway.
const TO_PEER: u32 = 1;

/// How far the threads are. Whoever leaves early, by a failed assertion, lets the others go.
#[derive(Default)]
struct Progress {
    added: AtomicUsize,
    go_on: AtomicBool,
    over: AtomicBool,
}

impl Progress {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

struct AtEnd<'a>(&'a Progress);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Release);
    }
}

/// The network behind the new tunnel `number`: a /26.
fn network(number: u32) -> u32 {
    ip(10, 64, 0, 0) + (number << 6)
}

fn end(number: u8, peer: u8) -> Gateway {
    let mut gateway = Gateway::with_capacity(Site::new(number), crypto::select(None).unwrap(), CAPACITY);
    let tunnel = gateway.tunnel(peer);
    gateway.seal_with(tunnel, peer, &sa_between(number, peer), Limits::default());
    gateway.open_with(tunnel, &sa_between(peer, number), 1024);
    gateway
}

/// How often a tunnel goes on in another slot.
const MOVES: u32 = 2000;
/// Slots that may wait for workers to pass before the next move.
const MOST_WAITING: usize = 1000;

/// What the thread that moves a tunnel works with.
struct Moving<'a> {
    writer: &'a mut TablesWriter,
    state: &'a StateView,
    routes: &'a mut BTreeMap<Prefix, Hop>,
}

/// One of the new tunnels: its slots.
type Slots = (u32, u32, u32);

fn add(number: u32, sa: &Sa, writer: &mut TablesWriter, state: &StateView) -> Slots {
    let any = Selector::ANY;
    let remote = Selector::prefix(network(number), 26);
    let tunnel = writer
        .add_tunnel(&TunnelSpec {
            name: format!("new{number}"),
            local: vec![any],
            remote: vec![remote],
            inner_mtu: 1400,
            interface: String::new(),
            peer: public(9),
        })
        .unwrap();
    let outbound = OutboundSpec {
        spi: 0x5000_0000 + number,
        tunnel,
        key: key_block(sa),
        esn: sa.esn,
        udp: false,
        dont_fragment: penstock_tables::DontFragment::Copy,
        template: [0x45; 28],
        last_used: 0,
        hard_limit: u64::from(u32::MAX),
        soft_log2: 20,
    };
    let outbound = writer.install_outbound(outbound, state).unwrap();
    writer.set_tunnel_adjacency(tunnel, Some(TO_PEER));
    writer.switch_outbound(tunnel, Some(outbound));
    let spi = writer.allocate_spi().unwrap();
    let inbound = InboundSpec { tunnel, key: key_block(sa), esn: sa.esn, window: 1024 };
    (tunnel, outbound, writer.install_inbound(spi, inbound, state))
}

/// Adds all, waits until it may go on, takes all out again, and waits until their keys are wiped.
fn update(
    writer: &mut TablesWriter,
    state: &StateView,
    routes: &mut BTreeMap<Prefix, Hop>,
    progress: &Progress,
) {
    let sa = sa_between(8, 9);
    let numbers: Vec<u32> = (0..MANY).collect();
    let mut slots = Vec::new();
    for numbers in numbers.chunks(STEP) {
        for number in numbers {
            let new = add(*number, &sa, writer, state);
            routes.insert(Prefix::new(network(*number), 26), Hop::Tunnel(new.0));
            slots.push(new);
        }
        writer.sync_routes(routes).unwrap();
        writer.reclaim(Some(state));
    }
    progress.added.fetch_add(1, Ordering::Release);
    while !progress.go_on.load(Ordering::Acquire) && !progress.is_over() {
        std::thread::yield_now();
    }
    for (numbers, slots) in numbers.chunks(STEP).zip(slots.chunks(STEP)) {
        for number in numbers {
            routes.remove(&Prefix::new(network(*number), 26));
        }
        writer.sync_routes(routes).unwrap();
        for (tunnel, outbound, inbound) in slots {
            writer.switch_outbound(*tunnel, None);
            writer.retire_outbound(*outbound);
            writer.retire_inbound(*inbound);
            writer.retire_tunnel(*tunnel);
        }
        writer.reclaim(Some(state));
    }
    while writer.reclaim(Some(state)) > 0 && !progress.is_over() {
        std::thread::yield_now();
    }
    progress.added.fetch_sub(1, Ordering::Release);
}

/// A burst from the host behind `near` to the host behind `far`; it must arrive whole.
fn through(near: &mut Worker<MemoryPort>, far: &mut Worker<MemoryPort>, octets: &[u8], arrives: &[u8]) {
    for _ in 0..64 {
        assert!(near.ports[PRIVATE].queue.inject(octets));
    }
    assert_eq!(near.run(1), 64);
    let sealed: Vec<Vec<u8>> =
        near.ports[PUBLIC].queue.drain_sent().map(|frame| frame.data().to_vec()).collect();
    assert_eq!(sealed.len(), 64);
    sealed.iter().for_each(|octets| assert!(far.ports[PUBLIC].queue.inject(octets)));
    assert_eq!(far.run(1), 64);
    let opened = far.ports[PRIVATE].queue.drain_sent().filter(|frame| frame.data() == arrives).count();
    assert_eq!(opened, 64);
}

/// A packet into each of the new tunnels. Returns how many were sealed.
fn into_each(near: &mut Worker<MemoryPort>) -> usize {
    let mut sent = 0;
    for number in 0..MANY {
        let packet = Packet::new(host(1), network(number) + 1, 17, 100).octets();
        assert!(near.ports[PRIVATE].queue.inject(&frame(mac(1, 0), mac(1, 2), None, &packet)));
        near.run(1);
        sent += near.ports[PUBLIC].queue.drain_sent().count();
    }
    sent
}

#[test]
fn ten_thousand_sas_and_routes_come_and_go_and_no_frame_is_lost() {
    let (mut near, mut far) = (end(1, 2), end(2, 1));
    let packet = between(1, 2, 200);
    let octets = frame(mac(1, 0), mac(1, 2), None, &packet.octets());
    // Two gateways take two hops of its TTL.
    let arrived = Packet { ttl: packet.ttl - 2, ..packet };
    let arrives = frame(mac(2, 2), mac(2, 0), None, &arrived.octets());
    let progress = Progress::default();
    let mut bursts = 0;
    let Gateway { worker: near_worker, writer: near_writer, state: near_state, routes: near_routes, .. } =
        &mut near;
    let Gateway { worker: far_worker, writer: far_writer, state: far_state, routes: far_routes, .. } =
        &mut far;
    let of_new = std::thread::scope(|scope| {
        let _at_end = AtEnd(&progress);
        scope.spawn(|| update(near_writer, near_state, near_routes, &progress));
        scope.spawn(|| update(far_writer, far_state, far_routes, &progress));
        while progress.added.load(Ordering::Acquire) < 2 {
            through(near_worker, far_worker, &octets, &arrives);
            bursts += 1;
        }
        let of_new = into_each(near_worker);
        progress.go_on.store(true, Ordering::Release);
        while progress.added.load(Ordering::Acquire) > 0 {
            through(near_worker, far_worker, &octets, &arrives);
            bursts += 1;
        }
        of_new
    });
    let many = u64::from(MANY);
    assert_eq!((of_new as u64, into_each(near_worker)), (many, 0), "into the new tunnels: there, and gone");
    let (near, far) = (&near_worker.tally, &far_worker.tally);
    assert_eq!(near.received, 64 * bursts + 2 * many);
    assert_eq!((near.of(Verdict::Sent), near.of(Verdict::NoRoute)), (64 * bursts + many, many));
    assert_eq!(
        (far.received, far.of(Verdict::Sent), far.noted(Note::Opened)),
        (64 * bursts, 64 * bursts, 64 * bursts)
    );
    assert_eq!((near.ended(), far.ended()), (near.received, far.received));
}

/// Lets a tunnel go on in another slot with other selectors, again and again, its SAs and routes with it.
fn move_on(gateway: &mut Moving<'_>, peer: u8, progress: &Progress) {
    let Moving { writer, state, routes } = gateway;
    let spec = |slot: u32, writer: &TablesWriter| writer.tunnel(slot).spec();
    for step in 0..MOVES {
        let (slot, tunnel) = writer.tunnels().next().expect("the tunnel");
        let (way, sealing) = (tunnel.adjacency(), tunnel.outbound());
        // The packets that pass stay covered: at first by a network, then by a range that is none.
        let remote = Selector { first: host(peer) - step % 2, last: host(peer) + 7 * (step % 3) };
        let spec = TunnelSpec { remote: vec![Selector { first: 1, last: 9 }, remote], ..spec(slot, writer) };
        let new = writer.add_tunnel(&spec).unwrap();
        writer.set_tunnel_adjacency(new, way);
        writer.switch_outbound(new, sealing);
        routes.values_mut().filter(|hop| **hop == Hop::Tunnel(slot)).for_each(|hop| *hop = Hop::Tunnel(new));
        writer.sync_routes(routes).unwrap();
        let inbound: Vec<u32> = writer.inbound().map(|(sa, _)| sa).collect();
        inbound.into_iter().for_each(|sa| writer.move_inbound(sa, new));
        writer.retire_tunnel(slot);
        // And what may change in place.
        writer.update_tunnel(new, &TunnelSpec { inner_mtu: 1400 + step as u16 % 2, ..spec }).unwrap();
        while writer.reclaim(Some(state)) > MOST_WAITING && !progress.is_over() {
            std::thread::yield_now();
        }
    }
    progress.added.fetch_add(1, Ordering::Release);
}

#[test]
fn a_tunnel_whose_selectors_change_loses_no_frame() {
    let (mut near, mut far) = (end(1, 2), end(2, 1));
    let packet = between(1, 2, 200);
    let octets = frame(mac(1, 0), mac(1, 2), None, &packet.octets());
    let arrived = Packet { ttl: packet.ttl - 2, ..packet };
    let arrives = frame(mac(2, 2), mac(2, 0), None, &arrived.octets());
    let progress = Progress::default();
    let Gateway { worker: near_worker, writer, state, routes, .. } = &mut near;
    let mut near_tables = Moving { writer, state, routes };
    let Gateway { worker: far_worker, writer, state, routes, .. } = &mut far;
    let mut far_tables = Moving { writer, state, routes };
    let mut bursts = 0;
    std::thread::scope(|scope| {
        let _at_end = AtEnd(&progress);
        scope.spawn(|| move_on(&mut near_tables, 2, &progress));
        scope.spawn(|| move_on(&mut far_tables, 1, &progress));
        while progress.added.load(Ordering::Acquire) < 2 {
            through(near_worker, far_worker, &octets, &arrives);
            bursts += 1;
        }
    });
    assert_eq!(near_worker.tally.of(Verdict::Sent), 64 * bursts);
    assert_eq!(far_worker.tally.of(Verdict::Sent), 64 * bursts);
}
