//! What the local socket tells of a worker: counters since it started enter, what it did in a time and how loaded it is leaves.

use serde::{Deserialize, Serialize};

use super::types::Frames;

/// One worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its index.
    pub worker: usize,
    /// The core that it is pinned to, where the configuration says so.
    pub core: Option<u16>,
    /// How its frames ended.
    pub frames: Frames,
    /// Cycles in loops that had frames, since it started.
    pub busy_cycles: u64,
    /// All its cycles.
    pub total_cycles: u64,
    /// Longest time between two polls since it started, in microseconds.
    pub longest_gap_micros: u64,
    /// The same of the last ten to twenty seconds.
    pub recent_gap_micros: u64,
    /// Loops.
    pub polls: u64,
    /// Loops that had frames.
    pub busy_polls: u64,
    /// Frames that it received and handed to other workers to be sealed or opened; they come back and are in `frames` then.
    pub handed: u64,
    /// Frames that it sealed or opened for other workers.
    pub helped: u64,
}

impl WorkerStatus {
    /// What it did since `earlier`; all where it was started anew in between. The gaps stay.
    #[must_use]
    pub fn since(&self, earlier: &WorkerStatus) -> WorkerStatus {
        let (now, then) = (&self.frames, &earlier.frames);
        let parts = || {
            Some(WorkerStatus {
                frames: Frames {
                    received: now.received.checked_sub(then.received)?,
                    sent: now.sent.checked_sub(then.sent)?,
                    punted: now.punted.checked_sub(then.punted)?,
                    dropped: now.dropped.checked_sub(then.dropped)?,
                },
                busy_cycles: self.busy_cycles.checked_sub(earlier.busy_cycles)?,
                total_cycles: self.total_cycles.checked_sub(earlier.total_cycles)?,
                polls: self.polls.checked_sub(earlier.polls)?,
                busy_polls: self.busy_polls.checked_sub(earlier.busy_polls)?,
                handed: self.handed.checked_sub(earlier.handed)?,
                helped: self.helped.checked_sub(earlier.helped)?,
                ..self.clone()
            })
        };
        parts().unwrap_or_else(|| self.clone())
    }

    /// Part of its cycles in loops that had frames, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        ratio(self.busy_cycles, self.total_cycles).unwrap_or(0.0)
    }

    /// Frames of a loop that had some.
    pub fn frames_per_burst(&self) -> Option<f64> {
        ratio(self.frames.received, self.busy_polls)
    }

    /// Cycles that a frame took.
    pub fn cycles_per_frame(&self) -> Option<f64> {
        ratio(self.busy_cycles, self.frames.received)
    }

    /// How many times the load the worker could carry, if a frame took as long: fuller bursts take less.
    pub fn headroom(&self) -> Option<f64> {
        ratio(self.total_cycles, self.busy_cycles)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_says_what_it_has_done_since() {
        let worker = |received, busy_cycles, total_cycles, busy_polls| WorkerStatus {
            worker: 0,
            core: None,
            frames: Frames { received, sent: received, ..Frames::default() },
            busy_cycles,
            total_cycles,
            longest_gap_micros: 9,
            recent_gap_micros: 3,
            polls: busy_polls * 2,
            busy_polls,
            handed: 0,
            helped: 0,
        };
        let since = worker(300, 50_000, 200_000, 15).since(&worker(100, 10_000, 100_000, 10));
        assert_eq!((since.frames.received, since.busy_share(), since.headroom()), (200, 0.4, Some(2.5)));
        assert_eq!((since.frames_per_burst(), since.cycles_per_frame()), (Some(40.0), Some(200.0)));
        assert_eq!((since.longest_gap_micros, since.recent_gap_micros), (9, 3));
        // Started anew in between: everything that it has done.
        assert_eq!(worker(5, 1, 2, 1).since(&worker(100, 1, 1, 1)).frames.received, 5);
        let idle = worker(0, 0, 0, 0);
        assert_eq!((idle.busy_share(), idle.headroom(), idle.frames_per_burst()), (0.0, None, None));
    }
}
