//! Sequence numbers of outbound SAs (RFC 4303 section 2.2), which are also their explicit IVs (RFC 4106 section 3.1):
//! a worker reserves a run of numbers before it uses them, so none is used twice, whoever crashes.
//!
//! The word in `state` only ever grows; control places a new SA on it with an offset instead of resetting it.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::writers::Writers;

/// Per outbound slot, written by workers only. One cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct OutboundState {
    reserved: AtomicU64,
    bytes: AtomicU64,
    packets: AtomicU64,
    last_used: AtomicU64,
    spare: [u64; 4],
}

const _: () = assert!(size_of::<OutboundState>() == 64);

/// A run of sequence numbers of one SA, each to be used at most once.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    next: u64,
    end: u64,
}

impl Run {
    /// Without a number.
    pub const fn empty() -> Run {
        Run { next: 1, end: 1 }
    }

    /// The next number of the run, never twice; `None` when the run or the SA's hard limit is exhausted.
    #[inline(always)]
    pub fn take(&mut self) -> Option<u64> {
        let number = self.next;
        (number < self.end).then(|| {
            self.next += 1;
            number
        })
    }

    /// Whether the run reaches beyond `limit`, or was cut by the hard limit.
    #[inline(always)]
    pub fn passes(&self, limit: u64) -> bool {
        self.end > limit
    }

    /// Numbers left.
    pub fn left(&self) -> u64 {
        self.end.saturating_sub(self.next)
    }
}

/// A slot as workers have it.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    state: &'a OutboundState,
    writers: Writers,
}

impl<'a> Outbound<'a> {
    /// `writers` change it.
    #[inline(always)]
    pub(crate) fn new(state: &'a OutboundState, writers: Writers) -> Outbound<'a> {
        Outbound { state, writers }
    }

    /// Reserves `count` numbers, of which those above `hard` are not handed out. `offset` is the SA's place on the word.
    #[inline(always)]
    pub fn reserve(self, count: u32, offset: u64, hard: u64) -> Run {
        let before = self.writers.add(&self.state.reserved, u64::from(count));
        let first = before.wrapping_add(offset).wrapping_add(1);
        Run { next: first, end: first.saturating_add(u64::from(count)).min(hard.saturating_add(1)) }
    }

    /// Adds what a burst sealed, once a burst; `now` is in TSC cycles.
    #[inline(always)]
    pub fn account(self, packets: u64, bytes: u64, now: u64) {
        self.writers.add(&self.state.packets, packets);
        self.writers.add(&self.state.bytes, bytes);
        self.state.last_used.store(now, Ordering::Relaxed);
    }
}

impl Deref for Outbound<'_> {
    type Target = OutboundState;

    #[inline(always)]
    fn deref(&self) -> &OutboundState {
        self.state
    }
}

impl OutboundState {
    /// The last number reserved, as the SA with this offset counts.
    pub fn last_reserved(&self, offset: u64) -> u64 {
        self.reserved.load(Ordering::Acquire).wrapping_add(offset)
    }

    /// The offset that makes the next number of the slot `last + 1`. Only while the slot is quiescent.
    pub fn offset_after(&self, last: u64) -> u64 {
        last.wrapping_sub(self.reserved.load(Ordering::Acquire))
    }

    /// Packets and inner octets sealed in this slot since the segment was made, and the TSC of the last burst.
    pub fn totals(&self) -> (u64, u64, u64) {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        (load(&self.packets), load(&self.bytes), load(&self.last_used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> OutboundState {
        OutboundState {
            reserved: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            packets: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            spare: [0; 4],
        }
    }

    fn many(state: &OutboundState) -> Outbound<'_> {
        Outbound::new(state, Writers::Many)
    }

    #[test]
    fn numbers_are_unique_across_threads() {
        let state = fresh();
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut mine = Vec::new();
                        for round in 0..1000 {
                            let mut run = many(&state).reserve(round % 7, 0, u64::MAX - 1);
                            while let Some(number) = run.take() {
                                mine.push(number);
                            }
                        }
                        mine
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect()
        });
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!((all[0], all[count - 1]), (1, count as u64));
    }

    #[test]
    fn nothing_is_handed_out_above_the_hard_limit() {
        for writers in [Writers::One, Writers::Many] {
            let state = fresh();
            let slot = Outbound::new(&state, writers);
            let offset = state.offset_after(0xffff_fff0);
            let mut run = slot.reserve(32, offset, 0xffff_ffff);
            let taken: Vec<u64> = std::iter::from_fn(|| run.take()).collect();
            assert_eq!(taken, (0xffff_fff1..=0xffff_ffff).collect::<Vec<u64>>());
            assert_eq!(slot.reserve(1, offset, 0xffff_ffff).take(), None);
            assert_eq!(state.last_reserved(offset), 0xffff_fff0 + 33);
            slot.account(3, 100, 7);
            slot.account(1, 50, 8);
            assert_eq!(state.totals(), (4, 150, 8));
        }
    }

    #[test]
    fn a_reused_slot_continues_where_control_places_it() {
        let state = fresh();
        many(&state).reserve(1000, 0, u64::MAX);
        let offset = state.offset_after(0);
        assert_eq!(many(&state).reserve(1, offset, 10).take(), Some(1));
        let offset = state.offset_after(5_000_000);
        assert_eq!(many(&state).reserve(1, offset, u64::MAX).take(), Some(5_000_001));
    }
}
