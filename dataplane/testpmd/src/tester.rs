//! The tester of RFC 2544 beside a gateway: offers packets at a rate on one port, takes them back on another, and tells what was
//! lost (section 26.1) and how long the others took (26.2), from before they are handed over until after they are taken.
//!
//! A packet that comes back as plaintext carries the time of its departure. One that was sealed is known by its sequence number:
//! the gateway seals in order of arrival, and numbers begin at 1.

use std::time::{Duration, Instant};

use super::generator::{Generator, HEADERS};
use super::histogram::Histogram;
use super::options::{Mode, Size};
use super::sites::MACS;
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::dpdk::{Mbuf, Pool};
use penstock_dataplane::port::dpdk::DpdkPort;
use penstock_dataplane::port::{Burst, Frame, Port};
use penstock_dataplane::wire::{esp, ethernet, ipv4};

/// Packets that may be under way.
const STAMPS: usize = 1 << 16;
/// Packets of a burst at most.
const BURST: f64 = 32.0;
/// How long packets may take to come back after the last one.
const DRAIN: Duration = Duration::from_millis(100);
/// Bisections of a search.
const STEPS: u32 = 8;
/// How often a trial of latencies that lost packets is tried again.
const AGAIN: u32 = 3;
/// Loss that the second search allows, as FD.io's partial drop rate.
const PARTIAL: f64 = 0.005;
/// Less than this of what was to be offered was offered: the tester itself was too slow.
const OFFERED: f64 = 0.98;

/// See the module.
pub struct Tester {
    mode: Mode,
    udp: bool,
    hz: u64,
    out: DpdkPort,
    back: DpdkPort,
    pool: Pool,
    generator: Generator,
    /// Time of departure by sequence number.
    stamps: Box<[u64]>,
    /// Packets that the gateway's port took since the SA began.
    departed: u64,
}

/// One trial.
#[derive(Clone, Debug, Default)]
pub struct Trial {
    /// Packets a second that were to be offered.
    pub rate: f64,
    /// Packets that were offered.
    pub offered: u64,
    /// Packets that came back.
    pub received: u64,
    /// Seconds of offering.
    pub seconds: f64,
    /// TSC cycles that they took.
    pub latency: Histogram,
}

impl Trial {
    /// Part of the offered packets that did not come back.
    pub fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.offered.max(1) as f64
    }

    fn passes(&self, loss: f64) -> bool {
        self.loss() <= loss && self.offered as f64 >= self.rate * self.seconds * OFFERED
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Packets a second, offered as fast as the port takes them.
    pub flat_out: f64,
    /// Packets a second without a loss.
    pub no_drop: f64,
    /// Packets a second with at most 0.5 % lost.
    pub partial_drop: f64,
    /// At 50 % and 90 % of the rate without a loss.
    pub at: Vec<(f64, Trial)>,
    /// How many trials there were.
    pub trials: u32,
}

impl Tester {
    /// A tester that offers on `out` and takes back on `back`.
    pub fn new(mode: Mode, udp: bool, hz: u64, [out, back]: [DpdkPort; 2], pool: Pool) -> Tester {
        let generator = Generator::new(pool.clone(), 1, 0..1, 0);
        let stamps = vec![0; STAMPS].into();
        Tester { mode, udp, hz, out, back, pool, generator, stamps, departed: 0 }
    }

    /// Searches with packets of one size; each trial offers for `seconds`.
    pub fn search(&mut self, size: &Size, seconds: f64) -> Found {
        self.generator.set_pattern(MACS[0], &size.pattern);
        self.trial(f64::INFINITY, seconds / 2.0);
        let flat_out = self.trial(f64::INFINITY, seconds);
        let flat_out = flat_out.received as f64 / flat_out.seconds;
        let mut found = Found { flat_out, trials: 2, ..Found::default() };
        if flat_out == 0.0 {
            return found;
        }
        found.no_drop = self.bisect((0.0, flat_out * 1.1), 0.0, seconds, &mut found.trials);
        let above = (found.no_drop, flat_out * 1.1);
        found.partial_drop = self.bisect(above, PARTIAL, seconds, &mut found.trials);
        let base = if found.no_drop > 0.0 { found.no_drop } else { found.partial_drop };
        for part in [0.5, 0.9].into_iter().filter(|_| base > 0.0) {
            // Far below that rate it is the machine that loses: another trial, then.
            let mut trial = self.trial(base * part, seconds);
            found.trials += 1;
            for _ in 0..AGAIN {
                if trial.loss() <= 0.0 {
                    break;
                }
                let other = self.trial(base * part, seconds);
                found.trials += 1;
                if other.loss() < trial.loss() {
                    trial = other;
                }
            }
            found.at.push((part, trial));
        }
        found
    }

    /// The highest rate between two that passes.
    fn bisect(&mut self, (mut low, mut high): (f64, f64), loss: f64, seconds: f64, trials: &mut u32) -> f64 {
        for step in 0..STEPS {
            // Near the top it is decided: begin there.
            let rate = if step == 0 { low + (high - low) * 0.8 } else { (low + high) / 2.0 };
            // What else the machine does must not fail a rate: the better of two trials counts.
            let mut passed = false;
            for _ in 0..2 {
                *trials += 1;
                passed = self.trial(rate, seconds).passes(loss);
                if passed {
                    break;
                }
            }
            *(if passed { &mut low } else { &mut high }) = rate;
            if high - low < high * 0.01 {
                break;
            }
        }
        low
    }

    /// Offers `rate` packets a second for `seconds`; without a limit, as many as the port takes.
    pub fn trial(&mut self, rate: f64, seconds: f64) -> Trial {
        let mut trial = Trial { rate, ..Trial::default() };
        // Two microseconds' worth at once: a NIC's interrupt moderation is far coarser.
        let burst = if rate.is_finite() { (rate * 2e-6).clamp(1.0, BURST).floor() } else { BURST };
        let interval = if rate.is_finite() { (burst / rate * self.hz as f64) as u64 } else { 0 };
        let patience = self.hz / 1000;
        let mut waiting = Burst::new();
        let start = tsc();
        let (end, mut next) = (start + (seconds * self.hz as f64) as u64, start);
        loop {
            let now = tsc();
            if now >= end {
                break;
            }
            if now >= next {
                self.offer(&mut waiting, burst as usize, interval > 0, &mut trial);
                next += interval;
                // Whoever was held up does not catch up in one heap.
                if now.saturating_sub(next) > patience {
                    next = now;
                }
            }
            self.take_back(&mut trial);
        }
        trial.seconds = (tsc() - start) as f64 / self.hz as f64;
        waiting.clear();
        let until = Instant::now() + DRAIN;
        while trial.received < trial.offered && Instant::now() < until {
            self.take_back(&mut trial);
        }
        trial
    }

    /// Hands a burst over. What the port does not take is lost where there is a rate to keep; else it waits.
    fn offer(&mut self, waiting: &mut Burst<Mbuf>, burst: usize, paced: bool, trial: &mut Trial) {
        if waiting.is_empty() && self.pool.allocate_burst(waiting, burst) {
            for frame in &mut *waiting {
                self.generator.write(frame);
            }
        }
        let now = tsc();
        if self.mode != Mode::Encap {
            for frame in &mut *waiting {
                if let Some(stamp) = frame.data_mut().get_mut(HEADERS..HEADERS + 8) {
                    stamp.copy_from_slice(&now.to_ne_bytes());
                }
            }
        } else {
            for ahead in 1..=waiting.len() as u64 {
                self.stamps[(self.departed + ahead) as usize % STAMPS] = now;
            }
        }
        let sent = self.out.send(waiting) as u64;
        self.departed += sent;
        trial.offered += sent;
        if paced {
            trial.offered += waiting.len() as u64;
            waiting.clear();
        }
    }

    fn take_back(&mut self, trial: &mut Trial) {
        let mut burst = Burst::new();
        trial.received += self.back.receive(&mut burst) as u64;
        let now = tsc();
        for frame in &burst {
            if let Some(departure) = self.departure(frame) {
                trial.latency.add(now.saturating_sub(departure));
            }
        }
        // Buffers that are lent to the other side are taken back when we poll.
        let mut nothing = Burst::new();
        self.out.receive(&mut nothing);
    }

    fn departure(&self, frame: &Mbuf) -> Option<u64> {
        let octets = frame.data();
        if self.mode != Mode::Encap {
            return Some(u64::from_ne_bytes(octets.get(HEADERS..HEADERS + 8)?.try_into().ok()?));
        }
        let udp = if self.udp { esp::UDP_HEADER } else { 0 };
        let header = octets.get(ethernet::HEADER + ipv4::HEADER + udp..)?;
        let number = header.get(4..)?.first_chunk().map(|octets| u32::from_be_bytes(*octets))?;
        Some(self.stamps[number as usize % STAMPS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_passes_by_what_came_back_and_what_was_offered() {
        let trial =
            |offered, received| Trial { rate: 1000.0, seconds: 1.0, offered, received, ..Trial::default() };
        assert!(trial(1000, 1000).passes(0.0));
        assert!(!trial(1000, 999).passes(0.0));
        assert!(trial(1000, 996).passes(PARTIAL) && !trial(1000, 990).passes(PARTIAL));
        assert!(!trial(900, 900).passes(0.0), "the tester was too slow");
        assert_eq!(trial(0, 0).loss(), 1.0);
    }
}
