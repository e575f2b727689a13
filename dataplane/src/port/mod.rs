//! Ports: where bursts of frames enter and leave. Ethernet frames without their check sequence, on both ways.
//!
//! The packet's way is written once, over [`Port`] and [`Frame`], and compiled for each kind of port: [`memory`] (frames
//! in memory, pcap in and out) and [`dpdk`] (any device of DPDK). A port is crossed once a burst. No RFC rules this file.

pub mod dpdk;
pub mod memory;

use std::fmt;
use std::ops::{Deref, DerefMut, RangeBounds};

use arrayvec::ArrayVec;

/// Frames in a full [`Burst`].
pub const BURST: usize = 64;

/// Octets in front of a fresh frame, as DPDK's RTE_PKTMBUF_HEADROOM: outer IP, UDP, ESP and IV need 60 at most.
pub const HEADROOM: usize = 128;

/// Octets before a packet that [`Frame::wrap`] gives access to: all headers in front of it fit.
pub const AREA: usize = 64;

/// One packet, owned once, contiguous. Backed by an mbuf or by memory; dropping it gives it back to its pool.
pub trait Frame: Sized + Send {
    /// The octets of the frame.
    fn data(&self) -> &[u8];

    /// The octets of the frame, to be written.
    fn data_mut(&mut self) -> &mut [u8];

    /// Grows the frame by `n` octets at the front and returns them (their content is what was there before). `None`
    /// where the headroom is too small: then nothing has changed.
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]>;

    /// Grows the frame by `n` octets at the end and returns them (their content is what was there before). `None`
    /// where the tailroom is too small: then nothing has changed.
    fn append(&mut self, n: usize) -> Option<&mut [u8]>;

    /// Removes the first `n` octets, at most all.
    fn trim_front(&mut self, n: usize);

    /// Removes the last `n` octets, at most all.
    fn trim_back(&mut self, n: usize);

    /// Takes `cut` octets off the front and puts `head` (at most [`AREA`]) new ones there and `tail` at the end,
    /// in one step. Returns the [`AREA`] octets before what was left, of which the last `head` are the frame's first now and
    /// the others are headroom, to be written at will; and what follows. `None` where there is no room, or
    /// there are fewer than `cut`: then nothing has changed.
    fn wrap(&mut self, cut: u16, head: u8, tail: u8) -> Option<(&mut [u8; AREA], &mut [u8])>;

    /// Keeps `len` octets from octet `at` on, or what there is of them.
    #[inline]
    fn narrow(&mut self, at: usize, len: usize) {
        self.trim_front(at);
        self.trim_back(self.len().saturating_sub(len));
    }

    /// Octets in the frame.
    #[inline]
    fn len(&self) -> usize {
        self.data().len()
    }

    /// Whether the frame has no octets.
    #[inline]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks the CPU to fetch the frame's first cache line: call it some packets ahead of reading [`Frame::data`].
    #[inline]
    fn prefetch(&self) {}

    /// Frees all frames of the list and leaves it empty; in one step where the pool can.
    #[inline]
    fn free_all(frames: &mut ArrayVec<Self, BURST>) {
        frames.clear();
    }
}

/// One queue pair of one port, owned by one worker.
pub trait Port {
    /// The frames that this port carries.
    type Frame: Frame;

    /// Appends received frames to `burst`, at most what it has room for. Returns how many.
    fn receive(&mut self, burst: &mut Burst<Self::Frame>) -> usize;

    /// Hands frames over from the front of `burst` and removes exactly what the port took; the rest is still the
    /// caller's. Returns how many were taken.
    fn send(&mut self, burst: &mut Burst<Self::Frame>) -> usize;

    /// An empty frame with [`HEADROOM`] from the port's pool; `None` where the pool is exhausted.
    fn allocate(&mut self) -> Option<Self::Frame>;
}

/// A list of at most [`BURST`] frames, in place: it never touches the heap. Reads as a slice.
pub struct Burst<F: Frame> {
    frames: ArrayVec<F, BURST>,
}

impl<F: Frame> Burst<F> {
    /// An empty burst.
    #[inline]
    pub fn new() -> Burst<F> {
        Burst { frames: ArrayVec::new_const() }
    }

    /// Adds a frame at the end. A full burst gives the frame back.
    #[inline]
    pub fn push(&mut self, frame: F) -> Result<(), F> {
        self.frames.try_push(frame).map_err(|refused| refused.element())
    }

    /// Takes the last frame.
    #[inline]
    pub fn pop(&mut self) -> Option<F> {
        self.frames.pop()
    }

    /// Takes the frames of `range` out, in order; what the caller does not take is freed.
    ///
    /// # Panics
    /// If the range is outside the burst.
    #[inline]
    pub fn drain(&mut self, range: impl RangeBounds<usize>) -> arrayvec::Drain<'_, F, BURST> {
        self.frames.drain(range)
    }

    /// Keeps the frames that `keep` says, in order, and frees the others.
    #[inline]
    pub fn retain(&mut self, keep: impl FnMut(&mut F) -> bool) {
        self.frames.retain(keep);
    }

    /// Frees all frames.
    #[inline]
    pub fn clear(&mut self) {
        F::free_all(&mut self.frames);
    }

    /// How many frames can still be pushed.
    #[inline]
    pub fn room(&self) -> usize {
        self.frames.remaining_capacity()
    }

    /// Whether no frame can be pushed.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.frames.is_full()
    }

    /// The frames as a slice.
    #[inline]
    pub fn as_slice(&self) -> &[F] {
        &self.frames
    }

    /// The frames as a slice, to be written.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [F] {
        &mut self.frames
    }

    /// The list itself, for ports that fill and empty it in place.
    #[inline]
    pub(crate) fn list_mut(&mut self) -> &mut ArrayVec<F, BURST> {
        &mut self.frames
    }
}

impl<F: Frame> Default for Burst<F> {
    fn default() -> Burst<F> {
        Burst::new()
    }
}

impl<F: Frame> Drop for Burst<F> {
    #[inline]
    fn drop(&mut self) {
        if !self.frames.is_empty() {
            F::free_all(&mut self.frames);
        }
    }
}

impl<F: Frame> Deref for Burst<F> {
    type Target = [F];

    #[inline]
    fn deref(&self) -> &[F] {
        &self.frames
    }
}

impl<F: Frame> DerefMut for Burst<F> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [F] {
        &mut self.frames
    }
}

impl<'a, F: Frame> IntoIterator for &'a Burst<F> {
    type Item = &'a F;
    type IntoIter = std::slice::Iter<'a, F>;

    #[inline]
    fn into_iter(self) -> Self::IntoIter {
        self.frames.iter()
    }
}

impl<'a, F: Frame> IntoIterator for &'a mut Burst<F> {
    type Item = &'a mut F;
    type IntoIter = std::slice::IterMut<'a, F>;

    #[inline]
    fn into_iter(self) -> Self::IntoIter {
        self.frames.iter_mut()
    }
}

impl<F: Frame> Extend<F> for Burst<F> {
    /// Takes frames while there is room; the others stay in the iterator.
    #[inline]
    fn extend<I: IntoIterator<Item = F>>(&mut self, frames: I) {
        let room = self.room();
        self.frames.extend(frames.into_iter().take(room));
    }
}

impl<F: Frame> fmt::Debug for Burst<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Burst({} of {BURST} frames)", self.frames.len())
    }
}
