//! One mbuf, owned once and contiguous: the frame of DPDK's ports. No RFC rules this file.

#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::slice;

use arrayvec::ArrayVec;
use penstock_dpdk_sys as sys;

use crate::port::{AREA, BURST, Frame, HEADROOM};

// What the packet's way counts on, DPDK's build must give.
const _: () = assert!(sys::PENSTOCK_MBUF_HEADROOM as usize >= HEADROOM);

/// An mbuf of one segment that nobody else refers to; dropping it gives it back to its pool. Laid out as DPDK's own
/// pointer, so that a slice of these is what `rte_eth_rx_burst` and `rte_eth_tx_burst` take.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: an mbuf belongs to no thread, and its pool takes it back from any. The pool outlives it (see `Pool`).
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// Takes over an mbuf.
    ///
    /// # Safety
    /// `mbuf` must be valid, of a single segment, and the caller's alone.
    pub(super) unsafe fn from_raw(mbuf: NonNull<sys::rte_mbuf>) -> Mbuf {
        Mbuf(mbuf)
    }

    #[inline(always)]
    fn field<T>(&self, offset: sys::penstock_mbuf_layout) -> *mut T {
        // SAFETY: the offset is one that the C compiler gave for this structure.
        unsafe { self.0.as_ptr().byte_add(offset as usize).cast() }
    }

    #[inline(always)]
    fn read<T: Copy>(&self, offset: sys::penstock_mbuf_layout) -> T {
        // SAFETY: the callers pair every offset with its field's type; the mbuf is valid while we own it.
        unsafe { self.field::<T>(offset).read() }
    }

    #[inline(always)]
    fn data_off(&self) -> u16 {
        self.read(sys::PENSTOCK_MBUF_DATA_OFF)
    }

    #[inline(always)]
    fn data_len(&self) -> u16 {
        self.read(sys::PENSTOCK_MBUF_DATA_LEN)
    }

    #[inline(always)]
    fn data_ptr(&self) -> *mut u8 {
        let buffer: *mut u8 = self.read(sys::PENSTOCK_MBUF_BUF_ADDR);
        // SAFETY: DPDK and `reshape` keep data_off within the buffer.
        unsafe { buffer.add(usize::from(self.data_off())) }
    }

    /// Sets where the frame begins and how long it is. The callers keep `off + len` within the buffer.
    #[inline(always)]
    fn reshape(&mut self, off: u16, len: u16) {
        // SAFETY: the mbuf is ours alone; these are the fields' types. One segment: both lengths are the same.
        unsafe {
            self.field::<u16>(sys::PENSTOCK_MBUF_DATA_OFF).write(off);
            self.field::<u16>(sys::PENSTOCK_MBUF_DATA_LEN).write(len);
            self.field::<u32>(sys::PENSTOCK_MBUF_PKT_LEN).write(u32::from(len));
        }
    }
}

impl Frame for Mbuf {
    #[inline]
    fn data(&self) -> &[u8] {
        // SAFETY: data_len octets from there are in the buffer, which is ours alone and was zeroed with its pool.
        unsafe { slice::from_raw_parts(self.data_ptr(), usize::from(self.data_len())) }
    }

    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `data`; borrowed mutably, so nobody else reads.
        unsafe { slice::from_raw_parts_mut(self.data_ptr(), usize::from(self.data_len())) }
    }

    #[inline]
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        let more = u16::try_from(n).ok()?;
        let off = self.data_off().checked_sub(more)?;
        self.reshape(off, self.data_len().checked_add(more)?);
        Some(&mut self.data_mut()[..n])
    }

    #[inline]
    fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        let (off, old) = (self.data_off(), self.data_len());
        let len = old.checked_add(u16::try_from(n).ok()?)?;
        let room: u16 = self.read(sys::PENSTOCK_MBUF_BUF_LEN);
        if u32::from(off) + u32::from(len) > u32::from(room) {
            return None;
        }
        self.reshape(off, len);
        Some(&mut self.data_mut()[usize::from(old)..])
    }

    #[inline]
    fn trim_front(&mut self, n: usize) {
        let (off, len) = (self.data_off(), self.data_len());
        let less = n.min(usize::from(len)) as u16;
        self.reshape(off + less, len - less);
    }

    #[inline]
    fn trim_back(&mut self, n: usize) {
        let len = self.data_len();
        self.reshape(self.data_off(), len - n.min(usize::from(len)) as u16);
    }

    #[inline(always)]
    fn wrap(&mut self, cut: u16, head: u8, tail: u8) -> Option<(&mut [u8; AREA], &mut [u8])> {
        let room: u16 = self.read(sys::PENSTOCK_MBUF_BUF_LEN);
        let (off, len, room) =
            (usize::from(self.data_off()), usize::from(self.data_len()), usize::from(room));
        let (cut, head) = (usize::from(cut), usize::from(head).min(AREA));
        let packet = off + cut;
        if cut > len || packet < AREA || off + len + usize::from(tail) > room {
            return None;
        }
        let rest = len - cut + usize::from(tail);
        // Within `room`, which is 16 bits wide.
        self.reshape((packet - head) as u16, (rest + head) as u16);
        let buffer: *mut u8 = self.read(sys::PENSTOCK_MBUF_BUF_ADDR);
        // SAFETY: `AREA` octets before `packet` and `rest` from there on lie within the buffer (checked above), which is
        // ours alone and was zeroed with its pool; the two do not overlap.
        unsafe {
            let packet = buffer.add(packet);
            Some((&mut *packet.sub(AREA).cast(), slice::from_raw_parts_mut(packet, rest)))
        }
    }

    #[inline(always)]
    fn narrow(&mut self, at: usize, len: usize) {
        let (off, all) = (self.data_off(), usize::from(self.data_len()));
        let at = at.min(all);
        self.reshape(off + at as u16, len.min(all - at) as u16);
    }

    #[inline]
    fn len(&self) -> usize {
        usize::from(self.data_len())
    }

    #[inline(always)]
    fn prefetch(&self) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing that the program sees, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(self.data_ptr().cast()) };
    }

    #[inline]
    fn free_all(frames: &mut ArrayVec<Self, BURST>) {
        let count = frames.len();
        // SAFETY: the first `count` pointers are mbufs that we own; the list forgets them before they are given back.
        unsafe {
            frames.set_len(0);
            sys::rte_pktmbuf_free_bulk(frames.as_mut_ptr().cast(), count as u32);
        }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        let mut mbuf = self.0.as_ptr();
        // SAFETY: the mbuf is ours, and this is the last that is seen of it.
        unsafe { sys::rte_pktmbuf_free_bulk(&raw mut mbuf, 1) };
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mbuf({:02x?})", self.data())
    }
}
