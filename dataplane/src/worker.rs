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
    while !stop.load(Ordering::Relaxed) {
        let now = clock();
        let gap = now.saturating_sub(last);
        worker.tally.total_cycles += gap;
        worker.tally.worst_gap = worker.tally.worst_gap.max(gap);
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
