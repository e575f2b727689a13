//! The distinct SAs, or tunnels, of a burst: slots enter in any order, each gets a place from 0 on. No RFC rules this file.

use arrayvec::ArrayVec;

/// Entries of the table of places: twice as many as there can be slots, so that few collide.
const TABLE: usize = 256;

/// At most `N` of them (up to half of the table).
pub struct Slots<const N: usize> {
    slots: ArrayVec<u32, N>,
    /// The place that served last: bursts are mostly of one.
    last: usize,
    /// One more than the place of the slot that was first with these low bits.
    table: [u8; TABLE],
}

impl<const N: usize> Slots<N> {
    /// None yet.
    #[inline(always)]
    pub fn new() -> Slots<N> {
        const { assert!(2 * N <= TABLE) };
        Slots { slots: ArrayVec::new(), last: 0, table: [0; TABLE] }
    }

    /// The place of `slot`; `N`, which is no place, where there are too many.
    #[inline(always)]
    pub fn place(&mut self, slot: u32) -> usize {
        if self.slots.get(self.last) != Some(&slot) {
            self.last = self.find(slot);
        }
        self.last
    }

    #[inline(never)]
    fn find(&mut self, slot: u32) -> usize {
        let entry = &mut self.table[slot as usize % TABLE];
        let first = usize::from(*entry).wrapping_sub(1);
        if self.slots.get(first) == Some(&slot) {
            return first;
        }
        let known = if *entry == 0 { None } else { self.slots.iter().position(|known| *known == slot) };
        known.unwrap_or_else(|| {
            let place = self.slots.len();
            if self.slots.try_push(slot).is_err() {
                return N;
            }
            if *entry == 0 {
                *entry = place as u8 + 1;
            }
            place
        })
    }

    /// The slots, by place.
    #[inline(always)]
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: usize = 64;

    #[test]
    fn every_slot_has_one_place() {
        let mut slots = Slots::<BURST>::new();
        let some: Vec<u32> = (0..BURST as u32).map(|at| at.wrapping_mul(0x9e37_79b9) >> (at % 20)).collect();
        let places: Vec<usize> = some.iter().map(|slot| slots.place(*slot)).collect();
        let known: Vec<u32> = slots.iter().collect();
        for (slot, place) in some.iter().zip(&places) {
            assert_eq!((known[*place], slots.place(*slot)), (*slot, *place));
        }
        // All in one entry of the table.
        let mut slots = Slots::<BURST>::new();
        for at in 0..BURST {
            assert_eq!(slots.place((at * TABLE) as u32), at);
        }
        for at in (0..BURST).rev() {
            assert_eq!(slots.place((at * TABLE) as u32), at);
        }
        assert_eq!(slots.iter().count(), BURST);
        // One more has no place, and takes none.
        assert_eq!((slots.place(7), slots.place(7), slots.place(0)), (BURST, BURST, 0));
    }
}
