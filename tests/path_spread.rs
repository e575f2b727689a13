//! One tunnel on several workers: order, replay windows, numbers and counters hold whatever the workers' pace. Workers are
//! stepped by hand here, in an order that a seed decides; `path_workers` lets them run at the same time.

use std::collections::HashSet;

use penstock_dataplane::path::Worker;
use penstock_dataplane::path::spread::{DEPTH, HAND_MIN, PARCELS, Role};
use penstock_dataplane::port::memory::MemoryPort;
use penstock_dataplane::port::{BURST, Frame};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::quiescence;
use penstock_tables::{Note, Verdict};

const ALONE: Role = Role { receiver: true, alone: true };
const EACH: Role = Role { receiver: true, alone: false };
const HELPER: Role = Role { receiver: false, alone: false };

/// Site 1 with a tunnel to site 2 and a window of 64 packets, and several workers; the receiver is the gateway's own.
struct Crew {
    gateway: Gateway,
    others: Vec<Worker<MemoryPort>>,
    tunnel: u32,
    outbound: u32,
    to_peer: Sa,
    from_peer: Sa,
}

impl Crew {
    fn new(roles: &[Role]) -> Crew {
        let (mut gateway, others) = Gateway::with_crew(Site::new(1), roles, 4096);
        let (to_peer, from_peer) = (sa_between(1, 2), sa_between(2, 1));
        let tunnel = gateway.tunnel(2);
        let outbound = gateway.seal_with(tunnel, 2, &to_peer, Limits::default());
        gateway.open_with(tunnel, &from_peer, 64);
        Crew { gateway, others, tunnel, outbound, to_peer, from_peer }
    }

    /// One loop of worker `number`; its books balance after it, and are what control reads.
    fn step(&mut self, number: usize) -> usize {
        let now = self.gateway.now;
        let worker = match number {
            0 => &mut self.gateway.worker,
            other => &mut self.others[other - 1],
        };
        let busy = worker.run(now);
        worker.publish();
        let tally = &worker.tally;
        assert_eq!(tally.received, tally.ended(), "received = sent + punted + drops, of worker {number}");
        assert_eq!(self.gateway.state.workers()[number].read(), *tally);
        let out = self.noted(0, Note::Handed) - self.noted(0, Note::Returned);
        assert!(out <= (DEPTH * BURST * self.others.len()) as u64, "{out} frames are with helpers");
        busy
    }

    /// Steps workers in an order that `seed` decides until nothing waits.
    fn run(&mut self, seed: u64) {
        let (mut random, workers) = (seed.max(1), self.others.len() as u64 + 1);
        let mut idle = 0;
        while idle < 200 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let busy = self.step((random % workers) as usize);
            idle = if busy == 0 { idle + 1 } else { 0 };
        }
    }

    fn tally(&self, number: usize) -> &penstock_tables::worker::Tally {
        if number == 0 { &self.gateway.worker.tally } else { &self.others[number - 1].tally }
    }

    fn noted(&self, number: usize, note: Note) -> u64 {
        self.tally(number).noted(note)
    }

    fn of(&self, verdict: Verdict) -> u64 {
        (0..=self.others.len()).map(|number| self.tally(number).of(verdict)).sum()
    }

    fn drops(&self) -> Vec<(Verdict, u64)> {
        Verdict::drops().map(|drop| (drop, self.of(drop))).filter(|(_, count)| *count > 0).collect()
    }

    /// What left by a port of the receiver, in order.
    fn sent(&mut self, port: usize) -> Vec<Vec<u8>> {
        self.gateway.worker.ports[port].queue.drain_sent().map(|frame| frame.data().to_vec()).collect()
    }

    /// The peer's packet under this number, which its payload carries.
    fn peer_sends(&mut self, number: u64) {
        let inner = numbered(2, 1, number);
        let esp = self.from_peer.seal(number, &inner.octets());
        let packet = outer(2, 1, &self.from_peer, &esp);
        self.gateway.from_internet(&packet.octets());
    }

    fn host_sends(&mut self, number: u64) {
        self.gateway.from_host(&numbered(1, 2, number).octets());
    }

    /// The numbers in what left for the host, in order.
    fn delivered(&mut self) -> Vec<u64> {
        let site = self.gateway.site.number;
        let frames = self.sent(PRIVATE);
        frames.iter().map(|frame| number_in(self.gateway.packet_of(PRIVATE, mac(site, 2), frame))).collect()
    }

    /// Sequence numbers and the numbers in the payloads of what left for the peer, in order.
    fn sealed(&mut self) -> Vec<(u64, u64)> {
        let frames = self.sent(PUBLIC);
        let open = |frame: &Vec<u8>| {
            let (_, esp) = self.gateway.esp_of(2, &self.to_peer, frame);
            let (number, inner) = self.to_peer.open(&esp).expect("another implementation opens it");
            (number, number_in(&inner))
        };
        frames.iter().map(open).collect()
    }
}

/// A packet of a length that varies, with a number in its payload.
fn numbered(from: u8, to: u8, number: u64) -> Packet {
    let mut packet = between(from, to, 64 + (number as usize * 37) % 900);
    packet.payload[..8].copy_from_slice(&number.to_be_bytes());
    packet
}

fn number_in(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[20..28].try_into().unwrap())
}

/// A replay window of 64 packets as RFC 4303 section 3.4.3 has it: how many of these numbers it refuses.
fn refused_by_64(numbers: impl Iterator<Item = u64>) -> usize {
    let (mut seen, mut highest) = (HashSet::new(), 0);
    let refuses = |number: &u64| {
        let refuses = *number + 64 <= highest || !seen.insert(*number);
        highest = highest.max(*number);
        refuses
    };
    numbers.filter(refuses).count()
}

#[test]
fn what_is_sealed_by_many_leaves_in_order_and_no_window_of_64_refuses_it() {
    for (seed, workers) in (1..=8).zip([2, 3, 5].into_iter().cycle()) {
        let roles: Vec<Role> =
            std::iter::once(ALONE).chain(std::iter::repeat_n(HELPER, workers - 1)).collect();
        let mut crew = Crew::new(&roles);
        (1..=2000).for_each(|number| crew.host_sends(number));
        crew.run(seed);
        let sealed = crew.sealed();
        assert_eq!(sealed, (1..=2000).map(|number| (number, number)).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(refused_by_64(sealed.iter().map(|(number, _)| *number)), 0);
        let helped: u64 = (1..workers).map(|helper| crew.noted(helper, Note::Helped)).sum();
        assert!(
            helped > 0 && helped == crew.noted(0, Note::Handed) && helped == crew.noted(0, Note::Returned)
        );
        assert_eq!((crew.of(Verdict::Sent), crew.tally(0).of(Verdict::Sent)), (2000, 2000));
        assert_eq!(crew.drops(), []);
        assert_eq!(crew.gateway.frames_in_use(), 0, "frames lost");
    }
}

#[test]
fn what_is_opened_by_many_is_delivered_in_order_and_a_window_of_64_refuses_nothing() {
    for (seed, roles) in (11..=18).zip([vec![ALONE, HELPER], vec![EACH, EACH, EACH]].into_iter().cycle()) {
        let mut crew = Crew::new(&roles);
        (1..=2000).for_each(|number| crew.peer_sends(number));
        crew.run(seed);
        assert_eq!(crew.delivered(), (1..=2000).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(crew.drops(), []);
        assert!(crew.noted(0, Note::Handed) > 0);
        assert_eq!(crew.noted(0, Note::Opened), 2000);
        assert_eq!(crew.gateway.frames_in_use(), 0, "frames lost");
    }
}

#[test]
fn replays_forgeries_and_strangers_end_under_their_names_whoever_worked_on_them() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    for number in 1..=640 {
        crew.peer_sends(number);
        match number % 8 {
            // The same packet again, in the same burst: whoever opens it, it is marked once.
            0 => crew.peer_sends(number),
            // Far left of the window by then.
            1 if number > 200 => crew.peer_sends(number - 150),
            2 => {
                let mut esp = crew.from_peer.seal(10_000 + number, &numbered(2, 1, number).octets());
                *esp.last_mut().unwrap() ^= 1;
                let packet = outer(2, 1, &crew.from_peer, &esp);
                crew.gateway.from_internet(&packet.octets());
            }
            3 => crew.gateway.from_internet(&outer(2, 1, &crew.from_peer, &[7; 60]).octets()),
            // Plaintext has no business here; IKE is the kernel's.
            4 => crew.gateway.from_internet(&between(2, 1, 80).octets()),
            5 => {
                let ike = Packet::udp((public(2), 500), (public(1), 500), &[0; 40]);
                crew.gateway.from_internet(&ike.octets());
            }
            _ => {}
        }
    }
    crew.run(77);
    assert_eq!(crew.delivered(), (1..=640).collect::<Vec<_>>());
    let old = (1..=640).filter(|number| number % 8 == 1 && *number > 200).count() as u64;
    // With ESN, left of the window means the next epoch (RFC 4303 A2.2), where the tag is wrong.
    let refused = [Verdict::Replayed, Verdict::TooOld, Verdict::AuthFailed].map(|verdict| crew.of(verdict));
    assert_eq!(refused.iter().sum::<u64>(), 160 + old, "{refused:?}");
    assert!(refused[0] >= 80 && refused[2] >= 80, "{refused:?}");
    assert_eq!(crew.of(Verdict::UnknownSpi), 80);
    assert_eq!((crew.of(Verdict::ClearOnPublic), crew.of(Verdict::Punted)), (80, 80));
    assert!(crew.tally(1).received > 0, "some of them ended with the helper");
}

#[test]
fn a_helper_that_does_nothing_stops_the_tunnel_at_a_bound_and_loses_nothing() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    let all = (PARCELS + 6) * BURST;
    (1..=all as u64).for_each(|number| crew.host_sends(number));
    (0..100).for_each(|_| _ = crew.step(0));
    assert_eq!(crew.noted(0, Note::Handed), (DEPTH * BURST) as u64, "with the helper");
    assert_eq!(crew.gateway.worker.ports[PRIVATE].queue.waiting(), 6 * BURST, "left where they are");
    assert_eq!((crew.tally(0).received, crew.sealed().len()), (0, 0), "the first one is not back");
    crew.run(5);
    assert_eq!(crew.sealed(), (1..=all as u64).map(|number| (number, number)).collect::<Vec<_>>());
    assert_eq!(crew.drops(), []);
}

#[test]
fn a_small_burst_stays_with_its_worker() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    (1..HAND_MIN as u64).for_each(|number| crew.host_sends(number));
    assert_eq!(crew.step(0), HAND_MIN - 1);
    assert_eq!(crew.sealed().len(), HAND_MIN - 1, "sent in the same loop");
    (1..HAND_MIN as u64).for_each(|number| crew.peer_sends(number));
    crew.step(0);
    assert_eq!(crew.delivered().len(), HAND_MIN - 1);
    assert_eq!(crew.noted(0, Note::Handed), 0);
    // Behind a burst that is out it takes its turn.
    let first = HAND_MIN as u64;
    (first..first + BURST as u64).for_each(|number| crew.host_sends(number));
    crew.step(0);
    crew.host_sends(first + BURST as u64);
    (0..3).for_each(|_| _ = crew.step(0));
    assert_eq!(crew.sealed(), []);
    crew.run(3);
    let numbers = first..=first + BURST as u64;
    assert_eq!(crew.sealed(), numbers.map(|number| (number, number)).collect::<Vec<_>>());
}

#[test]
fn what_the_kernel_sends_into_the_tunnel_takes_its_turn_too() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    (1..=128).for_each(|number| crew.host_sends(number));
    crew.step(0);
    let site = crew.gateway.site.number;
    let inner = numbered(1, 2, 999);
    let octets = frame(mac(2, 1), mac(site, 0), None, &inner.octets());
    crew.gateway.from_kernel(penstock_dataplane::path::punt::Twin::Port(PRIVATE as u8), &octets);
    (0..4).for_each(|_| _ = crew.step(1));
    assert_eq!(
        crew.gateway.worker.twins.from_kernel.len() + crew.tally(1).noted(Note::FromKernel) as usize,
        1
    );
    assert_eq!(crew.tally(1).noted(Note::FromKernel), 0, "a helper leaves it to the receiver");
    crew.run(9);
    let sealed = crew.sealed();
    assert_eq!(sealed.len(), 129);
    assert_eq!(refused_by_64(sealed.iter().map(|(number, _)| *number)), 0);
    assert!(sealed.iter().zip(1..).all(|((number, _), place)| *number == place), "{sealed:?}");
}

#[test]
fn an_sa_is_not_wiped_while_packets_that_mean_it_wait() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    (1..=BURST as u64).for_each(|number| crew.host_sends(number));
    crew.step(0);
    assert_eq!(crew.noted(0, Note::Handed), BURST as u64);
    let (tunnel, old) = (crew.tunnel, crew.outbound);
    let key = crew.gateway.writer.outbound_key(old).raw_key().to_vec();
    crew.gateway.writer.switch_outbound(tunnel, None);
    crew.gateway.writer.retire_outbound(old);
    for _ in 0..50 {
        assert_ne!(crew.gateway.writer.reclaim(Some(&crew.gateway.state)), 0, "the burst is out");
        crew.step(0);
        // The helper is alive and has not looked at its ring yet.
        quiescence::step(&crew.gateway.worker.state.worker(1).quiescent);
    }
    assert_eq!(crew.gateway.writer.outbound_key(old).raw_key(), key, "still there");
    let successor = Sa::new(0x5151_5151).with_aes256();
    let new = crew.gateway.seal_with(tunnel, 2, &successor, Limits::default());
    assert_ne!(new, old, "another slot");
    crew.run(4);
    // Who was led to the old SA before it was replaced still seals with it: its numbers, its key.
    assert_eq!(crew.drops(), []);
    assert_eq!(crew.sealed(), (1..=BURST as u64).map(|number| (number, number)).collect::<Vec<_>>());
    for _ in 0..3 {
        (0..2).for_each(|worker| _ = crew.step(worker));
        crew.gateway.writer.reclaim(Some(&crew.gateway.state));
    }
    assert_eq!(crew.gateway.writer.reclaim(Some(&crew.gateway.state)), 0, "and then it is");
    assert_eq!(crew.gateway.writer.outbound_key(old).raw_key(), &[0u8; 0]);
    crew.to_peer = successor;
    crew.host_sends(1);
    crew.run(4);
    assert_eq!(crew.sealed(), [(1, 1)]);
}

#[test]
fn a_step_is_not_held_up_for_ever_by_traffic_that_never_ends() {
    let mut crew = Crew::new(&[ALONE, HELPER]);
    let (mut next, before) =
        (1, crew.gateway.worker.state.worker(0).quiescent.load(std::sync::atomic::Ordering::Relaxed));
    for _ in 0..200 {
        for _ in 0..BURST {
            crew.host_sends(next);
            next += 1;
        }
        crew.step(0);
        crew.step(0);
        crew.step(1);
        crew.sent(PUBLIC);
        assert!(
            crew.gateway.worker.spread.waits()
                || crew.noted(0, Note::Handed) == crew.noted(0, Note::Returned)
        );
    }
    let after = crew.gateway.worker.state.worker(0).quiescent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(after - before > 20, "{} quiescent points in 400 loops under load", after - before);
}
