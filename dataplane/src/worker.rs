//! One worker: its loop around `path::Worker::run`, its idling, and what it tells about itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::path::Worker;
use crate::port::Port;

/// What a worker does while its queues stay empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Polls on: for appliances and benchmarks. Never makes a system call.
    Poll,
    /// Yields, then sleeps in short steps: for virtual machines and CI.
    Adaptive,
}

/// Empty polls before an adaptive worker yields its core.
const POLLS_TO_YIELD: u32 = 64;
/// Empty polls before it sleeps.
const POLLS_TO_SLEEP: u32 = 256;
/// How long it sleeps then.
const SLEEP: Duration = Duration::from_micros(50);
/// Counters are told, events may be repeated, and working memory of the engine is wiped this often while nothing comes in: parts of a second.
const TICKS_PER_SECOND: u64 = 1000;

/// For so many seconds, and at most as long again, a long gap counts as recent.
const RECENT_SECONDS: u64 = 10;

/// The longest gap between two polls of the last while: what an operator wants to see after having looked.
#[derive(Debug, Default)]
struct RecentGap {
    ends: u64,
    before: u64,
    now: u64,
}

impl RecentGap {
    /// A gap that ended at `now`. Returns the longest of this period and the one before.
    #[inline(always)]
    fn see(&mut self, gap: u64, now: u64, hz: u64) -> u64 {
        if now >= self.ends {
            let length = hz.saturating_mul(RECENT_SECONDS).max(1);
            // Where a whole period passed without a poll, nothing of the one before is recent.
            self.before = if now - self.ends < length { self.now } else { 0 };
            (self.now, self.ends) = (0, now + length);
        }
        self.now = self.now.max(gap);
        self.now.max(self.before)
    }
}

/// Runs until `stop`. `clock` reads the TSC, whose frequency is `hz`.
pub fn spin<P: Port>(
    worker: &mut Worker<P>,
    idle: Idle,
    stop: &AtomicBool,
    hz: u64,
    clock: impl Fn() -> u64,
) {
    let tick = (hz / TICKS_PER_SECOND).max(1);
    let (mut last, mut next_tick, mut empty) = (clock(), 0, 0u32);
    let mut recent = RecentGap::default();
    while !stop.load(Ordering::Relaxed) {
        let now = clock();
        let gap = now.saturating_sub(last);
        worker.tally.total_cycles += gap;
        worker.tally.worst_gap = worker.tally.worst_gap.max(gap);
        worker.tally.recent_gap = recent.see(gap, now, hz);
        worker.tally.polls += 1;
        last = now;
        if worker.run(now) > 0 {
            worker.tally.busy_polls += 1;
            worker.tally.busy_cycles += clock().saturating_sub(now);
            empty = 0;
        } else {
            empty = empty.saturating_add(1);
        }
        if now >= next_tick {
            next_tick = now + tick;
            worker.state.events(worker.index).allow_repeat();
            worker.engine.wipe();
            worker.publish();
        }
        if idle == Idle::Adaptive && empty > POLLS_TO_YIELD {
            rest(empty);
            // Rest is not a gap: nobody waited.
            let woken = clock();
            worker.tally.total_cycles += woken.saturating_sub(last);
            last = woken;
        }
    }
    worker.engine.wipe();
    worker.publish();
}

#[cold]
fn rest(empty: u32) {
    if empty > POLLS_TO_SLEEP {
        std::thread::sleep(SLEEP);
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_recent_for_one_to_two_periods() {
        let mut recent = RecentGap::default();
        let mut at = |gap, now| recent.see(gap, now, 1);
        assert_eq!([at(3, 100), at(9, 105), at(2, 109)], [3, 9, 9]);
        // The period before counts too, the one before that does not.
        assert_eq!([at(4, 110), at(1, 119), at(1, 120), at(1, 125)], [9, 9, 4, 4]);
        assert_eq!(at(1, 140), 1);
    }

    #[test]
    fn a_worker_that_was_away_keeps_nothing_of_before() {
        let mut recent = RecentGap::default();
        assert_eq!(recent.see(7, 50, 1), 7);
        assert_eq!(recent.see(2, 75, 1), 2);
    }
}
