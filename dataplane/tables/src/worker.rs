//! What one worker writes about itself: its quiescent counter and its counters. One writer, the worker; control reads.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::verdict::{Note, Verdict};

/// Most workers that a data plane may have.
pub const MAX_WORKERS: usize = 64;
/// Room for counters of verdicts.
const VERDICT_ROOM: usize = 48;
/// Room for counters of notes.
const NOTE_ROOM: usize = 16;

const _: () = assert!(Verdict::COUNT <= VERDICT_ROOM && Note::COUNT <= NOTE_ROOM);

/// The counters of one worker, in plain memory: the worker's own copy, or one consistent reading of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Frames taken from ports and twins.
    pub received: u64,
    verdicts: [u64; VERDICT_ROOM],
    notes: [u64; NOTE_ROOM],
    /// TSC cycles of loops that had frames.
    pub busy_cycles: u64,
    /// TSC cycles since the worker started.
    pub total_cycles: u64,
    /// Longest time between two polls, in TSC cycles.
    pub worst_gap: u64,
    /// The same of the last ten to twenty seconds.
    pub recent_gap: u64,
    /// Loops.
    pub polls: u64,
    /// Loops that had frames.
    pub busy_polls: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            received: 0,
            verdicts: [0; VERDICT_ROOM],
            notes: [0; NOTE_ROOM],
            busy_cycles: 0,
            total_cycles: 0,
            worst_gap: 0,
            recent_gap: 0,
            polls: 0,
            busy_polls: 0,
        }
    }
}

impl Tally {
    /// Counts frames that ended in `verdict`.
    #[inline(always)]
    pub fn count(&mut self, verdict: Verdict, frames: u64) {
        self.verdicts[verdict as usize] += frames;
    }

    /// Counts what happened besides.
    #[inline(always)]
    pub fn note(&mut self, note: Note, frames: u64) {
        self.notes[note as usize] += frames;
    }

    /// Frames that ended in `verdict`.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize]
    }

    /// How often `note` happened.
    pub fn noted(&self, note: Note) -> u64 {
        self.notes[note as usize]
    }

    /// Frames that ended, however: equals `received` between two bursts.
    pub fn ended(&self) -> u64 {
        self.verdicts.iter().sum()
    }

    /// Adds another worker's counters.
    pub fn add(&mut self, other: &Tally) {
        self.received += other.received;
        self.verdicts.iter_mut().zip(other.verdicts).for_each(|(mine, its)| *mine += its);
        self.notes.iter_mut().zip(other.notes).for_each(|(mine, its)| *mine += its);
        self.busy_cycles += other.busy_cycles;
        self.total_cycles += other.total_cycles;
        self.worst_gap = self.worst_gap.max(other.worst_gap);
        self.recent_gap = self.recent_gap.max(other.recent_gap);
        self.polls += other.polls;
        self.busy_polls += other.busy_polls;
    }
}

/// One worker's place in `state`.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct WorkerState {
    /// Stepped once a loop (`quiescence`).
    pub quiescent: AtomicU64,
    version: AtomicU64,
    received: AtomicU64,
    busy_cycles: AtomicU64,
    total_cycles: AtomicU64,
    worst_gap: AtomicU64,
    recent_gap: AtomicU64,
    polls: AtomicU64,
    busy_polls: AtomicU64,
    verdicts: [AtomicU64; VERDICT_ROOM],
    notes: [AtomicU64; NOTE_ROOM],
}

impl WorkerState {
    /// Worker side, between two bursts: publishes its counters so that a reader sees all or none of a burst.
    pub fn publish(&self, tally: &Tally) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.received.store(tally.received, Ordering::Relaxed);
        self.busy_cycles.store(tally.busy_cycles, Ordering::Relaxed);
        self.total_cycles.store(tally.total_cycles, Ordering::Relaxed);
        self.worst_gap.store(tally.worst_gap, Ordering::Relaxed);
        self.recent_gap.store(tally.recent_gap, Ordering::Relaxed);
        self.polls.store(tally.polls, Ordering::Relaxed);
        self.busy_polls.store(tally.busy_polls, Ordering::Relaxed);
        self.verdicts
            .iter()
            .zip(tally.verdicts)
            .for_each(|(shared, mine)| shared.store(mine, Ordering::Relaxed));
        self.notes.iter().zip(tally.notes).for_each(|(shared, mine)| shared.store(mine, Ordering::Relaxed));
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// One consistent reading. Gives up consistency, not progress, where the worker died inside `publish`.
    pub fn read(&self) -> Tally {
        for _ in 0..10_000 {
            let before = self.version.load(Ordering::Acquire);
            let tally = self.copy();
            fence(Ordering::Acquire);
            if before & 1 == 0 && before == self.version.load(Ordering::Relaxed) {
                return tally;
            }
            std::hint::spin_loop();
        }
        self.copy()
    }

    /// A new worker takes the place of a dead one, with counters from zero.
    pub fn restart(&self) {
        self.version.store(self.version.load(Ordering::Relaxed) & !1, Ordering::Relaxed);
        self.publish(&Tally::default());
    }

    fn copy(&self) -> Tally {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        Tally {
            received: load(&self.received),
            verdicts: std::array::from_fn(|at| load(&self.verdicts[at])),
            notes: std::array::from_fn(|at| load(&self.notes[at])),
            busy_cycles: load(&self.busy_cycles),
            total_cycles: load(&self.total_cycles),
            worst_gap: load(&self.worst_gap),
            recent_gap: load(&self.recent_gap),
            polls: load(&self.polls),
            busy_polls: load(&self.busy_polls),
        }
    }
}
