//! Where the cycles of a loop go: a stopwatch that the loop tells its stages, and an engine that is timed by itself.

use std::cell::Cell;

use penstock_tables::KeyBlock;

use penstock_dataplane::crypto::{Engine, Job};
use penstock_dataplane::dpdk::clock::tsc;
use penstock_dataplane::path::{Probe, Stage};

/// The words of reports, in the order of [`Sliced::slice`].
pub const STAGES: [&str; 7] = ["rx", "classify", "decap", "route", "encap", "tx", "crypto"];
const CRYPTO: usize = 6;

thread_local! {
    static IN_ENGINE: Cell<u64> = const { Cell::new(0) };
}

/// Adds up cycles by stage.
#[derive(Debug, Default)]
pub struct Stopwatch {
    last: u64,
    cycles: [u64; 7],
}

impl Stopwatch {
    /// Cycles since they were last asked for, by stage; those of the engine are not in the stage that called it.
    fn take(&mut self) -> [u64; 7] {
        std::mem::take(&mut self.cycles)
    }
}

/// A probe of one slice after another.
pub trait Sliced: Probe {
    /// TSC cycles per packet by stage, of a slice of so many packets; `None` where nobody measures.
    fn slice(&mut self, packets: u64) -> Option<[f64; 7]>;
}

impl Sliced for () {
    #[inline(always)]
    fn slice(&mut self, _: u64) -> Option<[f64; 7]> {
        None
    }
}

impl Sliced for Stopwatch {
    fn slice(&mut self, packets: u64) -> Option<[f64; 7]> {
        Some(self.take().map(|cycles| cycles as f64 / packets.max(1) as f64))
    }
}

impl Probe for Stopwatch {
    #[inline(always)]
    fn begin(&mut self) {
        // What another worker of this thread did in it is not ours.
        IN_ENGINE.take();
        self.last = tsc();
    }

    #[inline(always)]
    fn done(&mut self, stage: Stage) {
        let now = tsc();
        let engine = IN_ENGINE.take();
        self.cycles[stage as usize] += (now - self.last).saturating_sub(engine);
        self.cycles[CRYPTO] += engine;
        self.last = now;
    }
}

/// An engine whose cycles are counted, for the thread that runs it.
pub struct Timed(pub &'static dyn Engine);

impl Engine for Timed {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn run(&self, jobs: &mut [Job<'_>]) {
        let start = tsc();
        self.0.run(jobs);
        IN_ENGINE.set(IN_ENGINE.get() + (tsc() - start));
    }

    fn prefetch(&self, key: &KeyBlock, text_len: usize) {
        self.0.prefetch(key, text_len);
    }

    fn wipe(&self) {
        self.0.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_a_stage_of_its_own() {
        let mut watch = Stopwatch::default();
        IN_ENGINE.set(9);
        watch.begin();
        watch.done(Stage::Rx);
        assert_eq!(watch.take()[CRYPTO], 0, "before the loop");
        IN_ENGINE.set(640);
        watch.done(Stage::Encap);
        let slice = watch.slice(64).unwrap();
        assert_eq!((slice[CRYPTO], slice[Stage::Rx as usize], IN_ENGINE.get()), (10.0, 0.0, 0));
        assert_eq!(watch.slice(64), Some([0.0; 7]));
        assert_eq!(().slice(64), None);
        assert_eq!(STAGES[Stage::Encap as usize], "encap");
    }
}
