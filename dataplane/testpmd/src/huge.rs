//! Memory in huge pages for what is no mbuf: a length enters, zeroed octets leave, from hugepage-rs where pages are free and
//! from the heap where not. No RFC rules this file.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

/// Octets, zero at first, owned once.
#[derive(Debug)]
pub struct Block(Place);

#[derive(Debug)]
enum Place {
    Huge { start: NonNull<u8>, layout: Layout },
    Heap(Vec<u8>),
}

// SAFETY: memory that this value owns alone, like a Vec's.
unsafe impl Send for Block {}

impl Block {
    /// `len` octets.
    pub fn new(len: usize) -> Block {
        let layout = Layout::array::<u8>(len.max(1)).ok();
        // SAFETY: the layout is of one octet at least; what comes back is checked, and mapped zeroed by the kernel.
        let huge =
            layout.and_then(|layout| Some((NonNull::new(unsafe { hugepage_rs::alloc(layout) })?, layout)));
        Block(match huge {
            Some((start, layout)) => Place::Huge { start, layout },
            None => Place::Heap(vec![0; len.max(1)]),
        })
    }

    /// Whether it lies in huge pages.
    pub fn is_huge(&self) -> bool {
        matches!(self.0, Place::Huge { .. })
    }
}

impl Deref for Block {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: that many octets were mapped there, and are ours until we drop them.
            Place::Huge { start, layout } => unsafe { slice::from_raw_parts(start.as_ptr(), layout.size()) },
            Place::Heap(octets) => octets,
        }
    }
}

impl DerefMut for Block {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as in `deref`; borrowed mutably, so nobody else reads.
            Place::Huge { start, layout } => unsafe {
                slice::from_raw_parts_mut(start.as_ptr(), layout.size())
            },
            Place::Heap(octets) => octets,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Place::Huge { start, layout } = &self.0 {
            // SAFETY: from hugepage_rs::alloc with this layout, and the last that is seen of it.
            unsafe { hugepage_rs::dealloc(start.as_ptr(), *layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_zero_and_ours_wherever_it_lies() {
        for len in [1, 4096, 3 << 20] {
            let mut block = Block::new(len);
            assert_eq!(block.len(), len);
            assert!(block.iter().all(|octet| *octet == 0));
            block.fill(7);
            assert_eq!((block[0], block[len - 1]), (7, 7));
        }
    }
}
