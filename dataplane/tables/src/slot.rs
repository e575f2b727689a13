//! The life of a table slot: Free -> Filling -> Live -> Retiring -> Free, by single atomic stores of one writer.
//!
//! The head word carries the state and a 32-bit tag (an SPI, or a generation), so that a reader decides with one load
//! and one comparison. Readers touch the body where they see Live, or where a link led them to the slot after their last
//! quiescent point; the writer touches it only while no reader can: in Filling, and after Retiring once every worker has
//! passed its quiescent points (`quiescence`).

use crate::sync::{AtomicU64, Ordering};

/// Where a slot stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody uses it; its body is wiped.
    Free,
    /// Control writes its body; no reader looks.
    Filling,
    /// Readers use it.
    Live,
    /// Unlinked; a reader that saw it Live may still use it until its next quiescent point.
    Retiring,
}

/// State and tag of a slot in one word.
#[derive(Debug)]
#[repr(transparent)]
pub struct SlotHead(AtomicU64);

const FREE: u64 = 0;
const FILLING: u64 = 1 << 32;
const LIVE: u64 = 2 << 32;
const RETIRING: u64 = 3 << 32;

impl SlotHead {
    /// A free slot.
    #[cfg(loom)]
    pub fn new() -> SlotHead {
        SlotHead(AtomicU64::new(FREE))
    }

    /// A slot that is being written.
    #[cfg(not(loom))]
    pub(crate) fn filling() -> SlotHead {
        SlotHead(AtomicU64::new(FILLING))
    }

    /// Whether the slot is Live with exactly this tag. Reader side: the body is valid where this is true.
    #[inline(always)]
    pub fn is_live_as(&self, tag: u32) -> bool {
        self.0.load(Ordering::Acquire) == LIVE | u64::from(tag)
    }

    /// The tag of a Live slot.
    #[inline(always)]
    pub fn live(&self) -> Option<u32> {
        let word = self.0.load(Ordering::Acquire);
        (word & !0xffff_ffff == LIVE).then_some(word as u32)
    }

    /// The tag of a Live or Retiring slot. Reader side, for a slot that a link leads to: who found the link after its last
    /// quiescent point may use the body, also where the slot was retired since (the writer unlinks before it retires).
    #[inline(always)]
    pub fn linked(&self) -> Option<u32> {
        let word = self.0.load(Ordering::Acquire);
        (word >= LIVE).then_some(word as u32)
    }

    /// State and tag as they stand.
    pub fn get(&self) -> (SlotState, u32) {
        let word = self.0.load(Ordering::Acquire);
        let state = match word & !0xffff_ffff {
            FREE => SlotState::Free,
            FILLING => SlotState::Filling,
            LIVE => SlotState::Live,
            _ => SlotState::Retiring,
        };
        (state, word as u32)
    }

    /// Writer: from now on the body is being written.
    pub fn begin(&self) {
        self.0.store(FILLING, Ordering::Release);
    }

    /// Writer: the body is whole; readers may use it.
    pub fn publish(&self, tag: u32) {
        self.0.store(LIVE | u64::from(tag), Ordering::Release);
    }

    /// Writer: no reader may start to use it. Follow with `quiescence::Grace`.
    pub fn retire(&self) {
        let tag = self.0.load(Ordering::Relaxed) & 0xffff_ffff;
        self.0.store(RETIRING | tag, Ordering::SeqCst);
    }

    /// Writer: the grace period is over and the body is wiped.
    pub fn free(&self) {
        self.0.store(FREE, Ordering::Release);
    }
}
