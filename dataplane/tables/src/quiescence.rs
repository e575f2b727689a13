//! Quiescent counters: each worker steps its own once a loop, while it holds no reference into the tables that is older than
//! the step before; control waits until all have stepped twice before it wipes and reuses what it retired. So packets may wait
//! across a step, with what they refer to, and no worker ever waits for control.
//!
//! Why it holds: control unlinks, fences, reads the counter; a worker steps the counter, fences, reads the tables. Where
//! control read a counter from before the step, the worker's reads after the step see the unlinked table
//! (store buffering, both fences sequentially consistent), and the step after that drops the references from before it.
//! `tests/loom.rs` checks it.

use crate::sync::{AtomicU64, Ordering, fence};

/// Worker side: no reference into the tables is held now that was taken before the last step.
#[inline(always)]
pub fn step(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
}

/// What the counters were when something was retired.
#[derive(Clone, Debug)]
pub struct Grace {
    instance: u64,
    seen: Vec<u64>,
}

impl Grace {
    /// Control side: call after the unlinking stores. `instance` names the run of the data plane that owns the counters.
    pub fn start<'a>(instance: u64, counters: impl Iterator<Item = &'a AtomicU64>) -> Grace {
        fence(Ordering::SeqCst);
        Grace { instance, seen: counters.map(|counter| counter.load(Ordering::SeqCst)).collect() }
    }

    /// Whether every worker has passed two quiescent points since. Another instance means that the old workers are dead.
    pub fn over<'a>(&self, instance: u64, counters: impl Iterator<Item = &'a AtomicU64>) -> bool {
        instance != self.instance
            || counters
                .zip(&self.seen)
                .all(|(counter, seen)| counter.load(Ordering::SeqCst).wrapping_sub(*seen) >= 2)
    }
}
