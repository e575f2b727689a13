//! How workers change the words of `state`: by atomic operations where there are several of them, by plain loads and stores
//! where there is one, which nobody can come between. A locked instruction waits for all stores before it; with one worker and
//! thousands of SAs these were a quarter of the path.

use std::sync::atomic::{AtomicU64, Ordering};

/// Who writes: see the module. Readers in other processes see whole words either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writers {
    /// One thread, and no other.
    One,
    /// Several threads.
    Many,
}

impl Writers {
    /// Of a data plane with so many workers.
    pub fn of(workers: usize) -> Writers {
        if workers == 1 { Writers::One } else { Writers::Many }
    }

    /// Adds to a word; returns what it was.
    #[inline(always)]
    pub fn add(self, word: &AtomicU64, more: u64) -> u64 {
        match self {
            Writers::Many => word.fetch_add(more, Ordering::Relaxed),
            Writers::One => {
                let before = word.load(Ordering::Relaxed);
                word.store(before.wrapping_add(more), Ordering::Relaxed);
                before
            }
        }
    }

    /// Raises a word to at least `least`.
    #[inline(always)]
    pub fn raise(self, word: &AtomicU64, least: u64) {
        if least <= word.load(Ordering::Relaxed) {
            return;
        }
        match self {
            Writers::Many => _ = word.fetch_max(least, Ordering::AcqRel),
            Writers::One => word.store(least, Ordering::Release),
        }
    }

    /// Makes a word `next` where it is `seen`.
    ///
    /// # Errors
    /// What it is now, where it is something else.
    #[inline(always)]
    pub fn replace(self, word: &AtomicU64, seen: u64, next: u64) -> Result<(), u64> {
        match self {
            Writers::Many => {
                word.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
            }
            Writers::One => {
                word.store(next, Ordering::Release);
                Ok(())
            }
        }
    }
}
