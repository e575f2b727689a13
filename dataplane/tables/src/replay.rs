//! The anti-replay window of inbound SAs (RFC 4303 section 3.4.3, shape of RFC 6479): a ring of atomic words, checked
//! before the tag is verified and marked only after, by any worker.
//!
//! Each word holds 32 packets and the number of the lap they belong to, so one compare-and-swap decides a packet and no
//! word is ever cleared by another packet's advance. Numbers on the ring are the SA's numbers plus its `base`; a new SA
//! in an old slot gets a base above everything seen, so nothing is reset either.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::writers::Writers;

/// The smallest window, in packets.
pub const MIN_WINDOW: u32 = 64;
/// The largest window, in packets.
pub const MAX_WINDOW: u32 = 65536;

/// Per inbound slot, written by workers only. One cache line; the ring stands apart.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct InboundState {
    top: AtomicU64,
    bytes: AtomicU64,
    packets: AtomicU64,
    last_used: AtomicU64,
    replayed: AtomicU64,
    auth_failed: AtomicU64,
    spare: [u64; 2],
}

const _: () = assert!(size_of::<InboundState>() == 64);

/// Why a number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was seen before.
    Replayed,
    /// It lies left of the window.
    TooOld,
}

/// Words of the ring for a window of `packets` (a power of two): twice the window, so that block granularity never
/// takes from it.
pub const fn ring_words(packets: u32) -> usize {
    packets as usize / 32 * 2
}

impl InboundState {
    /// The highest number marked, on the ring's scale: the base for the next SA in this slot.
    pub fn top(&self) -> u64 {
        self.top.load(Ordering::Acquire)
    }

    /// Counts refusals of this SA.
    #[inline]
    pub fn account_refused(&self, replayed: u64, auth_failed: u64) {
        self.replayed.fetch_add(replayed, Ordering::Relaxed);
        self.auth_failed.fetch_add(auth_failed, Ordering::Relaxed);
    }

    /// Packets and inner octets opened in this slot since the segment was made, and the TSC of the last burst.
    pub fn totals(&self) -> (u64, u64, u64) {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        (load(&self.packets), load(&self.bytes), load(&self.last_used))
    }

    /// Replayed or too old, and failed tags, in this slot since the segment was made.
    pub fn refusals(&self) -> (u64, u64) {
        (self.replayed.load(Ordering::Relaxed), self.auth_failed.load(Ordering::Relaxed))
    }
}

/// What became of the numbers of a block: the bits of those that were new, and of those left of the window. The others were
/// seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Never seen before.
    pub new: u32,
    /// Left of the window.
    pub old: u32,
}

/// One SA's window.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    state: &'a InboundState,
    ring: &'a [AtomicU64],
    base: u64,
    size: u64,
    writers: Writers,
}

impl<'a> Window<'a> {
    /// `ring` has at least [`ring_words`]`(size)` words, `size` is a power of two of 64 to 65536. Several threads may mark.
    #[inline(always)]
    pub fn new(state: &'a InboundState, ring: &'a [AtomicU64], base: u64, size: u32) -> Window<'a> {
        let ring = &ring[..ring_words(size).min(ring.len())];
        Window { state, ring, base, size: u64::from(size), writers: Writers::Many }
    }

    /// The same, marked by `writers`.
    #[inline(always)]
    pub(crate) fn marked_by(self, writers: Writers) -> Window<'a> {
        Window { writers, ..self }
    }

    /// Adds what a burst opened to the counters of the SA, once a burst; `now` is in TSC cycles.
    #[inline(always)]
    pub fn account(&self, packets: u64, bytes: u64, now: u64) {
        self.writers.add(&self.state.packets, packets);
        self.writers.add(&self.state.bytes, bytes);
        self.state.last_used.store(now, Ordering::Relaxed);
    }

    /// The highest number seen of this SA, 0 before the first.
    #[inline(always)]
    pub fn highest(&self) -> u64 {
        self.state.top().saturating_sub(self.base)
    }

    /// The 64-bit number of a packet from its 32 transmitted bits (RFC 4303 appendix A2.2).
    #[inline(always)]
    pub fn extend(&self, low: u32) -> u64 {
        let highest = self.highest();
        let (th, tl) = (highest >> 32, highest as u32);
        let bottom = tl.wrapping_sub(self.size as u32 - 1);
        let epoch = if u64::from(tl) >= self.size - 1 {
            if low >= bottom { th } else { th + 1 }
        } else if low >= bottom {
            // Left of the window of the very first epoch is nothing: the number is refused as too far ahead instead.
            th.wrapping_sub(1)
        } else {
            th
        };
        if epoch == u64::MAX { u64::from(low) } else { epoch << 32 | u64::from(low) }
    }

    /// Whether `number` may still be accepted; changes nothing.
    ///
    /// # Errors
    /// [`Refused`] where it was seen or lies left of the window. 0 is never valid.
    #[inline(always)]
    pub fn check(&self, number: u64) -> Result<(), Refused> {
        let highest = self.highest();
        if number == 0 || number.saturating_add(self.size) <= highest {
            return Err(Refused::TooOld);
        }
        if number > highest {
            return Ok(());
        }
        let (block, bit) = self.block(number);
        let (index, lap) = self.place(block);
        let word = self.ring[index].load(Ordering::Relaxed);
        if (word >> 32) as u32 == lap && word as u32 & bit != 0 { Err(Refused::Replayed) } else { Ok(()) }
    }

    /// Marks `number` as seen: call only when the tag was right. Exactly one of all callers with a number succeeds.
    ///
    /// # Errors
    /// [`Refused`] where another worker was first, or the ring has moved past it.
    #[inline(always)]
    pub fn mark(&self, number: u64) -> Result<(), Refused> {
        let (block, bit) = self.block(number);
        let marked = self.mark_block(block, bit);
        match (marked.old & bit != 0, marked.new & bit != 0) {
            (true, _) => Err(Refused::TooOld),
            (_, true) => Ok(()),
            _ => Err(Refused::Replayed),
        }
    }

    /// The block of 32 numbers that `number` is in, and its bit there: for [`Window::mark_block`].
    #[inline(always)]
    pub fn block(&self, number: u64) -> (u64, u32) {
        let on_ring = self.base.wrapping_add(number);
        (on_ring >> 5, 1 << (on_ring & 31))
    }

    /// Marks the numbers of one block whose bits are in `bits` (not 0) as seen, all at once: call only when their tags were
    /// right. Exactly one of all callers with a number finds it new.
    #[inline(always)]
    pub fn mark_block(&self, block: u64, bits: u32) -> Marked {
        let (index, lap) = self.place(block);
        let word = &self.ring[index];
        // The top first: a word of a later lap then implies a top that makes these numbers too old.
        let highest = block << 5 | u64::from(31 - (bits | 1).leading_zeros());
        self.writers.raise(&self.state.top, highest);
        let mut seen = word.load(Ordering::Acquire);
        loop {
            let (before, old) = match (seen >> 32) as u32 == lap {
                true => (seen as u32, 0),
                false => (0, bits & self.too_old(block)),
            };
            let new = bits & !before & !old;
            if new == 0 {
                return Marked { new, old };
            }
            let next = u64::from(lap) << 32 | u64::from(before | new);
            match self.writers.replace(word, seen, next) {
                Ok(()) => return Marked { new, old },
                Err(now) => seen = now,
            }
        }
    }

    /// The bits of a block that lie left of the window.
    #[inline(always)]
    fn too_old(&self, block: u64) -> u32 {
        // Numbers up to this one, on the ring, are too old.
        let Some(last) = self.state.top().checked_sub(self.size) else { return 0 };
        match last.checked_sub(block << 5) {
            None => 0,
            Some(within @ 0..31) => (2 << within) - 1,
            Some(_) => u32::MAX,
        }
    }

    /// Word and lap of a block.
    #[inline(always)]
    fn place(&self, block: u64) -> (usize, u32) {
        let words = self.ring.len() as u64;
        ((block & (words - 1)) as usize, (block >> words.trailing_zeros()) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn fresh(size: u32) -> (InboundState, Vec<AtomicU64>) {
        let zero = || AtomicU64::new(0);
        let state = InboundState {
            top: zero(),
            bytes: zero(),
            packets: zero(),
            last_used: zero(),
            replayed: zero(),
            auth_failed: zero(),
            spare: [0; 2],
        };
        (state, (0..ring_words(size)).map(|_| zero()).collect())
    }

    /// What RFC 4303 says, with a set.
    struct Model {
        seen: HashSet<u64>,
        highest: u64,
        size: u64,
    }

    impl Model {
        fn offer(&mut self, number: u64) -> Result<(), Refused> {
            if number == 0 || number + self.size <= self.highest {
                return Err(Refused::TooOld);
            }
            if !self.seen.insert(number) {
                return Err(Refused::Replayed);
            }
            self.highest = self.highest.max(number);
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn window_is_the_set_model(
            size_log2 in 6u32..=10,
            base in prop_oneof![Just(0u64), 0u64..1 << 40],
            steps in prop::collection::vec((0u8..10, 0u64..5000), 1..400),
        ) {
            let size = 1 << size_log2;
            let (state, ring) = fresh(size);
            state.top.store(base, Ordering::Relaxed);
            let writers = if base.is_multiple_of(2) { Writers::One } else { Writers::Many };
            let window = Window::new(&state, &ring, base, size).marked_by(writers);
            let mut model = Model { seen: HashSet::new(), highest: 0, size: u64::from(size) };
            for (kind, step) in steps {
                let number = match kind {
                    0..=3 => model.highest + 1,
                    4..=5 => model.highest + step % 100,
                    6 => model.highest + step,
                    _ => model.highest.saturating_sub(step % (2 * u64::from(size))),
                };
                let ours = window.check(number).and_then(|()| window.mark(number));
                prop_assert_eq!(ours, model.offer(number), "number {} highest {}", number, model.highest);
            }
        }

        #[test]
        fn extension_finds_the_number_that_was_sent(
            highest in 0u64..1 << 36,
            delta in -1000i64..1 << 30,
        ) {
            let (state, ring) = fresh(1024);
            state.top.store(highest, Ordering::Relaxed);
            let window = Window::new(&state, &ring, 0, 1024);
            let sent = (highest as i64 + delta).max(1) as u64;
            prop_assert_eq!(window.extend(sent as u32), sent);
        }
    }

    proptest! {
        #[test]
        fn a_block_is_marked_as_its_numbers_are_one_by_one(
            base in prop_oneof![Just(0u64), 0u64..1 << 40],
            steps in prop::collection::vec((0u64..8, any::<u32>()), 1..100),
        ) {
            let ((state, ring), (other, other_ring)) = (fresh(64), fresh(64));
            state.top.store(base, Ordering::Relaxed);
            other.top.store(base, Ordering::Relaxed);
            let window = Window::new(&state, &ring, base, 64).marked_by(Writers::One);
            let single = Window::new(&other, &other_ring, base, 64);
            let first = window.block(1).0;
            for (ahead, bits) in steps {
                let bits = bits | 1 << 31;
                let block = (state.top() >> 5).saturating_sub(3).max(first) + ahead;
                let marked = window.mark_block(block, bits);
                prop_assert_eq!(marked.new & marked.old, 0);
                // Highest first, as the window's top moves first.
                for bit in (0..32).rev().filter(|bit| bits >> bit & 1 != 0) {
                    let number = (block << 5 | bit).wrapping_sub(base);
                    let alone = match single.mark(number) {
                        Ok(()) => marked.new,
                        Err(Refused::TooOld) => marked.old,
                        Err(Refused::Replayed) => !marked.new & !marked.old,
                    };
                    prop_assert!(alone >> bit & 1 != 0, "number {}", number);
                }
            }
        }
    }

    #[test]
    fn a_new_sa_in_an_old_slot_starts_empty() {
        let (state, ring) = fresh(64);
        let old = Window::new(&state, &ring, 0, 64);
        for number in 1..=100_000 {
            old.mark(number).expect("fresh number");
        }
        let new = Window::new(&state, &ring, state.top(), 64);
        for number in (1..=64).rev() {
            assert_eq!(new.check(number).and_then(|()| new.mark(number)), Ok(()), "{number}");
            assert_eq!(new.mark(number), Err(Refused::Replayed));
        }
    }

    #[test]
    fn of_many_threads_exactly_one_marks_a_number() {
        let (state, ring) = fresh(4096);
        let window = Window::new(&state, &ring, 0, 4096);
        let accepted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (1..=4000).filter(|number| window.mark(*number).is_ok()).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("thread")).sum()
        });
        assert_eq!(accepted, 4000);
    }
}
