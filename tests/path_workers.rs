//! Workers that run at the same time: no number is used twice by an SA that all of them seal with, one tunnel spread over them
//! keeps its order, and their books balance whenever control reads them. `path_spread` steps them by hand instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use penstock_dataplane::path::Worker;
use penstock_dataplane::path::spread::Role;
use penstock_dataplane::port::memory::{MemoryPool, MemoryPort};
use penstock_dataplane::port::{BURST, Frame};
use penstock_suite::esp::Sa;
use penstock_suite::memory::*;
use penstock_suite::packets::*;
use penstock_tables::{Note, StateView, Verdict};

const ALONE: Role = Role { receiver: true, alone: true };
const EACH: Role = Role { receiver: true, alone: false };
const HELPER: Role = Role { receiver: false, alone: false };

/// A bit for each number.
struct Seen(Vec<AtomicU64>);

impl Seen {
    fn new(numbers: u64) -> Seen {
        Seen((0..=numbers / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether it is new.
    fn insert(&self, number: u64) -> bool {
        let bit = 1 << (number % 64);
        self.0[(number / 64) as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }
}

/// Site 1 with a tunnel to site 2 that seals with one SA.
fn site(roles: &[Role]) -> (Gateway, Vec<Worker<MemoryPort>>, Sa, u32) {
    let (mut gateway, others) = Gateway::with_crew(Site::new(1), roles, 8192);
    let sa = sa_between(1, 2);
    let tunnel = gateway.tunnel(2);
    gateway.seal_with(tunnel, 2, &sa, Limits::default());
    (gateway, others, sa, tunnel)
}

/// SPI and number of an ESP frame.
fn number_of(frame: &[u8]) -> (u32, u64) {
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let iv = u64::from(word(42)) << 32 | u64::from(word(46));
    assert_eq!(word(38), iv as u32, "number and IV");
    (word(34), iv)
}

/// Lets a worker seal `count` packets of its own; returns an ESP packet of each thousand.
fn seal(mut worker: Worker<MemoryPort>, now: u64, count: u64, seen: &Seen, spi: u32) -> Vec<Vec<u8>> {
    let packet = between(1, 2, 64).octets();
    let octets = frame(mac(1, 0), mac(1, 2), None, &packet);
    // A pool of its own, so that the workers wait for nothing but the SA.
    let pool = MemoryPool::new(4 * BURST);
    let (mut kept, mut sealed) = (vec![], 0);
    while sealed < count {
        for _ in 0..BURST.min((count - sealed) as usize) {
            worker.ports[PRIVATE].queue.inject_frame(pool.frame(&octets).expect("a frame"));
        }
        worker.run(now);
        for frame in worker.ports[PUBLIC].queue.drain_sent() {
            let (its, number) = number_of(frame.data());
            assert_eq!(its, spi);
            assert!(seen.insert(number), "number {number} is used twice");
            if number % 1000 == 0 {
                kept.push(frame.data().to_vec());
            }
            sealed += 1;
        }
    }
    assert_eq!((worker.tally.received, worker.tally.of(Verdict::Sent)), (count, count));
    kept
}

#[test]
fn no_number_is_used_twice_by_two_workers_that_seal_with_one_sa() {
    let log2 = if std::env::var_os("PENSTOCK_NIGHTLY").is_some() { 24 } else { 20 };
    let each = 1u64 << (log2 - 1);
    let (gateway, others, sa, _) = site(&[EACH, EACH]);
    let now = gateway.now;
    let seen = Seen::new(2 * each);
    let kept: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let seen = &seen;
        let workers = std::iter::once(gateway.worker).chain(others);
        let threads: Vec<_> =
            workers.map(|worker| scope.spawn(move || seal(worker, now, each, seen, sa.spi))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("worker")).collect()
    });
    assert_eq!(seen.count(), 2 * each, "as many numbers as packets");
    assert!(seen.insert(2 * each + 1) && !seen.insert(1) && !seen.insert(2 * each), "1 to {}", 2 * each);
    assert!(kept.len() as u64 >= 2 * each / 1000);
    for frame in &kept {
        assert!(sa.open(&frame[34..]).is_some(), "another implementation opens it");
    }
}

/// Reads the counters of all workers until told to stop; each reading balances.
fn audit(state: &StateView, stop: &AtomicBool) -> u64 {
    let mut readings = 0;
    while !stop.load(Ordering::Relaxed) {
        for (number, worker) in state.workers().iter().enumerate() {
            let tally = worker.read();
            assert_eq!(tally.received, tally.ended(), "received = sent + punted + drops, of worker {number}");
            readings += 1;
        }
        std::thread::yield_now();
    }
    readings
}

/// Feeds worker 0 with `count` frames that `make` makes, lets `others` help it meanwhile, and returns what `port` sent.
fn spread(
    gateway: Gateway,
    others: Vec<Worker<MemoryPort>>,
    (from, to): (usize, usize),
    count: u64,
    make: impl Fn(u64) -> Vec<u8>,
    mut take: impl FnMut(&[u8]),
) -> Vec<penstock_tables::worker::Tally> {
    let (stop, now) = (Arc::new(AtomicBool::new(false)), gateway.now);
    let Gateway { mut worker, state, .. } = gateway;
    let pool = MemoryPool::new(64 * BURST);
    std::thread::scope(|scope| {
        let (stop, state) = (&stop, &state);
        let auditor = scope.spawn(move || audit(state, stop));
        let helpers: Vec<_> = others
            .into_iter()
            .map(|mut helper| {
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        if helper.run(now) == 0 {
                            std::thread::yield_now();
                        }
                    }
                    helper.publish();
                    helper.tally
                })
            })
            .collect();
        let (mut fed, mut taken) = (0, 0);
        while taken < count {
            while fed < count && worker.ports[from].queue.waiting() < BURST {
                let Some(frame) = pool.frame(&make(fed + 1)) else { break };
                worker.ports[from].queue.inject_frame(frame);
                fed += 1;
            }
            worker.run(now);
            let before = taken;
            for frame in worker.ports[to].queue.drain_sent() {
                take(frame.data());
                taken += 1;
            }
            if taken == before {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        let tallies = std::iter::once(worker.tally.clone());
        let tallies =
            tallies.chain(helpers.into_iter().map(|helper| helper.join().expect("helper"))).collect();
        assert!(auditor.join().expect("auditor") > 0);
        tallies
    })
}

const PACKETS: u64 = 40_000;

fn numbered(from: u8, to: u8, number: u64) -> Vec<u8> {
    let mut packet = between(from, to, 60 + (number as usize * 31) % 1200);
    packet.payload[..8].copy_from_slice(&number.to_be_bytes());
    packet.octets()
}

#[test]
fn a_tunnel_that_three_workers_seal_keeps_its_order() {
    let (gateway, others, sa, _) = site(&[ALONE, HELPER, HELPER]);
    let make = |number| frame(mac(1, 0), mac(1, 2), None, &numbered(1, 2, number));
    let mut next = 1;
    let tallies = spread(gateway, others, (PRIVATE, PUBLIC), PACKETS, make, |frame| {
        assert_eq!(number_of(frame), (sa.spi, next), "numbers ascend one by one");
        if next % 16 == 0 {
            let (_, inner) = sa.open(&frame[34..]).expect("another implementation opens it");
            assert_eq!(
                u64::from_be_bytes(inner[20..28].try_into().unwrap()),
                next,
                "in the order of arrival"
            );
        }
        next += 1;
    });
    assert_eq!(tallies[0].of(Verdict::Sent), PACKETS);
    let helped: u64 = tallies[1..].iter().map(|tally| tally.noted(Note::Helped)).sum();
    assert_eq!((tallies[0].noted(Note::Handed), tallies[0].noted(Note::Returned)), (helped, helped));
}

#[test]
fn a_tunnel_that_three_workers_open_keeps_its_order_with_a_window_of_64() {
    let (mut gateway, others, _, tunnel) = site(&[ALONE, HELPER, HELPER]);
    let sa = sa_between(2, 1);
    gateway.open_with(tunnel, &sa, 64);
    let make = |number| {
        let packet = outer(2, 1, &sa, &sa.seal(number, &numbered(2, 1, number)));
        frame(mac(1, 1), mac(99, 1), None, &packet.octets())
    };
    let mut next = 1;
    let tallies = spread(gateway, others, (PUBLIC, PRIVATE), PACKETS, make, |frame| {
        assert_eq!(u64::from_be_bytes(frame[34..42].try_into().unwrap()), next, "in the order of arrival");
        next += 1;
    });
    assert_eq!((tallies[0].of(Verdict::Sent), tallies[0].noted(Note::Opened)), (PACKETS, PACKETS));
    let drops: u64 = tallies.iter().flat_map(|tally| Verdict::drops().map(|drop| tally.of(drop))).sum();
    assert_eq!(drops, 0, "no replays");
}
